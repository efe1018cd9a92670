"""`plmjax data` and its verbs."""

import argparse
import dataclasses
from pathlib import Path

from plmjax import PlmjaxError
from plmjax.cli import stores
from plmjax.cli.domains import add_domains
from plmjax.cli.options import (
    at_least_one,
    check_plot,
    json_option,
    log,
    paths_option,
    print_result,
    unchecked_option,
)
from plmjax.files import check_new, check_outside


def add(verb) -> None:
    """Adds the parser of `plmjax data` and its verbs."""
    added = verb(
        "data",
        None,
        "look at text, clean it, split it; check and merge stores",
        "plmjax data inspect my.txt",
    )
    verbs = added.add_subparsers(dest="what", metavar="WHAT", required=True)
    _add_inspect(verb, verbs)
    _add_clean(verb, verbs)
    _add_split(verb, verbs)
    add_domains(verb, verbs)
    stores.add_prepare(verb, verbs)
    stores.add_verify(verb, verbs)
    stores.add_merge(verb, verbs)


def text_options(added: argparse.ArgumentParser) -> None:
    """Adds PATHS and the options by which files are read, for `open_texts`."""
    paths_option(added)
    unchecked_option(added)
    added.set_defaults(config=None)
    epilog = (
        "  --config.data.KEY=VALUE       how files are read (docs/data.md), as for "
    )
    epilog += "pretrain:\n    --config.data.source.document=blank\n"
    added.epilog = epilog + (added.epilog or "")


def open_texts(args, to: Path | None = None):
    """Returns the source of PATHS, read as --config.data.KEY=VALUE says.

    Raises:
      PlmjaxError: no paths, or files that are not read; `to` is among them.
    """
    from plmjax import config as config_lib
    from plmjax.data.config import DataConfig
    from plmjax.data.corpus import describe_source
    from plmjax.data.sources import open_source

    if not args.paths and not args.overrides:
        raise PlmjaxError(
            "the texts are missing.",
            hint=f"plmjax data {args.what} my.txt more/ '*.jsonl.gz'",
        )
    field = ("data", DataConfig, dataclasses.field(default_factory=DataConfig))
    given = {"data": {"source": {"paths": tuple(args.paths)}}} if args.paths else {}
    schema = dataclasses.make_dataclass("Texts", [field])
    data = config_lib.load(schema, None, args.overrides, given=given).data
    if to is not None:
        check_outside(to, data.source.paths)
    source = open_source(
        data.source, data.errors, data.encoding, unchecked=data.accept_warnings
    )
    for line in describe_source(source.description):
        log(line)
    return source


def _add_inspect(verb, of) -> None:
    added = verb(
        "inspect",
        _inspect,
        "measure a text as a model reads it, and say what looks wrong",
        "plmjax data inspect texts/ --tokenizer=vocab.txt --plot=lengths.png",
        of=of,
    )
    text_options(added)
    added.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="a folder, tokenizer.json, vocab.txt or SentencePiece model (default: a "
        "WordPiece of 8,192 pieces, trained on a sample)",
    )
    added.add_argument("--plot", metavar="FILE.png", help="plot the lengths")
    workers_option(added)
    json_option(added)


def _inspect(args) -> int:
    from plmjax.data.inspect import inspect
    from plmjax.files import disk_errors
    from plmjax.report.text import inspect_as_text, plot_lengths

    at_least_one(args, "workers")
    check_plot(args.plot)
    source = open_texts(args)
    result = inspect(source, args.tokenizer, workers=args.workers, log=log)
    if args.plot:
        with disk_errors(Path(args.plot)):
            plot_lengths(Path(args.plot), result)
    return print_result(args, result | {"plot": args.plot}, inspect_as_text)


def _add_clean(verb, of) -> None:
    added = verb(
        "clean",
        _clean,
        "repair text, and drop what repeats or is no prose; every step is counted",
        "plmjax data clean texts/ --to=cleaned\n"
        "  plmjax data clean '*.jsonl.gz' --to=cleaned --languages=en \\\n"
        "      --steps=unicode,language,gopher,lines,exact,near",
        of=of,
    )
    text_options(added)
    new_folder_option(added)
    added.add_argument(
        "--steps",
        metavar="A,B",
        help="unicode, language, c4, gopher, repetition, against, mask, lines, exact, "
        "near, always in this order (docs/text.md; default: unicode,lines,exact,near, "
        "and language or against with their options)",
    )
    added.add_argument(
        "--without",
        default="",
        metavar="RULES",
        help="rules of c4, gopher and repetition to leave out: gopher-stop-words",
    )
    added.add_argument(
        "--languages", default="", metavar="en,de", help="languages to keep"
    )
    added.add_argument(
        "--against",
        default="",
        metavar="FILES",
        help="evaluation files; documents that share 13 words in a row are dropped",
    )
    added.add_argument(
        "--line_documents",
        type=int,
        default=10,
        metavar="N",
        help="a line in so many documents is boilerplate (default: 10)",
    )
    added.add_argument(
        "--dropped",
        metavar="FILE",
        help="JSON lines (.gz) of what was dropped, and why",
    )
    workers_option(added)
    stores.executor_options(added)
    json_option(added)


def new_folder_option(added: argparse.ArgumentParser) -> None:
    """Adds --to, a new folder."""
    added.add_argument("--to", required=True, metavar="DIR", help="a new folder")


def workers_option(added: argparse.ArgumentParser) -> None:
    """Adds --workers."""
    added.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: one a core if the text is large)",
    )


def _clean(args) -> int:
    from plmjax.data.clean import DEFAULT, CleanConfig
    from plmjax.data.clean_corpus import clean_corpus
    from plmjax.report.text import clean_as_text

    at_least_one(args, "workers", "tasks")
    executor = stores.executor_of(args)
    chosen = _names(args.steps) if args.steps is not None else DEFAULT
    if args.steps is None:
        chosen += ("language",) * bool(args.languages)
        chosen += ("against",) * bool(args.against)
    config = CleanConfig(
        steps=chosen,
        without=_names(args.without),
        languages=_names(args.languages),
        against=_names(args.against),
        line_documents=args.line_documents,
    )
    config.check()
    to = Path(args.to)
    check_new(to)
    from plmjax.data.parts import Tasks

    base = to.with_name(f".{to.name}.tasks")
    result = clean_corpus(
        open_texts(args, to),
        config,
        to,
        dropped=Path(args.dropped) if args.dropped else None,
        workers=args.workers,
        log=log,
        tasks=executor and Tasks(base, executor, args.tasks, log),
    )
    return print_result(args, result | {"to": str(to)}, clean_as_text)


def _names(given: str) -> tuple[str, ...]:
    """Returns the names in an option such as --steps=unicode,near."""
    return tuple(name for name in map(str.strip, given.split(",")) if name)


def _add_split(verb, of) -> None:
    added = verb(
        "split",
        _split,
        "write train and test files, by document; copies stay on one side",
        "plmjax data split texts/ --to=parts --test=5%",
        of=of,
    )
    text_options(added)
    new_folder_option(added)
    added.add_argument(
        "--test", default="5%", metavar="5%", help="share of the documents (default: 5)"
    )
    added.add_argument(
        "--seed", type=int, default=0, help="chooses other documents (default: 0)"
    )
    added.add_argument(
        "--near", action="store_true", help="keep near-duplicates on one side, too"
    )
    workers_option(added)
    json_option(added)


def _split(args) -> int:
    from plmjax.data.split_corpus import split_corpus
    from plmjax.report.text import split_as_text

    at_least_one(args, "workers")
    try:
        percent = float(args.test.removesuffix("%"))
    except ValueError:
        raise PlmjaxError(f"--test={args.test} must be a share, such as 5%.") from None
    if 0 < percent < 1 and not args.test.endswith("%"):
        raise PlmjaxError(
            f"--test={args.test} would be less than one percent: it is in percent.",
            hint=f"Write --test={100 * percent:g}% for that share, or "
            f"--test={args.test}%.",
        )
    to = Path(args.to)
    check_new(to)
    result = split_corpus(
        open_texts(args, to),
        to,
        percent,
        seed=args.seed,
        near=args.near,
        workers=args.workers,
    )
    return print_result(args, result | {"to": str(to)}, split_as_text)
