"""Checkpoints that prove themselves: orbax writes, digests of ours vouch.

checkpoints/
  step_00000250/state/        the State, as orbax writes it
  step_00000250/meta.json     step, leaves, versions: what a reader checks first; the
                              held-out loss, if it was evaluated there
  step_00000250/DIGESTS.json  SHA-256 of each file, written last; without it the step
                              does not count
  damaged/                    what failed its digests, set aside

A flipped bit in an orbax file loads without an error; the digests are why ours do not.
"""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np

from plmjax import Exit, PlmjaxError, tree

FORMAT = 1
_STEP = re.compile(r"step_(\d{8,})")
_DIGESTS = "DIGESTS.json"
_META = "meta.json"


def write_json(path: Path, value) -> None:
    """Writes JSON so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _digests(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != _DIGESTS:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(directory).as_posix()] = digest
    return found


def _fsync(directory: Path) -> None:
    for path in [directory, *directory.rglob("*")]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _leaves(state) -> dict[str, str]:
    """Returns {name: "float32[2, 3]"} of any pytree: what a checkpoint must match."""
    found = {}

    def add(name, leaf):
        found[name] = f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"

    tree.map_named(add, state)
    return found


class Checkpoints:
    """The checkpoints of one run, listed from disk, never from memory.

    Saving runs in the background; its errors reach `log` and `failure`, and training
    goes on. `keep` newest steps and the best one stay.
    """

    def __init__(
        self, directory: Path, keep: int = 2, log: Callable[[str], None] = print
    ):
        self.directory = Path(directory).absolute()  # orbax takes no other
        self.keep = keep
        self.log = log
        self.failure: PlmjaxError | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # The interpreter's end would break off what orbax is writing.
        self.wait()

    def path(self, step: int) -> Path:
        return self.directory / f"step_{step:08d}"

    def steps(self) -> list[int]:
        """Returns the steps whose save was completed, in ascending order."""
        if not self.directory.is_dir():
            return []
        matches = [_STEP.fullmatch(path.name) for path in self.directory.iterdir()]
        found = sorted(int(match[1]) for match in matches if match)
        return [step for step in found if (self.path(step) / _DIGESTS).is_file()]

    def best(self) -> tuple[int, float] | None:
        """Returns (step, loss) of the evaluated step with the lowest loss, or None."""
        losses = {step: self.meta(step).get("loss") for step in self.steps()}
        known = {step: loss for step, loss in losses.items() if loss is not None}
        return min(known.items(), key=lambda item: item[1]) if known else None

    def save(self, step: int, state, meta: dict) -> None:
        """Starts writing a step, after the one before is done.

        `meta` is what JSON can hold; "loss" in it is the step's held-out loss.
        """
        from orbax.checkpoint import v1 as ocp

        self.wait()
        path = self.path(step)
        if (path / _DIGESTS).is_file():
            return
        try:
            self._need(tree.size_in_bytes(state))
            if jax.process_index() == 0:
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir(parents=True)
            response = ocp.save_async(str(path / "state"), state)
        except (OSError, ValueError) as error:
            self._failed(step, error)
            return
        meta = meta | {
            "format": FORMAT,
            "step": step,
            "jax": jax.__version__,
            "leaves": _leaves(state),
        }
        self._thread = threading.Thread(
            target=self._finish, args=(step, response, meta), name="checkpoint"
        )
        self._thread.start()

    def _finish(self, step: int, response, meta: dict) -> None:
        try:
            response.result()
            if jax.process_index() == 0:
                path = self.path(step)
                write_json(path / _META, meta)
                _fsync(path)
                write_json(path / _DIGESTS, _digests(path))
                self._prune()
            self.failure = None
        except Exception as error:
            # Whatever it was: a thread that dies in silence would look like a save.
            self._failed(step, error)

    def _need(self, size: int) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free
        if free < 1.2 * size:
            raise OSError(
                f"no space: a checkpoint needs {1.2 * size / 1e6:,.0f} MB and "
                f"{free / 1e6:,.0f} MB are free"
            )

    def _failed(self, step: int, error: Exception) -> None:
        """Keeps what is good, removes the half-written, and says so."""
        shutil.rmtree(self.path(step), ignore_errors=True)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else error
        last = self.steps()
        kept = (
            f"The last good checkpoint is step {last[-1]}."
            if last
            else ("There is no good checkpoint yet.")
        )
        self.failure = PlmjaxError(
            f"the checkpoint of step {step} could not be written: {reason}.",
            hint=f"Free space in or check {self.directory}. {kept}",
            code=Exit.DISK,
        )
        self.log(f"WARNING: {self.failure}")

    def _prune(self) -> None:
        steps, best = self.steps(), self.best()
        kept = set(steps[-self.keep :]) | ({best[0]} if best else set())
        for step in steps:
            if step not in kept:
                # Without digests first: a step that is half deleted does not count.
                (self.path(step) / _DIGESTS).unlink()
                shutil.rmtree(self.path(step), ignore_errors=True)

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def remove_unfinished(self) -> None:
        """Deletes what an earlier process left half written; it has to be gone."""
        if not self.directory.is_dir():
            return
        for path in self.directory.iterdir():
            if _STEP.match(path.name) and not (path / _DIGESTS).is_file():
                shutil.rmtree(path)

    def damage(self, step: int) -> str | None:
        """Returns what is wrong with a step's files, or None."""
        path = self.path(step)
        try:
            expected = json.loads((path / _DIGESTS).read_text())
        except (OSError, ValueError) as error:
            return f"{_DIGESTS} cannot be read ({error})"
        found = _digests(path)
        for name, digest in expected.items():
            if name not in found:
                return f"{name} is missing"
            if found[name] != digest:
                return f"{name} does not match its SHA-256"
        return None

    def meta(self, step: int) -> dict:
        """Returns what was saved beside the state; {} if it is damaged."""
        try:
            found = json.loads((self.path(step) / _META).read_text())
        except (OSError, ValueError):
            return {}  # The digests say so to whoever wants to load it.
        return found if isinstance(found, dict) else {}

    def good_step(self, step: int | None = None, set_aside: bool = False) -> int | None:
        """Returns the newest step (or `step`) whose digests hold; None without steps.

        With `set_aside`, damaged steps are moved to damaged/.

        Raises:
          PlmjaxError: there are steps, but no good one; or no such step.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            raise PlmjaxError(
                f"there is no checkpoint of step {step} in {self.directory}.",
                hint=f"There are: {', '.join(map(str, steps)) or 'none'}.",
                code=Exit.MODEL,
            )
        troubles: dict[int, str] = {}
        for candidate in reversed(steps if step is None else [step]):
            trouble = self.damage(candidate)
            if trouble is None:
                # Only now: a run without any good step must not look like a new one.
                if set_aside:
                    self._set_aside(troubles)
                return candidate
            troubles[candidate] = f"step {candidate}: {trouble}"
            self.log(f"WARNING: checkpoint of {troubles[candidate]}; it is not used.")
        if not troubles:
            return None
        raise PlmjaxError(
            f"no readable checkpoint in {self.directory} "
            f"({'; '.join(troubles.values())}).",
            hint="Start again in another --workdir.",
            code=Exit.MODEL,
        )

    def _set_aside(self, steps: Iterable[int]) -> None:
        aside = self.directory / "damaged"
        for path in map(self.path, steps):
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / path.name, ignore_errors=True)
            path.rename(aside / path.name)

    def load(self, step: int, abstract, only: str | None = None):
        """Returns the state of a step, on the shardings of `abstract`.

        With `only`, just that field of the state is read; the others hold nothing.

        Raises:
          PlmjaxError: the checkpoint holds another model.
        """
        from orbax.checkpoint import v1 as ocp

        ours, theirs = _leaves(abstract), self.meta(step)["leaves"]
        differing = [
            f"{name} is {theirs.get(name, 'missing')}, not {ours.get(name, 'known')}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if differing:
            raise PlmjaxError(
                f"the checkpoint of step {step} in {self.directory} is of another "
                f"model: {len(differing)} leaves differ, first {differing[0]}.",
                hint="Use the config it was trained with.",
                code=Exit.MODEL,
            )
        if only is not None:
            abstract = abstract._replace(
                **{
                    field: jax.tree.map(lambda _: ocp.PLACEHOLDER, value)
                    for field, value in abstract._asdict().items()
                    if field != only
                }
            )
        return ocp.load(str(self.path(step) / "state"), abstract)
