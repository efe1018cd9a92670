"""Tasks for processes that import them: they count themselves, die, or do nothing."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from plmjax.data.stages import Executor


class Watched(NamedTuple):
    """A task that notes in `folder` that it ran; one rank of it fails the first time.

    `how` is "kill", "nothing" (it ends without having worked), or "".
    """

    task: Callable[[int], Any]
    folder: Path
    rank: int
    how: str

    def __call__(self, rank: int) -> None:
        first = not (self.folder / f"ran-{rank}").exists()
        with open(self.folder / f"ran-{rank}", "a") as file:
            file.write("x")
        if rank == self.rank and first and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == self.rank and first and self.how == "nothing":
            return
        self.task(rank)


class Watching(NamedTuple):
    """An executor whose tasks are watched."""

    executor: Executor
    folder: Path
    rank: int = -1
    how: str = ""

    def run(self, task: Callable[[int], Any], tasks: int, folder: Path) -> None:
        """Runs the tasks."""
        watched = Watched(task, self.folder, self.rank, self.how)
        self.executor.run(watched, tasks, folder)

    def ran(self) -> dict[int, int]:
        """Returns how often each rank ran."""
        paths = self.folder.glob("ran-*")
        return {int(p.name[4:]): p.stat().st_size for p in sorted(paths)}
