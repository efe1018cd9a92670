"""The process of a trial: it keeps to its cores, and does not outlive the sweep.

  python -m plmjax.sweep.child PARENT CORES ARGUMENT...

becomes `python -m plmjax ARGUMENT...`. Both settings stay over an exec, and neither can
be made from the parent without running Python between fork and exec.
"""

import ctypes
import os
import signal
import sys

from plmjax import Exit

_PR_SET_PDEATHSIG = 1


def main(parent: str, cores: str, *arguments: str) -> int:
    if sys.platform == "linux":
        # A trial whose sweep is killed saves and stops, as on any other SIGTERM.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if cores:
            os.sched_setaffinity(0, map(int, cores.split(",")))
    if os.getppid() != int(parent):
        return Exit.RESUMABLE  # it was killed before we asked to be told
    os.execv(sys.executable, [sys.executable, "-m", "plmjax", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
