"""Attention kinds: functions of one signature, chosen by EncoderConfig.attention.

Legend: B rows, N heads, Q queries, K keys (both L tokens), D head width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from plmjax.models.layers import dropout, einsum
from plmjax.models.noise import Noise


def full(
    query_BNQD,
    key_BNKD,
    value_BNKD,
    segments_BL,
    causal: bool,
    rate: float,
    noise: Noise | None,
    site: str,
):
    """Every token attends to all tokens of its own segment (document); [B, N, Q, D].

    Scores and softmax are float32; padding is a segment of its own, so that no row of
    the softmax is empty.
    """
    dtype = query_BNQD.dtype
    scale = query_BNQD.shape[-1] ** -0.5
    scores_BNQK = einsum("bnqd,bnkd->bnqk", query_BNQD, key_BNKD) * scale
    mask_BQK = segments_BL[:, :, None] == segments_BL[:, None, :]
    if causal:
        length = segments_BL.shape[1]
        mask_BQK = mask_BQK & jnp.tri(length, dtype=bool)[None]
    scores_BNQK = jnp.where(mask_BQK[:, None], scores_BNQK, jnp.float32(-1e30))
    weights_BNQK = jax.nn.softmax(scores_BNQK, axis=-1).astype(dtype)
    weights_BNQK = dropout(weights_BNQK, rate, noise, site)
    mixed_BNQD: Any = einsum("bnqk,bnkd->bnqd", weights_BNQK, value_BNKD)
    return mixed_BNQD.astype(dtype)


ATTENTION = {"full": full}
