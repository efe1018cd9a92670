"""Classes: one of several labels for a text, or for a pair of texts."""

import numpy as np

from plmjax.metrics.label_counts import LABEL_SCORES, label_counts
from plmjax.metrics.scores import class_scores, hits
from plmjax.tasks.base import RUN, CardText, TaskKind, named
from plmjax.tasks.fields import name_of


class Classes(TaskKind):
    """A label is the name of a class; a prediction is [C] probabilities."""

    name = "classes"
    problem_type = "single_label_classification"
    entities = True
    smoothing = True
    confusion = True
    card = CardText(
        pipeline="text-classification",
        objective="labels",
        use="It predicts the labels of texts like those it was trained on.",
        limit="Its labels are predictions; the figures show how often they are right.",
        code=RUN + '"A text like those it saw."))',
    )

    def label(self, values, where, config):
        return name_of(values[config.columns.label], where, config.labels)

    def label_array(self, features, examples, labels):
        """[N] int32, the number of the class."""
        number = {name: index for index, name in enumerate(labels)}
        numbers = np.array([number[example.label] for example in examples], np.int32)
        return numbers[features.example]

    def read(self, labels, example, prediction):
        return labels[int(prediction.argmax())]

    def record(self, labels, example, label, prediction):
        return {"label": label, "probabilities": named(labels, prediction)}

    def scores(self, truth, predicted, labels, config=None):
        return class_scores(truth, predicted, labels)

    def each(self, metric, labels, config=None):
        return hits if metric in ("accuracy", "f1_micro") else None

    def counts(self, metric, truth, labels):
        if metric not in LABEL_SCORES:
            return None
        singles = [[name] for name in truth]
        return (
            lambda predicted: label_counts(singles, [[n] for n in predicted], labels),
            LABEL_SCORES[metric],
        )
