"""Which parameters learn, how fast, and from which step on: rules over their names.

The depth of a leaf is 0 for embeddings, i + 1 for layer_i, n + 1 for what stands above
the n layers. A group keeps an optimizer state of its own, so that what does not learn
has none, and what learns later begins as at a first step.
"""

import re
from collections.abc import Callable, Hashable

import jax
import optax

from plmjax import PlmjaxError, tree
from plmjax.objectives import Altered, Objective
from plmjax.train.config import OptimizerConfig

_LAYER = re.compile(r"(?:.*/)?encoder/layer_(\d+)/.*")
_FROZEN = "frozen"


def depths(params) -> dict:
    """Returns the depth of each leaf, and of a tree with n layers n + 1 for its heads.

    DeBERTa's table of distances counts as an embedding, its convolution as part of the
    first layer, beside which it stands.
    """
    names = tree.flatten(params)
    layers = 1 + max(
        (int(found[1]) for name in names if (found := _LAYER.fullmatch(name))),
        default=-1,
    )

    def depth(name: str, _) -> int:
        if found := _LAYER.fullmatch(name):
            return int(found[1]) + 1
        if re.fullmatch(r"(.*/)?encoder/(embeddings|relative)/.*", name):
            return 0
        if re.fullmatch(r"(.*/)?encoder/convolution/.*", name):
            return 1
        return layers + 1

    return tree.map_named(depth, params)


def factors(config: OptimizerConfig, params) -> dict:
    """Returns what the learning rate of each leaf is multiplied by.

    layer_decay ** (n + 1 - depth), times the factor of the first of `rates` that
    matches.

    Raises:
      PlmjaxError: a leaf that none of `rates` covers.
    """
    deep = depths(params)
    top = max(jax.tree.leaves(deep))

    def factor(name: str, depth: int) -> float:
        own = float(tree.match(config.rates, name)) if config.rates else 1.0
        return own * config.layer_decay ** (top - depth)

    return tree.map_named(factor, deep)


def scaled(config: OptimizerConfig) -> optax.GradientTransformation:
    """Multiplies each leaf's direction by its factor, a group for each factor.

    Scaling keeps no state, so that the rest of the optimizer is as without it.
    """

    def grouped(params):
        by_name = factors(config, params)
        scales: dict[Hashable, optax.GradientTransformation] = {
            factor: optax.scale(factor) for factor in jax.tree.leaves(by_name)
        }
        return optax.multi_transform(scales, by_name)

    return _named(grouped)


def frozen(config: OptimizerConfig, params) -> dict:
    """Returns a tree of booleans: which leaves do not learn.

    Raises:
      PlmjaxError: more layers are to be frozen than there are.
    """
    deep = depths(params)
    top = max(jax.tree.leaves(deep))
    if config.freeze is None:
        return jax.tree.map(lambda _: False, deep)
    if config.freeze == "encoder":
        return tree.map_named(lambda name, _: name.startswith("encoder/"), deep)
    if config.freeze > top - 1:
        raise PlmjaxError(
            f"train.optimizer.freeze={config.freeze}, but the model has only {top - 1} "
            "layers of its own.",
            hint="Freeze fewer, or 'encoder'.",
        )
    return jax.tree.map(lambda depth: depth <= config.freeze, deep)


def starts(config: OptimizerConfig, params) -> dict:
    """Returns the step from which on each leaf learns: one depth after the other."""
    deep = depths(params)
    top = max(jax.tree.leaves(deep))
    every = config.unfreeze_every_steps or 0
    return jax.tree.map(lambda depth: (top - depth) * every, deep)


def is_grouped(config: OptimizerConfig) -> bool:
    """Says whether some leaves do not learn, or not from the start."""
    return config.freeze is not None or config.unfreeze_every_steps is not None


def apart(
    config: OptimizerConfig, inner: Callable[[], optax.GradientTransformation]
) -> optax.GradientTransformation:
    """Returns what gives each group its own `inner`, and zeros while it does not learn.

    Steps are counted as the optimizer sees them: a skipped update is none.
    """

    def grouped(params):
        still, first = frozen(config, params), starts(config, params)
        labels = jax.tree.map(
            lambda still, start: _FROZEN if still else f"from_{start}", still, first
        )
        groups: dict[Hashable, optax.GradientTransformation] = {
            f"from_{start}": _from(start, inner())
            for start in sorted(set(jax.tree.leaves(first)))
        }
        groups[_FROZEN] = optax.set_to_zero()
        return optax.multi_transform(groups, labels)

    return _named(grouped)


def _named(grouped: Callable) -> optax.GradientTransformation:
    """Returns what `grouped` makes of the names, known with the parameters."""
    return optax.GradientTransformation(
        lambda params: grouped(params).init(params),
        lambda updates, state, params=None: grouped(updates).update(
            updates, state, params
        ),
    )


def _from(start: int, inner: optax.GradientTransformation):
    if not start:
        return inner

    def learns(step, **_):
        return step >= start

    return optax.transforms.conditionally_mask(inner, learns)


def without_frozen(config: OptimizerConfig, objective: Objective) -> Objective:
    """Returns the objective with no gradient for what is frozen, nor its computation.

    The optimizer leaves frozen leaves alone in any case; this spares their backward
    pass and keeps them out of the gradient's norm.
    """
    if config.freeze is None:
        return objective

    def loss(params, *rest):
        params = jax.tree.map(
            lambda x, still: jax.lax.stop_gradient(x) if still else x,
            params,
            frozen(config, params),
        )
        return objective.loss(params, *rest)

    return Altered(objective, own_loss=loss)
