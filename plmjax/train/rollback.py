"""Bad steps: how a spike is detected, and which batches a run then leaves out."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

# The number of last losses that a loss is compared with, and the least number needed.
WINDOW = 128
_ENOUGH = 32


@dataclasses.dataclass(frozen=True)
class BadStep:
    """A step to be undone: its number, from 1, and the reason."""

    step: int
    reason: str


def spike(losses: Sequence[float], loss: float, sigmas: float) -> str | None:
    """Returns the reason why a loss is a spike among the losses before; None if not.

    The spread is estimated from the median deviation, which earlier spikes do not move.
    """
    if len(losses) < _ENOUGH or not math.isfinite(loss):
        return None
    middle = statistics.median(losses)
    deviation = 1.4826 * statistics.median(abs(x - middle) for x in losses)
    # A floor, since the losses of a tiny memorised text hardly vary.
    limit = middle + sigmas * max(deviation, 1e-3 * abs(middle))
    if loss <= limit:
        return None
    return (
        f"the loss is {loss:.4g}, over {limit:.4g}: {sigmas:g} standard deviations "
        f"above the median of the last {len(losses)}"
    )


def skipped_batches(skips: Iterable[Sequence[int]], step: int) -> int:
    """Returns the number of batches left out before the batch of a step.

    `skips` are pairs (step, n): from this step on, n batches are left out.
    """
    return sum(count for first, count in skips if step >= first)


def with_skip(skips: Iterable[Sequence[int]], entry: Sequence[int]) -> list[list[int]]:
    """Returns `skips` with a new entry, so that all skipped batches stay left out.

    The new entry shifts later batches, so the steps of later entries shift with them.
    """
    first, count = entry
    moved = [[at if at < first else max(first, at - count), n] for at, n in skips]
    return [*moved, list(entry)]


def skip(bad: BadStep, restored: int, batches: int) -> list[int]:
    """Returns the entry of `skips` after a rollback to the checkpoint of a step.

    It leaves out the batches up to the bad one, but none before the checkpoint.
    """
    first = max(restored, bad.step - batches)
    return [first, bad.step - first]
