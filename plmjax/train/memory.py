"""What memory there is on this machine, and what of it this process may use."""

import os
from pathlib import Path


def memory_bytes() -> int:
    """Returns the machine's memory, whoever may use it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit() -> int | None:
    """Returns the bytes that control groups (version 2, or 1) leave us; None: all."""
    limits = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if not kinds:
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in kinds.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        # A group's parents limit it, too. In a container the root is its own group.
        here = root / path.lstrip("/")
        for group in (here, *here.parents):
            text = _read(group / name).strip()
            if text.isdecimal():
                limits.append(int(text))
            if group == root:
                break
    return min(limits, default=None)


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
