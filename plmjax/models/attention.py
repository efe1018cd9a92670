"""Attention kinds: functions of one signature, chosen by EncoderConfig.attention.

`module` is the attention layer, with its `config` and its `platform`.
`heads(name)` projects the tokens to "query", "key" or "value", [B, N, L, D], and
`heads(name, x_SH, shape)` any other array. `relative_RH` is the table of distances that
all layers share, for kinds that have one.

Legend: B rows, N heads, Q queries, K keys (both L tokens), D head width, H width, R
rows of the table of distances.
"""

from typing import Any

import jax
import jax.numpy as jnp

from plmjax.models.disentangled import position_heads, position_scores
from plmjax.models.layers import dropout, einsum
from plmjax.models.noise import Noise


def full(module, heads, segments_BL, relative_RH, noise, site):
    """Attention of tokens to all tokens of their segment (document); [B, N, Q, D]."""
    del relative_RH
    query_BNQD, key_BNKD, value_BNKD = heads("query"), heads("key"), heads("value")
    scale = query_BNQD.shape[-1] ** -0.5
    scores_BNQK = einsum("bnqd,bnkd->bnqk", query_BNQD, key_BNKD, module.platform)
    scores_BNQK *= scale
    return mix(
        module, scores_BNQK, value_BNKD, segments_BL=segments_BL, noise=noise, site=site
    )


def disentangled(module, heads, segments_BL, relative_RH, noise, site):
    """Full attention with scores that depend on the tokens' distance (DeBERTa)."""
    query_BNQD, key_BNKD, value_BNKD = heads("query"), heads("key"), heads("value")
    config, platform = module.config, module.platform
    tables = position_heads(config, heads, relative_RH, noise, site)
    scores_BNQK = einsum("bnqd,bnkd->bnqk", query_BNQD, key_BNKD, platform)
    scores_BNQK += position_scores(
        config, query_BNQD, key_BNKD, *tables, platform=platform
    )
    # The scores are a sum of three terms of equal variance.
    scores_BNQK *= (3 * query_BNQD.shape[-1]) ** -0.5
    return mix(
        module, scores_BNQK, value_BNKD, segments_BL=segments_BL, noise=noise, site=site
    )


def mix(
    module,
    scores_BNQK,
    value_BNKD,
    segments_BL,
    noise: Noise | None,
    site: str,
):
    """Returns the values weighted by softmax(scores) within a segment, [B, N, Q, D].

    Scores and softmax are float32; padding is a separate segment, so that no row of the
    softmax is empty.
    """
    config, dtype = module.config, value_BNKD.dtype
    mask_BQK = segments_BL[:, :, None] == segments_BL[:, None, :]
    if config.causal:
        length = segments_BL.shape[1]
        mask_BQK = mask_BQK & jnp.tri(length, dtype=bool)[None]
    scores_BNQK = jnp.where(mask_BQK[:, None], scores_BNQK, jnp.float32(-1e30))
    weights_BNQK = jax.nn.softmax(scores_BNQK, axis=-1).astype(dtype)
    weights_BNQK = dropout(
        weights_BNQK, config.attention_dropout, noise, f"{site}/weights"
    )
    mixed_BNQD: Any = einsum(
        "bnqk,bnkd->bnqd", weights_BNQK, value_BNKD, module.platform
    )
    return mixed_BNQD.astype(dtype)


ATTENTION = {"full": full, "disentangled": disentangled}
