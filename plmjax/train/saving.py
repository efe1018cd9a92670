"""One save in the background: a step that counts on all processes, or on none.

Every process writes its blocks, whatever becomes of the others, and leaves a note of
how that went with JAX's coordination service. The first one waits for the notes, joins
the blocks, and vouches for the step with DIGESTS.json, the last file of all. No
collective and no barrier takes part, so that training goes on beside it on every
process, also where one cannot write.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from plmjax import tree
from plmjax.train import arrays, digests
from plmjax.train.loading import META, STATE
from plmjax.train.storage import Storage, brief

# A disk slower than this, in bytes a second, counts as one that hangs.
_SLOWEST = 5e6
_SLACK_SECONDS = 60.0
# A moment more than a process has for its part, for the note to come.
_LATE_SECONDS = 10.0
# Saves of this process; the same number on all processes of a run.
_numbers = itertools.count()


class Saving:
    """A step on its way to the disk.

    `ended` is called in the background on process 0 alone: with None, or with what went
    wrong on whichever process. `memory` keeps the copy; while an earlier save of this
    process is stuck, this one fails.
    """

    def __init__(
        self,
        storage: Storage,
        step: int,
        folder: str,
        state,
        meta: Mapping[str, Any],
        ended: Callable[[str | None], None],
        memory: dict,
        stuck: "Saving | None",
    ):
        self.step, self.folder = step, folder
        self._storage, self._ended = storage, ended
        self._stuck = stuck
        self._seconds = _SLACK_SECONDS + tree.size_in_bytes(state) / _SLOWEST
        self._deadline = time.monotonic() + self._seconds
        self._number, self._entries = next(_numbers), arrays.entries(state)
        self._blocks = [] if stuck else arrays.own_blocks(state, memory)
        self._meta = json.dumps(meta, indent=1).encode()
        # Not to be waited for at the interpreter's end: its disk may never answer.
        self._thread = threading.Thread(
            target=self._run, name=f"checkpoint {step}", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> bool:
        """Returns whether it has ended: within so long, or else before its limit."""
        if seconds is None:
            # As long again for what only the first process does.
            seconds = self._deadline + self._seconds - time.monotonic()
        self._thread.join(max(0.0, seconds))
        return not self.running

    def _run(self) -> None:
        notes = self._exchange(self._attempt(self._write) or "")
        if jax.process_index() == 0:
            trouble = next(filter(None, notes), None)
            self._ended(trouble or self._attempt(self._vouch))

    def _attempt(self, f: Callable[[], None]) -> str | None:
        """Returns what kept f from its end."""
        try:
            f()
        except Exception as error:
            # Whatever it was: a thread that dies in silence would look like a save.
            return brief(error)
        return None

    def _write(self) -> None:
        if self._stuck is not None:
            # Its blocks may still arrive, and it has the memory for ours.
            raise OSError(f"the save of step {self._stuck.step} is stuck")
        arrays.write(
            self._storage,
            f"{self.folder}/{STATE}",
            self._blocks,
            jax.process_index(),
            self._deadline,
        )

    def _vouch(self) -> None:
        storage, folder = self._storage, self.folder
        state = f"{folder}/{STATE}"
        arrays.join(storage, state, jax.process_count(), self._entries)
        storage.write(f"{folder}/{META}", self._meta)
        storage.settle(folder)
        found = digests.take(storage, folder, digests.own_files(storage, folder))
        storage.write(f"{folder}/{digests.FILE}", digests.render(found))

    def _exchange(self, note: str) -> list[str]:
        """Leaves a note; returns those of all processes, on the first one.

        One that does not come in time is in the place of a note.
        """
        count, own = jax.process_count(), jax.process_index()
        if count == 1:
            return [note]
        # JAX has no public name for it; orbax and others use it as well.
        from jax._src.distributed import global_state

        client, at = global_state.client, f"plmjax/save/{self._number}/"
        assert client is not None
        told = f"process {own}: {note}" if note and own else note
        client.key_value_set(f"{at}{own}", told)
        if own:
            return []
        end = self._deadline + _LATE_SECONDS
        notes: dict[str, str] = {}
        while len(notes) < count and time.monotonic() < end:
            time.sleep(0.02)
            notes = dict(client.key_value_dir_get(at))
        client.key_value_delete(at)
        late = "process {} did not write its part in time"
        found = {int(name.rpartition("/")[2]): text for name, text in notes.items()}
        return [found.get(i, late.format(i)) for i in range(count)]
