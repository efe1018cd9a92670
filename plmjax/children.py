"""Child processes on this machine: they end with us, and are ended with all of theirs.

Nothing here imports jax: the parent must not take the devices from its children.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
# Loaded here, since little is safe between fork and exec.
_LIBC = ctypes.CDLL(None)


def die_with(parent: int, number: int) -> bool:
    """Requests signal `number` for this process when `parent` ends; on Linux only.

    Returns False if the parent has already ended before this call.
    """
    if sys.platform == "linux":
        _LIBC.prctl(_SET_DEATH_SIGNAL, number)
    return os.getppid() == parent


@contextlib.contextmanager
def interrupted_later() -> Iterator[None]:
    """Delivers a Ctrl-C after the block; processes that start in it never get one.

    A terminal sends it to all of them, and each that only works for us would print a
    traceback.
    """
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def kill_group(process: subprocess.Popen) -> None:
    """Kills a process that leads its session, and all processes that it started."""
    # If the group has ended, its number may belong to processes that are not ours.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def is_alive(number: int) -> bool:
    """Returns True if this machine has a process of that number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
