"""The optimizer without the learning rate: the step multiplies by the schedule.

The rate is applied outside, so that a skipped update does not shift the schedule.
"""

import re

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
