"""Describes a pretraining without running it."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.table import Table

from plmjax.console import as_table, ignore_line, print_line
from plmjax.pretrain.build import PretrainSetup, build, check
from plmjax.pretrain.run import training_of
from plmjax.pretrain.start import frozen_shapes
from plmjax.report.cost import NOTHING, Asked
from plmjax.report.dry_run import (
    SIZES,
    Block,
    devices_text,
    row_as_seen,
    show_training,
    total,
)
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.topologies import absent_devices
from plmjax.workdir import RunConfig, Workdir, training_session


def dry_run(
    config: RunConfig,
    path: Path,
    compiles: bool = True,
    topology: str | None = None,
    asked: Asked = NOTHING,
    log: Callable[[str], Any] = print_line,
) -> None:
    """Builds everything but the parameters and prints a description of the run.

    The run itself reuses the tokenizer and the token store in `path`, and the step, if
    it is compiled. With a `topology` the run is one on these devices, which need not be
    there: v5e:4x4. `asked` are devices whose time is estimated, and a price.

    Raises:
      PlmjaxError: an error that the user can fix; `path` holds another run.
    """
    workdir = Workdir(path)
    devices = None if topology is None else absent_devices(topology)
    mesh = sharding.make_mesh(config.mesh, devices)
    check(config, mesh)
    here = mesh
    if devices is not None:  # what the description needs, is computed here
        here = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
    with training_session(workdir, config, here, ignore_line):
        setup = build(config, workdir, mesh, log)
        setup.held_out()
        workdir.check_length(setup.steps)
        show_training(
            training_of(setup, frozen_shapes(setup) if compiles else {}, ignore_line),
            lambda blocks: _plan_table(setup, blocks),
            functools.partial(row_as_seen, setup.objective, setup.tokenizer),
            compiles,
            epoch=setup.loader.phases[0].plan.rows / setup.loader.phases[0].batch,
            asked=asked,
        )


def _plan_table(setup: PretrainSetup, blocks: list[Block]) -> Table:
    train = setup.config.train
    phase = setup.loader.phases[0]
    length, slots = phase.plan.length, setup.objective.slots(phase.plan.length)
    sizes = {name: total(blocks, name) for name in SIZES}
    if setup.mesh.shape["fsdp"] > 1 and sharding.is_row_parallel(setup.mesh):
        sizes["gathered weights"] = 4 * total(blocks, "parameters")
    phases = setup.loader.phases
    sizes["activations"] = max(map(setup.activation_bytes, phases))
    flops = sum(setup.phase_flops(phase) * phase.steps for phase in phases)
    later = [f"{p.steps:,} of {p.batch:,} x {p.plan.length}" for p in phases[1:]]
    rows = {
        "steps": f"{setup.steps:,}",
        "rows a step": f"{phase.batch:,} x {length} tokens"
        + (f" in {train.accumulation} micro-batches" if train.accumulation > 1 else ""),
        **({"steps after these": ", ".join(later)} if later else {}),
        "tokens a step": f"{phase.batch * length * phase.plan.fill:,.0f} without "
        f"padding ({phase.plan.fill:.1%} full)",
        "steps an epoch": f"{math.ceil(phase.plan.rows / phase.batch):,}",
        "predicted a row": f"at most {slots} of {length}",
        "FLOPs in all": f"{flops:.2e}",
        "devices": devices_text(setup.mesh)
        + (", zero1" if setup.config.mesh.zero1 else ""),
        "memory a device": f"about {sum(sizes.values()) / 1e6:,.0f} MB: "
        + ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in sizes.items())
        + " (estimated)",
    }
    return as_table("Training", (), rows.items())
