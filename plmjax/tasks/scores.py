"""Which of two scores is better, and one model's gain over another with its interval.

Truth and predictions are lists, one entry an example, as `read` of the kind of task
returns them.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from plmjax import PlmjaxError
from plmjax.metrics.comparison import Comparison, compare, compare_by
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig

LOWER_IS_BETTER = {
    "loss",
    *(metric for kind in KINDS.values() for metric in kind.lower_is_better),
}
_UNDEFINED = {metric for kind in KINDS.values() for metric in kind.undefined}


def cost(metric: str, score: float) -> float:
    """Returns a number that is lower for a better score; nan for an undefined one."""
    return score if metric in LOWER_IS_BETTER else -score


def defined(metric: str, score: float) -> float:
    """Returns a score, 0 for the undefined correlation with a constant."""
    return 0.0 if metric in _UNDEFINED and math.isnan(score) else score


def constant_score(
    kind: str,
    metric: str,
    truth: Sequence[Any],
    labels: Sequence[str],
    config: TaskConfig | None = None,
) -> float | None:
    """Returns the best score of one answer for all examples; None for the loss."""
    if metric == "loss":
        return None
    if metric in ("pearson", "spearman"):
        return 0.0  # a constant has no correlation with anything
    task = KINDS[kind]
    scores = [
        task.scores(truth, constant, labels, config)[metric]
        for constant in task.constants(truth)
    ]
    return min(scores, key=lambda value: cost(metric, value))


def beats_constant(metric: str, score: float, constant: float) -> bool:
    """Whether a score is better than that of one answer for all, beyond rounding."""
    ours, theirs = cost(metric, score), cost(metric, constant)
    return ours < theirs and not math.isclose(score, constant, abs_tol=1e-9)


def gain(
    kind: str,
    metric: str,
    truth: Sequence[Any],
    ours: Sequence[Any],
    theirs: Sequence[Any],
    labels: Sequence[str],
    config: TaskConfig | None = None,
) -> Comparison:
    """Returns by how much `ours` is better than `theirs` on the same texts.

    A paired bootstrap over texts. The difference is positive where ours is better, also
    for scores of which less is better; "a" in the verdict is ours. A correlation with a
    constant counts as 0. `config` has the options of the scores.

    Raises:
      PlmjaxError: a metric that the kind does not have; fewer than two texts.
    """
    task = KINDS[kind]
    if metric not in (known := task.scores(truth, ours, labels, config)):
        raise PlmjaxError(
            f"{metric!r} is no score of task.kind={kind}.",
            hint=f"There are {', '.join(known)}.",
        )
    if (values := task.each(metric, labels, config)) is not None:
        a, b = (values(list(truth), list(predicted)) for predicted in (ours, theirs))
        return compare(a, b, method="bootstrap")
    if (counted := task.counts(metric, truth, labels)) is not None:
        count, score = counted
        a, b = ([*count(list(predicted))] for predicted in (ours, theirs))
        # The counts of a text hold its truth.
        return compare_by(lambda _, counts: score(np.sum(counts, 0)), truth, a, b)

    def merit(truth, predicted) -> float:
        score = task.scores(truth, predicted, labels, config)[metric]
        return -cost(metric, defined(metric, score))

    return compare_by(merit, truth, ours, theirs)
