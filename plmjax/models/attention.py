"""Attention kinds: functions of one signature, chosen by EncoderConfig.attention.

`module` is the attention layer, with its `config`, `platform` and `window`.
`heads(name)` projects the tokens to "query", "key" or "value", [B, N, L, D], and
`heads(name, x_SH, shape)` any other array; the projections of global tokens have names
that begin with "global_". `view` is a View, `noise` and `site` are for
dropout.

Legend: B rows, N heads, M heads of keys and values, L tokens a row (Q queries, K keys),
D head width, H width, R rows of the table of distances, G blocks of queries.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plmjax.models.disentangled import position_heads, position_scores
from plmjax.models.global_tokens import GlobalTokens, documents
from plmjax.models.layers import dropout, einsum
from plmjax.models.noise import Noise
from plmjax.models.platform import Platform
from plmjax.models.positions import rotate

# Queries of a CPU in longer rows are computed in blocks, again in the backward pass.
BLOCK = 512
# Blocks of local attention have at least as many queries.
LEAST_BLOCK = 64


class View(NamedTuple):
    """What tokens see, and where they stand, for all layers of a kind."""

    # The first key that a query sees, and one past the last, int32 [B, L].
    start: jax.Array
    end: jax.Array
    # The cosines and sines of the rotations of queries and keys, float32 [B, L, D / 2].
    rotation: tuple[jax.Array, jax.Array] | None = None
    # DeBERTa's table of distances, [R, H].
    relative: jax.Array | None = None
    # Of local layers, the tokens that see all of their document, and are seen by it.
    global_tokens: GlobalTokens | None = None


class Dropout(NamedTuple):
    """The dropout of attention weights; `noise` None: none."""

    rate: float
    noise: Noise | None
    site: str


def reach(segments_BL, causal: bool, window: int = 0) -> tuple[jax.Array, jax.Array]:
    """Returns the first key that each query sees and one past the last, int32 [B, L].

    A query sees its segment (a run of equal numbers), `window` tokens at most: half of
    them on each side, and itself; a causal one sees itself and half of the window
    before it, itself included, as ModernBERT's encoder and decoder. 0: no window.
    """
    start_BL, end_BL = documents(segments_BL)
    index = jnp.arange(segments_BL.shape[1], dtype=jnp.int32)
    half = window // 2
    if causal:
        end_BL = jnp.minimum(end_BL, index + 1)
    elif window:
        end_BL = jnp.minimum(end_BL, index + half + 1)
    if window:
        start_BL = jnp.maximum(start_BL, index - half + causal)
    return start_BL, end_BL


def full(module, heads, view: View, noise: Noise | None, site: str):
    """Softmax attention to all keys that a token sees; [B, N, Q, D]."""
    query_BNQD, key_BMKD, value_BMKD = heads("query"), heads("key"), heads("value")
    if view.rotation is not None:
        query_BNQD = rotate(query_BNQD, *view.rotation)
        key_BMKD = rotate(key_BMKD, *view.rotation)
    config, found = module.config, view.global_tokens
    limits = view.start, view.end
    mixed_BNQD = attend(
        query_BNQD,
        key_BMKD,
        value_BMKD,
        *limits,
        window=module.window,
        slopes=slopes(config.heads) if config.positions == "alibi" else None,
        drop=Dropout(config.attention_dropout, noise, f"{site}/weights"),
        platform=module.platform,
        more_keys=found and found.more_keys(key_BMKD, value_BMKD, *limits),
    )
    if found is None:
        return mixed_BNQD
    return found.insert(mixed_BNQD, _global(module, heads, view, noise, site))


def _global(module, heads, view: View, noise: Noise | None, site: str):
    """Attention of the global tokens to all of their document; [B, N, G, D]."""
    config, found = module.config, view.global_tokens
    assert found is not None
    query, key, value = (heads(f"global_{x}") for x in ("query", "key", "value"))
    if view.rotation is not None:
        query = rotate(query, *map(found.gather, view.rotation))
        key = rotate(key, *view.rotation)
    index_1G, index_1K = (jnp.arange(x.shape[2])[None] for x in (query, key))
    return _dense(
        query,
        *found.limits(),
        index_1G,
        (key, value, index_1K),
        slopes=None,
        drop=Dropout(config.attention_dropout, noise, f"{site}/global_weights"),
        platform=module.platform,
    )


def disentangled(module, heads, view: View, noise: Noise | None, site: str):
    """Full attention with scores that depend on the tokens' distance (DeBERTa)."""
    query_BNQD, key_BNKD, value_BNKD = heads("query"), heads("key"), heads("value")
    config, platform = module.config, module.platform
    tables = position_heads(config, heads, view.relative, noise, site)
    scores_BNQK = einsum("bnqd,bnkd->bnqk", query_BNQD, key_BNKD, platform)
    scores_BNQK += position_scores(
        config, query_BNQD, key_BNKD, *tables, platform=platform
    )
    # The scores are a sum of three terms of equal variance.
    scores_BNQK *= (3 * query_BNQD.shape[-1]) ** -0.5
    index_1K = jnp.arange(scores_BNQK.shape[-1])[None]
    return _mix(
        scores_BNQK,
        value_BNKD,
        _seen(view.start, view.end, index_1K),
        drop=Dropout(config.attention_dropout, noise, f"{site}/weights"),
        platform=platform,
    )


ATTENTION = {"full": full, "disentangled": disentangled}


def attend(
    query_BNQD,
    key_BMKD,
    value_BMKD,
    start_BL,
    end_BL,
    *,
    window: int,
    slopes: np.ndarray | None,
    drop: Dropout,
    platform: Platform,
    more_keys: tuple | None = None,
):
    """Returns the mean value of the keys start .. end - 1 of each query, [B, N, Q, D].

    `more_keys` are further keys and their values, [B, M, E, D], and whether each query
    sees them, [B, Q, E]; they have no distance (`slopes`).

    The weights are the softmax of the scaled products, less slope times distance with
    `slopes` [N] (ALiBi, arXiv:2108.12409). The result does not depend, but for
    rounding, on the way it is computed: in blocks that see their neighbours only if no
    query sees farther than half of `window` (0: no window), in blocks of queries on
    CPUs, else at once. Dropout draws the same weights in all three.
    """
    groups = query_BNQD.shape[1] // key_BMKD.shape[1]

    def for_heads(x_BMKD):
        return jnp.repeat(x_BMKD, groups, axis=1) if groups > 1 else x_BMKD

    key_BNKD, value_BNKD = for_heads(key_BMKD), for_heads(value_BMKD)
    length = query_BNQD.shape[2]
    size = window * -(-LEAST_BLOCK // window) if window else 0
    more: dict = {"slopes": slopes, "drop": drop, "platform": platform}
    if more_keys is not None:
        *arrays, seen_BQE = more_keys
        more["more_keys"] = (*map(for_heads, arrays), seen_BQE)
    if window and length > 2 * size:
        return _in_windows(
            query_BNQD, key_BNKD, value_BNKD, start_BL, end_BL, size=size, **more
        )
    if platform.kind == "cpu" and length > BLOCK:
        return _in_blocks(query_BNQD, key_BNKD, value_BNKD, start_BL, end_BL, **more)
    index_1L = jnp.arange(length)[None]
    keys = key_BNKD, value_BNKD, index_1L
    if more_keys is not None:
        more["length"] = length
    return _dense(query_BNQD, start_BL, end_BL, index_1L, keys, **more)


def slopes(heads: int) -> np.ndarray:
    """Returns ALiBi's slope of each head, [N]: 2 ** (-8 / N) and its powers."""
    power = 2 ** int(np.log2(heads))
    series = 2.0 ** (-8 / power * np.arange(1, power + 1))
    # Heads beyond a power of 2 have every other slope of a series twice as dense.
    between = 2.0 ** (-4 / power * np.arange(1, 2 * power + 1, 2))
    return np.concatenate([series, between])[:heads].astype(np.float32)


def _seen(start_BQ, end_BQ, index_BK):
    """Returns whether a query sees a key, [B, 1, Q, K]."""
    index_BQK = index_BK[:, None, :]
    seen_BQK = (index_BQK >= start_BQ[:, :, None]) & (index_BQK < end_BQ[:, :, None])
    return seen_BQK[:, None]


def _dense(
    query_BNQD,
    start_BQ,
    end_BQ,
    index_GQ,
    keys,
    *,
    slopes,
    drop,
    platform,
    length=0,
    more_keys=None,
):
    """Attention of some queries to some keys, with B = rows * G for G blocks a row.

    `keys` are the keys, their values [B, N, K, D] and their indices [G, K]. `length` is
    that of the row, if queries or keys are not all of it.
    """
    key_BNKD, value_BNKD, index_GK = keys
    if more_keys is not None:
        more_key_BNED, more_value_BNED, seen_BQE = more_keys
        key_BNKD = jnp.concatenate([key_BNKD, more_key_BNED], axis=2)
        value_BNKD = jnp.concatenate([value_BNKD, more_value_BNED], axis=2)
    scores_BNQK = einsum("bnqd,bnkd->bnqk", query_BNQD, key_BNKD, platform)
    scores_BNQK *= query_BNQD.shape[-1] ** -0.5
    rows = query_BNQD.shape[0] // index_GQ.shape[0]
    if slopes is not None:
        distance_GQK = jnp.abs(index_GQ[:, :, None] - index_GK[:, None, :])
        penalty_GNQK = slopes[:, None, None] * distance_GQK[:, None]
        scores_BNQK -= jnp.tile(penalty_GNQK, (rows, 1, 1, 1))
    seen = _seen(start_BQ, end_BQ, jnp.tile(index_GK, (rows, 1)))
    if more_keys is not None:
        seen = jnp.concatenate([seen, seen_BQE[:, None]], axis=-1)
    number = None
    if length:
        heads = jnp.arange(query_BNQD.shape[1], dtype=jnp.uint32)[:, None, None]
        query_G1Q1, key_G11K = index_GQ[:, None, :, None], index_GK[:, None, None, :]
        query_GNQ1 = heads * length + query_G1Q1.astype(jnp.uint32)
        number = query_GNQ1 * length + key_G11K.astype(jnp.uint32)
        if more_keys is not None:
            extra_E = jnp.arange(seen_BQE.shape[-1], dtype=jnp.uint32)
            extra = query_GNQ1 * len(extra_E) + extra_E
            extra += jnp.uint32(query_BNQD.shape[1] * length**2 % 2**32)
            number = jnp.concatenate([number, extra], axis=-1)
        number = number.reshape(-1)
    return _mix(scores_BNQK, value_BNKD, seen, drop, platform=platform, number=number)


def _mix(scores_BNQK, value_BNKD, seen, drop: Dropout, *, platform, number=None):
    """Returns the values weighted by softmax(scores) of what is seen, [B, N, Q, D].

    Scores and softmax are float32; padding is a separate segment, so that no row of the
    softmax is empty.
    """
    dtype = value_BNKD.dtype
    scores_BNQK = jnp.where(seen, scores_BNQK, jnp.float32(-1e30))
    weights_BNQK = jax.nn.softmax(scores_BNQK, axis=-1).astype(dtype)
    weights_BNQK = dropout(weights_BNQK, drop.rate, drop.noise, drop.site, number)
    mixed_BNQD: Any = einsum("bnqk,bnkd->bnqd", weights_BNQK, value_BNKD, platform)
    return mixed_BNQD.astype(dtype)


def _in_blocks(
    query_BNQD, key_BNKD, value_BNKD, start_BL, end_BL, *, more_keys=None, **more
):
    """Attention of BLOCK queries at a time: memory grows with L, not with L squared."""
    length = query_BNQD.shape[2]
    count = -(-length // BLOCK)
    query, start, end = _padded(count * BLOCK, query_BNQD, start_BL, end_BL)
    index_1K = jnp.arange(length)[None]
    *further, seen = more_keys or (jnp.zeros((len(query), length, 0), bool),)
    seen = jnp.pad(seen, ((0, 0), (0, query.shape[2] - length), (0, 0)))

    @jax.checkpoint
    def block(queries):
        query, start, end, first, seen = queries
        index_1Q = first + jnp.arange(BLOCK)[None]
        keys = key_BNKD, value_BNKD, index_1K
        if further:
            more["more_keys"] = (*further, seen)
        return _dense(query, start, end, index_1Q, keys, length=length, **more)

    rows, heads, _, width = query.shape
    blocks = (
        jnp.moveaxis(query.reshape(rows, heads, count, BLOCK, width), 2, 0),
        jnp.moveaxis(start.reshape(rows, count, BLOCK), 1, 0),
        jnp.moveaxis(end.reshape(rows, count, BLOCK), 1, 0),
        jnp.arange(count) * BLOCK,
        jnp.moveaxis(seen.reshape(rows, count, BLOCK, -1), 1, 0),
    )
    mixed = jnp.moveaxis(jax.lax.map(block, blocks), 0, 2)
    return mixed.reshape(rows, heads, -1, width)[:, :, :length]


def _in_windows(
    query_BNQD,
    key_BNKD,
    value_BNKD,
    start_BL,
    end_BL,
    *,
    size,
    more_keys=None,
    **more,
):
    """Attention of blocks of `size` queries to twice as many keys around them.

    Block g has the queries g * size .. and the keys from half a block before them.
    """
    rows, heads, length, width = query_BNQD.shape
    count = -(-length // size)
    query, start, end = _padded(count * size, query_BNQD, start_BL, end_BL)

    def folded(x_BNSD):
        """[B, N, G, S, D] -> [B * G, N, S, D]"""
        return x_BNSD.swapaxes(1, 2).reshape(-1, heads, x_BNSD.shape[3], width)

    def around(x_BNKD):
        """Returns the keys or values that the queries of each block can see."""
        after = (count + 1) * size - size // 2 - length
        x = jnp.pad(x_BNKD, ((0, 0), (0, 0), (size // 2, after), (0, 0)))
        x = x.reshape(rows, heads, count + 1, size, width)
        return folded(jnp.concatenate([x[:, :, :-1], x[:, :, 1:]], axis=3))

    if more_keys is not None:
        *further, seen = more_keys
        seen = jnp.pad(seen, ((0, 0), (0, count * size - length), (0, 0)))
        seen = seen.reshape(rows * count, size, seen.shape[2])
        more["more_keys"] = *(jnp.repeat(x, count, axis=0) for x in further), seen
    begin_G1 = (jnp.arange(count) * size)[:, None]
    index_GQ = begin_G1 + jnp.arange(size)
    index_GK = begin_G1 - size // 2 + jnp.arange(2 * size)
    mixed = _dense(
        folded(query.reshape(rows, heads, count, size, width)),
        start.reshape(-1, size),
        end.reshape(-1, size),
        index_GQ,
        (around(key_BNKD), around(value_BNKD), index_GK),
        length=length,
        **more,
    )
    mixed = mixed.reshape(rows, count, heads, size, width).swapaxes(1, 2)
    return mixed.reshape(rows, heads, -1, width)[:, :, :length]


def _padded(size: int, query_BNQD, start_BQ, end_BQ):
    """Returns queries that fill `size`, and what they see: those of padding nothing."""
    more = (0, size - query_BNQD.shape[2])
    return (
        jnp.pad(query_BNQD, ((0, 0), (0, 0), more, (0, 0))),
        jnp.pad(start_BQ, ((0, 0), more)),
        jnp.pad(end_BQ, ((0, 0), more)),
    )
