"""Fine-tuning on labels, by the loss of the kind of task.

Legend: B rows, L tokens a row, U labelled units: rows [B], examples [B, K] of packed
rows, or tokens [B, L] if each word has a label.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from plmjax import PlmjaxError
from plmjax.config import number
from plmjax.data.features import TEACHER
from plmjax.models import EncoderConfig, flops, task_heads
from plmjax.models.noise import Noise, hash32
from plmjax.models.platform import ANY, Platform
from plmjax.models.task_heads import POOLERS, task_logits
from plmjax.objectives.base import Batch, Key, Objective, ObjectiveConfig, single_model
from plmjax.tasks import KINDS, TaskKind
from plmjax.tasks.losses import per_unit
from plmjax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class SupervisedConfig(ObjectiveConfig):
    """Fine-tuning on the labels that come with the rows."""

    kind: Literal["supervised"] = "supervised"
    # The share of each target that is spread evenly over the classes.
    label_smoothing: float = number(0.0, at_least=0, below=1)
    # R-Drop (Liang et al. 2021, arXiv:2106.14448): weight of the divergence of two
    # passes with different dropout; 0: one pass.
    rdrop_weight: float = number(0.0, at_least=0)
    # A fine-tuned model of the same task, a workdir or a folder, whose scores of the
    # training rows are learnt beside their labels; their share of the loss; what
    # softens both distributions.
    teacher: str | None = None
    teacher_share: float = number(0.5, at_least=0, at_most=1)
    teacher_temperature: float = number(2.0, above=0)


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

    The loss is the mean over all labelled units of the global batch, weighted by
    batch["weight"]; losses and scores among the metrics are plain means.
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
        task_heads.check(self.encoder, self.task.head, self.task.head_pooling)
        assert self.task.head is not None, "Contrastive trains models without a head"
        if (smoothing := self.config.label_smoothing) and not self.kind.smoothing:
            smoothable = [name for name, kind in KINDS.items() if kind.smoothing]
            raise PlmjaxError(
                f"objective.label_smoothing={smoothing} means nothing for a task of "
                f"kind {self.task.kind}.",
                hint=f"It is for {', '.join(smoothable)}; leave it out.",
            )

    @property
    def kind(self) -> TaskKind:
        """The kind of the task, with its loss and score."""
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
        weight_U = jnp.where(has, per_unit(batch["weight"], has), 0.0)
        total = jnp.sum(weight_U)
        return batch | {"weights": weight_U / jnp.where(total > 0, total, 1.0)}

    def loss(self, params, frozen, batch: Batch, key: Key, train: bool):
        del frozen
        kind, noise = self.kind, key.noise(batch) if train else None
        labels, weights_U = batch["label"], batch["weights"]
        # Held-out losses use the labels without smoothing.
        smoothing = self.config.label_smoothing if train else 0.0
        forward = functools.partial(
            task_logits,
            self.encoder,
            self.task,
            params,
            batch,
            platform=self.platform,
        )
        scores = forward(noise)
        loss_U = kind.loss(scores, labels, smoothing)
        used_U = (weights_U > 0).astype(jnp.float32)
        count = jnp.sum(used_U)
        metrics = {}
        total_U = loss_U
        if noise is not None and self.config.rdrop_weight:
            others = forward(_second_noise(noise))
            loss_U = 0.5 * (loss_U + kind.loss(others, labels, smoothing))
            divergence_U = kind.divergence(scores, others)
            total_U = loss_U + self.config.rdrop_weight * divergence_U
            metrics["rdrop"] = (jnp.sum(divergence_U * used_U), count)
        if train and self.config.teacher is not None:
            share, degrees = self.config.teacher_share, self.config.teacher_temperature
            soft_U = kind.soft_loss(scores, batch[TEACHER], degrees)
            total_U = (1 - share) * total_U + share * soft_U
            metrics["teacher_loss"] = (jnp.sum(soft_U * used_U), count)
        score_U = jax.lax.stop_gradient(kind.score(scores, labels))
        metrics["loss"] = (jnp.sum(loss_U * used_U), count)
        metrics[kind.score_name] = (jnp.sum(score_U * used_U), count)
        return jnp.sum(total_U * weights_U), metrics

    def scores(self, means):
        return {name: means[name] for name in ("loss", self.kind.score_name)}

    def slots(self, length):
        return length if self.kind.per_word else 1

    def flops(self, length):
        task, pooled = self.task, self.task.head in POOLERS
        # Texts side by side in a row; how many is known only if the task names them.
        several = 1 if self.kind.label_names else max(len(task.labels), 1)
        positions = 1 if pooled and task.head_pooling != "late" else length
        head = flops.task_flops(self.encoder, positions, pooled, task.outputs)
        passes = 2 if self.config.rdrop_weight else 1
        reads = 0 if self.cached else flops.encoder_flops(self.encoder, length)
        return passes * several * (reads + head)


def _second_noise(noise: Noise) -> Noise:
    """Returns independent noise for a second pass."""
    return noise._replace(seed=hash32(noise.seed ^ jnp.uint32(0x52D209)))
