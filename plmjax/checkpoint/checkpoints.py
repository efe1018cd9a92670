"""Checkpoints that orbax writes and our digests verify.

checkpoints/
  step_00000250/state/        the State (states.py)
  step_00000250/meta.json     step, leaves, devices, versions, which a reader checks
                              first; the held-out loss, if it was evaluated there
  step_00000250/DIGESTS.json  SHA-256 of each file, written last; without it the step
                              does not count
  damaged/                    steps whose digests did not match, moved here

Without digests, a flipped bit in an array would load without an error.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax

from plmjax import Exit, PlmjaxError, __version__, processes, tree
from plmjax.checkpoint import digests, states
from plmjax.checkpoint.meta import (
    FORMAT,
    META,
    STATE,
    check,
    layout,
    layout_changes,
    leaves,
)
from plmjax.checkpoint.saving import Saves, Saving
from plmjax.checkpoint.storage import brief, open_storage
from plmjax.stop import deferred

_STEP = re.compile(r"step_(\d{8,})")
_DAMAGED = "damaged"
# Training waits no longer than this for a slow disk, and then skips a save.
_PATIENCE_SECONDS = 30.0
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run, listed from disk, never from memory.

    `where` is a directory, or a gs:// or s3:// URL. Saving runs in the background; its
    errors go to `log` and `failure`, and training continues. The `keep` newest steps
    and the best one are kept.

    With `together`, every process of a run calls every method, in the same order, and
    all decide by what process 0 reads, since processes may see different states of one
    disk. Without it, a process reads alone, and cannot save if it is one of several.
    """

    def __init__(
        self,
        where: str | Path,
        keep: int = 2,
        log: Callable[[str], Any] = print,
        together: bool = False,
    ):
        try:
            self._storage = open_storage(where)
        except OSError as error:
            raise _unreachable(where, error) from error
        self.keep = keep
        self.log = log
        self.failure: PlmjaxError | None = None
        self._together = together
        self._saves = Saves()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # The end of the interpreter would interrupt a running save. Not wait(), which
        # needs all processes: this one may be alone with its error.
        self._finish_current()
        self._saves.wait_leftover()

    def __str__(self) -> str:
        return str(self._storage)

    def path(self, step: int) -> Path:
        """Returns the directory of a step; for local checkpoints only."""
        return Path(str(self), folder(step))

    def _run_on_first(self, f: Callable[[], T]) -> T:
        """Returns f() of process 0 (JSON), or of this process without `together`."""
        return processes.run_on_first(f) if self._together else f()

    # Listing.

    def steps(self) -> list[int]:
        """Returns the completely saved steps, in ascending order.

        Raises:
          PlmjaxError: they cannot be listed (exit code 5).
        """
        return self._run_on_first(self._steps)

    def _steps(self) -> list[int]:
        try:
            matches = map(_STEP.fullmatch, self._storage.entries())
            steps = sorted(int(match[1]) for match in matches if match)
            return [
                step
                for step in steps
                if self._storage.exists(f"{folder(step)}/{digests.FILE}")
            ]
        except OSError as error:
            raise _unreachable(self, error) from error

    def best(self) -> tuple[int, float] | None:
        """Returns (step, rank) of the evaluated step with the lowest rank, or None.

        The rank is the held-out loss unless the meta has another "rank".
        """
        best = self._run_on_first(self._best)
        return None if best is None else (best[0], best[1])

    def _best(self) -> tuple[int, float] | None:
        try:
            steps = self._steps()
        except PlmjaxError as error:
            # Training can continue without it; callers that load use good_step, too.
            self.log(f"WARNING: {error}")
            return None
        ranks = {step: _rank(self._meta(step)) for step in steps}
        known = {s: x for s, x in ranks.items() if x is not None and math.isfinite(x)}
        return min(known.items(), key=lambda item: item[1]) if known else None

    def meta(self, step: int) -> dict:
        """Returns the meta saved beside the state; {} if it is damaged."""
        return self._run_on_first(lambda: self._meta(step))

    def _meta(self, step: int) -> dict:
        try:
            meta = json.loads(self._storage.read(f"{folder(step)}/{META}"))
        except (OSError, ValueError, RecursionError):
            return {}  # Loading reports the damage, by the digests.
        return meta if isinstance(meta, dict) else {}

    # Saving.

    def save(self, step: int, state, meta: dict, last: bool = False) -> None:
        """Starts writing a step, after the previous save has ended.

        `meta` must be JSON-serialisable; its "rank", or else "loss", is lower for
        better steps. If the previous save takes too long, this one is skipped, unless
        it is the `last`.
        """
        assert self._together or jax.process_count() == 1, "every process must save"
        self._finish_current(None if last else _PATIENCE_SECONDS)
        meta = meta | {
            "format": FORMAT,
            "state": states.writer(self._storage),
            "step": step,
            "plmjax": __version__,
            "leaves": leaves(state),
            "layout": layout(state),
        }
        size, ranked = tree.size_in_bytes(state), _rank(meta) is not None
        answer = self._run_on_first(lambda: self._prepare(step, size, ranked))
        if answer == _DONE:
            return
        if answer == _GO:
            answer = self._objection(step) or _GO
        if answer != _GO:
            self._failed(step, answer)
            return

        def ended(trouble: str | None) -> None:
            if trouble is None:
                self.failure = None
                self._prune()
            else:
                self._clear(step)
                self._failed(step, trouble)

        self._saves.current = Saving(
            storage=self._storage,
            step=step,
            folder=folder(step),
            state=state,
            meta=meta,
            ended=ended,
        )

    def _prepare(self, step: int, size: int, ranked: bool) -> str:
        """Makes room for a step; returns _GO, _DONE, or why it cannot be saved.

        An existing step is written again if it was saved without its rank.
        """
        if (objection := self._saves.objection(step)) is not None:
            return objection
        try:
            if step in self._steps():
                if not ranked or _rank(self._meta(step)) is not None:
                    return _DONE
                self._remove(step)
            self._storage.delete(folder(step))
            self._storage.make(folder(step))
            objection = self._no_space(size)
        except (OSError, PlmjaxError) as error:
            return brief(error)
        if objection is not None:
            self._clear(step)
        return objection or _GO

    def check_room(self, state) -> None:
        """Raises PlmjaxError if the disk has too little space for one checkpoint."""
        size = tree.size_in_bytes(state)
        if objection := self._run_on_first(lambda: self._no_space(size)):
            error = PlmjaxError(
                f"{self} has {objection}.",
                hint="Free some, or set --config.train.checkpoints to another disk.",
                code=Exit.DISK,
            )
            processes.raise_on_all(error)

    def _no_space(self, size: int) -> str | None:
        free = self._storage.free()
        if free is None or free >= 1.2 * size:
            return None
        return (
            f"no space: a checkpoint needs {1.2 * size / 1e6:,.1f} MB and "
            f"{free / 1e6:,.1f} MB are free"
        )

    def _objection(self, step: int) -> str | None:
        """Returns on all processes why one of them cannot take part in a save, or None.

        Otherwise orbax would block the other processes until its timeout.
        """
        first = processes.first_message(self._local_objection(step) or "")
        if first is None:
            return None
        if processes.is_first():
            self._clear(step)
        process, text = first
        return f"process {process}: {text}" if process else text

    def _local_objection(self, step: int) -> str | None:
        if (objection := self._saves.objection(step)) is not None:
            return objection
        probe = f"{folder(step)}/.process_{jax.process_index()}"
        try:
            self._storage.write(probe, b"")
            self._storage.delete(probe)
        except OSError as error:
            return brief(error)
        return None

    def wait(self, patient: bool = True) -> None:
        """Waits until nothing is being written, or the save hangs; sets `failure`.

        Without `patient` it also returns when the save takes too long.
        """
        self._finish_current(None if patient else _PATIENCE_SECONDS)
        if patient:
            self._saves.wait_leftover()
        failure = self.failure
        text = self._run_on_first(
            lambda: [failure.message, failure.hint] if failure else None
        )
        if text is None:
            self.failure = None
        else:
            self.failure = PlmjaxError(text[0], hint=text[1], code=Exit.DISK)

    def _finish_current(self, seconds: float | None = None) -> None:
        """Waits for the running save, for `seconds` or up to its time limit."""
        if (step := self._saves.finish_current(seconds)) is not None:
            self._failed(step, "the disk does not answer")

    def _failed(self, step: int, reason: str) -> None:
        """Warns that a step is not saved, and names the last good one."""
        last = "There is no good checkpoint yet."
        try:
            if steps := self._steps():
                last = f"The last good checkpoint is step {steps[-1]}."
        except PlmjaxError:
            last = "The good checkpoints cannot be listed."
        self.failure = PlmjaxError(
            f"the checkpoint of step {step} could not be written: {reason}.",
            hint=f"Free space in or check {self}. {last}",
            code=Exit.DISK,
        )
        self.log(f"WARNING: {self.failure}")

    def _clear(self, step: int) -> None:
        """Removes an incomplete step; only warns if the disk fails."""
        try:
            self._storage.delete(folder(step))
        except OSError as error:
            self.log(f"WARNING: {self}/{folder(step)} stays: {brief(error)}")

    def _prune(self) -> None:
        """Removes old steps, once the newest one has its digests."""
        try:
            steps, best = self._steps(), self._best()
            kept = set(steps[-max(2, self.keep) :]) | ({best[0]} if best else set())
            for step in steps:
                # A step with unreadable meta may be the best one.
                if step not in kept and self._meta(step):
                    self._remove(step)
        except (OSError, PlmjaxError) as error:
            self.log(f"WARNING: old checkpoints in {self} stay: {brief(error)}")

    def _remove(self, step: int) -> None:
        # The digests go first, so that a half deleted step does not count.
        self._storage.delete(f"{folder(step)}/{digests.FILE}")
        self._storage.delete(folder(step))

    # Resuming.

    def remove_unfinished(self) -> None:
        """Deletes incomplete steps of an earlier process.

        Raises:
          PlmjaxError: they cannot be listed or deleted (exit code 5).
        """
        self._run_on_first(self._remove_unfinished)

    def _remove_unfinished(self) -> None:
        try:
            for name in filter(_STEP.match, self._storage.entries()):
                if not self._storage.exists(f"{name}/{digests.FILE}"):
                    self._storage.delete(name)
                    self.log(f"{name} has no {digests.FILE}: unfinished, removed.")
        except OSError as error:
            raise _unreachable(self, error) from error

    def damage(self, step: int) -> str | None:
        """Returns a description of the damage to a step's files, or None."""
        return self._run_on_first(lambda: digests.trouble(self._storage, folder(step)))

    def good_step(self, step: int | None = None, set_aside: bool = False) -> int | None:
        """Returns the newest step (or `step`) with matching digests; None if no steps.

        With `set_aside`, damaged steps are moved to damaged/.

        Raises:
          PlmjaxError: there are steps, but no good one; or `step` does not exist.
        """
        return self._run_on_first(lambda: self._good_step(step, set_aside))

    def _good_step(self, step: int | None, set_aside: bool) -> int | None:
        steps = self._steps()
        if step is not None and step not in steps:
            raise PlmjaxError(
                f"{self} has no checkpoint of step {step}.",
                hint=f"Its steps: {', '.join(map(str, steps)) or 'none'}.",
                code=Exit.MODEL,
            )
        troubles: dict[int, str] = {}
        for candidate in reversed(steps if step is None else [step]):
            trouble = digests.trouble(self._storage, folder(candidate))
            if trouble is None:
                # Only with a good step: otherwise the run would look like a new one.
                if set_aside:
                    self._set_aside(troubles)
                return candidate
            troubles[candidate] = f"step {candidate}: {trouble}"
            self.log(f"WARNING: checkpoint of {troubles[candidate]}; it is not used.")
        if not troubles:
            return None
        raise PlmjaxError(
            f"no readable checkpoint in {self} ({'; '.join(troubles.values())}).",
            hint="Restore one from a copy, or start again in another --workdir.",
            code=Exit.MODEL,
        )

    def _set_aside(self, steps: Iterable[int]) -> None:
        for name in map(folder, steps):
            try:
                self._storage.move(name, f"{_DAMAGED}/{name}")
            except OSError as error:
                raise _unreachable(self, error) from error

    # Reading.

    def load(self, step: int, abstract, only: str | None = None):
        """Returns the state of a step, on the shardings of `abstract`.

        They may be of any mesh and number of processes. With `only`, just that field of
        the state is read, with no message about changed devices; the others are empty.

        Raises:
          PlmjaxError: the checkpoint holds another model, or cannot be read.
        """
        meta = self.meta(step)
        where = f"the checkpoint of step {step} in {self}"
        check(where, meta, abstract)
        if only is None and (changes := layout_changes(meta, abstract)):
            self.log(f"Going on with {changes}: the same batches, equal to rounding.")

        at, writer = f"{folder(step)}/{STATE}", meta.get("state", states.ORBAX)

        def read():
            try:
                with deferred():
                    return states.read(self._storage, at, writer, abstract, only)
            except (OSError, ValueError) as error:
                message = f"{where} cannot be read: {brief(error)}."
                raise PlmjaxError(message, code=Exit.MODEL) from error

        return processes.run_on_all(read) if self._together else read()


# Answers of process 0 in _prepare: write the step, or it is already saved.
_GO, _DONE = "go", "done"


def folder(step: int) -> str:
    """Returns the name of a step's folder."""
    return f"step_{step:08d}"


def _rank(meta: dict) -> float | None:
    return meta.get("rank", meta.get("loss"))


def _unreachable(where, error: Exception) -> PlmjaxError:
    return PlmjaxError(
        f"the checkpoints in {where} cannot be reached: {brief(error)}.",
        hint="Check the path, the disk and the permissions or credentials.",
        code=Exit.DISK,
    )
