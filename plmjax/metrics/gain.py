"""Scores of any kind of task, and one model's gain over another with its interval.

Truth and predictions are lists, one entry a text, of the form of `Example.label`: a
class name, label names, a number, tags, answers, the number of a choice, the rank of a
pair. Only an answer predicted is its text alone, "" for none.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plmjax import PlmjaxError
from plmjax.metrics.answers import answer_scores, answer_values
from plmjax.metrics.comparison import Comparison, compare, compare_by
from plmjax.metrics.entities import ENTITY_SCORES, STRICT, entity_counts
from plmjax.metrics.scores import (
    class_scores,
    multilabel_scores,
    rank_scores,
    regression_scores,
    tag_scores,
)

LOWER_IS_BETTER = ("mse",)
# Undefined of what is constant, and then as good as knowing nothing.
_CORRELATIONS = ("pearson", "spearman")


def task_scores(
    kind: str,
    truth: Sequence[Any],
    predicted: Sequence[Any],
    labels: Sequence[str],
    *,
    by_characters: bool = False,
) -> dict[str, float]:
    """Returns the scores that a kind of task has, by name; answers' by_characters."""
    if kind == "classes":
        return class_scores(truth, predicted, labels)
    if kind == "multilabel":
        both = (label_matrix(sets, labels) for sets in (truth, predicted))
        return multilabel_scores(*both)
    if kind == "regression":
        return regression_scores(np.asarray(truth), np.asarray(predicted))
    if kind == "tags":
        return tag_scores(truth, predicted)
    if kind == "answers":
        texts = _answer_texts(truth)
        return answer_scores(predicted, texts, by_characters=by_characters)
    if kind == "embeddings":
        return rank_scores(predicted)
    return {"accuracy": float(_hits(truth, predicted).mean())}


def label_matrix(sets: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """Returns [n, C] bool: which of the labels each set has."""
    return np.array([[label in names for label in labels] for names in sets], bool)


def worth(metric: str, score: float) -> float:
    """Returns a score such that more is better; no correlation counts as 0."""
    if metric in _CORRELATIONS and math.isnan(score):
        return 0.0
    return -score if metric in LOWER_IS_BETTER else score


def gain(
    kind: str,
    metric: str,
    truth: Sequence[Any],
    ours: Sequence[Any],
    theirs: Sequence[Any],
    labels: Sequence[str],
) -> Comparison:
    """Returns by how much `ours` is better than `theirs` on the same texts.

    A paired bootstrap over texts. The difference is positive where ours is better, of
    mse too: there it is what ours is lower by; "a" in the verdict is ours. A
    correlation with a constant counts as 0.

    Raises:
      PlmjaxError: a metric that the kind does not have; fewer than two texts.
    """
    if metric not in (known := task_scores(kind, truth, ours, labels)):
        raise PlmjaxError(
            f"{metric!r} is no score of task.kind={kind}.",
            hint=f"There are {', '.join(known)}.",
        )
    if (value := _MEANS.get((kind, metric))) is not None:
        a, b = (value(truth, predicted) for predicted in (ours, theirs))
        return compare(a, b, method="bootstrap")
    if (counted := _counted(kind, metric, truth, labels)) is not None:
        count, score = counted
        a, b = ([*count(predicted)] for predicted in (ours, theirs))
        # The counts of a text hold its truth.
        return compare_by(lambda _, counts: score(np.sum(counts, 0)), truth, a, b)

    def whole(truth, predicted) -> float:
        return worth(metric, task_scores(kind, truth, predicted, labels)[metric])

    return compare_by(whole, truth, ours, theirs)


# --- scores that are a mean over texts: a value [n] of each


def _hits(truth, predicted) -> np.ndarray:
    return np.array([a == b for a, b in zip(truth, predicted, strict=True)], float)


def _set_hits(truth, predicted) -> np.ndarray:
    return _hits([set(names) for names in truth], [set(names) for names in predicted])


def _squares(truth, predicted) -> np.ndarray:
    return -((np.asarray(truth, float) - np.asarray(predicted, float)) ** 2)


def _answer_texts(truth) -> list[list[str]]:
    return [[text for text, _ in answers] for answers in truth]


_MEANS: dict[tuple[str, str], Callable[[Any, Any], np.ndarray]] = {
    ("classes", "accuracy"): _hits,
    ("classes", "f1_micro"): _hits,
    ("choices", "accuracy"): _hits,
    ("embeddings", "accuracy_at_1"): _hits,
    ("embeddings", "mrr"): lambda truth, ranks: 1 / np.asarray(ranks, float),
    ("multilabel", "accuracy"): _set_hits,
    ("regression", "mse"): _squares,
    ("answers", "exact_match"): lambda t, p: answer_values(p, _answer_texts(t))[0],
    ("answers", "f1"): lambda t, p: answer_values(p, _answer_texts(t))[1],
}


# --- scores of sums over texts: counts [n, ...] of each, drawn anew and added up.
# Scoring whole predictions a thousand times would take minutes, this takes seconds.


def _counted(kind: str, metric: str, truth, labels) -> tuple[Callable, Callable] | None:
    """Returns (predictions -> counts, sum of counts -> score), if there is such."""
    if metric in ENTITY_SCORES:
        strict = metric == STRICT
        return lambda p: entity_counts(truth, p, strict=strict), ENTITY_SCORES[metric]
    if kind not in ("classes", "multilabel", "tags"):
        return None
    listed = (lambda p: [[name] for name in p]) if kind == "classes" else list
    name = metric.removeprefix("tag_")
    # As the scores have it: of several labels a text, those never seen count as well.
    score = _all_macro if (kind, name) == ("multilabel", "f1_macro") else _LABEL[name]
    return lambda p: _label_counts(listed(truth), listed(p), labels, kind), score


def _label_counts(truth, predicted, labels, kind: str) -> np.ndarray:
    """Returns [n, 3, C]: how often a label is right, predicted, true in each text."""
    number = {label: place for place, label in enumerate(labels)}
    counts = np.zeros((len(truth), 3, len(labels)), int)
    for row, (true, mine) in enumerate(zip(truth, predicted, strict=True)):
        if kind == "tags":
            right = [a for a, b in zip(true, mine, strict=True) if a == b]
        else:
            right = set(true) & set(mine)
        for place, names in enumerate((right, mine, true)):
            found = np.array([number[name] for name in names], int)
            counts[row, place] = np.bincount(found, minlength=len(labels))
    return counts


def _each_f1(counts: np.ndarray) -> np.ndarray:
    return 2 * counts[0] / np.maximum(counts[1] + counts[2], 1)


def _macro(counts: np.ndarray) -> float:
    """The mean F1 of the labels that occur."""
    occurs = counts[1] + counts[2] > 0
    return float(_each_f1(counts)[occurs].mean()) if occurs.any() else 0.0


def _all_macro(counts: np.ndarray) -> float:
    return float(_each_f1(counts).mean())


def _micro(counts: np.ndarray) -> float:
    right, mine, true = counts.sum(1)
    return float(2 * right / max(mine + true, 1))


def _mcc(counts: np.ndarray) -> float:
    """Gorodkin's correlation of many classes, 0 where it is undefined."""
    # As floats: the fourth power of 60,000 is no int64.
    right, mine, true = counts.astype(float)
    n = true.sum()
    spread = (n**2 - (mine**2).sum()) * (n**2 - (true**2).sum())
    return float((right.sum() * n - mine @ true) / np.sqrt(spread)) if spread else 0.0


_LABEL: dict[str, Callable[[np.ndarray], float]] = {
    "accuracy": _micro,  # of tags, of which each word has one
    "f1_micro": _micro,
    "f1_macro": _macro,
    "f1": lambda counts: float(_each_f1(counts)[1]),
    "mcc": _mcc,
}
