"""The process of a trial: it keeps to its cores, and does not outlive the sweep.

  python -m plmjax.experiments.child PARENT CORES ARGUMENT...

becomes `python -m plmjax ARGUMENT...`. Both settings survive exec, and the parent could
set neither without running Python between fork and exec.
"""

import os
import signal
import sys

from plmjax import Exit, children


def main(parent: str, cores: str, *arguments: str) -> int:
    """Sets signal and cores, then replaces this process by `python -m plmjax`."""
    # A trial whose sweep is killed saves and stops, as on any other SIGTERM.
    if not children.die_with(int(parent), signal.SIGTERM):
        return Exit.RESUMABLE
    if sys.platform == "linux" and cores:
        os.sched_setaffinity(0, map(int, cores.split(",")))
    os.execv(sys.executable, [sys.executable, "-m", "plmjax", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
