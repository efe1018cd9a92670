"""The right spelling of an option, a key or a verb that plmjax does not have."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from plmjax import config as config_lib


def keys_of(verb: str) -> list[str]:
    """Returns the keys of a verb's config; it imports jax."""
    from plmjax.finetune.config import FinetuneConfig
    from plmjax.tasks.config import TaskConfig
    from plmjax.workdir import RunConfig

    schemas = {
        "pretrain": [RunConfig],
        "bench": [RunConfig],
        "data": [RunConfig],
        "tokenizer": [RunConfig],
        "sweep": [RunConfig, FinetuneConfig],
        "config": [RunConfig, FinetuneConfig],
        "predict": [TaskConfig],
    }.get(verb, [FinetuneConfig])
    keys = (key for schema in schemas for key, _ in config_lib.fields(schema))
    return [*dict.fromkeys(keys)]


def option(word: str, value: str, options: Sequence[str], keys: Sequence[str]) -> str:
    """Returns a hint for an option, --name or --name=value, that a verb does not have.

    `value` is the word after it, which may be its value; `options` and `keys` are those
    of the verb. The hint is "" if nothing is near.
    """
    if word == "-" and "--input" in options:
        return "Did you mean --input=-, for standard input?"
    name, equals, given = word.partition("=")
    value = f"={given}" if equals else f"={value}" if value else ""
    name = name.lstrip("-").replace("-", "_")
    first, dot, others = name.partition(".")
    if dot and difflib.get_close_matches(first, ["config"], cutoff=0.7):
        name = others
    if f"--{name}" in options:
        return f"Did you mean --{name}{value}?"
    by_name = [key for key in keys if key == name or key.rsplit(".", 1)[-1] == name]
    meant = config_lib.meant_by(name, [*keys]) if name not in keys else []
    if meant and meant[0].endswith("."):
        return meant[0]
    if meant and meant[0].startswith("--"):
        return f"Did you mean {meant[0]}{value}?" if meant[0] in options else ""
    near = [f"--config.{key}" for key in meant or by_name]
    near = near or [o for o in options if o.startswith(f"--{name}")]
    near = near or difflib.get_close_matches(f"--{name}", options, 1, cutoff=0.75)
    if not near:
        close = difflib.get_close_matches(name, keys, 1, cutoff=0.7)
        near = [f"--config.{key}" for key in close]
    return f"Did you mean {', '.join(f'{n}{value}' for n in near[:3])}?" if near else ""


def verb(word: str, verbs: Sequence[str]) -> str:
    """Returns a hint for a word that is no verb."""
    if close := difflib.get_close_matches(word, verbs, 1, cutoff=0.7):
        return f"Did you mean {close[0]}?"
    if "pretrain" in verbs and Path(word).exists():
        return f"Did you mean plmjax pretrain {word}?"
    return f"It has {', '.join(verbs)}."
