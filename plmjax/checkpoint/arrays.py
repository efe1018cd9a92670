"""A state as files: zarr arrays in an OCDBT database, both by tensorstore.

Every process writes its blocks into a separate database (process_3/) without waiting
for the others, so that a process that fails does not block them. `join` then makes one
database that refers to all of them. Any process can read it alone, onto any mesh.
"""

import itertools
import time
from collections import defaultdict, deque
from typing import Any, NamedTuple

import jax
import numpy as np

from plmjax import tree
from plmjax.checkpoint.storage import ANSWER_SECONDS, Storage, brief

# Target size of files: small enough to hash several at a time, and to hold in memory
# if the store is remote.
_FILE_BYTES = 128_000_000
# The most bytes in flight to the disk.
_IN_FLIGHT = 256_000_000
_READ_SECONDS = 600.0
Start = tuple[int, ...]


class Block(NamedTuple):
    """A block of an array, on the host; arrays are split as on their devices."""

    name: str
    array_shape: tuple[int, ...]
    start: Start
    data: np.ndarray


def blocks_to_write(state) -> list[Block]:
    """Copies to the host the blocks of a state that this process writes.

    If several devices hold the same block, one of them writes it; they take turns from
    block to block, so that all processes have their share.
    """
    shards, turns = [], itertools.count()

    def choose(name, leaf):
        holders = defaultdict(list)
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            holders[_start(index)].append(device)
        here = {shard.device: shard.data for shard in leaf.addressable_shards}
        for start, devices in sorted(holders.items()):
            devices.sort(key=lambda device: device.id)
            owner = devices[next(turns) % len(devices)]
            if owner in here:
                shards.append((name, leaf.shape, start, here[owner]))

    tree.map_named(choose, state)
    for *_, data in shards:
        data.copy_to_host_async()
    return [
        Block(name, shape, start, _on_host(data)) for name, shape, start, data in shards
    ]


def _start(index: tuple[slice, ...]) -> Start:
    return tuple(axis_slice.start or 0 for axis_slice in index)


def _on_host(data: jax.Array) -> np.ndarray:
    host = np.asarray(data)
    # On a CPU this is the device's memory, which the next step overwrites.
    return host.copy() if _platform(data) == "cpu" else host


def _platform(data: jax.Array) -> str:
    return next(iter(data.devices())).platform


def entries(state) -> int:
    """Returns the number of entries in a state's database: blocks and metadata."""

    def count(leaf) -> int:
        indices = leaf.sharding.devices_indices_map(leaf.shape).values()
        # An empty array has metadata but no block.
        return 1 + (len({_start(index) for index in indices}) if leaf.size else 0)

    return sum(map(count, jax.tree.leaves(state)))


def write(
    storage: Storage, folder: str, blocks: list[Block], process: int, deadline: float
) -> None:
    """Writes blocks, and removes them from the list: they may be half the memory.

    `deadline` is in seconds of time.monotonic().

    Raises:
      OSError: the disk is full, or did not write all of them in time.
    """
    import tensorstore as ts

    context = _context(storage)
    database = _database(storage, f"{folder}/process_{process}")
    arrays: dict[str, Any] = {}
    waiting: deque = deque()
    size = 0
    try:
        for name, shape, _, data in {block.name: block for block in blocks}.values():
            description = _description(shape, data)
            at = {"driver": "zarr3", "kvstore": database | {"path": f"{name}/"}}
            arrays[name] = ts.open(at | description, context=context)
        while blocks or waiting:
            while blocks and (size < _IN_FLIGHT or not waiting):
                block = blocks.pop()
                array = _result(arrays[block.name], deadline)
                target = array[_slices(block.start, block.data.shape)]
                write = target.write(
                    block.data, can_reference_source_data_indefinitely=True
                )
                waiting.append((write, block.data.nbytes))
                size += block.data.nbytes
            write, done = waiting.popleft()
            _result(write, deadline)
            size -= done
    finally:
        for write, _ in waiting:
            write.cancel()


def join(storage: Storage, folder: str, processes: int, expected: int) -> None:
    """Joins the databases that the processes have written into one.

    Raises:
      OSError: it cannot be written, or does not have `expected` entries.
    """
    import tensorstore as ts

    context, deadline = _context(storage), time.monotonic() + ANSWER_SECONDS
    transaction = ts.Transaction(atomic=True)
    opened = ts.KvStore.open(_database(storage, folder), context=context)
    joined = _result(opened, deadline)
    for process in range(processes):
        database = _database(storage, f"{folder}/process_{process}")
        part = _result(ts.KvStore.open(database, context=context), deadline)
        copied = part.experimental_copy_range_to(joined.with_transaction(transaction))
        _result(copied, deadline)
    _result(transaction.commit_async(), deadline)
    count = len(_result(joined.list(), deadline))
    if count != expected:
        raise OSError(
            f"{count:,} of {expected:,} blocks have arrived in {storage}; do all "
            "processes share it?"
        )


def read(storage: Storage, folder: str, abstract):
    """Returns the arrays of a state on the shardings of `abstract`.

    Raises:
      OSError: an array cannot be read.
    """
    import tensorstore as ts

    context, deadline = _context(storage), time.monotonic() + _READ_SECONDS
    database = _database(storage, folder)

    def open_one(name, leaf):
        at = {"driver": "zarr3", "kvstore": database | {"path": f"{name}/"}}
        return ts.open(at, open=True, read=True, context=context)

    def start(leaf, array):
        array = _result(array, deadline)
        indices = leaf.sharding.addressable_devices_indices_map(leaf.shape)
        return {_key(index): array[index].read() for index in indices.values()}

    def assemble(leaf, reads):
        return jax.make_array_from_callback(
            leaf.shape,
            leaf.sharding,
            lambda index: _result(reads[_key(index)], deadline),
        )

    leaves, structure = jax.tree.flatten(abstract)
    arrays = jax.tree.leaves(tree.map_named(open_one, abstract))
    reads = [start(leaf, array) for leaf, array in zip(leaves, arrays, strict=True)]
    loaded = [assemble(leaf, one) for leaf, one in zip(leaves, reads, strict=True)]
    return jax.tree.unflatten(structure, loaded)


def _key(index: tuple[slice, ...] | None) -> tuple:
    assert index is not None
    return tuple((axis_slice.start, axis_slice.stop) for axis_slice in index)


def _slices(start: Start, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))


def _context(storage: Storage):
    import tensorstore as ts

    return getattr(storage, "context", None) or ts.Context()


def _database(storage: Storage, folder: str) -> dict[str, Any]:
    return {
        "driver": "ocdbt",
        "base": storage.spec(folder),
        "target_data_file_size": _FILE_BYTES,
    }


def _description(shape: tuple[int, ...], block: np.ndarray) -> dict[str, Any]:
    """Returns the tensorstore spec of an array with blocks like this one."""
    grid = {"chunk_shape": [max(1, n) for n in block.shape]}
    return {
        "metadata": {
            "shape": shape,
            "data_type": str(block.dtype),
            "chunk_grid": {"name": "regular", "configuration": grid},
            # Not compressed: weights hardly compress, and training waits.
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        },
        "create": True,
        "open": True,
        # Otherwise a block of zeros would not be written, and a missing block would
        # read as zeros.
        "store_data_equal_to_fill_value": True,
    }


def _result(future, deadline: float) -> Any:
    """Returns the result of a tensorstore future; raises its errors as OSError."""
    try:
        return future.result(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        future.cancel()
        raise OSError("the disk did not answer in time") from None
    except (ValueError, RuntimeError) as error:
        raise OSError(brief(error)) from error
