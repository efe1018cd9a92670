"""Division of the machine between trials that run at the same time.

Affinity separates the cores: XLA's thread pools and plmjax's tokenising start as many
threads as there are cores to run on. CUDA_VISIBLE_DEVICES separates the GPUs.
"""

import dataclasses
import os
import pkgutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from plmjax import PlmjaxError
from plmjax.launch.local import has_tpus, visible_gpus
from plmjax.machine import cores as count_cores


@dataclasses.dataclass(frozen=True)
class Slot:
    """A part of the machine: cores (empty: all), and environment variables."""

    cores: tuple[int, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The slot's GPUs and cores as text; "" if it has no limits."""
        gpus = self.environment.get("CUDA_VISIBLE_DEVICES")
        names = [f"GPU {gpus}"] if gpus else []
        if self.cores:
            numbers = ",".join(map(str, self.cores))
            names.append(f"core{'s' if len(self.cores) > 1 else ''} {numbers}")
        return ", ".join(names)


def divide(
    parallel: int, cores: Sequence[int], gpus: Sequence[str], tpus: bool = False
) -> list[Slot]:
    """Returns a slot for each of `parallel` trials at a time.

    If the cores or GPUs do not divide evenly, the first slots get one more. If there
    are fewer GPUs than trials, several trials share a GPU and its memory.

    Raises:
      PlmjaxError: several trials at a time on a TPU, which allows only one process.
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
                # The share of a GPU's memory that JAX reserves; its default is 3/4.
                environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.3f}"
        slots.append(Slot(tuple(_share(cores, parallel, index)), environment))
    return slots


def _share(things: Sequence, count: int, index: int) -> Sequence:
    """Returns the index-th of `count` even shares; each has at least one thing."""
    if len(things) <= count:
        return [things[index % len(things)]]
    size, more = divmod(len(things), count)
    begin = index * size + min(index, more)
    return things[begin : begin + size + (index < more)]


def local_slots(parallel: int) -> list[Slot]:
    """Returns the slots of this machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity else list(range(count_cores()))
    on_cpu, devices = os.environ.get("JAX_PLATFORMS") == "cpu", Path("/dev")
    gpus = [] if on_cpu or not _cuda_jax() else visible_gpus(os.environ, devices)
    # Other devices have such files, too, so libtpu is also required.
    tpus = not on_cpu and find_spec("libtpu") is not None and has_tpus(devices)
    return divide(parallel, cores, gpus, tpus)


def _cuda_jax() -> bool:
    """Whether the installed JAX can use NVIDIA's GPUs."""
    try:
        import jax_plugins  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    modules = pkgutil.iter_modules(jax_plugins.__path__)
    return any(module.name.startswith("xla_cuda") for module in modules)
