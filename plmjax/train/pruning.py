"""Pruning by magnitude: the smallest weights of each kernel become 0 and stay so.

What is pruned is what is 0, so there are no masks to keep: checkpoints hold all, and a
model that was pruned before can be trained on.

Legend: I inputs, O outputs of a dense layer.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from plmjax import tree
from plmjax.train.config import PruneConfig

# The kernels of the encoder's layers.
_KERNEL = re.compile(r"(.*/)?encoder/layer_\d+/.*/kernel")


def map_kernels(f: Callable, params, *others) -> dict:
    """Returns params with f(kernel, ...) in place of each kernel of the layers."""
    return tree.map_named(
        lambda name, x, *more: f(x, *more) if _KERNEL.fullmatch(name) else x,
        params,
        *others,
    )


def kernels(params) -> list:
    """Returns the kernels of the layers."""
    return [x for name, x in tree.flatten(params).items() if _KERNEL.fullmatch(name)]


def smallest_zeroed(x_IO: jax.Array, share) -> jax.Array:
    """Returns a kernel whose smallest weights, a share of all, are 0."""
    order = jnp.argsort(jnp.abs(x_IO).ravel(), stable=True)
    zeros = jnp.round(share * x_IO.size)
    kept = jnp.zeros(x_IO.size, bool).at[order].set(jnp.arange(x_IO.size) >= zeros)
    return jnp.where(kept.reshape(x_IO.shape), x_IO, 0)


def two_of_four(x_IO: jax.Array) -> jax.Array:
    """Returns a kernel with the two largest of each four inputs in a row, else 0.

    NVIDIA's sparse matrix units skip the others (Mishra et al. 2021, arXiv:2104.08378).
    I must be a multiple of 4.
    """
    fours = x_IO.reshape(-1, 4, x_IO.shape[1])
    order = jnp.argsort(jnp.abs(fours), axis=1, stable=True, descending=True)
    kept = jnp.argsort(order, axis=1) < 2
    return jnp.where(kept, fours, 0).reshape(x_IO.shape)


def hold_zeros(params: dict, updated: dict) -> dict:
    """Returns `updated` with 0 where the kernels of `params` have 0."""
    return map_kernels(lambda new, old: jnp.where(old == 0, 0, new), updated, params)


def make_pruning(config: PruneConfig, steps: int) -> Callable | None:
    """Returns (params, step) -> params pruned after that step; None: nothing is pruned.

    The share of zeros grows from 0 to config.sparsity, fast at first: by one minus the
    cube of what is left of the schedule (Zhu & Gupta 2017, arXiv:1710.01878).
    """
    if not config.on:
        return None
    begin = config.begin_percent / 100 * steps
    stage = max((config.end_percent / 100 * steps - begin) / config.stages, 1e-9)

    def stages(step):
        done = jnp.floor((step - begin) / stage + 1e-4)
        return jnp.clip(done, 0, config.stages)

    def prune(params: dict, step):
        done = stages(step + 1)
        share = config.sparsity * (1 - (1 - done / config.stages) ** 3)
        return jax.lax.cond(
            done > stages(step),
            lambda tree: map_kernels(lambda x: smallest_zeroed(x, share), tree),
            lambda tree: tree,
            params,
        )

    return prune if config.sparsity else lambda params, step: params
