"""Early end of a run: by signals, and by a watchdog for steps that hang."""

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

from plmjax import RESUME, Exit

# While a step compiles, steps dispatched before it may end; and the wait for another
# process that compiles for longer begins only when their results are read.
_ON_THEIR_WAY = 5

_STOPPING = (
    b"\nStopping after this step, which is saved; Ctrl-C again stops at once, without "
    b"saving it.\n"
)


class Stop:
    """Turns Ctrl-C, SIGTERM and SIGUSR2 into a flag; a second Ctrl-C interrupts.

    Handlers are installed within `with`, in the main thread, and restored after it.
    With several processes jax handles SIGTERM: its preemption service stops all of them
    after the same step; the other signals are turned into a SIGTERM.
    """

    def __init__(self):
        self.received: str | None = None
        self._several = jax.process_count() > 1
        self._asked = False
        self._old: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            numbers = {signal.SIGINT, signal.SIGUSR2}
            # A handler in Python would replace jax's.
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
        # Not print(): the signal may have interrupted one.
        os.write(2, _STOPPING)
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.received = signal.Signals(number).name

    def due(self, step: int) -> bool:
        """Returns True to stop before this step; all processes call it at each step."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            self.received = "SIGTERM"
        return self.received is not None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Defers a signal until the end of the block; a second signal acts at once.

    Orbax reads in threads with an event loop, which print tracebacks if interrupted.
    """
    old: dict[int, Callable] = {}
    waiting: list[int] = []

    def receive(number, frame):
        if waiting:
            old[number](number, frame)
        waiting.append(number)

    numbers = [signal.SIGINT, signal.SIGUSR2]
    if jax.process_count() == 1:
        # With several processes jax has a C++ handler, which could not be restored.
        numbers.append(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            # Without a Python handler the signal keeps its default effect.
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

    Otherwise the run would wait for ever for a stuck peer or a device that does not
    answer. `seconds` is the least timeout; slow steps extend it to ten times their
    median, and work that compiles, such as the first step, has `first` times the
    timeout. The stacks of all threads are written to `record`.
    """

    def __init__(
        self,
        seconds: float | None,
        record: Path,
        end: Callable[[int], Any] = os._exit,
        first: float = 10.0,
    ):
        self._seconds, self._record = seconds, record
        self._end, self._first = end, first
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
        """Reports progress: a step is done, or a part of other work."""
        now = time.monotonic()
        if step is not None:
            if self._compiling:
                self._compiling -= 1
            else:
                self._took.append(now - self._moved)
            self._step = step
        self._moved = now

    def compiles(self) -> None:
        """Announces that the next work compiles, here or in another process."""
        self._compiling = _ON_THEIR_WAY

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Context manager that suspends the watchdog, for waits with another limit."""
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
            f"{RESUME}\n"
        )
        try:
            with open(self._record, "w") as file:
                file.write(message)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        os.write(2, message.encode())
        # Not sys.exit: the main thread would continue to wait, as would jax's shutdown.
        self._end(int(Exit.RESUMABLE))
