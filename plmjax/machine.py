"""Facts about this machine: cores, memory, and versions for measured figures."""

import contextlib
import ctypes
import datetime
import errno
import importlib
import os
import platform
import re
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from plmjax import PlmjaxError

PACKAGES = ("jax", "jaxlib", "torch", "transformers", "datasets")


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Returns the machine's total memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit() -> int | None:
    """Returns the memory limit of our control groups (v2 or v1) in bytes, or None."""
    limits = []
    for line in read("/proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if not kinds:
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in kinds.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        # A group's parents limit it, too. In a container the root is its group.
        here = root / path.lstrip("/")
        for group in (here, *here.parents):
            text = read(group / name).strip()
            if text.isdecimal():
                limits.append(int(text))
            if group == root:
                break
    return min(limits, default=None)


def usable_memory() -> int:
    """Returns the bytes of memory that this process may use, swap included."""
    swap = re.search(r"SwapTotal: +(\d+) kB", read("/proc/meminfo"))
    memory = min(memory_bytes(), memory_limit() or memory_bytes())
    return memory + (1024 * int(swap[1]) if swap else 0)


# What XLA says on CPUs, GPUs and TPUs, and CUDA's libraries, if memory is exhausted.
_EXHAUSTED = re.compile(
    r"out.of.memory|(unable|failed|attempting) to (allocate|reserve)|ALLOC_FAILED"
    r"|RESOURCE_EXHAUSTED.*(memory|alloc)",
    re.IGNORECASE | re.DOTALL,
)
_SIZE = re.compile(r"(\d+) ?bytes|([\d.]+ ?[KMGTPE](iB|B)?)\b")


def out_of_memory(error: BaseException) -> str | None:
    """Returns "out of memory", with the size asked for, if that is the error's cause.

    Returns None for all other errors.
    """
    known = isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM
    if not known and not (
        isinstance(error, RuntimeError) and _EXHAUSTED.search(str(error))
    ):
        return None
    if (size := _SIZE.search(str(error))) is None:
        return "out of memory"
    asked = f"{int(size[1]) / 1e9:,.3f} GB" if size[1] else size[2]
    return f"out of memory: {asked} could not be allocated"


def return_memory() -> None:
    """Returns to the system what is freed; glibc would keep much of it."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def facts() -> dict[str, Any]:
    """Returns the date, processor, cores, memory in GB, huge pages and versions."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "amx": "amx_bf16" in read("/proc/cpuinfo"),
        "huge_pages": "glibc.malloc.hugetlb=1" in tunables,
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := version(name))},
    }


def load_average() -> float | None:
    """Returns the mean number of running processes over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def peak_rss_bytes() -> int:
    """Returns the peak memory of this process in bytes."""
    # ru_maxrss is only the fallback: a child inherits its parent's value across exec.
    for line in read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def as_text(facts: dict[str, Any]) -> str:
    """Returns the machine in two lines."""
    versions = ", ".join(f"{name} {v}" for name, v in facts["versions"].items())
    return (
        f"{facts['date']}, {facts['cpu']}, {facts['cores']} cores"
        f"{' with AMX' if facts['amx'] else ''}, {facts['memory_gb']} GB, "
        f"huge pages {'on' if facts['huge_pages'] else 'off'}\n"
        f"Python {facts['python']}, {versions}"
    )


def _cpu() -> str:
    for line in read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def has_tpu() -> bool:
    """Returns True if this machine has a TPU."""
    return Path("/dev/accel0").exists() or Path("/dev/vfio").exists()


def hide_absent_tpu() -> None:
    """Tells libtpu, if it is installed where no TPU is, to look for none.

    It would print warnings, and lock out all but one process.
    """
    if not has_tpu():
        for name, value in _NO_TPU.items():
            os.environ.setdefault(name, value)


# Any accelerator type; the search for one is what warns.
_NO_TPU = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def read(path: str | Path) -> str:
    """Returns the text of a file of the kernel; "" if this one has none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def package(name: str, extra: str = "data") -> Any:
    """Imports a package of an extra of plmjax; PlmjaxError if it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise PlmjaxError(
            f"the package {error.name} is not installed.",
            hint=f"pip install 'plmjax[{extra}]'",
        ) from None


def version(name: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
