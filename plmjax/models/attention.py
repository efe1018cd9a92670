"""Softmax attention to the keys that a token sees, in the way that suits the device.

The kinds of EncoderConfig.attention are functions of one signature: `full` here, others
in disentangled, blocks and nystrom. `module` is the attention layer, with its `config`,
`platform`, `window` and `number`. `heads(name)` projects the tokens to "query", "key"
or "value", [B, N, L, D], and `heads(name, x_SH, shape)` any other array; projections of
global tokens have names that begin with "global_". `view` is a View, `noise` and `site`
are for dropout.

Legend: B rows, N heads, M heads of keys and values, L tokens a row, D head width, H
width, R rows of the table of distances, G blocks of S tokens, Q queries and K keys of a
block, E further keys a row.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plmjax.models.global_tokens import GlobalTokens
from plmjax.models.layers import einsum, kept, narrow, weigh
from plmjax.models.noise import Noise
from plmjax.models.platform import Platform
from plmjax.models.positions import rotate, within
from plmjax.models.tiles import Way, in_tiles

# On CPUs, longer rows are computed in tiles of so many keys.
BLOCK = 256
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


def full(module, heads, view: View, noise: Noise | None, site: str):
    """Softmax attention to all keys that a token sees; [B, N, L, D]."""
    query_BNLD, key_BMLD, value_BMLD = heads("query"), heads("key"), heads("value")
    if view.rotation is not None:
        query_BNLD = rotate(query_BNLD, *view.rotation)
        key_BMLD = rotate(key_BMLD, *view.rotation)
    config, found = module.config, view.global_tokens
    way = Way(module.platform, config.attention_dropout, f"{site}/weights")
    alibi = slopes(config.heads) if config.positions == "alibi" else None
    local = dataclasses.replace(way, window=module.window, slopes=alibi)
    keys, bounds = (key_BMLD, value_BMLD), (view.start, view.end)
    if found is None:
        return attend(local, query_BNLD, keys, bounds, noise)
    *further, seen_BLG = found.more_keys(*keys, bounds)
    bounds = *bounds, seen_BLG
    mixed_BNLD = attend(local, query_BNLD, (*keys, *further), bounds, noise)
    # The global tokens see all of their document.
    query_BNGD, key_BNLD, value_BNLD = (
        heads(f"global_{name}") for name in ("query", "key", "value")
    )
    if view.rotation is not None:
        query_BNGD = rotate(query_BNGD, *map(found.gather, view.rotation))
        key_BNLD = rotate(key_BNLD, *view.rotation)
    theirs_BNGD = mix(
        dataclasses.replace(way, site=f"{site}/global_weights"),
        scores(query_BNGD, key_BNLD, way.platform),
        value_BNLD,
        within(found.bounds(), jnp.arange(key_BNLD.shape[2])),
        noise,
    )
    return found.insert(mixed_BNLD, theirs_BNGD)


def slopes(heads: int) -> tuple[float, ...]:
    """Returns ALiBi's slope of each head: 2 ** (-8 / N) and its powers."""
    power = 2 ** int(np.log2(heads))
    series = 2.0 ** (-8 / power * np.arange(1, power + 1))
    # Heads beyond a power of 2 have every other slope of a series twice as dense.
    between = 2.0 ** (-4 / power * np.arange(1, 2 * power + 1, 2))
    return tuple(np.concatenate([series, between])[:heads].tolist())


def attend(way: Way, query_BNLD, keys, bounds, noise: Noise | None):
    """Returns the mean value of the keys that each query sees, [B, N, L, D].

    `keys` are the keys and values [B, M, L, D], and further ones [B, M, E, D] if there
    are any; these have no distance, and cannot be with slopes. `bounds` are the first
    key that each query sees and one past the last, [B, L], and which of the further
    ones it sees, [B, L, E].

    The weights are the softmax of the scaled products, less slope times distance with
    slopes (ALiBi, arXiv:2108.12409). The result does not depend, but for rounding, on
    the way it is computed: by kernels, if the platform says so; in longer rows on CPUs
    in tiles; with windows in blocks of queries that see their neighbours; else at once.
    Dropout draws the same weights in all four.
    """
    rows, count, length, width = query_BNLD.shape
    if way.platform.kernels:
        # Here, since Pallas takes half a second to import.
        from plmjax.models.kernels import flash

        assert way.slopes is None and not keys[2:]
        return flash(way, query_BNLD, keys, bounds, noise)
    if way.platform.kind == "cpu" and length > BLOCK:
        way = dataclasses.replace(way, keys=BLOCK, length=length)
        return in_tiles(way, query_BNLD, keys, bounds, noise)
    groups = count // keys[0].shape[1]
    keys = [jnp.repeat(x, groups, axis=1) if groups > 1 else x for x in keys]
    size = way.window * -(-LEAST_BLOCK // way.window) if way.window else length
    windows = length > 2 * size
    if not windows:
        size = length
    query = split(query_BNLD, size)
    limits = [split(x[:, None], size) for x in bounds[:2]]
    index_1GQ1 = jnp.arange(query.shape[2] * size).reshape(1, -1, size, 1)
    index_1G1K = index_1GQ1.swapaxes(2, 3)
    if windows:
        around_111K = jnp.arange(2 * size)[None, None, None] - size // 2
        index_1G1K = index_1G1K[..., :1] + around_111K
    key, value = (around(x, size) if windows else x[:, :, None] for x in keys[:2])
    seen = within(limits, index_1G1K)
    number: Any = None
    if windows or keys[2:]:
        head_N111 = jnp.arange(count, dtype=jnp.uint32)[:, None, None, None]
        query_NGQ1 = head_N111 * length + index_1GQ1.astype(jnp.uint32)
        number = query_NGQ1 * length + index_1G1K.astype(jnp.uint32)
    if keys[2:]:
        shape = (rows, count, query.shape[2], *keys[2].shape[2:])

        def with_further(x, further):
            # The blocks' gradients are summed in float32.
            wide = further.astype(jnp.float32)[:, :, None]
            return jnp.concatenate(
                [x, jnp.broadcast_to(wide, shape).astype(x.dtype)], 3
            )

        key, value = map(with_further, (key, value), keys[2:])
        seen = jnp.concatenate([seen, split(bounds[2][:, None], size)], axis=-1)
        extra_E = jnp.arange(shape[3], dtype=jnp.uint32)
        extra_E += jnp.uint32(count * length**2 % 2**32)
        extra = query_NGQ1 * shape[3] + extra_E[None, None, None]
        number = jnp.concatenate([number, extra], axis=-1)
    scores_BNGQK = scores(query, key, way.platform)
    if way.slopes is not None:
        slope_N111 = jnp.array(way.slopes)[:, None, None, None]
        penalty_NGQK = slope_N111 * jnp.abs(index_1GQ1 - index_1G1K)
        scores_BNGQK -= penalty_NGQK[None]
    mixed = mix(way, scores_BNGQK, value, seen, noise, number=number)
    return mixed.reshape(rows, count, -1, width)[:, :, :length]


def split(x, size: int):
    """Returns [B, N, L, ...] in blocks of `size` tokens, with zeros at the end."""
    fill = -x.shape[2] % size
    x = jnp.pad(x, ((0, 0), (0, 0), (0, fill), *[(0, 0)] * (x.ndim - 3)))
    return x.reshape(*x.shape[:2], -1, size, *x.shape[3:])


def around(x_BNLD, size: int):
    """Returns each block and half as much on each side, [B, N, G, 2 * size, D]."""
    before = size // 2
    x_BNLD = jnp.pad(x_BNLD, ((0, 0), (0, 0), (before, size - before), (0, 0)))
    x = split(x_BNLD, size)
    return jnp.concatenate([x[:, :, :-1], x[:, :, 1:]], axis=3)


def scores(query, key, platform: Platform) -> jax.Array:
    """Returns the scaled products of queries and keys, float32 [..., Q, K]."""
    products = einsum("...qd,...kd->...qk", query, key, platform)
    return narrow(products * query.shape[-1] ** -0.5, query.dtype, platform)


def mix(way: Way, scores, value, seen, noise: Noise | None, *, number=None) -> Any:
    """Returns the values weighted by softmax(scores) of what is seen, [..., Q, D].

    Scores and softmax are float32; padding is a separate segment, so that no row of the
    softmax is empty.
    """
    scores = jnp.where(seen, scores, jnp.float32(-1e30))
    number = None if number is None else number.reshape(-1)
    which, rate = None, 0.0
    if noise is not None and way.rate:
        which, rate = kept(scores, way.rate, noise, way.site, number), way.rate
    return weigh(rate, way.platform, scores, value, which)
