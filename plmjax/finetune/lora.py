"""LoRA (Hu et al. 2021, arXiv:2106.09685): trains only a product of two thin matrices.

A kernel W [I, O] of the encoder becomes W + alpha / rank * A [I, r] @ B [r, O]. W stays
in `frozen`, without gradient or optimizer state; the exported model has the sum.
"""

import dataclasses
import re
import zlib

import jax
import jax.numpy as jnp

from plmjax import PlmjaxError, tree
from plmjax.config import Block, number
from plmjax.objectives import Objective, altered


@dataclasses.dataclass(frozen=True)
class LoraConfig(Block, prefix="lora."):
    """Which kernels get an adapter, and its rank; 0: no adapters."""

    rank: int = number(0, at_least=0)
    alpha: float = 16.0
    # A regex that matches full parameter names.
    targets: str = r"encoder/layer_\d+/attention/(query|value)/kernel"


def base(params: dict) -> dict:
    """Returns the `frozen` arrays that `lora` needs: the encoder at the start."""
    return {"base": {"encoder": params["encoder"]}}


def lora(objective: Objective, config: LoraConfig) -> Objective:
    """Returns the objective with the adapters, "lora", and the heads as parameters.

    `frozen` must hold `base` of the start. Its `models` take the result of `merged`.
    """

    def init(key, batch):
        params = dict(objective.init(key, batch))
        encoder = params.pop("encoder")
        return {"lora": adapters(config, encoder, key)} | params

    def loss(params, frozen, batch, key, train):
        plain = merged(config, params, frozen)
        return objective.loss(plain, frozen, batch, key, train)

    return altered(objective, init=init, loss=loss)


def adapters(config: LoraConfig, encoder: dict, key: jax.Array) -> dict:
    """Returns fresh A and B of the targets by name; B is 0, so nothing changes yet.

    Raises:
      PlmjaxError: no kernel of the encoder matches.
    """
    fresh = {}
    for name, x in tree.flatten({"encoder": encoder}).items():
        if re.fullmatch(config.targets, name) and len(x.shape) == 2:
            own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
            normal = jax.random.normal(own_key, (x.shape[0], config.rank), jnp.float32)
            fresh[f"{name}/a"] = normal * jnp.float32(x.shape[0] ** -0.5)
            fresh[f"{name}/b"] = jnp.zeros((config.rank, x.shape[1]), jnp.float32)
    if not fresh:
        raise PlmjaxError(
            f"lora.targets={config.targets!r} matches no kernel of the encoder.",
            hint="Kernels have names such as encoder/layer_0/attention/query/kernel.",
        )
    return tree.unflatten(fresh)


def merged(config: LoraConfig, params: dict, frozen: dict) -> dict:
    """Returns the parameters of the plain model: the adapters added to their kernels.

    The sum is float32, so that the exported model equals the trained one.
    """
    thin, scale = tree.flatten(params["lora"]), jnp.float32(config.alpha / config.rank)
    plain = {}
    for name, x in tree.flatten(frozen["base"]).items():
        if f"{name}/a" in thin:
            product = jnp.matmul(
                thin[f"{name}/a"], thin[f"{name}/b"], precision="highest"
            )
            x = x + scale * product
        plain[name] = x
    heads = {name: head for name, head in params.items() if name != "lora"}
    return tree.unflatten(plain) | heads
