"""Start weights from another run or folder: what fits, what is new, what is refused."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from plmjax import Exit, PlmjaxError, tree
from plmjax.evaluate.model import Model, open_models, some_shapes
from plmjax.interop.folder import check_is_folder
from plmjax.models import EncoderConfig
from plmjax.objectives import Objective
from plmjax.tokenizers import Tokenizer
from plmjax.workdir import RunConfig, Workdir

# Options of the encoder that set the shapes of its parameters.
_SHAPES = """
    vocab_size layers width ffn_width embedding_width max_positions token_types
    gated bias sharing groups attention positions position_buckets
    share_position_projections position_norm convolution_width kv_heads norm
    norm_embeddings
    """.split()
# Options that give the same parameters another meaning.
_MEANINGS = """
    heads activation norm_place causal layer_kinds window rope_theta rope_local_theta
    rope_scaling rope_factor global_tokens
    """.split()


def check_start_weights(
    config: RunConfig,
    workdir: Workdir,
    objective: Objective,
    tokenizer: Tokenizer,
    log: Callable[[str], Any],
) -> None:
    """Describes the weights of train.init_from, before any text is read.

    Raises:
      PlmjaxError: they do not fit the run.
    """
    if config.train.init_from is None:
        return
    shapes = jax.eval_shape(objective.init, jax.random.key(0), some_shapes())
    fresh = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    start_weights(config, workdir, objective, tokenizer, fresh=fresh, log=log)


def start_weights(
    config: RunConfig,
    workdir: Workdir,
    objective: Objective,
    tokenizer: Tokenizer,
    *,
    fresh: dict,
    log: Callable[[str], Any],
) -> dict:
    """Returns the parameters of train.init_from where they fit, else those of `fresh`.

    A run of several models (ELECTRA) reads each from the model of the same name; a
    single model starts every model of its size (two-stage training).

    Raises:
      PlmjaxError: another tokenizer, or no model has the size of its start weights.
    """
    where = f"train.init_from={config.train.init_from}"
    folder = workdir.resolve(str(config.train.init_from))
    check_is_folder(folder, config.train.init_from, where)
    models, inner = open_models(str(folder)), [*folder.glob("tokenizer")]
    params, problems, inserted, hint = dict(fresh), [], {}, ""
    for name, view in objective.models.items():
        # Compared before insertion, because models may share arrays.
        model = models.get(name) or next(iter(models.values()))
        if model.tokenizer.vocabulary_digest != tokenizer.vocabulary_digest:
            raise PlmjaxError(
                f"the weights of {where} have another tokenizer than this run.",
                hint=f"Set --config.tokenizer.path={inner[0] if inner else folder}.",
                code=Exit.MODEL,
            )
        current = view.extract(params)
        if differing := tree.differences(current["encoder"], model.params["encoder"]):
            problems.append(f"{name}: {differing[0]}")
            hint = hint or _same_shapes(view.encoder, model.encoder)
            continue
        for option in _MEANINGS:
            ours, theirs = (getattr(e, option) for e in (view.encoder, model.encoder))
            if ours != theirs:
                log(
                    f"WARNING: {where} was trained with model.{option}={theirs}, and "
                    f"this run has {ours}."
                )
        fitting = _fitting(model, current)
        new = [head for head in view.heads if head not in fitting]
        unused = [head for head in model.params if head not in fitting]
        log(
            f"Start weights of the {name}: {where}"
            + (f"; new: {', '.join(new)}" if new else "")
            + (f"; left out: {', '.join(unused)}" if unused else "")
            + "."
        )
        inserted[name] = current | fitting
        params = view.insert(params, inserted[name])
    if len(problems) == len(objective.models):
        raise PlmjaxError(
            f"the weights of {where} do not fit this model: {'; '.join(problems)}.",
            hint=hint,
            code=Exit.MODEL,
        )
    for problem in problems:
        log(f"WARNING: {where} has another size, so new weights are used: {problem}.")
    for name, wanted in inserted.items():
        _check_shared(wanted, objective.models[name].extract(params), where)
    return params


def _check_shared(wanted: dict, params: dict, where: str) -> None:
    """Raises PlmjaxError if another model has overwritten this one's start weights."""
    ours = tree.flatten(params)
    for name, leaf in tree.flatten(wanted).items():
        # A leaf stored as a difference loses its last digit.
        if not np.allclose(leaf, ours[name], rtol=1e-5, atol=1e-6):
            raise PlmjaxError(
                f"generator and discriminator share {name}, but it differs between "
                f"their weights of {where}.",
                hint="Set --config.objective.tie=none, or disentangled.",
                code=Exit.MODEL,
            )


def _fitting(model: Model, target: dict) -> dict:
    """Returns a model's encoder, and its heads that have the shapes of `target`."""
    return {
        name: jax.device_get(params)
        for name, params in model.params.items()
        if name in target and not tree.differences(target[name], params)
    }


def _same_shapes(ours: EncoderConfig, theirs: EncoderConfig) -> str:
    """Returns a hint with the keys that give our model the shapes of theirs."""
    wrong = [k for k in _SHAPES if getattr(ours, k) != getattr(theirs, k)]
    keys = " ".join(f"--config.model.{k}={getattr(theirs, k)}" for k in wrong)
    return f"Set {keys}." if wrong else "Give it the preset and sizes of that model."
