"""Linear models over fixed features: how they are fitted, and what they predict.

Logistic regression of classes, tags and choices, one for each label of multilabel,
ridge regression of numbers. scikit-learn fits, what is left is x @ weights + bias.

Legend: N rows, F features, O scores of a row. A row is a text or a pair of texts; of
tags a word; of choices one choice, which is right or wrong.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plmjax import PlmjaxError
from plmjax.data.labelled import Example, hold_out
from plmjax.metrics.gain import label_matrix, task_scores, worth

Featurise = Callable[[Sequence[Example]], Any]  # [N, F], an array or a scipy matrix
Predict = Callable[[Sequence[Example]], list]
Log = Callable[[str], Any]

# scikit-learn's C (of ridge 1 / alpha): sparse features are small, dense ones are
# standardised.
SPARSE = (0.3, 3.0, 30.0)
DENSE = (0.001, 0.01, 0.1, 1.0)
DEFAULT = 1.0
INNER_PERCENT = 20  # of train, on which the strength is chosen
INNER_ROWS = 5_000  # rows that these fits, which are only for choosing, see at most
DENSE_ROWS = 50_000  # rows of dense features that any fit sees, .3 GB of 768 features
_STEPS = 2_000
_CHOSEN_BY = {
    "classes": "accuracy",
    "multilabel": "f1_micro",
    "regression": "mse",
    "tags": "tag_accuracy",  # entity_f1 where there are entities
    "choices": "accuracy",
}


@dataclasses.dataclass(frozen=True)
class Linear:
    """weights [F, O] and bias [O], float64; features [N, F] -> scores [N, O]."""

    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, x_NF) -> np.ndarray:
        return x_NF @ self.weights + self.bias


def row_counts(kind: str, examples: Sequence[Example]) -> np.ndarray:
    """Returns how many rows each example has."""
    beside = {"tags": 0, "choices": 1, "embeddings": 0}  # texts that are no row
    if kind not in beside:
        return np.ones(len(examples), int)
    return np.array([len(example.texts) - beside[kind] for example in examples], int)


def row_texts(kind: str, examples: Sequence[Example]) -> list[tuple[str, ...]]:
    """Returns the one or two texts of each row, of kinds other than tags."""
    if kind != "choices":
        return [example.texts for example in examples]
    return [(e.texts[0], choice) for e in examples for choice in e.texts[1:]]


def fit_linear(
    kind: str,
    labels: Sequence[str],
    train: Sequence[Example],
    featurise: Featurise,
    log: Log,
) -> Predict:
    """Fits a linear model of the features of train, and returns what predicts.

    How strongly it is held back is chosen from a few values, on a fifth of train, which
    is then no part of the fit. Of dense features at most DENSE_ROWS rows are used,
    drawn by whole examples; `log` is told.
    """
    x, train = _features(kind, train, featurise, log)
    y = _targets(kind, train, labels)
    strength = _choose(kind, labels, train, x, y)
    linear, ended = _fit(kind, x, y, len(labels), strength)
    if not ended:
        log(f"  the fit was stopped after {_STEPS:,} steps, short of its optimum")
    return lambda examples: decode(kind, labels, examples, linear(featurise(examples)))


def decode(
    kind: str, labels: Sequence[str], examples: Sequence[Example], scores: np.ndarray
) -> list:
    """Returns one prediction an example, of the form of its label, from scores."""
    if kind == "classes":
        return [labels[place] for place in scores.argmax(1)]
    if kind == "multilabel":
        return [tuple(np.asarray(labels)[row > 0].tolist()) for row in scores]
    if kind == "regression":
        return scores[:, 0].tolist()
    ends = np.cumsum(row_counts(kind, examples))[:-1]
    if kind == "choices":
        return [int(part.argmax()) for part in np.split(scores[:, 0], ends)]
    tags = np.asarray(labels, object)[scores.argmax(1)]
    return [tuple(part.tolist()) for part in np.split(tags, ends)]


# --- what is fitted


def _features(kind: str, train: Sequence[Example], featurise: Featurise, log: Log):
    """Returns features and the examples they are of."""
    sizes = row_counts(kind, train)
    # A look at one example tells whether they are dense.
    if sizes.sum() <= DENSE_ROWS or not isinstance(featurise(train[:1]), np.ndarray):
        return featurise(train), train
    kept = _draw(sizes, DENSE_ROWS)
    what = {"tags": "words", "choices": "choices"}.get(kind, "texts")
    log(f"  fitted on {sizes[kept].sum():,} of the {sizes.sum():,} {what} of train")
    train = [train[place] for place in kept]
    return featurise(train), train


def _draw(sizes: np.ndarray, most: int) -> np.ndarray:
    """Returns examples of at most `most` rows together (at least one), in order."""
    order = np.random.default_rng(0).permutation(len(sizes))
    fits = np.cumsum(sizes[order]) <= most
    return np.sort(order[: max(int(fits.sum()), 1)])


def _targets(kind: str, train: Sequence[Example], labels: Sequence[str]) -> np.ndarray:
    """Returns what each row's scores should say: [N], of multilabel [N, O] bool."""
    if kind == "multilabel":
        return label_matrix([example.label for example in train], labels)
    if kind == "regression":
        return np.array([example.label for example in train], float)
    if kind == "choices":
        return np.array([n == e.label for e in train for n in range(len(e.texts) - 1)])
    number = {name: place for place, name in enumerate(labels)}
    if kind == "classes":
        return np.array([number[example.label] for example in train])
    return np.array([number[tag] for example in train for tag in example.label])


def _choose(kind: str, labels, train, x, y) -> float:
    """Returns the strength that does best on a fifth of train, of equals the least.

    They are tried from the least on, which is quick, until one does worse.
    """
    try:
        held_out = hold_out(train, INNER_PERCENT)[1]
    except PlmjaxError:  # of a single group nothing can be held out
        return DEFAULT
    units = {example.unit for example in held_out}
    held = np.array([example.unit in units for example in train])
    sizes = row_counts(kind, train)
    inner = np.flatnonzero(~held)
    inner = inner[_draw(sizes[inner], INNER_ROWS)]
    owner = np.repeat(np.arange(len(train)), sizes)
    fitted, tried = (
        np.flatnonzero(np.isin(owner, e)) for e in (inner, np.nonzero(held))
    )
    truth = [example.label for example in held_out]
    best, highest = DEFAULT, -np.inf
    for strength in DENSE if isinstance(x, np.ndarray) else SPARSE:
        linear, _ = _fit(kind, x[fitted], y[fitted], len(labels), strength)
        found = decode(kind, labels, held_out, linear(x[tried]))
        scores = task_scores(kind, truth, found, labels)
        metric = "entity_f1" if "entity_f1" in scores else _CHOSEN_BY[kind]
        score = worth(metric, scores[metric])
        if score < highest:
            break
        if score > highest:
            best, highest = strength, score
    return best


# --- how


def _fit(kind: str, x, y, outputs: int, strength: float) -> tuple[Linear, bool]:
    """Returns the model, and whether its fit came to an end."""
    from sklearn.linear_model import Ridge

    scaled, shift_F, scale_F = _standardise(x)
    if kind == "regression":
        model: Any = Ridge(alpha=1 / strength).fit(scaled, y)
        weights, bias, ended = model.coef_[:, None], model.intercept_, True
    elif kind in ("multilabel", "choices"):  # one score a label, above 0 where likely
        columns = y.reshape(len(y), -1).T
        fits = [_logistic(scaled, column, 2, strength) for column in columns]
        weights = np.stack([weights[:, 1] for weights, _, _ in fits], 1)
        bias = np.array([bias[1] - bias[0] for _, bias, _ in fits])
        ended = all(ended for _, _, ended in fits)
    else:
        weights, bias, ended = _logistic(scaled, y, outputs, strength)
    weights = weights / scale_F[:, None]
    return Linear(weights, bias - shift_F @ weights), ended


def _standardise(x) -> tuple[Any, np.ndarray, np.ndarray]:
    """Returns dense features of mean 0 and variance 1, and both; sparse as they are."""
    if not isinstance(x, np.ndarray):
        return x, np.zeros(x.shape[1]), np.ones(x.shape[1])
    x = x.astype(np.float64)
    shift, scale = x.mean(0), x.std(0)
    # What is constant but for rounding says nothing, and must not be blown up.
    scale[scale <= 1e-6 * np.abs(x).max(0, initial=0)] = np.inf
    return (x - shift) / scale, shift, scale


def _logistic(
    x, y, outputs: int, strength: float
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Returns weights [F, outputs], bias [outputs], and whether the fit came to an end.

    The score of a class that y does not have is minus infinity.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    seen = np.unique(y).astype(int)
    weights = np.zeros((x.shape[1], outputs))
    bias = np.full(outputs, -np.inf)
    bias[seen] = 0
    if len(seen) == 1:  # which scikit-learn refuses
        return weights, bias, True
    model: Any = LogisticRegression(C=strength, max_iter=_STEPS)
    with warnings.catch_warnings():
        # The caller says so in plmjax's own words.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    chosen = seen[-len(model.intercept_) :]  # of two, the score of the second
    weights[:, chosen], bias[chosen] = model.coef_.T, model.intercept_
    return weights, bias, bool((model.n_iter_ < _STEPS).all())
