"""The parser: verbs in the order in which people use them."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from plmjax import PlmjaxError, __version__
from plmjax.cli import (
    bench,
    compare,
    compress,
    configs,
    data,
    doctor,
    embed,
    finetune,
    inference,
    launch,
    pretrain,
    pseudo,
    recipes,
    report,
    serve,
    spelling,
    sweep,
    tokenizer,
    transfer,
)
from plmjax.cli.options import DRY_RUNS

_CONFIG_HELP = """\
  --config=NAME[:ARGUMENT]      a recipe; --list shows them
  --config=FILE.py[:argument]   a config file (Python: it is executed) or config.json
  --config.KEY=VALUE            set a key of the config, e.g. --config.train.batch=16
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the right spelling."""

    verbs: Any = None

    def error(self, message: str) -> NoReturn:
        """Raises PlmjaxError (exit code 2)."""
        message = re.sub("^argument (--.*): (?=\\1)", "", message)  # named twice
        if not message.endswith((".", "?")):
            message += f". `{self.prog} --help` has an example."
        raise PlmjaxError(message)

    def _check_value(self, action, value):
        if isinstance(action, argparse._SubParsersAction):
            if value not in action.choices:
                hint = spelling.verb(value, [*action.choices])
                self.error(f"`{self.prog}` has no verb {value!r}. {hint}")
        super()._check_value(action, value)

    def parse_args(self, *given, **more):  # type: ignore[override]
        """Returns the options; PATHS may stand among them."""
        args, unknown = self.parse_known_args(*given, **more)
        if isinstance(getattr(args, "paths", None), list):
            args.paths += [word for word in unknown if not word.startswith("-")]
            unknown = [word for word in unknown if word.startswith("-")]
        if unknown:
            words = given[0] if given else sys.argv[1:]
            values = ["" if word.startswith("-") else word for word in words[1:]]
            self._refuse(unknown, args, dict(zip(words, values, strict=False)))
        return args

    def of(self, *words: Any) -> Any:
        """Returns the parser of a verb and what follows it, such as bench train."""
        parser: Any = self
        for word in words:
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction):
                    parser = action.choices.get(word, parser)
        return parser

    def _refuse(self, unknown: Sequence[str], args, after: dict[str, str]) -> NoReturn:
        """Ends with an error for unknown words; `after` has the word after each."""
        parser = self.of(args.verb, getattr(args, "what", None))
        options = [*parser._option_string_actions]
        keys = spelling.keys_of(args.verb) if hasattr(args, "config") else []
        hints = [
            spelling.option(word, after.get(word, ""), options, keys)
            for word in unknown
            if word.startswith("-") or "=" in word
        ]
        hint = " ".join(filter(None, hints)) or f"`{parser.prog} --help` lists them."
        what = "option" if unknown[0].startswith("-") else "argument"
        self.error(f"`{parser.prog}` has no {what} {', '.join(unknown)}. {hint}")

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Returns a command's options, and its `overrides` of the config.

        Raises:
          PlmjaxError: an unknown option, options that do not belong together, or no
            such recipe.
          SystemExit: an option that only prints.
        """
        words = _joined(arguments)
        overrides, words = _split_by_prefix(words, "--config.")
        pretraining, words = _split_by_prefix(words, "--pretrain.")
        args = self.parse_args(words)
        if overrides and not hasattr(args, "config"):
            raise PlmjaxError(f"`plmjax {args.verb}` has no --config.")
        if pretraining and getattr(args, "pretrain", None) is None:
            raise PlmjaxError(
                f"--pretrain.{pretraining[0]} has no effect.",
                hint="It belongs to `plmjax compare --pretrain=FILE`.",
            )
        where = getattr(args, "workdir", None) or ""
        if "://" in where:
            raise PlmjaxError(
                f"--workdir={where} must be a directory.",
                hint="Choose a directory for the run, and set "
                f"--config.train.checkpoints={where} for its checkpoints.",
            )
        if getattr(args, "config", None):
            args.config = recipes.resolve(args.config, args.verb)
        args.overrides = [*overrides, *_short_forms(args, overrides)]
        args.pretrain_overrides = pretraining
        return args


def _joined(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with = for a blank between a key and its value."""
    words, joined = list(arguments), []
    optional = words[:1] in (["pretrain"], ["finetune"])
    while words:
        word, after = words.pop(0), words[0] if words else "--"
        key = word.startswith(("--config.", "--pretrain.")) and "=" not in word
        if key and not after.startswith("--"):
            words.pop(0)
            if after == "=" and words:
                after = words.pop(0)
            word = f"{word}={after.removeprefix('=')}"
        elif word == "--dry_run" and optional and not after.startswith("-"):
            # The word after it may be a path.
            word = "--dry_run=compile" if after not in DRY_RUNS else word
        joined.append(word)
    return joined


def _split_by_prefix(arguments: list[str], prefix: str) -> tuple[list[str], list[str]]:
    """Returns the arguments with a prefix, which is removed, and the others."""
    matching = [a.removeprefix(prefix) for a in arguments if a.startswith(prefix)]
    return matching, [a for a in arguments if not a.startswith(prefix)]


def _short_forms(args, overrides: Sequence[str]) -> list[str]:
    """Returns the overrides for which --steps and --yes stand."""
    given = []
    for name, key in (("train_steps", "train.steps"), ("yes", "data.accept_warnings")):
        value = getattr(args, name, None)
        if value is None:
            continue
        both = [o for o in overrides if o.startswith(f"{key}=")]
        if both:
            option = "--yes" if name == "yes" else f"--steps={value}"
            raise PlmjaxError(
                f"{option} and --config.{both[0]} set the same key.",
                hint="Give one of them.",
            )
        given.append(f"{key}={value}")
    return given


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
        parser.add_argument(
            "--list", action=recipes.ListRecipes, nargs=0, help="list recipes, and stop"
        )
    return parser


def program_parser(run: Callable, help: str, example: str) -> argparse.ArgumentParser:
    """Returns the parser of a program without verbs, called as in its example.

    `plmjax.cli.run_program` runs it.
    """
    parser = _Parser(prog=example.partition(" -")[0])
    return _completed(parser, run, help, example)


def make_parser() -> _Parser:
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
        data,
        tokenizer,
        pretrain,
        finetune,
        compare,
        pseudo,
        inference,
        embed,
        transfer,
        compress,
        serve,
        report,
        sweep,
        launch,
        configs,
        doctor,
        bench,
    ):
        group.add(verb)
    return parser
