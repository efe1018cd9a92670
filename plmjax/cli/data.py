"""`plmjax data` and its verbs."""

import argparse
import dataclasses
from pathlib import Path

from plmjax import PlmjaxError
from plmjax.cli import stores
from plmjax.cli.options import at_least_one, json_option, log, print_result


def add(verb) -> None:
    """Adds the parser of `plmjax data` and its verbs."""
    added = verb(
        "data",
        None,
        "look at text, clean it, split it; check and merge stores",
        "plmjax data inspect my.txt",
    )
    verbs = added.add_subparsers(dest="what", metavar="WHAT", required=True)
    _add_clean(verb, verbs)
    stores.add_prepare(verb, verbs)
    stores.add_verify(verb, verbs)
    stores.add_merge(verb, verbs)


def text_options(added: argparse.ArgumentParser) -> None:
    """Adds PATHS and the options by which files are read, for `open_texts`."""
    added.add_argument(
        "paths",
        nargs="*",
        metavar="PATHS",
        help="files, folders and patterns of the text: my.txt more/ '*.jsonl.gz'",
    )
    added.add_argument(
        "--yes",
        action="store_const",
        const=True,
        help="read as text what looks like records",
    )
    added.set_defaults(config=None)
    epilog = (
        "  --config.data.KEY=VALUE       how files are read (docs/data.md), as for "
    )
    epilog += "pretrain:\n    --config.data.source.document=blank\n"
    added.epilog = epilog + (added.epilog or "")


def open_texts(args):
    """Returns the source of PATHS, read as --config.data.KEY=VALUE says.

    Raises:
      PlmjaxError: no paths, or files that are not read.
    """
    from plmjax import config as config_lib
    from plmjax.data.config import DataConfig
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
    source = open_source(
        data.source, data.errors, data.encoding, unchecked=data.accept_warnings
    )
    text = source.description
    why = f" ({text['why']})" if text.get("why") else ""
    document = text.get("document", "record")
    log(f"Source: {text['kind']}; a document is a {document}{why}.")
    for note in text.get("notes", ()):
        log(note)
    return source


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
    from plmjax.data.clean_corpus import check_new, clean_corpus
    from plmjax.report.text import clean_as_text

    at_least_one(args, "workers")
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
    result = clean_corpus(
        open_texts(args),
        config,
        to,
        dropped=Path(args.dropped) if args.dropped else None,
        workers=args.workers,
        log=log,
    )
    return print_result(args, result | {"to": str(to)}, clean_as_text)


def _names(given: str) -> tuple[str, ...]:
    """Returns the names in an option such as --steps=unicode,near."""
    return tuple(name for name in map(str.strip, given.split(",")) if name)
