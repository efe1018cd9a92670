"""Opens trained models, from a run's workdir or from Hugging Face folders."""

import dataclasses
import json
import sys
from pathlib import Path

import jax

from plmjax import RESUME, Exit, PlmjaxError
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.interop.folder import check_is_folder
from plmjax.interop.huggingface import read_folder
from plmjax.models import EncoderConfig, Platform
from plmjax.objectives import Objective
from plmjax.tasks.task import Task
from plmjax.tokenizers import Tokenizer
from plmjax.train.optimizer import make_optimizer
from plmjax.train.step import init_state
from plmjax.workdir import (
    RunConfig,
    Workdir,
    encoder_config,
    make_objective,
)

# Folders in an export of several models, the most useful one first.
PARTS = ("discriminator", "generator")
# {head: (error text for a model without it, objective that trains it)}.
_WITHOUT = {
    "head": ("vocabulary head, so it cannot guess words", "mlm"),
    "pair": ("sentence-pair head, so it cannot judge two sentences", "mlm"),
    "detector": ("detector head, so it cannot tell replaced words", "electra"),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """An encoder with its heads, and all that is needed to use them.

    `part` is its name among the models of its run; `step` is None for a folder; `task`
    is that of a fine-tuned model.
    """

    encoder: EncoderConfig
    params: dict
    tokenizer: Tokenizer
    name: str
    part: str = "model"
    step: int | None = None
    task: Task | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint of a run, with the parameters of all its models."""

    config: RunConfig
    objective: Objective
    params: dict
    tokenizer: Tokenizer
    name: str
    step: int

    def models(self) -> dict[str, Model]:
        """Returns the models that the objective trains, by part."""
        return {
            name: Model(
                encoder=part.encoder,
                params=part.extract(self.params),
                tokenizer=self.tokenizer,
                name=self.name,
                part=name,
                step=self.step,
            )
            for name, part in self.objective.models.items()
        }


def open_model(path: str, checkpoint: str = "newest", head: str = "head") -> Model:
    """Opens the first model of a workdir or folder that has the head `head`.

    Raises:
      PlmjaxError: as `open_models`, or no model has the head.
    """
    return require_head(open_models(path, checkpoint), path, head)


def require_head(models: dict[str, Model], path: str, head: str) -> Model:
    """Returns the model with a head, as `with_head`; PlmjaxError if there is none."""
    if (model := with_head(models, head)) is not None:
        return model
    what, objective = _WITHOUT[head]
    hint = f"Give a model trained with objective.kind={objective}"
    hint += " and objective.pairs." if head == "pair" else "."
    raise PlmjaxError(f"{path} has no {what}.", hint=hint, code=Exit.MODEL)


def with_head(models: dict[str, Model], head: str) -> Model | None:
    """Returns the model with a head; the generator if several have it.

    A discriminator may have a vocabulary head, too, but was never trained on masks.
    """
    having = {name: model for name, model in models.items() if head in model.params}
    return having.get("generator") or next(iter(having.values()), None)


def open_models(path: str, checkpoint: str = "newest") -> dict[str, Model]:
    """Opens all models of a workdir (best, newest or numbered checkpoint) or folder.

    Raises:
      PlmjaxError: `path` is neither of the two, or has no good checkpoint.
    """
    directory = Path(path)
    check_is_folder(directory, path, f"the model {path}")
    if is_finetuned(directory):
        model = _from_folder(finished(directory), "model")
        return {"model": dataclasses.replace(model, name=directory.resolve().name)}
    if is_run(directory) and Workdir(directory).own_objective is not None:
        directory = finished(directory)
    folders = model_folders(directory)
    if not folders and not (directory / "config.json").exists():
        raise PlmjaxError(
            f"{path} holds no run and no model: it has no config.json.",
            hint="Give a run's workdir or a Hugging Face folder.",
        )
    if not folders:
        return open_run(Workdir(directory), checkpoint).models()
    if checkpoint != "newest":
        raise PlmjaxError(
            f"{path} is a Hugging Face folder, without --checkpoint={checkpoint}.",
            hint="Give the run's workdir, or leave --checkpoint out.",
        )
    return {part: _from_folder(folder, part) for part, folder in folders.items()}


def longest_row(path: str, model: Model) -> int:
    """Returns the longest row that a model of a workdir or folder was trained on.

    Of a folder it is its model_max_length; later positions were never trained.
    """
    directory, longest = Path(path), model.encoder.max_length
    if is_finetuned(directory):
        directory = finished(directory)
    if is_run(directory):
        limit = Workdir(directory).config().data.longest
    else:
        folder = model_folders(directory)[model.part]
        try:
            settings = json.loads((folder / "tokenizer_config.json").read_text())
            limit = int(settings["model_max_length"])
        except (OSError, ValueError, KeyError, TypeError):
            limit = longest
    return min(limit, longest) if limit >= 8 else longest


def model_folders(directory: Path) -> dict[str, Path]:
    """Returns {part: Hugging Face folder} of the directory or its subfolders.

    Returns {} for a run's workdir, even if models were exported into it.
    """
    if is_run(directory):
        return {}
    if (directory / "model.safetensors").exists() or is_folder(directory):
        return {"model": directory}
    return {part: directory / part for part in PARTS if is_folder(directory / part)}


def is_run(directory: Path) -> bool:
    """Returns True if a directory is a run's workdir, by the blocks of its config."""
    keys = _config_keys(directory)
    return "objective" in keys and "model_type" not in keys


def is_finetuned(directory: Path) -> bool:
    """Returns True if a directory is the workdir of a fine-tuning."""
    return is_run(directory) and "task" in _config_keys(directory)


def finished(workdir: Path) -> Path:
    """Returns the folder with the model of a fine-tuning, or of plmjax.fit.

    Raises:
      PlmjaxError: the training is not finished.
    """
    folder = workdir / "export"
    if not model_folders(folder):
        raise PlmjaxError(
            f"the training in {workdir} is not finished: it has no export.",
            hint=RESUME,
            code=Exit.MODEL,
        )
    return folder


def is_folder(directory: Path) -> bool:
    """Returns True if a directory is a Hugging Face folder: its config names a type."""
    return "model_type" in _config_keys(directory)


def _config_keys(directory: Path) -> set[str]:
    """Returns the keys of a directory's config.json; none if it cannot be read."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return set()
    return set(config) if isinstance(config, dict) else set()


def _from_folder(directory: Path, part: str) -> Model:
    imported = read_folder(directory)
    for line in imported.tokenizer.notes:  # not to stdout, which holds results
        print(line, file=sys.stderr, flush=True)
    return Model(
        imported.config,
        imported.params,
        imported.tokenizer,
        directory.name,
        part,
        task=imported.task,
    )


def open_run(workdir: Workdir, checkpoint: str = "newest") -> Trained:
    """Opens a checkpoint of a run.

    Raises:
      PlmjaxError: no run, or no good checkpoint.
    """
    config = workdir.config()
    if (name := workdir.own_objective) is not None:
        raise PlmjaxError(
            f"{workdir.path} was trained by plmjax.fit with {name}.",
            hint=f"Use its export, {workdir / 'export'}.",
        )
    tokenizer = workdir.tokenizer()
    checkpoints = Checkpoints(workdir.checkpoints)
    step = checkpoints.good_step(_wanted_step(checkpoints, checkpoint))
    if step is None:
        raise PlmjaxError(
            f"{workdir.path} has no checkpoint yet.",
            hint="Let `plmjax pretrain` reach train.checkpoint_every_steps.",
            code=Exit.MODEL,
        )
    encoder = encoder_config(config, tokenizer, step)
    platform = Platform.of(jax.devices())
    teacher = workdir.teacher()
    objective = make_objective(config, encoder, tokenizer, teacher, platform)
    # On the host: the callers decide on which devices they are needed.
    params = jax.device_get(load_params(config, objective, checkpoints, step))
    name = config.name or workdir.path.resolve().name
    return Trained(
        config=config,
        objective=objective,
        params=params,
        tokenizer=tokenizer,
        name=name,
        step=step,
    )


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


def some_shapes() -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch, to find those of parameters."""
    ids = jax.ShapeDtypeStruct((1, 8), "int32")
    return {name: ids for name in ("tokens", "segments", "positions", "types")}


def load_params(
    config: RunConfig, objective: Objective, checkpoints: Checkpoints, step: int
) -> dict:
    """Returns a checkpoint's weights (their average if kept), without the optimizer."""
    optimizer = make_optimizer(config.train.optimizer)
    averages = config.train.averages
    state = jax.eval_shape(
        lambda batch: init_state(objective, optimizer, 0, batch, averages),
        some_shapes(),
    )
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state
    )
    field = "average" if averages else "params"
    return getattr(checkpoints.load(step, abstract, only=field), field)
