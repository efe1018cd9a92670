"""What a training step reads and writes, as compiled for a device that is not there.

    python benchmarks/bytes.py --preset=bert-base --rows=256 --length=128 \\
        --topology=h100
"""

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from plmjax import PlmjaxError, machine
from plmjax.cli import run_program
from plmjax.cli.options import at_least_one, json_option, log, print_result
from plmjax.cli.parser import program_parser


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        _run,
        "compile a training step for one device or more, and print what it reads and "
        "writes, by what moves most",
        "python benchmarks/bytes.py --preset=bert-base --rows=256 --topology=h100",
    )
    add = parser.add_argument
    add("--preset", default="bert-base", help="model; its family sets the objective")
    add("--topology", default="h100", help="h100, h200:8, v5e:2x2, ...; data-parallel")
    add("--rows", type=int, default=256, help="rows a step, on all devices")
    add("--length", type=int, default=128, help="tokens a row")
    add("--layers", type=int, help="layers of the model (default: the preset's)")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    add("--attention", choices=("xla", "pallas"), default="xla", help="by what")
    add("--top", type=int, default=24, help="lines of the table")
    add("--hlo", metavar="FILE", help="write the compiled program there")
    json_option(parser)
    return parser


def _run(args) -> int:
    at_least_one(args, "rows", "length", "layers", "top")
    return print_result(args, bench_bytes(args), as_text)


def bench_bytes(args) -> dict[str, Any]:
    """Compiles the step and returns its bytes on a device, ready for JSON.

    Raises:
      PlmjaxError: an error that the user can fix.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # a device here may be in use
    from compiled import compile_step, objective_of, shapes
    from plmjax.models import PRESETS
    from plmjax.models.platform import training_platform
    from plmjax.train import hlo, sharding, topologies
    from plmjax.train.config import MeshConfig
    from plmjax.train.metrics import peak_flops

    if args.preset not in PRESETS:
        raise PlmjaxError(
            f"--preset={args.preset} is not known.",
            hint=f"Known: {', '.join(PRESETS)}.",
        )
    encoder = dataclasses.replace(PRESETS[args.preset], dtype=args.dtype)
    if args.layers:
        encoder = dataclasses.replace(encoder, layers=args.layers)
    if args.length > encoder.max_length:
        raise PlmjaxError(
            f"--length={args.length} is longer than the {encoder.max_length} positions "
            f"of {args.preset}."
        )
    devices = topologies.absent_devices(args.topology)
    mesh = sharding.make_mesh(MeshConfig(), devices)
    sharding.check_batch(mesh, args.rows, 1, "--rows")
    platform = training_platform(devices, args.attention, [encoder], log)
    objective = objective_of(encoder, platform)
    begin = time.monotonic()
    compiled = compile_step(objective, mesh, shapes(args.rows, args.length))
    seconds, text = time.monotonic() - begin, compiled.as_text() or ""
    if args.hlo:
        with open(args.hlo, "w") as file:
            file.write(text)
    moved, memory = hlo.movements(text), compiled.memory_analysis()
    chip, peak = topologies.absent_chip(mesh), peak_flops(devices[0])
    assert memory is not None and chip is not None and peak is not None
    total = sum(one.total for one in moved)
    flops = objective.flops(args.length) * args.rows / len(devices)
    counted = compiled.cost_analysis() or {}
    return {
        "machine": machine.facts(),
        "device": f"{len(devices)} x {chip.kind}",
        "config": {
            name: getattr(args, name)
            for name in "preset topology rows length dtype attention top".split()
        }
        | {"layers": encoder.layers},
        "compile_s": seconds,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "memory": chip.memory,
        "bytes": total,
        # On TPUs the compiler's own count, in which on-chip memory is as good as any.
        "bytes_with_on_chip_memory": counted.get("bytes accessed"),
        "flops": flops,
        "least_seconds": {"memory": total / chip.bandwidth, "products": flops / peak},
        "operations": len(moved),
        "small_operations": sum(one.bytes < 1e6 for one in moved),
        "groups": by_group(moved),
    }


def by_group(moved: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns {bytes, operations, shape, what} of like movements, the largest first.

    Those are alike that come from one place of the model, in any of its layers, in the
    same pass; products are apart. The shape is that of the largest one.
    """
    from plmjax.train import hlo

    groups: dict[str, dict[str, Any]] = {}
    for one in sorted(moved, key=lambda one: -one.bytes):
        shape = re.sub(r"\{[^}]*\}|/\*.*?\*/", "", one.shape)
        group = groups.setdefault(
            hlo.place(one.source), {"bytes": 0, "operations": 0, "shape": shape}
        )
        group["bytes"] += one.total
        group["operations"] += one.times
    found = [{"what": what, **group} for what, group in groups.items()]
    return sorted(found, key=lambda group: -group["bytes"])


def as_text(result: dict[str, Any]) -> str:
    """Returns the result as readable lines, with a table in Markdown."""
    config, least = result["config"], result["least_seconds"]
    counted = result["bytes_with_on_chip_memory"]
    lines = [
        machine.as_text(result["machine"]),
        f"{config['preset']}, {config['layers']} layers, {config['rows']} rows x "
        f"{config['length']} tokens, {config['dtype']}, for {result['device']}: "
        f"compiled in {result['compile_s']:,.0f} s",
        f"A device holds {result['arguments'] / 1e9:,.2f} GB of state and batch, "
        f"{result['temporaries'] / 1e9:,.2f} GB of temporaries, of "
        f"{result['memory'] / 1e9:,.1f} GB",
        f"It moves {result['bytes'] / 1e9:,.1f} GB in {result['operations']:,} "
        f"operations ({result['small_operations']:,} under 1 MB)"
        + (f"; {counted / 1e9:,.1f} GB with on-chip memory" if counted else ""),
        f"Lower bounds, calculated: memory {1e3 * least['memory']:,.1f} ms, products "
        f"{1e3 * least['products']:,.1f} ms ({result['flops'] / 1e12:,.2f} TFLOPs)",
        "",
        "| GB | share | operations | largest | what |",
        "|---|---|---|---|---|",
    ]
    for group in result["groups"][: config["top"]]:
        lines.append(
            f"| {group['bytes'] / 1e9:,.2f} | {group['bytes'] / result['bytes']:.1%} "
            f"| {group['operations']:,} | {group['shape'][:44]} | {group['what']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_program(make_parser(), __file__))
