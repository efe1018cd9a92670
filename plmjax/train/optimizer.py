"""The optimizer, up to the learning rate: the step multiplies by the schedule.

The rate stays outside, so that a skipped update does not shift the schedule.
"""

import re

import optax

from plmjax import tree
from plmjax.train.config import OptimizerConfig


def decayed(config: OptimizerConfig, params) -> dict:
    """Returns a tree of booleans: which leaves weight decay reaches."""
    return tree.map_named(
        lambda name, _: re.fullmatch(config.no_decay, name) is None, params
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns gradients -> direction of ascent, decoupled weight decay included."""

    def mask(params):
        return decayed(config, params)

    parts = []
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    parts.append(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps))
    parts.append(optax.add_decayed_weights(config.weight_decay, mask=mask))
    if config.kind == "lamb":
        parts.append(optax.masked(optax.scale_by_trust_ratio(), mask))
    return optax.chain(*parts)
