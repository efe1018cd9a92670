"""Losses over a set of classes, which several kinds of task share.

Legend: U labelled units: rows [B], examples [B, K] of packed rows, or tokens [B, L]
with a label each; C classes. The kinds of task are read where jax is not installed, so
only their losses import it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


def is_real(batch: dict) -> "jax.Array":
    """Returns bool of the shape of the weights: False for what only fills a batch."""
    return batch["weight"] > 0


def per_unit(weight: "jax.Array", units: "jax.Array") -> "jax.Array":
    """Returns the weights, or bool, with as many axes as there are of `units`."""
    return weight.reshape(*weight.shape, *[1] * (units.ndim - weight.ndim))


def is_labelled(batch: dict) -> "jax.Array":
    """Returns [U] bool: True with a label; all-zero probabilities are none."""
    labels, real = batch["label"], is_real(batch)
    if labels.dtype == "float32":
        has = labels.sum(axis=-1) > 0
    else:
        has = labels >= 0
    return has & per_unit(real, has)


def _targets(scores, labels, smoothing: float):
    """Returns target probabilities in the scores' shape; labels may be class ids."""
    import jax
    import jax.numpy as jnp

    if labels.ndim < scores.ndim:
        labels = jax.nn.one_hot(jnp.maximum(labels, 0), scores.shape[-1])
    return labels * (1 - smoothing) + smoothing / scores.shape[-1]


def cross_entropy(scores, labels, smoothing: float) -> "jax.Array":
    """Returns [U] of scores [U, C] and class ids [U] or probabilities [U, C]."""
    import jax
    import jax.numpy as jnp

    from plmjax.models.task_heads import OUT_OF_REACH

    targets = _targets(scores, labels, smoothing)
    # Padding, which cannot be chosen, adds no loss for its share of the smoothing.
    logs = jnp.where(scores > 0.5 * OUT_OF_REACH, jax.nn.log_softmax(scores), 0.0)
    return -jnp.sum(targets * logs, axis=-1)


def softened_cross_entropy(scores, teacher, temperature: float) -> "jax.Array":
    """Returns [U] of scores and a teacher's scores [U, C], times temperature squared.

    Hinton et al. 2015, arXiv:1503.02531. What cannot be chosen has no part in it.
    """
    import jax
    import jax.numpy as jnp

    from plmjax.models.task_heads import OUT_OF_REACH

    teacher = jax.nn.softmax(teacher / temperature)
    out = scores <= 0.5 * OUT_OF_REACH
    logs = jnp.where(out, 0.0, jax.nn.log_softmax(scores / temperature))
    return -(temperature**2) * jnp.sum(teacher * logs, axis=-1)


def is_best(scores, labels) -> "jax.Array":
    """Returns [U] float32, 1 where the class with the highest score is the label."""
    if labels.ndim == scores.ndim:
        labels = labels.argmax(axis=-1)
    return (scores.argmax(axis=-1) == labels).astype("float32")


def symmetric_divergence(p, q) -> "jax.Array":
    """Returns [U]: the mean of both Kullback-Leibler divergences of scores [U, C]."""
    import jax
    import jax.numpy as jnp

    p, q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
    return 0.5 * jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), axis=-1)


def binary_cross_entropy(scores, labels) -> "jax.Array":
    """Returns [U]: the mean over C of yes-or-no losses of log odds [U, C]."""
    import jax

    return (jax.nn.softplus(scores) - labels * scores).mean(axis=-1)


def softened_binary_cross_entropy(scores, teacher, temperature: float) -> "jax.Array":
    """Returns [U] of log odds and a teacher's [U, C], times temperature squared."""
    import jax

    targets = jax.nn.sigmoid(teacher / temperature)
    return temperature**2 * binary_cross_entropy(scores / temperature, targets)


def binary_divergence(p, q) -> "jax.Array":
    """Returns [U]: as `symmetric_divergence`, the mean over C of log odds [U, C]."""
    import jax

    each = (jax.nn.sigmoid(p) - jax.nn.sigmoid(q)) * (p - q)
    return 0.5 * each.mean(axis=-1)
