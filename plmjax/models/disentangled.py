"""Disentangled attention of DeBERTa-v2 and v3, with separate vectors for distances.

A score is content to content, content to distance and distance to content, summed (He
et al. 2021, arXiv 2006.03654; log buckets as in transformers' DebertaV2).

Legend: B rows, N heads, L tokens a row (Q queries, K keys), T = B * L, D head width,
H width, R = 2 * position_buckets rows of the table, M = 2 * L distances, W window.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from plmjax.models.attention import View, mix
from plmjax.models.config import EncoderConfig
from plmjax.models.layers import ACTIVATIONS, affine, dropout, einsum, norm
from plmjax.models.noise import Noise
from plmjax.models.platform import ANY, Platform
from plmjax.models.positions import within
from plmjax.models.tiles import Way


def disentangled(module, heads, view: View, noise: Noise | None, site: str):
    """Full attention with scores that depend on the tokens' distance."""
    query_BNLD, key_BNLD, value_BNLD = heads("query"), heads("key"), heads("value")
    config, platform = module.config, module.platform
    tables = position_heads(config, heads, view.relative, noise, site)
    scores_BNQK = einsum("bnqd,bnkd->bnqk", query_BNLD, key_BNLD, platform)
    scores_BNQK += position_scores(
        config, query_BNLD, key_BNLD, *tables, platform=platform
    )
    # The scores are a sum of three terms of equal variance.
    scores_BNQK *= (3 * config.head_width) ** -0.5
    bounds_B1L = [x[:, None] for x in (view.start, view.end)]
    seen_B1QK = within(bounds_B1L, jnp.arange(scores_BNQK.shape[-1]))
    way = Way(platform, config.attention_dropout, f"{site}/weights")
    return mix(way, scores_BNQK, value_BNLD, seen_B1QK, noise)


def bucket(distance: np.ndarray, buckets: int, max_positions: int) -> np.ndarray:
    """Returns the row of the table for each distance (query minus key).

    Each distance up to half of the buckets has a separate row; larger ones share
    log-spaced rows, up to max_positions.
    """
    middle = buckets // 2
    size = np.abs(distance)
    far = np.maximum(size, middle + 1)
    # All in float32: another rounding can move a distance to the next row.
    span = np.log(np.float32(max(max_positions - 1, middle + 1) / middle))
    steps = np.log((far / middle).astype(np.float32)) / span * np.float32(middle - 1)
    shared = np.sign(distance) * (np.ceil(steps).astype(np.int64) + middle)
    row = np.where(size <= middle, distance, shared) + buckets
    return np.clip(row, 0, 2 * buckets - 1)


class RelativePositions(nn.Module):
    """The table of distances that all layers share, [R, H]."""

    config: EncoderConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        config = self.config
        init = nn.initializers.normal(config.init_std)
        shape = (2 * config.position_buckets, config.width)
        table_RH = self.param("table", init, shape)
        if config.position_norm:
            return norm(config, "norm")(table_RH)
        return table_RH.astype(config.dtype)


def position_heads(config: EncoderConfig, heads, table_RH, noise, site: str):
    """Returns the queries and the keys of the table's rows, each [1, N, R, D]."""
    if noise is not None:
        # The table does not depend on the rows of the batch: one draw for all.
        noise = Noise(noise.seed, noise.step, jnp.zeros(1, jnp.int32))
    table_RH = dropout(table_RH, config.dropout, noise, f"{site}/relative")
    prefix = "" if config.share_position_projections else "position_"
    shape = (1, table_RH.shape[0])
    names = (f"{prefix}query", f"{prefix}key")
    return tuple(heads(name, table_RH, shape) for name in names)


def position_scores(
    config: EncoderConfig,
    query_BNLD,
    key_BNLD,
    at_query,
    at_key,
    platform: Platform = ANY,
):
    """Returns content to distance plus distance to content, float32 [B, N, Q, K].

    Documents have no gaps in their row, so distances are differences of indices.
    """
    length = query_BNLD.shape[2]
    # One more than the 2 L - 1 possible distances: `skew` drops it.
    ahead_M = np.arange(2 * length) - (length - 1)
    # skew puts column L - 1 + j - i at (i, j). A distance is query minus key: i - j if
    # rows i are queries, j - i if rows i are keys.
    behind_M = bucket(-ahead_M, config.position_buckets, config.max_positions)
    ahead_M = bucket(ahead_M, config.position_buckets, config.max_positions)
    to_distance_BNQK = _scores(query_BNLD, at_key, behind_M, platform)
    from_distance_BNKQ = _scores(key_BNLD, at_query, ahead_M, platform)
    return to_distance_BNQK + from_distance_BNKQ.swapaxes(2, 3)


def _scores(x_BNLD, table_1NRD, row_M, platform: Platform):
    """Returns x_i . table[row of j - i], [B, N, L, L]."""
    batch, heads, length, width = x_BNLD.shape
    table_NMD = jnp.take(table_1NRD[0], row_M, axis=1)
    # Heads before rows: XLA:CPU supports this bf16 product and its gradients, but not
    # all gradients of bnld,nmd->bnlm.
    x_NTD = x_BNLD.transpose(1, 0, 2, 3).reshape(heads, batch * length, width)
    scores_NTM: Any = einsum("ntd,nmd->ntm", x_NTD, table_NMD, platform)
    return skew(scores_NTM.reshape(heads, batch, length, -1)).swapaxes(0, 1)


def skew(x_NBLM):
    """Returns y[..., i, j] = x[..., i, L - 1 + j - i], [N, B, L, L].

    It only reshapes, so the gradient is padding; the gradient of a gather from the
    scores of the table's R rows is a scatter. On 2 cores, forward and backward of
    deberta-v3-tiny with 16 x 128 tokens took 518 ms, and 802 ms with a gather (float32;
    bf16 526 and 953); with 4 x 512, where M is twice R, the two took equally long.
    """
    heads, batch, length, distances = x_NBLM.shape
    assert distances == 2 * length
    x_NBS = x_NBLM.reshape(heads, batch, distances * length)
    # Rows are read with a length shorter by one, which shifts each row by one more.
    x_NBS = x_NBS[:, :, length - 1 : length - 1 + length * (distances - 1)]
    return x_NBS.reshape(heads, batch, length, distances - 1)[..., :length]


class Convolution(nn.Module):
    """A convolution over embeddings, added to the first layer's output; [T, H].

    It sees `convolution_width` tokens around each token, within its document.
    """

    config: EncoderConfig
    platform: Platform = ANY

    @nn.compact
    def __call__(self, x_TH, y_TH, segments_BL, noise: Noise | None):
        config = self.config
        windows = _windows(x_TH, segments_BL, config.convolution_width)
        shape = (config.convolution_width, config.width, config.width)
        kernel = self.param("kernel", nn.initializers.normal(config.init_std), shape)
        bias = None
        if config.bias:
            bias = self.param("bias", nn.initializers.zeros, (config.width,))
        kernel = kernel.reshape(-1, config.width)
        z_TH: Any = affine(windows, kernel, bias, config.dtype, self.platform)
        z_TH = z_TH.astype(config.dtype)
        z_TH = dropout(z_TH, config.dropout, noise, "convolution")
        return norm(config, "norm")(y_TH + ACTIVATIONS[config.activation](z_TH))


def _windows(x_TH, segments_BL, width: int):
    """Returns the tokens around each token, zero in other documents, [T, W * H]."""
    rows, length = segments_BL.shape
    reach = width // 2
    x_BLH = x_TH.reshape(rows, length, -1)
    ends = (reach, reach)
    wide = jnp.pad(x_BLH, ((0, 0), ends, (0, 0)))
    wide_segments = jnp.pad(segments_BL, ((0, 0), ends))
    seen = []
    for i in range(width):
        same = wide_segments[:, i : i + length] == segments_BL
        seen.append(jnp.where(same[:, :, None], wide[:, i : i + length], 0))
    return jnp.concatenate(seen, axis=-1).reshape(rows * length, -1)
