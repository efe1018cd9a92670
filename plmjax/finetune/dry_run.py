"""Describes a fine-tuning without running it: data, sizes, memory, the step."""

from pathlib import Path

import jax
from jax.sharding import Mesh
from rich.table import Table

from plmjax.console import as_table
from plmjax.finetune.build import FinetuneSetup, build
from plmjax.finetune.cached import with_states
from plmjax.finetune.config import FinetuneConfig
from plmjax.finetune.run import Log, on_devices, training_of
from plmjax.finetune.teacher import with_teacher
from plmjax.report.cost import NOTHING
from plmjax.report.dry_run import (
    SIZES,
    Block,
    devices_text,
    example_as_seen,
    show_training,
    total,
)
from plmjax.tasks import KINDS
from plmjax.train import sharding
from plmjax.workdir import Workdir


def dry_run(config: FinetuneConfig, path: Path, compiles: bool, log: Log) -> None:
    """Builds everything of a fine-tuning and prints a description of it.

    The run itself reuses the compiled step; nothing else is left in `path`.

    Raises:
      PlmjaxError: an error that the user can fix; `path` holds another fine-tuning.
    """
    mesh = sharding.make_mesh(config.mesh)
    workdir = Workdir(path, FinetuneConfig)
    workdir.check_same_config(config)
    with jax.set_mesh(mesh):
        setup = build(config, mesh, log)
        setup = with_teacher(setup, log, reads=False)
        setup = with_states(setup, log, reads=False)
        workdir.check_length(setup.steps)
        if compiles:
            setup = on_devices(setup)
        show_training(
            training_of(setup, workdir, lambda *_: None),
            lambda blocks: _task_table(setup, mesh, blocks),
            lambda batch: _first_row(setup, batch),
            compiles,
            epoch=setup.batches.steps,
            asked=NOTHING,
        )


def _first_row(setup: FinetuneSetup, batch: dict) -> str:
    row = setup.batches.rows(0)[1][0]
    example = setup.batches.features.example[row]
    # Without a head the label is the best rank, the same for all.
    label = None if setup.task.head is None else setup.data.train[example].label
    return example_as_seen(setup.model.tokenizer, batch, label)


def _task_table(setup: FinetuneSetup, mesh: Mesh, blocks: list[Block]) -> Table:
    train, features = setup.config.train, setup.batches.features
    lengths = " or ".join(map(str, setup.batches.lengths))
    real = int((features.arrays["segments"] > 0).sum())
    slots = features.arrays["segments"].size
    labels = [example.label for example in setup.data.train]
    rows = {
        "steps": f"{setup.steps:,}",
        "rows a step": f"{setup.batches.size:,} x {lengths} tokens"
        + (f" in {train.accumulation} parts" if train.accumulation > 1 else ""),
        "steps an epoch": f"{setup.batches.steps:,}",
        "tokens of train": f"{real:,} without padding ({real / slots:.1%} of "
        f"{features.length})",
        "labels of train": KINDS[setup.task.kind].describe_labels(labels),
        "kept is the best by": f"{setup.metric.replace('_', ' ')} on the held-out part",
        "devices": devices_text(mesh) + (", zero1" if setup.config.mesh.zero1 else ""),
        "memory a device": ", ".join(
            f"{name} {total(blocks, name) / 1e6:,.0f}" for name in SIZES
        )
        + " MB, and activations",
    }
    return as_table("Fine-tuning", (), rows.items())
