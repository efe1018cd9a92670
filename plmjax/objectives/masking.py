"""Chooses and replaces the masked tokens of a row: on the device, without state.

Legend: B rows, L tokens, K slots a row, N ordinary pieces.
"""

import math

import jax
import jax.numpy as jnp

from plmjax.models import noise as noise_lib
from plmjax.models.noise import Noise


def _normalised(*weights: float) -> tuple[float, ...]:
    return tuple(weight / sum(weights) for weight in weights)


# Probabilities of units of 1, 2, ... words that are masked together (none: a token).
UNITS: dict[str, tuple[float, ...]] = {
    "token": (),
    # Whole words: Google's BERT of May 2019; Cui et al. 2019 (arXiv:1906.08101).
    "word": (1.0,),
    # Geometric with p = 0.2, cut at 10: SpanBERT (Joshi et al. 2019, arXiv:1907.10529)
    "span": _normalised(*(0.8**n for n in range(10))),
    # p(n) ~ 1 / n, at most 3: ALBERT (Lan et al. 2019, arXiv:1909.11942).
    "ngram": _normalised(1, 1 / 2, 1 / 3),
}


def slots(probability: float, length: int) -> int:
    """Returns K, enough slots for any row of `length` tokens, [CLS] and [SEP] included.

    `probability` is the largest of a schedule.
    """
    return max(1, math.ceil(probability * (length - 2)))


def choose(
    noise: Noise,
    maskable_BL: jax.Array,
    word_start_BL: jax.Array,
    probability: float | jax.Array,
    slots: int,
    unit: str = "token",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws distinct positions [B, K], the used slots, and each slot's unit.

    `unit` is a name in UNITS. The results are int32, bool and int32 [B, K]; the id of a
    unit is the position of its first token. A row uses floor(probability * maskable +
    u) slots, u uniform in [0, 1), at least one: rounding would bias rows of equal
    length. Units are taken in random order while they fit; the first span or n-gram
    that does not fit is cut to the complete words that do. `probability` may be a
    traced float32 scalar.
    """
    maskable_B = jnp.sum(maskable_BL, axis=1)
    u_B = noise_lib.uniform(noise, "mask/count", 1)[:, 0]
    wanted = jnp.floor(probability * maskable_B.astype(jnp.float32) + u_B)
    n_B = jnp.clip(wanted.astype(jnp.int32), jnp.minimum(1, maskable_B), slots)
    score_BL = noise_lib.bits(noise, "mask/order", maskable_BL.shape[1])
    if unit == "token":
        order_BL = _argsort(jnp.where(maskable_BL, score_BL, jnp.uint32(0xFFFFFFFF)))
        used_BK = jnp.arange(slots)[None, :] < n_B[:, None]
        return order_BL[:, :slots], used_BK, order_BL[:, :slots]
    # A word ends at unmaskable tokens, so also at the ends of documents.
    opens_BL = maskable_BL & ~jnp.pad(maskable_BL[:, :-1], ((0, 0), (1, 0)))
    start_BL = opens_BL | (maskable_BL & word_start_BL)
    if unit == "word":
        unit_BL = _first(start_BL)
        key_BL = jnp.take_along_axis(score_BL, unit_BL, axis=1)
        chosen_BL = _fill(key_BL, maskable_BL, start_BL, n_B)
    else:
        chosen_BL, unit_BL = _choose_several_words(
            noise, score_BL, maskable_BL, start_BL=start_BL, n_B=n_B, shares=UNITS[unit]
        )
    order_BL = _argsort(jnp.where(chosen_BL, 0, 1).astype(jnp.uint32))
    positions_BK = order_BL[:, :slots]
    used_BK = jnp.arange(slots)[None, :] < jnp.sum(chosen_BL, axis=1)[:, None]
    return positions_BK, used_BK, jnp.take_along_axis(unit_BL, positions_BK, axis=1)


def corrupt_tokens(
    noise: Noise,
    tokens_BL: jax.Array,
    positions_BK: jax.Array,
    used_BK: jax.Array,
    unit_BK: jax.Array,
    mask_id: int,
    ordinary_N: jax.Array,
    mask_share: float,
    random_share: float,
    unit: str,
) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens, masked, replaced at random or kept, and labels [B, K].

    This choice is drawn for each slot, but once for a full span (SpanBERT); ALBERT
    draws for each token of an n-gram. Random pieces come from `ordinary_N`.
    """
    slots = positions_BK.shape[1]
    labels_BK = jnp.take_along_axis(tokens_BL, positions_BK, axis=1)
    if unit == "span":
        fate_BL = noise_lib.uniform(noise, "mask/fate", tokens_BL.shape[1])
        fate_BK = jnp.take_along_axis(fate_BL, unit_BK, axis=1)
    else:
        fate_BK = noise_lib.uniform(noise, "mask/fate", slots)
    draw_BK = noise_lib.bits(noise, "mask/random", slots)
    random_BK = ordinary_N[draw_BK % jnp.uint32(len(ordinary_N))]
    replaced_BK = jnp.where(
        fate_BK < mask_share,
        mask_id,
        jnp.where(fate_BK < mask_share + random_share, random_BK, labels_BK),
    )
    replaced_BK = jnp.where(used_BK, replaced_BK, labels_BK)
    return scatter_positions(tokens_BL, positions_BK, replaced_BK), labels_BK


def scatter_positions(
    x_BL: jax.Array, positions_BK: jax.Array, values_BK: jax.Array
) -> jax.Array:
    """Returns x with values at the positions of each row; vmap keeps rows sharded."""
    return jax.vmap(lambda x, at, values: x.at[at].set(values))(
        x_BL, positions_BK, values_BK
    )


def _argsort(key_BL: jax.Array) -> jax.Array:
    # top_k over data-sharded rows would add an all-gather.
    return jnp.argsort(key_BL, axis=1, stable=True).astype(jnp.int32)


def _first(start_BL: jax.Array) -> jax.Array:
    """Returns for each token the position where its group starts."""
    index_L = jnp.arange(start_BL.shape[1], dtype=jnp.int32)[None, :]
    return jax.lax.cummax(jnp.where(start_BL, index_L, 0), axis=1)


def _choose_several_words(noise, score_BL, maskable_BL, start_BL, n_B, shares):
    """Marks the tokens of chosen units of one or more words; returns each token's unit.

    The row's words form a ring, which is cut at a random word and from there on into
    lengths drawn from `shares`. So every word is equally likely at each position of a
    unit of each length, and equally likely to be chosen: a partition from the start of
    each document would favour its first words, which are never late in a long unit that
    the budget cuts. If a unit crosses the end of a document, its halves are chosen
    together but count as two units.
    """
    length = maskable_BL.shape[1]
    index_L = jnp.arange(length, dtype=jnp.int32)[None, :]
    number_BL = jnp.cumsum(start_BL, axis=1)
    u_B1 = noise_lib.uniform(noise, "mask/cut", 1)
    cut_B1 = 1 + (u_B1 * number_BL[:, -1:].astype(jnp.float32)).astype(jnp.int32)
    at_B1 = jnp.sum(
        jnp.where(start_BL & (number_BL == cut_B1), index_L, 0), axis=1, keepdims=True
    )
    turn_BL = (index_L + at_B1) % length
    maskable_BL = jnp.take_along_axis(maskable_BL, turn_BL, axis=1)
    start_BL = jnp.take_along_axis(start_BL, turn_BL, axis=1)
    # True where a unit begins, indexed by the number of words since the cut.
    words_BL = _draw_lengths(noise, length, shares)
    begins_BL = jax.vmap(
        lambda at: jnp.zeros(length, bool).at[at].set(True, mode="drop")
    )(jnp.cumsum(words_BL, axis=1) - words_BL)
    number_BL = jnp.maximum(jnp.cumsum(start_BL, axis=1) - 1, 0)
    begins_BL = start_BL & jnp.take_along_axis(begins_BL, number_BL, axis=1)
    key_BL = jnp.take_along_axis(score_BL, _first(begins_BL), axis=1)
    chosen_BL = _fill(key_BL, maskable_BL, start_BL, n_B)
    # A unit also begins after unchosen tokens: the end of a document, or a word that
    # was too long for the budget.
    after_BL = ~jnp.pad(chosen_BL[:, :-1], ((0, 0), (1, 0)))
    first_BL = _first(begins_BL | after_BL | (turn_BL == 0))
    unit_BL = jnp.take_along_axis(turn_BL, first_BL, axis=1)
    back_BL = (index_L - at_B1) % length
    return (
        jnp.take_along_axis(chosen_BL, back_BL, axis=1),
        jnp.take_along_axis(unit_BL, back_BL, axis=1),
    )


def _draw_lengths(noise: Noise, size: int, shares: tuple[float, ...]) -> jax.Array:
    """Draws int32 [B, size]: n with probability shares[n - 1]."""
    u_BL = noise_lib.uniform(noise, "mask/length", size)
    ends = [sum(shares[:n]) for n in range(1, len(shares))]
    longer = [(u_BL >= end).astype(jnp.int32) for end in ends]
    return sum(longer, jnp.ones_like(u_BL, jnp.int32))


def _fill(key_BL, maskable_BL, start_BL, n_B):
    """Marks the tokens of words, taken in the order of keys while they fit into n.

    Each round takes all words up to the first that does not fit and excludes those
    longer than what is left of n; after four rounds hardly any word would fit. Words
    with the same key keep their order.
    """
    first_BL = _first(start_BL)
    size_BL = jax.vmap(lambda first, n: jnp.zeros_like(first).at[first].add(n))(
        first_BL, maskable_BL.astype(jnp.int32)
    )
    # A stable sort keeps the tokens of a word together.
    order_BL = _argsort(jnp.where(maskable_BL, key_BL, jnp.uint32(0xFFFFFFFF)))
    first_BL = jnp.take_along_axis(first_BL, order_BL, axis=1)
    alive_BL = jnp.take_along_axis(maskable_BL, order_BL, axis=1)
    size_BL = jnp.take_along_axis(size_BL, first_BL, axis=1)
    index_in_word_BL = order_BL - first_BL
    taken_BL = jnp.zeros_like(alive_BL)
    for _ in range(4):
        # The budget used up to the end of each word.
        end_BL = jnp.cumsum(alive_BL, axis=1) - index_in_word_BL + size_BL - 1
        taken_BL = alive_BL & (end_BL <= n_B[:, None])
        left_B = n_B - jnp.sum(taken_BL, axis=1)
        alive_BL = taken_BL | (alive_BL & (size_BL <= left_B[:, None]))
    return scatter_positions(jnp.zeros_like(maskable_BL), order_BL, taken_BL)
