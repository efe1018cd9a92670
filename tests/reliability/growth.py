"""Watches memory, open files and threads of a run: none may grow with its steps.

python tests/reliability/growth.py --steps=5000 --saves=100
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import runs
from faults import LIMIT_SECONDS, running

# By then everything has been compiled, and saved once.
_WARM = 0.2
_LIMIT_GROWTH = 0.02


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a process holds at a step: resident bytes, open files, threads."""

    step: int
    memory: int
    files: int
    threads: int


def watch(case: runs.Case, workdir: Path) -> list[Sample]:
    """Lets a run go to its end; returns some samples a second."""
    samples = []
    with case.pretrain(workdir) as group:
        pid = group.processes[0].pid
        while running(group):
            try:
                samples.append(_sample(pid, runs.last_step(workdir)))
            except OSError:
                break  # It has just ended.
            time.sleep(0.2)
        (finished,) = group.finish(LIMIT_SECONDS)
    assert finished.code == 0, finished.output
    return [s for s in samples if 0 < s.step < case.steps]


def _sample(pid: int, step: int) -> Sample:
    status = Path(f"/proc/{pid}/status").read_text()
    memory = re.search(r"VmRSS:\s+(\d+) kB", status)
    threads = re.search(r"Threads:\s+(\d+)", status)
    if not memory or not threads:
        raise ProcessLookupError(pid)  # It has ended, and nobody has waited for it.
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(step, int(memory[1]) * 1024, files, int(threads[1]))


def grown(samples: list[Sample], steps: int) -> dict[str, float]:
    """Returns what grew from the steps after warming up to the last ones.

    A save holds copies, files and threads for a moment: of a fifth of the steps, the
    median of the memory counts, and the fewest files and threads.
    """

    def during(begin: float, end: float) -> tuple[float, int, int]:
        found = [s for s in samples if begin * steps <= s.step <= end * steps]
        assert found, "the run was too quick to be watched"
        memory = sorted(s.memory for s in found)[len(found) // 2]
        return memory, min(s.files for s in found), min(s.threads for s in found)

    first, last = during(_WARM, 2 * _WARM), during(1 - _WARM, 1)
    return {
        "memory_mb": round(last[0] / 1e6),
        "memory_growth": round(last[0] / first[0] - 1, 4),
        "files_growth": last[1] - first[1],
        "threads_growth": last[2] - first[2],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--saves", type=int, default=100)
    parser.add_argument("--objective", choices=list(runs.OBJECTIVES), default="nsp")
    args = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="plmjax-growth-") as folder:
        case = runs.Case(
            Path(folder),
            args.objective,
            args.steps,
            checkpoint_every=args.steps // args.saves,
            evaluate_every=args.steps // 10,
        )
        case.write_corpus()
        found = grown(watch(case, case.folder / "run"), args.steps)
    bad = (
        found["memory_growth"] > _LIMIT_GROWTH
        or found["files_growth"] > 0
        or found["threads_growth"] > 0
    )
    print(json.dumps(vars(args) | found | {"seconds": round(time.monotonic() - begin)}))
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
