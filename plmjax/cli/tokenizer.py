"""`plmjax tokenizer` and its verbs."""

import contextlib
import sys
from pathlib import Path

from plmjax import PlmjaxError
from plmjax.cli.adapt import add_adapt
from plmjax.cli.options import (
    json_option,
    load_config,
    log,
    not_empty,
    numbers,
    paths_option,
    print_result,
    start_jax,
)
from plmjax.files import check_new


def add(verb) -> None:
    """Adds the parser of `plmjax tokenizer` and its verbs."""
    added = verb(
        "tokenizer",
        None,
        "train, compare, choose or adapt a vocabulary",
        "plmjax tokenizer train my.txt --size=16000 --to=my-vocabulary",
    )
    verbs = added.add_subparsers(dest="what", metavar="WHAT", required=True)
    _add_train(verb, verbs)
    _add_compare(verb, verbs)
    _add_choose(verb, verbs)
    add_adapt(verb, verbs)


# Keys of the block `tokenizer` as options.
_KEYS = ("kind", "size", "min_frequency", "lowercase", "strip_accents", "nfkc")
_KEYS += ("special_tokens", "alphabet", "longest_word", "k", "stride")


def _key(option: str) -> str:
    return "tokenizer." + ("vocab_size" if option == "size" else option)


def _add_train(verb, of) -> None:
    added = verb(
        "train",
        _train,
        "train a vocabulary on text, as `plmjax pretrain` would",
        "plmjax tokenizer train texts/ --kind=bpe --size=16000 --to=my-vocabulary\n"
        "  plmjax tokenizer train genome.txt --kind=kmer --k=6 --to=my-kmers",
        config=True,
        of=of,
    )
    _text_options(added)
    for option in _KEYS:
        what = f"short for --config.{_key(option)}"
        added.add_argument(f"--{option}", metavar="VALUE", help=what)


def _add_compare(verb, of) -> None:
    added = verb(
        "compare",
        _compare,
        "compare vocabularies on a text: length and cost, what they keep whole",
        "plmjax tokenizer compare bert-base/vocab.txt runs/mine --text=test.txt "
        "--words=angiography",
        config=True,
        of=of,
    )
    add = added.add_argument
    add(
        "paths",
        nargs="+",
        metavar="VOCABULARY",
        help="a vocab.txt, a tokenizer.json, a folder with one, or a run's workdir",
    )
    add(
        "--text",
        required=True,
        type=not_empty("--text"),
        metavar="FILES",
        help="files and patterns of the text",
    )
    add("--words", metavar="WORD,...", help="words to show side by side")
    add("--to", metavar="DIR", help="new folder for the plot and the figures")
    json_option(added)


def _add_choose(verb, of) -> None:
    added = verb(
        "choose",
        _choose,
        "train vocabularies of several kinds and sizes on a text, and suggest one",
        "plmjax tokenizer choose texts/ --sizes=4000,8000,16000 "
        "--kinds=wordpiece,bpe --to=sizes",
        config=True,
        of=of,
    )
    _text_options(added)
    add = added.add_argument
    add("--sizes", default="4000,8000,16000,32000", metavar="N,...", help="pieces")
    add("--kinds", default="wordpiece", metavar="KIND,...", help="tokenizer.kind")
    add(
        "--sample",
        type=float,
        default=16.0,
        metavar="MB",
        help="megabytes of the text that are read (default: 16)",
    )
    add(
        "--probe",
        type=float,
        nargs="?",
        const=4.0,
        metavar="MB",
        help="pretrain the config's model with each on MB megabytes (default: 4), and "
        "compare bits a byte",
    )


def _text_options(added) -> None:
    """Adds PATHS, --to and --json."""
    paths_option(added)
    added.add_argument(
        "--to", metavar="DIR", required=True, help="new folder for what is written"
    )
    json_option(added)


def _target(args) -> Path:
    check_new(Path(args.to))
    return Path(args.to)


def _train(args) -> int:
    for option in _KEYS:
        value = getattr(args, option)
        if option == "special_tokens" and value and not value.startswith("("):
            value = repr(tuple(value.split(",")))
        if value is not None:
            args.overrides.append(f"{_key(option)}={value}")
    config, to = load_config(args, None), _target(args)
    from plmjax.experiments import vocabularies
    from plmjax.files import disk_errors, replacing_folder
    from plmjax.tokenizers import describe, train_tokenizer
    from plmjax.tokenizers.train import check_options

    if config.tokenizer.path is not None:
        raise PlmjaxError(
            f"tokenizer.path={config.tokenizer.path} names a vocabulary, so there is "
            "none to train.",
            hint="Leave it out.",
        )
    check_options(config.tokenizer)
    source = vocabularies.open_text(config)
    trained = train_tokenizer(config.tokenizer, vocabularies.counted(source, log))
    with disk_errors(to), replacing_folder(to) as new:
        trained.save(new)
    facts = {"kind": trained.kind, "vocab_size": trained.vocab_size, "to": str(to)}

    def as_text(result):
        example = vocabularies.example(trained, next(iter(source.documents())))
        pieces = f"{trained.kind}, {trained.vocab_size:,} pieces: {to}"
        next_ = f"\nNext:\n  plmjax pretrain PATHS --config.tokenizer.path={to}"
        return "\n".join([*result["notes"], example, pieces, next_])

    return print_result(args, facts | {"notes": describe(trained)}, as_text)


def _compare(args) -> int:
    paths, args.paths = args.paths, []
    for number, path in enumerate(paths):
        if Path(path).resolve() in map(Path.resolve, map(Path, paths[:number])):
            raise PlmjaxError(f"the vocabulary {path} is given twice.")
    args.overrides += ["data.mixture=()", "data.mixture_temperature=None"]
    args.overrides.append(f"data.source.paths={args.text}")
    config, to = load_config(args, None), args.to and _target(args)
    from plmjax import config as config_lib
    from plmjax.experiments import vocabularies
    from plmjax.files import disk_errors, replacing_folder, write_json
    from plmjax.tokenizers.train import SAMPLE_BYTES, sample_documents
    from plmjax.workdir import RunConfig

    opened = [vocabularies.open_vocabulary(path) for path in paths]
    short = [Path(path).name for path in paths]
    names = short if len({*short}) == len(paths) else paths
    named = dict(zip(names, opened, strict=True))
    source = vocabularies.open_text(config)
    texts = sample_documents(vocabularies.counted(source, log), SAMPLE_BYTES)
    words = [word for word in (args.words or "").split(",") if word]
    bert = config_lib.build(RunConfig, vocabularies.BERT_BASE)
    result = vocabularies.compare(named, texts, words, bert)
    if to:
        with disk_errors(to), replacing_folder(to) as new:
            write_json(new / "compare.json", result)
            vocabularies.draw(result, new / "compare.png")
        log(f"Plot and figures: {to}/compare.png, compare.json.")
    return print_result(args, result, vocabularies.compare_as_text)


def _choose(args) -> int:
    sizes = [*dict.fromkeys(numbers(args.sizes, "sizes"))]
    kinds = [*dict.fromkeys(args.kinds.split(","))]
    given, to = args.overrides, _target(args)
    for kind in kinds:  # only checked
        args.overrides = [*given, f"tokenizer.kind={kind}"]
        load_config(args, None)
    args.overrides = given
    config = load_config(args, None)
    if args.sample <= 0 or (args.probe is not None and args.probe <= 0):
        raise PlmjaxError("--sample and --probe must be above 0.")
    start_jax()
    from plmjax.experiments import vocabularies
    from plmjax.experiments import vocabulary_choice as choice
    from plmjax.files import disk_errors, removed_unless_done, write_json

    source = vocabularies.open_text(config)
    sample = choice.draw_sample(config, source, log, int(args.sample * 1e6))
    named = choice.candidates(config, sample, kinds, sizes, log)
    records = vocabularies.records_of(named, sample.held_out, config)
    with disk_errors(to), removed_unless_done(to):
        for name, tokenizer in named.items():
            tokenizer.save(to / name)
        if args.probe is not None:
            with contextlib.redirect_stdout(sys.stderr):
                choice.probe(config, sample, records, to, args.probe)
        name, why = choice.suggest(records, config.model.preset or "this model")
        result = {"vocabularies": records, "suggestion": name, "reason": why}
        write_json(to / "choose.json", result)
        choice.draw_curve(records, to / "choose.png")
    log(f"Plot, figures and vocabularies: {to}")
    return print_result(args, result, choice.choice_as_text)
