"""Differences of two models' scores, with their confidence intervals."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from plmjax import PlmjaxError

CONFIDENCE = 0.95
SAME = "not distinguishable"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """a - b, its 95 % interval, and "a is higher", "b is higher", or SAME."""

    difference: float
    low: float
    high: float
    verdict: str


def compare(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    method: Literal["t", "bootstrap"] = "t",
    test_share: float = 0.0,
    seed: int = 0,
    draws: int = 10_000,
) -> Comparison:
    """Compares paired values [n]: scores of the same seeds, or of the same texts.

    t: Student's interval of the mean difference, for a few runs. bootstrap: resamples
    the pairs `draws` times, for hundreds of texts. Folds share their training texts, so
    the interval of a plain t is too narrow for them: `test_share`, test examples per
    training example (1/9 of ten folds), widens it as Nadeau and Bengio (2003) propose;
    0 for seeds. Fewer than 6 values that all differ by the same amount do not show how
    much chance there is; their verdict is SAME.

    Raises:
      PlmjaxError: fewer than 2 pairs, values without a partner or not finite.
    """
    difference = _paired(a, b)
    n = len(difference)
    mean = float(difference.mean())
    if method == "t":
        from scipy import stats

        spread = difference.var(ddof=1) * (1 / n + test_share)
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.sqrt(spread)
        low, high = mean - reach, mean + reach
    else:
        chance = np.random.default_rng(seed)
        means = [difference[chance.integers(n, size=n)].mean() for _ in range(draws)]
        low, high = _middle(means)
    few = n < 6 and not np.ptp(difference)
    return _judge(mean, float(low), float(high), few)


def compare_by(
    score: Callable[[Any, Any], float],
    truth: Sequence[Any],
    a: Sequence[Any],
    b: Sequence[Any],
    *,
    seed: int = 0,
    draws: int = 1000,
) -> Comparison:
    """Compares predictions of the same texts by a score that is no mean, such as F1.

    Resamples the texts (sentences, for entities) `draws` times, the same for both
    models; score(truth, predicted) -> float.

    Raises:
      PlmjaxError: fewer than 2 texts, or not as many predictions of each model.
    """
    n = len(truth)
    if n < 2 or len(a) != n or len(b) != n:
        raise _unpaired(len(a), len(b))
    chance = np.random.default_rng(seed)
    differences = []
    for _ in range(draws):
        sample = chance.integers(n, size=n).tolist()
        some = [truth[index] for index in sample]
        ours, theirs = ([p[index] for index in sample] for p in (a, b))
        differences.append(score(some, ours) - score(some, theirs))
    low, high = _middle(differences)
    return _judge(score(truth, a) - score(truth, b), low, high, few=False)


def _paired(a, b) -> np.ndarray:
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise _unpaired(a.size, b.size)
    if not np.isfinite(a).all() or not np.isfinite(b).all():
        raise PlmjaxError(
            "the values to compare are not all finite.",
            hint="Leave out runs that failed, in both.",
        )
    return a - b


def _unpaired(a: int, b: int) -> PlmjaxError:
    return PlmjaxError(
        f"{a} values cannot be compared with {b}.",
        hint="Give 2 pairs or more, each of the same seed, fold or text.",
    )


def _middle(values: Sequence[float]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _judge(difference: float, low: float, high: float, few: bool) -> Comparison:
    verdict = SAME
    if not few and low > 0:
        verdict = "a is higher"
    elif not few and high < 0:
        verdict = "b is higher"
    return Comparison(float(difference), low, high, verdict)
