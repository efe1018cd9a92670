"""The start of fine-tuning: an encoder, partly re-initialised, and a new head.

New layers and poolers are initialised as in pretraining, with a separate seed.
"""

import dataclasses
import re
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from plmjax import PlmjaxError, tree
from plmjax.config import Block, number
from plmjax.evaluate.model import Model
from plmjax.interop.names import head_entries
from plmjax.models import EncoderConfig, task_heads
from plmjax.models.config import GlobalRule, with_global_ids
from plmjax.models.global_tokens import USUAL
from plmjax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class StartConfig(Block, prefix="start."):
    """The parts of a pretrained model to keep."""

    # Keeps only sizes and tokenizer and re-initialises all, to measure their value.
    from_scratch: bool = False
    # Number of first layers to keep; none: all.
    layers: int | None = number(
        None, at_least=1, hint="Leave it out to keep all layers."
    )
    # Number of last layers to re-initialise (Zhang et al. 2021, arXiv:2006.05987).
    reinit_layers: int = number(0, at_least=0)
    # Re-initialises the pooler even if the model has one.
    reinit_pooler: bool = False
    # Dropout of the encoder in fine-tuning; none: that of the model's config. (For a
    # model pretrained without dropout, .1 is worth trying.)
    dropout: float | None = number(None, at_least=0, below=1)
    # The tokens that are global in local layers; none: those of transformers' class of
    # the task (Longformer), else the model's.
    global_tokens: GlobalRule | None = None
    # Dropout before the classifier; none: the default of transformers' class.
    classifier_dropout: float | None = number(None, at_least=0, below=1)


def start(
    model: Model, task: Task, config: StartConfig, seed: int
) -> tuple[EncoderConfig, dict]:
    """Returns the encoder and parameters that fine-tuning starts from, as numpy.

    The classifier is always new; the pooler is the model's if transformers, too, would
    use it for this head.

    Raises:
      PlmjaxError: the family has no such head, or the model has too few layers.
    """
    task_heads.check(model.encoder, task.head)
    encoder = _with_global_tokens(_cut(model, config), model, task, config)
    reinitialised = _new_layers(encoder, config)
    theirs = {} if config.from_scratch else tree.flatten(model.params)
    kept = {} if config.from_scratch or config.reinit_pooler else _pooler(model, task)
    kept |= {
        name: name
        for name in theirs
        if name.startswith("encoder/")
        and _layer(name) < encoder.layers
        and not reinitialised.fullmatch(name)
    }
    leaves = {name: np.asarray(theirs[source]) for name, source in kept.items()}
    return encoder, tree.unflatten(leaves | _fresh(encoder, task, seed, kept.keys()))


def _fresh(
    encoder: EncoderConfig, task: Task, seed: int, kept: Collection[str]
) -> dict[str, np.ndarray]:
    """Returns fresh leaves by name, except those that are kept from the model."""
    names = ("tokens", "segments", "positions", "types")
    batch = {name: jnp.ones((1, 1), jnp.int32) for name in names}

    # XLA neither initialises nor compiles leaves that are not returned.
    @jax.jit
    def init(key):
        fresh = tree.flatten(task_heads.init_model(encoder, task, key, batch))
        return {name: leaf for name, leaf in fresh.items() if name not in kept}

    return jax.device_get(init(jax.random.key(seed)))


def _layer(name: str) -> int:
    """Returns the layer number of a leaf; -1 for others."""
    match = re.match(r"encoder/layer_(\d+)/", name)
    return int(match[1]) if match else -1


def _cut(model: Model, config: StartConfig) -> EncoderConfig:
    """Returns the encoder with the layers that are kept, and its dropout."""
    encoder, kept = model.encoder, config.layers
    if config.dropout is not None:
        rates = {"dropout": config.dropout, "attention_dropout": config.dropout}
        encoder = dataclasses.replace(encoder, **rates)
    if kept is None or kept == encoder.layers:
        return encoder
    if kept > encoder.layers:
        raise PlmjaxError(
            f"start.layers={kept}, but {model.name} has only {encoder.layers} layers.",
            hint=f"Keep at most {encoder.layers}.",
        )
    # A single set serves any number of layers; several are spread over all layers.
    if encoder.sharing != "none" and encoder.groups > 1:
        raise PlmjaxError(
            f"{model.name} spreads {encoder.groups} sets of parameters over its "
            f"{encoder.layers} layers; the first {kept} alone would have others.",
            hint="Leave start.layers out.",
        )
    return dataclasses.replace(encoder, layers=kept)


def _with_global_tokens(
    encoder: EncoderConfig, model: Model, task: Task, config: StartConfig
) -> EncoderConfig:
    """Returns the encoder with the rule of global tokens that the task has."""
    rule = config.global_tokens or USUAL.get(task.head or "", encoder.global_tokens)
    if rule == encoder.global_tokens or not encoder.global_projections:
        if config.global_tokens in (None, encoder.global_tokens):
            return encoder
        raise PlmjaxError(
            f"start.global_tokens={rule!r}, but {model.name} has no projections for "
            "global tokens.",
            hint="Leave it out, or start from a Longformer.",
        )
    ids = encoder.global_ids if rule == "listed" else ()
    encoder = dataclasses.replace(
        encoder, global_tokens=rule, global_ids=ids, global_limit=1
    )
    return with_global_ids(encoder, model.tokenizer.global_ids)


def _new_layers(encoder: EncoderConfig, config: StartConfig) -> re.Pattern:
    """Returns a regex of the parameter names to re-initialise."""
    count = config.reinit_layers
    if count > encoder.layers:
        raise PlmjaxError(
            f"start.reinit_layers={count}, but there are only {encoder.layers} layers.",
            hint=f"Re-initialise at most {encoder.layers}.",
        )
    if count and encoder.sharing != "none":
        raise PlmjaxError(
            f"start.reinit_layers={count} would re-initialise all layers: they share "
            "their parameters.",
            hint="Leave it out for this model.",
        )
    last = range(encoder.layers - count, encoder.layers)
    # Without such layers, the regex matches nothing.
    return re.compile(rf"encoder/layer_({'|'.join(map(str, last)) or '(?!)'})/.*")


def _pooler(model: Model, task: Task) -> dict[str, str]:
    """Returns {name in the new head: name in the model} of the pooler's leaves.

    Two heads share a pooler if transformers uses the same names for both.
    """
    family = model.encoder.family
    if task.head is None:
        return {}
    held = tree.flatten(model.params)
    wanted = {
        entry.theirs: entry.ours[0]
        for entry in head_entries(family, task.head)
        if "/pooler/" in entry.ours[0]
    }
    sources = {}
    for head in model.params.keys() - {"encoder"}:
        for entry in head_entries(family, head):
            if entry.theirs in wanted and entry.ours[0] in held:
                sources[wanted[entry.theirs]] = entry.ours[0]
    return sources


def describe(model: Model, task: Task, config: StartConfig) -> str:
    """Returns a sentence on the weights that are kept and those that are new."""
    if config.from_scratch:
        return f"Start weights: all new, in the sizes of {model.name}."
    new = ["classifier"] if task.head is not None else []
    if task.head in task_heads.POOLERS:
        kept = not config.reinit_pooler and _pooler(model, task)
        new += [] if kept else ["pooler"]
    if config.reinit_layers:
        new.append(f"the last {config.reinit_layers} layers")
    layers = "" if config.layers is None else f", its first {config.layers} layers"
    return f"Start weights: {model.name}{layers}; new: {', '.join(new) or 'nothing'}."
