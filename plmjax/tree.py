"""Parameter trees: names of leaves, rules over names, counts and comparisons.

Parameters are one nested dict. A leaf's name is its path joined by "/", for example
"encoder/layer_0/attention/query/kernel"; every rule in plmjax (sharding, weight decay,
learning rates, Hugging Face keys) is a rule over these names.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from plmjax import PlmjaxError


def flatten(tree: Mapping) -> dict[str, Any]:
    """Returns {name: leaf} of a nested dict, in the order of the dict."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{name}": leaf for name, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict:
    """Returns the nested dict of {name: leaf}; the inverse of `flatten`."""
    tree: dict = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def name_of(path: Sequence) -> str:
    """Returns the name of a jax key path: dict keys, fields and indices alike."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def map_named(f: Callable, tree, *others):
    """Maps f(name, leaf, ...) over any pytree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: f(name_of(path), *leaves), tree, *others
    )


def match(rules: Iterable[tuple[str, Any]], name: str) -> Any:
    """Returns the value of the first rule whose regex matches the full name.

    Raises:
      PlmjaxError: no rule covers the name; a forgotten leaf must not pass silently.
    """
    for pattern, value in rules:
        if re.fullmatch(pattern, name):
            return value
    raise PlmjaxError(
        f"no rule covers the parameter {name!r}.",
        hint="Add a rule for it, or end the rules with ('.*', ...).",
    )


def count(tree) -> int:
    """Returns the number of elements in all leaves (arrays or shapes)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def size_in_bytes(tree) -> int:
    """Returns the bytes of all leaves (arrays or shapes with a dtype)."""
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def differences(expected, actual) -> list[str]:
    """Lists how the leaves of two nested dicts differ in name, shape or dtype."""
    ours, theirs = flatten(expected), flatten(actual)
    lines = [f"missing {name}" for name in ours if name not in theirs]
    lines += [f"unexpected {name}" for name in theirs if name not in ours]
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
            lines.append(
                f"{name} is {b.dtype}{list(b.shape)}, not {a.dtype}{list(a.shape)}"
            )
    return sorted(lines)
