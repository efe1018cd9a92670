"""Scores of labels that depend only on how often each is right, predicted and true.

Counts of single texts can be drawn again and added up: a bootstrap over texts needs
seconds, where scoring all predictions a thousand times would need minutes.

Legend: n texts, C labels.
"""

from collections.abc import Callable, Sequence

import numpy as np


def label_counts(
    truth: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    labels: Sequence[str],
    *,
    per_word: bool = False,
) -> np.ndarray:
    """Returns [n, 3, C]: how often a label is right, predicted, true in each text.

    With `per_word` a text has a label for each word, else a set of labels.
    """
    number = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(truth), 3, len(labels)), int)
    for row, (true, ours) in enumerate(zip(truth, predicted, strict=True)):
        if per_word:
            right = [a for a, b in zip(true, ours, strict=True) if a == b]
        else:
            right = set(true) & set(ours)
        for column, names in enumerate((right, ours, true)):
            indices = np.array([number[name] for name in names], int)
            counts[row, column] = np.bincount(indices, minlength=len(labels))
    return counts


def _f1(counts: np.ndarray) -> np.ndarray:
    """Returns [C], the F1 of each label."""
    return 2 * counts[0] / np.maximum(counts[1] + counts[2], 1)


def macro_f1(counts: np.ndarray) -> float:
    """Returns the mean F1 of all labels, from counts [3, C]."""
    return float(_f1(counts).mean())


def _macro_f1_of_occurring(counts: np.ndarray) -> float:
    """Returns the mean F1 of the labels that occur."""
    occurs = counts[1] + counts[2] > 0
    return float(_f1(counts)[occurs].mean()) if occurs.any() else 0.0


def _micro_f1(counts: np.ndarray) -> float:
    right, ours, true = counts.sum(1)
    return float(2 * right / max(ours + true, 1))


def matthews(counts: np.ndarray) -> float:
    """Returns Gorodkin's correlation of many classes, 0 where it is undefined."""
    # As floats: the fourth power of 60,000 is no int64.
    right, ours, true = counts.astype(float)
    n = true.sum()
    spread = (n**2 - (ours**2).sum()) * (n**2 - (true**2).sum())
    return float((right.sum() * n - ours @ true) / np.sqrt(spread)) if spread else 0.0


# {score: counts [3, C] -> its value}, as metrics/scores.py defines the scores.
LABEL_SCORES: dict[str, Callable[[np.ndarray], float]] = {
    "accuracy": _micro_f1,  # of words, of which each has one tag
    "f1_micro": _micro_f1,
    "f1_macro": _macro_f1_of_occurring,
    "f1": lambda counts: float(_f1(counts)[1]),
    "mcc": matthews,
}
