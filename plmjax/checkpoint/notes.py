"""Notes that processes leave each other with JAX's coordination service.

No device and no barrier takes part: a process that fails holds up no other.
"""

import time

import jax

from plmjax import processes


class Notes:
    """How one save went, on each process; `number` is the same on all of them."""

    def __init__(self, number: int):
        self._at = f"plmjax/save/{number}/"
        if processes.several() and processes.is_first() and number:
            # Nobody looks for those any more.
            _client().key_value_delete(f"plmjax/save/{number - 1}/")

    def failure(self) -> str | None:
        """Returns what a process has said that went wrong, if one has."""
        if not processes.several():
            return None
        found = sorted(_client().key_value_dir_get(f"{self._at}failed/"))
        return found[0][1] if found else None

    def exchange(self, trouble: str | None, end: float) -> None:
        """Leaves this process's note; on process 0, returns when all say that it went.

        `end` is in seconds of time.monotonic().

        Raises:
          OSError: what went wrong on whichever process, or one says nothing.
        """
        if not processes.several():
            if trouble is not None:
                raise OSError(trouble)
            return
        own, count = jax.process_index(), jax.process_count()
        if trouble is None:
            _client().key_value_set(f"{self._at}done/{own}", "done")
        elif self.failure() is None:
            told = f"process {own}: {trouble}" if own else trouble
            _client().key_value_set(f"{self._at}failed/{own}", told)
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
    # JAX has no public name for it; orbax and others use it as well.
    from jax._src.distributed import global_state

    assert global_state.client is not None
    return global_state.client
