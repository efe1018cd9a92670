"""The target devices of a compiled program, named by the caller."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Platform:
    """The properties of a program's devices that a model's operations depend on.

    The devices need not be present: a CPU host can compile for TPUs. Results differ
    only by rounding; the default is correct on all devices, but not fast.
    """

    # As jax.Device.platform: cpu, gpu or tpu.
    kind: str = "cpu"
    # Whether XLA multiplies bf16 x bf16 -> float32 without conversion.
    multiplies_bf16: bool = False
    # Whether the program runs on one device, so that nothing is partitioned.
    one_device: bool = False
    # Whether attention is computed by the kernels of kernels.py, which can do it.
    kernels: bool = False

    @classmethod
    def of(cls, devices: Iterable[Any], kernels: bool = False) -> "Platform":
        """The platform of a program that runs on all of these jax devices."""
        devices = list(devices)
        kind, one = devices[0].platform, len(devices) == 1
        return cls(kind, kind != "cpu" or _processor_has_bf16(), one, kernels)


def _processor_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


# The default for programs without target devices: shapes, counts, initial weights.
ANY = Platform()
