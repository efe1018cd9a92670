"""The parser: verbs in the order in which people use them."""

import argparse
import difflib
from collections.abc import Callable
from typing import Any

from plmjax import __version__
from plmjax.cli import (
    bench,
    compare,
    doctor,
    embed,
    finetune,
    inference,
    launch,
    pretrain,
    pseudo,
    sweep,
    transfer,
)

_CONFIG_HELP = """\
  --config=FILE.py[:argument]   a config file (Python: it is executed) or config.json
  --config.KEY=VALUE            set a key of the config, e.g. --config.train.steps=2000
"""


class _Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest option for an unknown one."""

    verbs: Any = None

    def parse_args(self, *given, **more):  # type: ignore[override]
        args, unknown = self.parse_known_args(*given, **more)
        if unknown:
            chosen = self.verbs and self.verbs.choices.get(getattr(args, "verb", None))
            known = list((chosen or self)._option_string_actions)
            near = [
                match
                for option in unknown
                for match in difflib.get_close_matches(
                    option.partition("=")[0], known, 1
                )
            ]
            suggestion = f" (did you mean {', '.join(near)}?)" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{suggestion}")
        return args


def _completed(
    parser: argparse.ArgumentParser,
    run: Callable | None,
    help: str,
    example: str,
    config: bool = False,
) -> argparse.ArgumentParser:
    """Returns a parser with what all verbs have: help, an example, --debug."""
    parser.description = help
    parser.epilog = (_CONFIG_HELP if config else "") + f"\nexample:\n  {example}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.allow_abbrev = False
    parser.set_defaults(run=run)
    parser.add_argument(
        "--debug", action="store_true", help="print tracebacks and tuned settings"
    )
    if config:
        parser.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)
    return parser


def program_parser(run: Callable, help: str, example: str) -> argparse.ArgumentParser:
    """Returns the parser of a program without verbs, called as in its example.

    `plmjax.cli.run_program` runs it.
    """
    parser = _Parser(prog=example.partition(" -")[0])
    return _completed(parser, run, help, example)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all verbs, in the order in which people use them."""
    parser = _Parser(
        prog="plmjax",
        description="Train encoder language models on your own text, and export them "
        "in the Hugging Face format.",
        epilog="`plmjax VERB --help` prints the options of a verb, with an example.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"plmjax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    parser.verbs = verbs

    def verb(name: str, run, help: str, example: str, config: bool = False, of=verbs):
        parser = of.add_parser(name, help=help)
        return _completed(parser, run, help, example, config)

    for group in (
        pretrain,
        finetune,
        compare,
        pseudo,
        inference,
        embed,
        transfer,
        sweep,
        launch,
        doctor,
        bench,
    ):
        group.add(verb)
    return parser
