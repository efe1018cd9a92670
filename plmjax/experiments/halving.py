"""Early stopping of trials, by their evaluations so far.

Successive halving without waiting, ASHA (arXiv:1810.05934) in its stopping form: a
trial that reaches a rung is compared with those that reached it before, and ends unless
it is among the best of them.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

Curve = dict[int, float]  # {step: objective}


def falls_behind(
    curve: Curve, others: Iterable[Curve], first: int, factor: int, maximise: bool
) -> bool:
    """Whether a trial's newest evaluation reaches a rung and should be its last.

    Rungs are at first, first x factor, first x factor^2 ... steps, each the first
    evaluation from there on. No trial ends at a rung that fewer than `factor` trials
    have reached; of n, the best n // factor continue.
    """
    *earlier, newest = sorted(curve)
    if not math.isfinite(curve[newest]):
        return True
    rung, previous = first, max(earlier, default=0)
    if newest < rung:
        return False
    while rung * factor <= newest:
        rung *= factor
    if previous >= rung:
        return False  # compared at this rung already
    seen = [_at(other, rung) for other in others]
    sign = -1 if maximise else 1
    finite = [sign * v for v in seen if v is not None and math.isfinite(v)]
    lost = sum(v is not None and not math.isfinite(v) for v in seen)
    count = len(finite) + lost + 1
    if count < factor:
        return False
    better = sum(value < sign * curve[newest] for value in finite)
    return better >= max(1, count // factor)


def _at(curve: Curve, rung: int) -> float | None:
    """Returns the first value at or after a rung; None if it was not reached."""
    reached = [step for step in curve if step >= rung]
    return curve[min(reached)] if reached else None


class Follower:
    """Reads the evaluations that a run appends to its metrics.jsonl, each once."""

    def __init__(self, path: Path):
        self.path = path
        self._position = (0, 0)  # inode, offset

    def read(self) -> list[dict]:
        """Returns the evaluations since the last call.

        Returns all of them after a restart of the run that wrote the file again.
        """
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                inode, offset = self._position
                if inode != status.st_ino or status.st_size < offset:
                    offset = 0
                file.seek(offset)
                complete, _, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._position = (status.st_ino, offset + len(complete) + bool(complete))
        # Most lines are of training steps, which need no parsing.
        lines = (line for line in complete.splitlines() if b'"evaluation"' in line)
        return [json.loads(line) for line in lines]
