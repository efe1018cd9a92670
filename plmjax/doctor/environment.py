"""Checks the environment: cluster, proxies, limits, huge pages, the TPU's lock."""

import os
import resource
import sys
from pathlib import Path

from plmjax import PlmjaxError
from plmjax.doctor.check import Check, ok, problem, warning
from plmjax.machine import cores, memory_bytes, memory_limit, read

_FEW_FILES = 1024
_LITTLE_SHARED = 64 * 2**20


def checks() -> list[Check]:
    """Returns the checks of this process's environment."""
    results = [_cluster(), *_proxies(), _files(), _memory(), *_shared()]
    hub = "nothing is downloaded: models and data sets are folders on the disk"
    return [*results, *_pages(), *_tpu_lock(), ok("Hugging Face", hub)]


def _cluster() -> Check:
    try:
        from plmjax import processes
    except ImportError as error:
        return warning("cluster", f"unknown: {error}", "Install jax again first.")
    try:
        group = processes.find_group(os.environ)
    except PlmjaxError as error:
        return problem("cluster", error.message, error.hint)
    if group is not None:
        return ok("cluster", f"one of several processes ({group.source})")
    missing = [name for name in processes.SLURM if name not in os.environ]
    if 0 < len(missing) < len(processes.SLURM):
        fix = "One process runs here; for several start it with `srun`."
        return warning(
            "cluster", f"a Slurm shell, not a task: no {', '.join(missing)}", fix
        )
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        if "JOB_COMPLETION_INDEX" not in os.environ:
            return ok("cluster", "none: a Kubernetes pod outside an indexed job")
        fix = "pip install kubernetes, or set --coordinator and the others."
        return warning("cluster", "a Kubernetes job without the client package", fix)
    return ok("cluster", "none: one process, unless options start several")


def _proxies() -> list[Check]:
    names = [n for n in os.environ if n.lower().endswith("_proxy")]
    names = [n for n in names if n.lower() != "no_proxy"]
    if not names:
        return []
    fix = "Unset them for runs of several processes, which may hang at their start."
    return [warning("proxies", f"{', '.join(sorted(names))} set", fix)]


def _files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        most = "" if hard in (soft, resource.RLIM_INFINITY) else f" (at most {hard:,})"
        return warning("open files", f"at most {soft:,}", f"ulimit -n 4096{most}")
    seen = "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft:,}"
    return ok("open files", seen)


def _memory() -> Check:
    total, limit = memory_bytes(), memory_limit()
    seen = f"{total / 1e9:.1f} GB, {cores()} cores"
    if limit is None or limit >= total:
        return ok("memory", seen)
    seen += f"; this process may use {limit / 1e9:.1f} GB of it"
    if limit < 4e9:
        fix = "Ask the scheduler for more, or it will kill the run."
        return warning("memory", seen, fix)
    return ok("memory", seen)


def _shared() -> list[Check]:
    path = "/dev/shm"
    if sys.platform != "linux":
        return []
    fix = "docker run --shm-size=1g (NCCL and worker processes use it)."
    try:
        stats = os.statvfs(path)
    except OSError as error:
        return [warning("shared memory", f"{path}: {error.strerror}", fix)]
    size = stats.f_blocks * stats.f_frsize
    if size <= _LITTLE_SHARED:
        return [warning("shared memory", f"{path} has {size / 2**20:.0f} MiB", fix)]
    return [ok("shared memory", f"{path} has {size / 2**30:.1f} GiB")]


def _pages() -> list[Check]:
    if sys.platform != "linux":
        return []
    kernel = read("/sys/kernel/mm/transparent_hugepage/enabled")
    ours = "glibc.malloc.hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "")
    if "[never]" in kernel:
        fix = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        seen = "the kernel does not allow them: steps on the CPU are slower"
        return [warning("huge pages", seen, fix)]
    return [ok("huge pages", "used" if ours else "not requested by this process")]


def _tpu_lock() -> list[Check]:
    """Returns a check of the lock by which one process keeps others off the TPU."""
    path = Path("/tmp/libtpu_lockfile")
    if not path.exists():
        return []
    if not os.access(path, os.R_OK | os.W_OK):
        fix = f"sudo rm {path}, once no other process uses the TPU"
        return [problem("TPU lock", f"{path} belongs to another user", fix)]
    import fcntl

    with open(path, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fix = f"lsof {path} names the process that uses the TPU; end it."
            return [problem("TPU lock", f"another process holds {path}", fix)]
    return [ok("TPU lock", "free")]
