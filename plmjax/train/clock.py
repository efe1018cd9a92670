"""The clock of a training that ends at a time, not at a step."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from plmjax.console import duration

# What another start of the run goes on with.
_KEPT = ("after", "step", "pause", "save", "planned")


@dataclasses.dataclass
class Clock:
    """Seconds for a whole command, and those to keep for what follows the last step.

    `began` is the time.monotonic() at which the command began; `write` stores the ends
    that were aimed at (train.schedule.ends), and the clock's `record`.
    """

    seconds: float
    began: float
    after: float = 0.0
    write: Callable[[tuple], Any] = lambda ends: None
    # Seconds of one step, of the last evaluation, and of the last checkpoint alone.
    step: float = 0.0
    pause: float = 0.0
    save: float = 0.0
    planned: float = 0.0  # steps, before any of them

    def spent(self) -> float:
        """Returns the seconds since the command began, those of earlier starts too."""
        return time.monotonic() - self.began

    def left(self) -> float:
        """Returns the seconds left for training."""
        return self.seconds - self.after - self.spent()

    def record(self) -> dict[str, float]:
        """Returns what another start of the run goes on with."""
        return {"spent": self.spent()} | {name: getattr(self, name) for name in _KEPT}

    def resume(self, record: Mapping[str, float]) -> None:
        """Goes on with the record of the last start."""
        self.began -= record["spent"]
        vars(self).update({name: record[name] for name in _KEPT})

    def used(self, done: int) -> str:
        """Returns a sentence on the time and the steps of the budget."""
        spent, seconds = duration(self.spent()), duration(self.seconds)
        steps = f"{done:,} steps done, {self.planned:,.0f} planned"
        return f"The budget: {spent} of {seconds} are used; {steps}."

    def measured(self, seconds: float, steps: int) -> None:
        """Takes the time of the last steps into account, which counts half."""
        self.step = (self.step + seconds / steps) / 2

    def steps_left(self, evaluate_every: int, save_every: int) -> int:
        """Returns the number of steps until the end, of which some are pauses."""
        left = self.left() - self.pause  # the last one
        each = self.step + self.pause / evaluate_every + self.save / save_every
        return max(int(left / each), 1)
