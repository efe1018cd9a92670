"""Global tokens of local layers: they see all of their document, which sees them.

Which tokens are global follows from the ids and the documents, once for all layers
(Longformer, arXiv:2004.05150). Their queries have projections of their own, and so have
the keys and values that they see.

Legend: B rows, L tokens a row, G global tokens a row, N heads, D head width.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plmjax.models.config import EncoderConfig
from plmjax.models.positions import reach, within

# By the head of a task: which tokens transformers' classes make global, without a mask.
USUAL = {"sequence": "first", "answers": "question", "choices": "second"}


class GlobalTokens(NamedTuple):
    """The global tokens of each row: the first `global_limit` of them.

    `index_BG` is where they are in the row, `real_BG` whether there are so many.
    `slot_BL` is the number of each token among them, -1 of any other. `start_BL` and
    `end_BL` are the limits of each token's document.
    """

    index_BG: jax.Array
    real_BG: jax.Array
    slot_BL: jax.Array
    start_BL: jax.Array
    end_BL: jax.Array

    def gather(self, x_BLE: jax.Array) -> jax.Array:
        """Returns the vectors of the global tokens, [B, G, E]."""
        return jnp.take_along_axis(x_BLE, self.index_BG[:, :, None], axis=1)

    def bounds(self) -> list[jax.Array]:
        """Returns the bounds of what each global token sees; [B, 1, G]."""
        own_BL = (self.start_BL, self.end_BL)
        return [jnp.take_along_axis(x, self.index_BG, axis=1)[:, None] for x in own_BL]

    def more_keys(self, key_BNLD, value_BNLD, bounds):
        """Returns keys and values [B, N, G, D], and whether a query sees them.

        A query sees those of its document that its window, from one of the `bounds`
        [B, L] to the other, lacks: so each counts once; bool [B, L, G].
        """
        index_B1G1 = self.index_BG[:, None, :, None]
        key, value = (
            jnp.take_along_axis(x, index_B1G1, axis=2) for x in (key_BNLD, value_BNLD)
        )
        index_B1G = self.index_BG[:, None]
        seen = within((self.start_BL, self.end_BL), index_B1G)
        seen &= ~within(bounds, index_B1G) & self.real_BG[:, None]
        return key, value, seen

    def insert(self, mixed_BNLD, theirs_BNGD):
        """Returns the first with the second in the places of the global tokens."""
        slot = self.slot_BL[:, None, :, None]
        spread = jnp.take_along_axis(theirs_BNGD, jnp.maximum(slot, 0), axis=2)
        return jnp.where(slot >= 0, spread, mixed_BNLD)


def find(config: EncoderConfig, tokens_BL, segments_BL) -> GlobalTokens:
    """Returns the global tokens of rows of documents; segment 0 has none."""
    start_BL, end_BL = reach(segments_BL)
    wanted_BL = _chosen(config, tokens_BL, segments_BL, start_BL, end_BL)
    slot_BL = jnp.cumsum(wanted_BL, axis=1, dtype=jnp.int32) - 1
    wanted_BL &= slot_BL < config.global_limit
    index_BG = jax.vmap(
        lambda row: jnp.nonzero(row, size=config.global_limit, fill_value=-1)[0]
    )(wanted_BL).astype(jnp.int32)
    return GlobalTokens(
        jnp.maximum(index_BG, 0),
        index_BG >= 0,
        jnp.where(wanted_BL, slot_BL, -1),
        start_BL,
        end_BL,
    )


def _chosen(config: EncoderConfig, tokens_BL, segments_BL, start_BL, end_BL):
    """Returns which tokens the rule of the config makes global, bool [B, L]."""
    index = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)
    first_BL, last_BL = start_BL == index, end_BL == index + 1
    named_BL = jnp.isin(tokens_BL, np.array(config.global_ids, np.int32))
    after_BL = jnp.pad(named_BL[:, :-1], ((0, 0), (1, 0))) & ~first_BL
    # How many of the ids are before a token in its document.
    total_BL = jnp.cumsum(named_BL, axis=1, dtype=jnp.int32) - named_BL
    before_BL = total_BL - jnp.take_along_axis(total_BL, start_BL, axis=1)
    wanted_BL = {
        "first": first_BL,
        "listed": named_BL,
        "sentences": first_BL | after_BL & ~named_BL & ~last_BL,
        "question": (before_BL == 0) & ~named_BL,
        # Of two separators in a row, the second is not of the second text either.
        "second": (before_BL > 0) & ~(named_BL & after_BL & (before_BL == 1)),
    }[config.global_tokens]
    return wanted_BL & (segments_BL > 0)


@functools.partial(jax.jit, static_argnums=0)
def _counts(config: EncoderConfig, tokens_BL, segments_BL) -> jax.Array:
    limits = reach(segments_BL)
    return _chosen(config, tokens_BL, segments_BL, *limits).sum(1)


def most(config: EncoderConfig, tokens: np.ndarray, segments: np.ndarray) -> int:
    """Returns the largest number of global tokens of any row; arrays [..., L]."""
    rows = [x.reshape(-1, x.shape[-1]) for x in (tokens, segments)]
    parts = [
        _counts(config, *(jnp.asarray(x[at : at + 4096], jnp.int32) for x in rows))
        for at in range(0, len(rows[0]), 4096)
    ]
    return max((int(part.max()) for part in parts), default=0)


def with_room(
    config: EncoderConfig, tokens: np.ndarray, segments: np.ndarray
) -> EncoderConfig:
    """Returns the config with places for all global tokens of the rows [..., L].

    Their number doubles until they fit: each compiles the model anew.
    """
    if config.global_tokens == "none":
        return config
    limit, wanted = config.global_limit, most(config, tokens, segments)
    while limit < wanted:
        limit *= 2
    return dataclasses.replace(config, global_limit=limit)
