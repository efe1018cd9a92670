"""What a fine-tuning would be, without training: data, sizes, memory, the step."""

import collections
import functools
import time
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.table import Table

from plmjax import config as config_lib
from plmjax import show
from plmjax.console import console
from plmjax.finetune.build import Parts, make_parts
from plmjax.finetune.cached import with_states
from plmjax.finetune.config import FinetuneConfig
from plmjax.pretrain.dry_run import (
    SIZES,
    Block,
    batch_shapes,
    block_table,
    blocks_of,
    devices_text,
    print_compiled,
    sharding_table,
    total,
)
from plmjax.train import sharding
from plmjax.train.job import shapes_of, step_for
from plmjax.workdir import Workdir

_SHOWN = 8  # labels


def dry_run(config: ConfigDict, path: Path, compiles: bool = True) -> None:
    """Builds everything of a fine-tuning and prints what it would be.

    What it compiles serves the run itself later; nothing else is left in `path`.

    Raises:
      PlmjaxError: whatever the user can mend; `path` holds another fine-tuning.
    """
    out = console()
    say = functools.partial(out.print, markup=False, soft_wrap=True)
    values = config.to_dict()
    built = config_lib.build(FinetuneConfig, values)
    mesh, zero1 = sharding.make_mesh(built.mesh), built.mesh.zero1
    Workdir(path, FinetuneConfig).agree(values)
    with jax.set_mesh(mesh):
        parts = with_states(make_parts(built, mesh, say), say, reads=False)
        first = parts.batches.batch(0)
        state = shapes_of(parts.objective, parts.train, mesh, zero1, first)
        blocks = blocks_of(mesh, state, zero1)
        out.print(block_table(blocks))
        out.print(sharding_table(blocks))
        out.print(_task_table(parts, mesh, blocks))
        row = parts.batches.rows(0)[1][0]
        example = parts.features["train"].example[row]
        label = parts.data.train[example].label
        say("\nThe first row, as the model sees it:")
        # Of embeddings it is a rank, the same for all.
        label = None if parts.task.kind == "embeddings" else label
        say(show.example_as_seen(parts.model.tokenizer, first, label))
        if compiles:
            say("\nCompiling the step; Ctrl-C if you have seen enough.")
            begin = time.monotonic()
            step = step_for(parts.objective, parts.train, mesh, zero1, parts.steps)
            frozen = jax.device_put(
                parts.frozen, sharding.shardings(mesh, parts.frozen)
            )
            shapes = batch_shapes(mesh, built.train.batch, first)
            compiled = step.lower(state, frozen, shapes).compile()
            print_compiled(out, compiled, mesh, time.monotonic() - begin)
        say("\nDry run: nothing was trained.")


def _task_table(parts: Parts, mesh: Mesh, blocks: list[Block]) -> Table:
    train, features = parts.config.train, parts.features["train"]
    lengths = " or ".join(map(str, parts.batches.lengths))
    real = int((features.arrays["segments"] > 0).sum())
    slots = features.arrays["segments"].size
    table = Table(title="Fine-tuning", title_style="", show_header=False)
    for name, value in {
        "steps": f"{parts.steps:,}",
        "rows a step": f"{train.batch:,} x {lengths} tokens"
        + (f" in {train.accumulation} parts" if train.accumulation > 1 else ""),
        "steps an epoch": f"{parts.batches.steps:,}",
        "tokens of train": f"{real:,} without padding ({real / slots:.1%} of "
        f"{parts.features['train'].length})",
        "labels of train": _labels(parts),
        "kept is the best by": f"{parts.metric.replace('_', ' ')} on the held-out part",
        "devices": devices_text(mesh) + (", zero1" if parts.config.mesh.zero1 else ""),
        "memory a device": ", ".join(
            f"{name} {total(blocks, name) / 1e6:,.0f}" for name in SIZES
        )
        + " MB, and activations",
    }.items():
        table.add_row(name, value)
    return table


def _labels(parts: Parts) -> str:
    """Returns how often each label stands in train, or between what numbers."""
    found = [example.label for example in parts.data.train]
    match parts.task.kind:
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
