"""Position kinds: functions of one signature, chosen by EncoderConfig.positions.

Each adds information about the positions [B, L] to the summed embeddings [B, L, E].
Rotations (RoPE) act on the queries and keys of attention instead. `reach` says which
keys a query sees.

Legend: N heads, D head width.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from plmjax.models.config import EncoderConfig

# Of YaRN: wavelengths of which the trained length holds more than 32 stay, those of
# which it holds less than 1 are stretched by the factor.
_YARN_TURNS = (32.0, 1.0)


def learned(module: nn.Module, config: EncoderConfig, x_BLE, positions_BL):
    """Adds one trained vector per position, as in BERT."""
    table = module.param(
        "position",
        nn.initializers.normal(config.init_std),
        (config.max_positions, config.input_width),
    )
    return x_BLE + jnp.take(table, positions_BL + config.position_offset, axis=0)


def none(module: nn.Module, config: EncoderConfig, x_BLE, positions_BL):
    """Adds nothing: the attention uses positions or distances, or is causal."""
    del module, config, positions_BL
    return x_BLE


POSITIONS = {"learned": learned, "rope": none, "alibi": none, "none": none}


def rope_base(config: EncoderConfig, kind: str) -> float:
    """Returns the base of the rotations of a kind of layer, after "ntk" scaling."""
    if kind == "local":
        return config.rope_local_theta or config.rope_theta
    width = config.head_width
    scaled = config.rope_scaling == "ntk" and width > 2
    more = config.rope_factor ** (width / (width - 2)) if scaled else 1.0
    return config.rope_theta * more


def frequencies(config: EncoderConfig, kind: str) -> tuple[np.ndarray, float]:
    """Returns the radians a token of each pair of dimensions, [D / 2], and a factor.

    The factor multiplies sines and cosines (YaRN, arXiv:2309.00071); `kind` is that of
    the layer.
    """
    width, theta = config.head_width, rope_base(config, kind)
    speed = theta ** -(np.arange(0, width, 2) / width)
    if config.rope_scaling != "yarn" or kind == "local":
        return speed.astype(np.float32), 1.0
    trained = config.max_positions / config.rope_factor

    def dimension(turns: float) -> float:
        """The dimension whose wavelength fits `turns` times into the trained length."""
        return width * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = (dimension(turns) for turns in _YARN_TURNS)
    low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
    ramp = (np.arange(width // 2) - low) / max(high - low, 1e-3)
    stretched = np.clip(ramp, 0, 1)
    speed = speed * (1 - stretched + stretched / config.rope_factor)
    return speed.astype(np.float32), 0.1 * math.log(config.rope_factor) + 1


def rotation(config: EncoderConfig, kind: str, positions_BL):
    """Returns the cosines and sines of a kind of layer, float32 [B, L, D / 2] each."""
    speed, factor = frequencies(config, kind)
    angle = positions_BL[:, :, None].astype(jnp.float32) * speed
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def rotate(x_BNLD: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates each pair (i, i + D / 2) of dimensions by the angle of its position."""
    dtype = x_BNLD.dtype
    x, y = jnp.split(x_BNLD.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return jnp.concatenate([x * cos - y * sin, y * cos + x * sin], -1).astype(dtype)


def reach(segments_BL, causal: bool = False, window: int = 0):
    """Returns the first key that each query sees and one past the last, int32 [B, L].

    A query sees its segment (a run of equal numbers), `window` tokens at most: half of
    them on each side, and itself; a causal one sees itself and half of the window
    before it, itself included, as ModernBERT's encoder and decoder. 0: no window.
    """
    length, half = segments_BL.shape[1], window // 2
    index = jnp.arange(length, dtype=jnp.int32)
    other_BL = segments_BL[:, 1:] != segments_BL[:, :-1]
    first_BL = jnp.pad(other_BL, ((0, 0), (1, 0)), constant_values=True)
    last_BL = jnp.pad(other_BL, ((0, 0), (0, 1)), constant_values=True)
    start_BL = jax.lax.cummax(jnp.where(first_BL, index, 0), axis=1)
    end_BL = jnp.where(last_BL, index + 1, length)
    end_BL = jax.lax.cummin(end_BL, axis=1, reverse=True)
    if causal:
        end_BL = jnp.minimum(end_BL, index + 1)
    elif window:
        end_BL = jnp.minimum(end_BL, index + half + 1)
    if window:
        start_BL = jnp.maximum(start_BL, index - half + causal)
    return start_BL, end_BL


def within(bounds, index):
    """Returns whether keys `index` [..., K] are within the bounds [..., Q]."""
    start, end = (x[..., None] for x in bounds)
    index = jnp.expand_dims(index, range(start.ndim - index.ndim))
    return (index >= start) & (index < end)
