"""Contrastive sentence embeddings: find a text's pair among the pairs of the batch.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) with the other rows' pairs as
negatives (Henderson et al. 2017, arXiv:1705.00652).

Legend: B rows of a device, N of all devices, C texts a row (text, pair, and perhaps a
negative), M candidates: the N pairs, then the N negatives; H width.
"""

import dataclasses

import jax
import jax.numpy as jnp

from plmjax import PlmjaxError
from plmjax.models import EncoderConfig, flops, task_heads
from plmjax.models.platform import ANY, Platform
from plmjax.models.task_heads import OUT_OF_REACH, task_logits
from plmjax.objectives.base import Batch, Key, Objective, of_all_rows, single_model
from plmjax.objectives.supervised import SupervisedConfig
from plmjax.tasks.task import Task

# A row of padding may be all zeros, where the square root has no gradient.
_LEAST = 1e-12


def unit(x: jax.Array) -> jax.Array:
    """Returns float32 vectors scaled to length 1."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, jnp.float32(_LEAST)))


def candidates(number_BC, number_NC, real_N, first) -> jax.Array:
    """Returns which candidates each row's text is compared with, [B, M] bool.

    Equal texts have equal `number`; `first` is the index of the B rows among the N.
    Left out, besides filler rows, because they are not negatives: the text itself, its
    pair in another row, and the pair of a row with the same text.
    """
    text_B1, pair_B1 = number_BC[:, :1], number_BC[:, 1:2]
    row_B1 = first + jnp.arange(len(number_BC))[:, None]
    own_BN = row_B1 == jnp.arange(len(real_N))[None]
    same_BN = text_B1 == number_NC[None, :, 0]
    blocks = []
    for column in range(1, number_BC.shape[1]):
        other_1N = number_NC[None, :, column]
        differs_BN = (other_1N != text_B1) & (other_1N != pair_B1)
        if column == 1:
            differs_BN &= ~same_BN
        blocks.append(differs_BN & real_N[None])
    blocks[0] |= own_BN
    return jnp.concatenate(blocks, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Contrastive(Objective):
    """Moves a text closer to its pair than to other texts.

    Rows are batch["tokens"] [B, C, L] of `texts` C; batch["label"] [B, C] are numbers,
    equal for equal texts. The loss is the mean over all rows of the global batch; a row
    is compared with the pairs and negatives of its micro-batch, on all devices.

    Raises:
      PlmjaxError: the family cannot be fine-tuned, or an option for labels is set.
    """

    config: SupervisedConfig
    encoder: EncoderConfig
    task: Task
    temperature: float
    texts: int = 2
    platform: Platform = dataclasses.field(default=ANY, kw_only=True)

    def __post_init__(self):
        task_heads.check(self.encoder)
        for key in ("label_smoothing", "rdrop_weight", "teacher"):
            if value := getattr(self.config, key):
                raise PlmjaxError(
                    f"objective.{key}={value} means nothing for a task of kind "
                    f"{self.task.kind}.",
                    hint="Leave it out.",
                )

    @property
    def models(self):
        return single_model(self.encoder, ())

    def init(self, key, batch):
        return task_heads.init_model(self.encoder, self.task, key, batch)

    def corrupt(self, frozen: dict, batch: Batch, key: Key, progress) -> Batch:
        del frozen, key, progress
        weight_B = jnp.where(batch["weight"] > 0, batch["weight"], 0.0)
        total = jnp.sum(weight_B)
        return batch | {"weights": weight_B / jnp.where(total > 0, total, 1.0)}

    def loss(self, params, frozen, batch: Batch, key: Key, train: bool):
        del frozen
        noise = key.noise(batch) if train else None
        vectors_BCH = unit(
            task_logits(
                self.encoder, self.task, params, batch, noise, platform=self.platform
            )
        )
        number_BC, weights_B = batch["label"], batch["weights"]
        (vectors_NCH, number_NC, real_N), first = of_all_rows(
            (vectors_BCH, number_BC, batch["weight"] > 0)
        )
        others_MH = jnp.concatenate([*vectors_NCH.transpose(1, 0, 2)[1:]])
        # GPUs and TPUs round to ten bits or fewer by default, and dividing by the
        # temperature would make this error 20 times larger.
        scores_BM = jnp.matmul(vectors_BCH[:, 0], others_MH.T, precision="highest")
        compared_BM = candidates(number_BC, number_NC, real_N, first)
        scores_BM = jnp.where(
            compared_BM,
            scores_BM / jnp.float32(self.temperature),
            jnp.float32(OUT_OF_REACH),
        )
        own_B = first + jnp.arange(len(number_BC))
        logs_BM = jax.nn.log_softmax(scores_BM)
        loss_B = -jnp.take_along_axis(logs_BM, own_B[:, None], axis=1)[:, 0]
        hit_B = (jnp.argmax(scores_BM, axis=1) == own_B).astype(jnp.float32)
        used_B = (weights_B > 0).astype(jnp.float32)
        count = jnp.sum(used_B)
        metrics = {
            "loss": (jnp.sum(loss_B * used_B), count),
            "accuracy": (jnp.sum(hit_B * used_B), count),
        }
        return jnp.sum(loss_B * weights_B), metrics

    def scores(self, means):
        return {name: means[name] for name in ("loss", "accuracy")}

    def slots(self, length):
        return 1

    def flops(self, length):
        return self.texts * flops.encoder_flops(self.encoder, length)
