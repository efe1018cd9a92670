"""Masked language modelling (Devlin et al. 2018, arXiv:1810.04805).

Legend: B rows, L tokens, K slots a row, H width, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from plmjax import PlmjaxError
from plmjax.models import Encoder, EncoderConfig
from plmjax.models import noise as noise_lib
from plmjax.models.heads import VocabularyHead
from plmjax.models.layers import cross_entropy
from plmjax.models.noise import Noise
from plmjax.objectives import masking
from plmjax.objectives.base import Batch, Key, Objective


@dataclasses.dataclass(frozen=True)
class MLMConfig:
    """How tokens are chosen, what replaces them, and when the choice changes."""

    kind: Literal["mlm"] = "mlm"
    probability: float = 0.15
    # Of the chosen tokens: replaced by [MASK], by a random piece; the rest are kept.
    mask_share: float = 0.8
    random_share: float = 0.1
    unit: Literal["token", "word"] = "token"
    # dynamic: new masks each step; static: `copies` fixed masks a row, in turn.
    masks: Literal["dynamic", "static"] = "dynamic"
    copies: int = 10

    def __post_init__(self):
        if not 0 < self.probability < 1:
            raise PlmjaxError(
                f"objective.probability is {self.probability}; "
                "it must lie between 0 and 1."
            )
        shares = (self.mask_share, self.random_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise PlmjaxError(
                f"objective.mask_share={shares[0]} and random_share={shares[1]} must "
                "not be negative and must sum to at most 1 (the rest is kept)."
            )
        if self.copies < 1:
            raise PlmjaxError(
                f"objective.copies is {self.copies}; it must be at least 1."
            )


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What masking needs to know of the tokenizer."""

    mask_id: int
    special_ids: tuple[int, ...]
    # UTF-8 bytes of each piece, for bits per byte.
    token_bytes: Sequence[int]


def mlm(config: MLMConfig, encoder: EncoderConfig, pieces: Pieces) -> Objective:
    """Returns the objective that predicts masked tokens from both sides."""
    if encoder.causal:
        raise PlmjaxError(
            "model.causal=True hides what masked language modelling must see.",
            hint="Set model.causal=False.",
        )
    model, head = Encoder(encoder), VocabularyHead(encoder)
    special_V = np.zeros(encoder.vocab_size, bool)
    special_V[list(pieces.special_ids)] = True
    # Random pieces come from the tokenizer, not from a padded end of the table.
    ordinary = np.flatnonzero(~special_V[: len(pieces.token_bytes)]).astype(np.int32)
    bytes_V = np.zeros(encoder.vocab_size, np.float32)
    bytes_V[: len(pieces.token_bytes)] = pieces.token_bytes

    def init(key, batch):
        encoder_key, head_key = jax.random.split(key)
        inputs = [batch[k] for k in ("tokens", "segments", "positions", "types")]
        x_TH = jnp.zeros((1, encoder.width), encoder.dtype)
        table_VE = jnp.zeros((encoder.vocab_size, encoder.input_width))
        return {
            "encoder": model.init(encoder_key, *inputs)["params"],
            "head": head.init(head_key, x_TH, table_VE)["params"],
        }, {}

    def corrupt(batch: Batch, key: Key, progress) -> Batch:
        del progress  # No schedule yet.
        noise = key.noise(batch)
        if config.masks == "static":
            # The same for a row each time it is seen, but for which copy it is.
            step = batch["copy"].astype(jnp.uint32)
            noise = Noise(noise.seed, step, noise.rows)
        tokens_BL = batch["tokens"]
        maskable_BL = (batch["segments"] > 0) & ~jnp.asarray(special_V)[tokens_BL]
        slots = masking.slots(config.probability, tokens_BL.shape[1])
        words = batch["word_start"] if config.unit == "word" else None
        positions_BK, used_BK = masking.choose(
            noise, maskable_BL, words, config.probability, slots
        )
        labels_BK = jnp.take_along_axis(tokens_BL, positions_BK, axis=1)
        fate_BK = noise_lib.uniform(noise, "mask/fate", slots)
        draw_BK = noise_lib.bits(noise, "mask/random", slots)
        random_BK = jnp.asarray(ordinary)[draw_BK % jnp.uint32(len(ordinary))]
        replaced_BK = jnp.where(
            fate_BK < config.mask_share,
            pieces.mask_id,
            jnp.where(
                fate_BK < config.mask_share + config.random_share, random_BK, labels_BK
            ),
        )
        replaced_BK = jnp.where(used_BK, replaced_BK, labels_BK)
        used = used_BK.astype(jnp.float32)
        return batch | {
            "tokens": masking.put(tokens_BL, positions_BK, replaced_BK),
            "mask_positions": positions_BK,
            "labels": labels_BK,
            "weights": used / jnp.maximum(jnp.sum(used), 1),
        }

    def logits(params, batch: Batch, noise: Noise | None) -> jax.Array:
        inputs = [batch[k] for k in ("tokens", "segments", "positions", "types")]
        x_BLH: Any = model.apply({"params": params["encoder"]}, *inputs, noise)
        # The vocabulary head runs on the chosen positions alone.
        positions_BK = batch["mask_positions"]
        x_BKH = jnp.take_along_axis(x_BLH, positions_BK[:, :, None], axis=1)
        x_TH = x_BKH.reshape(-1, encoder.width)
        table_VE = params["encoder"]["embeddings"]["token"]
        logits_TV: Any = head.apply({"params": params["head"]}, x_TH, table_VE)
        return logits_TV

    def loss(params, frozen, batch: Batch, key: Key, train: bool):
        del frozen
        logits_TV = logits(params, batch, key.noise(batch) if train else None)
        labels_T = batch["labels"].reshape(-1)
        weights_T = batch["weights"].reshape(-1)
        scored: Any = cross_entropy(logits_TV, labels_T)
        nll_T, hit_T = scored
        used_T = (weights_T > 0).astype(jnp.float32)
        total, count = jnp.sum(nll_T * used_T), jnp.sum(used_T)
        hits = jnp.sum(jax.lax.stop_gradient(hit_T) * used_T)
        bytes_T = jnp.asarray(bytes_V)[labels_T]
        return jnp.sum(nll_T * weights_T), {
            "loss": (total, count),
            "accuracy": (hits, count),
            "nats_per_byte": (total, jnp.sum(bytes_T * used_T)),
        }

    def outputs(params, batch: Batch):
        logits_TV = logits(params, batch, None)
        return logits_TV.reshape(*batch["mask_positions"].shape, -1)

    return Objective(init, corrupt, loss, outputs)
