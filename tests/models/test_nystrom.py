"""Nyström attention: the paper's formula in float64, documents of every length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.models import Encoder, EncoderConfig
from plmjax.models.nystrom import by_landmarks, convolve
from plmjax.models.platform import ANY

CONFIG = EncoderConfig(
    vocab_size=50,
    layers=1,
    width=16,
    heads=2,
    ffn_width=24,
    max_positions=24,
    position_offset=2,
    attention="nystrom",
    landmarks=4,
    value_convolution=5,
)
# A full row, lengths that the landmarks do not divide, as many tokens as landmarks,
# fewer, and one.
SIZES = (20, 14, 5, 4, 3, 1)
LENGTH = 20


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def reference(query, key, value, kernel):
    """The heads of one document, [N, L, D] each in float64, and its convolution."""
    heads, length, width = query.shape
    query, key = query / width**0.25, key / width**0.25
    count, reach = CONFIG.landmarks, kernel.shape[1] // 2
    if length <= count:
        mixed = softmax(query @ key.swapaxes(1, 2)) @ value
    else:
        stretch = np.arange(length) * count // length
        means = [
            np.stack([x[:, stretch == m].mean(1) for m in range(count)], 1)
            for x in (query, key)
        ]
        near = softmax(query @ means[1].swapaxes(1, 2))
        a = softmax(means[0] @ means[1].swapaxes(1, 2))
        far = softmax(means[0] @ key.swapaxes(1, 2))
        z = a.swapaxes(1, 2) / a.sum(1).max()
        one = np.eye(count)
        for _ in range(6):
            az = a @ z
            z = z / 4 @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
        mixed = near @ z @ far @ value
    for n, i, j in np.ndindex(heads, length, length):
        if abs(i - j) <= reach:
            mixed[n, i] += kernel[n, j - i + reach] * value[n, j]
    return mixed


def draw(seed=0):
    random = np.random.default_rng(seed)
    arrays = [1.5 * random.normal(size=(len(SIZES), 2, LENGTH, 6)) for _ in range(3)]
    return [*arrays, random.normal(size=(1, 5, 1, 2))]


def total(arrays, weights):
    """The weighted sum of all documents' heads, in float64."""
    *heads, kernel = arrays
    result = 0.0
    for row, size in enumerate(SIZES):
        document = [x[row, :, :size] for x in heads]
        mixed = reference(*document, kernel[0, :, 0].T)
        result += (weights[row, :, :size] * mixed).sum()
    return result


@jax.jit
def ours(query, key, value, kernel):
    size_B = jnp.array(SIZES)
    mixed = by_landmarks(CONFIG.landmarks, (query, key, value), size_B, ANY)
    return mixed + convolve(kernel, value, size_B, ANY)


def test_it_is_the_formula_written_out_with_its_gradients():
    arrays, weights = draw(), draw(seed=1)[0]
    single = [jnp.asarray(x, jnp.float32) for x in arrays]
    result = ours(*single)
    for row, size in enumerate(SIZES):
        of_row = [x[row, :, :size] for x in arrays[:3]]
        wanted = reference(*of_row, arrays[3][0, :, 0].T)
        np.testing.assert_allclose(result[row, :, :size], wanted, atol=1e-5)
    real = np.arange(LENGTH) < np.array(SIZES)[:, None]
    masked = jnp.asarray(weights * real[:, None, :, None], jnp.float32)
    grads = jax.grad(lambda x: (ours(*x) * masked).sum())(single)
    for number, (grad, way) in enumerate(zip(grads, draw(seed=2), strict=True)):
        assert np.isfinite(grad).all()
        moved = []
        for step in (1e-5, -1e-5):
            others = list(arrays)
            others[number] = arrays[number] + step * way
            moved.append(total(others, weights))
        wanted = (moved[0] - moved[1]) / 2e-5
        assert float((grad * way).sum()) == pytest.approx(wanted, rel=1e-4)


def inputs(sizes, length):
    """Rows of the same documents, each as long as its size, in rows of `length`."""
    tokens = np.random.default_rng(0).integers(5, 50, (len(sizes), LENGTH))
    real = (np.arange(length) < np.array(sizes)[:, None]).astype(np.int32)
    tokens = tokens[:, :length].astype(np.int32) * real
    positions = np.tile(np.arange(length, dtype=np.int32), (len(sizes), 1))
    return [tokens, real, positions, 0 * tokens]


def test_bf16_with_one_huge_activation_stays_near_the_formula():
    arrays = draw()
    arrays[0][0, 0, 3, 2] = 1e4
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    exact = [np.asarray(x, np.float64) for x in half]
    result = np.asarray(ours(*half), np.float64)
    for row, size in enumerate(SIZES):
        of_row = [x[row, :, :size] for x in exact[:3]]
        wanted = reference(*of_row, exact[3][0, :, 0].T)
        # bf16 has 8 digits: results of size 11 are off by 11 times 2 ** -9.
        np.testing.assert_allclose(result[row, :, :size], wanted, atol=12 * 2**-9)


def test_memory_grows_with_the_length():
    """Twice the tokens take twice the memory, not four times."""
    sizes = []
    for length in (512, 1024):
        heads = [jax.ShapeDtypeStruct((1, 2, length, 8), jnp.float32)] * 3
        kernel = jax.ShapeDtypeStruct((1, 5, 1, 2), jnp.float32)

        def loss(arrays):
            *heads, kernel = arrays
            size_B = jnp.array([100])
            mixed = by_landmarks(CONFIG.landmarks, heads, size_B, ANY)
            return (mixed + convolve(kernel, heads[2], size_B, ANY)).sum()

        program = jax.jit(jax.grad(loss)).lower([*heads, kernel]).compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 2.2 * sizes[0]


@pytest.mark.usefixtures("strict")
def test_a_padded_row_is_its_document_alone():
    """Also if the shorter row has no more tokens than landmarks: the exact softmax."""
    encoder, half = (
        Encoder(dataclasses.replace(CONFIG, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    )
    rows = inputs(SIZES, LENGTH)
    jax.eval_shape(half.init, jax.random.key(0), *rows)
    params = jax.jit(encoder.init)(jax.random.key(0), *rows)
    params = jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, params)
    apply = jax.jit(encoder.apply)
    padded = apply(params, *rows)
    for row, size in enumerate(SIZES):
        if size not in (14, 3):
            continue
        alone = apply(params, *(x[row : row + 1] for x in inputs(SIZES, size)))
        np.testing.assert_allclose(padded[row, :size], alone[0], atol=5e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"landmarks": 23}, "landmarks=23 is more than the 22 tokens"),
        ({"value_convolution": 4}, "value_convolution is 4; it must be odd"),
        ({"value_convolution": 1}, "value_convolution is 1; it must be odd"),
        ({"causal": True}, "'nystrom' cannot have model.causal=True"),
        ({"layer_kinds": ("local",)}, "cannot have model.layer_kinds"),
        ({"positions": "none"}, "hides the order"),
    ],
    ids=str,
)
def test_what_landmarks_cannot_do_is_refused(changes, message):
    with pytest.raises(PlmjaxError, match=message):
        dataclasses.replace(CONFIG, **changes)
