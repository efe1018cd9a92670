"""Time and memory of a layer, by the kind of its attention and the length of its rows.

    python benchmarks/attention.py --plot=attention.png

Measured is the forward and backward pass of one layer on the CPU. Seconds are the least
of the rounds, in which the kinds take turns: those of the clock, and the processor's,
which depend less on what else runs. Memory is XLA's count of the program's temporary
arrays. The exponent is the slope of the logarithms over all lengths: 1 is linear, 2
quadratic.
"""

import argparse
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import PlmjaxError, machine
from plmjax.cli import run_program
from plmjax.cli.options import (
    at_least_one,
    json_option,
    log,
    numbers,
    print_result,
    start_jax,
)
from plmjax.cli.parser import program_parser

# The options of EncoderConfig of each kind.
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"layer_kinds": ("local",)},
    "window+global": {"layer_kinds": ("local",), "global_tokens": "first"},
    "blocks": {"attention": "blocks"},
    "nystrom": {"attention": "nystrom"},
}
_LAYER = ("width", "window", "dtype", "documents")
LENGTHS = "512,1024,2048,4096,8192,16384"


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        _run,
        "time and memory of a layer by kind of attention and length",
        "python benchmarks/attention.py --plot=attention.png",
    )
    add = parser.add_argument
    add("--kinds", default=",".join(KINDS), help="kinds, separated by commas")
    add("--lengths", default=LENGTHS, help="tokens a row, separated by commas")
    add("--documents", type=int, default=1, help="documents a row (default: 1)")
    add("--window", type=int, default=128, help="tokens of a window (default: 128)")
    add("--width", type=int, default=256, help="width of the layer (default: 256)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--rounds", type=int, default=3, help="how often the kinds take turns")
    add("--plot", type=Path, metavar="FILE", help="draws the figures into a PNG file")
    json_option(parser)
    return parser


def _run(args) -> int:
    at_least_one(args, "rounds", "width", "documents")
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    start_jax()
    result = bench_attention(args)
    if args.plot:
        plot(result, args.plot)
    return print_result(args, result, as_text)


def bench_attention(args) -> dict[str, Any]:
    """Returns the figures of all kinds and lengths, ready for JSON.

    Raises:
      PlmjaxError: a kind is unknown, or there is one length only.
    """
    lengths, kinds = numbers(args.lengths, "lengths"), args.kinds.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise PlmjaxError(
            f"--kinds={args.kinds} has {unknown[0]!r}.",
            hint=f"Known: {', '.join(KINDS)}.",
        )
    if len(set(lengths)) < 2:
        raise PlmjaxError(
            f"--lengths={args.lengths}: an exponent needs two lengths or more."
        )
    before = machine.load_average()
    rows = [row for length in lengths for row in _measure(args, kinds, length)]
    return {
        "machine": machine.facts(),
        "load": [before, machine.load_average()],
        "threads": machine.cores(),
        "layer": {name: getattr(args, name) for name in _LAYER},
        "rows": rows,
        "exponents": _exponents(rows),
    }


def _measure(args, kinds: list[str], length: int) -> list[dict[str, Any]]:
    """Returns seconds and bytes of each kind at a length."""
    import jax

    programs = {name: _program(args, name, length) for name in kinds}
    seconds: dict[str, list] = {name: [] for name in programs}
    for _ in range(args.rounds + 1):
        for name, (program, arrays) in programs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(program(*arrays))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            seconds[name].append((wall, cpu))
    rows = []
    for name, (program, _) in programs.items():
        # The first run also fills caches.
        wall, cpu = np.min(seconds[name][1:], axis=0)
        size = program.memory_analysis().temp_size_in_bytes
        row = {"kind": name, "length": length, "seconds": wall, "cpu_seconds": cpu}
        rows.append(row | {"bytes": size})
        log(f"{name}, {length:,} tokens: {wall:,.3f} s, {size / 1e6:,.0f} MB")
    return rows


def _program(args, name: str, length: int) -> tuple[Any, tuple]:
    """Returns the compiled forward and backward pass of a layer, and its arguments."""
    import jax
    import jax.numpy as jnp

    from plmjax.models import Encoder, EncoderConfig, Platform

    config = EncoderConfig(
        vocab_size=64,
        layers=1,
        width=args.width,
        heads=max(1, args.width // 64),
        ffn_width=4 * args.width,
        max_positions=length,
        window=args.window,
        dtype=args.dtype,
        **KINDS[name],
    )
    encoder = Encoder(config, Platform.of(jax.devices()))
    random = np.random.default_rng(0)
    tokens = random.integers(64, size=(1, length), dtype=np.int32)
    index = np.arange(length, dtype=np.int32)[None]
    segments = 1 + index * args.documents // length
    inputs = (tokens, segments, index, np.zeros_like(tokens))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), *inputs)
    params = jax.tree.map(
        lambda x: random.normal(0, 0.02, x.shape).astype(x.dtype), shapes
    )

    def loss(params, *inputs):
        x_BLH: Any = encoder.apply(params, *inputs)
        return jnp.square(x_BLH.astype(jnp.float32)).mean()

    program = jax.jit(jax.grad(loss)).lower(params, *inputs).compile()
    return program, (params, *inputs)


def _exponents(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Returns the slope of log seconds and log bytes over log length, by kind."""
    fitted: dict[str, dict[str, float]] = {}
    for kind, group in _by_kind(rows):
        lengths = np.log([row["length"] for row in group])
        for what, key in (("time", "cpu_seconds"), ("memory", "bytes")):
            values = np.log([row[key] for row in group])
            slope = float(np.polyfit(lengths, values, 1)[0])
            fitted.setdefault(kind, {})[what] = slope
    return fitted


def _by_kind(rows: list[dict]) -> list[tuple[str, list[dict]]]:
    """Returns the rows of each kind, in the order of KINDS."""
    order = sorted(rows, key=lambda row: list(KINDS).index(row["kind"]))
    return [(k, list(g)) for k, g in itertools.groupby(order, lambda row: row["kind"])]


def as_text(result: dict[str, Any]) -> str:
    """Returns the result as readable lines."""
    layer, (before, after) = result["layer"], result["load"]
    lines = [
        machine.as_text(result["machine"]),
        f"{result['threads']} threads; load average {before} before, {after} after",
        f"one layer x {layer['width']}, window {layer['window']}, {layer['dtype']}, "
        f"1 row, documents {layer['documents']}; forward and backward",
    ]
    units = (("seconds", 1, "s"), ("cpu_seconds", 1, "s"), ("bytes", 1e6, "MB"))
    for key, unit, name in units:
        lines.append(f"\n{key.replace('_', ' ')} ({name})")
        for kind, group in _by_kind(result["rows"]):
            cells = [f"{row['length']:,}: {row[key] / unit:,.4g}" for row in group]
            lines.append(f"  {kind:14s} {'  '.join(cells)}")
    lines.append("\nexponents")
    for kind, fitted in result["exponents"].items():
        lines.append(
            f"  {kind:14s} time {fitted['time']:.2f}, memory {fitted['memory']:.2f}"
        )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draws seconds and memory over the length, with logarithmic axes."""
    from plmjax.report.figures import png

    panels = (
        ("cpu_seconds", 1, "processor seconds"),
        ("bytes", 1e6, "temporary arrays, MB"),
    )
    with png(path, (6, 7), rows=2) as axes:
        for axis, (key, unit, label) in zip(axes, panels, strict=True):
            for kind, group in _by_kind(result["rows"]):
                lengths = [row["length"] for row in group]
                values = [row[key] / unit for row in group]
                axis.plot(lengths, values, marker="o", label=kind)
                axis.set(xscale="log", yscale="log", ylabel=label)
                axis.set_xticks(lengths, [f"{n:,}" for n in lengths])
                axis.minorticks_off()
        axes[0].legend()
        axes[1].set_xlabel("tokens a row")


if __name__ == "__main__":
    sys.exit(run_program(make_parser(), __file__))
