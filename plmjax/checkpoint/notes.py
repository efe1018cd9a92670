"""Notes that processes leave each other with JAX's coordination service.

They need no device and no barrier, so a process that fails does not block the others.
"""

import time

import jax

from plmjax import processes


class Notes:
    """The outcome of one save on each process; `number` is the same on all of them."""

    def __init__(self, number: int):
        self._at = f"plmjax/save/{number}/"
        if processes.several() and processes.is_first() and number:
            # No process reads the notes of the previous save any more.
            _client().key_value_delete(f"plmjax/save/{number - 1}/")

    def failure(self) -> str | None:
        """Returns the error of a process that failed, or None."""
        if not processes.several():
            return None
        failures = sorted(_client().key_value_dir_get(f"{self._at}failed/"))
        return failures[0][1] if failures else None

    def exchange(self, trouble: str | None, end: float) -> None:
        """Leaves this process's note; on process 0, waits until all report success.

        `end` is in seconds of time.monotonic().

        Raises:
          OSError: the save failed on any process, or one left no note in time.
        """
        if not processes.several():
            if trouble is not None:
                raise OSError(trouble)
            return
        process, count = jax.process_index(), jax.process_count()
        if trouble is None:
            _client().key_value_set(f"{self._at}done/{process}", "done")
        elif self.failure() is None:
            message = f"process {process}: {trouble}" if process else trouble
            _client().key_value_set(f"{self._at}failed/{process}", message)
        if not processes.is_first():
            return
        done: set[int] = set()
        while len(done) < count:
            if (failure := self.failure()) is not None:
                raise OSError(failure)
            if time.monotonic() > end:
                late = min(set(range(count)) - done)
                raise OSError(f"process {late} did not write its part in time")
            time.sleep(0.02)
            names = dict(_client().key_value_dir_get(f"{self._at}done/"))
            done = {int(name.rpartition("/")[2]) for name in names}


def _client():
    # JAX has no public name for the client; orbax and others use this one, too.
    from jax._src.distributed import global_state

    assert global_state.client is not None
    return global_state.client
