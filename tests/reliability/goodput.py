"""Measures how much time kills cost a run, beside what they must cost.

    python tests/reliability/goodput.py --kills=50

A kill costs a start, and half the steps between two checkpoints on average. What is
lost beyond that, as a share of the whole, is the figure; times are of the clock, so
other work on the machine counts, too.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import runs
from faults import LIMIT_SECONDS, wait_until


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps_a_kill", type=int, default=200)
    parser.add_argument("--checkpoint_every", type=int, default=50)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    steps = args.steps_a_kill * (args.kills + 1)
    with tempfile.TemporaryDirectory(prefix="plmjax-goodput-") as folder:
        case = runs.Case(
            Path(folder),
            "mlm",
            steps,
            checkpoint_every=args.checkpoint_every,
            evaluate_every=steps,
        )
        case.write_corpus()
        _, unbroken = _live(case, case.folder / "unbroken", None)
        workdir, begin = case.folder / "killed", time.monotonic()
        starts, repeated = [], 0
        for _ in range(args.kills):
            at = runs.newest_checkpoint(workdir) + chance.randint(
                1, 2 * args.steps_a_kill - 1
            )
            started, _ = _live(case, workdir, min(at, steps - 1))
            starts.append(started)
            done = runs.last_step(workdir)
            repeated += done - runs.newest_checkpoint(workdir)
        started, _ = _live(case, workdir, None)
        total = time.monotonic() - begin
    a_step = (unbroken - starts[0]) / steps
    must = sum(starts[1:]) + started + args.kills * args.checkpoint_every / 2 * a_step
    result = {
        "kills": args.kills,
        "steps": steps,
        "unbroken_seconds": round(unbroken, 1),
        "seconds": round(total, 1),
        "goodput": round(unbroken / total, 3),
        "steps_repeated_a_kill": round(repeated / args.kills, 1),
        "start_seconds": round(sum(starts) / len(starts), 1),
        # The target: at most 0.05.
        "lost_beyond": round((total - unbroken - must) / total, 3),
    }
    print(json.dumps(result))
    return 1 if result["lost_beyond"] > 0.05 else 0


def _live(case: runs.Case, workdir: Path, until: int | None) -> tuple[float, float]:
    """Starts a run, and kills it at a step, if any; returns (seconds to its first
    step, seconds in all).
    """
    begin, first = time.monotonic(), runs.newest_checkpoint(workdir)
    records = workdir / runs.METRICS
    old = records.stat().st_ino if records.exists() else None

    def steps() -> bool:
        # What an earlier start has recorded beyond its checkpoint is there until a new
        # file takes its place, right before the first step.
        anew = records.exists() and records.stat().st_ino != old
        return anew and runs.last_step(workdir) > first

    with case.pretrain(workdir) as group:
        assert wait_until(steps, group), group.all_output()
        started = time.monotonic() - begin
        if until is None:
            (finished,) = group.finish(LIMIT_SECONDS)
            assert finished.code == 0, finished.output
        else:
            assert wait_until(lambda: runs.last_step(workdir) >= until, group)
            group.kill(0)
    return started, time.monotonic() - begin


if __name__ == "__main__":
    sys.exit(main())
