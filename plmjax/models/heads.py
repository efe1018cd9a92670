"""Heads of pretraining: vocabulary, pair and detector heads.

A model is {"encoder": ...} and its heads by name: "head" (vocabulary), "pair"
(next-sentence or sentence-order), "detector" (was this token replaced?). Those of
fine-tuning are in task_heads.

Legend: B rows, L tokens a row, K chosen positions, P documents a row, T chosen tokens,
H width, E embedding width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plmjax.models.config import EncoderConfig
from plmjax.models.encoder import Embeddings, Encoder, dense, norm
from plmjax.models.layers import ACTIVATIONS, narrow, table_scores
from plmjax.models.noise import Noise
from plmjax.models.platform import ANY, Platform

Batch = dict[str, jax.Array]


class VocabularyHead(nn.Module):
    """Scores every piece of the vocabulary; [T, H] -> float32 logits [T, V].

    The decoder is the token table [V, E], passed as an argument: tied, as in BERT and
    RoBERTa. A `plain` head has no parameters, an `untied` one a table.
    """

    config: EncoderConfig
    platform: Platform = ANY

    @nn.compact
    def __call__(self, x_TH: jax.Array, table_VE: jax.Array) -> Any:
        config = self.config
        if config.head == "untied":
            init = nn.initializers.normal(config.init_std)
            table_VE = self.param("decoder", init, (config.vocab_size, config.width))
        bias = None
        if config.head == "transform":
            x_TH = dense(self, config.input_width, "transform")(x_TH)
            x_TH = norm(config, "norm")(ACTIVATIONS[config.activation](x_TH))
            bias = self.param("bias", nn.initializers.zeros, (config.vocab_size,))
        logits_TV = table_scores(x_TH, table_VE, bias, config.dtype, self.platform)
        return narrow(logits_TV, config.dtype, self.platform)


def tanh(x: jax.Array) -> jax.Array:
    """The hyperbolic tangent in float32, rounded to x's dtype."""
    return jnp.tanh(x.astype(jnp.float32)).astype(x.dtype)


class Pooler(nn.Module):
    """The first token's state through a dense layer and tanh; [B, H] -> [B, H].

    `bias` None: as the config; `normed`: a norm follows (ModernBERT).
    """

    config: EncoderConfig
    activation: Callable[[jax.Array], jax.Array] = tanh
    platform: Platform = ANY
    bias: bool | None = None
    normed: bool = False

    @nn.compact
    def __call__(self, x_BH: jax.Array) -> jax.Array:
        x_BH = dense(self, self.config.width, "dense", self.bias)(x_BH)
        x_BH = self.activation(x_BH)
        return norm(self.config, "norm")(x_BH) if self.normed else x_BH


class PairHead(nn.Module):
    """Classifies two sentences by their [CLS]; [T, H] -> float32 logits [T, 2].

    0: B follows A (or the two are in order), 1: it does not, as in transformers.
    """

    config: EncoderConfig
    platform: Platform = ANY

    @nn.compact
    def __call__(self, x_TH: jax.Array) -> jax.Array:
        pooler = Pooler(self.config, platform=self.platform, name="pooler")
        return dense(self, 2, "classifier", True)(pooler(x_TH)).astype(jnp.float32)


class DetectorHead(nn.Module):
    """Scores each token as replaced or original; [T, H] -> float32 logits [T]."""

    config: EncoderConfig
    platform: Platform = ANY

    @nn.compact
    def __call__(self, x_TH: jax.Array) -> jax.Array:
        config = self.config
        x_TH = ACTIVATIONS[config.activation](dense(self, config.width, "dense")(x_TH))
        return dense(self, 1, "prediction", True)(x_TH)[:, 0].astype(jnp.float32)


HEADS = {"head": VocabularyHead, "pair": PairHead, "detector": DetectorHead}


def init_model(config: EncoderConfig, key: jax.Array, batch: Batch, heads) -> dict:
    """Returns fresh parameters of an encoder and the named heads."""
    keys = jax.random.split(key, 1 + len(HEADS))
    params = {"encoder": Encoder(config).init(keys[0], *inputs(batch))["params"]}
    x_TH = jnp.zeros((1, config.width), config.dtype)
    table_VE = jnp.zeros((config.vocab_size, config.input_width))
    for name, head_key in zip(HEADS, keys[1:], strict=True):
        if name in heads:
            more = (table_VE,) if name == "head" else ()
            variables = HEADS[name](config).init(head_key, x_TH, *more)
            params[name] = variables.get("params", {})
    return params


def inputs(batch: Batch) -> list[jax.Array]:
    """Returns the encoder's inputs from a batch, in the order of its arguments."""
    return [batch[k] for k in ("tokens", "segments", "positions", "types")]


def encode(
    config: EncoderConfig,
    params: dict,
    batch: Batch,
    noise: Noise | None,
    platform: Platform = ANY,
):
    """Returns the hidden states [B, L, H] of a batch."""
    states: Any = Encoder(config, platform).apply(
        {"params": params["encoder"]}, *inputs(batch), noise
    )
    return states


def pooled(x_BLH: jax.Array, segments_BL: jax.Array, pooling: str) -> jax.Array:
    """Returns one float32 vector per row, [B, H]: mean or max of its tokens, or "cls".

    Special tokens count, padding (segment 0) does not.
    """
    x_BLH = x_BLH.astype(jnp.float32)
    if pooling == "cls":
        return x_BLH[:, 0]
    real_BL1 = (segments_BL > 0)[:, :, None]
    if pooling == "max":
        return jnp.where(real_BL1, x_BLH, -jnp.inf).max(1)
    count_B1 = jnp.maximum(real_BL1.sum(1), 1).astype(jnp.float32)
    return jnp.where(real_BL1, x_BLH, 0.0).sum(1) / count_B1


def encode_to(
    config: EncoderConfig,
    params: dict,
    batch: Batch,
    layer: int,
    platform: Platform = ANY,
):
    """Returns the hidden states [B, L, H] after a layer, counted from 1.

    0: the embeddings; the last: the result of `encode`, with its final norm. The
    compiler removes the computation of later layers.
    """
    if layer == config.layers:
        return encode(config, params, batch, None, platform)
    if layer == 0:
        embeddings: Any = Embeddings(config, platform)
        ids = [batch[name] for name in ("tokens", "positions", "types")]
        variables = {"params": params["encoder"]["embeddings"]}
        x_TH = embeddings.apply(variables, *ids, None)
    else:
        encoder: Any = Encoder(config, platform)
        variables = {"params": params["encoder"]}
        _, kept = encoder.apply(variables, *inputs(batch), mutable=["intermediates"])
        x_TH = kept["intermediates"]["states"][layer - 1]
    return x_TH.reshape(*batch["tokens"].shape, config.width)


def token_table(params: dict) -> jax.Array:
    """Returns the token embeddings [V, E] of a model."""
    return params["encoder"]["embeddings"]["token"]


def gather_positions(x_BLH: jax.Array, positions_BK: jax.Array) -> jax.Array:
    """Returns the states at the positions of each row, [B * K, H]."""
    x_BKH = jnp.take_along_axis(x_BLH, positions_BK[:, :, None], axis=1)
    return x_BKH.reshape(-1, x_BLH.shape[-1])


def vocabulary_logits(
    config: EncoderConfig, params: dict, x_TH, platform: Platform = ANY
) -> jax.Array:
    """Returns the float32 scores [T, V] of every piece."""
    head: Any = VocabularyHead(config, platform)
    return head.apply({"params": params["head"]}, x_TH, token_table(params))


def pair_logits(
    config: EncoderConfig, params: dict, x_TH, platform: Platform = ANY
) -> jax.Array:
    """Returns the float32 scores [T, 2] of the states of [CLS]."""
    head: Any = PairHead(config, platform)
    return head.apply({"params": params["pair"]}, x_TH)


def detector_logits(
    config: EncoderConfig, params: dict, x_TH, platform: Platform = ANY
) -> jax.Array:
    """Returns the float32 scores [T]; above 0: more likely replaced than not."""
    head: Any = DetectorHead(config, platform)
    return head.apply({"params": params["detector"]}, x_TH)


def outputs(
    config: EncoderConfig, params: dict, batch: Batch, platform: Platform = ANY
) -> dict[str, jax.Array]:
    """Returns the output of each head of a model for a batch, float32.

    "head": [B, K, V] at batch["mask_positions"]; "pair": [B, P, 2] at batch["cls"];
    "detector": [B, L]. A head without its positions in the batch is left out.
    """
    x_BLH = encode(config, params, batch, None, platform)
    by_head = {}
    if "head" in params and "mask_positions" in batch:
        at_BK = batch["mask_positions"]
        x_TH = gather_positions(x_BLH, at_BK)
        logits_TV = vocabulary_logits(config, params, x_TH, platform)
        by_head["head"] = logits_TV.reshape(*at_BK.shape, -1)
    if "pair" in params and "cls" in batch:
        at_BP = batch["cls"]
        logits_T2 = pair_logits(
            config, params, gather_positions(x_BLH, at_BP), platform
        )
        by_head["pair"] = logits_T2.reshape(*at_BP.shape, 2)
    if "detector" in params:
        x_TH = x_BLH.reshape(-1, config.width)
        logits_T = detector_logits(config, params, x_TH, platform)
        by_head["detector"] = logits_T.reshape(batch["tokens"].shape)
    return by_head
