"""Sharding of arrays: one mesh of three axes, and rules over names.

Axes: data (copies of the model, each with its share of the rows), fsdp (splits rows,
too, and each layer's weights), tensor (splits the computation of a layer).
"""

import math

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from plmjax import PlmjaxError, tree
from plmjax.models.heads import HEADS
from plmjax.models.task_heads import TASK_HEADS
from plmjax.train.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))

# Kernels are [inputs, outputs]; the token table is [vocabulary, width]. Position and
# type tables are not sharded: split on width, they would be rematerialised in full.
RULES = (
    (r".*/embeddings/token(_delta)?", P("tensor", "fsdp")),
    (r".*/attention/(position_|global_)?(query|key|value)/kernel", P("fsdp", "tensor")),
    (r".*/attention/(position_|global_)?(query|key|value)/bias", P("tensor")),
    (r".*/attention/output/kernel", P("tensor", "fsdp")),
    (r".*/ffn/(up|gate)/kernel", P("fsdp", "tensor")),
    (r".*/ffn/(up|gate)/bias", P("tensor")),
    (r".*/ffn/down/kernel", P("tensor", "fsdp")),
    (r".*/convolution/kernel", P(None, "fsdp", None)),
    (r".*/kernel", P("fsdp", None)),
    (r"head/bias", P("tensor")),
    (r".*", P()),
)


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """Returns the mesh ('data', 'fsdp', 'tensor') over all devices.

    Raises:
      PlmjaxError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    requested = (config.data, config.fsdp, config.tensor)
    # "auto" gets the remaining devices; 0 if they do not divide, which is rejected.
    left, over = divmod(len(devices), math.prod(s for s in requested if s != "auto"))
    sizes = [(0 if over else left) if s == "auto" else s for s in requested]
    if math.prod(sizes) != len(devices):
        axes = ", ".join(f"mesh.{a}={s}" for a, s in zip(AXES, requested, strict=True))
        raise PlmjaxError(
            f"{axes} do not multiply to the {len(devices)} devices of this run.",
            hint="Change the sizes, or set one of them to 'auto'.",
        )
    # jax.make_mesh refuses to split an axis of a slice, as (2, 32, 1) needs on 8 x 8.
    grid = create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(mesh: Mesh, batch: int, accumulation: int, key="train.batch") -> None:
    """Raises PlmjaxError unless the devices divide the rows of each micro-batch."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = shards * accumulation
    if batch % unit:
        nearest = max(unit, round(batch / unit) * unit)
        shares = f"{shards} data shards"
        if accumulation > 1:
            shares += f" x {accumulation} accumulation steps"
        raise PlmjaxError(
            f"{key}={batch} does not divide over {shares}.",
            hint=f"The nearest batch that does is {nearest}.",
        )


def alone():
    """Returns a context in which this process computes without the others."""
    return jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1]))


def is_row_parallel(mesh: Mesh) -> bool:
    """Returns True if every device computes full layers, each on different rows."""
    return mesh.shape["tensor"] == 1


def stages(mesh: Mesh, axis: str) -> list[list[list[int]]]:
    """Returns the groups of devices along an axis that exchange, stage by stage.

    Outermost first, as an array is scattered over them. On a TPU a stage is along lines
    of chips: over more its compiler sums whole arrays on every chip where a
    reduce-scatter or an all-gather would send half the bytes.
    """
    lengths = _lines(np.moveaxis(mesh.devices, AXES.index(axis), 0)[:, 0, 0])
    grid = np.arange(mesh.shape[axis]).reshape(lengths)
    return [
        np.moveaxis(grid, stage, -1).reshape(-1, length).tolist()
        for stage, length in enumerate(lengths)
    ]


def _lines(devices: np.ndarray) -> list[int]:
    """Returns the length of the lines that TPUs stand in, of lines of lines, ...

    Outermost first. All are one line where they go through a slice in another order.
    """
    if devices[0].platform != "tpu":
        return [len(devices)]
    chips, lengths = np.array([device.coords for device in devices]), []
    while len(chips) > 1:
        differs = chips != chips[0]
        elsewhere = (differs & ~differs[1]).any(axis=1)
        length = int(elsewhere.argmax()) or len(chips)
        if differs[1].sum() > 1 or len(chips) % length:
            return [len(devices)]
        lengths.insert(0, length)
        chips = chips[::length]
    return lengths or [1]


def spec(mesh: Mesh, name: str, shape: tuple[int, ...]) -> P:
    """Returns the sharding of a parameter.

    Axes of one device, and axes that do not divide the size, are left out.
    """
    wanted = tree.match(RULES, name)

    def splits(axis, size: int) -> bool:
        count = 1 if axis is None else mesh.shape[axis]
        return count > 1 and size % count == 0

    return P(
        *(
            axis if splits(axis, size) else None
            for axis, size in zip(wanted, shape, strict=False)
        )
    )


def undivided(mesh: Mesh, params) -> list[str]:
    """Returns a warning for each size of large parameters that an axis does not split.

    Large means at least a hundredth of all parameters.
    """
    flat = tree.flatten(params)
    least = sum(math.prod(leaf.shape) for leaf in flat.values()) / 100
    names_of_size: dict[tuple[str, int], list[str]] = {}
    for name, leaf in flat.items():
        wanted = tree.match(RULES, name)
        for axis, size in zip(wanted, leaf.shape, strict=False):
            if axis is None or math.prod(leaf.shape) < least:
                continue
            if size % mesh.shape[axis]:
                names_of_size.setdefault((axis, size), []).append(name)
    return [
        f"mesh.{axis}={mesh.shape[axis]} does not divide {size:,}, a size of {names[0]}"
        + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        + f": the {axis} axis does not split it."
        for (axis, size), names in names_of_size.items()
    ]


def divided(mesh: Mesh, partition: P, shape: tuple[int, ...]) -> P:
    """Returns a sharding that also divides over `data`, along the first possible axis.

    ZeRO-1 (arXiv:1910.02054): arrays used only in the update need no copy per device.
    """
    if mesh.shape["data"] == 1:
        return partition
    axes = [*partition, *[None] * (len(shape) - len(partition))]
    for i, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        free = axis is None or mesh.shape[axis] == 1
        if free and size % mesh.shape["data"] == 0:
            return P(*axes[:i], "data", *axes[i + 1 :])
    return partition


# Fields of the state that ZeRO-1 divides.
_UPDATED = ("moments/", "average/")
_ROOTS = ("encoder/", *(f"{head}/" for head in (*HEADS, *TASK_HEADS)))


def shardings(mesh: Mesh, state, zero1: bool = False):
    """Returns the NamedSharding of each leaf of a pytree of arrays or shapes.

    A leaf follows the rule of the parameter name at the end of its name, so optimizer
    moments and averages are sharded like their parameter; with `zero1`, they are
    divided over the data axis, too.
    """

    def sharding_of(name, leaf):
        roots = [root for root in _ROOTS if f"/{root}" in f"/{name}"]
        if not roots:
            return NamedSharding(mesh, P())
        parameter = roots[0] + f"/{name}".split(f"/{roots[0]}", 1)[1]
        partition = spec(mesh, parameter, leaf.shape)
        if zero1 and name.startswith(_UPDATED):
            partition = divided(mesh, partition, leaf.shape)
        return NamedSharding(mesh, partition)

    return tree.map_named(sharding_of, state)


def shardings_without_fsdp(mesh: Mesh, params):
    """Returns the shardings of parameters in a computation: not split over fsdp."""

    def without_fsdp(sharding: NamedSharding) -> NamedSharding:
        return NamedSharding(
            mesh, P(*(None if axis == "fsdp" else axis for axis in sharding.spec or ()))
        )

    return jax.tree.map(without_fsdp, shardings(mesh, params))


def bytes_per_device(mesh: Mesh, state, zero1: bool = False) -> int:
    """Returns the bytes of a pytree of arrays or shapes that one device holds."""
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf, sharding in zip(
            jax.tree.leaves(state),
            jax.tree.leaves(shardings(mesh, state, zero1)),
            strict=True,
        )
    )


def rows(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over data and fsdp."""
    return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array with a full copy on each device."""
    return NamedSharding(mesh, P())


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Returns the indices of this process's rows in a global batch, ascending."""
    if jax.process_count() == 1:  # also of devices that are not there
        return np.arange(batch)
    indices = rows(mesh).addressable_devices_indices_map((batch,))
    held = np.zeros(batch, bool)
    for index in indices.values():
        held[index] = True
    return np.flatnonzero(held)


def put_rows(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's rows of a global batch (`local_rows`) on its devices."""
    sharding = rows(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    share = len(batch["row"]) // len(local_rows(mesh, shards))
    mine = local_rows(mesh, share * shards)

    def put(array: np.ndarray) -> jax.Array:
        def piece(index):
            first = np.searchsorted(mine, index[0].start or 0)
            return array[first : first + share]

        shape = (share * shards, *array.shape[1:])
        return jax.make_array_from_callback(shape, sharding, piece)

    return {name: put(array) for name, array in batch.items()}
