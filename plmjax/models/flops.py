"""Matrix FLOPs and memory of training, counted from a config."""

import jax.numpy as jnp
import numpy as np

from plmjax.models.config import EncoderConfig


def encoder_flops(config: EncoderConfig, length: int) -> float:
    """Returns the matrix FLOPs of training the encoder on a row: forward times three.

    Attention counts the full row, packed or not, since all of it is computed; a local
    layer the window of each token.
    """
    width, inner, narrow = config.width, config.ffn_width, config.input_width
    shared = (config.kv_heads or config.heads) / config.heads
    layer = 2 * (2 + 2 * shared) * width**2
    layer += 2 * (3 if config.gated else 2) * width * inner
    seen = sum(_keys(config, layer, length) for layer in range(config.layers))
    layer += 4 * width * seen / config.layers
    if config.global_tokens != "none":  # keys and values as the global tokens see them
        kinds = [config.layer_kind(i) for i in range(config.layers)]
        layer += 2 * 2 * width**2 * kinds.count("local") / config.layers
    if config.attention == "disentangled":
        # Products of tokens and distances, in both directions, 2 x length distances.
        layer += 2 * 2 * width * 2 * length
    once = 2 * narrow * width if narrow != width else 0
    once += 2 * config.convolution_width * width**2
    return 3.0 * length * (config.layers * layer + once)


def _keys(config: EncoderConfig, layer: int, length: int) -> int:
    """Returns the number of keys that a query of a layer is multiplied with."""
    if config.layer_kind(layer) == "global":
        return length
    # Each token sees the global ones, and they see it.
    more = 2 * config.global_limit if config.global_tokens != "none" else 0
    return min(length, config.window + 1) + more


def vocabulary_flops(config: EncoderConfig, positions: int) -> float:
    """Returns the matrix FLOPs of training the vocabulary head on some positions."""
    width, narrow = config.width, config.input_width
    transform = width * narrow if config.head == "transform" else 0
    return 3.0 * positions * 2 * (transform + narrow * config.vocab_size)


def detector_flops(config: EncoderConfig, positions: int) -> float:
    """Returns the matrix FLOPs of training the detector head on some positions."""
    return 3.0 * positions * 2 * config.width * (config.width + 1)


def task_flops(config: EncoderConfig, positions: int, pooled: bool, outputs: int):
    """Returns the matrix FLOPs of training a head of fine-tuning on some positions."""
    inner = config.width if pooled else 0
    return 3.0 * positions * 2 * config.width * (inner + outputs)


def activation_bytes(config: EncoderConfig, rows: int, length: int, slots: int) -> int:
    """Estimates the bytes that the forward pass of `rows` rows keeps for the backward.

    Counts the arrays that our layers save: per token and layer about 10 of the model's
    width and 3 of the inner width, attention weights twice, float32 logits twice.
    """
    size = np.dtype(jnp.dtype(config.dtype)).itemsize
    per_token = 10 * config.width + (3 + config.gated) * config.ffn_width
    seen = sum(_keys(config, layer, length) for layer in range(config.layers))
    per_token += 2 * config.heads * seen / config.layers
    layers = 1 if config.remat else config.layers
    # The inputs of rematerialised layers.
    kept = config.layers * config.width if config.remat else 0
    if config.remat == "dots":
        kept = config.layers * (6 * config.width + config.ffn_width)
    tokens = rows * length
    logits = 2 * 4 * rows * slots * config.vocab_size
    return int(tokens * size * (layers * per_token + kept) + logits)
