"""One save in the background: a step that counts on all processes, or on none.

Every process writes its part and leaves a note of the outcome. Process 0 waits for the
notes, then completes the step with DIGESTS.json, the last file. If a process fails,
orbax on the others waits for it until a timeout; by the note they know at once, and
training continues.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from plmjax import processes, tree
from plmjax.checkpoint import digests, states
from plmjax.checkpoint.meta import META, STATE
from plmjax.checkpoint.notes import Notes
from plmjax.checkpoint.storage import Storage, brief

# A disk slower than this, in bytes a second, counts as hung.
_SLOWEST = 5e6
_SLACK_SECONDS = 60.0
# Extra time for the note, after the deadline of a process's part.
_LATE_SECONDS = 10.0
# Orbax's timeout at the barriers where it ignores ours.
_BARRIER_SECONDS = 300.0
# How often a process that writes looks for a note that another one has failed.
_LOOK_SECONDS = 0.25
# Failed saves that may still wait for a process or a disk while a new one begins.
_MAX_LEFTOVER = 2
# Saves of this process; the same number on all processes of a run.
_numbers = itertools.count()


class Saving:
    """A running save of a step; created in the main thread, by every process.

    `ended` is called in the background on process 0 only: with None, or with the error
    of any process.
    """

    def __init__(
        self,
        storage: Storage,
        step: int,
        folder: str,
        state,
        meta: Mapping[str, Any],
        ended: Callable[[str | None], None],
    ):
        self.step, self.folder, self.given_up = step, folder, False
        self._storage, self._ended = storage, ended
        self._seconds = _SLACK_SECONDS + tree.size_in_bytes(state) / _SLOWEST
        self._deadline = time.monotonic() + self._seconds
        self._notes = Notes(next(_numbers))
        self._meta = json.dumps(meta, indent=1).encode()
        self._write: states.Write | None = None
        self._trouble = self._attempt(lambda: self._copy(state))
        # A daemon, so that the interpreter can exit: the disk may never answer.
        self._part = threading.Thread(
            target=self._finish, name=f"checkpoint {step}, local part", daemon=True
        )
        self._part.start()
        self._thread = threading.Thread(
            target=self._run, name=f"checkpoint {step}", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether this process still writes a part of it or waits for it."""
        return self._thread.is_alive() or self._part.is_alive()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for `seconds` or up to the time limit; returns True if it has ended."""
        if seconds is None:
            # The same time again for the work that only process 0 does.
            seconds = self._deadline + self._seconds - time.monotonic()
        self._thread.join(max(0.0, seconds))
        return not self._thread.is_alive()

    def wait_for_part(self) -> None:
        """Waits until this process has ended its part, or up to the time limit.

        If a process exited before the others, all would end with an error.
        """
        limit = self._limit + _BARRIER_SECONDS
        self._part.join(max(0.0, limit - time.monotonic()))

    @property
    def _limit(self) -> float:
        return self._deadline + _LATE_SECONDS

    def _attempt(self, f: Callable[[], None]) -> str | None:
        """Runs f; returns the message of its error, or None."""
        try:
            f()
        except Exception as error:
            # Any error: a thread that dies silently would look like a finished save.
            return brief(error)
        return None

    def _copy(self, state) -> None:
        at = f"{self.folder}/{STATE}"
        self._write = states.start(self._storage, at, state, self._seconds)

    def _finish(self) -> None:
        if (write := self._write) is not None:
            self._trouble = self._attempt(lambda: write.finish(self._deadline))

    def _run(self) -> None:
        trouble = self._attempt(self._await_part)
        failure = self._attempt(lambda: self._notes.exchange(trouble, self._limit))
        if not processes.is_first():
            return
        trouble = failure or self._attempt(self._complete)
        if not self.given_up:
            self._ended(trouble)

    def _await_part(self) -> None:
        """Waits for this process's part, unless another one has failed.

        Raises:
          OSError: a part failed here or elsewhere, or the disk does not answer.
        """
        while self._part.is_alive():
            self._part.join(_LOOK_SECONDS)
            if (failure := self._notes.failure()) is not None:
                raise OSError(failure)
            if time.monotonic() > self._limit:
                raise OSError("the disk does not answer")
        if self._trouble is not None:
            raise OSError(self._trouble)

    def _complete(self) -> None:
        storage, folder = self._storage, self.folder
        assert self._write is not None
        self._write.join()
        storage.write(f"{folder}/{META}", self._meta)
        storage.fsync(folder)
        sums = digests.compute(
            storage, folder, digests.checkpoint_files(storage, folder)
        )
        if self.given_up:
            # The run has continued without this step, or even rolled back before it.
            raise OSError("the disk answered too late")
        storage.write(f"{folder}/{digests.FILE}", digests.render(sums))


class Saves:
    """The running save, `current`, and failed saves that have not ended."""

    def __init__(self):
        self.current: Saving | None = None
        self._leftover: list[Saving] = []

    def finish_current(self, seconds: float | None) -> int | None:
        """Waits for the running save, for `seconds` or up to its time limit.

        Returns its step if the time limit has passed, else None.
        """
        saving = self.current
        if saving is None or (not saving.wait(seconds) and seconds is not None):
            return None
        self.current = None
        if saving.running:
            self._leftover.append(saving)
        # It is reported as failed, even if it ends later.
        saving.given_up = not saving.wait(0)
        return saving.step if saving.given_up else None

    def wait_leftover(self) -> None:
        """Waits for failed saves that have not ended, up to their time limits."""
        for saving in self._leftover:
            saving.wait_for_part()

    def objection(self, step: int) -> str | None:
        """Returns why this process cannot save a step yet, or None."""
        if self.current is not None:
            return f"step {self.current.step} is still being written"
        self._leftover = [saving for saving in self._leftover if saving.running]
        for saving in self._leftover:
            # An unfinished save may still write into the same folder, and each may
            # hold a copy of the state.
            if saving.step == step or len(self._leftover) >= _MAX_LEFTOVER:
                return f"the save of step {saving.step} is stuck"
        return None
