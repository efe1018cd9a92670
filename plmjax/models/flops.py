"""Matrix FLOPs and memory of training, counted from a config."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np

from plmjax.models.attention import BLOCK
from plmjax.models.config import EncoderConfig
from plmjax.models.platform import refusal


def encoder_flops(config: EncoderConfig, length: int) -> float:
    """Returns the matrix FLOPs of training the encoder on a row (forward x 3)."""
    return sum(encoder_parts(config, length).values())


def encoder_parts(config: EncoderConfig, length: int) -> dict[str, float]:
    """Returns those of its embeddings, attention and feed-forward layers."""
    width, inner, narrow = config.width, config.ffn_width, config.input_width
    shared = (config.kv_heads or config.heads) / config.heads
    products = 2 * (2 + 2 * shared) * width**2
    if config.global_tokens != "none":  # keys and values as the global tokens see them
        kinds = [config.layer_kind(i) for i in range(config.layers)]
        products += 2 * 2 * width**2 * kinds.count("local") / config.layers
    forward = 2 * (3 if config.gated else 2) * width * inner
    once = 2 * narrow * width if narrow != width else 0
    once += 2 * config.convolution_width * width**2
    tokens = 3.0 * length
    among = attention_flops(config, length, range(config.layers))
    return {
        "embeddings": tokens * once,
        "attention": tokens * config.layers * products + among,
        "feed-forward": tokens * config.layers * forward,
    }


def attention_flops(config: EncoderConfig, length: int, layers: Iterable[int]) -> float:
    """Returns the part of some layers' products between tokens in `encoder_flops`.

    They count the full row, packed or not, since all of it is computed; in a local
    layer the window of each token; by landmarks the products with them, the inverse and
    the convolution of the values, without the zeros of its blocks.
    """
    width, total = config.width, 0
    for layer in layers:
        token = 4 * width * _keys(config, layer, length)
        if config.attention == "disentangled":
            # Products of tokens and distances, in both directions, 2 x length of them.
            token += 2 * 2 * width * 2 * length
        if config.attention == "nystrom":
            token += 2 * width * config.value_convolution
            if length > config.landmarks:
                # 4 products in each of 6 steps; the landmarks' scores, and values.
                total += 48 * config.heads * config.landmarks**3
                total += 4 * width * config.landmarks**2
        total += length * token
    return 3.0 * total


def _keys(config: EncoderConfig, layer: int, length: int) -> int:
    """Returns the number of keys that a query of a layer is multiplied with."""
    if config.attention == "blocks" and length >= config.shortest_sparse:
        # All for the queries of the first and the last block.
        inner = (5 + config.random_blocks) * config.block
        return inner + 2 * config.block * (length - inner) // length
    if config.attention == "nystrom" and length > config.landmarks:
        return 2 * config.landmarks  # two scores and two sums for each token
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


def activation_bytes(
    config: EncoderConfig,
    rows: int,
    length: int,
    slots: int,
    kind: str,
    attention: str = "xla",
) -> int:
    """Estimates the bytes that the forward pass of `rows` rows keeps for the backward.

    Counts the arrays that our layers save: per token and layer about 10 of the model's
    width and 3 of the inner width, attention weights twice, float32 logits twice.
    `kind` is that of the device, cpu, gpu or tpu, and `attention` is train.attention.
    """
    size = _itemsize(config)
    per_token = 10 * config.width + (3 + config.gated) * config.ffn_width
    layers = 1 if config.remat else config.layers
    # The inputs of rematerialised layers.
    kept = config.layers * config.width if config.remat else 0
    if config.remat == "dots":
        kept = config.layers * (6 * config.width + config.ffn_width)
    tokens = rows * length
    logits = 2 * 4 * rows * slots * config.vocab_size
    weights = rows * attention_bytes(
        config, length, range(config.layers), kind, attention=attention
    )
    return int(tokens * size * (layers * per_token + kept) + weights + logits)


def attention_bytes(
    config: EncoderConfig,
    length: int,
    layers: Iterable[int],
    kind: str,
    attention: str = "xla",
) -> float:
    """Returns the part of the attention weights of a row in `activation_bytes`.

    On CPUs longer rows are computed in tiles, of which none is kept, nor is any by
    kernels; of rematerialised layers one is.
    """
    if attention != "xla" and refusal(config, kind) is None:
        return 0
    weights, in_tiles = 0, kind == "cpu" and length > BLOCK
    for layer in layers:
        keys = _keys(config, layer, length)
        whole = keys == length and config.attention != "disentangled"
        if not (in_tiles and (whole or config.attention == "full")):
            weights += length * keys
    share = 1 / config.layers if config.remat else 1
    return 2 * config.heads * weights * share * _itemsize(config)


def _itemsize(config: EncoderConfig) -> int:
    return np.dtype(jnp.dtype(config.dtype)).itemsize
