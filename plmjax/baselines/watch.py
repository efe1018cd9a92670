"""The time that simple models may take together, and lines on their progress."""

import time
from collections.abc import Callable

from plmjax.console import ignore_line

_EVERY_SECONDS = 10.0  # between two lines of progress
_SURE_SECONDS = 3.0  # work is not judged by its first seconds, which compile


class OutOfTime(Exception):
    """The current model would not be ready in time."""


class Watch:
    """Limits the work on simple models to `seconds` in all (None: no limit).

    The work calls `progress` or `need`, which raise OutOfTime as soon as its end is
    foreseen to be too late. `left_out` names the models given up. `log` gets a line
    every ten seconds.
    """

    def __init__(self, seconds: float | None = None, log: Callable = ignore_line):
        self.seconds, self.left_out = seconds, []
        self._log = log
        self._began = time.monotonic()
        self._name: str | None = None
        self._shown = self._work = self._began

    def begin(self, name: str | None) -> None:
        """Sets the name of the model that is fitted next; None ends the limit."""
        self._name = name

    def need(self, seconds: float = 0.0) -> None:
        """Raises OutOfTime if less than `seconds` are left."""
        if self.seconds is not None and self._name is not None:
            if self._began + self.seconds - time.monotonic() <= seconds:
                raise OutOfTime

    def progress(self, what: str, done: int, total: int) -> None:
        """Takes the progress of one piece of work, at first done=0.

        Raises OutOfTime if the work will not be done in time at this speed.
        """
        now = time.monotonic()
        if done == 0:
            self._work = self._shown = now
        spent = now - self._work
        left = spent * (total - done) / max(done, 1)
        self.need(left if spent > _SURE_SECONDS else 0.0)
        if self._name is not None and now - self._shown > _EVERY_SECONDS:
            self._shown = now
            self._log(f"  {self._name}: {what}, {done / total:.0%}, {left:.0f} s left")
