"""The clock of a training that ends at a time, not at a step."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass
class Clock:
    """Seconds for a whole command, and those to keep for what follows the last step.

    `began` is the time.monotonic() at which the command began; `write` stores the ends
    that were aimed at (train.schedule.ends).
    """

    seconds: float
    began: float
    after: float = 0.0
    write: Callable[[tuple], Any] = lambda ends: None
    # Seconds of one step, and of the last pause (evaluation and checkpoint).
    step: float | None = None
    pause: float = 0.0

    def spent(self) -> float:
        """Returns the seconds since the command began, those of earlier starts too."""
        return time.monotonic() - self.began

    def left(self) -> float:
        """Returns the seconds left for training."""
        return self.seconds - self.after - self.spent()

    def measured(self, seconds: float, steps: int) -> None:
        """Takes the time of the last steps into account, which counts half."""
        new = seconds / steps
        self.step = new if self.step is None else (self.step + new) / 2

    def steps_left(self, every: int) -> int:
        """Returns the number of steps until the end; each `every` steps is a pause."""
        assert self.step is not None
        left = self.left() - self.pause  # the last one
        return max(int(left / (self.step + self.pause / every)), 1)
