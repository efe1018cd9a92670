"""Work in tasks on this machine, Slurm or Ray, by datatrove (extra plmjax[data]).

datatrove notes in FOLDER/completions which tasks are done, so that a second run does
only the others. A task that fails, or ends without having done its work, is an error.
"""

import contextlib
import functools
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from plmjax import Exit, PlmjaxError
from plmjax.data.parallel import ordered_map
from plmjax.machine import cores

AGAIN = "Run the same command again: it does only what is missing."


class Executor(NamedTuple):
    """Where tasks run, and how many at a time (None: local one per core, else all)."""

    kind: str
    workers: int | None = None
    sbatch: Mapping[str, str] = {}  # options of sbatch: {"partition": "cpu"}

    def check(self) -> None:
        """Raises PlmjaxError if what it needs is not installed, or an option lacks."""
        for module, extra in (("datatrove", "plmjax[data]"), ("ray", "datatrove[ray]")):
            needed = module == "datatrove" or self.kind == "ray"
            if needed and importlib.util.find_spec(module) is None:
                raise PlmjaxError(
                    f"--executor={self.kind} needs {module}, which is not installed.",
                    hint=f"pip install '{extra}'",
                )
        if self.kind != "slurm" and self.sbatch:
            raise PlmjaxError(f"--executor={self.kind} has no --sbatch.")
        if self.kind == "slurm" and shutil.which("sbatch") is None:
            raise PlmjaxError("`sbatch` is not on this machine's PATH.")
        if self.kind == "slurm" and not {"time", "partition"} <= self.sbatch.keys():
            raise PlmjaxError(
                "--executor=slurm needs a partition and a limit of time.",
                hint="Give --sbatch=partition=cpu --sbatch=time=4:00:00.",
            )

    def run(self, task: Callable[[int], Any], tasks: int, folder: Path) -> None:
        """Runs task(0) to task(tasks - 1), but those that are done, and waits.

        `task` can be pickled. `folder` is seen by all machines and receives logs; what
        Slurm runs is a pickle in it, so nobody else may write there.

        Raises:
          PlmjaxError: a task failed or was killed; all that is done is kept.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        given: dict[str, Any] = {
            "pipeline": [_Step(task)],
            "tasks": tasks,
            "logging_dir": str(folder),
        }
        try:
            missing = self._run(given, tasks)
        except BrokenProcessPool:
            raise PlmjaxError(
                "A worker was killed, perhaps because the memory was exhausted.",
                hint=f"{AGAIN} Fewer --workers need less memory.",
                code=Exit.DISK,
            ) from None
        except subprocess.CalledProcessError as error:
            raise PlmjaxError(
                f"sbatch ended with {error.returncode}: a task failed, or was refused.",
                hint=f"Look into {folder}/slurm_logs. {AGAIN}",
            ) from None
        if missing:
            raise PlmjaxError(
                f"{len(missing):,} of {tasks:,} tasks are not done "
                f"({', '.join(map(str, missing[:10]))}).",
                hint=f"Look into {folder}/logs. {AGAIN}",
                code=Exit.DATA,
            )

    def _run(self, given: dict[str, Any], tasks: int) -> list[int]:
        """Runs the tasks by datatrove; returns those that are not done."""
        if self.kind == "local":
            from datatrove.executor.local import LocalPipelineExecutor

            executor = LocalPipelineExecutor(**given, workers=1)
            # Its own pool would wait for ever for a worker that was killed.
            workers = min(self.workers or cores(), tasks)
            todo = executor.get_incomplete_ranks()
            run = functools.partial(_run_quietly, executor)
            for _ in ordered_map(run, todo, workers):
                pass
        elif self.kind == "ray":
            from datatrove.executor.ray import RayPipelineExecutor

            executor = RayPipelineExecutor(**given, workers=self.workers or -1)
            executor.run()
        else:
            from datatrove.executor.slurm import SlurmPipelineExecutor

            executor = SlurmPipelineExecutor(
                **given,
                workers=self.workers or -1,
                time=self.sbatch["time"],
                partition=self.sbatch["partition"],
                qos="",
                job_name="plmjax",
                env_command=f'export PATH="{os.path.dirname(sys.executable)}:$PATH"',
                # sbatch returns when the job has ended.
                sbatch_args={**self.sbatch, "wait": ""},
            )
            executor.run()
        return executor.get_incomplete_ranks()


class _Step:
    """A task as a step of datatrove's pipelines."""

    def __init__(self, task: Callable[[int], Any]):
        self._task = task

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        self._task(rank)


def _run_quietly(executor: Any, rank: int) -> None:
    # Errors are in the logs, and are raised.
    with contextlib.redirect_stderr(io.StringIO()):
        executor._run_for_rank(rank, local_rank=1)
