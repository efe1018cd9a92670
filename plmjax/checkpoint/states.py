"""Writing and reading the state of a step: by orbax, on s3:// by arrays.py.

Everything but the state (storage, digests, when a step counts) is the same for both.
`orbax.checkpoint.v1.load(path)` reads states written by orbax without plmjax.
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
# Small enough to hash several at a time, and to hold in memory if the store is remote.
# Orbax's default is 2 GB.
_FILE_BYTES = 128_000_000


def _is_refused(storage: Storage) -> bool:
    # Orbax 0.12.8 refuses s3://.
    return str(storage).startswith("s3://")


def writer(storage: Storage) -> str:
    """Returns the name of the writer of a storage's states, for meta.json."""
    return ARRAYS if _is_refused(storage) else ORBAX


class Write(Protocol):
    """A running write of a state that has been copied from the devices."""

    def finish(self, deadline: float) -> None:
        """Waits until this process has written its part.

        `deadline` is in seconds of time.monotonic().

        Raises:
          OSError: the disk failed; also other errors.
        """
        ...

    def join(self) -> None:
        """Joins the parts of all processes; called on process 0 only.

        Raises:
          OSError: the disk failed, or a part is missing.
        """
        ...


def start(storage: Storage, folder: str, state, seconds: float) -> Write:
    """Copies a state to the host and returns its write, which may take `seconds`.

    Must be called in the main thread: with several processes, orbax checks by a
    collective that all of them call this for the same folder. Its background work waits
    for the coordination service, not for a device.
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
        # Orbax also waits this long for a process that has failed.
        context.asynchronous.timeout_secs = math.ceil(seconds)
        # We have just created the folder; this saves two barriers in the main thread.
        context.file.skip_sync_file_validations = True
        with context:
            self._response = ocp.save_async(f"{storage}/{folder}", state)

    def finish(self, deadline: float) -> None:
        try:
            self._response.result()
        except TimeoutError as error:
            # Orbax's message only names its barrier.
            raise OSError("a process did not write its part in time") from error

    def join(self) -> None:
        pass  # Orbax has joined the parts.


class _Arrays:
    def __init__(self, storage: Storage, folder: str, state):
        self._storage, self._folder = storage, folder
        self._entries = arrays.entries(state)
        self._blocks = arrays.blocks_to_write(state)

    def finish(self, deadline: float) -> None:
        process = jax.process_index()
        arrays.write(self._storage, self._folder, self._blocks, process, deadline)

    def join(self) -> None:
        count = jax.process_count()
        arrays.join(self._storage, self._folder, count, self._entries)


def read(storage: Storage, folder: str, by: str, abstract, only: str | None = None):
    """Returns a state on the shardings of `abstract`, or only one of its fields.

    Does not wait for other processes.

    Raises:
      OSError, ValueError: the state cannot be read.
    """
    if by == ORBAX and _is_refused(storage):
        raise ValueError("orbax wrote it, and reads no s3://; copy it to a directory")
    if by == ARRAYS:
        return arrays.read(storage, folder, _one_field(abstract, only, _nothing))
    return _read_orbax(storage, folder, abstract, only)


def _nothing(_) -> None:
    return None


def _one_field(state, only: str | None, nothing: Callable[[Any], Any]):
    """Returns a state with every field but one replaced by nothing(value)."""
    if only is None:
        return state
    others = {f: nothing(value) for f, value in state._asdict().items() if f != only}
    return state._replace(**others)


def _read_orbax(storage: Storage, folder: str, abstract, only: str | None):
    global _reads
    from orbax.checkpoint import v1 as ocp

    def placeholders(value):
        return jax.tree.map(lambda _: ocp.PLACEHOLDER, value)

    process = jax.process_index()
    context = ocp.Context()
    # Otherwise orbax waits for the other processes.
    context.multiprocessing.primary_host = process
    context.multiprocessing.active_processes = {process}
    _reads += 1
    with context:
        state = ocp.load(
            f"{storage}/{folder}", _one_field(abstract, only, placeholders)
        )
    return _one_field(state, only, _nothing)


# How many states orbax has read in this process.
_reads = 0


def _catch_up() -> None:
    """Makes orbax's operation counts equal on all processes before a joint save.

    Orbax names its barriers by a count of its operations in the process. After one
    process has read alone, the counts differ, and barriers would never meet.
    """
    global _reads
    if not processes.several():
        return
    most = int(np.max(multihost_utils.process_allgather(np.int32(_reads))))
    if _reads < most:
        # There is no public name: orbax expects all processes to read together.
        from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator

        while _reads < most:
            OperationIdGenerator.next_operation_id()
            _reads += 1
