"""Block sparse attention: what its mask and multiplicities, written out, give."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax.models import EncoderConfig, Noise
from plmjax.models.attention import attend, Dropout
from plmjax.models.blocks import plan, sparse
from plmjax.models.platform import ANY

CONFIG = EncoderConfig(
    vocab_size=50,
    layers=2,
    width=12,
    heads=3,
    ffn_width=24,
    max_positions=64,
    attention="blocks",
    block=4,
    random_blocks=1,
)
# 31 tokens fill seven blocks and most of an eighth; a row of padding but for a token.
LENGTHS = (31, 18, 1)


def draw(length: int = 31, seed: int = 0):
    random = np.random.default_rng(seed)
    shape = (len(LENGTHS), CONFIG.heads, length, 4)
    return [random.normal(size=shape).astype(np.float32) for _ in range(3)]


def multiplicities(length: int, train: bool) -> np.ndarray:
    """Returns how often each query counts each key, [N, L, L], block by block."""
    size, count = CONFIG.block, -(-length // CONFIG.block)
    block_NIP, _ = plan(CONFIG, 1, length, train)
    times = np.zeros((CONFIG.heads, count, count))
    for head in range(CONFIG.heads):
        for g in range(count):
            if g in (0, count - 1):
                times[head, g] = 1
                continue
            times[head, g, sorted({0, g - 1, g, g + 1, count - 1})] = 1
            others = block_NIP[head, g - 1, 5:] if train else [0] * CONFIG.random_blocks
            for other in others:
                times[head, g, other] += 1
    return times.repeat(size, 1).repeat(size, 2)[:, :length, :length]


def reference(arrays, times):
    """Masked softmax attention in float64; the weights are as often as `times` says."""
    query, key, value = arrays
    scores = jnp.einsum("bnqd,bnkd->bnqk", query, key) / 2
    real = np.arange(query.shape[2]) < np.array(LENGTHS)[:, None]
    weights = jnp.exp(scores - scores.max(-1, keepdims=True)) * times
    weights = weights * real[:, None, None]
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.einsum("bnqk,bnkd->bnqd", weights, value) * real[:, None, :, None]


def run(arrays, train: bool, noise=None, rate: float = 0.0, layer: int = 1):
    length = arrays[0].shape[2]
    start = jnp.zeros((len(LENGTHS), length), jnp.int32)
    end = jnp.broadcast_to(jnp.array(LENGTHS, jnp.int32)[:, None], start.shape)
    seen = plan(CONFIG, layer, length, train)
    options = {"noise": noise, "site": "site", "platform": ANY}
    found = sparse(arrays, start, end, seen, size=CONFIG.block, rate=rate, **options)
    real = np.arange(length) < np.array(LENGTHS)[:, None]
    return found * real[:, None, :, None]


@pytest.mark.parametrize("train", [False, True])
def test_it_is_the_softmax_with_its_multiplicities(train):
    arrays, weights = draw(), draw(seed=1)[0]
    times = multiplicities(31, train)
    assert times.max() == (2 if not train else times.max())

    def ours(arrays):
        found = run(arrays, train)
        return (found * weights).sum(), found

    def theirs(arrays):
        found = reference(arrays, times)
        return (found * weights).sum(), found

    (_, found), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(arrays)
    with jax.enable_x64(True):
        exact = [jnp.asarray(x, jnp.float64) for x in arrays]
        (_, wanted), exact_grads = jax.value_and_grad(theirs, has_aux=True)(exact)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    for a, b in zip(grads, exact_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)
