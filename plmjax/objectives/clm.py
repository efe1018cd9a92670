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
    whole,
)
from plmjax.objectives.masked import bytes_of, token_loss
from plmjax.objectives.mlm import token_scores


@dataclasses.dataclass(frozen=True)
class CLMConfig(ObjectiveConfig):
    """Causal language modelling; there is nothing to set."""

    kind: Literal["clm"] = "clm"


def clm(
    config: CLMConfig,
    encoder: EncoderConfig,
    pieces: Pieces,
    platform: Platform = ANY,
) -> Objective:
    """Returns the objective that predicts each token from those before it.

    Documents packed into one row neither see nor predict each other.
    """
    del config
    if not encoder.causal:
        raise PlmjaxError(
            "objective.kind=clm needs a model that sees one side only; with "
            "model.causal=False it would read the answer.",
            hint="Choose a model such as --config.model.preset=gpt2-tiny, or set "
            "--config.model.causal=True.",
        )
    bytes_V = bytes_of(pieces, encoder.vocab_size)

    def init(key, batch):
        return heads.init_model(encoder, key, batch, ("head",))

    def corrupt(batch: Batch, key: Key, progress) -> Batch:
        del key, progress
        tokens_BL, segments_BL = batch["tokens"], batch["segments"]
        rows, length = tokens_BL.shape
        used = (segments_BL[:, 1:] > 0) & (segments_BL[:, 1:] == segments_BL[:, :-1])
        # A row's end is no document's end.
        used &= ~batch["cut"][:, 1:]
        used = used.astype(jnp.float32)
        at_K = jnp.arange(length - 1, dtype=jnp.int32)
        return batch | {
            # Where the next token is predicted from.
            "mask_positions": jnp.broadcast_to(at_K[None], (rows, length - 1)),
            "labels": tokens_BL[:, 1:],
            "weights": used / jnp.maximum(jnp.sum(used), 1),
        }

    def loss(params, frozen, batch: Batch, key: Key, train: bool):
        del frozen
        noise = key.noise(batch) if train else None
        x_BLH = heads.encode(encoder, params, batch, noise, platform)
        x_TH = x_BLH[:, :-1].reshape(-1, encoder.width)
        logits_TV = heads.vocabulary_logits(encoder, params, x_TH, platform)
        return token_loss(logits_TV, batch, bytes_V)

    def slots(length):
        return length - 1

    def cost(length):
        return flops.encoder_flops(encoder, length) + flops.vocabulary_flops(
            encoder, length - 1
        )

    return Objective(
        init,
        corrupt,
        loss,
        whole(encoder, ("head",)),
        token_scores,
        "loss",
        slots,
        cost,
    )
