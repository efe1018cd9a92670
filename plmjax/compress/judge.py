"""The loss by which heads, neurons and layers are chosen, and the rows it is of.

Legend: B rows, K hidden pieces of a row, T = B * K.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plmjax import PlmjaxError
from plmjax.compress.prune import Loss
from plmjax.compress.score import Given, Text, own_documents
from plmjax.data.task_batches import batch_of
from plmjax.evaluate.model import Model, is_run
from plmjax.evaluate.texts import row_arrays
from plmjax.finetune.predict import Predictor, labelled_examples
from plmjax.models import EncoderConfig, Platform, heads
from plmjax.models.global_tokens import with_room
from plmjax.models.layers import cross_entropy
from plmjax.objectives import Contrastive, Supervised, SupervisedConfig
from plmjax.tasks.features import make_features
from plmjax.train.step import evaluation_key

_ROWS = 256  # from which the importance of heads and neurons is read
_UNIT = 16  # of them at once, where the loss compares rows with each other


class Judge(NamedTuple):
    """A loss of a model's rows; `unit` rows belong together."""

    loss: Loss
    rows: dict[str, np.ndarray]
    unit: int


def make_judge(given: Given, source: Path, model: Model) -> Judge:
    """Returns the loss of a model's task, or of hidden words, on what it learnt from.

    Without that it is on what is scored.

    Raises:
      PlmjaxError: there are no data, or the model guesses nothing.
    """
    if given.part is None:
        raise PlmjaxError(
            f"what to cut out of {given.name} is chosen by its loss, and there are no "
            "data for it.",
            hint="Give --data=FILE: labelled examples of its task, or text.",
        )
    if isinstance(given.part, Text):
        judge = _of_words(given, source, model, given.part)
    else:
        judge = _of_task(given, source, model)
    if given.options["data"] is not None:
        given.log(
            "What is cut is chosen by the loss on --data, on which the rest is scored."
        )
    return judge


def _of_task(given: Given, source: Path, model: Model) -> Judge:
    task = model.task
    assert task is not None
    predictor = Predictor([str(source)], ["rows=single"])
    data = given.options["data"]
    examples = labelled_examples(predictor, given.name, data, ("train",), given.log)
    chosen = np.random.default_rng(0).permutation(len(examples))[:_ROWS]
    some = [examples[i] for i in np.sort(chosen).tolist()]
    config = predictor.config
    features = make_features(config, some, model.tokenizer, predictor.labels)
    rows = batch_of(features, np.arange(features.rows)[:_ROWS])
    room = with_room(model.encoder, rows["tokens"], rows["segments"]).global_limit
    platform = Platform.of(jax.devices())

    def loss(encoder: EncoderConfig, params: dict, batch: dict) -> jax.Array:
        encoder = dataclasses.replace(encoder, global_limit=room)
        options = SupervisedConfig(), encoder, task
        if task.head is None:
            texts = batch["tokens"].shape[1]
            objective = Contrastive(
                *options, config.temperature, texts, platform=platform
            )
        else:
            objective = Supervised(*options, platform=platform)
        key = evaluation_key()
        batch = objective.corrupt({}, batch, key, 1.0)
        return objective.loss(params, {}, batch, key, False)[0]

    alone = min(_UNIT, len(rows["tokens"])) if task.head is None else 1
    return Judge(loss, rows, alone)


def _of_words(given: Given, source: Path, model: Model, part: Text) -> Judge:
    if not part.guesses:
        raise PlmjaxError(
            f"{given.name} guesses no words and has no task, so it has no loss by "
            "which to choose what to cut.",
            hint="Fine-tune it first, or prune by magnitude: --sparsity=.5.",
        )
    if given.options["data"] is None and is_run(Path(given.name)):
        part = Text(source, model, own_documents(given.name, model, "train"))
    some = part.rows[:_ROWS]
    shape = len(some), max(len(r.tokens) for r in some), max(len(r.at) for r in some)
    batch, at_BK, labels_BK = row_arrays(some, part.pad_id, *shape)
    count_B1 = np.array([[len(row.at)] for row in some])
    used_BK = (np.arange(shape[2])[None] < count_B1).astype(np.float32)
    encoder = with_room(model.encoder, batch["tokens"], batch["segments"])
    rows = batch | {"at": at_BK, "labels": labels_BK, "used": used_BK}
    platform = Platform.of(jax.devices())

    def loss(smaller: EncoderConfig, params: dict, batch: dict) -> jax.Array:
        smaller = dataclasses.replace(smaller, global_limit=encoder.global_limit)
        x_BLH = heads.encode(smaller, params, batch, None, platform)
        x_TH = heads.gather_positions(x_BLH, batch["at"])
        logits_TV = heads.vocabulary_logits(smaller, params, x_TH, platform)
        nats_T = cross_entropy(logits_TV, batch["labels"].reshape(-1))[0]
        used_T = batch["used"].reshape(-1)
        return jnp.sum(nats_T * used_T) / jnp.maximum(jnp.sum(used_T), 1)

    return Judge(loss, rows, 1)
