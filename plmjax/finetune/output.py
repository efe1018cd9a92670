"""Predictions as records: the fields of a line in the output file of `predict`."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from plmjax.data.labelled import Example
from plmjax.data.tasks import TaskConfig
from plmjax.evaluate import predictions
from plmjax.evaluate.predictions import Said

_DIGITS = 6  # of a probability: float32 has no more


def write_predictions(
    config: TaskConfig,
    labels: Sequence[str],
    examples: Sequence[Example],
    said: Sequence[Said],
) -> Iterator[dict[str, Any]]:
    """Yields a record an example: its id, the prediction, its probability, the truth.

    classes: label, probabilities; multilabel: labels, probabilities; regression: value;
    tags: tokens, tags, probabilities (of each tag given; none where a word was cut);
    answers: answer, start (-1 none), probability; choices: choice, probabilities;
    embeddings: rank of the pair, cosine. "truth" is present if an example has a label.
    """
    write = _WRITE[config.kind]
    found = predictions.read(config, labels, examples, said)
    for example, label, own in zip(examples, found, said, strict=True):
        record = {"id": example.id} | write(labels, example, label, own)
        if example.label is not None:
            record["truth"] = example.label
        yield record


def _named(labels: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {
        label: round(float(value), _DIGITS)
        for label, value in zip(labels, values, strict=True)
    }


def _tags(labels, example: Example, tags, said: np.ndarray) -> dict[str, Any]:
    number = {label: place for place, label in enumerate(labels)}
    values = [
        None if np.isnan(own[0]) else round(float(own[number[tag]]), _DIGITS)
        for tag, own in zip(tags, said, strict=True)
    ]
    return {"tokens": list(example.texts), "tags": list(tags), "probabilities": values}


def _answer(labels, example: Example, answer: str, said) -> dict[str, Any]:
    text, value, place = predictions.best_answer(example, said)
    return {"answer": text, "start": place, "probability": round(value, _DIGITS)}


def _choice(labels, example: Example, choice: int, said) -> dict[str, Any]:
    there = said[: len(example.texts) - 1]
    values = [round(float(value), _DIGITS) for value in there]
    return {"choice": choice, "probabilities": values}


_WRITE = {
    "classes": lambda labels, example, label, said: {
        "label": label,
        "probabilities": _named(labels, said),
    },
    "multilabel": lambda labels, example, names, said: {
        "labels": list(names),
        "probabilities": _named(labels, said),
    },
    "regression": lambda labels, example, value, said: {"value": value},
    "tags": _tags,
    "answers": _answer,
    "choices": _choice,
    "embeddings": lambda labels, example, rank, said: {
        "rank": rank,
        "cosine": round(said.cosine, _DIGITS),
    },
}
