"""Bad steps: how one is told from noise, and which batches a run then does without."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence

# Losses that a spike is measured against, and how many there must be.
WINDOW = 128
_ENOUGH = 32


@dataclasses.dataclass(frozen=True)
class BadStep:
    """A step that must not stand: its number, from 1, and what was wrong with it."""

    step: int
    reason: str


def spike(losses: Sequence[float], loss: float, sigmas: float) -> str | None:
    """Returns what makes a loss a spike beside those before it; None if nothing does.

    The spread is estimated from the median deviation, which earlier spikes do not move.
    """
    if len(losses) < _ENOUGH or not math.isfinite(loss):
        return None
    middle = statistics.median(losses)
    deviation = 1.4826 * statistics.median(abs(x - middle) for x in losses)
    # Losses that hardly vary, as of a tiny text learnt by heart, still may by this.
    limit = middle + sigmas * max(deviation, 1e-3 * abs(middle))
    if loss <= limit:
        return None
    return (
        f"the loss is {loss:.4g}, over {limit:.4g}: {sigmas:g} standard deviations "
        f"above the median of the last {len(losses)}"
    )


def batches_ahead(skips: Iterable[Sequence[int]], step: int) -> int:
    """Returns how many batches were left out before the one of a step.

    `skips` are (step, batches): from this step on, so many batches are left out.
    """
    return sum(count for first, count in skips if step >= first)


def with_skip(skips: Iterable[Sequence[int]], entry: Sequence[int]) -> list[list[int]]:
    """Returns `skips` and one more, after which no step reads what was left out.

    Batches move up by the new entry, and so do the places of older ones behind it.
    """
    first, count = entry
    moved = [[at if at < first else max(first, at - count), n] for at, n in skips]
    return [*moved, list(entry)]


def skip(bad: BadStep, restored: int, batches: int) -> list[int]:
    """Returns the entry of `skips` after a return to the checkpoint of a step.

    The batches up to the bad one are left out, no further back than the checkpoint.
    """
    first = max(restored, bad.step - batches)
    return [first, bad.step - first]
