"""Checks the disk of a workdir: space, speed, and the file system's guarantees."""

import fcntl
import os
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path

from plmjax.children import is_alive
from plmjax.doctor.check import Check, ok, problem, warning
from plmjax.files import locked_by

_LEAST_BYTES, _FEW_BYTES = 200e6, 5e9
_LEAST_FILES = 1000
_PROBE_BYTES = 32 * 2**20
# A checkpoint of BERT base is 1.3 GB; saving it should take minutes at most.
_SLOW_BYTES_PER_SECOND = 20e6
# Difference of the file system's clock and this machine's. plmjax does not compare the
# two, but make, rsync and people do.
_SKEW_SECONDS = 2.0


def checks(workdir: str) -> list[Check]:
    """Returns the checks of a workdir, which need not exist yet."""
    path = Path(workdir).absolute()
    here = next(p for p in (path, *path.parents) if p.exists())
    try:
        folder = Path(tempfile.mkdtemp(prefix=".plmjax-doctor-", dir=here))
    except OSError as error:
        fix = "Choose another --workdir, or change its permissions."
        seen = f"{here} cannot be written: {error.strerror}"
        return [problem("workdir", seen, fix, disk=True)]
    try:
        # The kind of file system comes first, because it explains the others.
        rows = [ok("workdir", f"{here} ({_kind(here)})"), _space(here), *_inodes(here)]
        if rows[1].status != "problem":
            rows += [_speed(folder), _rename(folder), _lock(folder), _skew(folder)]
        return [*rows, *_held(path), _cache(path)]
    except OSError as error:
        fix = f"Check whether {here} is full, read-only or missing."
        seen = f"{error.strerror}: {error.filename or here}"
        return [problem("disk", seen, fix, disk=True)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kind(path: Path) -> str:
    """Returns the kind of a path's file system and its mount point."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return "unknown file system"
    mounted = [line.split()[1:3] for line in mounts]
    # White space in a mount point is written in octal; such mount points are rare.
    fitting = [(at, kind) for at, kind in mounted if path.is_relative_to(at)]
    at, kind = max(fitting, key=lambda x: len(x[0]), default=("?", "unknown"))
    return f"{kind} at {at}"


def _space(path: Path) -> Check:
    usage = shutil.disk_usage(path)
    seen = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB are free"
    fix = "Free some space; a checkpoint needs 12 bytes a parameter; three are kept."
    if usage.free < _LEAST_BYTES:
        return problem("space", seen, fix, disk=True)
    if usage.free < _FEW_BYTES:
        return warning("space", seen, fix)
    return ok("space", seen)


def _inodes(path: Path) -> list[Check]:
    stats = os.statvfs(path)
    # Some file systems have no such limit and report 0 of 0.
    if not stats.f_files or stats.f_favail >= _LEAST_FILES:
        return []
    seen = f"only {stats.f_favail:,} more files can be created"
    return [problem("inodes", seen, "Delete files that are not needed.", disk=True)]


def _speed(folder: Path) -> Check:
    block = os.urandom(2**20)  # random, so that no file system can compress it
    begin = time.monotonic()
    with open(folder / "probe", "wb") as file:
        for _ in range(_PROBE_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    rate = _PROBE_BYTES / (time.monotonic() - begin)
    seen = f"{rate / 1e6:,.0f} MB/s written and synced"
    if rate < _SLOW_BYTES_PER_SECOND:
        fix = "Put the workdir on a faster disk, or save less often."
        return warning("speed", seen, fix)
    return ok("speed", seen)


def _rename(folder: Path) -> Check:
    """Checks that renaming works, on which all finished checkpoints and stores rely."""
    (folder / "new").mkdir()
    (folder / "new" / "file").write_text("new")
    (folder / "new").rename(folder / "renamed")
    (folder / "old").write_text("old")
    (folder / "newer").write_text("newer")
    (folder / "newer").replace(folder / "old")
    if (folder / "renamed" / "file").read_text() == "new":
        if (folder / "old").read_text() == "newer":
            return ok("rename", "files and folders can be renamed and replaced")
    fix = "Use a file system with an atomic rename (not a mounted object store)."
    return problem("rename", "a renamed file has other content", fix, disk=True)


def _lock(folder: Path) -> Check:
    fix = "Never start two runs in one workdir here; mount NFS with locks (no nolock)."
    with open(folder / "lock", "w") as one, open(folder / "lock") as two:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            seen = f"no locks here: {error.strerror}"
            return problem("lock", seen, fix, disk=True)
        try:
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ok("lock", "a second run cannot start in a run's workdir")
    return problem("lock", "two processes can hold one lock", fix, disk=True)


def _skew(folder: Path) -> Check:
    before = time.time()
    (folder / "touched").touch()
    seconds = (folder / "touched").stat().st_mtime - before
    if abs(seconds) > _SKEW_SECONDS:
        seen = f"the file system's clock is {seconds:+.1f} s from this machine's"
        fix = "Let both machines use the same time server (chrony, ntpd)."
        return warning("file times", seen, fix)
    return ok("file times", "the same as this machine's clock")


def _held(workdir: Path) -> list[Check]:
    """Returns a check of the workdir's lock, if it has one."""
    path = workdir / ".lock"
    if not path.exists():
        return []
    holder = locked_by(workdir)
    if holder is None:
        return [ok("run", f"no run uses {workdir}")]
    if _is_dead(holder):
        seen = f"locked by {holder}, which has ended"
        fix = f"The file server still holds the lock: mv {path} {path}.old"
        return [problem("run", seen, fix)]
    fix = "Wait for it, or stop it, before you start another run there."
    return [warning("run", f"{holder} uses {workdir}", fix)]


def _is_dead(holder: str) -> bool:
    """Whether a lock's holder was a process of this host that has ended."""
    match = re.fullmatch(r"process (\d+) on (.+)", holder)
    if match is None or match[2] != socket.gethostname():
        return False
    return not is_alive(int(match[1]))


def _cache(workdir: Path) -> Check:
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    path = Path(given) if given else workdir / ".xla"
    here = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if os.access(here, os.W_OK | os.X_OK):
        return ok("compiled programs", f"kept in {path}")
    fix = "Set JAX_COMPILATION_CACHE_DIR to a directory where you may write."
    return warning("compiled programs", f"{path} cannot be written", fix)
