"""Block sparse attention: a window, two global blocks and random ones (BigBird).

The tokens of a block see those of the blocks beside it, of the first and the last
block, and of `random_blocks` others; the tokens of the first and the last block see all
(Zaheer et al. 2020, arXiv:2007.14062). Time and memory grow with the length.

As in transformers, the blocks at random are those of the layer's number: the same at
every step, in training. In evaluation the first block stands for each of them, so that
its tokens count 1 + random_blocks times.

Legend: B rows, N heads, L tokens a row, D head width, G blocks of S tokens, I inner
blocks (G - 2), P blocks that an inner block sees, Q queries and K keys of a block.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from plmjax.models.attention import View, full, mix, scores, split
from plmjax.models.config import EncoderConfig
from plmjax.models.noise import Noise
from plmjax.models.positions import within
from plmjax.models.tiles import Way

UNSEEN = np.float32(-1e30)
# Rows that have another plan of random blocks, the paper's: among the first 1,024
# tokens.
_PAPERS_LENGTHS, _PAPERS_LAST = (1024, 3072, 4096), 1024


def short_rows(config: EncoderConfig, lengths: Iterable[int]) -> str | None:
    """Returns a sentence about row lengths that are too short for blocks, or None."""
    least = config.shortest_sparse
    short = [f"{length:,}" for length in lengths if length < least]
    if config.attention != "blocks" or not short:
        return None
    return (
        f"Rows of {' and '.join(short)} tokens are read with full attention: block "
        f"sparse attention begins at {least:,} tokens, (5 + 2 x model.random_blocks) x "
        "model.block + 1."
    )


@functools.lru_cache(maxsize=256)
def plan(config: EncoderConfig, layer: int, length: int, train: bool):
    """Returns the blocks that each inner block sees in a row of `length` tokens.

    (block_NIP, score_IP): their numbers, int32, and what is added to their scores,
    float32: 0, the logarithm of how often they count, or -1e30 if they do not.
    """
    count = -(-length // config.block)
    g = np.arange(1, count - 1)
    block_IP = np.stack([0 * g, g - 1, g, g + 1, 0 * g + count - 1], axis=1)
    score_IP = np.zeros(block_IP.shape, np.float32)
    # The first and the last block count once, if they are in the window, too.
    score_IP[0, 1] = score_IP[-1, 3] = UNSEEN
    block_NIP = np.broadcast_to(block_IP, (config.heads, *block_IP.shape))
    if train:
        random_NIP = _random_blocks(config, layer, count)
        block_NIP = np.concatenate([block_NIP, random_NIP], axis=2)
        score_IP = np.pad(score_IP, ((0, 0), (0, config.random_blocks)))
    else:
        score_IP[:, 0] = np.log1p(config.random_blocks)
    return block_NIP.astype(np.int32), score_IP


def _random_blocks(config: EncoderConfig, layer: int, count: int) -> np.ndarray:
    """Returns the random blocks of each head's inner blocks, [N, I, random_blocks].

    They are drawn in the order in which transformers draws them.
    """
    size, wanted = config.block, config.random_blocks
    random = np.random.RandomState(layer)
    drawn = np.zeros((config.heads, count - 2, wanted), np.int32)
    last = _PAPERS_LAST // size - 1
    # With fewer blocks to choose from, transformers fails.
    if count * size in _PAPERS_LENGTHS and last >= wanted + 3:
        total = max(config.max_positions // size, count)
        last = min(last, total - 2)
        for head in range(config.heads):
            for g in range(1, total - 1):
                # The last two inner blocks may have those in their window, too.
                near = g < total - 3
                before, after = (min(g - 2, last), g + 2) if near else (last, total)
                pool = [*range(1, before + 1), *range(after, last + 1)]
                chosen = random.permutation(pool)[:wanted]
                if g <= count - 2:
                    drawn[head, g - 1] = chosen
        return drawn
    last = 2 * wanted + 4
    for g in range(1, count - 1):
        known = {0, g - 1, g, g + 1, last}
        known |= {1: {last - 1}, last - 1: {1}}.get(g, set())
        for head in range(config.heads if wanted else 0):
            order = random.permutation(last + 1)
            drawn[head, g - 1] = [b for b in order if b not in known][:wanted]
    return drawn


def blocks(module, heads, view: View, noise: Noise | None, site: str):
    """Block sparse attention; full attention in rows too short for it."""
    config, length = module.config, view.start.shape[1]
    if length < config.shortest_sparse:
        return full(module, heads, view, noise, site)
    seen_blocks = plan(config, module.number, length, train=noise is not None)
    projected = heads("query"), heads("key"), heads("value")
    way, bounds = Way(module.platform, config.attention_dropout, site), view[:2]
    return sparse(way, projected, bounds, seen_blocks, size=config.block, noise=noise)


def sparse(way: Way, projected, bounds, seen_blocks, *, size: int, noise):
    """Returns the mean values of the keys that each query sees, [B, N, L, D].

    `projected` are the queries, keys and values, [B, N, L, D]; `bounds` the first key
    that a query may see and one past the last, [B, L]; `seen_blocks` is the plan of
    blocks of `size` tokens.
    """
    block_NIP, score_IP = map(jnp.asarray, seen_blocks)
    rows, heads, length, width = projected[0].shape
    inner = block_NIP.shape[1]

    def chosen(x_BNGSD):
        """Returns the keys or values of the plan's blocks, [B, N, I, K, D]."""
        # Many inner blocks see the same one: their gradients are summed in float32.
        wide = x_BNGSD.astype(jnp.float32)
        take = jax.vmap(lambda x_BGSD, block_IP: x_BGSD[:, block_IP], (1, 0), 1)
        found = take(wide, block_NIP).reshape(rows, heads, inner, -1, width)
        return found.astype(x_BNGSD.dtype)

    def ends(x):
        """Returns the first and the last block as one, [B, N, 1, Q, ...]."""
        return jnp.concatenate([x[:, :, :1], x[:, :, -1:]], axis=3)

    @jax.checkpoint
    def both(query, key, value):
        query, key, value = (split(x, size) for x in (query, key, value))
        limits = [split(x[:, None], size) for x in bounds]
        # In the program, for it would be a large constant.
        index_NIPS = block_NIP[..., None] * size + jnp.arange(size)[None, None, None]
        index_NI1K = index_NIPS.reshape(heads, inner, 1, -1)
        added_11I1K = jnp.repeat(score_IP, size, axis=1)[None, None, :, None]
        mixed = mix(
            dataclasses.replace(way, site=f"{way.site}/weights"),
            scores(query[:, :, 1:-1], chosen(key), way.platform) + added_11I1K,
            chosen(value),
            within([x[:, :, 1:-1] for x in limits], index_NI1K),
            noise,
        )
        key, value = (x.reshape(rows, heads, 1, -1, width) for x in (key, value))
        edges = mix(
            dataclasses.replace(way, site=f"{way.site}/global_weights"),
            scores(ends(query), key, way.platform),
            value,
            within(map(ends, limits), jnp.arange(key.shape[3])),
            noise,
        )
        first, last = jnp.split(edges, 2, axis=3)
        return jnp.concatenate([first, mixed, last], axis=2)

    return both(*projected).reshape(rows, heads, -1, width)[:, :, :length]
