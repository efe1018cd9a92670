"""The parser: verbs in the order in which people use them."""

import argparse
import difflib
from typing import Any

from plmjax import __version__
from plmjax.cli import (
    bench,
    compare,
    doctor,
    embed,
    finetune,
    launch,
    pretrain,
    pseudo,
    sweep,
    transfer,
    use,
)

_CONFIG_HELP = """\
  --config=FILE.py[:argument]   a config file (Python: it is executed) or config.json
  --config.KEY=VALUE            any value in its place, e.g. --config.train.steps=2000
"""


class _Parser(argparse.ArgumentParser):
    """Names the nearest option for one that is not known."""

    verbs: Any = None

    def parse_args(self, *given, **more):  # type: ignore[override]
        found, unknown = self.parse_known_args(*given, **more)
        if unknown:
            chosen = self.verbs and self.verbs.choices.get(getattr(found, "verb", None))
            known = list((chosen or self)._option_string_actions)
            near = [
                match
                for option in unknown
                for match in difflib.get_close_matches(
                    option.partition("=")[0], known, 1
                )
            ]
            told = f" (did you mean {', '.join(near)}?)" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{told}")
        return found


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all verbs, in the order in which people use them."""
    parser = _Parser(
        prog="plmjax",
        description="Train encoder language models: raw text in, a model of your own "
        "in the Hugging Face format out.",
        epilog="`plmjax VERB --help` has an example for each verb.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"plmjax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    parser.verbs = verbs

    def verb(name: str, run, help: str, example: str, config: bool = False, of=verbs):
        added = of.add_parser(
            name,
            help=help,
            description=help,
            epilog=(_CONFIG_HELP if config else "") + f"\nexample:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        added.add_argument(
            "--debug", action="store_true", help="show tracebacks and what is tuned"
        )
        if config:
            added.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)
        return added

    for group in (
        pretrain,
        finetune,
        compare,
        pseudo,
        use,
        embed,
        transfer,
        sweep,
        launch,
        doctor,
        bench,
    ):
        group.add(verb)
    return parser
