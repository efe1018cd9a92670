"""Chooses which tokens of a row are masked: on the device, without state.

Legend: B rows, L tokens, K slots a row, V vocabulary.
"""

import math

import jax
import jax.numpy as jnp

from plmjax.models import noise as noise_lib
from plmjax.models.noise import Noise


def slots(probability: float, length: int) -> int:
    """Returns K, enough for every row of `length` tokens ([CLS] and [SEP] included)."""
    return max(1, math.ceil(probability * (length - 2)))


def choose(
    noise: Noise,
    maskable_BL: jax.Array,
    word_start_BL: jax.Array | None,
    probability: float,
    slots: int,
) -> tuple[jax.Array, jax.Array]:
    """Draws distinct positions [B, K] and which slots are used, bool [B, K].

    A row uses floor(probability * maskable + u) slots, u uniform in [0, 1), at least
    one: rounding would bias rows of equal length. With `word_start_BL`, whole words are
    taken in random order while they fit.
    """
    maskable_B = jnp.sum(maskable_BL, axis=1)
    u_B = noise_lib.uniform(noise, "mask/count", 1)[:, 0]
    wanted = jnp.floor(probability * maskable_B.astype(jnp.float32) + u_B)
    n_B = jnp.clip(wanted.astype(jnp.int32), jnp.minimum(1, maskable_B), slots)
    score_BL = noise_lib.bits(noise, "mask/order", maskable_BL.shape[1])
    if word_start_BL is None:
        order_BL = _argsort(jnp.where(maskable_BL, score_BL, jnp.uint32(0xFFFFFFFF)))
        used_BK = jnp.arange(slots)[None, :] < n_B[:, None]
        return order_BL[:, :slots], used_BK
    chosen_BL = _fill_with_words(score_BL, maskable_BL, word_start_BL, n_B)
    order_BL = _argsort(jnp.where(chosen_BL, 0, 1).astype(jnp.uint32))
    used_BK = jnp.arange(slots)[None, :] < jnp.sum(chosen_BL, axis=1)[:, None]
    return order_BL[:, :slots], used_BK


def put(x_BL: jax.Array, positions_BK: jax.Array, values_BK: jax.Array) -> jax.Array:
    """Returns x with values at the positions of each row; vmap keeps rows sharded."""
    return jax.vmap(lambda x, at, values: x.at[at].set(values))(
        x_BL, positions_BK, values_BK
    )


def _argsort(key_BL: jax.Array) -> jax.Array:
    # top_k over data-sharded rows would add an all-gather.
    return jnp.argsort(key_BL, axis=1, stable=True).astype(jnp.int32)


def _fill_with_words(score_BL, maskable_BL, word_start_BL, n_B):
    """Marks the tokens of words taken in random order while they fit into n.

    A word breaks at unmaskable tokens. Each round takes all words up to the first that
    does not fit and rules out those longer than what is left; four rounds leave next to
    nothing that would still fit.
    """
    before = jnp.pad(maskable_BL[:, :-1], ((0, 0), (1, 0)))
    start_BL = maskable_BL & (word_start_BL | ~before)
    # A token's word is named by the position of its first token.
    index_L = jnp.arange(score_BL.shape[1], dtype=jnp.int32)[None, :]
    first_BL = jax.lax.cummax(jnp.where(start_BL, index_L, 0), axis=1)
    size_BL = jax.vmap(lambda first, n: jnp.zeros_like(first).at[first].add(n))(
        first_BL, maskable_BL.astype(jnp.int32)
    )
    # Sorting by the first token's score, stably, lays words out whole, in random order.
    key_BL = jnp.take_along_axis(score_BL, first_BL, axis=1)
    order_BL = _argsort(jnp.where(maskable_BL, key_BL, jnp.uint32(0xFFFFFFFF)))
    first_BL = jnp.take_along_axis(first_BL, order_BL, axis=1)
    alive_BL = jnp.take_along_axis(maskable_BL, order_BL, axis=1)
    size_BL = jnp.take_along_axis(size_BL, first_BL, axis=1)
    place_BL = order_BL - first_BL
    taken_BL = jnp.zeros_like(alive_BL)
    for _ in range(4):
        # Where in the row's budget the last token of each word would stand.
        end_BL = jnp.cumsum(alive_BL, axis=1) - place_BL + size_BL - 1
        taken_BL = alive_BL & (end_BL <= n_B[:, None])
        left_B = n_B - jnp.sum(taken_BL, axis=1)
        alive_BL = taken_BL | (alive_BL & (size_BL <= left_B[:, None]))
    return put(jnp.zeros_like(maskable_BL), order_BL, taken_BL)
