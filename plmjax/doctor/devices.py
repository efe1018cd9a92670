"""Checks the devices that jax sees: a product on each device, a sum over all."""

import os
import re
from pathlib import Path

from plmjax import counted
from plmjax.doctor.check import Check, ok, problem, warning
from plmjax.machine import memory_bytes

_GPU = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd")
_TPU = ("/dev/accel0", "/dev/vfio/0")


def checks() -> list[Check]:
    """Returns the checks of this process's devices."""
    import jax

    devices = jax.local_devices()
    rows = [_kinds(devices), *_accelerators(jax.default_backend()), *_threads(devices)]
    return [*rows, _product(devices), _sum(devices)]


def _kinds(devices) -> Check:
    kinds = {}
    for device in devices:
        stats = device.memory_stats() or {}
        memory = stats.get("bytes_limit")
        where = "each" if memory else "shared"
        memory = memory or memory_bytes()
        text = f"{device.device_kind}, {memory / 1e9:.1f} GB {where}"
        kinds[text] = kinds.get(text, 0) + 1
    return ok("devices", "; ".join(f"{n} x {text}" for text, n in kinds.items()))


def _accelerators(backend: str) -> list[Check]:
    """Returns a problem if the machine has an accelerator that jax does not see."""
    platforms = os.environ.get("JAX_PLATFORMS")
    for name, files, extra in (("GPU", _GPU, "cuda"), ("TPU", _TPU, "tpu")):
        present = [path for path in files if Path(path).exists()]
        if not present or backend != "cpu":
            continue
        seen = f"{present[0]} exists, but jax uses the CPU"
        if platforms:
            fix = f"Unset it, or set JAX_PLATFORMS={extra},cpu."
            return [warning(name, f"{seen}: JAX_PLATFORMS={platforms}", fix)]
        fix = f"pip install -e '.[{extra}]'; then check the driver"
        fix += " (nvidia-smi)." if name == "GPU" else "."
        return [problem(name, seen, fix)]
    return []


def _threads(devices) -> list[Check]:
    """Returns a warning if virtual CPU devices have too few threads.

    Each device blocks a thread of XLA's pool in a collective; the pool has NPROC
    threads, by default one per core. docs/reliability.md has the measurements.
    """
    count = len(devices)
    if devices[0].platform != "cpu" or count == 1:
        return []
    text = os.environ.get("NPROC", "")
    threads = int(text) if re.fullmatch(r"\d+", text) else os.cpu_count() or 1
    seen = f"{threads} for {count} virtual CPU devices"
    if threads >= 4 * count:
        return [ok("threads", seen)]
    fix = f"Set NPROC={4 * count} before plmjax starts, or unset it: plmjax does so."
    return [warning("threads", f"{seen}: collectives may hang", fix)]


def _product(devices) -> Check:
    """Multiplies small integers, whose products every device must compute exactly."""
    import jax
    import numpy as np

    a = np.arange(256 * 256).reshape(256, 256) % 7.0
    right = (a @ a.T).astype(np.float32)
    multiply = jax.jit(lambda x: jax.numpy.matmul(x, x.T, precision="highest"))
    for device in devices:
        got = np.asarray(multiply(jax.device_put(a.astype(np.float32), device)))
        if not np.array_equal(got, right):
            wrong = int(np.sum(got != right))
            fix = "Exclude this device (JAX_LOCAL_DEVICE_IDS), and have it repaired."
            return problem("product", f"{device}: {wrong} of 65,536 are wrong", fix)
    count = counted(len(devices), "device")
    return ok("product", f"of 256 x 256 matrices, exact on {count}")


def _sum(devices) -> Check:
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    count = len(devices)
    mesh = jax.make_mesh((count,), ("all",), (AxisType.Auto,), devices=devices)
    numbers = np.arange(count, dtype=np.float32)
    placed = jax.device_put(numbers, NamedSharding(mesh, P("all")))

    def total(x):
        return jax.lax.psum(x, "all")

    summed = jax.jit(jax.shard_map(total, mesh=mesh, in_specs=P("all"), out_specs=P()))
    got = float(np.asarray(summed(placed))[0])
    if got != numbers.sum():
        fix = "Run the vendor's test of the links (NCCL tests)."
        return problem("sum", f"{got} over {count} devices, not {numbers.sum()}", fix)
    return ok("sum", f"over {counted(count, 'device')}, exact")
