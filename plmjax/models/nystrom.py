"""Nyström attention: softmax attention by way of the means of a document's stretches.

Xiong et al. 2021 (arXiv:2102.03902). Unlike in transformers' Nystromformer, padding is
in no mean, and the landmarks follow the document's length, not the row's: a padded row
has the states of its document alone. The row must hold one document, at its begin.

Legend: B rows, N heads, L tokens a row, D head width, M landmarks, W width of the
convolution, S = W - 1 tokens of a block, G blocks.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plmjax.models.attention import View, around, attend, scores
from plmjax.models.layers import einsum
from plmjax.models.noise import Noise
from plmjax.models.platform import Platform
from plmjax.models.tiles import Way

STEPS = 6  # of the iteration that approaches the inverse
_EXACT = jax.lax.Precision.HIGHEST


def nystrom(module, heads, view: View, noise: Noise | None, site: str):
    """Attention by landmarks, and a convolution of the values.

    In rows with no more tokens than landmarks it is the exact softmax. As published,
    its weights have no dropout.
    """
    del noise, site
    config, platform = module.config, module.platform
    query_BNLD, key_BNLD, value_BNLD = heads("query"), heads("key"), heads("value")
    size_B = view.end[:, 0]  # of the row's only document
    if view.end.shape[1] > config.landmarks:
        projected = query_BNLD, key_BNLD, value_BNLD
        mixed_BNLD = by_landmarks(config.landmarks, projected, size_B, platform)
    else:
        keys, bounds = (key_BNLD, value_BNLD), (view.start, view.end)
        mixed_BNLD = attend(Way(platform), query_BNLD, keys, bounds, None)
        mixed_BNLD = mixed_BNLD.astype(jnp.float32)
    if config.value_convolution:
        init = nn.initializers.normal(config.init_std)
        # PyTorch's Conv2d has it transposed.
        shape = (1, config.value_convolution, 1, config.heads)
        kernel_1W1N = module.param("value_convolution", init, shape)
        mixed_BNLD += convolve(kernel_1W1N, value_BNLD, size_B, platform)
    return mixed_BNLD.astype(value_BNLD.dtype)


def by_landmarks(count: int, projected, size_B, platform: Platform):
    """Returns near @ inverse(between) @ far @ values, float32 [B, N, L, D].

    The three are softmaxes: of the tokens over the landmarks, of the landmarks over
    themselves, and of the landmarks over the tokens. A landmark is the mean of a
    stretch of the first `size` tokens of a row, its document; stretches differ by one
    token at most. A document of at most M = `count` tokens has the exact softmax.
    `projected` are the queries, keys and values, [B, N, L, D].
    """
    query_BNLD, key_BNLD, value_BNLD = projected
    dtype, length = value_BNLD.dtype, value_BNLD.shape[2]
    index_1L, size_B1 = jnp.arange(length)[None], size_B[:, None]
    real_BL = index_1L < size_B1
    stretch_BL = index_1L * count // jnp.maximum(size_B1, count)
    stretch_BL = jnp.where(real_BL, stretch_BL, count)  # padding is in none
    member_BML = stretch_BL[:, None, :] == jnp.arange(count)[None, :, None]
    tokens_BM = jnp.maximum(member_BML.sum(2), 1).astype(jnp.float32)

    def means(x_BNLD):
        member = member_BML.astype(dtype)
        sums_BNMD: Any = einsum("bml,bnld->bnmd", member, x_BNLD, platform)
        return (sums_BNMD / tokens_BM[:, None, :, None]).astype(dtype)

    def softmax(a_BNQD, b_BNKD, seen=True):
        scores_BNQK = jnp.where(seen, scores(a_BNQD, b_BNKD, platform), -1e30)
        return jax.nn.softmax(scores_BNQK, axis=-1)

    query_BNMD, key_BNMD = means(query_BNLD), means(key_BNLD)
    far_BNML = softmax(query_BNMD, key_BNLD, real_BL[:, None, None]).astype(dtype)
    mixed_BNMD: Any = einsum("bnml,bnld->bnmd", far_BNML, value_BNLD, platform)
    # If the document is short, each token is a landmark, and takes what that sees.
    short_B111 = size_B[:, None, None, None] <= count
    seen_BNLM = ~short_B111 | member_BML.swapaxes(1, 2)[:, None]
    near_BNLM = softmax(query_BNLD, key_BNMD, seen_BNLM)
    between_BNMM = softmax(query_BNMD, key_BNMD)
    inverse_BNMM = inverse(between_BNMM)
    # The inverse has large entries of both signs: bf16 or TF32 would lose their sums.
    solved_BNMD = jnp.matmul(inverse_BNMM, mixed_BNMD, precision=_EXACT)
    solved_BNMD = jnp.where(short_B111, mixed_BNMD, solved_BNMD)
    return jnp.matmul(near_BNLM, solved_BNMD, precision=_EXACT)


@jax.checkpoint
def inverse(a_BNMM):
    """Approaches the pseudo-inverse of matrices with rows that sum to 1, float32.

    The first guess is the transpose over the largest sum of a column of any head, as
    published; transformers takes that of all rows of the batch, too.
    """
    one = jnp.eye(a_BNMM.shape[-1], dtype=a_BNMM.dtype)[None, None]
    largest_B = jnp.max(a_BNMM.sum(-2), axis=(1, 2))
    z_BNMM = a_BNMM.swapaxes(-1, -2) / largest_B[:, None, None, None]
    for _ in range(STEPS):
        az = jnp.matmul(a_BNMM, z_BNMM, precision=_EXACT)
        inner = 15 * one - jnp.matmul(az, 7 * one - az, precision=_EXACT)
        inner = 13 * one - jnp.matmul(az, inner, precision=_EXACT)
        z_BNMM = jnp.matmul(z_BNMM / 4, inner, precision=_EXACT)
    return z_BNMM


def convolve(kernel_1W1N, value_BNLD, size_B, platform: Platform):
    """Returns the sums of the values around each token, float32 [B, N, L, D].

    Each head weighs the W tokens by a kernel; those beyond the document are zero. Each
    block of S tokens is a product with the 2 S values around it: with its gradients 97
    ms for 4 heads of 4,096 tokens on two cores, as a depthwise convolution of XLA 641.
    """
    rows, heads, length, width = value_BNLD.shape
    size = kernel_1W1N.shape[1] - 1
    real_BL = jnp.arange(length)[None] < size_B[:, None]
    value_BNLD = jnp.where(real_BL[:, None, :, None], value_BNLD, 0)
    around_BNGKD = around(value_BNLD, size)
    # A block's token s sees the values s .. s + S around it.
    offset_SK = jnp.arange(2 * size)[None] - jnp.arange(size)[:, None]
    kernel_NW = kernel_1W1N[0, :, 0].T.astype(value_BNLD.dtype)
    kernel_NSK = jnp.take(kernel_NW, offset_SK, axis=1, mode="clip")
    inside_SK = (offset_SK >= 0) & (offset_SK <= size)
    kernel_NSK = jnp.where(inside_SK[None], kernel_NSK, 0)
    y: Any = einsum("nsk,bngkd->bngsd", kernel_NSK, around_BNGKD, platform)
    return y.reshape(rows, heads, -1, width)[:, :, :length]
