"""Results of a study: means with intervals, ensembles, and the part of chance."""

import dataclasses
import statistics
from collections.abc import Sequence

import numpy as np

from plmjax.experiments import repeats
from plmjax.experiments.compare_plan import Plan
from plmjax.experiments.ensembles import ensemble_score, has_learned
from plmjax.experiments.outcomes import Outcome, read_outcome
from plmjax.experiments.repeats import Summary, fold_share, summary
from plmjax.metrics.comparison import Comparison, compare
from plmjax.tasks.scores import cost


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
        return next((o.metric for o in self.outcomes if o.metric), "score")

    @property
    def split(self) -> str:
        """The split of the scores; held_out if no run has finished."""
        finished = (o.split for o in self.outcomes if o.state == "finished")
        return next(finished, "held_out")

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
        return repeats.verdict(self.metric, self.against) if self.against else ""


def collect(plan: Plan) -> list[Cell]:
    """Returns the cells of a study, each compared with the first one of its task.

    Raises:
      PlmjaxError: files of a run are damaged.
    """
    share = fold_share(plan.repeats.folds)
    cells: list[Cell] = []
    for names, runs in plan.cells().items():
        outcomes = [read_outcome(run) for run in runs]
        outcomes = [
            dataclasses.replace(o, learned=has_learned(o))
            if o.state == "finished"
            else o
            for o in outcomes
        ]
        cell = make_cell(*names, outcomes, share)
        first = next((other for other in cells if other.task == cell.task), None)
        if first is not None:
            cell = compare_cells(cell, first, share)
        cells.append(dataclasses.replace(cell, ensemble=ensemble(cell.done)))
    return cells


def make_cell(
    task: str, model: str, setting: str, outcomes: Sequence[Outcome], share: float
) -> Cell:
    """Returns a cell of outcomes, not yet compared with another."""
    values = [o.score for o in outcomes if o.score is not None]
    return Cell(task, model, setting, tuple(outcomes), summary(values, share))


def compare_cells(cell: Cell, first: Cell, share: float) -> Cell:
    """Compares a cell with another over the seeds and folds that both have."""
    ours, theirs = ({o.run.pair: o.score for o in c.done} for c in (cell, first))
    pairs = [pair for pair in ours if pair in theirs]
    if len(pairs) < 2 or cell.metric != first.metric:
        return dataclasses.replace(cell, pairs=len(pairs))
    a, b = (np.array([of[pair] for pair in pairs], float) for of in (ours, theirs))
    comparison = compare(a, b, test_share=share)
    return dataclasses.replace(cell, against=comparison, pairs=len(pairs))


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
