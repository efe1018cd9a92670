"""What ends a run before its time: signals, and steps that do not come back."""

import contextlib
import faulthandler
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from plmjax import Exit

# Steps may end before this one that were handed out before it compiled; and another
# process, which compiles for longer, is waited for only when their results are read.
_ON_THEIR_WAY = 5


class Stop:
    """Turns Ctrl-C, SIGTERM and SIGUSR2 into a flag; a second Ctrl-C interrupts.

    Handlers are installed within `with`, in the main thread, and put back after it.
    With several processes SIGTERM belongs to jax, whose preemption service lets all of
    them stop after the same step; the other signals become a SIGTERM.
    """

    def __init__(self):
        self.received: str | None = None
        self._several = jax.process_count() > 1
        self._asked = False
        self._old: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            numbers = {signal.SIGINT, signal.SIGUSR2}
            # A handler in Python would take the signal away from jax.
            numbers |= set() if self._several else {signal.SIGTERM}
            for number in numbers:
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number, _frame):
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        # Not print(): the signal may have come in the midst of one.
        os.write(2, b"\nStopping after this step; Ctrl-C again stops at once.\n")
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.received = signal.Signals(number).name

    def due(self, step: int) -> bool:
        """Says whether to stop before this step; every process asks at each step."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            self.received = "SIGTERM"
        return self.received is not None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets a signal that would interrupt wait until the block is done; a second acts.

    Orbax reads in threads with an event loop; broken off, they print tracebacks.
    """
    old: dict[int, Callable] = {}
    waiting: list[int] = []

    def receive(number, frame):
        if waiting:
            old[number](number, frame)
        waiting.append(number)

    numbers = [signal.SIGINT, signal.SIGUSR2]
    if jax.process_count() == 1:
        # Else it is jax's, below Python, which would not give it back.
        numbers.append(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            # What is no function ends the process.
            if callable(handler := signal.getsignal(number)):
                old[number] = handler
                signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        for number in waiting[:1]:
            old[number](number, None)


class Watchdog:
    """Ends the process with exit code 75 when the run has not moved for too long.

    A peer that is alive but stuck, or a device that does not answer, would else be
    waited for, for ever. `seconds` is the least patience; steps that are slow by nature
    stretch it to ten times their median. What compiles, as the first step does, has
    `first` times the patience. `record` gets the stacks of all threads.
    """

    def __init__(
        self,
        seconds: float | None,
        record: Path,
        end: Callable[[int], Any] = os._exit,
        first: float = 10.0,
    ):
        self._seconds, self._record, self._end, self._first = (
            seconds,
            record,
            end,
            first,
        )
        self._took: deque[float] = deque(maxlen=100)
        self._moved = time.monotonic()
        self._step = 0
        self._compiling = _ON_THEIR_WAY
        self._resting = False
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self):
        if self._seconds is not None:
            self._moved = time.monotonic()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def moved(self, step: int | None = None) -> None:
        """Says that the run lives: a step is done, or a part of other work."""
        now = time.monotonic()
        if step is not None:
            if self._compiling:
                self._compiling -= 1
            else:
                self._took.append(now - self._moved)
            self._step = step
        self._moved = now

    def compiles(self) -> None:
        """Says that what comes next compiles, here or in a process waited for."""
        self._compiling = _ON_THEIR_WAY

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Within it nothing counts as a hang: a wait that has a limit of its own."""
        self._resting = True
        try:
            yield
        finally:
            self.moved()
            self._resting = False

    def patience(self) -> float:
        """Returns the seconds after which the run counts as hung."""
        assert self._seconds is not None
        slow = 10 * statistics.median(self._took) if self._took else 0.0
        return max(self._seconds * (self._first if self._compiling else 1), slow)

    def _watch(self) -> None:
        assert self._seconds is not None
        while not self._done.wait(min(1.0, self._seconds / 10)):
            stuck = time.monotonic() - self._moved
            if not self._resting and stuck > self.patience():
                self._give_up(stuck)
                return

    def _give_up(self, stuck: float) -> None:
        message = (
            f"error: nothing has moved for {stuck:,.0f} s after step {self._step:,} "
            f"(process {jax.process_index()} of {jax.process_count()}): a device or "
            f"another process hangs. {self._record} has the stacks of all threads. "
            "The same command goes on from the last checkpoint.\n"
        )
        try:
            with open(self._record, "w") as file:
                file.write(message)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        os.write(2, message.encode())
        # Not sys.exit: the main thread would go on waiting, and so would jax's own end.
        self._end(int(Exit.RESUMABLE))
