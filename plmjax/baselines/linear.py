"""Linear models over fixed features: logistic and ridge regression.

scikit-learn fits them; predicting is x @ weights + bias.

Legend: N rows, F features, O scores of a row. A row is what the kind of task says: a
text or a pair of texts, a word, or one choice, which is right or wrong.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from plmjax import PlmjaxError
from plmjax.baselines.watch import Watch
from plmjax.data.examples import Example, hold_out
from plmjax.tasks import TaskKind
from plmjax.tasks.base import Predict
from plmjax.tasks.scores import cost

Featurise = Callable[[Sequence[Example]], Any]  # [N, F], an array or a scipy matrix
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


@dataclasses.dataclass(frozen=True)
class Linear:
    """A model of weights [F, O] and bias [O], float64: features [N, F] -> [N, O]."""

    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, x_NF) -> np.ndarray:
        return x_NF @ self.weights + self.bias


def row_counts(kind: TaskKind, examples: Sequence[Example]) -> np.ndarray:
    """Returns [n], how many rows each of n examples has."""
    return np.array([len(kind.row_texts(example)) for example in examples], int)


def fit_linear(
    kind: TaskKind,
    labels: Sequence[str],
    train: Sequence[Example],
    featurise: Featurise,
    log: Log,
    *,
    watch: Watch | None = None,
) -> Predict:
    """Fits a linear model to the features of train; returns its predict function.

    The strength is the best of a few on a fifth of train that is held out for this. Of
    dense features at most DENSE_ROWS rows are used, a sample of complete examples,
    which is logged. Raises OutOfTime if the watch foresees that it takes too long.
    """
    watch = watch or Watch()
    x, train = _features(kind, train, featurise, log)
    y = kind.row_targets(labels, train)
    strength = _choose(kind, labels, train, x, y, watch=watch)
    linear, converged = _fit(kind, x, y, len(labels), strength)
    if not converged:
        log(f"  the fit was stopped after {_STEPS:,} steps, short of its optimum")

    def predict(examples: Sequence[Example]) -> list:
        return kind.from_rows(labels, examples, linear(featurise(examples)))

    return predict


# --- the rows of a fit


def _features(kind: TaskKind, train: Sequence[Example], featurise: Featurise, log: Log):
    """Returns the features of train or of a sample, and the examples they are of."""
    sizes = row_counts(kind, train)
    # One example shows whether they are dense.
    if sizes.sum() <= DENSE_ROWS or not isinstance(featurise(train[:1]), np.ndarray):
        return featurise(train), train
    kept = _sample(sizes, DENSE_ROWS)
    log(
        f"  fitted on {sizes[kept].sum():,} of the {sizes.sum():,} {kind.row_noun} of "
        "train"
    )
    train = [train[index] for index in kept]
    return featurise(train), train


def _sample(sizes: np.ndarray, most: int) -> np.ndarray:
    """Returns examples of at most `most` rows together (at least one), in order."""
    order = np.random.default_rng(0).permutation(len(sizes))
    fits = np.cumsum(sizes[order]) <= most
    return np.sort(order[: max(int(fits.sum()), 1)])


def _choose(kind: TaskKind, labels, train, x, y, *, watch: Watch) -> float:
    """Returns the strength that is best on a fifth of train, the least of equal ones.

    Strengths are tried in increasing order, as weak ones are quick, until one is worse.
    Raises OutOfTime if these fits show that the last one will take too long.
    """
    watch.need()
    try:
        held_out = hold_out(train, INNER_PERCENT)[1]
    except PlmjaxError:  # nothing of a single group can be held out
        return DEFAULT
    units = {example.unit for example in held_out}
    held = np.array([example.unit in units for example in train])
    sizes = row_counts(kind, train)
    inner = np.flatnonzero(~held)
    inner = inner[_sample(sizes[inner], INNER_ROWS)]
    owner = np.repeat(np.arange(len(train)), sizes)
    fitted, tried = (
        np.flatnonzero(np.isin(owner, e)) for e in (inner, np.nonzero(held))
    )
    truth = [example.label for example in held_out]
    best, lowest, seconds = DEFAULT, np.inf, 0.0
    for strength in DENSE if isinstance(x, np.ndarray) else SPARSE:
        watch.need(seconds)
        began = time.monotonic()
        linear, _ = _fit(kind, x[fitted], y[fitted], len(labels), strength)
        seconds = time.monotonic() - began
        predicted = kind.from_rows(labels, held_out, linear(x[tried]))
        scores = kind.scores(truth, predicted, labels)
        metric = kind.tuning_metric(scores)
        value = cost(metric, scores[metric])
        if value > lowest:
            break
        if value < lowest:
            best, lowest = strength, value
    watch.need(seconds * len(y) / max(len(fitted), 1))
    return best


# --- the fit


def _fit(kind: TaskKind, x, y, outputs: int, strength: float) -> tuple[Linear, bool]:
    """Returns the model, and whether its fit converged."""
    from sklearn.linear_model import Ridge

    scaled, shift_F, scale_F = _standardise(x)
    if kind.linear == "ridge":
        model: Any = Ridge(alpha=1 / strength).fit(scaled, y)
        weights, bias, converged = model.coef_[:, None], model.intercept_, True
    elif kind.linear == "sigmoid":  # one score a label, above 0 where likely
        columns = y.reshape(len(y), -1).T
        fits = [_logistic(scaled, column, 2, strength) for column in columns]
        weights = np.stack([weights[:, 1] for weights, _, _ in fits], 1)
        bias = np.array([bias[1] - bias[0] for _, bias, _ in fits])
        converged = all(converged for _, _, converged in fits)
    else:
        weights, bias, converged = _logistic(scaled, y, outputs, strength)
    weights = weights / scale_F[:, None]
    return Linear(weights, bias - shift_F @ weights), converged


def _standardise(x) -> tuple[Any, np.ndarray, np.ndarray]:
    """Returns x with mean 0 and variance 1, and both [F]; sparse x is unchanged."""
    if not isinstance(x, np.ndarray):
        return x, np.zeros(x.shape[1]), np.ones(x.shape[1])
    x = x.astype(np.float64)
    shift, scale = x.mean(0), x.std(0)
    # A feature that is constant up to rounding must not be scaled up.
    scale[scale <= 1e-6 * np.abs(x).max(0, initial=0)] = np.inf
    return (x - shift) / scale, shift, scale


def _logistic(
    x, y, outputs: int, strength: float
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Returns weights [F, outputs], bias [outputs], and whether the fit converged.

    The score of a class that y does not have is minus infinity.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    seen = np.unique(y).astype(int)
    weights = np.zeros((x.shape[1], outputs))
    bias = np.full(outputs, -np.inf)
    bias[seen] = 0
    if len(seen) == 1:  # scikit-learn refuses a single class
        return weights, bias, True
    model: Any = LogisticRegression(C=strength, max_iter=_STEPS)
    with warnings.catch_warnings():
        # The caller logs it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    chosen = seen[-len(model.intercept_) :]  # of two classes, only the second
    weights[:, chosen], bias[chosen] = model.coef_.T, model.intercept_
    return weights, bias, bool((model.n_iter_ < _STEPS).all())
