"""Statistics of repeated runs: by seeds or folds, their spread, and what is chance."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from plmjax.metrics.comparison import CONFIDENCE, SAME, Comparison
from plmjax.tasks.scores import cost


@dataclasses.dataclass(frozen=True)
class Summary:
    """Statistics of several scores; low and high: 95 % interval of their mean."""

    n: int
    mean: float
    deviation: float | None  # None for a single run
    least: float
    most: float
    low: float | None
    high: float | None


def summary(values: Sequence[float], test_share: float = 0.0) -> Summary | None:
    """Returns mean and spread of scores, by Student's t; None without scores.

    `test_share` widens the interval for folds, as in metrics.comparison.
    """
    if not values:
        return None
    n, mean = len(values), statistics.fmean(values)
    deviation = low = high = None
    if n > 1:
        from scipy import stats

        deviation = statistics.stdev(values)
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * deviation
        reach = float(reach * math.sqrt(1 / n + test_share))
        low, high = mean - reach, mean + reach
    return Summary(n, mean, deviation, min(values), max(values), low=low, high=high)


def fold_share(folds: int | None) -> float:
    """Returns the test examples per training example of folds; 0 for seeds."""
    return 0.0 if folds is None else 1 / (folds - 1)


def verdict(metric: str, comparison: Comparison) -> str:
    """Returns SAME, or whether the first of two compared runs is better or worse."""
    if comparison.verdict == SAME:
        return SAME
    return "better" if cost(metric, comparison.difference) < 0 else "worse"


def finite(value: float | None) -> float | None:
    """Returns the value, or None for NaN and infinities, which JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None
