"""`plmjax tokenizer` and its verbs."""

import dataclasses
import json
import sys
from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import json_option, load_config, log


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


# {option: the key of the config that it sets}.
_KEYS = {
    "kind": "kind",
    "size": "vocab_size",
    "min_frequency": "min_frequency",
    "lowercase": "lowercase",
    "strip_accents": "strip_accents",
    "nfkc": "nfkc",
    "special_tokens": "special_tokens",
    "alphabet": "alphabet",
    "longest_word": "longest_word",
    "k": "k",
    "stride": "stride",
}


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
    _text_options(added, "--to")
    for option, key in _KEYS.items():
        added.add_argument(
            f"--{option}", metavar="VALUE", help=f"short for --config.tokenizer.{key}"
        )


def _text_options(added, *required: str) -> None:
    """Adds PATHS, --to and --json."""
    added.add_argument(
        "paths",
        nargs="*",
        metavar="PATHS",
        help="files, folders and patterns of the text: my.txt more/ '*.jsonl.gz'",
    )
    added.add_argument(
        "--to",
        metavar="DIR",
        required="--to" in required,
        help="new folder for what is written",
    )
    json_option(added)


def _config(args):
    """Returns the config of a pretraining with the options of the command."""
    for option, key in _KEYS.items():
        value = getattr(args, option, None)
        if value is None:
            continue
        if option == "special_tokens" and not value.startswith("("):
            value = repr(tuple(value.split(",")))
        args.overrides.append(f"tokenizer.{key}={value}")
    return load_config(args, None)


def _target(args) -> Path:
    """Returns --to.

    Raises:
      PlmjaxError: it exists and is not an empty folder.
    """
    to = Path(args.to)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise PlmjaxError(
            f"--to={to} exists and is not an empty folder.",
            hint="Choose another, or remove it.",
        )
    return to


def _train(args) -> int:
    config, to = _config(args), _target(args)
    from plmjax.experiments import vocabularies
    from plmjax.files import disk_errors, replacing_folder
    from plmjax.tokenizers import describe

    if config.tokenizer.path is not None:
        raise PlmjaxError(
            f"tokenizer.path={config.tokenizer.path} names a vocabulary, so there is "
            "none to train.",
            hint="Leave it out.",
        )
    source = vocabularies.open_text(config)
    trained = vocabularies.train(config, source, log)
    with disk_errors(to), replacing_folder(to) as new:
        trained.save(new)
    notes = describe(trained)
    if args.json:
        facts = {"kind": trained.kind, "vocab_size": trained.vocab_size}
        print(json.dumps(facts | {"to": str(to), "notes": notes}, ensure_ascii=False))
        return Exit.OK
    for line in notes:
        print(line)
    print(vocabularies.example(trained, next(iter(source.documents()))))
    print(f"{trained.kind}, {trained.vocab_size:,} pieces: {to}")
    print(f"\nNext:\n  plmjax pretrain PATHS --config.tokenizer.path={to}")
    return Exit.OK
