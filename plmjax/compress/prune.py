"""Cuts layers, inner neurons, attention heads and small weights out of a model.

Legend: N heads, D head width, F inner neurons, H width, I inputs and O outputs of a
dense layer, B rows.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plmjax import PlmjaxError, tree
from plmjax.evaluate.model import Model
from plmjax.models import EncoderConfig
from plmjax.train.pruning import kernels, map_kernels, smallest_zeroed, two_of_four

# The loss of an encoder's parameters on a batch of rows.
Loss = Callable[[EncoderConfig, dict, dict], jax.Array]
# {block: [N] or [F]}, as "encoder/layer_0/attention" or "encoder/layer_0/ffn".
Scores = Mapping[str, np.ndarray]
_UNIT = 16  # rows of which a loss is computed at once
_LAYER = re.compile(r"encoder/layer_(\d+)/(.*)")
# The kernels that read the heads and the neurons of a block: a gate scales their rows.
_GATED = re.compile(r"(.*/(?:attention|ffn))/(?:output|down)/kernel")


def totals(model: Model) -> dict[str, int]:
    """Returns how much there is to cut for each option."""
    encoder, flat = model.encoder, tree.flatten(model.params)
    attentions = sum(name.endswith("attention/output/kernel") for name in flat)
    return {
        "layers": encoder.layers,
        "heads": attentions * encoder.heads,
        "neurons": encoder.ffn_width,
        "sparsity": sum(x.size for x in kernels(model.params)),
    }


def check(model: Model, asked: Mapping[str, Any]) -> None:
    """Raises PlmjaxError for {option: value} that cuts nothing, all, or cannot."""
    encoder, whole = model.encoder, totals(model)
    for name, value in asked.items():
        if value == "2:4":
            odd = [len(x) for x in kernels(model.params) if len(x) % 4]
            if odd:
                raise PlmjaxError(
                    "--sparsity=2:4 needs kernels of a multiple of four inputs; "
                    f"{model.name} has one of {odd[0]:,}.",
                    hint="Give a share, as --sparsity=.5.",
                )
            continue
        count = value if name == "layers" else round(value * whole[name])
        if not 0 < count < whole[name]:
            raise PlmjaxError(
                f"--{name}={value:g} would cut {count:,} of {whole[name]:,}.",
                hint=f"Give 1 to {whole[name] - 1}."
                if name == "layers"
                else "Give a share above 0 and below 1 that cuts some and leaves some.",
            )
    separate = encoder.sharing == "none" or (encoder.sharing, encoder.groups) == (
        "all",
        1,
    )
    if "layers" in asked and not separate:
        raise PlmjaxError(
            f"--layers: the layers of {model.name} share parameters (model.sharing="
            f"{encoder.sharing!r}, {encoder.groups} sets); none can be cut alone.",
            hint="Leave --layers out.",
        )


def _units(rows: Mapping[str, np.ndarray], size: int) -> dict[str, jax.Array]:
    """Returns rows [N, ...] as units of `size`, [N // size, size, ...]."""
    size = min(size, len(rows["tokens"]))
    count = len(rows["tokens"]) // size
    return {
        name: jnp.asarray(x[: count * size]).reshape(count, size, *x.shape[1:])
        for name, x in rows.items()
    }


def importance(
    loss: Loss, rows: Mapping[str, np.ndarray], size: int, model: Model
) -> Scores:
    """Returns how much each head and each neuron matters, as Scores.

    It is |d loss / d gate| of a gate that scales it (Michel et al. 2019,
    arXiv:1905.10650), the mean over units of `size` rows. Heads are divided by the root
    of the sum of squares in their layer, as there.
    """
    flat, encoder = tree.flatten(model.params), model.encoder
    gated = {name: flat[name] for name in flat if _GATED.fullmatch(name)}

    def of_unit(unit: dict) -> dict[str, jax.Array]:
        def of_kernels(kernels: dict) -> jax.Array:
            return loss(encoder, tree.unflatten(flat | kernels), unit)

        grads, slopes = jax.grad(of_kernels)(gated), {}
        for name, kernel_IO in gated.items():
            block = name.rsplit("/", 2)[0]
            # A gate of 1 scales I rows of the kernel, so its slope is a sum over them.
            slope_I = jnp.sum(kernel_IO * grads[name], axis=1)
            if block.endswith("attention"):
                slope_I = slope_I.reshape(-1, encoder.head_width).sum(1)
            slopes[block] = jnp.abs(slope_I)
        return slopes

    slopes = jax.jit(lambda units: jax.lax.map(of_unit, units))(_units(rows, size))
    means = {block: np.asarray(x).mean(0) for block, x in slopes.items()}
    return {
        block: x / max(np.sqrt(np.square(x).sum()), 1e-30)
        if block.endswith("attention")
        else x
        for block, x in means.items()
    }


def weakest_layers(loss: Loss, rows: Mapping, model: Model, count: int) -> list[int]:
    """Returns layers to leave out, in order: each costs the least loss of the rest."""

    @functools.partial(jax.jit, static_argnums=0)
    def judge(encoder: EncoderConfig, params: dict, units: dict) -> jax.Array:
        return jnp.mean(jax.lax.map(lambda u: loss(encoder, params, u), units))

    units, cut = _units(rows, _UNIT), []
    first = 1 if _keeps_first(model.encoder) else 0
    for _ in range(count):
        others = [i for i in range(first, model.encoder.layers) if i not in cut]
        losses = []
        for layer in others:
            smaller = without_layers(model, [*cut, layer])
            losses.append(float(judge(smaller.encoder, smaller.params, units)))
        cut.append(others[int(np.argmin(losses))])
    return cut


def _keeps_first(encoder: EncoderConfig) -> bool:
    """Whether the first layer has other parameters than those after it."""
    return encoder.norm_embeddings or encoder.convolution_width > 0


def without_layers(model: Model, cut: Collection[int]) -> Model:
    """Returns the model without some of its layers, counted from 0."""
    encoder = model.encoder
    kept = [i for i in range(encoder.layers) if i not in cut]
    shared = encoder.sharing != "none"
    kinds = tuple(map(encoder.layer_kind, kept)) if encoder.layer_kinds else ()
    encoder = dataclasses.replace(encoder, layers=len(kept), layer_kinds=kinds)
    params = {}
    for name, leaf in tree.flatten(model.params).items():
        match = None if shared else _LAYER.fullmatch(name)
        if match is None:
            params[name] = leaf
        elif int(match[1]) in kept:
            params[f"encoder/layer_{kept.index(int(match[1]))}/{match[2]}"] = leaf
    return _changed(model, encoder, params)


def without_neurons(
    model: Model, scores: Scores, share: float, *, as_zeros: bool = False
) -> Model:
    """Returns the model with a share of the inner neurons of each layer cut out.

    `as_zeros` leaves its shapes as they are: what reads the neurons is 0 instead.
    """
    wide, params = model.encoder.ffn_width, tree.flatten(model.params)
    count = round(share * wide)
    for block, score_F in scores.items():
        if not block.endswith("ffn"):
            continue
        order = np.argsort(score_F, kind="stable")
        for name in [n for n in params if n.startswith(f"{block}/")]:
            leaf = np.asarray(params[name])
            if name.endswith("down/kernel"):
                if as_zeros:
                    params[name] = leaf.copy()
                    params[name][order[:count]] = 0
                else:
                    params[name] = leaf[np.sort(order[count:])]
            elif not (as_zeros or name.endswith("down/bias")):
                params[name] = leaf[..., np.sort(order[count:])]
    width = wide if as_zeros else wide - count
    encoder = dataclasses.replace(model.encoder, ffn_width=width)
    return _changed(model, encoder, params)


def weakest_heads(model: Model, scores: Scores, share: float) -> dict[str, list[int]]:
    """Returns {block: heads} of the share of all heads with the lowest scores."""
    heads = {block: x for block, x in scores.items() if block.endswith("attention")}
    blocks, scores_N = [*heads], np.concatenate([*heads.values()])
    order = np.argsort(scores_N, kind="stable")[: round(share * len(scores_N))]
    width = model.encoder.heads
    cut = [(blocks[i // width], i % width) for i in np.sort(order).tolist()]
    return {b: [head for block, head in cut if block == b] for b in blocks}


def with_zero_heads(model: Model, cut: Mapping[str, Collection[int]]) -> Model:
    """Returns the model whose cut heads have weights of 0, so that they add nothing.

    A key and a value that several queries share are kept while one of these is.
    """
    encoder, params = model.encoder, tree.flatten(model.params)
    kept = {
        b: np.isin(np.arange(encoder.heads), [*h], invert=True) for b, h in cut.items()
    }
    for name, leaf in params.items():
        block, _, rest = name.rpartition("/attention/")
        if (kept_N := kept.get(f"{block}/attention")) is None:
            continue
        kind, what = rest.split("/", 1)
        if kind == "output" and what == "kernel":
            gate_I = np.repeat(kept_N, encoder.head_width)
            params[name] = np.where(gate_I[:, None], leaf, 0)
        elif kind.removeprefix("global_") in ("query", "key", "value"):
            own = np.shape(leaf)[-1] // encoder.head_width
            gate_O = np.repeat(kept_N.reshape(own, -1).any(1), encoder.head_width)
            params[name] = np.where(gate_O, leaf, 0)
    return _changed(model, encoder, params)


def sparse(model: Model, sparsity: float | str) -> Model:
    """Returns the model with the smallest weights of each kernel of the layers at 0.

    `sparsity` is a share, or "2:4": two of four weights of an output, in a row.
    """

    def zeroed(x_IO) -> jax.Array:
        x_IO = jnp.asarray(x_IO)
        if sparsity == "2:4":
            return two_of_four(x_IO)
        return smallest_zeroed(x_IO, float(sparsity))

    return dataclasses.replace(
        model, params=jax.device_get(map_kernels(zeroed, model.params))
    )


def _changed(model: Model, encoder: EncoderConfig, params: Mapping[str, Any]) -> Model:
    empty = {head: {} for head in model.params}  # of a head without parameters
    params = empty | tree.unflatten(params)
    return dataclasses.replace(model, encoder=encoder, params=params)


def zero_share(model: Model) -> tuple[int, int]:
    """Returns how many weights of the layers' kernels are 0, and all parameters."""
    zeros = sum(x.size - int(np.count_nonzero(x)) for x in kernels(model.params))
    return zeros, tree.count(model.params)
