"""Regression: a number for a text, or for a pair of texts."""

import math

import numpy as np

from plmjax.data.records import bad_data
from plmjax.metrics.scores import regression_scores
from plmjax.tasks import losses
from plmjax.tasks.base import RUN, TaskKind
from plmjax.tasks.classes import Classes


class Regression(TaskKind):
    """A label is a float; a prediction is [1], the number."""

    name = "regression"
    problem_type = "regression"
    least_labels = 0
    labels_allowed = False
    entities = True
    score_name = "absolute_error"
    metric = "pearson"
    lower_is_better = ("mse",)
    undefined = ("pearson", "spearman")
    linear = "ridge"
    no_pseudo_labels = (
        "a number comes without a probability, so that none could be left out as unsure"
    )
    card = Classes.card._replace(
        use="It predicts a number for a text.",
        limit="Its numbers are predictions; the figures show how near they are.",
        code=RUN + '"A text like those it saw.", function_to_apply="none"))',
    )

    def label(self, values, where, config):
        value = values[config.columns.label]
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            hint = "Correct the record; names of classes are task.kind=classes."
            if "," in str(value):
                hint = "Write a point for the decimal comma: 3.5 for 3,5."
            raise bad_data(
                where,
                f"the label {value!r} is no finite number, which regression needs.",
                hint,
            )
        return number

    def label_array(self, features, examples, labels):
        """[N] float32."""
        numbers = np.array([example.label for example in examples], np.float32)
        return numbers[features.example]

    def outputs(self, labels):
        return 1

    def has(self, batch):
        return losses.is_real(batch)

    def loss(self, scores, labels, smoothing):
        del smoothing
        return (scores[..., 0] - labels) ** 2

    def score(self, scores, labels):
        return abs(scores[..., 0] - labels)

    def divergence(self, p, q):
        return (p - q)[..., 0] ** 2

    def soft_loss(self, scores, teacher, temperature):
        del temperature  # a number has no distribution
        return self.loss(scores, teacher[..., 0], 0.0)

    def probabilities(self, scores):
        return scores

    def read(self, labels, example, prediction):
        return float(prediction[0])

    def record(self, labels, example, label, prediction):
        return {"value": label}

    def from_record(self, record):
        return np.array([record["value"]])

    def scores(self, truth, predicted, labels, config=None):
        return regression_scores(np.asarray(truth), np.asarray(predicted))

    def each(self, metric, labels, config=None):
        return _negative_squares if metric == "mse" else None

    def majority(self, labels, train):
        """Returns what predicts the mean."""
        mean = float(np.mean([example.label for example in train]))
        return lambda examples: [mean] * len(examples)

    def constants(self, truth):
        return [[float(np.mean(truth))] * len(truth)]

    def row_targets(self, labels, examples):
        return np.array([example.label for example in examples], float)

    def from_rows(self, labels, examples, scores):
        return scores[:, 0].tolist()

    def tuning_metric(self, scores):
        return "mse"

    def describe_labels(self, labels):
        return f"{min(labels):g} to {max(labels):g}"


def _negative_squares(truth, predicted) -> np.ndarray:
    return -((np.asarray(truth, float) - np.asarray(predicted, float)) ** 2)
