"""Attention in all its ways: each computes what one line of masked softmax says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests_common import campaign

from plmjax.models import Encoder, EncoderConfig, Noise, attention
from plmjax.models.attention import attend, slopes
from plmjax.models.platform import ANY
from plmjax.models.positions import frequencies, reach, rotate, rotation
from plmjax.models.tiles import Way

# Rows of 21 tokens: no multiple of a block of 4 or 8, documents of one token, padding
# at the end, and a row that is padding but for one token.
SEGMENTS = np.array(
    [
        [1] * 9 + [2] + [3] * 11,
        [1] + [2] * 8 + [3] + [4] * 5 + [0] * 6,
        [1] + [0] * 20,
    ],
    np.int32,
)


def seen(segments: np.ndarray, causal: bool, window: int) -> np.ndarray:
    """Returns which key each query sees, [B, Q, K], token by token."""
    length = segments.shape[1]
    mask = np.zeros((*segments.shape, length), bool)
    for row, q, k in np.ndindex(mask.shape):
        inside = segments[row, q] == segments[row, k]
        if causal:
            inside &= k <= q and (not window or q - k < window // 2)
        elif window:
            inside &= abs(q - k) <= window // 2
        mask[row, q, k] = inside
    return mask


def reference(query, key, value, mask, slope=None):
    """Masked softmax attention in float64, [B, N, L, D]."""
    groups = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x, groups, axis=1).astype(np.float64) for x in (key, value))
    scores = np.einsum("bnqd,bnkd->bnqk", query, key) / np.sqrt(query.shape[-1])
    if slope is not None:
        index = np.arange(query.shape[2])
        scores -= np.array(slope)[:, None, None] * np.abs(index[:, None] - index)
    scores = np.where(mask[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnqk,bnkd->bnqd", weights, value)


def draw(heads: int = 4, kv_heads: int = 4, length: int = 21, seed: int = 0):
    random = np.random.default_rng(seed)
    shapes = [(3, n, length, 6) for n in (heads, kv_heads, kv_heads)]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.fixture(params=["at once", "in blocks", "in windows"])
def way(request, monkeypatch):
    """Blocks so small that 21 tokens fill several, or so large that they never do."""
    size = {"at once": 1000, "in blocks": 8, "in windows": 1000}[request.param]
    monkeypatch.setattr(attention, "BLOCK", size)
    least = 4 if request.param == "in windows" else 1000
    monkeypatch.setattr(attention, "LEAST_BLOCK", least)
    return request.param


def run(query, key, value, causal=False, window=0, slope=None, rate=0.0, noise=None):
    bounds = reach(jnp.asarray(SEGMENTS), causal, window)
    way = Way(ANY, rate, "site", window, slope)
    return attend(way, query, (key, value), bounds, noise)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 2, 4, 40])
def test_a_range_of_keys_is_the_mask_written_out(causal, window):
    start, end = reach(jnp.asarray(SEGMENTS), causal, window)
    index = np.arange(SEGMENTS.shape[1])
    mask = (index >= start[:, :, None]) & (index < end[:, :, None])
    assert (np.asarray(mask) == seen(SEGMENTS, causal, window)).all()


@pytest.mark.parametrize(
    "window, causal, kv_heads, alibi",
    [
        (0, False, 4, False),
        (0, True, 2, True),
        (2, False, 2, False),
        (4, True, 4, False),
        (4, False, 1, True),
        (2, True, 4, False),  # each query sees itself alone
    ],
)
def test_every_way_is_the_masked_softmax(way, window, causal, kv_heads, alibi):
    arrays = draw(kv_heads=kv_heads)
    slope = slopes(4) if alibi else None
    result = run(*arrays, causal, window, slope)
    wanted = reference(*arrays, seen(SEGMENTS, causal, window), slope)
    np.testing.assert_allclose(result, wanted, atol=2e-6)


@pytest.mark.parametrize(
    "window, rate", campaign([(0, 0.0), (0, 0.3), (4, 0.0), (4, 0.3)], (4, 0.3))
)
def test_every_way_has_the_gradients_and_the_dropout_of_one(
    way, window, rate, monkeypatch
):
    rows = jnp.array([5, 9, 2], jnp.int32)
    noise = Noise(jnp.uint32(1), jnp.uint32(2), rows)
    weights = draw(seed=1)[0]

    def loss(arrays):
        found = run(*arrays, window=window, rate=rate, noise=noise)
        return (found * weights).sum()

    ours = jax.value_and_grad(loss)(draw())
    monkeypatch.setattr(attention, "BLOCK", 1000)
    monkeypatch.setattr(attention, "LEAST_BLOCK", 1000)
    wanted = jax.value_and_grad(loss)(draw())
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    dropped = run(*draw(), rate=rate, noise=noise)
    assert (np.asarray(dropped) != run(*draw())).any() == (rate > 0)


def test_bf16_with_one_huge_activation_stays_near_float32(way):
    arrays = draw()
    arrays[0][0, 0, 3, 2] = 1e4
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    exact = [np.asarray(x, np.float64) for x in half]
    result = np.asarray(run(*half, window=4), np.float64)
    wanted = reference(*exact, seen(SEGMENTS, False, 4))
    # bf16 has 8 digits: a weight and a value of size 3 are each off by 2 ** -9.
    np.testing.assert_allclose(result, wanted, atol=3 * 2**-7)


SMALL = EncoderConfig(
    vocab_size=50,
    layers=3,
    width=16,
    heads=4,
    kv_heads=2,
    ffn_width=24,
    max_positions=24,
    token_types=0,
    gated=True,
    activation="silu",
    bias=False,
    norm="rms",
    norm_place="pre",
    norm_embeddings=True,
    layer_kinds=("global", "local"),
    window=4,
    positions="rope",
    rope_local_theta=100.0,
)


@pytest.mark.parametrize(
    "positions", ["rope", pytest.param("alibi", marks=pytest.mark.slow)]
)
def test_documents_are_the_same_in_any_packing(way, positions):
    config = dataclasses.replace(SMALL, positions=positions)
    random = np.random.default_rng(0)
    texts = [random.integers(1, 50, size) for size in (9, 1, 11, 1, 8, 1, 5, 1)]

    def rows(*members):
        """The inputs of rows, each with these documents, and where each of them is."""
        inputs, place = np.zeros((4, 3, 21), np.int32), {}
        for row, documents in enumerate(members):
            at = 0
            for number, text in enumerate(documents):
                place[text] = row, slice(at, at + len(texts[text]))
                inputs[:3, row, place[text][1]] = [
                    texts[text],
                    np.full(len(texts[text]), number + 1),
                    np.arange(len(texts[text])),
                ]
                at += len(texts[text])
        return inputs, place

    inputs, places = rows([0, 1, 2], [3, 4, 5, 6], [7])
    assert (inputs[1] == SEGMENTS).all()
    params = jax.jit(Encoder(config).init)(jax.random.key(0), *inputs)
    apply = jax.jit(Encoder(config).apply)
    packed = np.asarray(apply(params, *inputs))
    # Another packing of all, and each of some alone.
    for members in ([6, 7, 0, 3], [2, 4], [5, 1]), ([0],), ([1],), ([2],), ([6],):
        other, there = rows(*members)
        found = np.asarray(apply(params, *other))
        for text, (row, span) in there.items():
            wanted = packed[places[text]]
            np.testing.assert_allclose(found[row, span], wanted, atol=2e-6)


def test_a_rotation_keeps_lengths_and_knows_only_distances():
    config = dataclasses.replace(SMALL, rope_theta=50.0)
    query, key = (
        np.broadcast_to(x[:1, :, :1, :4], (1, 4, 9, 4)) for x in draw(length=1)[:2]
    )
    positions = jnp.arange(9)[None]
    query, key = (
        np.asarray(rotate(jnp.asarray(x), *rotation(config, "global", positions)))
        for x in (query, key)
    )
    np.testing.assert_allclose(
        *np.broadcast_arrays((query**2).sum(-1), (query[:, :, :1] ** 2).sum(-1)),
        rtol=1e-5,
    )
    products = np.einsum("bnqd,bnkd->bnqk", query, key)[0, 0]
    for distance in (-3, 0, 2):
        along = np.diagonal(products, distance)
        np.testing.assert_allclose(along, along[0], rtol=1e-4)
    assert len({round(float(p), 3) for p in products[:, 0]}) == 9


def test_kinds_of_layers_have_rotations_of_their_own():
    """The formula of RoPE, and of what stretches it, dimension by dimension."""
    config = dataclasses.replace(SMALL, width=64, rope_theta=10_000.0)
    exponent = -np.arange(0, 16, 2) / 16
    for kind, theta in (("global", 10_000.0), ("local", 100.0)):
        speed, factor = frequencies(config, kind)
        np.testing.assert_allclose(speed, theta**exponent, rtol=1e-6)
        assert factor == 1
    ntk = dataclasses.replace(config, rope_scaling="ntk", rope_factor=4.0)
    # Eight times 2 dimensions: the slowest turns 4 times slower, the fastest as before.
    speed, _ = frequencies(ntk, "global")
    np.testing.assert_allclose(speed[-1] * 4, 10_000.0 ** exponent[-1], rtol=1e-6)
    assert speed[0] == 1
    assert (frequencies(ntk, "local")[0] == frequencies(config, "local")[0]).all()


def test_slopes_of_alibi_are_those_of_the_paper():
    np.testing.assert_allclose(slopes(8), [2.0**-n for n in range(1, 9)])
    np.testing.assert_allclose(slopes(3), [2.0**-4, 2.0**-8, 2.0**-2])


def test_local_layers_take_memory_that_grows_with_the_length():
    """Twice the tokens take twice the memory, not four times."""
    sizes = []
    for length in (1024, 2048):
        shape = jax.ShapeDtypeStruct((1, 2, length, 8), jnp.float32)
        bounds = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def local(query, key, value, start, end):
            way = Way(ANY, window=64)
            return attend(way, query, (key, value), (start, end), None).sum()

        program = jax.jit(jax.grad(local)).lower(shape, shape, shape, bounds, bounds)
        memory = program.compile().memory_analysis()
        sizes.append(memory.temp_size_in_bytes)
    assert sizes[1] < 2.2 * sizes[0]
