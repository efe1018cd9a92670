"""What of the machine each of several trials at a time gets.

Cores are kept apart by affinity: XLA's thread pools, and our tokenising, take as many
threads as there are cores to run on. GPUs are kept apart by CUDA_VISIBLE_DEVICES.
"""

import dataclasses
import os
import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path

from plmjax import PlmjaxError
from plmjax.machine import cores as count_cores


@dataclasses.dataclass(frozen=True)
class Slot:
    """A part of the machine: cores (empty: any), and environment variables."""

    cores: tuple[int, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        gpus = self.environment.get("CUDA_VISIBLE_DEVICES")
        told = [f"GPU {gpus}"] if gpus else []
        if self.cores:
            numbers = ",".join(map(str, self.cores))
            told.append(f"core{'s' if len(self.cores) > 1 else ''} {numbers}")
        return ", ".join(told)


def divide(
    parallel: int, cores: Sequence[int], gpus: Sequence[str], tpus: int = 0
) -> list[Slot]:
    """Returns a slot for each of `parallel` trials at a time.

    What is left over when the cores or GPUs do not divide goes to the first ones. Where
    there are fewer GPUs than trials, trials share one and its memory.

    Raises:
      PlmjaxError: several trials at a time on a TPU, which one process takes whole.
    """
    if tpus and parallel > 1:
        raise PlmjaxError(
            f"--parallel={parallel}: one process takes all TPU chips of a machine.",
            hint="Take --parallel=1, or a machine for each trial (--runner=print).",
        )
    if parallel == 1:
        return [Slot()]
    sharing = -(-parallel // len(gpus)) if gpus else 1
    slots = []
    for index in range(parallel):
        environment = {}
        if gpus:
            mine = _share(gpus, parallel, index)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
            if sharing > 1:
                # What JAX takes of a GPU's memory; it would be three quarters each.
                environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.3f}"
        slots.append(Slot(tuple(_share(cores, parallel, index)), environment))
    return slots


def _share(things: Sequence, parts: int, index: int) -> Sequence:
    """Returns the index-th of `parts` even shares; one thing where they are too few."""
    if len(things) <= parts:
        return [things[index % len(things)]]
    size, more = divmod(len(things), parts)
    begin = index * size + min(index, more)
    return things[begin : begin + size + (index < more)]


def local_slots(parallel: int) -> list[Slot]:
    """Divides this machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity else list(range(count_cores()))
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu"
    gpus = [] if on_cpu or not _cuda_jax() else _gpus()
    return divide(parallel, cores, gpus, 0 if on_cpu else _tpus())


def _cuda_jax() -> bool:
    """Says whether the installed JAX can use NVIDIA's GPUs."""
    try:
        import jax_plugins  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    found = pkgutil.iter_modules(jax_plugins.__path__)
    return any(module.name.startswith("xla_cuda") for module in found)


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    names = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").iterdir())
    return sorted((match[1] for match in names if match), key=int)


def _tpus() -> int:
    # Newer machines show chips as groups of VFIO.
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return len(chips) if _libtpu() else 0


def _libtpu() -> bool:
    import importlib.util

    return importlib.util.find_spec("libtpu") is not None
