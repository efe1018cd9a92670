"""Lists of trials for get_hyper(hyper): grids, pairs, chains and seeds.

The functions are named as in get_hyper of ml_collections configs. A list of trials is a
plain list of {key: value}; a key may have the prefix "config." of the command line. A
sweep file gets this module as `hyper`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from plmjax import PlmjaxError

Trials = list[dict[str, Any]]


def sweep(key: str, values: Iterable[Any]) -> Trials:
    """Returns a trial for each value of a key."""
    if isinstance(values, str):
        raise PlmjaxError(
            f"hyper.sweep({key!r}, {values!r}): the values are one string.",
            hint=f"Write [{values!r}].",
        )
    return [{key.removeprefix("config."): value} for value in values]


def fixed(key: str, value: Any, length: int = 1) -> Trials:
    """Returns `length` trials with the same value."""
    return sweep(key, [value] * length)


def seeds(count: int, key: str = "train.seed") -> Trials:
    """Returns a trial for each seed 0 .. count - 1."""
    return sweep(key, range(count))


def product(sweeps: Iterable[Trials], name: str | None = None) -> Trials:
    """Returns every combination, the last sweep varying fastest; `name` is ignored.

    Raises:
      PlmjaxError: two sweeps set the same key.
    """
    products: Trials = [{}]
    for trials in sweeps:
        products = [_joined(left, right) for left in products for right in trials]
    return products


def zipit(sweeps: Iterable[Trials]) -> Trials:
    """Returns the n-th trials of all sweeps joined; a single trial joins every one.

    Raises:
      PlmjaxError: the sweeps differ in length, or two of them set the same key.
    """
    lists = list(sweeps)
    length = max(map(len, lists), default=0)
    if any(len(trials) not in (1, length) for trials in lists):
        raise PlmjaxError(
            f"hyper.zipit is given sweeps of {_counts(lists)} trials.",
            hint="They must be equally long, or of one trial.",
        )
    repeated = [trials * length if len(trials) == 1 else trials for trials in lists]
    zipped: Trials = []
    for group in zip(*repeated, strict=True):
        trial: dict[str, Any] = {}
        for values in group:
            trial = _joined(trial, values)
        zipped.append(trial)
    return zipped


def chainit(sweeps: Iterable[Trials]) -> Trials:
    """Returns the trials of all sweeps in one list."""
    return [dict(trial) for trials in sweeps for trial in trials]


# get_hyper files wrap numbers in the first, and names in the second.
discrete = categorical = list


def _joined(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    if both := left.keys() & right.keys():
        raise PlmjaxError(
            f"two sweeps of one product or zip set {', '.join(sorted(both))}.",
            hint="hyper.chainit takes one sweep after the other.",
        )
    return left | right


def _counts(lists: Sequence[Trials]) -> str:
    return " and ".join(str(len(trials)) for trials in lists)
