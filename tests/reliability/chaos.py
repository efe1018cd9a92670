"""Kills, stops and wakes small runs at random moments, again and again, and proves
that what each ends as is the run that nobody touched, bit for bit.

    python tests/reliability/chaos.py --rounds=100 --seed=0
    python tests/reliability/chaos.py --rounds=50 --objective=electra --processes=2

A round is a fault. Several fall on one run, from its preparation to its export; then
it may finish and is compared, and the next run begins. Exit code 0 if all were equal,
nothing hung, and every process ended as it should.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import faults
import runs
from faults import LIMIT_SECONDS, MIDDLE, PHASES, Durations, Life, wait_until
from processes_common import Group

# How often a fault is aimed at each phase.
WEIGHTS = {
    "start": 1,
    "prepare": 2,
    "step": 3,
    "save": 4,
    "evaluation": 2,
    "final": 2,
    "export": 2,
}
# The run with another batch at one step: what the ledger has to notice.
_CONTROL = """
import sys
import numpy as np
from plmjax.cli import main
from plmjax.data.loader import Loader
batch = Loader.batch
def changed(self, step, *ahead):
    found = batch(self, step, *ahead)
    if step != {step}:
        return found
    old, n = batch(self, step - 1, *ahead), {rows}
    return {{k: np.concatenate([old[k][:n], v[n:]]) for k, v in found.items()}}
Loader.batch = changed
sys.exit(main(sys.argv[1:]))
"""


@dataclasses.dataclass
class Count:
    """What has happened in all."""

    faults: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    codes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    # Moments that came after the processes had done their work.
    missed: int = 0
    runs: int = 0
    starts: int = 0
    # Steps that were done and not saved, of runs that SIGTERM stopped while training.
    stopped_in_training: int = 0
    steps_lost: int = 0
    problems: list[str] = dataclasses.field(default_factory=list)

    def problem(self, text: str) -> None:
        print(f"PROBLEM {text}", flush=True)
        self.problems.append(text)

    @property
    def done(self) -> int:
        return sum(self.faults.values())


class Chaos:
    """A campaign of faults against runs of one case."""

    def __init__(self, case: runs.Case, chance: random.Random, kinds: tuple[str, ...]):
        self.case, self.chance, self.kinds = case, chance, kinds
        self.count = Count()
        # The last part of the name becomes the model card's title: the same for all.
        self.reference = case.folder / "unbroken" / "model"
        self.exported = case.folder / "exported"
        case.write_corpus()
        self.durations = self._unbroken()
        self.rows = runs.rows_read(case, self.reference)

    def _unbroken(self) -> Durations:
        """Runs to the end what nobody touches."""
        workdir, begin = self.reference, time.monotonic()
        with self.case.pretrain(workdir) as group:
            marks = []
            for ready in (
                lambda: faults.locked(workdir, group),
                lambda: (workdir / "run.json").exists(),
                lambda: runs.last_step(workdir) > 0,
                lambda: runs.newest_checkpoint(workdir) == self.case.steps,
            ):
                assert wait_until(ready, group), group.all_output()
                marks.append(time.monotonic())
            self._succeed(group)
        end = time.monotonic()
        with self.case.export(workdir, self.exported) as group:
            self._succeed(group)
        locked, prepared, stepped, trained = marks
        return Durations(
            start=locked - begin + stepped - prepared,
            prepare=prepared - locked,
            final=end - trained,
            export=time.monotonic() - end,
            total=end - begin,
        )

    def _succeed(self, group: Group) -> None:
        """Waits for processes that nobody touches any more; all must end with 0."""
        for process in group.finish(LIMIT_SECONDS):
            assert process.code == 0, f"ended with {process.code}:\n{process.output}"

    def check_ledger(self) -> None:
        """Shows that the records tell of one other row, and of a step done twice."""
        step = self.case.steps // 2
        for rows in (1, len(self.rows[0])):
            workdir = self.case.folder / f"control{rows}" / "model"
            program = ("-c", _CONTROL.format(step=step, rows=rows))
            with self.case.pretrain(workdir, program) as group:
                self._succeed(group)
            noticed = runs.first_difference(self.reference, workdir)
            if noticed != step + 1:
                self.count.problem(
                    f"{rows} other rows at step {step + 1} were noticed at {noticed}"
                )
            shutil.rmtree(workdir.parent)

    def run(self, number: int, rounds: int) -> None:
        """Lets so many faults fall on one run, then lets it finish and compares it."""
        workdir = self.case.folder / f"run{number}" / "model"
        plan = self._plan(rounds)
        exports = plan.count("export")
        plan = [phase for phase in plan if phase != "export"]
        with contextlib.ExitStack() as stack:
            life = None
            for index, phase in enumerate(plan):
                life = life or self._start(workdir, stack)
                ahead = sum(p in MIDDLE for p in plan[index:])
                moment = faults.moment(phase, life, self.chance, self.durations, ahead)
                if not self._fault(life, moment):
                    life = None
            life = life or self._start(workdir, stack)
            self._succeed(life.group)
        self.count.runs += 1
        for difference in runs.differences(self.reference, workdir):
            self.count.problem(f"run {number}: {difference}")
        if runs.rows_read(self.case, workdir) != self.rows:
            self.count.problem(f"run {number}: its batches have other rows")
        self._exports(workdir, exports)
        shutil.rmtree(workdir.parent)

    def _plan(self, rounds: int) -> list[str]:
        """Draws the phases that faults are aimed at, in the order of a run."""
        drawn = self.chance.choices(PHASES, [WEIGHTS[p] for p in PHASES], k=rounds)
        order = {"prepare": 1, **dict.fromkeys(MIDDLE, 2), "final": 3, "export": 4}
        # The start that is hit is the first, or a later one.
        place = [order.get(p) or self.chance.choice((0, 2)) for p in drawn]
        return [
            p for _, p in sorted(zip(place, drawn, strict=True), key=lambda x: x[0])
        ]

    def _start(self, workdir: Path, stack: contextlib.ExitStack) -> Life:
        self.count.starts += 1
        before = Life.begin(self.case, workdir, None)
        group = stack.enter_context(self.case.pretrain(workdir))
        return dataclasses.replace(before, group=group)

    def _fault(self, life: Life, moment: faults.Moment) -> bool:
        """Strikes at a moment; returns whether the processes go on after it."""
        if not moment.wait(life.group):
            self.count.missed += 1
            self._succeed(life.group)
            return False
        kind, phase = self.chance.choice(self.kinds), life.phase()
        victim = faults.strike(life.group, kind, self.chance)
        self.count.faults[kind, phase] += 1
        if kind == "STOP+CONT":
            return True
        code, problems = faults.end(life.group, kind, victim, phase)
        self.count.codes[kind, code] += 1
        for problem in problems:
            self.count.problem(problem)
        if code == 75 and phase in MIDDLE:
            saved = runs.newest_checkpoint(life.workdir)
            self.count.stopped_in_training += 1
            self.count.steps_lost += max(0, runs.last_step(life.workdir) - saved)
        return False

    def _exports(self, workdir: Path, rounds: int) -> None:
        """Lets faults fall on exports: the folder is whole, or not there yet."""
        to = workdir.with_name("export")
        new = to.with_name(f".{to.name}.plmjax-new")
        was_there = False
        for _ in range(rounds):
            with self.case.export(workdir, to) as group:
                if self.chance.random() < 0.5:
                    moment = faults.Moment(new.exists, self.chance.uniform(0, 0.05))
                else:
                    seconds = self.chance.uniform(0, self.durations.export)
                    moment = faults.Moment(lambda: True, seconds)
                if moment.wait(group):
                    kind = self.chance.choice(self.kinds)
                    victim = faults.strike(group, kind, self.chance)
                    self.count.faults[kind, "export"] += 1
                    code, problems = faults.end(group, kind, victim, "export")
                    self.count.codes[kind, code] += 1
                    for problem in problems:
                        self.count.problem(problem)
                else:
                    self.count.missed += 1
                    self._succeed(group)
            self._check_export(to, was_there)
            was_there = to.exists()
        if rounds:
            with self.case.export(workdir, to) as group:
                self._succeed(group)
            self._check_export(to, True)
            left = [p.name for p in to.parent.glob(f".{to.name}.*")]
            if left:
                self.count.problem(f"export: left behind {left}")
            shutil.rmtree(to)

    def _check_export(self, to: Path, must_exist: bool) -> None:
        if not to.exists():
            if must_exist:
                self.count.problem("export: the folder is gone")
            return
        if contents(to) != contents(self.exported):
            self.count.problem("export: the folder is not whole")


def contents(folder: Path) -> dict[str, bytes]:
    """Returns {name: bytes} of all files of a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def table(count: Count) -> str:
    """Returns faults by kind and by the phase they fell on."""
    lines = [" " * 10 + "".join(f"{phase:>11}" for phase in PHASES)]
    for kind in faults.KINDS:
        cells = [count.faults[kind, phase] for phase in PHASES]
        lines.append(f"{kind:10}" + "".join(f"{cell:11}" for cell in cells))
    codes = ", ".join(f"{k} -> {c}: {n}" for (k, c), n in sorted(count.codes.items()))
    return "\n".join([*lines, f"exit codes: {codes}"])


def campaign(case: runs.Case, seed: int, rounds: int, a_run: int, kinds) -> Count:
    """Returns what `rounds` faults did to runs of a case, a few on each run."""
    begin = time.monotonic()
    chaos = Chaos(case, random.Random(seed), tuple(kinds))
    chaos.check_ledger()
    count, number = chaos.count, 0
    while count.done < rounds:
        number += 1
        chaos.run(number, min(a_run, rounds - count.done))
        print(
            f"run {number}: {count.done}/{rounds} faults, {count.starts} starts, "
            f"{len(count.problems)} problems, {time.monotonic() - begin:.0f} s",
            flush=True,
        )
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=100, help="faults in all")
    add("--a_run", type=int, default=10, help="faults on one run")
    add("--seed", type=int, default=0)
    add("--objective", choices=list(runs.OBJECTIVES), default="nsp")
    add("--steps", type=int, default=200, help="of each run")
    add("--processes", type=int, default=1)
    add("--devices", type=int, default=1, help="virtual devices of each process")
    add("--kinds", nargs="+", choices=faults.KINDS, default=faults.KINDS)
    add("--folder", help="where the runs live and stay (default: a temporary one)")
    args = parser.parse_args()
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = args.folder or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="plmjax-chaos-")
        )
        if Path(folder).exists() and any(Path(folder).iterdir()):
            parser.error(f"--folder={folder} is not empty")
        case = runs.Case(
            Path(folder).absolute(),
            args.objective,
            args.steps,
            processes=args.processes,
            devices=args.devices,
        )
        count = campaign(case, args.seed, args.rounds, args.a_run, args.kinds)
    print(table(count))
    result = {
        "objective": args.objective,
        "processes": args.processes,
        "seed": args.seed,
        "faults": count.done,
        "missed": count.missed,
        "runs_equal": count.runs if not count.problems else None,
        "starts": count.starts,
        "stopped_in_training": count.stopped_in_training,
        "steps_lost": count.steps_lost,
        "problems": len(count.problems),
        "seconds": round(time.monotonic() - begin),
    }
    print(json.dumps(result))
    return 1 if count.problems or count.steps_lost else 0


if __name__ == "__main__":
    sys.exit(main())
