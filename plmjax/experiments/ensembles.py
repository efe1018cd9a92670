"""Predictions of runs: averaged over runs, and compared with one answer for all."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.data.examples import Example
from plmjax.evaluate import predictions
from plmjax.experiments.outcomes import Outcome
from plmjax.finetune.build import split_of
from plmjax.finetune.predict import Predictor
from plmjax.tasks import KINDS, scores
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.labelled import load_labelled


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
            hint="Delete the run's directory, and run the same command again.",
            code=Exit.DATA,
        ) from error
    config = config_lib.build(TaskConfig, outcome.run.config["task"], "task.")
    labels = tuple(probabilities) if isinstance(probabilities, dict) else ()
    if config.kind == "tags":
        labels = _tags(outcome, records)
    return Lines(config, labels, truth, records)


def _tags(outcome: Outcome, records: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Returns the tags that a run learned: they decide how entities are marked."""
    path = outcome.run.directory / "export" / "config.json"
    if path.is_file():
        return tuple(json.loads(path.read_text())["id2label"].values())
    tags = (tag for one in records for tag in (*one["truth"], *one["tags"]))
    return tuple(dict.fromkeys(tags))


def _tuples(value: Any) -> Any:
    """Turns the lists of JSON back into tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


# --- one answer for all


def constant_score(lines: Lines, metric: str) -> float | None:
    """Returns the best score of one answer for all examples; None for the loss."""
    config = lines.config
    return scores.constant_score(config.kind, metric, lines.truth, lines.labels, config)


def has_learned(outcome: Outcome) -> bool | None:
    """Whether a finished run beats one answer for all; None where unknown."""
    assert outcome.metric is not None
    best = constant_score(read_lines(outcome), outcome.metric)
    if best is None:
        return None
    if outcome.score is None:
        return False
    return scores.beats_constant(outcome.metric, outcome.score, best)


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
    kind = KINDS[lines.config.kind]
    if not kind.averages:
        return None
    if kind.from_record(lines.records[0]) is None:  # only the likeliest: models run
        config, labels, examples, several = _asked(outcomes)
        truth = [example.label for example in examples]
    else:
        config, labels, truth = lines.config, lines.labels, lines.truth
        examples = [Example("", "", (), None, "")] * len(truth)
        several = [
            [kind.from_record(record) for record in read_lines(outcome).records]
            for outcome in outcomes
        ]
    means = predictions.mean_of(config.kind, several)
    predicted = predictions.read(config, labels, examples, means)
    value = kind.scores(truth, predicted, labels, config)[metric]
    return value if math.isfinite(value) else None


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
        several.append(asked.predict(examples))
    assert asked is not None
    return asked.config, asked.labels, examples, several
