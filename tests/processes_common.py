"""Several real processes on this machine, as one training: started, watched, ended.

    with start(2, 2, "-m", "plmjax", "pretrain", *TINY) as group:
        group.wait_for("Going on", timeout=60)
        group.kill(1)
        finished = group.finish(timeout=60)

`spawn` is that in one call. Processes find each other by the environment, which
plmjax.processes reads; a program of a test calls its `initialise()` first.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import plmjax
from plmjax.children import free_port

# What a process finds first: the plmjax of this checkout, and the tests' own modules.
ROOTS = (Path(plmjax.__file__).parents[1], Path(__file__).parent)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that ended: its exit code (negative: the signal) and its output."""

    code: int
    output: str


def environment(
    index: int, processes: int, devices: int, port: int, **more: str
) -> dict[str, str]:
    """Returns the environment of one process; alone, it is told of no others."""
    paths = [*map(str, ROOTS), os.environ.get("PYTHONPATH", "")]
    found = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        # With fewer threads collectives between virtual devices hang on few cores.
        "NPROC": "32",
        "TERM": "dumb",
    }
    if processes > 1:
        found |= {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "PLMJAX_NUM_PROCESSES": str(processes),
            "PLMJAX_PROCESS_ID": str(index),
            "PLMJAX_HEARTBEAT_SECONDS": "10",
        }
    return found | more


class Group:
    """Processes of one training, each in a process group of its own."""

    def __init__(
        self, processes: int, devices: int, arguments: tuple, folder: Path, more: dict
    ):
        port = free_port()
        self._outputs = [folder / f"{index}.txt" for index in range(processes)]
        self.processes = []
        for index, path in enumerate(self._outputs):
            with open(path, "wb") as file:  # A pipe would fill up unread.
                process = subprocess.Popen(
                    [sys.executable, *map(str, arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment(index, processes, devices, port, **more),
                    start_new_session=True,
                )
            self.processes.append(process)

    def output(self, index: int) -> str:
        """Returns what a process has written so far, to stdout and stderr."""
        return self._outputs[index].read_text(errors="replace")

    def send(self, index: int, number: int) -> None:
        """Sends a signal to one process alone, if it still runs."""
        if self.processes[index].poll() is None:
            self.processes[index].send_signal(number)

    def kill(self, index: int) -> None:
        """Kills one process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[index].pid, signal.SIGKILL)
        self.processes[index].wait()

    def wait_for(self, text: str, index: int = 0, timeout: float = 60) -> None:
        """Returns once a process has written a text; fails if it ends without it."""
        end = time.monotonic() + timeout
        while True:
            running = self.processes[index].poll() is None
            if text in self.output(index):
                return
            if not running or time.monotonic() > end:
                raise AssertionError(
                    f"process {index} did not write {text!r} within {timeout} s:\n"
                    + self.all_output()
                )
            time.sleep(0.02)

    def finish(self, timeout: float = 90) -> list[Finished]:
        """Returns the ended processes; one that runs for longer is a failure."""
        end = time.monotonic() + timeout
        for process in self.processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.end()
                raise AssertionError(
                    f"not done within {timeout} s:\n{self.all_output()}"
                ) from None
        return [
            Finished(process.returncode, self.output(index))
            for index, process in enumerate(self.processes)
        ]

    def all_output(self) -> str:
        """Returns every process's output under a heading, for a failure's message."""
        return "\n".join(
            f"--- process {index}, exit code {process.poll()}\n{self.output(index)}"
            for index, process in enumerate(self.processes)
        )

    def end(self) -> None:
        """Kills whatever still runs."""
        for index in range(len(self.processes)):
            self.kill(index)


@contextlib.contextmanager
def start(
    processes: int, devices: int, *arguments, **environment: str
) -> Iterator[Group]:
    """Starts `python *arguments` n times, with so many virtual devices each.

    Whatever happens within the block, no process outlives it.
    """
    with tempfile.TemporaryDirectory(prefix="plmjax-group-") as folder:
        group = Group(processes, devices, arguments, Path(folder), environment)
        try:
            yield group
        finally:
            group.end()


def spawn(
    processes: int, devices: int, *arguments, timeout: float = 90, **environment: str
) -> list[Finished]:
    """Runs `python *arguments` in n processes to their end.

    Raises:
      AssertionError: they were not done in time; all of them are killed.
    """
    with start(processes, devices, *arguments, **environment) as group:
        return group.finish(timeout)


def succeed(processes: int, devices: int, *arguments, **more) -> list[str]:
    """Returns each process's output of a `spawn` in which all must end with 0."""
    found = spawn(processes, devices, *arguments, **more)
    said = "\n".join(
        f"--- {i}, exit code {p.code}\n{p.output}" for i, p in enumerate(found)
    )
    assert all(process.code == 0 for process in found), said
    return [process.output for process in found]
