"""Conversion of ml_collections configs to frozen dataclasses.

A schema is a dataclass of dataclasses. Its defaults are the default config; a config
file overrides them; `--config.a.b=value` overrides the file. Other code uses only
frozen dataclasses and looks up no key by name.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import json
import linecache
import math
import re
import tomllib
import traceback
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from plmjax import PlmjaxError

T = TypeVar("T")

# The recipes: a link to configs/ in a checkout, a folder in an installed package.
RECIPES = Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True)
class Range:
    """The permitted numbers of a key, and the hint in the error for others."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    hint: str = ""

    def __contains__(self, value: float) -> bool:
        """Whether a number lies in the range; nan and infinities never do."""
        inside = self.at_least <= value <= self.at_most
        return inside and self.above < value < self.below

    def __str__(self) -> str:
        if math.isfinite(self.at_least) and math.isfinite(self.at_most):
            return f"{self.at_least} to {self.at_most}"
        bounds = {
            name.replace("_", " "): getattr(self, name)
            for name in ("at_least", "above", "at_most", "below")
        }
        return " and ".join(
            f"{name} {bound}" for name, bound in bounds.items() if math.isfinite(bound)
        )


def number(default: Any, *, replaces: str | None = None, **limits: Any) -> Any:
    """A dataclass field for a number in Range(**limits); None and strings pass, too.

    If two keys set the same thing, each `replaces` the other (see _merge).
    """
    metadata = {"range": Range(**limits), "replaces": replaces}
    return dataclasses.field(default=default, metadata=metadata)


class Block:
    """A block of keys: a frozen dataclass that checks its numbers when created.

    `prefix` precedes the names of its fields in messages: "train.optimizer.", or "--"
    for options of a command.
    """

    prefix = ""

    def __init_subclass__(cls, prefix: str | None = None):
        if prefix is not None:
            cls.prefix = prefix

    def __post_init__(self):
        """Raises PlmjaxError for the first number outside its range."""
        for field in dataclasses.fields(typing.cast(Any, self)):
            value, limits = getattr(self, field.name), field.metadata.get("range")
            if limits is None or isinstance(value, str | None) or value in limits:
                continue
            kind = describe(typing.get_type_hints(type(self))[field.name])
            words = [word for word in kind.split(" | ") if word not in ("int", "float")]
            permitted = ", or ".join([str(limits), *words])
            key, is_option = f"{self.prefix}{field.name}", self.prefix == "--"
            given = f"{key}={value}" if is_option else f"{key} is {value}; it"
            raise PlmjaxError(f"{given} must be {permitted}.", hint=limits.hint)


def to_dict(schema) -> dict:
    """Returns a dataclass of dataclasses as nested dicts; tuples stay tuples."""
    return {
        field.name: to_dict(value) if dataclasses.is_dataclass(value) else value
        for field in dataclasses.fields(schema)
        for value in [getattr(schema, field.name)]
    }


def variants(kind: Any) -> dict[str, type]:
    """Returns {kind: schema} of a block, by the only value of a schema's field `kind`.

    A block with a single schema is {"": schema}; other types are {}.
    """
    if dataclasses.is_dataclass(kind):
        return {"": typing.cast(type, kind)}
    arms = typing.get_args(kind)
    if not arms or not all(map(dataclasses.is_dataclass, arms)):
        return {}
    names = [typing.get_args(typing.get_type_hints(arm)["kind"]) for arm in arms]
    return {name: arm for (name,), arm in zip(names, arms, strict=True)}


def _variant(kind: Any, block: Any, key: str) -> type | None:
    """Returns the schema of a block of values; None if the type is not a block."""
    known = variants(kind)
    if not known:
        return None
    if not isinstance(block, Mapping):
        raise PlmjaxError(f"{key} is {block!r}; it must be a block of keys.")
    if "" in known:
        return known[""]
    name = block["kind"] if "kind" in block else next(iter(known))
    if not isinstance(name, str) or name not in known:
        raise PlmjaxError(
            f"{key}.kind cannot be {name!r}.", hint=nearest(str(name), [*known])
        )
    return known[name]


def fields(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, type) of every value in a schema, with all variants."""
    types_of = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind = types_of[field.name]
        nested: dict[str, Any] = {}
        for block in variants(kind).values():
            for key, inner in fields(block, f"{prefix}{field.name}."):
                nested[key] = nested[key] | inner if key in nested else inner
        yield from nested.items() if nested else [(f"{prefix}{field.name}", kind)]


def ranges(schema: type, prefix: str = "") -> dict[str, Range]:
    """Returns {dotted key: range} of the numbers in a schema, with all variants."""
    limits: dict[str, Range] = {}
    types_of = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key = f"{prefix}{field.name}"
        if "range" in field.metadata:
            limits[key] = field.metadata["range"]
        for block in variants(types_of[field.name]).values():
            limits |= ranges(block, f"{key}.")
    return limits


def describe(kind: Any) -> str:
    """Returns a readable description of the values of a type."""
    if typing.get_origin(kind) is Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        arms = " | ".join(describe(arm) for arm in typing.get_args(kind)).split(" | ")
        return " | ".join(dict.fromkeys(arms))
    if kind is type(None):
        return "none"
    return getattr(kind, "__name__", str(kind))


# {keys, an option or a sentence: other tools' names for it}.
_OTHER_NAMES = tomllib.loads(Path(__file__).with_name("other_names.toml").read_text())
_MEANT = {
    name: meant for meant, names in _OTHER_NAMES.items() for name in names.split()
}


def meant_by(name: str, known: Sequence[str]) -> list[str]:
    """Returns what another tool's name of a key means here.

    That is keys of `known`, an option or a sentence; [] for other names.
    """
    meant = _MEANT.get(name.rsplit(".", 1)[-1].lower(), "")
    if meant.endswith(".") or meant.startswith("--"):
        return [meant]
    return [key for key in meant.split() if key in known]


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns a hint with the closest known keys, or all if they are few."""
    if meant := meant_by(name, known):
        return meant[0] if meant[0].endswith(".") else f"Did you mean {meant[0]}?"
    # A key is often remembered without its block: train.lr for learning_rate.
    last = name.rsplit(".", 1)[-1]
    close = [key for key in known if key.rsplit(".", 1)[-1] == last]
    close = close or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {', '.join(dict.fromkeys(close))}?"
    if len(known) > 30 and "train.steps" in known:
        return "--show_config prints every key."
    return f"Known: {', '.join(known)}."


def _check(value: Any, kind: Any, key: str) -> Any:
    """Returns the value converted to its type, or raises PlmjaxError."""
    arms = (
        typing.get_args(kind)
        if typing.get_origin(kind) in (typing.Union, types.UnionType)
        else (kind,)
    )
    for arm in arms:
        if typing.get_origin(arm) is Literal:
            if value in typing.get_args(arm):
                return value
        elif arm is type(None):
            if value is None:
                return None
        elif arm is float and isinstance(value, int | float):
            if not isinstance(value, bool):
                return _finite(value, key)
        elif arm is tuple and isinstance(value, list | tuple):
            # JSON has only lists.
            return tuple(tuple(v) if isinstance(v, list) else v for v in value)
        elif arm is int and isinstance(value, bool):
            continue
        elif isinstance(value, arm):
            return value
    if typing.get_origin(kind) is Literal:
        choices = [str(choice) for choice in typing.get_args(kind)]
        raise PlmjaxError(
            f"{key} cannot be {value!r}.", hint=nearest(str(value), choices)
        )
    raise PlmjaxError(f"{key} is {value!r}; it must be: {describe(kind)}.")


def _finite(value: float, key: str) -> float:
    with contextlib.suppress(OverflowError):  # an int may be larger than any float
        value = float(value)
        if math.isfinite(value):
            return value
    shown = value if isinstance(value, float) else "larger than any float"
    raise PlmjaxError(f"{key} is {shown}; it must be a finite number.")


def build(schema: type[T], values: Mapping, prefix: str = "") -> T:
    """Turns nested values into the frozen dataclass, and checks every key and type.

    Raises:
      PlmjaxError: a key is unknown (the hint has the nearest ones); a value has another
        type, or is outside its range.
    """
    types_of = typing.get_type_hints(schema)
    known = [field.name for field in dataclasses.fields(typing.cast(Any, schema))]
    for name in values:
        if name not in known:
            raise _unknown(name, known, values, prefix)
    arguments = {}
    for name, value in values.items():
        kind, key = types_of[name], f"{prefix}{name}"
        block = _variant(kind, value, key)
        if block is not None:
            arguments[name] = build(block, value, f"{key}.")
        else:
            arguments[name] = _check(value, kind, key)
    return schema(**arguments)


def _unknown(name: Any, known: Sequence[str], block: Mapping, prefix: str = ""):
    where = f" with {prefix}kind={block['kind']}" if "kind" in block else ""
    return PlmjaxError(
        f"config has no key {prefix}{name}{where}.", hint=nearest(str(name), known)
    )


def _of_other_kind(name: Any, kind: Any, key: str) -> PlmjaxError | None:
    """Returns the error for a key that belongs to another kind of a block, or None."""
    having = [
        variant
        for variant, block in variants(kind).items()
        if name in (field.name for field in dataclasses.fields(block))
    ]
    if not variants(kind) or not having:
        return None
    return PlmjaxError(
        f"{key}.{name} is a key of {key}.kind={' and '.join(having)} alone.",
        hint=f"Set --config.{key}.kind={having[0]}.",
    )


def _merge(base: dict, layer: Mapping, schema: type, prefix: str = "") -> None:
    """Overrides the values of `base` by those of a layer.

    A field's metadata may name a field that it {"replaces"}: of two ways to set the
    same thing, the later layer's counts. A field that {"resets": True} its block, such
    as a preset, removes the other values of earlier layers; so does another `kind` of a
    block that has several.
    """
    types_of = typing.get_type_hints(schema)
    known = {field.name: field for field in dataclasses.fields(schema)}
    for name, value in layer.items():
        if name not in known:
            raise _unknown(name, list(known), base, prefix)
        if known[name].metadata.get("resets") and value is not None:
            base.update(to_dict(schema()))
        other = known[name].metadata.get("replaces")
        if other is not None and value is not None and layer.get(other) is None:
            base[other] = None
    for name, value in layer.items():
        kind, key = types_of[name], f"{prefix}{name}"
        block = _variant(kind, value, key)
        if block is None:
            base[name] = value
            continue
        if len(variants(kind)) > 1:
            if "kind" not in value:
                block = _variant(kind, base[name], key)
            elif value["kind"] != base[name]["kind"]:
                # Another kind has other keys: earlier values no longer apply.
                base[name] = to_dict(block())
        for inner in value:
            if inner not in base[name]:
                if (error := _of_other_kind(inner, kind, key)) is not None:
                    raise error
        _merge(base[name], value, typing.cast(type, block), f"{key}.")


def _choices(kind: Any) -> tuple:
    """Returns the permitted values of a Literal, or of one in a union."""
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    arms = typing.get_args(kind)
    return tuple(choice for arm in arms for choice in _choices(arm))


def _parse(text: str, kind: Any) -> Any:
    """Reads an override's value; a string needs no quotes."""
    if text.lower() == "none" and "none" in _choices(kind):
        return "none"  # a choice of this key, as in objective.pairs
    if text.lower() == "none" or text == "":
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    # A name that looks like a number stays a string if its key needs a string.
    arms = (kind, *typing.get_args(kind))
    kept = (str, tuple) if tuple in arms and text.strip()[0] == "(" else str
    return text if str in arms and not isinstance(value, kept) else value


def load_file(path: str) -> dict:
    """Returns the values of a recipe, FILE.py[:argument] or a run's config.json.

    A .py file is code and is executed; its get_config([argument]) returns a ConfigDict
    or a dict. A .json file is only read.

    Raises:
      PlmjaxError: the file is missing, raises an error, or has no get_config.
    """
    name = path.partition(":")[0]
    if Path(name).suffix == ".json":
        file = find_file(name)
        try:
            values = json.loads(file.read_text())
        except (ValueError, RecursionError) as error:
            raise PlmjaxError(f"{name} is not valid JSON: {error}.") from error
        return _block(values, name)
    from ml_collections import ConfigDict

    module, arguments = load_module(path)
    with errors_of(path):
        values = module.get_config(*arguments)
    return _block(values.to_dict() if isinstance(values, ConfigDict) else values, name)


def recipes(folder: str = "*") -> dict[str, Path]:
    """Returns {FOLDER/NAME: file} of all recipes, or of those in one folder."""
    files = sorted(RECIPES.glob(f"{folder}/*.py"))
    return {f"{file.parent.name}/{file.stem}": file for file in files}


def find_file(name: str) -> Path:
    """Returns the path of a config file; it may be a recipe, such as pretrain/electra.

    Raises:
      PlmjaxError: there is none; the hint has similar names.
    """
    file, known = Path(name), recipes()
    if file.is_file():
        return file
    # Recipes are in configs/ of a checkout.
    recipe = name.removeprefix("configs/").removesuffix(".py")
    if recipe in known:
        return known[recipe]
    near = [str(path) for path in file.parent.glob("*.py")]
    close = difflib.get_close_matches(name, sorted(near), n=3, cutoff=0.3)
    close += difflib.get_close_matches(recipe, known, n=3)
    raise PlmjaxError(
        f"the config file {name!r} does not exist.",
        hint=f"Did you mean {', '.join(close)}?" if close else "",
    )


def load_module(path: str) -> tuple[types.ModuleType, tuple[str, ...]]:
    """Executes a .py config file, FILE.py[:argument]; returns its module and arguments.

    The arguments are those of its get_config. A file may name what it accepts by
    ARGUMENTS, a tuple.

    Raises:
      PlmjaxError: the file is missing, raises an error, or has no such argument.
    """
    name, _, argument = path.partition(":")
    file = find_file(name)
    if file.suffix != ".py":
        raise PlmjaxError(
            f"{name} is neither a .py nor a .json file.",
            hint="Texts follow the verb: plmjax pretrain FILE.",
        )
    with errors_of(name):
        module = execute(file)
    _check_argument(module, name, argument)
    return module, (argument,) if argument else ()


def execute(file: Path) -> types.ModuleType:
    """Executes a .py file and returns its module.

    Its bytecode is never cached: of a file that changes within a second and keeps its
    size, the old one would run.
    """
    module = types.ModuleType("plmjax_config")
    module.__file__ = str(file.absolute())
    exec(compile(file.read_bytes(), module.__file__, "exec"), module.__dict__)
    return module


def _check_argument(module: types.ModuleType, name: str, argument: str) -> None:
    """Raises PlmjaxError if a config file's get_config cannot have the argument."""
    if not callable(getattr(module, "get_config", None)):
        return
    parameters = inspect.signature(module.get_config).parameters.values()
    needed = [p.name.upper() for p in parameters if p.default is p.empty]
    known = getattr(module, "ARGUMENTS", ())
    if argument and not parameters:
        raise PlmjaxError(
            f"{name} has no arguments, so {argument!r} cannot be one.",
            hint=f"Write --config={name}.",
        )
    if needed and not argument:
        raise PlmjaxError(
            f"{name} needs an argument: --config={name}:{needed[0]}.",
            hint=f"It has {', '.join(known)}." if known else "",
        )
    if argument and known and argument not in known:
        raise _unknown_argument(name, argument, known)


def _unknown_argument(name: str, argument: str, known: Sequence[str]) -> PlmjaxError:
    return PlmjaxError(
        f"{name} has no argument {argument!r}.",
        hint=f"It has {', '.join(known)}." if known else f"{name} names its arguments.",
    )


@contextlib.contextmanager
def errors_of(path: str) -> Iterator[None]:
    """Turns errors of the user's file into PlmjaxError; --debug shows where.

    `path` is FILE.py[:argument].
    """
    try:
        yield
    except PlmjaxError:
        raise
    except (Exception, SystemExit) as error:
        name, _, argument = path.partition(":")
        if isinstance(error, KeyError) and error.args == (argument,):
            known = _keys_at(error)
            raise _unknown_argument(name, argument, known) from error
        message = f"{path}: {type(error).__name__}: {error}."
        hint = f"The top of {name} names its arguments." if argument else ""
        raise PlmjaxError(message, hint=hint) from error


def _keys_at(error: KeyError) -> list[str]:
    """Returns the keys of the dicts that the line which raised a KeyError names."""
    *_, (frame, number) = traceback.walk_tb(error.__traceback__)
    line = linecache.getline(frame.f_code.co_filename, number)
    named = {*re.findall(r"\w+", line)}
    scope = frame.f_globals | frame.f_locals
    tables = [scope[n] for n in scope if n in named and isinstance(scope[n], Mapping)]
    return [str(key) for table in tables for key in table]


def _block(values: Any, name: str) -> dict:
    if not isinstance(values, Mapping):
        kind = type(values).__name__
        hint = (
            f"Of a sweep: plmjax sweep --config={name}." if kind != "NoneType" else ""
        )
        raise PlmjaxError(
            f"{name} holds a {kind}; it must hold a block of keys.", hint=hint
        )
    return dict(values)


def _nested(overrides: Sequence[str], known: Mapping[str, Any]) -> dict:
    """Returns "a.b=value" overrides as nested dicts, parsed by the keys' types."""
    layer: dict = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise PlmjaxError(
                f"--config.{override} has no value.", hint=f"Write --config.{key}=..."
            )
        if key not in known:
            raise _unknown(key, [*known], {})
        *parents, last = key.split(".")
        node = layer
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _parse(text, known[key])
    return layer


def load(
    schema: type[T],
    path: str | None = None,
    overrides: Sequence[str] = (),
    base: Mapping | None = None,
    given: Mapping | None = None,
) -> T:
    """Returns the config: defaults, `base`, the file, `given`, "a.b=value" overrides.

    Each overrides the one before; every key, type and range is checked.
    """
    values, known = to_dict(schema()), dict(fields(schema))
    _merge(values, base or {}, schema)
    if path is not None:
        layer = load_file(path)
        for key in flatten(layer):
            if key not in known and not any(k.startswith(f"{key}.") for k in known):
                raise _unknown(key, [*known], {})
        _merge(values, layer, schema)
    _merge(values, given or {}, schema)
    _merge(values, _nested(overrides, known), schema)
    config = build(schema, values)
    if check := getattr(config, "check_overrides", None):
        check([override.partition("=")[0] for override in overrides])
    return config


def described(config: Any) -> Iterator[tuple[str, Any, str, str]]:
    """Yields (dotted key, value, type, range or "") of every key of a config."""
    values, limits = flatten(to_dict(config)), ranges(type(config))
    for key, kind in fields(type(config)):
        if key in values:  # other keys belong to another kind of a block
            yield key, values[key], describe(kind), str(limits.get(key, ""))


def show(config: Any) -> None:
    """Prints every key of a config with its value, type and range."""
    for key, value, kind, limits in described(config):
        print(f"{key} = {value!r}  ({kind}{f', {limits}' if limits else ''})")


def flatten(config: Mapping, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted key: value}."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def changes(old: Mapping, new: Mapping) -> dict[str, tuple[Any, Any]]:
    """Returns {dotted key: (old, new)} of values that differ."""
    a, b = flatten(old), flatten(new)
    return {
        key: (a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    }
