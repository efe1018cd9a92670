"""Works on a corpus in tasks, each on some of its files.

Parts that are joined in the order of the files give, byte for byte, what one process
gives, whatever the number of tasks.
"""

import dataclasses
import functools
import glob
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import PlmjaxError, counted
from plmjax.data.archives import size_of
from plmjax.data.corpus import Source
from plmjax.data.sources import part_of
from plmjax.data.stages import AGAIN, Executor
from plmjax.files import replacing_folder


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Writes parts of a source by an executor, in folders BASE-KEY-TASKS/00000, ..."""

    base: Path
    executor: Executor
    tasks: int
    log: Callable[[str], Any]

    def __call__(
        self,
        source: Source,
        key: str,
        write: Callable[[Source, Path], Any],
        check: Callable[[Path], Any],
    ) -> list[Path]:
        """Returns the folders of all parts in their order, as `write` wrote them.

        Parts of an earlier call with the same key and number of tasks are kept. `write`
        can be pickled; `check` raises PlmjaxError for a part that is not whole.

        Raises:
          PlmjaxError: the source has no files; a task failed or left no whole part.
        """
        bounds = divide(source, self.tasks)
        count = len(bounds) - 1
        if count < self.tasks:
            self.log(
                f"{counted(count, 'task')}, not {self.tasks:,}: a task has one file or "
                "more. Split large files to use more."
            )
        work = Path(f"{self.base.absolute()}-{key}-{count}")
        for other in self.base.parent.glob(f"{glob.escape(self.base.name)}-*"):
            if other.name != work.name:
                shutil.rmtree(other)
        # Tasks may begin in another folder.
        openings = tuple(
            (config, corpus._replace(files=[path.absolute() for path in corpus.files]))
            for config, corpus in source.openings
        )
        task = functools.partial(_write, work, openings, write, bounds)
        self.executor.run(task, count, work / "run")
        folders = [work / f"{rank:05d}" for rank in range(count)]
        for rank, folder in enumerate(folders):
            try:
                check(folder)
            except PlmjaxError as error:
                done = work / "run" / "completions" / folder.name
                done.unlink(missing_ok=True)
                error.hint = f"Task {rank} ended without an error. {AGAIN}"
                raise
        return folders


def divide(source: Source, tasks: int) -> list[int]:
    """Returns the first file of each task, and the end: about equal bytes each.

    Raises:
      PlmjaxError: the source has no files to divide, or only the first documents count.
    """
    if any(config.max_documents is not None for config, _ in source.openings):
        raise PlmjaxError(
            "A source with data.source.max_documents is not divided into tasks.",
            hint="Leave out --executor and --tasks, or the limit.",
        )
    files = [path for _, corpus in source.openings for path in corpus.files]
    if not files:
        raise PlmjaxError(
            f"A source of kind {source.description['kind']} is not divided into tasks.",
            hint="Leave out --executor and --tasks, or write it to parquet files.",
        )
    sizes = np.array([max(size_of(path), 1) for path in files])
    task = (np.cumsum(sizes) - sizes) * tasks // sizes.sum()
    return [*np.flatnonzero(np.diff(task, prepend=-1)).tolist(), len(files)]


def _write(
    work: Path,
    openings: tuple,
    write: Callable[[Source, Path], Any],
    bounds: list[int],
    rank: int,
) -> None:
    # The tasks of a machine are processes already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    source = part_of(openings, bounds[rank], bounds[rank + 1])
    with replacing_folder(work / f"{rank:05d}") as folder:
        write(source, folder)
