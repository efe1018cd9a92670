"""Mixout (Lee et al. 2020, arXiv:1909.11299): a dropout whose zero is the start weight.

At each step a share of the encoder's kernels' entries is that of the start; the rest is
moved away from it as much further, so that the mean stays. It holds back forgetting.
"""

import jax
import jax.numpy as jnp

from plmjax import PlmjaxError, tree
from plmjax.models.noise import Noise, keep
from plmjax.objectives import Altered, Objective


def anchor(params: dict) -> dict:
    """Returns what `mixout` needs in `frozen`: the start's kernels of the encoder."""
    flat = tree.flatten({"encoder": params["encoder"]})
    kernels = {name: x for name, x in flat.items() if name.endswith("/kernel")}
    return {"anchor": tree.unflatten(kernels)}


def mixout(objective: Objective, rate: float) -> Objective:
    """Returns the objective with the encoder's kernels mixed while it trains.

    `rate` is the share of entries that are the start's; `frozen` must hold `anchor` of
    the start. The draw is one for all rows of a step: micro-batches and devices agree.

    Raises:
      PlmjaxError: a rate that is no share.
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

    return Altered(objective, own_loss=loss)


def _mixed(noise: Noise, name: str, x, start, rate: float) -> jax.Array:
    kept = keep(noise, f"mixout/{name}", x.size, rate).reshape(x.shape)
    return start + jnp.where(kept, x - start, 0.0) * jnp.float32(1 / (1 - rate))
