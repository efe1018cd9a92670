"""Opens a trained model, from a run's workdir or from a Hugging Face folder."""

import dataclasses
import json
from pathlib import Path

import jax

from plmjax import Exit, PlmjaxError
from plmjax.interop.huggingface import read_folder
from plmjax.models import EncoderConfig
from plmjax.objectives import MLMConfig, Objective, mlm
from plmjax.objectives.mlm import Pieces
from plmjax.tokenizers import Tokenizer
from plmjax.train.checkpoint import Checkpoints
from plmjax.train.optimizer import make_optimizer
from plmjax.train.step import init_state
from plmjax.train.workdir import RunConfig, Workdir, encoder_config, make_objective


@dataclasses.dataclass(frozen=True)
class Model:
    """Parameters and all that is needed to use them; `step` is None for a folder."""

    encoder: EncoderConfig
    params: dict
    tokenizer: Tokenizer
    objective: Objective
    name: str
    step: int | None


def open_model(path: str, checkpoint: str = "newest") -> Model:
    """Opens a workdir (its best, newest or numbered checkpoint) or a folder.

    Raises:
      PlmjaxError: neither of the two, no good checkpoint, no vocabulary head.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise PlmjaxError(
            f"--model={path} is no directory.",
            hint="Give a run's workdir or a Hugging Face folder.",
        )
    if (directory / "model.safetensors").exists() or is_folder(directory):
        if checkpoint != "newest":
            raise PlmjaxError(
                f"{path} is a Hugging Face folder, without --checkpoint={checkpoint}.",
                hint="Give the run's workdir, or leave --checkpoint out.",
            )
        return _from_folder(directory)
    return _from_workdir(Workdir(directory), checkpoint)


def is_folder(directory: Path) -> bool:
    """Says whether a directory is a Hugging Face folder: its config names a type."""
    path = directory / "config.json"
    try:
        return "model_type" in json.loads(path.read_text())
    except (OSError, ValueError):
        return False


def _from_folder(directory: Path) -> Model:
    found = read_folder(directory)
    if found.params["head"] is None:
        raise PlmjaxError(
            f"{directory} has no vocabulary head, so it cannot guess words.",
            hint="Give the folder of the masked language model.",
            code=Exit.MODEL,
        )
    tokenizer = found.tokenizer
    pieces = Pieces(
        tokenizer.mask_id, tokenizer.special_ids, tuple(tokenizer.token_bytes.tolist())
    )
    objective = mlm(MLMConfig(), found.config, pieces)
    return Model(found.config, found.params, tokenizer, objective, directory.name, None)


def _from_workdir(workdir: Workdir, checkpoint: str) -> Model:
    config = workdir.config()
    tokenizer = workdir.tokenizer()
    encoder = encoder_config(config, tokenizer)
    objective = make_objective(config, encoder, tokenizer)
    checkpoints = Checkpoints(workdir.checkpoints)
    step = checkpoints.good_step(_wanted_step(checkpoints, checkpoint))
    if step is None:
        raise PlmjaxError(
            f"{workdir.path} has no checkpoint yet.",
            hint="Let `plmjax pretrain` reach train.checkpoint_every_steps.",
            code=Exit.MODEL,
        )
    params = load_params(config, objective, checkpoints, step)
    name = config.name or workdir.path.resolve().name
    return Model(encoder, params, tokenizer, objective, name, step)


def _wanted_step(checkpoints: Checkpoints, checkpoint: str) -> int | None:
    if checkpoint == "newest":
        return None
    if checkpoint == "best":
        best = checkpoints.best()
        return None if best is None else best[0]
    if checkpoint.isdecimal():
        return int(checkpoint)
    raise PlmjaxError(
        f"--checkpoint={checkpoint} is not known.", hint="Give best, newest or a step."
    )


def load_params(
    config: RunConfig, objective: Objective, checkpoints: Checkpoints, step: int
) -> dict:
    """Returns a checkpoint's weights, without its optimizer; their average if kept."""
    ids = jax.ShapeDtypeStruct((1, 8), "int32")
    batch = {name: ids for name in ("tokens", "segments", "positions", "types")}
    optimizer = make_optimizer(config.train.optimizer)
    ema = config.train.ema_decay is not None
    state, _ = jax.eval_shape(
        lambda batch: init_state(objective, optimizer, 0, batch, ema), batch
    )
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state
    )
    field = "average" if ema else "params"
    return getattr(checkpoints.load(step, abstract, only=field), field)
