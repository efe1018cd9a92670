"""What the tests of checkpoints share: a small state, its shapes, saved steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from plmjax.checkpoint.checkpoints import Checkpoints


class Small(NamedTuple):
    """A state of two fields."""

    step: jax.Array
    params: dict


def numbers(value: float = 1.0, width: int = 4) -> Small:
    """Returns a state as numpy: all kinds of leaves that a state has."""
    params = {
        "table": np.arange(16 * width, dtype=np.float32).reshape(16, width) * value,
        "kernel": np.full((8, 8), value, np.float32),
        "bias": np.arange(5.0, dtype=np.float32),
        "zeros": np.zeros((8, 8), np.float32),
        "half": np.full(3, value, jnp.bfloat16),
    }
    return Small(np.int32(7), params)


# How a state is divided on a mesh ("data", "fsdp"); what is not here is whole.
SPECS = {"table": P("fsdp"), "kernel": P(("data", "fsdp")), "zeros": P(None, "fsdp")}


def mesh(data: int, fsdp: int, devices=None):
    return jax.make_mesh(
        (data, fsdp),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices or jax.devices()[: data * fsdp],
    )


def shapes(place=None, width: int = 4) -> Small:
    """Returns the abstract state on a mesh; none: on this process's first device."""

    def sharding(name: str):
        if place is None:
            return SingleDeviceSharding(jax.local_devices()[0])
        return NamedSharding(place, SPECS.get(name, P()))

    def shape(name, leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(name))

    state = numbers(width=width)
    params = {name: shape(name, leaf) for name, leaf in state.params.items()}
    return Small(shape("step", state.step), params)


def state(value: float = 1.0, place=None, width: int = 4) -> Small:
    """Returns the state on a mesh, or on this process's first device."""
    return jax.tree.map(
        lambda shape, host: jax.make_array_from_callback(
            shape.shape, shape.sharding, lambda index: np.asarray(host)[index]
        ),
        shapes(place, width),
        numbers(value, width),
    )


def assert_holds(found: Small, value: float) -> None:
    """Every block that this process has of a state is what `numbers` says."""

    def check(leaf, host):
        assert leaf.dtype == host.dtype
        for shard in leaf.addressable_shards:
            expected = np.asarray(host)[shard.index]
            np.testing.assert_array_equal(np.asarray(shard.data), expected)

    jax.tree.map(check, found, numbers(value))


def save(checkpoints: Checkpoints, *steps: int, **meta) -> None:
    """Saves states whose values are their steps, one after the other."""
    for step in steps:
        checkpoints.save(step, state(step), meta)
    checkpoints.wait()
