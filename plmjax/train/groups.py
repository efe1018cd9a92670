"""Parameter groups by name: which parameters train, how fast, and from which step on.

The depth of a leaf is 0 for embeddings, i + 1 for layer_i, n + 1 for heads above the n
layers. Each group has its optimizer state, so that frozen parameters have none, and
parameters that train later begin as at a first step.
"""

import re
from collections.abc import Callable, Hashable

import jax
import optax

from plmjax import PlmjaxError, tree
from plmjax.objectives import Objective, altered
from plmjax.train.config import OptimizerConfig

_LAYER = re.compile(r"(?:.*/)?encoder/layer_(\d+)/.*")
_FROZEN = "frozen"


def depths(params) -> dict:
    """Returns the depth of each leaf; in a tree with n layers, heads have n + 1.

    DeBERTa's table of distances counts as an embedding, its convolution as part of the
    first layer, to whose output it is added.
    """
    names = tree.flatten(params)
    layers = 1 + max(
        (int(match[1]) for name in names if (match := _LAYER.fullmatch(name))),
        default=-1,
    )

    def depth(name: str, _) -> int:
        if match := _LAYER.fullmatch(name):
            return int(match[1]) + 1
        if re.fullmatch(r"(.*/)?encoder/(embeddings|relative)/.*", name):
            return 0
        if re.fullmatch(r"(.*/)?encoder/convolution/.*", name):
            return 1
        return layers + 1

    return tree.map_named(depth, params)


def factors(config: OptimizerConfig, params) -> dict:
    """Returns the factor of each leaf's learning rate.

    It is layer_decay ** (n + 1 - depth), times the factor of the first of `rates` that
    matches.

    Raises:
      PlmjaxError: none of `rates` matches a leaf.
    """
    deep = depths(params)
    top = max(jax.tree.leaves(deep))

    def factor(name: str, depth: int) -> float:
        rate = float(tree.match(config.rates, name)) if config.rates else 1.0
        return rate * config.layer_decay ** (top - depth)

    return tree.map_named(factor, deep)


def scaled(config: OptimizerConfig) -> optax.GradientTransformation:
    """Multiplies each leaf's direction by its factor, with one group per factor.

    Scaling has no state, so the other transformations do not change.
    """

    def grouped(params):
        by_name = factors(config, params)
        scales: dict[Hashable, optax.GradientTransformation] = {
            factor: optax.scale(factor) for factor in jax.tree.leaves(by_name)
        }
        return optax.multi_transform(scales, by_name)

    return _named(grouped)


def frozen(config: OptimizerConfig, params) -> dict:
    """Returns a tree of booleans, True for leaves that do not train.

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
            f"train.optimizer.freeze={config.freeze} is more than the {top - 1} layers "
            "of the model with separate parameters.",
            hint="Freeze fewer, or 'encoder'.",
        )
    return jax.tree.map(lambda depth: depth <= config.freeze, deep)


def starts(config: OptimizerConfig, params) -> dict:
    """Returns the step from which on each leaf trains: heads first, embeddings last."""
    deep = depths(params)
    top = max(jax.tree.leaves(deep))
    every = config.unfreeze_every_steps or 0
    return jax.tree.map(lambda depth: (top - depth) * every, deep)


def is_grouped(config: OptimizerConfig) -> bool:
    """Returns True if some leaves do not train, or not from the start."""
    return config.freeze is not None or config.unfreeze_every_steps is not None


def per_group(
    config: OptimizerConfig, inner: Callable[[], optax.GradientTransformation]
) -> optax.GradientTransformation:
    """Applies a separate `inner` to each group, and zeros while a group does not train.

    Steps are counted in the optimizer state, so a skipped update does not count.
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
    """Returns the transformation `grouped(tree)`, built once the names are known."""
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
    """Returns the objective without gradients of frozen leaves.

    The optimizer never changes frozen leaves; this also saves their backward pass and
    keeps them out of the gradient's norm.
    """
    if config.freeze is None:
        return objective

    def loss(params, *arguments):
        params = jax.tree.map(
            lambda x, still: jax.lax.stop_gradient(x) if still else x,
            params,
            frozen(config, params),
        )
        return objective.loss(params, *arguments)

    return altered(objective, loss=loss)
