"""Results of a study: means with intervals, ensembles, and the part of chance."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np

from plmjax.metrics.comparison import (
    CONFIDENCE,
    SAME,
    Comparison,
    compare,
)
from plmjax.study.outcomes import Outcome, read_outcome
from plmjax.study.plan import Plan
from plmjax.study.said import ensemble_score, has_learned
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

    `test_share` widens the interval for folds, as in evaluate.comparison.
    """
    if not values:
        return None
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Summary(
            n=1, mean=mean, deviation=None, least=mean, most=mean, low=None, high=None
        )
    from scipy import stats

    deviation = statistics.stdev(values)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * deviation
    reach = float(reach * math.sqrt(1 / n + test_share))
    low, high = mean - reach, mean + reach
    return Summary(
        n=n,
        mean=mean,
        deviation=deviation,
        least=min(values),
        most=max(values),
        low=low,
        high=high,
    )


@dataclasses.dataclass(frozen=True)
class Cell:
    """A model x task x setting: its runs and their statistics.

    `against` compares it with the first cell of its task over `pairs` pairs.
    """

    task: str
    model: str
    setting: str
    outcomes: tuple[Outcome, ...]
    summary: Summary | None
    ensemble: float | None = None
    against: Comparison | None = None
    pairs: int = 0

    @property
    def done(self) -> list[Outcome]:
        """The finished runs that have a score."""
        return [o for o in self.outcomes if o.score is not None]

    @property
    def metric(self) -> str:
        """The metric of the scores; "score" if no run has finished."""
        found = [o.metric for o in self.outcomes if o.metric is not None]
        return found[0] if found else "score"

    @property
    def split(self) -> str:
        """The split of the scores; held_out if no run has finished."""
        found = [o.split for o in self.outcomes if o.state == "finished"]
        return found[0] if found else "held_out"

    @property
    def best(self) -> float | None:
        """The best single score."""
        scores = [o.score for o in self.done if o.score is not None]
        return min(scores, key=self.rank) if scores else None

    def rank(self, value: float) -> float:
        """Returns the value with the sign that makes lower better."""
        return cost(self.metric, value)

    def count(self, state: str) -> int:
        """Returns the number of runs in a state."""
        return sum(o.state == state for o in self.outcomes)

    @property
    def unlearned(self) -> int:
        """Number of finished runs that are no better than one answer for all."""
        return sum(o.learned is False for o in self.outcomes)

    @property
    def verdict(self) -> str:
        """The comparison with the first cell in words, "" without one."""
        if self.against is None:
            return ""
        if self.against.verdict == SAME:
            return SAME
        return "better" if self.rank(self.against.difference) < 0 else "worse"


def collect(plan: Plan) -> list[Cell]:
    """Returns the cells of a study, each compared with the first one of its task.

    Raises:
      PlmjaxError: files of a run are damaged.
    """
    folds = plan.repeats.folds
    share = 0.0 if folds is None else 1 / (folds - 1)
    found: list[Cell] = []
    for (task, model, setting), runs in plan.cells().items():
        outcomes = [read_outcome(run) for run in runs]
        outcomes = [
            dataclasses.replace(o, learned=has_learned(o))
            if o.state == "finished"
            else o
            for o in outcomes
        ]
        cell = made(task, model, setting, outcomes, share)
        first = next((other for other in found if other.task == task), None)
        if first is not None:
            cell = held_against(cell, first, share)
        found.append(dataclasses.replace(cell, ensemble=ensemble(cell.done)))
    return found


def made(
    task: str, model: str, setting: str, outcomes: Sequence[Outcome], share: float
) -> Cell:
    """Returns a cell of outcomes, not yet compared with another."""
    values = [o.score for o in outcomes if o.score is not None]
    return Cell(task, model, setting, tuple(outcomes), summary(values, share))


def held_against(cell: Cell, first: Cell, share: float) -> Cell:
    """Compares a cell with another over the seeds and folds that both have."""
    ours, theirs = ({o.run.pair: o.score for o in c.done} for c in (cell, first))
    pairs = [pair for pair in ours if pair in theirs]
    if len(pairs) < 2 or cell.metric != first.metric:
        return dataclasses.replace(cell, pairs=len(pairs))
    a, b = (np.array([of[pair] for pair in pairs], float) for of in (ours, theirs))
    found = compare(a, b, test_share=share)
    return dataclasses.replace(cell, against=found, pairs=len(pairs))


def ensemble(done: Sequence[Outcome]) -> float | None:
    """Returns the score of the runs' averaged predictions; None if there is none.

    On a test set all runs form one ensemble. With held-out folds the seeds of each fold
    form one, and the result is the mean of the folds' scores.
    """
    groups: dict[int | None, list[Outcome]] = {}
    for outcome in done:
        fold = None if outcome.split == "test" else outcome.run.fold
        groups.setdefault(fold, []).append(outcome)
    if not groups or min(map(len, groups.values())) < 2:
        return None
    scores = [ensemble_score(group) for group in groups.values()]
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if len(known) == len(scores) else None
