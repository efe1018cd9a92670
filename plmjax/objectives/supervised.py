"""Fine-tuning on labels: classes, several labels, numbers, tags, answers, choices.

Legend: B rows, L tokens a row, C classes, labels or choices, U labelled units: rows
[B], or tokens [B, L] for tags.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from plmjax import PlmjaxError
from plmjax.config import number
from plmjax.models import EncoderConfig, flops, task_heads
from plmjax.models.noise import Noise, hash32
from plmjax.models.platform import ANY, Platform
from plmjax.models.task_heads import OUT_OF_REACH, POOLERS, Task, task_logits
from plmjax.objectives.base import Batch, Key, Objective, ObjectiveConfig, single_model

_SMOOTHABLE = ("classes", "tags", "choices")


@dataclasses.dataclass(frozen=True)
class SupervisedConfig(ObjectiveConfig):
    """Fine-tuning on the labels that come with the rows."""

    kind: Literal["supervised"] = "supervised"
    # The share of each target that is spread evenly over the classes.
    label_smoothing: float = number(0.0, at_least=0, below=1)
    # R-Drop (Liang et al. 2021, arXiv:2106.14448): weight of the divergence of two
    # passes with different dropout; 0: one pass.
    rdrop_weight: float = number(0.0, at_least=0)


class Kind(NamedTuple):
    """The loss and metrics of a kind of task, for each of U.

    has(batch) -> bool: True with a label, False for filler rows.
    loss(scores, labels, smoothing) -> float32.
    score(scores, labels) -> float32, `score_name` in the metrics.
    divergence(scores, scores) -> float32: symmetric divergence of two passes.
    """

    has: Callable
    loss: Callable
    score: Callable
    divergence: Callable
    score_name: str = "accuracy"


def _targets(scores, labels, smoothing: float):
    """Returns target probabilities in the scores' shape; labels may be class ids."""
    if labels.ndim < scores.ndim:
        labels = jax.nn.one_hot(jnp.maximum(labels, 0), scores.shape[-1])
    return labels * (1 - smoothing) + smoothing / scores.shape[-1]


def _class_loss(scores, labels, smoothing: float):
    targets = _targets(scores, labels, smoothing)
    # Padding, which cannot be chosen, adds no loss for its share of the smoothing.
    logs = jnp.where(scores > 0.5 * OUT_OF_REACH, jax.nn.log_softmax(scores), 0.0)
    return -jnp.sum(targets * logs, axis=-1)


def _class_hit(scores, labels):
    if labels.ndim == scores.ndim:
        labels = jnp.argmax(labels, axis=-1)
    return (jnp.argmax(scores, axis=-1) == labels).astype(jnp.float32)


def _class_divergence(p, q):
    p, q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
    return 0.5 * jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), axis=-1)


def _label_loss(scores, labels, smoothing: float):
    del smoothing
    return jnp.mean(jax.nn.softplus(scores) - labels * scores, axis=-1)


def _label_hits(scores, labels):
    right = (scores > 0) == (labels > 0.5)
    return jnp.mean(right.astype(jnp.float32), axis=-1)


def _label_divergence(p, q):
    # Each label has a distribution over yes and no; the score is its log odds.
    apart = (jax.nn.sigmoid(p) - jax.nn.sigmoid(q)) * (p - q)
    return 0.5 * jnp.mean(apart, axis=-1)


def _square(scores, labels, smoothing: float):
    del smoothing
    return jnp.square(scores[:, 0] - labels)


# An answer is two choices of a token, beginning and end; each counts half.
def _ends(scores):
    return scores.transpose(0, 2, 1)


def _end_loss(scores, labels, smoothing: float):
    return jnp.mean(_class_loss(_ends(scores), labels, smoothing), axis=-1)


def _end_hit(scores, labels):
    return jnp.prod(_class_hit(_ends(scores), labels), axis=-1)


def _end_divergence(p, q):
    return jnp.mean(_class_divergence(_ends(p), _ends(q)), axis=-1)


def _all(batch: Batch):
    return batch["weight"] > 0


def _labelled(batch: Batch):
    """Returns True for rows or tokens with a label; all-zero probabilities are none."""
    labels, real = batch["label"], batch["weight"] > 0
    if labels.dtype == jnp.float32:
        has = jnp.sum(labels, axis=-1) > 0
    else:
        has = labels >= 0
    return has & real.reshape(-1, *[1] * (has.ndim - 1))


def _answered(batch: Batch):
    """Returns True for rows with a label: an answer or "no answer", not (-1, -1)."""
    return _all(batch) & (batch["label"][:, 0] >= 0)


_CLASSES = Kind(_labelled, _class_loss, _class_hit, _class_divergence)
KINDS = {
    "classes": _CLASSES,
    "multilabel": Kind(_all, _label_loss, _label_hits, _label_divergence),
    "regression": Kind(
        _all,
        _square,
        lambda scores, labels: jnp.abs(scores[:, 0] - labels),
        lambda p, q: jnp.square(p - q)[:, 0],
        "absolute_error",
    ),
    "tags": _CLASSES,
    "answers": Kind(_answered, _end_loss, _end_hit, _end_divergence),
    "choices": _CLASSES,
}


def row_losses(kind: str, scores, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns (sum, count) of the held-out losses of a batch's rows or tokens."""
    has = KINDS[kind].has(batch)
    losses = KINDS[kind].loss(scores, batch["label"], 0.0)
    return jnp.sum(jnp.where(has, losses, 0.0)), jnp.sum(has)


@dataclasses.dataclass(frozen=True, eq=False)
class Supervised(Objective):
    """Predicts batch["label"].

    With `cached`, training batches come with the encoder's states, so a step has no
    FLOPs of the encoder.

    The loss is the mean over all labelled rows (tags: tokens) of the global batch,
    weighted by batch["weight"]; losses and scores among the metrics are plain means.
    models.task_heads.task_logits returns a model's outputs.

    Raises:
      PlmjaxError: the family has no such head, or the kind of task no smoothing.
    """

    config: SupervisedConfig
    encoder: EncoderConfig
    task: Task
    cached: bool = False
    platform: Platform = dataclasses.field(default=ANY, kw_only=True)

    def __post_init__(self):
        config, kind = self.config, self.task.kind
        task_heads.check(self.encoder)
        assert self.task.head is not None, "embeddings are learned by contrastive"
        if config.label_smoothing and kind not in _SMOOTHABLE:
            raise PlmjaxError(
                f"objective.label_smoothing={config.label_smoothing} means nothing for "
                f"a task of kind {kind}.",
                hint=f"It is for {', '.join(_SMOOTHABLE)}; leave it out.",
            )

    @property
    def kind(self) -> Kind:
        """The loss and metrics of the task."""
        return KINDS[self.task.kind]

    @property
    def models(self):
        assert self.task.head is not None
        return single_model(self.encoder, (self.task.head,))

    def init(self, key, batch):
        return task_heads.init_model(self.encoder, self.task, key, batch)

    def corrupt(self, frozen: dict, batch: Batch, key: Key, progress) -> Batch:
        del frozen, key, progress
        has = self.kind.has(batch)
        weight_U = batch["weight"].reshape(-1, *[1] * (has.ndim - 1))
        weight_U = jnp.where(has, weight_U, 0.0)
        total = jnp.sum(weight_U)
        return batch | {"weights": weight_U / jnp.where(total > 0, total, 1.0)}

    def loss(self, params, frozen, batch: Batch, key: Key, train: bool):
        del frozen
        kind, noise = self.kind, key.noise(batch) if train else None
        labels, weights_U = batch["label"], batch["weights"]
        # Held-out losses use the labels without smoothing.
        smoothing = self.config.label_smoothing if train else 0.0
        says = functools.partial(task_logits, self.encoder, self.task, params, batch)
        scores = says(noise, platform=self.platform)
        loss_U = kind.loss(scores, labels, smoothing)
        used_U = (weights_U > 0).astype(jnp.float32)
        count = jnp.sum(used_U)
        metrics = {}
        total_U = loss_U
        if noise is not None and self.config.rdrop_weight:
            others = says(_again(noise), platform=self.platform)
            loss_U = 0.5 * (loss_U + kind.loss(others, labels, smoothing))
            apart_U = kind.divergence(scores, others)
            total_U = loss_U + self.config.rdrop_weight * apart_U
            metrics["rdrop"] = (jnp.sum(apart_U * used_U), count)
        score_U = jax.lax.stop_gradient(kind.score(scores, labels))
        metrics["loss"] = (jnp.sum(loss_U * used_U), count)
        metrics[kind.score_name] = (jnp.sum(score_U * used_U), count)
        return jnp.sum(total_U * weights_U), metrics

    def scores(self, means):
        return {name: means[name] for name in ("loss", self.kind.score_name)}

    def slots(self, length):
        return length if self.task.kind == "tags" else 1

    def flops(self, length):
        task, pooled = self.task, self.task.head in POOLERS
        several = max(len(task.labels), 1) if task.kind == "choices" else 1
        positions = 1 if pooled else length
        head = flops.task_flops(self.encoder, positions, pooled, task.outputs)
        passes = 2 if self.config.rdrop_weight else 1
        reads = 0 if self.cached else flops.encoder_flops(self.encoder, length)
        return passes * several * (reads + head)


def _again(noise: Noise) -> Noise:
    """Returns independent noise for a second pass."""
    return noise._replace(seed=hash32(noise.seed ^ jnp.uint32(0x52D209)))
