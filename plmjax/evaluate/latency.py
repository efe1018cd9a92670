"""How long calls take: median, 95th percentile, and what they handle a second."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

_FEWEST = 3  # rounds, if they are slow


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds a call, and items a second, of so many rounds.

    `cpu_ms` is the mean processor time of all threads, the least disturbed by others.
    `spread` is half the width of a round's median 95 % interval, as a share of it.
    """

    median_ms: float
    p95_ms: float
    cpu_ms: float
    per_second: float
    rounds: int
    spread: float


def measure(
    call: Callable[[], Any] | Sequence[Callable[[], Any]],
    rounds: int = 20,
    items: int = 1,
    spread: float = 0.05,
    seconds: float = 10.0,
) -> Latency:
    """Times rounds of a call or several, which return when their result is there.

    A round handles `items`. After one that does not count, as it compiles, there are
    `rounds`, and more until the median is known to `spread`; three are enough when
    `seconds` are over. So a wide `spread` says that the machine was not quiet.
    """
    calls = [call] if callable(call) else call
    for each in calls:
        each()
    times_s: list[float] = []
    totals_s: list[float] = []
    total, wanted, cpu_s = 0.0, rounds, -time.process_time()
    while len(totals_s) < min(rounds, _FEWEST) or (
        total < seconds and len(totals_s) < wanted
    ):
        for each in calls:
            begin = time.perf_counter()
            each()
            times_s.append(time.perf_counter() - begin)
        totals_s.append(sum(times_s[-len(calls) :]))
        total += totals_s[-1]
        if len(totals_s) == wanted and _spread(totals_s) > spread:
            wanted *= 2
    cpu_s += time.process_time()
    return Latency(
        median_ms=1e3 * statistics.median(times_s),
        p95_ms=1e3 * sorted(times_s)[math.ceil(0.95 * len(times_s)) - 1],
        cpu_ms=1e3 * cpu_s / len(times_s),
        per_second=items * len(totals_s) / total,
        rounds=len(totals_s),
        spread=_spread(totals_s),
    )


def _spread(times_s: list[float]) -> float:
    """The median's interval by order statistics (Conover, 1999, 3.2): no bell curve."""
    ordered, count = sorted(times_s), len(times_s)
    half = 1.96 * math.sqrt(count) / 2
    low = ordered[max(math.floor(count / 2 - half), 0)]
    high = ordered[min(math.ceil(count / 2 + half), count - 1)]
    return (high - low) / 2 / statistics.median(ordered)
