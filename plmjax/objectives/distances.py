"""Distances between a student and its teacher: logits and last states (DistilBERT,
arXiv:1910.01108), hidden states of layers (TinyBERT, Jiao et al. 2019,
arXiv:1909.10351), attention and values (MiniLM, Wang et al. 2020, arXiv:2002.10957).

Legend: B rows, L tokens (Q queries, K keys), T positions, H width, W width of the
teacher, N heads, D head width, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plmjax.models import Encoder, EncoderConfig, Noise, heads
from plmjax.models.layers import einsum
from plmjax.models.platform import ANY, Platform
from plmjax.objectives.base import Batch


class Kept(NamedTuple):
    """States [T, H] after each layer; query, key, value [B, N, L, D] of the last layer.

    For a pre-norm model they are the states before the final norm.
    """

    states: tuple[jax.Array, ...]
    query: jax.Array
    key: jax.Array
    value: jax.Array


def encode(
    config: EncoderConfig,
    params: dict,
    batch: Batch,
    noise: Noise | None,
    platform: Platform = ANY,
) -> tuple[jax.Array, Kept]:
    """Returns the hidden states [B, L, H] of a batch, and intermediates of the layers.

    The compiler removes unused ones.
    """
    output: Any = Encoder(config, platform).apply(
        {"params": params["encoder"]},
        *heads.inputs(batch),
        noise,
        mutable=["intermediates"],
    )
    x_BLH, kept = output[0], output[1]["intermediates"]
    # Layers that share parameters share a name; its last use is the last layer.
    last = kept[f"layer_{_last(config)}"]["attention"]
    return x_BLH, Kept(
        kept["states"],
        *(last[f"{name}_heads"][-1] for name in ("query", "key", "value")),
    )


def _last(config: EncoderConfig) -> int:
    shared = config.sharing in ("attention", "all")
    return (config.groups if shared else config.layers) - 1


def hidden_loss(pairs: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Returns the mean squared error of each token's states, summed over layers, [T].

    `pairs` are the student's states, projected where widths differ, and the teacher's,
    [T, W].
    """
    errors = [
        jnp.mean(jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)), axis=-1)
        for x, y in pairs
    ]
    return sum(errors[1:], errors[0])


def attention_loss(
    student: Kept, teacher: Kept, segments_BL: jax.Array, platform: Platform = ANY
) -> jax.Array:
    """Returns the distance of each token's attention and value relations, [T].

    Each is KL(teacher || student) of a softmax over the tokens of a segment, averaged
    over the heads: of queries with keys, and of values with values.
    """
    divergence_BNQ = _relation_kl(
        _relation(student.query, student.key, segments_BL, platform),
        _relation(teacher.query, teacher.key, segments_BL, platform),
    ) + _relation_kl(
        _relation(student.value, student.value, segments_BL, platform),
        _relation(teacher.value, teacher.value, segments_BL, platform),
    )
    return jnp.mean(divergence_BNQ, axis=1).reshape(-1)


def _relation(a_BNQD, b_BNKD, segments_BL, platform: Platform):
    """Returns the log-softmax of scaled products within segments, [B, N, Q, K]."""
    products_BNQK: Any = einsum("bnqd,bnkd->bnqk", a_BNQD, b_BNKD, platform)
    mask_BQK = segments_BL[:, :, None] == segments_BL[:, None, :]
    scores_BNQK = jnp.where(
        mask_BQK[:, None], products_BNQK * a_BNQD.shape[-1] ** -0.5, jnp.float32(-1e30)
    )
    return jax.nn.log_softmax(scores_BNQK, axis=-1)


def _relation_kl(student_BNQK: jax.Array, teacher_BNQK: jax.Array) -> jax.Array:
    divergence_BNQK = jnp.exp(teacher_BNQK) * (teacher_BNQK - student_BNQK)
    return jnp.sum(divergence_BNQK, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def softened_kl(student_TV: jax.Array, teacher_TV: jax.Array, temperature: float):
    """Returns KL(teacher || student) at a temperature, times its square, float32 [T].

    Hinton et al. 2015, arXiv:1503.02531. Only the student has a gradient; the backward
    pass stores only the logits and the sums of both.
    """
    return _softened_kl(student_TV, teacher_TV, temperature)[0]


def _softened_kl(student_TV, teacher_TV, temperature):
    ours_TV, theirs_TV = student_TV / temperature, teacher_TV / temperature
    ours_T = jax.nn.logsumexp(ours_TV, axis=-1)
    theirs_T = jax.nn.logsumexp(theirs_TV, axis=-1)
    probability_TV = jnp.exp(theirs_TV - theirs_T[:, None])
    gap_T = jnp.sum(probability_TV * (theirs_TV - ours_TV), axis=-1)
    return temperature**2 * (gap_T - theirs_T + ours_T), (ours_T, theirs_T)


def _softened_kl_forward(student_TV, teacher_TV, temperature):
    value_T, sums = _softened_kl(student_TV, teacher_TV, temperature)
    return value_T, (student_TV, teacher_TV, *sums)


def _softened_kl_backward(temperature, saved, g_T):
    student_TV, teacher_TV, ours_T, theirs_T = saved
    ours_TV = jnp.exp(student_TV / temperature - ours_T[:, None])
    theirs_TV = jnp.exp(teacher_TV / temperature - theirs_T[:, None])
    return temperature * (ours_TV - theirs_TV) * g_T[:, None], None


softened_kl.defvjp(_softened_kl_forward, _softened_kl_backward)


def cosine_loss(x_TW: jax.Array, y_TW: jax.Array) -> jax.Array:
    """Returns 1 - the cosine of each pair of states, float32 [T]."""
    x_TW, y_TW = x_TW.astype(jnp.float32), y_TW.astype(jnp.float32)
    # The states of padding may be 0 in a pre-norm model; PyTorch adds the same term.
    square_T = jnp.sum(x_TW * x_TW, axis=-1) + 1e-12
    square_T = square_T * (jnp.sum(y_TW * y_TW, axis=-1) + 1e-12)
    return 1 - jnp.sum(x_TW * y_TW, axis=-1) * jax.lax.rsqrt(square_T)


def weighted(values_T: jax.Array, weights_T: jax.Array) -> tuple[jax.Array, tuple]:
    """Returns the weighted sum, and the metric (sum, count) over nonzero weights."""
    used_T = (weights_T > 0).astype(jnp.float32)
    total = jnp.sum(jax.lax.stop_gradient(values_T) * used_T)
    return jnp.sum(values_T * weights_T), (total, jnp.sum(used_T))
