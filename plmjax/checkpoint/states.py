"""How the state of a step becomes files and comes back: by orbax, on s3:// by arrays.

Everything but the state itself (storage, digests, when a step counts) is the same for
both. What orbax wrote, `orbax.checkpoint.v1.load(path)` reads without plmjax.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from plmjax import processes
from plmjax.checkpoint import arrays
from plmjax.checkpoint.storage import Storage

ORBAX, ARRAYS = "orbax", "tensorstore"
# Small enough to be hashed several at a time, and to be held in memory where the
# store is remote. Orbax's own choice is 2 GB.
_FILE_BYTES = 128_000_000


def _is_refused(storage: Storage) -> bool:
    # Orbax 0.12.8 refuses s3://.
    return str(storage).startswith("s3://")


def writer(storage: Storage) -> str:
    """Returns who writes the states of a storage, for meta.json to say."""
    return ARRAYS if _is_refused(storage) else ORBAX


class Write(Protocol):
    """A state that has been copied from the devices and is on its way to the disk."""

    def finish(self, deadline: float) -> None:
        """Returns when it is written, as far as this process knows.

        `deadline` is in seconds of time.monotonic().

        Raises:
          OSError: the disk did not take it; and other errors.
        """
        ...

    def join(self) -> None:
        """Makes one whole of what the processes have written; on process 0 alone.

        Raises:
          OSError: the disk did not take it, or a part is missing.
        """
        ...


def start(storage: Storage, folder: str, state, seconds: float) -> Write:
    """Copies a state to the host and returns its write, which has `seconds` in all.

    To be called in the main thread: with several processes orbax agrees by a collective
    that all of them call this for the same folder. What it does in the background waits
    for the coordination service, and for no device.
    """
    if writer(storage) == ARRAYS:
        return _Arrays(storage, folder, state)
    return _Orbax(storage, folder, state, seconds)


class _Orbax:
    def __init__(self, storage: Storage, folder: str, state, seconds: float):
        from orbax.checkpoint import v1 as ocp

        _catch_up()
        context = ocp.Context()
        context.array.saving.ocdbt_target_data_file_size = _FILE_BYTES
        # Also the time for which it waits for a process that has failed.
        context.asynchronous.timeout_secs = math.ceil(seconds)
        # We have just made the folder: two barriers fewer in the main thread.
        context.file.skip_sync_file_validations = True
        with context:
            self._response = ocp.save_async(f"{storage}/{folder}", state)

    def finish(self, deadline: float) -> None:
        try:
            self._response.result()
        except TimeoutError as error:
            # Orbax would name the barrier.
            raise OSError("a process did not write its part in time") from error

    def join(self) -> None:
        pass  # Orbax has done so.


class _Arrays:
    def __init__(self, storage: Storage, folder: str, state):
        self._storage, self._folder = storage, folder
        self._entries = arrays.entries(state)
        self._blocks = arrays.own_blocks(state)

    def finish(self, deadline: float) -> None:
        own = jax.process_index()
        arrays.write(self._storage, self._folder, self._blocks, own, deadline)

    def join(self) -> None:
        count = jax.process_count()
        arrays.join(self._storage, self._folder, count, self._entries)


def read(storage: Storage, folder: str, by: str, abstract, only: str | None = None):
    """Returns a state on the shardings of `abstract`, or one field of it alone.

    Waits for no other process.

    Raises:
      OSError, ValueError: it cannot be read.
    """
    if by == ORBAX and _is_refused(storage):
        raise ValueError("orbax wrote it, and reads no s3://; copy it to a directory")
    if by == ARRAYS:
        return arrays.read(storage, folder, _one_field(abstract, only, _nothing))
    return _read_orbax(storage, folder, abstract, only)


def _nothing(_) -> None:
    return None


def _one_field(state, only: str | None, nothing: Callable[[Any], Any]):
    """Returns a state with nothing(value) in place of every field but one."""
    if only is None:
        return state
    others = {f: nothing(value) for f, value in state._asdict().items() if f != only}
    return state._replace(**others)


def _read_orbax(storage: Storage, folder: str, abstract, only: str | None):
    global _reads
    from orbax.checkpoint import v1 as ocp

    def placeholders(value):
        return jax.tree.map(lambda _: ocp.PLACEHOLDER, value)

    own = jax.process_index()
    context = ocp.Context()
    # Else it waits for the other processes.
    context.multiprocessing.primary_host = own
    context.multiprocessing.active_processes = {own}
    _reads += 1
    with context:
        found = ocp.load(
            f"{storage}/{folder}", _one_field(abstract, only, placeholders)
        )
    return _one_field(found, only, _nothing)


# How many states orbax has read in this process.
_reads = 0


def _catch_up() -> None:
    """Lets processes save together of which one has read alone.

    Orbax names its barriers by a count of its operations in the process; where two
    counts differ, the processes would wait for each other in vain.
    """
    global _reads
    if not processes.several():
        return
    most = int(np.max(multihost_utils.process_allgather(np.int32(_reads))))
    if _reads < most:
        # It has no public name, and is needed by nobody who reads as the others do.
        from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator

        while _reads < most:
            OperationIdGenerator.next_operation_id()
            _reads += 1
