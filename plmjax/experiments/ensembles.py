"""Predictions of runs: averaged over runs, and compared with one answer for all."""

import collections
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.data.labelled import Example, load_labelled
from plmjax.data.tasks import TaskConfig
from plmjax.evaluate import predictions
from plmjax.experiments.outcomes import Outcome
from plmjax.finetune.build import split_of
from plmjax.finetune.predict import Predictor

# Number of frequent labels to try as one answer for all examples.
_MOST = 20
# Prediction files of these kinds hold only the likeliest answer: models run again.
_ASKED_AGAIN = ("tags", "answers")


class Lines(NamedTuple):
    """The prediction file of a run: its task and labels, the truth, the records."""

    config: TaskConfig
    labels: tuple[str, ...]
    truth: list[Any]  # as in Example.label
    records: list[dict[str, Any]]


def read_lines(outcome: Outcome) -> Lines:
    """Returns a finished run's predictions on the split that gives its score.

    Raises:
      PlmjaxError: the file is gone or damaged (exit code 3).
    """
    path = outcome.run.directory / f"predictions-{outcome.split}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        truth = [_tuples(record["truth"]) for record in records]
        probabilities = records[0].get("probabilities")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PlmjaxError(
            f"{path} cannot be read: {error}.",
            hint="Delete the run's directory; the same command does it again.",
            code=Exit.DATA,
        ) from error
    config = config_lib.build(TaskConfig, outcome.run.config["task"], "task.")
    labels = tuple(probabilities) if isinstance(probabilities, dict) else ()
    return Lines(config, labels, truth, records)


def _tuples(value: Any) -> Any:
    """Turns the lists of JSON back into tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# --- one answer for all


def constant_score(lines: Lines, metric: str) -> float | None:
    """Returns the best score of one answer for all examples; None for the loss."""
    if metric == "loss":
        return None
    if metric in ("pearson", "spearman"):
        return 0.0  # a constant has no correlation with anything
    truth = lines.truth
    scores = [
        predictions.scores_of(lines.config, lines.labels, truth, said)[metric]
        for said in _CONSTANTS[lines.config.kind](truth)
    ]
    return min(scores, key=lambda value: predictions.rank(metric, {metric: value}))


def _frequent(values: Sequence[Any]) -> list[Any]:
    return [value for value, _ in collections.Counter(values).most_common(_MOST)]


_CONSTANTS: dict[str, Callable[[list], list[list]]] = {
    "classes": lambda truth: [[one] * len(truth) for one in _frequent(truth)],
    "multilabel": lambda truth: [[one] * len(truth) for one in _frequent(truth)],
    "choices": lambda truth: [[one] * len(truth) for one in _frequent(truth)],
    "regression": lambda truth: [[float(np.mean(truth))] * len(truth)],
    "tags": lambda truth: [
        [(one,) * len(own) for own in truth]
        for one in _frequent([tag for own in truth for tag in own])
    ],
    "answers": lambda truth: [[""] * len(truth)],
    # Any order of the candidates has each rank as often as the others.
    "embeddings": lambda truth: [[*range(1, len(truth) + 1)]],
}


def has_learned(outcome: Outcome) -> bool | None:
    """Whether a finished run beats one answer for all; None where unknown."""
    assert outcome.metric is not None
    best = constant_score(read_lines(outcome), outcome.metric)
    if best is None:
        return None
    score, metric = outcome.score, outcome.metric
    if score is None:
        return False
    ours, theirs = (predictions.rank(metric, {metric: v}) for v in (score, best))
    return ours < theirs and not math.isclose(score, best, abs_tol=1e-9)


# --- several runs together


def ensemble_score(outcomes: Sequence[Outcome]) -> float | None:
    """Returns the score of the runs' averaged predictions on one split.

    None for the loss, and for embeddings: the vectors of two models cannot be averaged.

    Raises:
      PlmjaxError: predictions or models cannot be read.
    """
    metric = outcomes[0].metric
    assert metric is not None
    if metric == "loss":
        return None
    lines = read_lines(outcomes[0])
    if lines.config.kind == "embeddings":
        return None
    if lines.config.kind in _ASKED_AGAIN:
        config, labels, examples, several = _asked(outcomes)
        truth = [example.label for example in examples]
    else:
        config, labels, truth = lines.config, lines.labels, lines.truth
        examples = [Example("", "", (), None, "")] * len(truth)
        several = [_written(read_lines(outcome)) for outcome in outcomes]
    said = predictions.mean_of(several)
    predicted = predictions.read(config, labels, examples, said)
    value = predictions.scores_of(config, labels, truth, predicted)[metric]
    return value if math.isfinite(value) else None


def _written(lines: Lines) -> list[np.ndarray]:
    """Returns a run's predictions for each example, from its file."""
    if lines.config.kind == "regression":
        return [np.array([record["value"]]) for record in lines.records]
    found = [record["probabilities"] for record in lines.records]
    return [np.array([*(p.values() if isinstance(p, dict) else p)]) for p in found]


def _asked(outcomes: Sequence[Outcome]):
    """Returns config, labels, examples, and new predictions of each run's model."""
    run = outcomes[0].run
    data = split_of(run.build(), load_labelled(run.build().task))
    examples = getattr(data, outcomes[0].split)
    several, asked = [], None
    train = run.build().train
    for outcome in outcomes:  # one model at a time in memory
        path = str(outcome.run.directory)
        asked = Predictor([path], batch=train.batch // train.accumulation)
        several.append(asked.say(examples))
    assert asked is not None
    return asked.config, asked.labels, examples, several
