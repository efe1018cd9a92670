"""ELECTRA's generator: its sizes, its samples, and its shared parameters.

Legend: T chosen tokens, V vocabulary, G blocks of N pieces.
"""

import dataclasses
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from plmjax import PlmjaxError
from plmjax.config import Block, number
from plmjax.models import EncoderConfig, heads
from plmjax.objectives.base import ModelView
from plmjax.tree import flatten, unflatten

_TABLE = "encoder/embeddings/token"
_DELTA = "encoder/embeddings/token_delta"

# Regex over names: parameters that the generator shares with the discriminator.
# Google's code shares "embeddings", which the paper calls token and positional ones.
TIES = {
    "tokens": _TABLE,
    "embeddings": r"encoder/embeddings/(?!projection/).*",
    "none": r"(?!)",
    "all": r"encoder/.*",
    # Gradient-disentangled sharing (DeBERTaV3, He et al. 2021, arXiv:2111.09543): the
    # discriminator's table is the generator's, without gradient, plus a delta.
    "disentangled": r"(?!)",
}

# Ranges of the sizes, and of the fractions.
_SIZE: dict[str, Any] = {
    "at_least": 1,
    "hint": "Leave it out, and it follows from the fraction.",
}
_FRACTION: dict[str, Any] = {
    "above": 0,
    "at_most": 4,
    "hint": "ELECTRA-small has width_fraction=0.25, layers_fraction=1.",
}

# Tolerance of fractions: .333 means a third.
_CLOSE = 1e-3


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(Block, prefix="objective.generator."):
    """The generator's sizes: absolute, or fractions of the discriminator's.

    Everything else (dropout, positions, activation, ...) is as in the discriminator.
    """

    # uniform: all ordinary pieces are equally likely, and nothing is trained.
    kind: Literal["trained", "uniform"] = "trained"
    layers: int | None = number(None, **_SIZE)
    width: int | None = number(None, **_SIZE)
    # None: the discriminator's head width and ratio of feed-forward to hidden width.
    heads: int | None = number(None, **_SIZE)
    ffn_width: int | None = number(None, **_SIZE)
    # None: the discriminator's if tables are tied, else the generator's width.
    embedding_width: int | None = number(None, **_SIZE)
    layers_fraction: float = number(1.0, **_FRACTION)
    width_fraction: float = number(0.25, **_FRACTION)


def generator_encoder(
    config: GeneratorConfig, tie: str, encoder: EncoderConfig
) -> EncoderConfig:
    """Returns the encoder of a generator for the discriminator `encoder`.

    Raises:
      PlmjaxError: the heads do not divide the width (the message gives the nearest
        widths that work); or another size although the encoder is tied.
    """
    width = _width(config, encoder)
    layers = _layers(config, encoder)
    # Tied tables have the discriminator's width; others the layers', as Google's code.
    narrow = width if tie == "none" else encoder.input_width
    if tie != "none" and config.embedding_width not in (None, narrow):
        raise PlmjaxError(
            f"objective.generator.embedding_width={config.embedding_width} is not the "
            f"discriminator's {narrow}, as objective.tie={tie} needs.",
            hint="Leave it out, or set --config.objective.tie=none.",
        )
    narrow = config.embedding_width or narrow
    if layers % encoder.groups:
        raise PlmjaxError(
            f"model.groups={encoder.groups} does not divide the generator's {layers} "
            "layers.",
            hint="Set --config.objective.generator.layers to a multiple of "
            f"{encoder.groups}.",
        )
    generator = dataclasses.replace(
        encoder,
        layers=layers,
        width=width,
        heads=config.heads or encoder.heads * width // encoder.width,
        ffn_width=config.ffn_width or encoder.ffn_width * width // encoder.width,
        embedding_width=None if narrow == width else narrow,
    )
    sizes = ("layers", "width", "heads", "ffn_width", "input_width")
    differ = [n for n in sizes if getattr(generator, n) != getattr(encoder, n)]
    if tie == "all" and differ:
        sizes_of_both = ", ".join(
            f"{n} {getattr(generator, n)} and {getattr(encoder, n)}" for n in differ
        )
        raise PlmjaxError(
            "objective.tie='all' needs a generator of the discriminator's sizes; "
            f"they differ: {sizes_of_both}.",
            hint="Set --config.objective.generator.width_fraction=1 and "
            "layers_fraction=1, or another objective.tie.",
        )
    return generator


def _fits(config: GeneratorConfig, encoder: EncoderConfig, width: int) -> bool:
    """Returns True if the sizes of heads and feed-forward layer are integers."""
    if config.heads is None:
        heads_fit = encoder.heads * width % encoder.width == 0
    else:
        heads_fit = width % config.heads == 0
    ffn_fits = config.ffn_width is not None or (
        encoder.ffn_width * width % encoder.width == 0
    )
    return heads_fit and ffn_fits


def _width(config: GeneratorConfig, encoder: EncoderConfig) -> int:
    fraction, full = config.width_fraction, encoder.width
    wanted = fraction * full if config.width is None else config.width
    # The discriminator's width always fits, unless another number of heads is given.
    most = int(max(2 * full, 2 * wanted)) + (config.heads or 0)
    fit = [w for w in range(1, most + 1) if _fits(config, encoder, w)]
    nearest = min(fit, key=lambda w: abs(w - wanted))
    distance = abs(nearest - wanted)
    if distance == 0 or (config.width is None and distance <= _CLOSE * full):
        return nearest
    below, above = [w for w in fit if w < wanted], [w for w in fit if w > wanted]
    near = below[-1:] + above[:1]
    heads = {w: config.heads or encoder.heads * w // full for w in near}
    if config.width is None:
        key, relation = f"width_fraction={fraction}", "of"
        sizes = [f"{w / full:.4g} (width {w}, heads {heads[w]})" for w in near]
    else:
        key, relation = f"width={config.width}", "with"
        sizes = [f"{w} (heads {heads[w]})" for w in near]
    raise PlmjaxError(
        f"objective.generator.{key} {relation} model.width={full} and "
        f"model.heads={encoder.heads} does not give integer numbers of heads and "
        "feed-forward units.",
        hint=f"The nearest that do: {' and '.join(sizes)}; or set "
        "objective.generator.width, heads and ffn_width yourself.",
    )


def _layers(config: GeneratorConfig, encoder: EncoderConfig) -> int:
    if config.layers is not None:
        return config.layers
    wanted = config.layers_fraction * encoder.layers
    layers = max(1, round(wanted))
    if abs(layers - wanted) <= _CLOSE * encoder.layers:
        return layers
    near = sorted({max(1, int(wanted)), int(wanted) + 1})
    suggestions = " and ".join(f"{n / encoder.layers:.4g} (layers {n})" for n in near)
    raise PlmjaxError(
        f"objective.generator.layers_fraction={config.layers_fraction} of "
        f"model.layers={encoder.layers} does not give an integer number of layers.",
        hint=f"The nearest fractions that do: {suggestions}; or set "
        "objective.generator.layers.",
    )


def initial_params(
    tie: str,
    encoder: EncoderConfig,
    generator: EncoderConfig | None,
    names: tuple[str, ...],
    key: jax.Array,
    batch: dict,
) -> dict:
    """Returns {"discriminator": ..., "generator": ...}; shared leaves appear once.

    Without a generator only the discriminator. `names` are its heads.
    """
    keys = jax.random.split(key)
    discriminator = flatten(heads.init_model(encoder, keys[0], batch, names))
    if generator is None:
        return {"discriminator": unflatten(discriminator)}
    leaves = flatten(heads.init_model(generator, keys[1], batch, ("head",)))
    if tie == "disentangled":
        # The delta starts at 0, so both tables start equal.
        discriminator[_DELTA] = jnp.zeros_like(discriminator.pop(_TABLE))
    leaves = {n: leaf for n, leaf in leaves.items() if not re.fullmatch(TIES[tie], n)}
    return {"discriminator": unflatten(discriminator), "generator": unflatten(leaves)}


def model_views(
    tie: str,
    encoder: EncoderConfig,
    generator: EncoderConfig | None,
    names: tuple[str, ...],
) -> dict[str, ModelView]:
    """Returns the two models, each with the shared parameters; discriminator first."""
    extract, insert = _extract_discriminator, _insert_discriminator
    if tie == "disentangled" and generator is not None:
        extract, insert = _extract_disentangled, _insert_disentangled
    views = {
        "discriminator": ModelView(
            encoder,
            names,
            extract=lambda params: _with_heads(extract(params), names),
            insert=insert,
        )
    }
    if generator is None:
        return views
    tied = TIES[tie]

    def extract_generator(params):
        shared = flatten(params["discriminator"])
        flat = {n: leaf for n, leaf in shared.items() if re.fullmatch(tied, n)}
        return _with_heads(unflatten(flat | flatten(params["generator"])), ("head",))

    def insert_generator(params, part):
        flat = flatten(part)
        shared = {n: leaf for n, leaf in flat.items() if re.fullmatch(tied, n)}
        separate = {n: leaf for n, leaf in flat.items() if n not in shared}
        discriminator = flatten(params["discriminator"])
        if tie == "disentangled" and np.any(np.asarray(discriminator[_DELTA])):
            # Adjust a nonzero delta so that the discriminator's table stays the same;
            # with a zero delta it follows the new table of the generator.
            old = params["generator"]["encoder"]["embeddings"]["token"]
            shared = {_DELTA: discriminator[_DELTA] + (old - separate[_TABLE])}
        return params | {
            "discriminator": unflatten(discriminator | shared),
            "generator": unflatten(separate),
        }

    return views | {
        "generator": ModelView(
            generator, ("head",), extract_generator, insert_generator
        )
    }


def _with_heads(model: dict, names: tuple[str, ...]) -> dict:
    # A plain vocabulary head has no parameters, so flattening drops its name.
    return {name: {} for name in names} | model


def _extract_discriminator(params):
    return params["discriminator"]


def _insert_discriminator(params, part):
    return params | {"discriminator": unflatten(flatten(part))}


def _extract_disentangled(params):
    flat = flatten(params["discriminator"])
    table_VE = params["generator"]["encoder"]["embeddings"]["token"]
    flat[_TABLE] = jax.lax.stop_gradient(table_VE) + flat.pop(_DELTA)
    return unflatten(flat)


def _insert_disentangled(params, part):
    flat = flatten(part)
    table_VE = params["generator"]["encoder"]["embeddings"]["token"]
    flat[_DELTA] = flat.pop(_TABLE) - table_VE
    return params | {"discriminator": unflatten(flat)}


def sample(logits_TV: jax.Array, u_T: jax.Array, temperature: float) -> jax.Array:
    """Draws a piece from each softmax(logits / temperature); int32 [T], no gradient.

    `u_T`, uniform in [0, 1), is inverted through the distribution function: one number
    per token, while Gumbel noise needs one per piece. First the block of pieces is
    searched, then the piece in it, so that no array of the logits' size is written.
    """
    size, vocabulary = 128, logits_TV.shape[1]
    x_TV = jax.lax.stop_gradient(logits_TV) * jnp.float32(1 / temperature)
    top_T1 = jnp.max(x_TV, axis=1, keepdims=True)
    # On a CPU this takes a tenth of the time of a sum over reshaped logits.
    mass_TG = jax.lax.reduce_window(
        jnp.exp(x_TV - top_T1),
        jnp.float32(0),
        jax.lax.add,
        window_dimensions=(1, size),
        window_strides=(1, size),
        padding=((0, 0), (0, -vocabulary % size)),
    )
    end_TG = jnp.cumsum(mass_TG, axis=1)
    block_T, left_T = _first_beyond(end_TG, u_T * end_TG[:, -1], mass_TG)
    piece_TN = block_T[:, None] * size + jnp.arange(size, dtype=jnp.int32)[None, :]
    at_TN = jnp.minimum(piece_TN, vocabulary - 1)
    mass_TN = jnp.exp(jnp.take_along_axis(x_TV, at_TN, axis=1) - top_T1)
    mass_TN = jnp.where(piece_TN < vocabulary, mass_TN, 0)
    piece_T, _ = _first_beyond(jnp.cumsum(mass_TN, axis=1), left_T, mass_TN)
    return jnp.minimum(block_T * size + piece_T, vocabulary - 1)


def _first_beyond(end_TN, at_T, mass_TN):
    """Returns the first index at which the sum exceeds `at`, and `at` less the sum."""
    # Rounding must not move it past the last entry with any mass.
    at_T = jnp.minimum(at_T, end_TN[:, -1] * jnp.float32(1 - 2.0**-22))
    index_T = jnp.sum((end_TN <= at_T[:, None]).astype(jnp.int32), axis=1)
    index_T = jnp.minimum(index_T, end_TN.shape[1] - 1)
    begin_T = jnp.take_along_axis(end_TN - mass_TN, index_T[:, None], axis=1)[:, 0]
    return index_T, jnp.maximum(at_T - begin_T, 0)
