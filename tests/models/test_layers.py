"""The fast layers against their plain definitions, in value and gradient."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plmjax.models import layers
from plmjax.models.layers import (
    affine,
    einsum,
    gelu,
    narrow,
    normalise,
    table_scores,
    weigh,
)
from plmjax.models.platform import Platform

CPU = Platform.of(jax.devices("cpu")[:1])
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
def test_affine_is_x_times_kernel_plus_bias(bias, transposed):
    x, kernel, b = normal(17, 5), normal(5, 7), normal(7) if bias else None
    cotangent = normal(17, 7)

    def plain(x, kernel, b):
        y = jnp.dot(x, kernel)
        return jnp.sum((y if b is None else y + b[None, :]) * cotangent)

    def ours(x, kernel, b):
        if transposed:
            return jnp.sum(table_scores(x, kernel.T, b, "float32") * cotangent)
        return jnp.sum(affine(x, kernel, b, "float32") * cotangent)

    argnums = (0, 1, 2) if bias else (0, 1)
    expected = jax.value_and_grad(plain, argnums)(x, kernel, b)
    found = jax.jit(jax.value_and_grad(ours, argnums))(x, kernel, b)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5),
        found,
        expected,
    )


def test_bf16_products_round_the_operands_and_nothing_else():
    x, kernel, bias = normal(33, 64), normal(64, 9), normal(9)

    def rounded(a):
        return a.astype(jnp.bfloat16).astype(jnp.float32)

    expected = rounded(x) @ rounded(kernel) + bias
    found = jax.jit(affine, static_argnums=3)(x, kernel, bias, "bfloat16")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda b: affine(x, kernel, b, "bfloat16").sum())(bias)
    np.testing.assert_allclose(gradient, np.full(9, 33.0))


@pytest.mark.skipif(not CPU.multiplies_bf16, reason="this processor has no bf16")
def test_a_cpu_multiplies_scores_of_the_vocabulary_in_bf16():
    x, table, bias = normal(16, 32), normal(512, 32), normal(512)

    def total(*arrays):
        return jnp.square(table_scores(*arrays, "bfloat16", CPU)).sum()

    program = jax.jit(jax.grad(total, (0, 1, 2))).lower(x, table, bias).compile()
    found = re.findall(r" dot\(%([\w.-]+), %([\w.-]+)", text := program.as_text())
    kinds = [re.findall(rf"%{re.escape(a)} = (\w+)", text)[0] for a, _ in found]
    # The scores, two gradients, and the bias's, which is a sum.
    assert sorted(kinds) == ["bf16"] * 3 + ["f32"]


@pytest.mark.parametrize("spec", ["bnqd,bnkd->bnqk", "bnqk,bnkd->bnqd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("one_device", [False, True])
def test_einsum_has_the_gradient_of_einsum(spec, dtype, one_device):
    platform = Platform(one_device=one_device)
    sizes = dict(b=2, n=3, q=8, k=8, d=4)
    a, b = (
        normal(*(sizes[i] for i in part)).astype(dtype)
        for part in spec.split("->")[0].split(",")
    )
    cotangent = normal(*(sizes[i] for i in spec.split("->")[1])).astype(dtype)
    wide = [x.astype(jnp.float32) for x in (a, b, cotangent)]

    def plain(a, b):
        return jnp.sum(jnp.einsum(spec, a, b) * wide[2])

    def ours(a, b):
        return jnp.sum(einsum(spec, a, b, platform) * cotangent.astype(jnp.float32))

    expected = jax.grad(plain, (0, 1))(*wide[:2])
    found = jax.jit(jax.grad(ours, (0, 1)))(a, b)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(
            one.astype(jnp.float32),
            other,
            rtol=1e-5 if dtype == "float32" else 1e-2,
            atol=1e-5,
        )


@pytest.mark.usefixtures("strict")
def test_gelu_is_exact_to_three_parts_in_ten_million():
    x = jnp.linspace(-8, 8, 20001)
    exact = 0.5 * x * jax.scipy.special.erfc(-x * 2**-0.5)
    np.testing.assert_allclose(gelu(x), exact, atol=5e-7)
    slope = jax.vmap(jax.grad(lambda x: 0.5 * x * jax.scipy.special.erfc(-x * 2**-0.5)))
    np.testing.assert_allclose(
        jax.grad(lambda x: gelu(x).sum())(x), slope(x), atol=5e-7
    )
    assert gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_a_norm_and_its_gradients_keep_their_digits_far_from_zero(mean, centre):
    x, scale, bias, g = (
        np.asarray(a, np.float64)
        for a in (normal(6, 40) + mean, normal(40), normal(40), normal(6, 40))
    )
    centred = x - x.mean(-1, keepdims=True) if centre else x
    inverse = 1 / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    n = centred * inverse
    dx = g * scale - n * (g * scale * n).mean(-1, keepdims=True)
    dx = (dx - centre * (g * scale).mean(-1, keepdims=True)) * inverse
    y, back = jax.vjp(
        lambda *arrays: normalise(*arrays, 1e-5, centre),
        *(jnp.asarray(a, jnp.float32) for a in (x, scale, bias)),
    )
    limit = 3e-6 if mean == 0 else 3e-4
    np.testing.assert_allclose(y, n * scale + bias, atol=limit)
    found = back(jnp.asarray(g, jnp.float32))
    np.testing.assert_allclose(found[0], dx, atol=3e-6)
    np.testing.assert_allclose(found[1], (g * n).sum(0), atol=3 * limit)
    np.testing.assert_allclose(found[2], g.sum(0), atol=1e-5)


def test_a_norm_of_bf16_sees_its_mean_and_variance_in_one_pass():
    """Also with one activation far beyond the others, and far from zero."""
    x = (normal(6, 64) + 20).at[0, 3].set(1e4).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    n = (wide - wide.mean(-1, keepdims=True)) / wide.std(-1, keepdims=True)
    found = normalise(x, jnp.ones(64), None, 1e-12, True)
    np.testing.assert_allclose(found.astype(jnp.float32), n, rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_what_attention_keeps_gives_the_gradients_of_softmax_and_dropout(rate, dtype):
    scores, g = normal(2, 3, 8, 8) * 3, normal(2, 3, 8, 4)
    value = normal(2, 3, 8, 4).astype(dtype)
    scores = scores.at[..., 5:].set(-1e30).at[0, 0, 0, 1].set(200.0)
    kept = jnp.asarray(RANDOM.random(scores.shape) >= rate) if rate else None

    def plain(scores, value):
        weights = jax.nn.softmax(scores, axis=-1)
        if kept is not None:
            weights = jnp.where(kept, weights / (1 - rate), 0.0)
        return weights @ value

    def ours(scores, value):
        platform = Platform("gpu", one_device=True)
        return weigh(rate, platform, scores, value, kept)

    exact, exactly = jax.vjp(plain, scores, value.astype(jnp.float32))
    found, back = jax.vjp(ours, scores, value)
    assert found.dtype == dtype
    limit = 1e-5 if dtype == "float32" else 2e-2
    for a, b in zip((found, *back(g.astype(dtype))), (exact, *exactly(g)), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=limit, atol=limit)


def test_scores_lose_less_in_memory_than_their_factors_did():
    gpu, scores = Platform("gpu"), normal(999) * 20
    found = narrow(scores.at[0].set(1e8), "bfloat16", gpu)
    assert found[0] == 6e4
    np.testing.assert_allclose(found[1:], scores[1:], rtol=2**-11, atol=1e-7)
    assert jnp.any(found[1:] != scores[1:])
    for dtype, platform in (("float32", gpu), ("bfloat16", Platform("tpu"))):
        np.testing.assert_array_equal(narrow(scores, dtype, platform), scores)
    slope = jax.grad(lambda x: jnp.sum(narrow(x, "bfloat16", gpu) ** 2))(scores)
    np.testing.assert_allclose(slope, 2 * narrow(scores, "bfloat16", gpu))


@pytest.mark.usefixtures("strict")
def test_cross_entropy_is_cross_entropy():
    logits, weights = normal(9, 31) * 5, normal(9)
    labels = jnp.asarray(RANDOM.integers(0, 31, 9), jnp.int32)
    labels = labels.at[:4].set(jnp.argmax(logits[:4], axis=-1).astype(jnp.int32))

    def ours(x):
        nll, hit = layers.cross_entropy(x, labels)
        return jnp.sum(nll * weights), hit

    def plain(x):
        return jnp.sum(
            optax.softmax_cross_entropy_with_integer_labels(x, labels) * weights
        )

    (value, hit), gradient = jax.value_and_grad(ours, has_aux=True)(logits)
    np.testing.assert_array_equal(hit, jnp.argmax(logits, axis=-1) == labels)
    for a, b in zip((value, gradient), jax.value_and_grad(plain)(logits), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
