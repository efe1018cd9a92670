"""Estimates how long a step computes and sends, from data sheets of chips and links.

Bytes come from compiled programs (scaling.py). All sizes are per device and step.
"""

import dataclasses
import math
from collections.abc import Mapping

from plmjax.train.collectives import RING

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator: the FLOP/s and bytes/s of its data sheet.

    `near` is its rate within a group of `group` chips (all links, one direction), `far`
    its rate beyond. With `flat`, all traffic that leaves a group takes the slow link;
    otherwise each chip of a group carries its share of it, as NCCL's rings over all
    network cards and XLA's reductions over slices do.
    """

    name: str
    peak: float
    near: float
    group: int
    far: float
    flat: bool = False


# Dense bf16. NVIDIA's data sheets of H100 SXM and H200: 989 TFLOP/s, NVLink 900 GB/s in
# both directions together; one NDR InfiniBand card per GPU, 400 Gb/s.
# cloud.google.com/tpu/docs/v5e, v5p, v6e: FLOP/s, bidirectional interconnect per chip
# (400, 1,200, 800 GB/s), the largest slice, data center network (6.4 Tb/s per pod of
# 256, 50 Gb/s per chip, 25.6 Tb/s per pod of 256).
CHIPS = (
    Chip("H100, H200", 989e12, 450 * GB, 8, 50 * GB),
    Chip("H100, H200, flat ring", 989e12, 450 * GB, 8, 50 * GB, flat=True),
    Chip("TPU v5e", 197e12, 200 * GB, 256, 3.125 * GB),
    Chip("TPU v5p", 459e12, 600 * GB, 6144, 6.25 * GB),
    Chip("TPU v6e", 918e12, 400 * GB, 256, 12.5 * GB),
)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Traffic of a device in a step, by one operation along some axes of the mesh.

    `bytes` is the size of the full buffers, `bytes_per_token` the growth per token of
    the device.
    """

    axes: tuple[str, ...]
    kind: str
    bytes: float
    bytes_per_token: float = 0.0

    def of(self, tokens: float) -> float:
        return self.bytes + self.bytes_per_token * tokens


def along(mesh: Mapping[str, int], axes: tuple[str, ...]) -> tuple[int, int]:
    """Returns the size of a group along the axes, and the stride of its devices.

    The last axis of a mesh is the innermost: its devices are neighbours.
    """
    names = list(mesh)
    size = math.prod(mesh[axis] for axis in axes)
    inside = names[max(names.index(axis) for axis in axes) + 1 :]
    return size, math.prod(mesh[axis] for axis in inside)


def sent(traffic: Traffic, mesh: Mapping[str, int], tokens: float) -> float:
    """Returns the bytes that a device sends with ring algorithms."""
    size, _ = along(mesh, traffic.axes)
    passes = RING.get(traffic.kind)
    share = 1.0 if passes is None else passes * (size - 1) / size
    return share * traffic.of(tokens) if size > 1 else 0.0


def seconds(
    chip: Chip, traffic: Traffic, mesh: Mapping[str, int], tokens: float
) -> float:
    """Returns the seconds that sending takes, without latency."""
    size, stride = along(mesh, traffic.axes)
    if size == 1:
        return 0.0
    total = traffic.of(tokens)
    near = min(size, max(1, chip.group // stride))
    groups = size / near
    passes = RING.get(traffic.kind)
    if passes is None:
        return total / (chip.near if groups == 1 else chip.far)
    if groups > 1 and chip.flat:
        return passes * total * (size - 1) / size / chip.far
    within = passes * total * (near - 1) / near / chip.near
    beyond = passes * total / near * (groups - 1) / groups / chip.far
    return within + beyond


@dataclasses.dataclass(frozen=True)
class Step:
    """Estimate of a step: seconds that a chip computes and sends."""

    computing: float
    sending: float

    @property
    def seconds_without_overlap(self) -> float:
        """Seconds of a step if computing and sending do not overlap."""
        return self.computing + self.sending

    @property
    def seconds_with_overlap(self) -> float:
        """Seconds of a step if computing and sending overlap fully."""
        return max(self.computing, self.sending)


def step(
    chip: Chip,
    traffic: list[Traffic],
    mesh: Mapping[str, int],
    tokens: float,
    flops_per_token: float,
    mfu: float,
) -> Step:
    """Returns the step of a device that has `tokens` tokens of each batch.

    The devices of a tensor axis share the same tokens, and divide the FLOPs.
    """
    shared = mesh["tensor"]
    return Step(
        tokens * flops_per_token / shared / (chip.peak * mfu),
        sum(seconds(chip, operation, mesh, tokens) for operation in traffic),
    )


def bound(
    chip: Chip,
    traffic: list[Traffic],
    mesh: Mapping[str, int],
    flops_per_token: float,
    mfu: float,
) -> float:
    """Returns the tokens per chip and step below which sending takes longer.

    Infinite if each token takes longer to send than to compute.
    """
    none, one = (
        step(chip, traffic, mesh, tokens, flops_per_token, mfu) for tokens in (0, 1)
    )
    gain = one.computing - (one.sending - none.sending)
    return none.sending / gain / mesh["tensor"] if gain > 0 else math.inf
