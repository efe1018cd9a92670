"""The optimizer without the learning rate: the step multiplies by the schedule.

The rate is applied outside, so that a skipped update does not shift the schedule.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from plmjax import tree
from plmjax.train import groups
from plmjax.train.config import OptimizerConfig


def decayed(config: OptimizerConfig, params) -> dict:
    """Returns a tree of booleans, True for leaves with weight decay."""
    return tree.map_named(
        lambda name, _: re.fullmatch(config.no_decay, name) is None, params
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns the transformation from gradients to the direction, with weight decay.

    The step subtracts rate * direction.
    """

    def mask(params):
        return decayed(config, params)

    def direction() -> list[optax.GradientTransformation]:
        transforms = [
            optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
            optax.add_decayed_weights(config.weight_decay, mask=mask),
        ]
        if config.kind == "lamb":
            transforms.append(optax.masked(optax.scale_by_trust_ratio(), mask))
        if config.kind == "stable_adamw":
            return [clipped(optax.chain(*transforms), config.b2, config.eps)]
        return transforms

    transforms, grouped = [], groups.is_grouped(config)
    if config.clip_norm is not None:
        if grouped:
            # Clipping must not count the gradients of leaves that do not train yet.
            transforms.append(groups.per_group(config, optax.identity))
        transforms.append(optax.clip_by_global_norm(config.clip_norm))
    if grouped:
        transforms.append(groups.per_group(config, lambda: optax.chain(*direction())))
    else:
        transforms += direction()
    if config.layer_decay != 1 or config.rates:
        transforms.append(groups.scaled(config))
    return optax.chain(*transforms)


def clipped(
    inner: optax.GradientTransformation, b2: float, eps: float
) -> optax.GradientTransformation:
    """Returns Adam's chain with the update clipping of StableAdamW.

    An array's update is divided by the root mean square of its gradient over the root
    of its second moment, if that is above 1 (Wortsman et al. 2023, arXiv:2304.13013,
    algorithm 2). `inner` begins with scale_by_adam.
    """

    def update(updates, state: Any, params=None):
        gradients = updates
        updates, state = inner.update(gradients, state, params)
        correction = 1 - b2 ** state[0].count.astype(jnp.float32)

        def shrink(update, gradient, moment):
            moment = jnp.maximum(moment / correction, eps**2)
            ratio = jnp.sqrt(jnp.mean(jnp.square(gradient) / moment))
            return update / jnp.maximum(1.0, ratio)

        return jax.tree.map(shrink, updates, gradients, state[0].nu), state

    return optax.GradientTransformation(inner.init, update)
