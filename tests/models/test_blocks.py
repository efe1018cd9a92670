"""Block sparse attention: what its mask and multiplicities, written out, give."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax.models import Encoder, EncoderConfig, Noise
from plmjax.models.blocks import plan, short_rows, sparse
from plmjax.models.flops import encoder_flops
from plmjax.models.platform import ANY
from plmjax.models.tiles import Way

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
LENGTHS = jnp.array([31, 18, 1], jnp.int32)


def draw(length: int = 31, seed: int = 0):
    random = np.random.default_rng(seed)
    shape = (3, CONFIG.heads, length, 4)
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
    real = jnp.arange(query.shape[2]) < LENGTHS[:, None]
    weights = jnp.exp(scores - scores.max(-1, keepdims=True)) * times
    weights = weights * real[:, None, None]
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.einsum("bnqk,bnkd->bnqd", weights, value) * real[:, None, :, None]


def run(arrays, train: bool, noise=None, rate: float = 0.0, lengths=LENGTHS):
    shape = (3, arrays[0].shape[2])
    start = jnp.zeros(shape, jnp.int32)
    end = jnp.broadcast_to(lengths[:, None], shape)
    seen, way = plan(CONFIG, 1, shape[1], train), Way(ANY, rate, "site")
    options = {"size": CONFIG.block, "noise": noise}
    found = sparse(way, arrays, (start, end), seen, **options)
    real = jnp.arange(shape[1])[None] < lengths[:, None]
    return jnp.where(real[:, None, :, None], found, 0)


@pytest.mark.parametrize("train", [False, True])
def test_it_is_the_softmax_with_its_multiplicities(train):
    arrays, weights = draw(), draw(seed=1)[0]
    times = multiplicities(31, train)
    assert times[:, 4:-3].sum(-1).min() == 4 * 5 - 1  # the last block lacks a token

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


def test_bf16_with_one_huge_activation_stays_near_float32():
    arrays = draw()
    arrays[0][0, 0, 9, 2] = 1e4
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    found = np.asarray(jax.jit(lambda x: run(x, True))(half), np.float64)
    with jax.enable_x64(True):
        exact = [jnp.asarray(x, jnp.float64) for x in half]
        wanted = reference(exact, multiplicities(31, True))
    # bf16 has 8 digits: a weight and a value of size 3 are each off by 2 ** -9.
    np.testing.assert_allclose(found, wanted, atol=3 * 2**-7)


def test_bf16_sums_the_gradients_of_what_many_blocks_see_in_float32():
    """Of the first block, which 62 others see: as near to float32 as any other."""
    arrays, weights = draw(256), draw(256, seed=1)[0]
    lengths = jnp.full(3, 256)

    @jax.jit
    def gradients(arrays):
        def loss(arrays):
            found = run(arrays, True, lengths=lengths)
            return (found.astype(jnp.float32) * weights).sum()

        return jax.grad(loss)(arrays)[1:]

    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    exact = gradients([x.astype(jnp.float32) for x in half])
    for ours, wanted in zip(gradients(half), exact, strict=True):
        error, size = (
            float(jnp.square(x[:, :, : CONFIG.block]).mean() ** 0.5)
            for x in (ours.astype(jnp.float32) - wanted, wanted)
        )
        assert error < 2**-7 * size


@pytest.mark.usefixtures("strict")
def test_dropout_follows_the_row_and_not_its_place():
    arrays = draw()

    @jax.jit
    def dropped(rows, order):
        noise = Noise(jnp.uint32(1), jnp.uint32(2), rows[order])
        return run(
            [jnp.asarray(x)[order] for x in arrays], True, noise, 0.5, LENGTHS[order]
        )

    first = np.asarray(dropped(jnp.array([7, 9, 8]), jnp.arange(3)))
    turned = np.asarray(dropped(jnp.array([7, 9, 8]), jnp.array([2, 0, 1])))
    np.testing.assert_array_equal(turned, first[[2, 0, 1]])
    other = np.asarray(dropped(jnp.array([5, 9, 8]), jnp.arange(3)))
    assert not np.allclose(other[0], first[0])
    # A token that sees itself alone has a weight of 1: it is dropped, or doubled.
    times = first[2, :, 0] / arrays[2][2, :, 0]
    assert set(np.unique(times.round(4))) <= {0.0, 2.0}


def test_rows_too_short_for_blocks_have_full_attention():
    one = dataclasses.replace(CONFIG, layers=1)
    full = dataclasses.replace(one, attention="full")
    ids = jnp.arange(29)[None]
    params = jax.jit(Encoder(full).init)(jax.random.key(0), ids, ids + 1, ids, 0 * ids)
    for length, alike in ((28, True), (29, False)):
        inputs = [x[:, :length] for x in (ids, 0 * ids + 1, ids, 0 * ids)]
        ours, theirs = (
            jax.jit(Encoder(config).apply)(params, *inputs) for config in (one, full)
        )
        assert np.allclose(ours, theirs, atol=1e-6) == alike
        assert (encoder_flops(one, length) == encoder_flops(full, length)) == alike
    assert CONFIG.shortest_sparse == 29 and short_rows(CONFIG, [29, 64]) is None
    assert short_rows(full, [8]) is None
    said = short_rows(CONFIG, [8, 28, 29])
    assert said is not None and "Rows of 8 and 28 tokens" in said and "at 29" in said


def test_memory_grows_with_the_length_and_not_its_square():
    def mixed(q, k, v, start, end):
        config = dataclasses.replace(CONFIG, block=16)
        seen = plan(config, 0, q.shape[2], True)
        options = {"size": 16, "noise": None}
        return sparse(Way(ANY), (q, k, v), (start, end), seen, **options).sum()

    sizes = []
    for length in (512, 1024):
        shape = jax.ShapeDtypeStruct((1, 3, length, 4), jnp.float32)
        bounds = jax.ShapeDtypeStruct((1, length), jnp.int32)
        program = jax.jit(jax.grad(mixed, (0, 1, 2)))
        memory = program.lower(shape, shape, shape, bounds, bounds).compile()
        sizes.append(memory.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 2.2 * sizes[0]


# Drawn with numpy's legacy generator, whose numbers never change.
PLANS = {
    (4, 1, 40, 36): [[4], [5], [5], [1], [2], [3], [4]],
    (64, 2, 4096, 1024): [
        [4, 12],
        [7, 15],
        [5, 6],
        [6, 7],
        [14, 8],
        [15, 10],
        [5, 11],
        [12, 6],
        [6, 12],
        [5, 12],
        [6, 1],
        [7, 5],
        [5, 8],
        [6, 1],
    ],
}


@pytest.mark.parametrize("block, wanted, positions, length", PLANS)
def test_random_blocks_are_transformers(block, wanted, positions, length):
    """Their numbers, by the plan of any length and by that of 1,024 tokens."""
    found = random_blocks(block, wanted, positions, length)
    assert found[1].tolist() == PLANS[block, wanted, positions, length]


def random_blocks(block, wanted, positions, length):
    config = dataclasses.replace(
        CONFIG, block=block, random_blocks=wanted, max_positions=positions
    )
    return plan(config, 2, length, True)[0][:, :, 5:]


@pytest.mark.peer
@pytest.mark.parametrize(
    "block, wanted, positions, length",
    [
        *PLANS,
        (64, 3, 4096, 4096),
        (64, 3, 4096, 3072),
        (16, 3, 1024, 1024),
        (64, 3, 4096, 2048),
        (1, 0, 9, 9),
    ],
)
def test_transformers_draws_the_same_blocks(block, wanted, positions, length):
    from transformers import BigBirdConfig
    from transformers.models.big_bird import modeling_big_bird

    config = BigBirdConfig(hidden_size=12, num_attention_heads=3)
    theirs = modeling_big_bird.BigBirdBlockSparseAttention(config).train()
    np.random.seed(2)
    if length in (1024, 3072, 4096):
        found = [
            theirs._bigbird_block_rand_mask(
                positions, positions, block, block, wanted, last_idx=1024
            )[: length // block - 2]
            for _ in range(3)
        ]
    else:
        ends, counts = theirs._get_rand_attn_plan(length, block, wanted)
        found = theirs._bigbird_block_rand_mask_with_head(
            length, length, block, block, 3, ends, counts
        )
    ours = random_blocks(block, wanted, positions, length)
    np.testing.assert_array_equal(ours, np.stack(found))
