"""Mixout (Lee et al. 2020, arXiv:1909.11299): dropout to the start weights, not to 0.

In each step a share of the encoder's kernel entries has the start values; the
difference of the others is scaled up, so that the mean stays. It reduces forgetting.
"""

import jax
import jax.numpy as jnp

from plmjax import PlmjaxError, tree
from plmjax.models.noise import Noise, keep
from plmjax.objectives import Objective, altered


def anchor(params: dict) -> dict:
    """Returns the `frozen` arrays that `mixout` needs: the encoder's start kernels."""
    flat = tree.flatten({"encoder": params["encoder"]})
    kernels = {name: x for name, x in flat.items() if name.endswith("/kernel")}
    return {"anchor": tree.unflatten(kernels)}


def mixout(objective: Objective, rate: float) -> Objective:
    """Returns the objective with mixout of the encoder's kernels in training.

    `rate` is the share of entries with start values; `frozen` must hold `anchor` of the
    start. All rows of a step use the same mask: micro-batches and devices agree.

    Raises:
      PlmjaxError: a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise PlmjaxError(f"the rate of mixout is {rate}; it must be in [0, 1).")

    def loss(params, frozen, batch, key, train):
        if train and rate:
            noise = Noise(key.seed, key.step, jnp.zeros(1, jnp.int32))
            starts = tree.flatten(frozen["anchor"])
            params = tree.unflatten(
                {
                    name: _mixed(noise, name, x, starts[name], rate)
                    if name in starts
                    else x
                    for name, x in tree.flatten(params).items()
                }
            )
        return objective.loss(params, frozen, batch, key, train)

    return altered(objective, loss=loss)


def _mixed(noise: Noise, name: str, x, start, rate: float) -> jax.Array:
    kept = keep(noise, f"mixout/{name}", x.size, rate).reshape(x.shape)
    return start + jnp.where(kept, x - start, 0.0) * jnp.float32(1 / (1 - rate))
