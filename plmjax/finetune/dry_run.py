"""Describes a fine-tuning without running it: data, sizes, memory, the step."""

import collections
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.table import Table

from plmjax.console import print_line
from plmjax.finetune.build import FinetuneSetup, build
from plmjax.finetune.cached import with_states
from plmjax.finetune.config import FinetuneConfig
from plmjax.finetune.run import on_devices, training_of
from plmjax.report.dry_run import (
    SIZES,
    Block,
    devices_text,
    example_as_seen,
    show_training,
    total,
)
from plmjax.train import sharding
from plmjax.workdir import Workdir

_SHOWN = 8  # labels


def dry_run(config: FinetuneConfig, path: Path, compiles: bool = True) -> None:
    """Builds everything of a fine-tuning and prints a description of it.

    The run itself reuses the compiled step; nothing else is left in `path`.

    Raises:
      PlmjaxError: an error that the user can fix; `path` holds another fine-tuning.
    """
    mesh = sharding.make_mesh(config.mesh)
    workdir = Workdir(path, FinetuneConfig)
    workdir.check_same_config(config)
    with jax.set_mesh(mesh):
        setup = with_states(build(config, mesh, print_line), print_line, reads=False)
        if compiles:
            setup = on_devices(setup)
        show_training(
            training_of(setup, workdir, lambda *_: None),
            lambda blocks: _task_table(setup, mesh, blocks),
            _first_row(setup),
            compiles,
        )


def _first_row(setup: FinetuneSetup) -> str:
    row = setup.batches.rows(0)[1][0]
    example = setup.features["train"].example[row]
    label: Any = setup.data.train[example].label
    # For embeddings the label is a rank, the same for all.
    label = None if setup.task.kind == "embeddings" else label
    return example_as_seen(setup.model.tokenizer, setup.batches.batch(0), label)


def _task_table(setup: FinetuneSetup, mesh: Mesh, blocks: list[Block]) -> Table:
    train, features = setup.config.train, setup.features["train"]
    lengths = " or ".join(map(str, setup.batches.lengths))
    real = int((features.arrays["segments"] > 0).sum())
    slots = features.arrays["segments"].size
    table = Table(title="Fine-tuning", title_style="", show_header=False)
    for name, value in {
        "steps": f"{setup.steps:,}",
        "rows a step": f"{train.batch:,} x {lengths} tokens"
        + (f" in {train.accumulation} parts" if train.accumulation > 1 else ""),
        "steps an epoch": f"{setup.batches.steps:,}",
        "tokens of train": f"{real:,} without padding ({real / slots:.1%} of "
        f"{setup.features['train'].length})",
        "labels of train": _labels(setup),
        "kept is the best by": f"{setup.metric.replace('_', ' ')} on the held-out part",
        "devices": devices_text(mesh) + (", zero1" if setup.config.mesh.zero1 else ""),
        "memory a device": ", ".join(
            f"{name} {total(blocks, name) / 1e6:,.0f}" for name in SIZES
        )
        + " MB, and activations",
    }.items():
        table.add_row(name, value)
    return table


def _labels(setup: FinetuneSetup) -> str:
    """Returns the frequency of each label in train, or the range of the numbers."""
    found = [example.label for example in setup.data.train]
    match setup.task.kind:
        case "regression":
            return f"{min(found):g} to {max(found):g}"
        case "answers":
            without = sum(not label for label in found)
            return f"{len(found) - without:,} answers, {without:,} without one"
        case "embeddings":
            return "none: pairs"
        case "tags" | "multilabel":
            found = [name for labels in found for name in labels]
    counts = collections.Counter(map(str, found)).most_common()
    told = [f"{name} {count / len(found):.1%}" for name, count in counts[:_SHOWN]]
    more = len(counts) - _SHOWN
    return ", ".join([*told, f"and {more} more"] if more > 0 else told)
