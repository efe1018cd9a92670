"""Attention of a CPU in long rows: a tile of queries and keys at a time.

The scores of a tile stay in the processor's cache: written to memory, they cost more
than the products. The softmax is summed up over the tiles, and the backward pass
computes them again (FlashAttention, arXiv:2205.14135): memory grows with L. Tiles that
no query of the batch sees are left out: with windows, or short documents in long rows,
time grows with L, too.

Legend: B rows, N heads, M heads of keys and values, L tokens a row, Q queries of a
tile (of N / M heads, one after the other), K its keys, D head width, E further keys a
row, G blocks of queries. Tiles are [K, Q]: all products then contract the last axis of
the first operand, which is up to three times faster.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plmjax.models.layers import dropout, einsum
from plmjax.models.platform import Platform


@dataclasses.dataclass(frozen=True)
class Way:
    """What is known of attention when the program is compiled."""

    platform: Platform
    # Of the dropout of the weights.
    rate: float = 0.0
    site: str = ""
    # No query sees farther than half of it; 0: no window.
    window: int = 0
    # ALiBi's, of each head.
    slopes: tuple[float, ...] | None = None
    # With tiles: the tokens of a row, and the keys of a tile.
    length: int = 0
    keys: int = 0

    @property
    def queries(self) -> int:
        return self.keys // 2


class Block(NamedTuple):
    """Queries that are computed together, and what they see."""

    query_BMQD: jax.Array
    # The first key that each query sees, and one past the last.
    start_BQ: jax.Array
    end_BQ: jax.Array
    # Where the queries are in the row, and their heads.
    index_Q: jax.Array
    head_MQ: jax.Array
    # The first key that any of them sees, and the number of tiles.
    begin: jax.Array
    tiles: jax.Array
    # Whether they see the further keys, if there are any.
    seen_BQE: jax.Array | None = None


class Tile(NamedTuple):
    """Keys and values of a block, which are seen, and the numbers of the weights."""

    key_BMKD: jax.Array
    value_BMKD: jax.Array
    seen_B1KQ: jax.Array
    number_MKQ: jax.Array
    # Of ALiBi.
    penalty_MKQ: jax.Array | float = 0.0


def in_tiles(way: Way, query_BNLD, keys, bounds, noise):
    """Returns attention as attention.attend does, from the same arrays."""
    rows, heads, _, width = query_BNLD.shape
    kv_heads = keys[0].shape[1]
    groups, count = heads // kv_heads, -(-way.length // way.queries)
    fill = count * way.queries - way.length
    split = (rows, kv_heads, groups, count, way.queries, width)

    def blocks(x_BL):
        """[B, L, ...] -> [G, B, Q, ...]; the last query is repeated to fill."""
        x_BL = jnp.pad(x_BL, ((0, 0), (0, fill), *[(0, 0)] * (x_BL.ndim - 2)), "edge")
        x_BL = x_BL.reshape(rows, count, way.queries, *x_BL.shape[2:])
        return jnp.concatenate([jnp.moveaxis(x_BL, 1, 0)] * groups, axis=2)

    query = jnp.pad(query_BNLD, ((0, 0), (0, 0), (0, fill), (0, 0))).reshape(split)
    query = jnp.moveaxis(query, 3, 0).reshape(count, rows, kv_heads, -1, width)
    head = jnp.arange(heads, dtype=jnp.uint32).repeat(way.queries)
    index = jnp.arange(count * way.queries, dtype=jnp.int32).reshape(count, -1)
    start_GBQ, end_GBQ, *seen_GBQE = map(blocks, bounds)
    # Of all rows, so that devices with some rows each take the same steps.
    begin_G = start_GBQ.min((1, 2))
    bounds = (
        start_GBQ,
        end_GBQ,
        jnp.tile(index, groups),
        jnp.broadcast_to(head, (count, *head.shape)).reshape(count, kv_heads, -1),
        begin_G,
        -((begin_G - end_GBQ.max((1, 2))) // way.keys),
        *seen_GBQE,
    )
    # A tile may begin at any key, and end beyond the row.
    filled = (jnp.pad(x, ((0, 0), (0, 0), (0, way.keys), (0, 0))) for x in keys[:2])
    mixed: Any = _attend(way, query, (*filled, *keys[2:]), bounds, noise)
    mixed = jnp.moveaxis(mixed.reshape(count, *split[:3], way.queries, width), 0, 3)
    return mixed.reshape(rows, heads, -1, width)[:, :, : way.length]


def _tile(way: Way, block: Block, keys, begin) -> Tile:
    """Returns the tile whose first key is `begin`."""
    key, value = (jax.lax.dynamic_slice_in_dim(x, begin, way.keys, 2) for x in keys[:2])
    index_K1 = (begin + jnp.arange(way.keys, dtype=jnp.int32))[:, None]
    seen = index_K1 >= block.start_BQ[:, None, None]
    seen &= index_K1 < block.end_BQ[:, None, None]
    number = _query_number(way, block) * way.length + index_K1.astype(jnp.uint32)
    if way.slopes is None:
        return Tile(key, value, seen, number)
    slope_M1Q = jnp.array(way.slopes)[block.head_MQ][:, None]
    penalty = slope_M1Q * jnp.abs(block.index_Q - index_K1)
    return Tile(key, value, seen, number, penalty)


def _query_number(way: Way, block: Block):
    index_Q = block.index_Q.astype(jnp.uint32)
    return (block.head_MQ * way.length + index_Q)[:, None]


def _further(way: Way, block: Block, keys) -> Tile:
    """Returns the tile of the further keys: no distance, numbers after all others."""
    assert block.seen_BQE is not None
    count = block.seen_BQE.shape[-1]
    heads = block.head_MQ.size // way.queries
    number = _query_number(way, block) * count
    number += jnp.arange(count, dtype=jnp.uint32)[:, None]
    number += jnp.uint32(heads * way.length**2 % 2**32)
    return Tile(keys[2], keys[3], block.seen_BQE.swapaxes(1, 2)[:, None], number)


def _scores(way: Way, block: Block, tile: Tile):
    """Returns the float32 scores, [B, M, K, Q]."""
    query = block.query_BMQD
    scores = einsum("bmkd,bmqd->bmkq", tile.key_BMKD, query, way.platform)
    scores = scores * query.shape[-1] ** -0.5 - tile.penalty_MKQ
    return jnp.where(tile.seen_B1KQ, scores, jnp.float32(-1e30))


def _drop(way: Way, x_BMKQ, tile: Tile, noise):
    return dropout(x_BMKQ, way.rate, noise, way.site, tile.number_MKQ.reshape(-1))


def _turned(x_BMKD):
    """Returns x transposed, [B, M, D, K]; the barrier keeps it out of the product."""
    return jax.lax.optimization_barrier(x_BMKD.swapaxes(2, 3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(way: Way, query, keys, bounds, noise):
    """Returns what the queries of each block attend to, [G, B, M, Q, D]."""
    return _forward(way, query, keys, bounds, noise)[0]


def _forward(way: Way, query, keys, bounds, noise):
    dtype = query.dtype

    def add(block: Block, tile: Tile, sums):
        """Adds a tile to the sums over the keys, all relative to the highest score."""
        top, total, mixed_BMDQ = sums
        scores = _scores(way, block, tile)
        higher = jnp.maximum(top, scores.max(2))
        weights, shrink = jnp.exp(scores - higher[:, :, None]), jnp.exp(top - higher)
        total = total * shrink + weights.sum(2)
        weights = _drop(way, weights.astype(dtype), tile, noise)
        value_BMDK = _turned(tile.value_BMKD)
        more: Any = einsum("bmdk,bmkq->bmdq", value_BMDK, weights, way.platform)
        return higher, total, mixed_BMDQ * shrink[:, :, None] + more

    def one(arrays):
        block = Block(*arrays)
        zero = jnp.zeros(block.query_BMQD.shape).swapaxes(2, 3)
        sums = (zero[:, :, 0] - 1e30, zero[:, :, 0], zero)
        if block.seen_BQE is not None:
            sums = add(block, _further(way, block, keys), sums)

        def step(i, sums):
            begin = block.begin + i * way.keys
            return add(block, _tile(way, block, keys, begin), sums)

        top, total, mixed = jax.lax.fori_loop(0, block.tiles, step, sums)
        mixed = (mixed / total[:, :, None]).swapaxes(2, 3).astype(dtype)
        return mixed, top + jnp.log(total)

    mixed, log_sums = jax.lax.map(one, (query, *bounds))
    return mixed, (query, keys, bounds, noise, mixed, log_sums)


def _backward(way: Way, saved, gradient):
    query, keys, bounds, noise, mixed, log_sums = saved
    dtype, platform = query.dtype, way.platform

    def gradients(block: Block, tile: Tile, g_BMQD, log_sum_BMQ, along_BMQ):
        """Returns the gradients of queries [B, M, D, Q], keys and values, float32."""
        weights = jnp.exp(_scores(way, block, tile) - log_sum_BMQ[:, :, None])
        change = einsum("bmkd,bmqd->bmkq", tile.value_BMKD, g_BMQD, platform)
        change = _drop(way, change, tile, noise) - along_BMQ[:, :, None]
        change = (weights * change * query.shape[-1] ** -0.5).astype(dtype)
        weights = _drop(way, weights.astype(dtype), tile, noise)
        return (
            einsum("bmdk,bmkq->bmdq", _turned(tile.key_BMKD), change, platform),
            einsum("bmkq,bmqd->bmkd", change, block.query_BMQD, platform),
            einsum("bmkq,bmqd->bmkd", weights, g_BMQD, platform),
        )

    def one(totals, arrays):
        g_BMQD, mixed, log_sum, *arrays = arrays
        block, totals = Block(*arrays), list(totals)
        along = jnp.sum(g_BMQD.astype(jnp.float32) * mixed.astype(jnp.float32), -1)
        dquery = jnp.zeros(g_BMQD.shape).swapaxes(2, 3)
        if block.seen_BQE is not None:
            tile = _further(way, block, keys)
            dquery, *more = gradients(block, tile, g_BMQD, log_sum, along)
            totals[2:] = [a + b for a, b in zip(totals[2:], more, strict=True)]

        def step(i, sums):
            begin = block.begin + i * way.keys
            tile = _tile(way, block, keys, begin)
            d, *more = gradients(block, tile, g_BMQD, log_sum, along)
            return [
                sums[0] + d,
                *map(functools.partial(_add_at, begin), sums[1:], more),
            ]

        dquery, *totals[:2] = jax.lax.fori_loop(
            0, block.tiles, step, [dquery, *totals[:2]]
        )
        return totals, dquery.swapaxes(2, 3).astype(dtype)

    totals = [jnp.zeros(x.shape) for x in keys]
    blocks = (gradient, mixed, log_sums, query, *bounds)
    totals, dquery = jax.lax.scan(one, totals, blocks)
    dkeys = tuple(d.astype(x.dtype) for d, x in zip(totals, keys, strict=True))
    return dquery, dkeys, None, None


def _add_at(begin, total_BMLD, more_BMKD):
    held = jax.lax.dynamic_slice_in_dim(total_BMLD, begin, more_BMKD.shape[2], 2)
    return jax.lax.dynamic_update_slice_in_dim(total_BMLD, held + more_BMKD, begin, 2)


_attend.defvjp(_forward, _backward)
