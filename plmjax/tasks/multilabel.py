"""Multilabel: any number of labels for a text, or for a pair of texts."""

import collections

import numpy as np

from plmjax.data.records import bad_data
from plmjax.metrics.label_counts import LABEL_SCORES, label_counts, macro_f1
from plmjax.metrics.scores import hits, label_matrix, multilabel_scores
from plmjax.tasks import losses
from plmjax.tasks.base import RUN, TaskKind, named
from plmjax.tasks.classes import Classes
from plmjax.tasks.fields import name_of


class Multilabel(TaskKind):
    """A label is a tuple of names; a prediction is [C] probabilities of yes."""

    name = "multilabel"
    problem_type = "multi_label_classification"
    least_labels = 1  # one label can be present or absent
    entities = True
    metric = "f1_micro"
    linear = "sigmoid"
    label_key = "labels"
    card = Classes.card._replace(code=RUN + '"A text like those it saw.", top_k=None))')

    def label(self, values, where, config):
        """Names in the order of the record, each once; an empty set is valid."""
        columns = config.columns.names("label")
        if len(columns) > 1:
            marks = [_mark(values[name], where, name) for name in columns]
            return tuple(
                name for name, mark in zip(columns, marks, strict=True) if mark
            )
        value = values[columns[0]]
        if isinstance(value, str):
            value = [one for one in value.split(config.label_separator) if one.strip()]
        names = value if isinstance(value, list) else [] if value is None else [value]
        return tuple(
            dict.fromkeys(name_of(name, where, config.labels) for name in names)
        )

    def names(self, label):
        return label

    def find_labels(self, config, train):
        columns = config.columns.names("label")
        if config.labels is None and len(columns) > 1:
            return tuple(columns)
        return super().find_labels(config, train)

    def label_array(self, features, examples, labels):
        """[N, C] float32, 1 if the row has the label."""
        number = {name: index for index, name in enumerate(labels)}
        sets = np.zeros((len(examples), len(labels)), np.float32)
        for index, example in enumerate(examples):
            sets[index, [number[name] for name in example.label]] = 1
        return sets[features.example]

    def has(self, batch):
        return losses.is_real(batch)

    def loss(self, scores, labels, smoothing):
        del smoothing
        return losses.binary_cross_entropy(scores, labels)

    def score(self, scores, labels):
        right = (scores > 0) == (labels > 0.5)
        return right.astype("float32").mean(axis=-1)

    def divergence(self, p, q):
        return losses.binary_divergence(p, q)

    def soft_loss(self, scores, teacher, temperature):
        return losses.softened_binary_cross_entropy(scores, teacher, temperature)

    def probabilities(self, scores):
        return 1 / (1 + np.exp(-scores))

    def read(self, labels, example, prediction):
        return tuple(
            label
            for label, value in zip(labels, prediction, strict=True)
            if value > 0.5
        )

    def record(self, labels, example, label, prediction):
        return {"labels": list(label), "probabilities": named(labels, prediction)}

    def scores(self, truth, predicted, labels, config=None):
        both = (label_matrix(sets, labels) for sets in (truth, predicted))
        return multilabel_scores(*both)

    def each(self, metric, labels, config=None):
        return _set_hits if metric == "accuracy" else None

    def counts(self, metric, truth, labels):
        # As the scores have it: labels that occur nowhere count as well.
        score = macro_f1 if metric == "f1_macro" else LABEL_SCORES[metric]
        return lambda predicted: label_counts(truth, predicted, labels), score

    def majority(self, labels, train):
        """Returns what predicts the labels that more than half of train have."""
        counts = collections.Counter(n for example in train for n in example.label)
        often = tuple(name for name in labels if counts[name] > len(train) / 2)
        return lambda examples: [often] * len(examples)

    def row_targets(self, labels, examples):
        return label_matrix([example.label for example in examples], labels)

    def from_rows(self, labels, examples, scores):
        return [tuple(np.asarray(labels)[row > 0].tolist()) for row in scores]

    def notes(self, labels, splits):
        """Yields a line on labels that look like several, by another separator."""
        for mark in ",;|":
            if joined := [label for label in labels if mark in label]:
                yield (
                    f"Labels that contain {mark!r}: {len(joined):,} of {len(labels):,},"
                    f" as {joined[0]!r}; task.label_separator sets what separates them."
                )

    def confidence(self, prediction):
        """Returns the probability of yes or no, for the label where it is lowest."""
        values = np.asarray(prediction)
        return float(np.maximum(values, 1 - values).min())


def _mark(value, where: str, column: str) -> bool:
    text = str(value).strip().lower()
    if text not in ("0", "1", "false", "true"):
        raise bad_data(
            where,
            f"the column {column!r} is {value!r}; a label of its own column is 0 or 1.",
            "Correct the record.",
        )
    return text in ("1", "true")


def _set_hits(truth, predicted) -> np.ndarray:
    return hits([set(names) for names in truth], [set(names) for names in predicted])
