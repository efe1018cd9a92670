"""Runs a group of processes on this machine that all end together.

The first that fails ends the others. A signal to this process is forwarded to all, and
they die with it. Their output appears line by line, marked with their numbers.
"""

import contextlib
import dataclasses
import functools
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from plmjax import children, counted
from plmjax.launch.command import RESTARTABLE, log

_LINUX = sys.platform == "linux"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds between checks of the processes, and to wait for their last output.
_LOOK_SECONDS = 0.05
_DRAIN_SECONDS = 1.0
# Longer lines are broken, so that an endless line does not fill the memory.
_LONGEST_LINE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Process:
    """A command and its complete environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Ended:
    """Result of a group.

    `codes` are those of the processes, 128 + n for one that signal n killed. `first` is
    the number of the process that failed first, None without a failure. `stopped` names
    the signal that this process received and forwarded.
    """

    codes: tuple[int, ...]
    first: int | None
    stopped: str | None

    @property
    def code(self) -> int:
        """The exit code of the first failure, 0 without one."""
        return 0 if self.first is None else self.codes[self.first]


def describe(code: int) -> str:
    """Returns in words how a process ended, from its exit code."""
    if code <= 128:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(code - 128).name} (exit code {code})"
    return f"ended with exit code {code}"


def run_group(
    processes: Sequence[Process],
    grace_seconds: float,
    out: BinaryIO | None = None,
    err: BinaryIO | None = None,
) -> Ended:
    """Runs the processes until all have ended; call it from the main thread.

    After the first failure, or a signal to this process, the others get SIGTERM, and
    `grace_seconds` later SIGKILL, with all their children. A second signal kills.
    """
    with contextlib.ExitStack() as stack:
        received = stack.enter_context(_signals())
        streams = out or sys.stdout.buffer, err or sys.stderr.buffer
        output = stack.enter_context(_Output(*streams))
        children = [
            stack.enter_context(_Child(number, process, output))
            for number, process in enumerate(processes)
        ]
        first, stopped, deadline, killed = None, None, None, False
        while alive := [child for child in children if child.code is None]:
            output.pump(_LOOK_SECONDS)
            if output.broken and not received:
                received.append("a reader of the output that left")
            failed = [child for child in alive if child.look()]
            if failed and first is None:
                # If several fail at once, a restartable code is likely a consequence.
                failed.sort(key=lambda child: (child.code in RESTARTABLE, child.number))
                first = failed[0].number
            ask = None
            if received and stopped is None:
                stopped = ask = received[0]
            elif first is not None and deadline is None:
                ask = f"process {first}, which {describe(children[first].code or 0)}"
            alive = [child for child in alive if child.code is None]
            if ask is not None and alive:
                deadline = time.monotonic() + grace_seconds
                log(
                    f"Stopping {counted(len(alive), 'process', 'es')} because of "
                    f"{ask}; SIGKILL follows in {grace_seconds:g} s."
                )
                for child in alive:
                    child.terminate()
            late = deadline is not None and time.monotonic() > deadline
            if alive and not killed and (late or len(received) > 1):
                killed = True
                log(f"Killing {counted(len(alive), 'process', 'es')}.")
                for child in alive:
                    child.kill()
        output.drain(_DRAIN_SECONDS)
    codes = tuple(child.code or 0 for child in children)
    return Ended(codes, first, stopped)


@contextlib.contextmanager
def _signals():
    """Yields a list that collects the names of signals to this process."""
    received: list[str] = []

    def receive(number, _frame):
        received.append(signal.Signals(number).name)

    old = {number: signal.signal(number, receive) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class _Child:
    """A process and its descendants; those that still run at the end are killed."""

    def __init__(self, number: int, process: Process, output: "_Output"):
        self.number = number
        self.code: int | None = None
        self._process = subprocess.Popen(
            process.argv,
            env=process.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # So only the launcher gets Ctrl-C, and can kill descendants, too.
            start_new_session=True,
            preexec_fn=functools.partial(_begin, os.getpid()) if _LINUX else None,
        )
        assert self._process.stdout and self._process.stderr
        output.add(self._process.stdout, number, is_error=False)
        output.add(self._process.stderr, number, is_error=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # The process id is not reused before wait(), so this kills no other process.
        self.kill()
        self._process.wait()

    def look(self) -> bool:
        """Notes the exit code of an ended process; returns True if it is not zero."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        status = os.waitid(os.P_PID, self._process.pid, flags)
        if status is not None:
            killed = status.si_code != os.CLD_EXITED
            self.code = status.si_status + (128 if killed else 0)
        return bool(self.code)

    def terminate(self) -> None:
        # Only the process itself: it may need its children while it saves.
        os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        children.kill_group(self._process)


def _begin(parent: int) -> None:
    """Runs in a child process before its command starts."""
    if not children.die_with(parent, signal.SIGKILL):
        os._exit(1)


class _Output:
    """Forwards the output of processes line by line, each with its process's number."""

    def __init__(self, out: BinaryIO, err: BinaryIO):
        self._to = {False: out, True: err}
        self._selector = selectors.DefaultSelector()
        self.broken = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for key in list(self._selector.get_map().values()):
            self._end(key)
        self._selector.close()

    def add(self, pipe, number: int, is_error: bool) -> None:
        """Forwards a pipe from now on, to stderr if `is_error`, else to stdout."""
        os.set_blocking(pipe.fileno(), False)
        mark = (b"[%d] " % number, is_error, bytearray())
        self._selector.register(pipe, selectors.EVENT_READ, mark)

    def pump(self, seconds: float) -> bool:
        """Forwards new output, waiting at most `seconds`; returns whether any came."""
        if not self._selector.get_map():
            time.sleep(seconds)
            return False
        ready = self._selector.select(seconds)
        for key, _ in ready:
            chunk = os.read(key.fd, 1 << 16)
            if not chunk:
                self._end(key)
                continue
            buffer = key.data[2]
            buffer += chunk
            *lines, partial = bytes(buffer).split(b"\n")
            if len(partial) > _LONGEST_LINE:
                lines, partial = [*lines, partial], b""
            buffer[:] = partial
            self._write(key, lines)
        return bool(ready)

    def drain(self, seconds: float) -> None:
        """Forwards the remaining output; a descendant may hold a pipe open."""
        until = time.monotonic() + seconds
        while self._selector.get_map() and time.monotonic() < until:
            self.pump(_LOOK_SECONDS)

    def _end(self, key) -> None:
        self._selector.unregister(key.fileobj)
        key.fileobj.close()
        if key.data[2]:
            self._write(key, [bytes(key.data[2])])

    def _write(self, key, lines: list[bytes]) -> None:
        mark, is_error, _ = key.data
        if not lines or self.broken:
            return
        stream = self._to[is_error]
        try:
            stream.write(b"".join(mark + line + b"\n" for line in lines))
            stream.flush()
        except BrokenPipeError:
            self.broken = True
