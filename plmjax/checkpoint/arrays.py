"""A state as files: zarr arrays in an OCDBT database, both by tensorstore.

Every process writes the blocks that it owns into a database of its own (process_3/),
and waits for nobody: one that fails holds up no other. `join` then makes one database
that refers to all of them. Anybody reads that one, alone, onto any mesh.
"""

import itertools
import time
from collections import defaultdict, deque
from typing import Any, NamedTuple

import jax
import numpy as np

from plmjax import tree
from plmjax.checkpoint.storage import ANSWER_SECONDS, Storage, brief

# Files of about this size: small enough to be hashed several at a time, and to be held
# in memory where the store is remote.
_FILE_BYTES = 128_000_000
# Bytes that may be on their way to the disk at a time.
_IN_FLIGHT = 256_000_000
_READ_SECONDS = 600.0
Start = tuple[int, ...]


class Block(NamedTuple):
    """A block of an array, on the host: arrays are divided as on their devices."""

    name: str
    whole: tuple[int, ...]  # the shape of the array
    start: Start
    data: np.ndarray


def own_blocks(state) -> list[Block]:
    """Copies to the host what this process writes of a state.

    Of the devices that hold the same block one writes it, another one for each block,
    so that all processes have their share.
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
        Block(name, whole, start, _on_host(data)) for name, whole, start, data in shards
    ]


def _start(index: tuple[slice, ...]) -> Start:
    return tuple(one.start or 0 for one in index)


def _on_host(data: jax.Array) -> np.ndarray:
    host = np.asarray(data)
    # On a CPU that is the device's own memory, which the next step writes into.
    return host.copy() if _platform(data) == "cpu" else host


def _platform(data: jax.Array) -> str:
    return next(iter(data.devices())).platform


def entries(state) -> int:
    """Returns how many entries the database of a state has: blocks and descriptions."""

    def count(leaf) -> int:
        indices = leaf.sharding.devices_indices_map(leaf.shape).values()
        # An empty array has a description alone.
        return 1 + (len({_start(index) for index in indices}) if leaf.size else 0)

    return sum(map(count, jax.tree.leaves(state)))


def write(
    storage: Storage, folder: str, blocks: list[Block], process: int, deadline: float
) -> None:
    """Writes blocks, and empties the list as it goes: they may be half the memory.

    `deadline` is in seconds of time.monotonic().

    Raises:
      OSError: the disk is full, or did not take all of them in time.
    """
    import tensorstore as ts

    context = _context(storage)
    database = _database(storage, f"{folder}/process_{process}")
    arrays: dict[str, Any] = {}
    waiting: deque = deque()
    size = 0
    try:
        for name, whole, _, data in {block.name: block for block in blocks}.values():
            description = _description(whole, data)
            at = {"driver": "zarr3", "kvstore": database | {"path": f"{name}/"}}
            arrays[name] = ts.open(at | description, context=context)
        while blocks or waiting:
            while blocks and (size < _IN_FLIGHT or not waiting):
                block = blocks.pop()
                array = _result(arrays[block.name], deadline)
                place = array[_slices(block.start, block.data.shape)]
                write = place.write(
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
    """Makes one database of those that the processes have written.

    Raises:
      OSError: it cannot be written, or has not the `expected` number of entries.
    """
    import tensorstore as ts

    context, deadline = _context(storage), time.monotonic() + ANSWER_SECONDS
    transaction = ts.Transaction(atomic=True)
    opened = ts.KvStore.open(_database(storage, folder), context=context)
    whole = _result(opened, deadline)
    for process in range(processes):
        database = _database(storage, f"{folder}/process_{process}")
        part = _result(ts.KvStore.open(database, context=context), deadline)
        copied = part.experimental_copy_range_to(whole.with_transaction(transaction))
        _result(copied, deadline)
    _result(transaction.commit_async(), deadline)
    found = len(_result(whole.list(), deadline))
    if found != expected:
        raise OSError(
            f"{found:,} of {expected:,} blocks have arrived in {storage}; do all "
            "processes share it?"
        )


def read(storage: Storage, folder: str, abstract):
    """Returns the arrays of a state on the shardings of `abstract`.

    Raises:
      OSError: one cannot be read.
    """
    import tensorstore as ts

    context, deadline = _context(storage), time.monotonic() + _READ_SECONDS
    database = _database(storage, folder)

    def open_one(name, leaf):
        at = {"driver": "zarr3", "kvstore": database | {"path": f"{name}/"}}
        return ts.open(at, open=True, read=True, context=context)

    def start(leaf, array):
        array = _result(array, deadline)
        places = leaf.sharding.addressable_devices_indices_map(leaf.shape)
        return {_key(index): array[index].read() for index in places.values()}

    def place(leaf, reads):
        return jax.make_array_from_callback(
            leaf.shape,
            leaf.sharding,
            lambda index: _result(reads[_key(index)], deadline),
        )

    leaves, structure = jax.tree.flatten(abstract)
    arrays = jax.tree.leaves(tree.map_named(open_one, abstract))
    reads = [start(leaf, array) for leaf, array in zip(leaves, arrays, strict=True)]
    placed = [place(leaf, one) for leaf, one in zip(leaves, reads, strict=True)]
    return jax.tree.unflatten(structure, placed)


def _key(index: tuple[slice, ...] | None) -> tuple:
    assert index is not None
    return tuple((one.start, one.stop) for one in index)


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


def _description(whole: tuple[int, ...], block: np.ndarray) -> dict[str, Any]:
    """Returns how tensorstore opens an array whose blocks are like this one."""
    grid = {"chunk_shape": [max(1, n) for n in block.shape]}
    return {
        "metadata": {
            "shape": whole,
            "data_type": str(block.dtype),
            "chunk_grid": {"name": "regular", "configuration": grid},
            # As it is in memory: noise does not compress, and training waits.
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        },
        "create": True,
        "open": True,
        # Else a block of zeros would be missing, and what is missing reads as zeros.
        "store_data_equal_to_fill_value": True,
    }


def _result(future, deadline: float) -> Any:
    """Returns the result of a tensorstore future, its errors as OSError."""
    try:
        return future.result(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        future.cancel()
        raise OSError("the disk did not answer in time") from None
    except (ValueError, RuntimeError) as error:
        raise OSError(brief(error)) from error
