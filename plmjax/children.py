"""Child processes of this machine: started to end with us, ended with all of theirs.

Nothing here imports jax: what starts processes must not take the devices from them.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
# Looked up here: between fork and exec little may be done.
_LIBC = ctypes.CDLL(None)


def die_with(parent: int, number: int) -> bool:
    """Lets this process get signal `number` when `parent` ends, where that is Linux.

    Returns whether the parent still lives; it may have died before this call.
    """
    if sys.platform == "linux":
        _LIBC.prctl(_SET_DEATH_SIGNAL, number)
    return os.getppid() == parent


def kill_group(process: subprocess.Popen) -> None:
    """Kills a process that leads its session, and all that it started."""
    # A stranger's number if nobody is left of the group, which may not be touched.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def is_alive(number: int) -> bool:
    """Says whether this machine has a process of that number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nobody listened at a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
