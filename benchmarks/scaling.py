"""Traffic of a training step, compiled for 8 to 512 devices and estimated beyond.

The step is compiled, never run, in one process per number of devices: for a TPU or GPU
that need not be there (--topology), or for virtual CPU devices.

    python benchmarks/scaling.py --topology=v5e --devices=8,256 --batch=4096
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plmjax import PlmjaxError, machine
from plmjax.cli import run_program
from plmjax.cli.options import at_least_one, json_option, log, numbers, print_result
from plmjax.cli.parser import program_parser
from roofline import CHIPS, Traffic, bound, sent, step

AXES = ("data", "fsdp", "tensor")
MESHES = ("data", "zero1", "fsdp", "tensor")
# Chips in the tables of estimates; above the compiled numbers they are extrapolated.
PAPER = (8, 64, 256, 512, 1024, 4096)
# Numbers of layers that are compiled; all layers after the first are alike.
FEW = (1, 2)
# Rows per data shard in the compiled step.
ROWS = 2
_LIMIT_SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class ScalingConfig:
    """The models and meshes to compile, and the assumptions of the tables."""

    preset: str = "bert-base"
    # The chip to compile for; None: virtual CPU devices.
    topology: str | None = None
    devices: tuple[int, ...] = (8, 64, 512)
    length: int = 128
    # Rows of the global batch in the table of throughputs.
    batch: int = 4096
    # The share of a chip's peak that its matrix products reach.
    mfu: float = 0.4
    meshes: tuple[str, ...] = MESHES
    # Devices along the inner axis of the mesh of that name.
    fsdp: int = 8
    tensor: int = 4
    dtype: str = "bfloat16"
    # Compiles all layers instead of models with one and two.
    full: bool = False

    def __post_init__(self):
        from plmjax.models.config import PRESETS

        def require(condition: bool, message: str, hint: str = ""):
            if not condition:
                raise PlmjaxError(message, hint=hint)

        require(
            self.preset in PRESETS,
            f"--preset={self.preset} is not known.",
            f"Known: {', '.join(PRESETS)}.",
        )
        unknown = [kind for kind in self.meshes if kind not in MESHES]
        require(
            not unknown and bool(self.meshes),
            f"--meshes={','.join(self.meshes)}: {', '.join(unknown)} is not known.",
            f"Known: {', '.join(MESHES)}.",
        )
        require(0 < self.mfu <= 1, f"--mfu={self.mfu} must be in (0, 1].")
        encoder, inner = PRESETS[self.preset], math.lcm(self.fsdp, self.tensor)
        require(
            encoder.heads % self.tensor == 0,
            f"--tensor={self.tensor} does not divide the {encoder.heads} heads of "
            f"{self.preset}.",
        )
        require(
            self.length <= encoder.max_length,
            f"--length={self.length} is longer than the {encoder.max_length} "
            f"positions of {self.preset}.",
        )
        for count in self.devices:
            if self.topology is not None:
                slice_of(self.topology, count)
            require(
                count > 1 and count % inner == 0,
                f"--devices={count} does not divide into the meshes.",
                f"Give multiples of {inner}, as --fsdp={self.fsdp} and "
                f"--tensor={self.tensor} need.",
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "ScalingConfig":
        """Returns the config with fields as read from JSON."""
        lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        return cls(**{**values, **lists})

    def mesh(self, kind: str, devices: int) -> dict[str, int]:
        """Returns {axis: size}; only the data axis grows."""
        fsdp = self.fsdp if kind == "fsdp" else 1
        tensor = self.tensor if kind == "tensor" else 1
        return dict(zip(AXES, (devices // fsdp // tensor, fsdp, tensor), strict=True))


def slice_of(name: str, devices: int) -> str:
    """Returns the topology of so many devices of a chip: v5e:2x4, h100:8x8.

    Raises:
      PlmjaxError: there is no such chip, or no such slice of it.
    """
    from plmjax.train.topologies import CHIPS

    if name not in CHIPS:
        known = f"Known: {', '.join(CHIPS)}."
        raise PlmjaxError(f"--topology={name} is no chip.", hint=known)
    if not CHIPS[name].slices:
        return f"{name}:{-(-devices // 8)}x{min(devices, 8)}"
    sizes = {math.prod(map(int, s.split("x"))): s for s in CHIPS[name].slices}
    if devices not in sizes:
        raise PlmjaxError(
            f"--devices={devices} is no slice of {name}.",
            hint=f"Known: {', '.join(map(str, sizes))}.",
        )
    return f"{name}:{sizes[devices]}"


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        _run,
        "compile the step for 8 to 512 devices that need not be there, and estimate, "
        "on paper, its speed on 8 to 4,096 chips",
        "python benchmarks/scaling.py --topology=v5e --devices=8,256 --batch=4096",
    )
    add = parser.add_argument
    add("--preset", default="bert-base", help="model; its family sets the objective")
    add("--topology", help="chip: v5e, v5p, v6e, h100, h200 (default: virtual CPUs)")
    add("--devices", default="8,64,512", help="numbers of devices to compile for")
    add("--length", type=int, default=128, help="tokens a row")
    add("--batch", type=int, default=4096, help="rows a step of the throughputs")
    add("--mfu", type=float, default=0.4, help="share of the peak that a chip reaches")
    add("--meshes", default="data,zero1,fsdp,tensor", help="some of these, by commas")
    add("--fsdp", type=int, default=8, help="devices along fsdp on that mesh")
    add("--tensor", type=int, default=4, help="devices along tensor on that mesh")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    add("--full", action="store_true", help="compile all layers, not one and two")
    json_option(parser)
    return parser


def _run(args) -> int:
    at_least_one(args, "length", "batch", "fsdp", "tensor")
    names = {field.name for field in dataclasses.fields(ScalingConfig)}
    values = {name: value for name, value in vars(args).items() if name in names}
    values["devices"] = numbers(args.devices, "devices")
    values["meshes"] = tuple(args.meshes.split(","))
    config = ScalingConfig(**values)
    return print_result(args, bench_scaling(config, log), as_text)


def bench_scaling(
    config: ScalingConfig, log: Callable[[str], Any] = print
) -> dict[str, Any]:
    """Compiles the step on each mesh and number of devices; returns its traffic.

    Raises:
      PlmjaxError: an error that the user can fix.
      RuntimeError: a compilation failed; the message has the end of its output.
    """
    before, compiled = machine.load_average(), []
    for count in config.devices:
        begin = time.monotonic()
        # One number of devices is enough to see which traffic grows with the rows.
        compiled += _child(config, count, rows_twice=count == config.devices[0])
        log(f"{count} devices: compiled in {time.monotonic() - begin:,.0f} s.")
    facts = compiled[0]["model"]
    measured = [_measured(config, kind, compiled) for kind in config.meshes]
    return {
        "machine": machine.facts(),
        "load": [before, machine.load_average()],
        "config": dataclasses.asdict(config),
        "model": facts,
        "meshes": measured,
        "roofline": [
            _on_paper(config, one, facts["flops_per_token"]) for one in measured
        ],
    }


def _child(config: ScalingConfig, devices: int, rows_twice: bool) -> list[dict]:
    """Returns the results of a process that compiles for `devices` devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    # Nothing is executed, so collectives do not need a thread per device.
    environment.pop("NPROC", None)
    arguments = json.dumps([dataclasses.asdict(config), devices, rows_twice])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compiled.py")), arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=_LIMIT_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(
            f"compiling for {devices} devices failed:\n{done.stderr[-2000:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _measured(config: ScalingConfig, kind: str, compiled: list[dict]) -> dict[str, Any]:
    """Returns a mesh's traffic as a function of tokens, and its memory."""
    of_kind = [one for one in compiled if one["mesh"] == kind]
    layers = compiled[0]["model"]["layers"]
    sizes, rows = [], {}
    for count in config.devices:
        programs = [one for one in of_kind if one["devices"] == count]
        once = _all_layers([o for o in programs if o["rows"] == ROWS], layers)
        twice = _all_layers([o for o in programs if o["rows"] == 2 * ROWS], layers)
        if twice:
            # The growth per row of a data shard, equal for any number of devices.
            rows = {key: (twice[key] - once.get(key, 0.0)) / ROWS for key in twice}
        mesh = config.mesh(kind, count)
        traffic = [
            Traffic(
                tuple(axes.split(" x ")),
                operation,
                total - rows.get((axes, operation), 0.0) * ROWS,
                rows.get((axes, operation), 0.0) / config.length,
            )
            for (axes, operation), total in once.items()
        ]
        sizes.append(
            {
                "devices": count,
                "mesh": mesh,
                "traffic": [dataclasses.asdict(one) for one in traffic],
                "sent": sum(sent(one, mesh, ROWS * config.length) for one in traffic),
                "state": _linear(programs, "state", layers),
                "temporary": _linear(programs, "temporary", layers),
            }
        )
    return {"kind": kind, "sizes": sizes}


def _linear(here: list[dict], key: str, layers: int) -> float:
    """Returns a figure for all layers, extrapolated from one and two layers."""
    few = {one["layers"]: one[key] for one in here if one["rows"] == ROWS}
    if layers in few:
        return few[layers]
    return few[1] + (few[2] - few[1]) * (layers - 1)


def _all_layers(here: list[dict], layers: int) -> dict[tuple[str, str], float]:
    """Returns {(axes, operation): bytes} for all layers, extrapolated likewise."""
    few = {
        one["layers"]: {(axes, kind): total for axes, kind, total in one["traffic"]}
        for one in here
    }
    if not few or layers in few:
        return few.get(layers, {})
    keys = {key for traffic in few.values() for key in traffic}
    first, second = ({key: few[n].get(key, 0.0) for key in keys} for n in FEW)
    return {
        key: first[key] + (second[key] - first[key]) * (layers - 1)
        for key in sorted(keys)
    }


def _on_paper(
    config: ScalingConfig, measured: dict, flops_per_token: float
) -> dict[str, Any]:
    """Returns bounds and throughputs of a mesh for each chip."""
    kind, largest = measured["kind"], measured["sizes"][-1]
    traffic = [Traffic(**one) for one in largest["traffic"]]
    tokens = config.batch * config.length
    rows = []
    for chip in CHIPS:
        for count in PAPER:
            mesh = config.mesh(kind, count)
            shards = mesh["data"] * mesh["fsdp"]
            inputs = (chip, traffic, mesh)
            least = bound(*inputs, flops_per_token, config.mfu)
            row = {"chip": chip.name, "devices": count, "bound": least}
            if config.batch % shards == 0:
                one = step(*inputs, tokens / shards, flops_per_token, config.mfu)
                seconds = (one.seconds_without_overlap, one.seconds_with_overlap)
                row |= {
                    "tokens_a_chip": tokens / count,
                    "computing_s": one.computing,
                    "sending_s": one.sending,
                    "tokens_per_s": [tokens / n for n in seconds],
                    "efficiency": [one.computing / n for n in seconds],
                }
            rows.append(row)
    return {"kind": kind, "rows": rows}


def _deviation(config: ScalingConfig, measured: dict) -> float:
    """Returns the largest relative error of predictions from the largest size."""
    *others, largest = measured["sizes"]
    traffic = [Traffic(**one) for one in largest["traffic"]]
    tokens = ROWS * config.length
    off = [
        abs(sum(sent(one, size["mesh"], tokens) for one in traffic) / size["sent"] - 1)
        for size in others
    ]
    return max(off, default=0.0)


_NAMES = {
    "data": "data",
    "zero1": "data, zero1",
    "fsdp": "data x fsdp {fsdp}",
    "tensor": "data x tensor {tensor}",
}


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Returns a table in Markdown."""
    line = "|".join("---" for _ in head)
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return [first, f"|{line}|", *others]


def as_text(result: dict[str, Any]) -> str:
    """Returns the tables in Markdown."""
    config = ScalingConfig.of(result["config"])
    model, (before, after) = result["model"], result["load"]
    names = {kind: name.format(**result["config"]) for kind, name in _NAMES.items()}
    lines = [
        machine.as_text(result["machine"]),
        f"Load average {before} before, {after} after.",
        f"{config.preset}: {model['layers']} layers, {model['parameters']:,} "
        f"parameters, {model['flops_per_token'] / 1e9:.3f} GFLOP a token of "
        f"{config.length}; {config.dtype} activations.",
        "",
        f"Compiled for {config.topology or 'virtual CPU devices'}, {ROWS} rows a data "
        "shard. MB of a device; what is sent on a ring, in a step.",
        "",
    ]
    body = []
    for measured in result["meshes"]:
        for size in measured["sizes"]:
            operations = ", ".join(
                f"{one['kind']} along {' x '.join(one['axes'])} "
                f"{sent(Traffic(**one), size['mesh'], ROWS * config.length) / 1e6:,.1f}"
                for one in size["traffic"]
                if one["bytes"] + one["bytes_per_token"] > 1e5
            )
            body.append(
                [
                    names[measured["kind"]],
                    f"{size['devices']:,}",
                    f"{size['sent'] / 1e6:,.1f}",
                    operations,
                    f"{size['state'] / 1e6:,.0f}",
                    f"{size['temporary'] / 1e6:,.0f}",
                ]
            )
    head = ["mesh", "devices", "sent", "by", "state", "temporaries"]
    lines += _table(head, body)
    worst = max(_deviation(config, measured) for measured in result["meshes"])
    lines += [
        "",
        "Predicted from the largest number of devices by (n - 1) / n, the others are "
        f"at most {worst:.2%} off.",
        "",
        f"Tokens a chip and step below which sending takes longer than computing (MFU "
        f"{config.mfu:.0%}); past {max(config.devices):,} devices extrapolated.",
        "",
    ]
    lines += _paper_table(result["roofline"], names, _tokens)
    lines += [
        "",
        f"Million tokens a second of {config.batch:,} rows a step: without overlap of "
        "sending and computing, to full overlap; in brackets the share of the time "
        "that computing takes.",
        "",
    ]
    lines += _paper_table(result["roofline"], names, _speed)
    return "\n".join(lines)


def _paper_table(
    papers: list[dict], names: dict[str, str], cell: Callable[[dict], str]
) -> list[str]:
    """Returns the table of cell(row), a line per chip and mesh."""
    body = [
        [chip.name, names[paper["kind"]]]
        + [cell(row) for row in paper["rows"] if row["chip"] == chip.name]
        for paper in papers
        for chip in CHIPS
    ]
    return _table(["chip", "mesh", *(f"{count:,}" for count in PAPER)], body)


def _tokens(row: dict[str, Any]) -> str:
    if row["bound"] in (None, math.inf):  # JSON has no infinity
        return "always"
    return f"{row['bound']:,.0f}"


def _speed(row: dict[str, Any]) -> str:
    if "tokens_per_s" not in row:
        return "-"
    (low, high), (least, most) = row["tokens_per_s"], row["efficiency"]
    return f"{low / 1e6:,.1f}-{high / 1e6:,.1f} ({least:.0%}-{most:.0%})"


if __name__ == "__main__":
    sys.exit(run_program(make_parser(), __file__))
