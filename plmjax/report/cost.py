"""What a training costs: FLOPs by block, time, disk and money."""

import dataclasses
import statistics
from typing import Any

import jax
import numpy as np
from rich.table import Table

from plmjax import PlmjaxError, tree
from plmjax.console import as_table, duration
from plmjax.models.flops import encoder_parts
from plmjax.train.job import Training, initialise
from plmjax.train.metrics import PEAK_FLOPS, peak_of_kind
from plmjax.train.step import State
from plmjax.train.timing import run_steps
from plmjax.train.topologies import CHIPS

# Real steps that are timed, after the first.
TIMED = 3
# Steps whose FLOPs are counted, at equal distances.
_COUNTED = 1000


@dataclasses.dataclass(frozen=True)
class Asked:
    """Devices to estimate for, such as h100:8, their MFU, and the price of an hour.

    The price is that of one device.
    """

    devices: tuple[str, ...] = ()
    mfu: float = 0.4
    price: float | None = None

    def __post_init__(self):
        for name in self.devices:
            peak_of(name)
        for option, value, most in (
            ("mfu", self.mfu, 1.0),
            ("price_per_hour", self.price, float("inf")),
        ):
            if value is not None and not 0 < value <= most:
                upper = " and at most 1" if most == 1 else ""
                raise PlmjaxError(f"--{option}={value:g} must be above 0{upper}.")


NOTHING = Asked()


def peak_of(device: str) -> tuple[float, int]:
    """Returns (dense bf16 peak in FLOP/s, number) of devices such as h100:8.

    Raises:
      PlmjaxError: it is not known, or the number is none.
    """
    name, _, count = device.partition(":")
    peaks: dict[str, Any] = {
        kind.lower().split()[-1]: peak for kind, peak in PEAK_FLOPS.items()
    }
    peaks |= {name: peak_of_kind(chip.kind) for name, chip in CHIPS.items()}
    known = sorted(peaks.keys() - {"lite"})
    if name not in known or not (count or "1").isdecimal() or not int(count or 1):
        raise PlmjaxError(
            f"--device={device} is not known.",
            hint=f"Known: {', '.join(known)}; h100:8 are eight of them.",
        )
    return peaks[name], int(count or 1)


def work_table(training: Training, params: Any, length: int) -> Table:
    """Returns a table of weights and FLOPs a token by kind of block."""
    flops: dict[str, float] = {}
    for view in training.objective.models.values():
        for name, value in encoder_parts(view.encoder, length).items():
            flops[name] = flops.get(name, 0) + value
    whole = training.objective.flops(length)
    flops["heads"] = whole - sum(flops.values())
    weights = dict.fromkeys(flops, 0)
    for name, leaf in tree.flatten(params).items():
        kinds = {"/embeddings": "embeddings", "attention": "attention", "ffn": "ffn"}
        kind = next((kinds[part] for part in kinds if part in name), "heads")
        weights["feed-forward" if kind == "ffn" else kind] += int(np.prod(leaf.shape))
    total = sum(weights.values())
    rows = [
        (
            name,
            f"{weights[name]:,}",
            f"{weights[name] / total:.1%}",
            f"{value / length:,.0f}",
            f"{value / whole:.1%}",
        )
        for name, value in flops.items()
    ]
    columns = ("block", "parameters", "share", "FLOPs a token", "share")
    return as_table(f"Work by block, rows of {length} tokens", columns, rows)


def time_steps(training: Training, compiled: Any, state: State) -> list[float]:
    """Returns the seconds of TIMED real steps, from random weights.

    `compiled` is the step for (state, frozen, batch, seed), `state` has its shapes.
    Where only shapes of frozen arrays are there, zeros take their place.
    """
    make = initialise(training.objective, training.config)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch = training.batch(0, 0)
    first = jax.tree.map(lambda x: np.zeros_like(x[:1]), batch)
    frozen = jax.tree.map(
        lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding),
        training.frozen,
    )
    made = jax.jit(make, out_shardings=shardings)(first)
    batches = iter([batch] * (TIMED + 1))
    _, timed = run_steps(
        compiled, made, frozen, batches, mesh=training.mesh, steps=TIMED + 1
    )
    return timed.steps_s[-TIMED:]


def cost_table(
    training: Training, epoch: float, seconds: list[float], asked: Asked
) -> Table | str:
    """Returns a table of times and prices, here by `seconds` of steps, and elsewhere.

    `epoch` is its number of steps. "" if there is nothing to show.
    """
    steps, every = training.steps, max(training.steps // _COUNTED, 1)
    some = [training.flops(step) for step in range(0, steps, every)]
    mean, first = statistics.fmean(some), training.flops(0)
    timed = []
    if seconds:
        a_step = statistics.median(seconds) * mean / first
        timed.append(("here, by three real steps", a_step, training.mesh.size))
    for name in asked.devices:
        peak, count = peak_of(name)
        label = f"{name}, at an MFU of {asked.mfu:.0%}"
        timed.append((label, mean / (peak * asked.mfu * count), count))
    rows = []
    for label, a_step, count in timed:
        hours = a_step * steps / 3600
        row = [label, f"{1e3 * a_step:,.1f}", duration(a_step * epoch)]
        row += [duration(3600 * hours), f"{hours:,.2f}"]
        money = asked.price and f"{hours * count * asked.price:,.2f}"
        rows.append([*row, money] if money else row)
    columns = ["device", "ms a step", "an epoch", f"all {steps:,} steps", "hours"]
    columns += [f"price at {asked.price:g} an hour"] if asked.price else []
    table = as_table("Time, without evaluations", columns, rows)
    if asked.price:
        table.caption = "Price: hours x devices x --price_per_hour, of one device."
    return table if rows else ""


def disk_line(training: Training, state: State) -> str:
    """Returns what checkpoints need on disk."""
    size, kept = tree.size_in_bytes(state), training.config.keep_checkpoints + 1
    return (
        f"Disk: {size / 1e6:,.1f} MB a checkpoint, of which up to {kept} are kept; "
        f"{tree.size_in_bytes(state.params) / 1e6:,.1f} MB of exported weights."
    )
