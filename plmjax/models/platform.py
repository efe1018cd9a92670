"""The target devices of a compiled program, named by the caller."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from plmjax import PlmjaxError
from plmjax.models.config import EncoderConfig

# By the kind of device: the widths of heads that the kernels of attention have.
WIDTHS = {"gpu": (16, 32, 64, 128), "tpu": (32, 64, 96, 128)}


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


def refusal(config: EncoderConfig, kind: str) -> str | None:
    """Returns why the kernels cannot compute a model on a kind of device, or None."""
    if kind not in WIDTHS:
        return f"the kernels are for GPUs and TPUs, and this is a {kind.upper()}"
    for name, value, known in (
        ("attention", config.attention, ("full",)),
        ("positions", config.positions, ("learned", "rope", "none")),
        ("global_tokens", config.global_tokens, ("none",)),
        ("dtype", config.dtype, ("float32", "bfloat16")),
        ("width / model.heads", config.head_width, WIDTHS[kind]),
    ):
        if value not in known:
            *others, last = map(repr, known)
            wanted = f"{', '.join(others)} or {last}" if others else last
            return (
                f"on a {kind.upper()} the kernels need model.{name} to be {wanted}; "
                f"it is {value!r}"
            )
    return None


def training_platform(
    devices: Iterable[Any],
    wanted: str,
    encoders: Iterable[EncoderConfig],
    log: Callable[[str], Any],
) -> Platform:
    """Returns the platform of a training of models, and logs what computes attention.

    `wanted` is train.attention: xla, pallas, or auto, which is pallas where it can be.

    Raises:
      PlmjaxError: pallas cannot be, or float16 on a TPU.
    """
    platform, encoders = Platform.of(devices), list(encoders)
    half = any(one.dtype == "float16" for one in encoders)
    if half and platform.kind == "tpu":
        raise PlmjaxError(
            "model.dtype=float16 is for GPUs without bfloat16, which a TPU has.",
            hint="Set --config.model.dtype=bfloat16.",
        )
    if half and platform.kind == "cpu":
        log(
            "model.dtype=float16 is for GPUs; a CPU converts it, and float32 is faster."
        )
    reasons = [why for one in encoders if (why := refusal(one, platform.kind))]
    if wanted == "pallas" and reasons:
        raise PlmjaxError(
            f"train.attention='pallas' cannot be: {reasons[0]}.",
            hint="Set --config.train.attention=xla, or auto, which takes the kernels "
            "where they can be.",
        )
    kernels = wanted != "xla" and not reasons
    if kernels or wanted != "xla" or platform.kind != "cpu":
        what = "Pallas kernels, never run on a device yet" if kernels else "XLA"
        why = f"; {reasons[0]}" if reasons and wanted != "xla" else ""
        log(f"Attention: {what} (train.attention={wanted}{why}).")
    return dataclasses.replace(platform, kernels=kernels)
