"""The four functions that make an objective, and the key of its draws."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from plmjax.models import Noise

Batch = dict[str, jax.Array]
# name -> (sum, count): means over micro-batches, devices and batches simply add.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Key(NamedTuple):
    """What every draw of a step shares: uint32 scalars."""

    seed: jax.Array
    step: jax.Array

    def noise(self, batch: Batch) -> Noise:
        return Noise(self.seed, self.step, batch["row"])


class Objective(NamedTuple):
    """An objective as pure functions of parameters, frozen arrays and a batch.

    init(key, batch) -> (params, frozen): `key` is a jax PRNG key; `frozen` holds what
      the loss needs and the optimizer never sees.
    corrupt(batch, key, progress) -> batch: chooses and masks positions on the global
      batch; sets weights that sum to 1 for each term of the loss.
    loss(params, frozen, batch, key, train) -> (scalar, metrics): a plain weighted sum,
      so losses and gradients of micro-batches add.
    outputs(params, batch) -> float32 logits at batch["mask_positions"].
    """

    init: Callable[[jax.Array, Batch], tuple[dict, dict]]
    corrupt: Callable[[Batch, Key, jax.Array], Batch]
    loss: Callable[[dict, dict, Batch, Key, bool], tuple[jax.Array, Metrics]]
    outputs: Callable[[dict, Batch], jax.Array]
