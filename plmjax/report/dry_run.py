"""Describes a training without running it: sizes, shardings, memory, communication."""

import dataclasses
import functools
import itertools
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.table import Table

from plmjax import tree
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.console import as_table, console, print_line
from plmjax.evaluate.examples import masked
from plmjax.models import EncoderConfig
from plmjax.models.flops import (
    activation_bytes,
    attention_bytes,
    attention_flops,
    encoder_flops,
)
from plmjax.models.task_heads import TASK_HEADS
from plmjax.objectives import Objective
from plmjax.report.cost import Asked, cost_table, disk_line, time_steps, work_table
from plmjax.tokenizers import Tokenizer
from plmjax.train import collectives, hlo, sharding
from plmjax.train.job import Training, shapes_of, step_for
from plmjax.train.memory import (
    check_activations,
    check_state,
    device_memory,
    step_error,
    too_large,
)
from plmjax.train.metrics import peak_flops
from plmjax.train.step import State, lower
from plmjax.train.topologies import absent_chip


@dataclasses.dataclass(frozen=True)
class Block:
    """A part of the model: its name, and its bytes on one device.

    `arrays` are (names, shape, sharding) of its parameters, grouped by shape and
    sharding. Gradients are those that a device computes, before they are summed;
    `optimizer` holds moments and average.
    """

    name: str
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    arrays: tuple[tuple[str, str, str], ...]


def blocks_of(mesh: Mesh, state: State, zero1: bool) -> list[Block]:
    """Returns the blocks of a model in order; equal neighbouring layers are one."""
    shardings = tree.flatten(sharding.shardings(mesh, state.params))
    params = tree.flatten(state.params)
    held = _bytes_by_name(mesh, state, zero1)
    names: dict[str, list[str]] = {}
    for name in params:
        names.setdefault(_block_name(name), []).append(name)
    full_gradients = sharding.is_row_parallel(mesh)
    blocks = []
    for block, members in names.items():
        leaves = {name: params[name] for name in members}
        weights = sum(_bytes(params[n], shardings[n]) for n in members)
        blocks.append(
            Block(
                name=block,
                parameters=tree.count(leaves),
                weights=weights,
                gradients=tree.size_in_bytes(leaves) if full_gradients else weights,
                optimizer=sum(held.get(name, 0) for name in members),
                arrays=_arrays(block, leaves, shardings),
            )
        )
    return _folded(blocks)


def _bytes(leaf, leaf_sharding) -> int:
    shape = leaf_sharding.shard_shape(leaf.shape)
    return math.prod(shape) * np.dtype(leaf.dtype).itemsize


def _bytes_by_name(mesh: Mesh, state: State, zero1: bool) -> dict[str, int]:
    """Returns the bytes of optimizer moments and average for each parameter."""
    sums: dict[str, int] = {}

    def add(name, leaf, leaf_sharding):
        if match := re.fullmatch(r"moments/.*?/[mn]u/(.+)|average/(.+)", name):
            parameter = match[1] or match[2]
            sums[parameter] = sums.get(parameter, 0) + _bytes(leaf, leaf_sharding)

    tree.map_named(add, state, sharding.shardings(mesh, state, zero1))
    return sums


def _block_name(name: str) -> str:
    """Returns "encoder/layer_0" of "encoder/layer_0/ffn/up/kernel"."""
    heads = ("head", "pair", "detector", *TASK_HEADS)
    match = re.match(rf"(.*?\bencoder/[^/]+|.*?\b(?:{'|'.join(heads)}))\b", name)
    return match[1] if match else name


def _arrays(
    block: str, leaves: dict, shardings: dict
) -> tuple[tuple[str, str, str], ...]:
    """Returns rows such as ("ffn/up/kernel", "768x3072", "fsdp x tensor")."""
    alike: dict[tuple[str, str], list[str]] = {}
    vectors: dict[str, int] = {}
    for name, leaf in leaves.items():
        where = _where(shardings[name].spec, len(leaf.shape))
        if len(leaf.shape) > 1:
            size = "x".join(map(str, leaf.shape))
            short = name.removeprefix(f"{block}/")
            alike.setdefault((size, where), []).append(short)
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
    split = [name.split("/") for name in names]
    differ = [len(set(column)) > 1 for column in zip(*split, strict=False)]
    if len(names) == 1 or len({len(words) for words in split}) > 1 or sum(differ) > 1:
        return ", ".join(names)
    return "/".join(
        f"{{{','.join(column)}}}" if many else column[0]
        for column, many in zip(zip(*split, strict=True), differ, strict=True)
    )


_UNDIVIDED = "whole"


def _where(spec, dimensions: int) -> str:
    axes = [*spec, *[None] * (dimensions - len(spec))]
    if not any(axes):
        return _UNDIVIDED
    return " x ".join(axis or "-" for axis in axes)


def _folded(blocks: list[Block]) -> list[Block]:
    """Joins neighbouring layers that are equal."""

    def key(block: Block):
        alike = dataclasses.replace(block, name="")
        return re.sub(r"layer_\d+$", "layer", block.name), alike

    joined = []
    for _, group in itertools.groupby(blocks, key):
        first, *more = group
        count, name = 1 + len(more), first.name
        joined.append(
            dataclasses.replace(
                first,
                name=f"{name} .. {more[-1].name.rpartition('_')[2]}" if more else name,
                parameters=first.parameters * count,
                weights=first.weights * count,
                gradients=first.gradients * count,
                optimizer=first.optimizer * count,
            )
        )
    return joined


def _mb(size: float) -> str:
    """Returns bytes as text in MB, with more digits for tiny models."""
    return f"{size / 1e6:,.1f}" if size >= 1e6 else f"{size / 1e6:.3f}"


SIZES = ("weights", "gradients", "optimizer")


def block_table(blocks: list[Block]) -> Table:
    """Returns a table of each block's parameters, and its bytes on a device."""
    names = ("parameters", *SIZES)
    sums = [[block.name, *(getattr(block, n) for n in names)] for block in blocks]
    sums.append(["all", *(total(blocks, n) for n in names)])
    rows = [[name, f"{count:,}", *map(_mb, sizes)] for name, count, *sizes in sums]
    title = "Parameters, and MB a device (optimizer: moments and average)"
    return as_table(title, ["block", *names], rows)


def sharding_table(blocks: list[Block]) -> Table | str:
    """Returns a table of the mesh axes that divide each axis of each parameter."""
    if all(where == _UNDIVIDED for block in blocks for *_, where in block.arrays):
        return "Every device holds all weights.\n"
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
    """Returns the sum of the field `name` over the blocks."""
    return sum(getattr(block, name) for block in blocks)


# Tokens of a row.
_LENGTHS = tuple(2**n for n in range(9, 15))


def attention_table(
    objective: Objective, kind: str, attention: str = "xla", own: int = 512
) -> Table:
    """Returns a table of what attention costs by length, for each kind of layer.

    `kind` is that of the device: cpu, gpu or tpu; `attention` is train.attention. The
    rows of the training have `own` tokens.
    """
    device = {"kind": kind, "attention": attention}
    encoders = [view.encoder for view in objective.models.values()]
    layers: dict[str, list[tuple[EncoderConfig, int]]] = {}
    for encoder in encoders:
        for layer in range(encoder.layers):
            local = encoder.layer_kind(layer) == "local"
            name = "local" if local else encoder.attention
            layers.setdefault(name, []).append((encoder, layer))
    several = ("all layers",) if len(layers) > 1 else ()
    columns = [f"FLOPs, {name}" for name in (*layers, *several)]
    columns, rows = ["tokens", *columns, "MB a row", "of activations"], []
    for length in sorted({own, *_LENGTHS}):
        row = 1, length, 0
        whole = sum(encoder_flops(one, length) for one in encoders)
        activations = sum(activation_bytes(one, *row, **device) for one in encoders)
        kept = sum(
            attention_bytes(one, length, range(one.layers), **device)
            for one in encoders
        )
        shares = [
            sum(attention_flops(one, length, [n]) for one, n in parts) / whole
            for parts in layers.values()
        ]
        if several:
            shares.append(sum(shares))
        figures = [*(f"{share:.1%}" for share in shares), _mb(kept)]
        here = f"{length:,}{' (here)' * (length == own)}"
        rows.append([here, *figures, f"{kept / activations:.1%}"])
    table = as_table("Attention as a share of the encoder", columns, rows)
    table.columns[0].justify = "right"
    if kind == "cpu" or attention != "xla":
        how = "in tiles, as here," if kind == "cpu" else "by kernels"
        table.caption = f"MB: attention weights kept; {how} none are."
    return table


_LEGEND = (
    "\n[MASK=x]: x is hidden; [y=x]: y stands in its place; [=x]: x is shown. All are "
    "predicted."
)


def row_as_seen(objective: Objective, tokenizer: Tokenizer, batch: dict) -> str:
    """Returns the first row of a batch as the model's input, decoded, with its masks.

    A masked word appears as [MASK=word], a replaced one as [other=word], a kept one as
    [=word]. Pairs of sentences come with their labels.
    """
    return masked_row_as_seen(objective, tokenizer, masked(objective, batch))


def masked_row_as_seen(objective: Objective, tokenizer: Tokenizer, batch: dict) -> str:
    """Returns row_as_seen of a batch that `masked` has returned."""
    row = {name: array[0] for name, array in batch.items()}
    chosen = {}
    if not any(part.encoder.causal for part in objective.models.values()):
        chosen = {
            int(position): int(label)
            for position, label, weight in zip(
                row["mask_positions"], row["labels"], row["weights"], strict=True
            )
            if weight > 0
        }
    words = []
    for at in np.flatnonzero(row["segments"] > 0).tolist():
        token = int(row["tokens"][at])
        piece = tokenizer.backend.id_to_token(token)
        if at in chosen:
            truth = tokenizer.backend.id_to_token(chosen[at])
            new = "MASK" if token == tokenizer.mask_id else piece
            piece = f"[{'' if new == truth else new}={truth}]"
        words.append(piece)
    if chosen:
        words.append(_LEGEND)
    if "pair_label" in row:
        meaning = {0: "in order", 1: "not in order"}
        labels = [meaning[n] for n in row["pair_label"].tolist() if n in meaning]
        words.append(f"\nPairs: {', '.join(labels) or 'none'}")
    return " ".join(words)


def example_as_seen(tokenizer: Tokenizer, batch: dict, label: Any) -> str:
    """Returns the first row of a task's batch as the model's input, and its label.

    If a row has several texts, each is on its line.
    """
    tokens, segments = batch["tokens"][0], batch["segments"][0]
    length = tokens.shape[-1]
    lines = [
        " ".join(
            tokenizer.backend.id_to_token(int(token)) or ""
            for token in row[real > 0].tolist()
        )
        for row, real in zip(
            tokens.reshape(-1, length), segments.reshape(-1, length), strict=True
        )
    ]
    shown = [line for line in lines if line]  # a missing choice has no token
    return "\n".join(shown if label is None else [*shown, f"Label: {label}"])


def devices_text(mesh: Mesh) -> str:
    """Returns the number and kind of the devices, and the axes of the mesh."""
    axes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in sharding.AXES)
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}, mesh {axes}"


def show_training(
    training: Training,
    figures: Callable[[list[Block]], Table],
    first_row: Callable[[dict], str],
    compiles: bool,
    epoch: float,
    asked: Asked,
) -> None:
    """Prints the sizes, shardings, `figures`, communication and cost of a training.

    `first_row` makes text of a batch. An epoch has so many steps.
    With `compiles`, it compiles the step, which the training reuses later, and runs it.
    """
    out, mesh, zero1 = console(), training.mesh, training.zero1
    given = training.objective, training.config, mesh, zero1
    check_activations(training)
    batch = training.batch(0, 0)
    state = shapes_of(*given, batch)
    blocks = blocks_of(mesh, state, zero1)
    out.print(block_table(blocks))
    out.print(sharding_table(blocks))
    out.print(figures(blocks))
    kind, attention = mesh.devices.flat[0].platform, training.config.attention
    length = batch["tokens"].shape[-1]
    out.print(attention_table(training.objective, kind, attention, length))
    out.print(work_table(training, state.params, length))
    print_line(disk_line(training, state))
    check_state(training, state, print_line)
    checkpoints = Checkpoints(training.checkpoints)
    if saved := checkpoints.steps():
        training.check_meta(checkpoints.meta(saved[-1]))
    else:
        checkpoints.check_room(state)
    print_line("\nThe first row, as the model sees it:")
    console().print(first_row(batch), markup=False)
    seconds = []
    if compiles:
        print_line("\nCompiling the step; Ctrl-C if you have seen enough.")
        begin = time.monotonic()
        # The shapes are those of one process, which has all rows.
        rows = sharding.rows(mesh)
        shapes = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows)
            for name, array in batch.items()
        }
        step = step_for(*given, training.steps)
        try:
            with jax.set_mesh(mesh):
                compiled = lower(step, state, training.frozen, shapes).compile()
        except jax.errors.JaxRuntimeError as error:  # a TPU's compiler has its memory
            if (full := step_error(training, batch["tokens"].shape, error)) is None:
                raise
            raise full from error
        print_compiled(compiled, mesh, training.flops(0), time.monotonic() - begin)
        if (needed := sum(_sizes(compiled).values())) > device_memory(mesh):
            raise too_large(mesh, "the compiled step", needed, training.less_memory)
        if absent_chip(mesh) is None:
            run = functools.partial(compiled, **step.keywords)
            seconds = time_steps(training, run, state)
    out.print(cost_table(training, epoch, seconds, asked))
    print_line("\nDry run: nothing was trained.")


def print_compiled(
    compiled: jax.stages.Compiled, mesh: Mesh, flops: float, seconds: float
) -> None:
    """Prints memory, bytes and collectives of a step that took `seconds` to compile.

    `flops` are those of the matrix products, on all devices.
    """
    out, device = console(), mesh.devices.flat[0]
    kind, text = device.device_kind, compiled.as_text() or ""
    out.print(f"The step as compiled for {kind} in {seconds:.1f} s:", markup=False)
    if sizes := _sizes(compiled):
        parts = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in sizes.items())
        total, there = sum(sizes.values()), device_memory(mesh)
        out.print(
            f"  {total / 1e6:,.0f} MB a device: {parts}; it has {there / 1e6:,.0f}.\n"
            "  Trust this figure, the compiler's, where it differs from the estimate.",
            markup=False,
        )
    if chip := absent_chip(mesh):
        moved, own, peak = hlo.bytes_moved(text), flops / mesh.size, peak_flops(device)
        assert peak is not None
        out.print(
            f"  {_mb(moved)} MB are read and written a device, for {own:.2e} FLOPs of "
            "matrix products.\n"
            "  Lower bounds, calculated from its data sheet: memory "
            f"{1e3 * moved / chip.bandwidth:,.2f} ms, products "
            f"{1e3 * own / peak:,.2f} ms.",
            markup=False,
        )
    if mesh.size == 1:
        return
    operations = collectives.collectives(text)
    out.print(collectives_table(operations, mesh))
    if unknown := sum(not one.known for one in operations):
        out.print(
            f"{unknown} of these run in loops with an unknown number of turns; they "
            "are counted once.",
            markup=False,
        )


def _sizes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes of a compiled step on a device; {} if they are not known."""
    memory = compiled.memory_analysis()
    if memory is None:
        return {}
    return {
        "state and batch": memory.argument_size_in_bytes,
        "temporaries (gradients, activations)": memory.temp_size_in_bytes,
        # Results that are written over the old state need no further memory.
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }


def collectives_table(operations: list[collectives.Collective], mesh: Mesh) -> Table:
    """Returns a table of a device's traffic in a step, by mesh axes and operation."""
    rows = []
    sums = collectives.sent_by_axis(operations, mesh.shape)
    for axes, kinds in sorted(sums.items()):
        devices = math.prod(mesh.shape[axis] for axis in axes.split(" x "))
        for kind, (times, sent) in sorted(kinds.items()):
            rows.append([f"{axes} ({devices})", kind, f"{times:,}", _mb(sent)])
    times, sent = sum(one.times for one in operations), collectives.sent(operations)
    rows.append(["all", "", f"{times:,}", _mb(sent)])
    columns = ("along", "operation", "times", "MB")
    return as_table("What a device sends in a step, on a ring", columns, rows)
