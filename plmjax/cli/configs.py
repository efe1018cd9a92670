"""`plmjax config` and its verbs."""

import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.cli import recipes
from plmjax.cli.options import COLLECTED, json_option, print_json_line

_NAMES = "a recipe, FILE.py[:argument], config.json, or the workdir of a run"


def add(verb) -> None:
    """Adds the parser of `plmjax config` and its commands."""
    added = verb(
        "config",
        None,
        "show, compare and check configs; print their JSON schema",
        "plmjax config show bert_mini",
    )
    added.add_argument(
        "--list", action=recipes.ListRecipes, nargs=0, help="list recipes, and stop"
    )
    verbs = added.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, run, help, example in (
        (
            "show",
            _show,
            "print every key as JSON, with its value, type and range",
            "plmjax config show bert_mini --config.train.batch=32",
        ),
        (
            "validate",
            _validate,
            "check the keys, types, ranges and combinations of a config; the exit code "
            "is 0 or 2",
            "plmjax config validate my_config.py --config.train.batch=32",
        ),
    ):
        added = verb(name, run, help, example, of=verbs)
        added.add_argument("name", metavar="CONFIG", help=_NAMES)
        added.set_defaults(config=None)  # --config.KEY=VALUE changes CONFIG
    added = verb(
        "schema",
        _schema,
        "print the JSON schema of a run's config.json",
        "plmjax config schema > pretraining.schema.json",
        of=verbs,
    )
    added.add_argument(
        "kind",
        nargs="?",
        default="pretrain",
        choices=("pretrain", "finetune"),
        help="the verb whose configs it describes (default: pretrain)",
    )
    added = verb(
        "diff",
        _diff,
        "print the keys whose values differ between two configs",
        "plmjax config diff bert_mini runs/mine",
        of=verbs,
    )
    added.add_argument("first", metavar="A", help=_NAMES)
    added.add_argument("second", metavar="B", help=_NAMES)
    json_option(added)


def _load(name: str, overrides: Sequence[str] = ()) -> Any:
    """Returns the config of a recipe, a file or a run's workdir.

    Raises:
      PlmjaxError: there is none, or it is not valid.
    """
    path = str(Path(name) / "config.json") if Path(name).is_dir() else name
    path = recipes.resolve(path, "config")
    values = config_lib.load_file(path)
    if "model_type" in values:
        raise PlmjaxError(
            f"{path} is a Hugging Face config, of a model and not of a training.",
            hint="Give the workdir of a run.",
        )
    from plmjax.experiments.verbs import verb_of

    return config_lib.load(verb_of(values).config, None, overrides, values)


def _print(record: dict) -> None:
    """Prints a record as JSON for people; in Python, returns it."""
    if COLLECTED.get() is None:
        print(json.dumps(record, indent=2))
    else:
        print_json_line(record)


def _show(args) -> None:
    shown = {
        key: {"value": value, "type": kind} | ({"range": limits} if limits else {})
        for key, value, kind, limits in config_lib.described(
            _load(args.name, args.overrides)
        )
    }
    _print(shown)


def _validate(args) -> None:
    from plmjax.experiments.verbs import ONE, PRETRAIN, check, check_run

    config = _load(args.name, args.overrides)
    pretrains = isinstance(config, PRETRAIN.config)
    (check_run if pretrains else check)(config, ONE)
    print(f"{args.name} is valid: {len([*config_lib.described(config)])} keys.")


def _diff(args) -> None:
    from plmjax.console import as_table, console

    old, new = (_load(name) for name in (args.first, args.second))
    if type(old) is not type(new):
        raise PlmjaxError(
            f"{args.first} and {args.second} are configs of different verbs.",
            hint="Compare two of `plmjax pretrain`, or two of `plmjax finetune`.",
        )
    changes = config_lib.changes(*map(config_lib.to_dict, (old, new)))
    if args.json:
        print_json_line(changes)
    elif not changes:
        print("The configs are the same.")
    else:
        rows = [(key, f"{a}", f"{b}") for key, (a, b) in changes.items()]
        console().print(as_table("", ("key", args.first, args.second), rows))


def _schema(args) -> None:
    from plmjax.experiments.verbs import FINETUNE, PRETRAIN

    schema = _block((FINETUNE if args.kind == "finetune" else PRETRAIN).config)
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    _print(dialect | schema)


def _block(schema: type) -> dict:
    """Returns the JSON schema of a dataclass; all of its keys may be left out."""
    types, keys = typing.get_type_hints(schema), {}
    for field in dataclasses.fields(schema):
        kind = types[field.name]
        blocks = [_block(block) for block in config_lib.variants(kind).values()]
        limits = field.metadata.get("range")
        keys[field.name] = {"anyOf": blocks or _arms(kind, limits)}
    return {"type": "object", "additionalProperties": False, "properties": keys}


_JSON = {
    **{int: "integer", float: "number", bool: "boolean", str: "string"},
    **{tuple: "array", type(None): "null", dict: "object"},
}
_LIMITS = {
    **{"at_least": "minimum", "at_most": "maximum"},
    **{"above": "exclusiveMinimum", "below": "exclusiveMaximum"},
}


def _arms(kind: Any, limits: config_lib.Range | None) -> list[dict]:
    """Returns the JSON schemas of the types of a key, whose numbers have limits."""
    if typing.get_origin(kind) is Literal:
        return [{"enum": list(typing.get_args(kind))}]
    if inner := typing.get_args(kind):
        return [arm for each in inner for arm in _arms(each, limits)]
    arm: dict[str, Any] = {"type": _JSON[kind]}
    if limits is not None and kind in (int, float):
        given = {word: getattr(limits, name) for name, word in _LIMITS.items()}
        arm |= {word: n for word, n in given.items() if abs(n) < float("inf")}
    return [arm]
