"""What a figure stands on: the machine, the versions, how busy it was."""

import datetime
import os
import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from plmjax.train.memory import memory_bytes

PACKAGES = ("jax", "jaxlib", "torch", "transformers", "datasets")


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Returns the date, processor, cores, memory in GB, huge pages and versions."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "amx": "amx_bf16" in _read("/proc/cpuinfo"),
        "huge_pages": "glibc.malloc.hugetlb=1" in tunables,
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
    }


def load_average() -> float | None:
    """Returns the mean number of running processes over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def peak_rss_bytes() -> int:
    """Returns the most memory this process has held at once."""
    # ru_maxrss would do, but that a child inherits its parent's across exec.
    for line in _read("/proc/self/status").splitlines():
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
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
