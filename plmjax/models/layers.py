"""Dense, norm, dropout, GELU: all code that is written to make XLA fast.

Legend of shape suffixes: T tokens (B rows x L), I inputs, O outputs, H width, N heads,
V vocabulary. Activations are two-dimensional, [T, H]: with three dimensions XLA:CPU
computes weight gradients four times slower. Figures are in docs/performance.md.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

from plmjax.models.config import EncoderConfig
from plmjax.models.noise import Noise, keep
from plmjax.models.platform import ANY, Platform


def _operands(a, b, contracts_last: bool, platform: Platform):
    """Returns a and b in dtypes that XLA can multiply; widening bf16 is exact.

    XLA:CPU has bf16 products only on some processors, and only over a's last axis.
    """
    if platform.multiplies_bf16 and (contracts_last or platform.kind != "cpu"):
        return a, b
    return a.astype(jnp.float32), b.astype(jnp.float32)


def _product(a, b, contract_a: int, contract_b: int, platform: Platform):
    """A matrix product that accumulates in float32, for operands of any dtype.

    bf16 x bf16 -> bf16 does not use the CPU's matrix unit: it is 4 to 8 times slower.
    """
    a, b = _operands(a, b, contract_a == a.ndim - 1, platform)
    dimensions = (((contract_a,), (contract_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def affine(x_TI, kernel_IO, bias_O, dtype, platform: Platform = ANY):
    """Returns float32 x @ kernel + bias, [T, O], with products of `dtype` operands.

    The bias is added before any rounding to bf16. Reverse mode only: custom_vjp
    forbids jvp.
    """
    y_TO = _product(x_TI.astype(dtype), kernel_IO.astype(dtype), 1, 0, platform)
    return y_TO if bias_O is None else y_TO + bias_O[None, :]


def _affine_forward(x_TI, kernel_IO, bias_O, dtype, platform):
    y_TO = affine(x_TI, kernel_IO, bias_O, dtype, platform)
    return y_TO, (x_TI, kernel_IO, bias_O)


def _affine_backward(dtype, platform, saved, g_TO):
    x_TI, kernel_IO, bias_O = saved
    dbias_O = None if bias_O is None else _column_sums(g_TO, platform)
    g_TO = g_TO.astype(dtype)
    dx_TI = _product(g_TO, kernel_IO.astype(dtype), 1, 1, platform)
    dkernel_IO = _kernel_gradient(x_TI.astype(dtype), g_TO, platform)
    return dx_TI.astype(x_TI.dtype), dkernel_IO, dbias_O


def _kernel_gradient(x_TI, g_TO, platform: Platform):
    """Returns float32 x.T @ g, [I, O], of operands that share a dtype."""
    if not _wants_row_major(x_TI.dtype, platform):
        return _product(x_TI, g_TO, 0, 0, platform)
    # A contraction over rows would not use the matrix unit; transposing a copy of x
    # avoids it.
    xt_IT = with_layout_constraint(x_TI.T, Layout((0, 1)))
    # The barrier prevents XLA from moving the transpose back into the product.
    return jax.lax.optimization_barrier(_product(xt_IT, g_TO, 1, 0, platform))


affine.defvjp(_affine_forward, _affine_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def table_scores(x_TH, table_VH, bias_V, dtype, platform: Platform = ANY):
    """Returns float32 x @ table.T + bias, [T, V]: `affine` by a table.

    The table is rounded as it lies: XLA:CPU multiplies a transposed one in float32.
    """
    y_TV = _product(x_TH.astype(dtype), table_VH.astype(dtype), 1, 1, platform)
    return y_TV if bias_V is None else y_TV + bias_V[None, :]


def _table_scores_forward(x_TH, table_VH, bias_V, dtype, platform):
    y_TV = table_scores(x_TH, table_VH, bias_V, dtype, platform)
    return y_TV, (x_TH, table_VH, bias_V)


def _table_scores_backward(dtype, platform, saved, g_TV):
    x_TH, table_VH, bias_V = saved
    dbias_V = None if bias_V is None else _column_sums(g_TV, platform)
    g_TV = g_TV.astype(dtype)
    dx_TH = _product(g_TV, table_VH.astype(dtype), 1, 0, platform)
    dtable_HV = _kernel_gradient(x_TH.astype(dtype), g_TV, platform)
    return dx_TH.astype(x_TH.dtype), dtable_HV.T, dbias_V


table_scores.defvjp(_table_scores_forward, _table_scores_backward)


def _column_sums(g_TO, platform: Platform):
    """Returns the float32 sums over rows, [O].

    On XLA:CPU, summing columns of a vocabulary is 25 times slower than a product with
    ones.
    """
    g_TO = g_TO.astype(jnp.float32)
    if platform.kind != "cpu":  # a product may be rounded to TF32 or bf16
        return jnp.sum(g_TO, axis=0)
    return (jnp.ones((1, g_TO.shape[0]), jnp.float32) @ g_TO)[0]


def _wants_row_major(dtype, platform: Platform) -> bool:
    # XLA cannot partition the copy: on several devices it becomes an all-gather.
    one_cpu = platform.kind == "cpu" and platform.one_device
    return one_cpu and jnp.dtype(dtype) == jnp.bfloat16 and platform.multiplies_bf16


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum(spec: str, a, b, platform: Platform = ANY) -> jax.Array:
    """Returns the float32 einsum of two operands that share a dtype.

    Unlike with autodiff, the gradient is rounded to that dtype before its products,
    since mixed products are slow on every device. Reverse mode only.
    """
    return _einsum(spec, a, b, platform)


def _einsum_forward(spec, a, b, platform):
    return einsum(spec, a, b, platform), (a, b)


def _einsum_backward(spec, platform, saved, g):
    a, b = saved
    inputs, out = spec.split("->")
    of_a, of_b = inputs.split(",")
    g = g.astype(a.dtype)
    da = _einsum(f"{out},{of_b}->{of_a}", g, b, platform)
    db = _einsum(f"{out},{of_a}->{of_b}", g, a, platform)
    return da.astype(a.dtype), db.astype(b.dtype)


einsum.defvjp(_einsum_forward, _einsum_backward)


def _einsum(spec: str, a, b, platform: Platform) -> jax.Array:
    left, rest = spec.split(",")
    over_rows = left[-1] in rest.split("->")[1]
    if over_rows and platform.kind == "cpu" and platform.one_device:
        a, left = row_major(jnp.swapaxes(a, -1, -2)), left[:-2] + left[:-3:-1]
        a, b = _operands(a, b, True, platform)
        # XLA:CPU has no fast product over rows; the barrier keeps the copy out of it.
        y = jnp.einsum(f"{left},{rest}", a, b, preferred_element_type=jnp.float32)
        return jax.lax.optimization_barrier(y)
    a, b = _operands(a, b, not over_rows, platform)
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _narrow(x):
    return jnp.clip(x, -6e4, 6e4).astype(jnp.float16).astype(jnp.float32)


_narrow.defvjp(lambda x: (_narrow(x), None), lambda _, g: (g,))


def narrow(scores, dtype, platform: Platform):
    """Returns scores as they are after float16, if they are products of bf16 on a GPU.

    They cross memory, and that halves it. Their factors were rounded to .4 %, float16
    rounds to .05 %, and ends at 65,504. The gradient passes as it is.
    """
    narrows = platform.kind == "gpu" and jnp.dtype(dtype) == jnp.bfloat16
    return _narrow(scores) if narrows else scores


def divided(platform: Platform) -> bool:
    """Returns whether XLA divides this program's arrays among devices."""
    axes = jax.sharding.get_abstract_mesh().axis_types
    by_hand = axes and all(axis == jax.sharding.AxisType.Manual for axis in axes)
    return not (platform.one_device or by_hand)


def row_major(x):
    """Returns x, which lies in memory in the order of its axes, like its gradient."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


# The checkpoint name of the results of dense layers, for rematerialisation.
PRODUCT = "product"


class Dense(nn.Module):
    """x [T, I] -> [T, features]; parameters float32, kernel [I, features]."""

    features: int
    dtype: str
    init_std: float
    bias: bool = True
    platform: Platform = ANY

    @nn.compact
    def __call__(self, x_TI):
        shape = (x_TI.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), shape)
        bias = None
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y_TO: Any = affine(x_TI, kernel, bias, self.dtype, self.platform)
        # Named for remat: its policies cannot see into a custom derivative.
        return checkpoint_name(y_TO.astype(self.dtype), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(x_TH, scale_H, bias_H, eps: float, centre: bool):
    """Returns the rows of x over their standard deviation, times scale, plus bias.

    In float32, rounded to x's dtype; without `centre` over their root mean square. The
    backward pass keeps x and two numbers a row; autodiff would keep float32 copies.
    """
    return _normalise_forward(x_TH, scale_H, bias_H, eps, centre)[0]


def _normalise_forward(x_TH, scale_H, bias_H, eps, centre):
    wide_TH, mean_T1 = x_TH.astype(jnp.float32), 0.0
    if centre:
        mean_T1 = jnp.mean(wide_TH, axis=-1, keepdims=True)
    centred_TH = wide_TH - mean_T1
    if centre and x_TH.dtype == jnp.bfloat16:
        # One pass over the memory: squares of bf16 are exact in float32.
        variance_T1 = jnp.mean(jnp.square(wide_TH), axis=-1, keepdims=True)
        variance_T1 = jnp.maximum(variance_T1 - jnp.square(mean_T1), 0.0)
    else:
        variance_T1 = jnp.mean(jnp.square(centred_TH), axis=-1, keepdims=True)
    inverse_T1 = jax.lax.rsqrt(variance_T1 + eps)
    y_TH = centred_TH * inverse_T1 * scale_H[None, :]
    y_TH = y_TH if bias_H is None else y_TH + bias_H[None, :]
    return y_TH.astype(x_TH.dtype), (x_TH, scale_H, bias_H, mean_T1, inverse_T1)


def _normalise_backward(eps, centre, saved, g_TH):
    x_TH, scale_H, bias_H, *_ = saved
    mean_T1, inverse_T1 = jax.lax.optimization_barrier(saved[3:])
    n_TH, g_TH = x_TH.astype(jnp.float32), g_TH.astype(jnp.float32)
    n_TH = (n_TH - mean_T1) * inverse_T1
    scaled_TH = g_TH * scale_H[None, :]
    along_T1 = jnp.mean(scaled_TH * n_TH, axis=-1, keepdims=True)
    if centre:  # n's own mean is not 0 where x is far from 0
        shift_T1 = jnp.mean(scaled_TH, axis=-1, keepdims=True)
        offset_T1 = jnp.mean(n_TH, axis=-1, keepdims=True)
        along_T1 = along_T1 - shift_T1 * offset_T1
        shift_T1 = shift_T1 - offset_T1 * along_T1
        scaled_TH = scaled_TH - shift_T1
    dx_TH = ((scaled_TH - n_TH * along_T1) * inverse_T1).astype(x_TH.dtype)
    dbias_H = None if bias_H is None else jnp.sum(g_TH, axis=0)
    return dx_TH, jnp.sum(g_TH * n_TH, axis=0), dbias_H


normalise.defvjp(_normalise_forward, _normalise_backward)


class LayerNorm(nn.Module):
    """Normalises the last axis in float32, then rounds to `dtype`."""

    eps: float
    dtype: str
    bias: bool = True
    # Whether the mean is subtracted; False: RMSNorm.
    centre: bool = True

    @nn.compact
    def __call__(self, x_TH):
        shape = (x_TH.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape) if self.bias else None
        y_TH: Any = normalise(x_TH, scale, bias, self.eps, self.centre)
        return y_TH.astype(self.dtype)


def dense(module: Any, features: int, name: str, bias: bool | None = None) -> Dense:
    """A Dense layer with the dtype, initial spread and bias of the module's config.

    `bias` replaces the config's.
    """
    config = module.config
    return Dense(
        features,
        config.dtype,
        config.init_std,
        config.bias if bias is None else bias,
        platform=module.platform,
        name=name,
    )


def norm(config: EncoderConfig, name: str | None = None) -> nn.Module:
    """The norm of the config, with its epsilon, dtype and bias."""
    rms = config.norm == "rms"
    bias = config.bias and not rms
    return LayerNorm(config.norm_eps, config.dtype, bias, not rms, name=name)


def kept(x, rate: float, noise: Noise, site: str, index=None):
    """Returns which elements of x dropout keeps; arguments as there."""
    rows = noise.rows.shape[0]
    return keep(noise, site, x.size // rows, rate, index).reshape(x.shape)


def dropout(x, rate: float, noise: Noise | None, site: str, index=None):
    """Zeroes a share `rate` of x and scales the rest; returns x without noise.

    x of any shape holds the elements of B = len(noise.rows) rows, in order. If it is a
    block of a larger array, `index` has the numbers of a row's elements in that array.
    """
    if noise is None or rate == 0:
        return x
    mask = kept(x, rate, noise, site, index)
    # In float32: 1 / .9 rounded to bf16 would shrink the kept elements by .15 %.
    scaled = (x.astype(jnp.float32) * (1 / (1 - rate))).astype(x.dtype)
    return jnp.where(mask, scaled, jnp.zeros_like(x))


# Abramowitz and Stegun 7.1.26: erf within 1.5e-7. XLA:CPU's erf costs three times more.
_ERF_P = 0.3275911
_ERF_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def _normal_cdf_pdf(x):
    """Returns the standard normal's distribution and density at float32 x."""
    decay = jnp.exp(-0.5 * x * x)
    t = 1 / (1 + (_ERF_P * 2**-0.5) * jnp.abs(x))
    series = jnp.zeros_like(t)
    for coefficient in reversed(_ERF_A):
        series = (series + coefficient) * t
    tail = 0.5 * series * decay
    return jnp.where(x >= 0, 1 - tail, tail), decay * (2 * jnp.pi) ** -0.5


@jax.custom_vjp
def gelu(x):
    """x times the normal distribution at x, in float32, rounded to x's dtype."""
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf_pdf(wide)[0]).astype(x.dtype)


def _gelu_backward(x, g):
    # The barrier: XLA:CPU would keep the forward pass's float32 exponentials for it.
    wide = jax.lax.optimization_barrier(x).astype(jnp.float32)
    cdf, pdf = _normal_cdf_pdf(wide)
    return ((g.astype(jnp.float32) * (cdf + wide * pdf)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def gelu_tanh(x):
    """The tanh approximation of GELU, as GPT-2 and ALBERT use it."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def silu(x):
    """x times its logistic function, in float32, rounded to x's dtype."""
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu}


@jax.custom_vjp
def cross_entropy(logits_TV, labels_T):
    """Returns -log softmax(logits)[label], and 1 where the label has the top score.

    Both float32 [T], of float32 logits; only the first has a gradient.
    """
    return _cross_entropy(logits_TV, labels_T)[0]


def _cross_entropy(logits_TV, labels_T):
    # One maximum for both; a separate argmax costs XLA:CPU a seventh of a small step.
    top_T = jnp.max(logits_TV, axis=-1)
    sum_T = jnp.sum(jnp.exp(logits_TV - top_T[:, None]), axis=-1)
    lse_T = top_T + jnp.log(sum_T)
    chosen_T = jnp.take_along_axis(logits_TV, labels_T[:, None], axis=1)[:, 0]
    return (lse_T - chosen_T, (chosen_T >= top_T).astype(jnp.float32)), lse_T


def _cross_entropy_forward(logits_TV, labels_T):
    out, lse_T = _cross_entropy(logits_TV, labels_T)
    return out, (logits_TV, labels_T, lse_T)


def _cross_entropy_backward(saved, g):
    logits_TV, labels_T, lse_T = saved
    g_T, _ = g
    # A comparison fuses; a gather's gradient would fill a second [T, V] with zeros.
    vocabulary = jax.lax.broadcasted_iota(labels_T.dtype, logits_TV.shape, 1)
    hit_TV = (vocabulary == labels_T[:, None]).astype(jnp.float32)
    probability_TV = jnp.exp(logits_TV - lse_T[:, None])
    return (probability_TV - hit_TV) * g_T[:, None], None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def weigh(rate: float, platform: Platform, scores, value, kept):
    """Returns the values weighted by the dropped softmax of float32 scores.

    `kept`: which weights are not dropped, at `rate`; None without dropout. The backward
    pass keeps one array of the scores' shape, in the values' dtype: the weights, with a
    minus sign on what is dropped.
    """
    return _weigh_forward(rate, platform, scores, value, kept)[0]


def _weigh_forward(rate, platform, scores, value, kept):
    signed = weights = jax.nn.softmax(scores, axis=-1)
    if kept is not None:
        signed = jnp.where(kept, weights, -weights)
    signed = signed.astype(value.dtype)
    seen = signed if kept is None else jax.nn.relu(signed)
    mixed: Any = einsum("...qk,...kd->...qd", seen, value, platform)
    mixed = (mixed / (1 - rate)).astype(value.dtype)
    if platform.kind == "gpu" and not divided(platform):
        # Has the product write the order of encoder.Attention, which both users read.
        mixed = jnp.moveaxis(row_major(jnp.moveaxis(mixed, -2, 0)), 0, -2)
    return mixed, (signed, value, mixed)


def _weigh_backward(rate, platform, saved, g):
    signed, value, mixed = saved
    change: Any = einsum("...qd,...kd->...qk", g, value, platform)
    change = change.astype(value.dtype).astype(jnp.float32) / (1 - rate)
    wide = signed.astype(jnp.float32)
    weights, change = jnp.abs(wide), jnp.where(wide > 0, change, 0.0)
    # The mean change of a query's weights.
    if platform.kind == "cpu" and value.dtype == jnp.float32:
        along = jnp.sum(weights * change, axis=-1, keepdims=True)
    else:  # without a pass over the scores, but less exact where a weight is near 1
        along = g.astype(jnp.float32) * mixed.astype(jnp.float32)
        along = jnp.sum(along, axis=-1, keepdims=True)
    dscores = weights * (change - along)
    dvalue: Any = einsum("...qk,...qd->...kd", jax.nn.relu(signed), g, platform)
    return dscores, (dvalue / (1 - rate)).astype(value.dtype), None


weigh.defvjp(_weigh_forward, _weigh_backward)
