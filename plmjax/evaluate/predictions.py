"""Predictions of a fine-tuned model: scores of rows, joined and read by example.

The form of a prediction is that of the kind of task (plmjax/tasks/).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from plmjax import PlmjaxError
from plmjax.data.examples import Example
from plmjax.data.features import Features
from plmjax.data.task_batches import batches_in_order
from plmjax.data.task_packs import pack_features
from plmjax.models import EncoderConfig, Platform
from plmjax.models.task_heads import task_logits
from plmjax.tasks import KINDS
from plmjax.tasks.base import Prediction
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.task import Task
from plmjax.train import sharding


def make_predict(
    encoder: EncoderConfig,
    task: Task,
    mesh: jax.sharding.Mesh,
    merge: Callable[[dict, Any], dict] = lambda params, frozen: params,
) -> Callable:
    """Returns the jitted (params, frozen, batch) -> scores of all rows, replicated.

    `merge` converts trained parameters (LoRA) to those of the plain model.
    """

    platform = Platform.of(mesh.devices.flat)

    def predict(params, frozen, batch):
        model = merge(params, frozen)
        return task_logits(encoder, task, model, batch, None, platform=platform)

    return jax.jit(predict, out_shardings=sharding.replicated(mesh))


def score_rows(
    predict: Callable,
    mesh: jax.sharding.Mesh,
    features: Features,
    batch: int,
    config: TaskConfig,
    watched: Callable[[Iterator], Iterator] = iter,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (rows, their scores), each row once, in any order.

    predict(batch) is a jitted function; `watched` may stop before the last batch.
    `config` says whether rows are packed, or cut to fewer tokens.
    """

    def local(size: int) -> np.ndarray:
        return sharding.local_rows(mesh, size)

    def read(rows: np.ndarray, scores) -> tuple[np.ndarray, np.ndarray]:
        real, values = rows[rows >= 0], np.asarray(jax.device_get(scores))[rows >= 0]
        return packed.unpack(real, values) if packed else (real, values)

    packed = pack_features(features) if config.rows == "packed" else None
    shown = packed.features if packed else features
    waiting = None
    ordered = batches_in_order(shown, batch, lengths=config.buckets, mine=local)
    for rows, values in watched(ordered):
        scores = predict(sharding.put_rows(mesh, values))
        if waiting is not None:  # read while the device computes the next batch
            yield read(*waiting)
        waiting = rows, scores
    if waiting is not None:
        yield read(*waiting)


def mean_of(kind: str, several: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """Returns the mean of several models' predictions for the same examples."""
    return [KINDS[kind].mean(own) for own in zip(*several, strict=True)]


def read(
    config: TaskConfig,
    labels: Sequence[str],
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
) -> list[Any]:
    """Returns each example's prediction in the form that scores read."""
    kind = KINDS[config.kind]
    return [
        kind.read(labels, example, prediction)
        for example, prediction in zip(examples, predictions, strict=True)
    ]


def records_of(
    config: TaskConfig,
    labels: Sequence[str],
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
) -> Iterator[dict[str, Any]]:
    """Yields a record an example, for a file: its id, the prediction, and the truth.

    "truth" is present if an example has a label.
    """
    kind = KINDS[config.kind]
    for example, prediction in zip(examples, predictions, strict=True):
        label = kind.read(labels, example, prediction)
        record = {"id": example.id} | kind.record(labels, example, label, prediction)
        if example.label is not None:
            record["truth"] = example.label
        yield record


def metrics_of(
    config: TaskConfig, labels: Sequence[str], truth: Sequence[Any]
) -> list[str]:
    """Returns the names of the scores that a task has, loss among them."""
    kind = KINDS[config.kind]
    # The names are those of scoring the truth as a prediction.
    perfect = [kind.correct(label) for label in truth]
    return [*kind.scores(truth, perfect, labels, config), "loss"]


def check_metric(
    config: TaskConfig, labels: Sequence[str], truth: Sequence[Any], metric: str
) -> None:
    """Raises PlmjaxError for a score that the task does not have."""
    known = metrics_of(config, labels, truth)
    if metric not in known:
        raise PlmjaxError(
            f"select.metric={metric} is no score of this task.",
            hint=f"Its scores: {', '.join(known)}.",
        )
