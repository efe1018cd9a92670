"""Devices that are not there, as XLA's compilers for TPUs and GPUs know them.

Both run on machines without such a device, and need its description alone.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import jax

from plmjax import PlmjaxError
from plmjax.machine import hide_absent_tpu

# Facts about a Hopper card, which its driver would report (XLA's GpuTargetConfigProto).
_CARD = """
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory}
  l2_cache_size: 52428800
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device: its memory in bytes, and bytes/s, of its data sheet.

    `slices` are a TPU's, up to 256 chips.
    """

    kind: str  # as jax.Device.device_kind
    memory: int
    bandwidth: float
    slices: tuple[str, ...] = ()


# cloud.google.com/tpu/docs/v5e, v5p, v6e; NVIDIA's data sheets of H100 SXM and H200.
CHIPS = {
    "v5e": Chip("TPU v5 lite", 16 * 2**30, 819e9, _FLAT),
    "v5p": Chip("TPU v5", 95 * 2**30, 2765e9, _CUBES),
    "v6e": Chip("TPU v6 lite", 32 * 2**30, 1640e9, _FLAT),
    "h100": Chip("NVIDIA H100 80GB HBM3", 84_942_979_072, 3352.32e9),
    "h200": Chip("NVIDIA H200", 150_754_820_096, 4800e9),
}
_GPUS = "h100, or h100:8 for 8 on a host, h100:4x8 for 4 hosts (up to 256 GPUs); h200"
KNOWN = "; ".join(
    [f"{name}:{{{','.join(c.slices)}}}" for name, c in CHIPS.items() if c.slices]
    + [_GPUS]
)


def absent_chip(mesh: jax.sharding.Mesh) -> Chip | None:
    """Returns the chip of a mesh of absent devices; None if its devices are there."""
    device = mesh.devices.flat[0]
    if device in jax.devices():
        return None
    return next(chip for chip in CHIPS.values() if chip.kind == device.device_kind)


def absent_devices(topology: str) -> list[Any]:
    """Returns the devices of a topology, such as v5e:4x4 or h100:8, to compile for.

    Raises:
      PlmjaxError: there is no such topology, or its compiler is not installed.
    """
    name, _, shape = topology.partition(":")
    chip = CHIPS.get(name)
    if chip and shape in chip.slices:
        return _tpus(topology, shape)
    numbers = re.fullmatch(r"(?:(\d+)x)?(\d+)", shape or "1")
    if chip and not chip.slices and numbers:
        hosts, gpus = int(numbers[1] or 1), int(numbers[2])
        if 0 < hosts * gpus <= 256:
            return _gpus(name, chip, f"1x{hosts}x{gpus}")
    raise PlmjaxError(f"--topology={topology} is not known.", hint=f"Known: {KNOWN}.")


def _tpus(topology: str, shape: str) -> list[Any]:
    _require("libtpu", topology, "tpu")
    hide_absent_tpu()
    # By default the chips of a host are 2 x 2, more than the smallest slice has.
    more: Mapping = {"chips_per_host_bounds": [1, 1, 1]} if shape == "1x1" else {}
    try:
        return _devices("tpu", topology, **more)
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" not in str(error):
            raise
        raise PlmjaxError(
            "another process has libtpu's lock, libtpu_lockfile in the temporary "
            "directory.",
            hint="Wait for it to end, or set ALLOW_MULTIPLE_LIBTPU_LOAD=1 if this "
            "machine's TPU is not in use.",
        ) from error


def _gpus(name: str, chip: Chip, topology: str) -> list[Any]:
    _require("jax_plugins.xla_cuda13", name, "topology")
    card = _CARD.format(name=chip.kind, bandwidth=chip.bandwidth, memory=chip.memory)
    return _devices("cuda", "", topology=topology, target_config=card)


def _devices(platform: str, name: str, **more) -> list[Any]:
    from jax.experimental import topologies

    # Programs for absent devices can be written to the cache, but not read from it.
    jax.config.update("jax_enable_compilation_cache", False)
    return list(topologies.get_topology_desc(name, platform, **more).devices)


def _require(module: str, topology: str, extra: str) -> None:
    try:
        there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent
        there = False
    if not there:
        raise PlmjaxError(
            f"--topology={topology} needs XLA's compiler for it ({module}), which is "
            "not installed.",
            hint=f'Run `pip install "plmjax[{extra}]"`.',
        )
