"""Causal language modelling: the next token from those before it (GPT-2).

Legend: B rows, L tokens, K = L - 1 predicted positions, H width, V vocabulary.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from plmjax import PlmjaxError
from plmjax.models import EncoderConfig, flops, heads
from plmjax.models.platform import ANY, Platform
from plmjax.objectives.base import (
    Batch,
    Key,
    Objective,
    ObjectiveConfig,
    Pieces,
    single_model,
)
from plmjax.objectives.masked import bytes_of, token_loss
from plmjax.objectives.mlm import token_scores


@dataclasses.dataclass(frozen=True)
class CLMConfig(ObjectiveConfig):
    """Causal language modelling; it has no settings."""

    kind: Literal["clm"] = "clm"


@dataclasses.dataclass(frozen=True, eq=False)
class CLM(Objective):
    """Predicts each token from those before it.

    Documents packed into one row neither see nor predict each other.
    """

    config: CLMConfig
    encoder: EncoderConfig
    pieces: Pieces
    platform: Platform = dataclasses.field(default=ANY, kw_only=True)

    def __post_init__(self):
        if not self.encoder.causal:
            raise PlmjaxError(
                "objective.kind=clm needs a causal model; with model.causal=False it "
                "would see the tokens that it predicts.",
                hint="Choose a model such as --config.model.preset=gpt2-tiny, or set "
                "--config.model.causal=True.",
            )

    def tables(self):
        return {"piece_bytes": bytes_of(self.pieces, self.encoder.vocab_size)}

    @property
    def models(self):
        return single_model(self.encoder, ("head",))

    @property
    def token_loss(self):
        return "loss"

    def init(self, key, batch):
        return heads.init_model(self.encoder, key, batch, ("head",))

    def corrupt(self, frozen: dict, batch: Batch, key: Key, progress) -> Batch:
        del frozen, key, progress
        tokens_BL, segments_BL = batch["tokens"], batch["segments"]
        rows, length = tokens_BL.shape
        used = (segments_BL[:, 1:] > 0) & (segments_BL[:, 1:] == segments_BL[:, :-1])
        # A document that is cut at the end of its row does not end there.
        used &= ~batch["cut"][:, 1:]
        used = used.astype(jnp.float32)
        at_K = jnp.arange(length - 1, dtype=jnp.int32)
        return batch | {
            # The positions from which the next token is predicted.
            "mask_positions": jnp.broadcast_to(at_K[None], (rows, length - 1)),
            "labels": tokens_BL[:, 1:],
            "weights": used / jnp.maximum(jnp.sum(used), 1),
        }

    def loss(self, params, frozen, batch: Batch, key: Key, train: bool):
        noise, encoder = key.noise(batch) if train else None, self.encoder
        x_BLH = heads.encode(encoder, params, batch, noise, self.platform)
        x_TH = x_BLH[:, :-1].reshape(-1, encoder.width)
        logits_TV = heads.vocabulary_logits(encoder, params, x_TH, self.platform)
        return token_loss(logits_TV, batch, frozen["piece_bytes"])

    def scores(self, means):
        return token_scores(means)

    def slots(self, length):
        return length - 1

    def flops(self, length):
        return flops.encoder_flops(self.encoder, length) + flops.vocabulary_flops(
            self.encoder, length - 1
        )
