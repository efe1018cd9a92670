"""How long a call takes: median, 95th percentile, and what it handles a second."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

# Calls that are made before the first is timed: they compile and fill caches.
_WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds a call, and items a second.

    `spread` is half the width of the median's 95 % interval, as a share of it.
    """

    median_ms: float
    p95_ms: float
    per_second: float
    rounds: int
    spread: float


def measure(
    call: Callable[[], Any],
    rounds: int = 20,
    items: int = 1,
    spread: float = 0.05,
    seconds: float = 10.0,
) -> Latency:
    """Times `call`, which handles `items` and returns when its result is there.

    After two calls that do not count there are at least `rounds`, and more until the
    median is known to `spread` or until `seconds` are over; so a `spread` that stays
    wide in the result says that the machine was not quiet.
    """
    for _ in range(_WARM_UP):
        call()
    times_s: list[float] = []
    total = 0.0
    while len(times_s) < rounds or (total < seconds and _spread(times_s) > spread):
        begin = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - begin)
        total += times_s[-1]
    ordered, count = sorted(times_s), len(times_s)
    return Latency(
        median_ms=1e3 * statistics.median(ordered),
        p95_ms=1e3 * ordered[math.ceil(0.95 * count) - 1],
        per_second=items * count / total,
        rounds=count,
        spread=_spread(ordered),
    )


def _spread(times_s: list[float]) -> float:
    """The median's interval by order statistics (Conover, 1999, 3.2): no bell curve."""
    ordered, count = sorted(times_s), len(times_s)
    half = 1.96 * math.sqrt(count) / 2
    low = ordered[max(math.floor(count / 2 - half), 0)]
    high = ordered[min(math.ceil(count / 2 + half), count - 1)]
    return (high - low) / 2 / statistics.median(ordered)
