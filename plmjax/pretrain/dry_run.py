"""What a run would be, without training: sizes, shardings, memory, what is sent."""

import dataclasses
import functools
import itertools
import math
import re
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from plmjax import config as config_lib
from plmjax import show, tree
from plmjax.console import console
from plmjax.models.task_heads import TASK_HEADS
from plmjax.pretrain.build import Run, check, make_run
from plmjax.pretrain.start import abstract_state, frozen_arrays, step_of
from plmjax.train import collectives, sharding
from plmjax.train.step import State
from plmjax.workdir import RunConfig, Workdir


def dry_run(config: ConfigDict, path: Path, compiles: bool = True) -> None:
    """Builds everything but the parameters and prints what a run would be.

    The tokenizer and the token store it makes in `path` serve the run itself later, and
    so does the step that it compiles, if asked to.
    """
    out = console()
    workdir = Workdir(path)
    values = config.to_dict()
    built = config_lib.build(RunConfig, values)
    mesh = sharding.make_mesh(built.mesh)
    check(built, mesh)
    workdir.create()
    with workdir.locked(), jax.set_mesh(mesh):
        workdir.agree(values)
        say = functools.partial(out.print, markup=False, soft_wrap=True)
        run = make_run(built, workdir, mesh, say)
        state = abstract_state(run)
        blocks = blocks_of(mesh, state, built.mesh.zero1)
        out.print(block_table(blocks))
        out.print(sharding_table(blocks))
        out.print(_plan_table(run, blocks))
        seen = show.row_as_seen(run.objective, run.tokenizer, run.loader.batch(0))
        say("\nThe first row, as the model sees it:")
        out.print(seen, markup=False)
        if compiles:
            say("\nCompiling the step; Ctrl-C if you have seen enough.")
            begin = time.monotonic()
            compiled = compile_step(run, state)
            print_compiled(out, compiled, mesh, time.monotonic() - begin)
        say("\nDry run: nothing was trained.")


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of the model: its name, and bytes of one device.

    `arrays` are (names, shape, sharding) of its parameters, those that are alike
    together. Gradients are those that a device computes, before they are summed;
    `optimizer` holds moments and average.
    """

    name: str
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    arrays: tuple[tuple[str, str, str], ...]


def blocks_of(mesh: Mesh, state: State, zero1: bool) -> list[Block]:
    """Returns the blocks of a model in their order; layers that are alike are one."""
    places = tree.flatten(sharding.shardings(mesh, state.params))
    params = tree.flatten(state.params)
    held = _bytes_by_name(mesh, state, zero1)
    names: dict[str, list[str]] = {}
    for name in params:
        names.setdefault(_block_name(name), []).append(name)
    whole_gradients = sharding.is_row_parallel(mesh)
    found = []
    for block, members in names.items():
        leaves = {name: params[name] for name in members}
        weights = sum(_bytes(params[n], places[n]) for n in members)
        found.append(
            Block(
                block,
                tree.count(leaves),
                weights,
                tree.size_in_bytes(leaves) if whole_gradients else weights,
                sum(held.get(name, 0) for name in members),
                _arrays(block, leaves, places),
            )
        )
    return _folded(found)


def _bytes(leaf, place) -> int:
    return math.prod(place.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize


def _bytes_by_name(mesh: Mesh, state: State, zero1: bool) -> dict[str, int]:
    """Returns the bytes of moments and average that follow each parameter."""
    sums: dict[str, int] = {}

    def add(name, leaf, place):
        if match := re.fullmatch(r"moments/.*?/[mn]u/(.+)|average/(.+)", name):
            parameter = match[1] or match[2]
            sums[parameter] = sums.get(parameter, 0) + _bytes(leaf, place)

    tree.map_named(add, state, sharding.shardings(mesh, state, zero1))
    return sums


def _block_name(name: str) -> str:
    """Returns "encoder/layer_0" of "encoder/layer_0/ffn/up/kernel"."""
    heads = ("head", "pair", "detector", *TASK_HEADS)
    found = re.match(rf"(.*?\bencoder/[^/]+|.*?\b(?:{'|'.join(heads)}))\b", name)
    return found[1] if found else name


def _arrays(block: str, leaves: dict, places: dict) -> tuple[tuple[str, str, str], ...]:
    """Returns rows such as ("ffn/up/kernel", "768x3072", "fsdp x tensor")."""
    alike: dict[tuple[str, str], list[str]] = {}
    vectors: dict[str, int] = {}
    for name, leaf in leaves.items():
        where = _where(places[name].spec, len(leaf.shape))
        if len(leaf.shape) > 1:
            size = "x".join(map(str, leaf.shape))
            own = name.removeprefix(f"{block}/")
            alike.setdefault((size, where), []).append(own)
        else:
            vectors[where] = vectors.get(where, 0) + 1
    return (
        *((_joined(names), size, where) for (size, where), names in alike.items()),
        *(
            (f"{n} biases and scales" if n > 1 else "a bias", "", where)
            for where, n in vectors.items()
        ),
    )


def _joined(names: list[str]) -> str:
    """Returns "attention/{query,key}/kernel" of names that differ in one part."""
    parts = [name.split("/") for name in names]
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=False)]
    if len(names) == 1 or len({len(p) for p in parts}) > 1 or sum(differ) > 1:
        return ", ".join(names)
    return "/".join(
        f"{{{','.join(column)}}}" if many else column[0]
        for column, many in zip(zip(*parts, strict=True), differ, strict=True)
    )


_WHOLE = "whole"


def _where(spec, dimensions: int) -> str:
    axes = [*spec, *[None] * (dimensions - len(spec))]
    if not any(axes):
        return _WHOLE
    return " x ".join(axis or "-" for axis in axes)


def _folded(blocks: list[Block]) -> list[Block]:
    """Joins layers that follow one another and are alike."""

    def key(block: Block):
        alike = dataclasses.replace(block, name="")
        return re.sub(r"layer_\d+$", "layer", block.name), alike

    found = []
    for _, group in itertools.groupby(blocks, key):
        first, *rest = group
        count, name = 1 + len(rest), first.name
        found.append(
            dataclasses.replace(
                first,
                name=f"{name} .. {rest[-1].name.rpartition('_')[2]}" if rest else name,
                parameters=first.parameters * count,
                weights=first.weights * count,
                gradients=first.gradients * count,
                optimizer=first.optimizer * count,
            )
        )
    return found


def _mb(size: float) -> str:
    """Returns bytes as MB, a tiny model's with more digits."""
    return f"{size / 1e6:,.1f}" if size >= 1e6 else f"{size / 1e6:.3f}"


SIZES = ("weights", "gradients", "optimizer")


def block_table(blocks: list[Block]) -> Table:
    """Returns each block's parameters, and bytes of a device."""
    table = Table(
        title="Parameters, and MB a device (optimizer: moments and average)",
        title_style="",
    )
    table.add_column("block")
    for name in ("parameters", *SIZES):
        table.add_column(name, justify="right", no_wrap=True)
    for block in blocks:
        sizes = (_mb(getattr(block, name)) for name in SIZES)
        table.add_row(block.name, f"{block.parameters:,}", *sizes)
    table.add_section()
    parameters = f"{total(blocks, 'parameters'):,}"
    table.add_row("all", parameters, *(_mb(total(blocks, name)) for name in SIZES))
    return table


def sharding_table(blocks: list[Block]) -> Table | str:
    """Returns which axis of the mesh divides which axis of each parameter."""
    if all(where == _WHOLE for block in blocks for *_, where in block.arrays):
        return "Every device holds all weights whole.\n"
    table = Table(
        title="Sharding: the mesh axes that divide each axis of a weight (-: none)",
        title_style="",
    )
    table.add_column("block", no_wrap=True)
    table.add_column("weights", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("divided over", no_wrap=True)
    for block in blocks:
        for i, array in enumerate(block.arrays):
            table.add_row("" if i else block.name, *array)
        table.add_section()
    return table


def total(blocks: list[Block], name: str) -> int:
    return sum(getattr(block, name) for block in blocks)


def _plan_table(run: Run, blocks: list[Block]) -> Table:
    train = run.config.train
    phase = run.loader.phases[0]
    length, shards = phase.plan.length, run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    rows = phase.batch // train.accumulation // shards
    slots = run.objective.slots(length)
    sizes = {name: total(blocks, name) for name in SIZES}
    if run.mesh.shape["fsdp"] > 1 and sharding.is_row_parallel(run.mesh):
        sizes["weights put together"] = 4 * total(blocks, "parameters")
    sizes["activations"] = sum(
        show.activation_bytes(part.encoder, rows, length, slots)
        for part in run.objective.parts.values()
    )
    flops = sum(run.phase_flops(phase) * phase.steps for phase in run.loader.phases)
    table = Table(title="Training", title_style="", show_header=False)
    for name, value in {
        "steps": f"{run.steps:,}",
        "rows a step": f"{phase.batch:,} x {length} tokens"
        + (f" in {train.accumulation} parts" if train.accumulation > 1 else ""),
        "tokens a step": f"{phase.batch * length * phase.plan.fill:,.0f} without "
        f"padding ({phase.plan.fill:.1%} full)",
        "steps an epoch": f"{math.ceil(phase.plan.rows / phase.batch):,}",
        "predicted a row": f"at most {slots} of {length}",
        "FLOPs in all": f"{flops:.2e}",
        "devices": devices_text(run.mesh)
        + (", zero1" if run.config.mesh.zero1 else ""),
        "memory a device": f"about {sum(sizes.values()) / 1e6:,.0f} MB: "
        + ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in sizes.items())
        + " (estimated)",
    }.items():
        table.add_row(name, value)
    return table


def devices_text(mesh: Mesh) -> str:
    axes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in sharding.AXES)
    return f"{mesh.size} x {jax.devices()[0].device_kind}, mesh {axes}"


def compile_step(run: Run, state: State) -> jax.stages.Compiled:
    """Returns the compiled step of a run's first phase.

    `state` holds shapes and shardings; no parameter is made.
    """
    shapes = batch_shapes(run.mesh, run.loader.phases[0].batch, run.loader.batch(0))
    step = step_of(run, run.steps)
    return step.lower(state, frozen_arrays(run), shapes).compile()


def batch_shapes(mesh: Mesh, batch: int, arrays: dict) -> dict:
    """Returns the shapes and shardings of a global batch."""
    rows = sharding.rows(mesh)
    return {
        name: jax.ShapeDtypeStruct(
            (batch, *array.shape[1:]), array.dtype, sharding=rows
        )
        for name, array in arrays.items()
    }


def print_compiled(
    out: Console, compiled: jax.stages.Compiled, mesh: Mesh, seconds: float
) -> None:
    """Prints memory and collectives of a step that took `seconds` to compile."""
    kind = jax.devices()[0].device_kind
    out.print(f"The step as compiled for {kind} in {seconds:.1f} s:", markup=False)
    memory = compiled.memory_analysis()
    if memory is not None:
        # What is written over the state it came from needs no place of its own.
        beside = memory.output_size_in_bytes - memory.alias_size_in_bytes
        sizes = {
            "state and batch": memory.argument_size_in_bytes,
            "temporaries (gradients, activations)": memory.temp_size_in_bytes,
            "results": beside,
        }
        told = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in sizes.items())
        total = sum(sizes.values())
        out.print(f"  {total / 1e6:,.0f} MB a device: {told}.", markup=False)
    if mesh.size == 1:
        return
    found = collectives.collectives(compiled.as_text() or "")
    out.print(collectives_table(found, mesh))
    if unknown := sum(not one.known for one in found):
        out.print(
            f"{unknown} of these run in loops whose turns the compiler does not tell; "
            "they are counted once.",
            markup=False,
        )


def collectives_table(found: list[collectives.Collective], mesh: Mesh) -> Table:
    """Returns what a device sends in a step, by axes of the mesh and operation."""
    table = Table(
        title="What a device sends in a step, on a ring",
        title_style="",
    )
    table.add_column("along")
    table.add_column("operation")
    for name in ("times", "MB"):
        table.add_column(name, justify="right")
    sums = collectives.sent_by_axis(found, mesh.shape)
    for axes, kinds in sorted(sums.items()):
        devices = math.prod(mesh.shape[axis] for axis in axes.split(" x "))
        for kind, (times, sent) in sorted(kinds.items()):
            table.add_row(f"{axes} ({devices})", kind, f"{times:,}", _mb(sent))
    table.add_section()
    table.add_row(
        "all",
        "",
        f"{sum(one.times for one in found):,}",
        _mb(collectives.sent(found)),
    )
    return table
