"""Scores of predictions against labels, all as shares from 0 to 1 (or -1 to 1)."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from plmjax.metrics.entities import entity_scores, find_scheme


def hits(truth: Sequence[Any], predicted: Sequence[Any]) -> np.ndarray:
    """Returns [n] float64, 1 where a prediction equals the truth."""
    return np.array([a == b for a, b in zip(truth, predicted, strict=True)], float)


def label_matrix(sets: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """Returns [n, C] bool: which of the labels each set has."""
    return np.array([[label in names for label in labels] for names in sets], bool)


def class_scores(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Returns accuracy, f1_micro, f1_macro and mcc (Matthews' correlation).

    With two labels also f1, that of the second. f1_macro is the mean over the labels
    that occur in truth or prediction; a label never predicted rightly has F1 0.
    f1_micro equals accuracy, as each text has one label.
    """
    metrics = _sklearn()
    with warnings.catch_warnings():  # The mcc of a single label is 0.
        warnings.filterwarnings("ignore", message="A single label was found")
        mcc = metrics.matthews_corrcoef(truth, predicted)
    scores = {
        "accuracy": metrics.accuracy_score(truth, predicted),
        **_f1(truth, predicted),
        "mcc": mcc,
    }
    if len(labels) == 2:
        scores["f1"] = metrics.f1_score(
            truth, predicted, labels=labels[1:], average="macro", zero_division=0
        )
    return _floats(scores)


def _sklearn() -> Any:
    from sklearn import metrics  # its types are read off defaults, and wrong

    return metrics


def _f1(truth, predicted) -> dict:
    f1 = _sklearn().f1_score
    return {
        f"f1_{average}": f1(truth, predicted, average=average, zero_division=0)
        for average in ("micro", "macro")
    }


def _floats(scores: dict) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items()}


def multilabel_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Returns accuracy (all labels of a text right), f1_micro, f1_macro of [n, C] bool.

    f1_macro is the mean over all C labels; one that occurs nowhere counts as 0.
    """
    truth, predicted = np.asarray(truth, bool), np.asarray(predicted, bool)
    right = (truth & predicted).sum(0)
    both = truth.sum(0) + predicted.sum(0)
    scores = {
        "accuracy": (truth == predicted).all(1).mean(),
        "f1_micro": 2 * right.sum() / max(both.sum(), 1),
        "f1_macro": (2 * right / np.maximum(both, 1)).mean(),
    }
    return _floats(scores)


def regression_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Returns pearson, spearman and mse of numbers [n]; with a constant, no correlation
    is defined: nan.
    """
    from scipy import stats

    truth, predicted = np.asarray(truth, float), np.asarray(predicted, float)
    mse = np.mean((truth - predicted) ** 2)
    if len(truth) < 2:  # scipy refuses a single number
        return _floats({"pearson": np.nan, "spearman": np.nan, "mse": mse})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        pearson = stats.pearsonr(truth, predicted)
        spearman = stats.spearmanr(truth, predicted)
    return _floats({"pearson": pearson[0], "spearman": spearman[0], "mse": mse})


def tag_scores(
    truth: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    labels: Sequence[str],
) -> dict[str, float]:
    """Returns tag_accuracy, tag_f1_micro and tag_f1_macro over the words of sentences.

    tag_f1_micro equals tag_accuracy. If the task's labels mark entities (B-, I-, ...)
    also entity_precision, entity_recall, entity_f1 and entity_f1_strict: scores of tags
    are too high there, as most words are O. Without entities in `truth` these are 0, as
    in seqeval.
    """
    pairs = list(zip(truth, predicted, strict=True))
    assert all(len(a) == len(b) for a, b in pairs), "a tag a word"
    flat = [tag for tags in truth for tag in tags]
    other = [tag for tags in predicted for tag in tags]
    scores = {"accuracy": _sklearn().accuracy_score(flat, other), **_f1(flat, other)}
    named = {f"tag_{name}": value for name, value in scores.items()}
    if (scheme := find_scheme(labels)) is not None:
        named |= entity_scores(scheme.conll(truth), scheme.conll(predicted))
    return _floats(named)


def rank_scores(ranks: Sequence[int]) -> dict[str, float]:
    """Returns accuracy_at_1 and mrr (mean reciprocal rank) of ranks, counted from 1.

    Both depend on the number of candidates.
    """
    rank = np.asarray(ranks)
    return _floats({"accuracy_at_1": (rank == 1).mean(), "mrr": (1 / rank).mean()})


def confusion(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> np.ndarray:
    """Returns [C, C] int64: how often labels[i] was predicted as labels[j]."""
    number = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), np.int64)
    true = [number[label] for label in truth]
    np.add.at(counts, (true, [number[label] for label in predicted]), 1)
    return counts
