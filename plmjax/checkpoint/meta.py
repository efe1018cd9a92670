"""Metadata of a checkpoint, and its comparison with the state to be loaded."""

import importlib.metadata
from typing import Any

import jax
import numpy as np

from plmjax import Exit, PlmjaxError, __version__, tree

# Format 1, of plmjax 0.1, has no layout, no writer of the state (it was always orbax),
# and digests without sizes. It can still be read.
FORMAT = 2
META = "meta.json"
STATE = "state"
_VERSIONS = ("jax", "jaxlib")


def leaves(state) -> dict[str, str]:
    """Returns {name: "float32[2, 3]"} of a pytree, which a checkpoint must match."""
    types = {}

    def add(name, leaf):
        types[name] = f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"

    tree.map_named(add, state)
    return types


def layout(state) -> dict[str, Any]:
    """Returns the devices, processes, mesh and versions that fix results to the bit."""
    shardings = [leaf.sharding for leaf in jax.tree.leaves(state)]
    meshes = [p.mesh for p in shardings if isinstance(p, jax.sharding.NamedSharding)]
    return {
        "devices": jax.device_count(),
        "kind": jax.devices()[0].device_kind,
        "processes": jax.process_count(),
        "mesh": dict(meshes[0].shape) if meshes else {},
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def layout_changes(meta: dict, abstract) -> str | None:
    """Describes how the layout of `abstract` differs from a checkpoint's, or None."""
    if "layout" not in meta:  # format 1
        return None
    old, new = meta["layout"], layout(abstract)
    pairs = [
        (old["devices"], new["devices"], "{} instead of {} devices"),
        (old["kind"], new["kind"], "{} instead of {}"),
        (old["processes"], new["processes"], "{} instead of {} processes"),
        (old["mesh"], new["mesh"], "mesh {} instead of {}"),
        *(
            (old["versions"][name], new["versions"][name], name + " {} instead of {}")
            for name in _VERSIONS
        ),
    ]
    changes = [text.format(b, a) for a, b, text in pairs if a != b]
    return ", ".join(changes) or None


def check(where: str, meta: dict, abstract) -> None:
    """Raises PlmjaxError unless a checkpoint holds a state like `abstract`."""
    if not meta:
        raise PlmjaxError(f"{META} of {where} cannot be read.", code=Exit.MODEL)
    if meta["format"] > FORMAT:
        raise PlmjaxError(
            f"{where} has format {meta['format']}; plmjax {__version__} knows formats "
            f"up to {FORMAT}.",
            hint=f"Install the plmjax that wrote it: {meta.get('plmjax')}.",
            code=Exit.MODEL,
        )
    ours, theirs = leaves(abstract), meta["leaves"]
    differing = [
        f"{name} is {theirs.get(name, 'missing')}, not {ours.get(name, 'known')}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise PlmjaxError(
            f"{where} is of another model: {len(differing)} leaves differ, first "
            f"{differing[0]}.",
            hint="Use the config it was trained with.",
            code=Exit.MODEL,
        )
