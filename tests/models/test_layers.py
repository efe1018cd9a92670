"""The fast layers against their plain definitions, in value and gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plmjax.models import layers
from plmjax.models.layers import LayerNorm, affine, einsum, gelu

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("bias", [True, False])
def test_affine_is_x_times_kernel_plus_bias(bias):
    x, kernel, b = normal(17, 5), normal(5, 7), normal(7) if bias else None
    cotangent = normal(17, 7)

    def plain(x, kernel, b):
        y = jnp.dot(x, kernel)
        return jnp.sum((y if b is None else y + b[None, :]) * cotangent)

    def ours(x, kernel, b):
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


@pytest.mark.parametrize("spec", ["bnqd,bnkd->bnqk", "bnqk,bnkd->bnqd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_einsum_has_the_gradient_of_einsum(spec, dtype):
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
        return jnp.sum(einsum(spec, a, b) * cotangent.astype(jnp.float32))

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


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_layer_norm_keeps_its_digits_far_from_zero(mean):
    x = np.asarray(RANDOM.normal(size=(6, 40)) + mean)
    module = LayerNorm(1e-5, "float32")
    params = module.init(jax.random.key(0), x)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + 1e-5
    )
    found = module.apply(params, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=3e-6 if mean == 0 else 3e-4)
    reference = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
    wide = jnp.asarray(x, jnp.float32)
    scale = normal(40)

    def gradient(f):
        return jax.grad(lambda x: jnp.sum(f(x) * scale))(wide)

    np.testing.assert_allclose(
        gradient(lambda x: module.apply(params, x)),
        gradient(lambda x: reference.apply({"params": params["params"]}, x)),
        atol=2e-5,
    )


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
