"""Faults: their kinds, the moments they fall on, and how processes may end by them."""

import dataclasses
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import runs
from processes_common import Group

# TERM+KILL: the grace time was too short. STOP+KILL: killed while it stood still.
KINDS = ("KILL", "TERM", "TERM+KILL", "STOP+CONT", "STOP+KILL")
MIDDLE = ("step", "save", "evaluation")
PHASES = ("start", "prepare", *MIDDLE, "final", "export")
# A process that has not ended so many seconds after it had to, hangs. Generous: the
# machine may have other work.
LIMIT_SECONDS = 180.0
_POLL_SECONDS = 0.001
# How JAX ends the others when a process of theirs has died.
_PEER_CODES = {75, -signal.SIGABRT}


@dataclasses.dataclass(frozen=True)
class Durations:
    """Seconds that an unbroken run takes: moments are drawn from all of them."""

    start: float
    prepare: float
    final: float
    export: float
    total: float


@dataclasses.dataclass(frozen=True)
class Life:
    """The processes of one start of a run, and what they found on the disk."""

    case: runs.Case
    workdir: Path
    group: Group
    resumed: int
    records: int | None

    @classmethod
    def begin(cls, case: runs.Case, workdir: Path, group: Group) -> "Life":
        resumed = runs.newest_checkpoint(workdir)
        return cls(case, workdir, group, resumed, _inode(workdir / runs.METRICS))

    def phase(self) -> str:
        """Returns which of PHASES it is in now, as far as its files tell."""
        workdir = self.workdir
        if "Model:" not in self.group.output(0):
            if (workdir / "run.json").exists() or not locked(workdir, self.group):
                return "start"
            return "prepare"
        saves = runs.checkpoints(workdir)
        if saves.get(self.case.steps):
            return "final"
        # The records of an earlier start are rewritten before the first step.
        step = runs.last_step(workdir)
        if _inode(workdir / runs.METRICS) == self.records or step <= self.resumed:
            return "start"
        if not all(saves.values()):
            return "save"
        due = step % self.case.evaluate_every == 0 or step == self.case.steps
        seen = runs.last_step(workdir, "evaluation")
        return "evaluation" if due and seen < step else "step"


@dataclasses.dataclass(frozen=True)
class Moment:
    """So many seconds after something is there to be seen."""

    ready: Callable[[], bool]
    seconds: float

    def wait(self, group: Group) -> bool:
        """Returns True at the moment; False if the processes have ended before."""
        if wait_until(self.ready, group):
            time.sleep(self.seconds)
        return running(group)


def moment(
    phase: str, life: Life, chance: random.Random, durations: Durations, ahead: int
) -> Moment:
    """Draws a moment of a phase; of the steps that are left `ahead` faults share."""
    case, workdir = life.case, life.workdir
    if phase == "start":
        return Moment(lambda: True, chance.uniform(0, durations.start))
    if phase == "prepare":
        return Moment(
            lambda: locked(workdir, life.group) or (workdir / "run.json").exists(),
            chance.uniform(0, durations.prepare),
        )
    if phase == "final":
        return Moment(
            lambda: runs.newest_checkpoint(workdir) == case.steps,
            chance.uniform(0, durations.final),
        )
    now = runs.newest_checkpoint(workdir)
    step = now + chance.randint(1, max(1, 2 * (case.steps - now) // (ahead + 1)))
    if phase == "save":
        return Moment(
            lambda: any(
                s >= step and not whole
                for s, whole in runs.checkpoints(workdir).items()
            ),
            chance.uniform(0, 0.1),
        )
    if phase == "evaluation":
        step += -step % case.evaluate_every
    # While records of an earlier start are there, nothing tells the step.
    return Moment(
        lambda: (
            _inode(workdir / runs.METRICS) != life.records
            and runs.last_step(workdir) >= min(step, case.steps)
        ),
        chance.uniform(0, 0.05),
    )


def strike(group: Group, kind: str, chance: random.Random) -> int:
    """Lets a fault happen to one process of the group; returns which."""
    victim = chance.randrange(len(group.processes))
    first, _, second = kind.partition("+")
    group.send(victim, signal.Signals[f"SIG{first}"])
    if second:
        time.sleep(chance.uniform(0.0, 1.0))
        group.send(victim, signal.Signals[f"SIG{second}"])
    return victim


def end(group: Group, kind: str, victim: int, phase: str) -> tuple[int, list[str]]:
    """Waits until all have ended by a fault; returns the victim's code and problems."""
    if "processes, found by" not in group.output(0) and len(group.processes) > 1:
        # They have not met: the others wait five minutes for the victim, unless who
        # started them ends them, as launchers do.
        group.processes[victim].wait(LIMIT_SECONDS)
        group.end()
        return group.processes[victim].returncode, []
    try:
        finished = group.finish(LIMIT_SECONDS)
    except AssertionError as hanging:
        return 0, [f"hang after {kind}: {hanging}"]
    problems = []
    for index, process in enumerate(finished):
        allowed = {0, *_PEER_CODES}
        if index == victim:
            allowed = _allowed(kind, process.output)
        if process.code not in allowed:
            problems.append(f"process {index} ended with {process.code}")
        elif process.code == 75 and phase != "start" and "Traceback" in process.output:
            # At the start numpy prints one of its own when its import is broken off.
            problems.append(f"process {index} showed a traceback")
    if problems:
        problems[-1] += "".join(
            f"\n--- process {index}, exit code {process.code}\n{_ends(process.output)}"
            for index, process in enumerate(finished)
        )
    what = f"{kind} of process {victim} in {phase}"
    return finished[victim].code, [f"{what}: {problem}" for problem in problems]


def _ends(text: str, size: int = 2500) -> str:
    """Returns the beginning and the end of what may be long."""
    return text if len(text) < 2 * size else f"{text[:size]}\n[...]\n{text[-size:]}"


def _allowed(kind: str, output: str) -> set[int]:
    """Returns how a process may end by a fault; 0: it had done its work."""
    if kind.startswith("STOP") or kind == "KILL":
        return {-signal.SIGKILL, 0}
    # Before Python has come to plmjax, and while it leaves when all is done, nobody can
    # turn the signal into a 75.
    done = "\nNext:\n" in output or output.startswith("Exported step")
    outside = {-signal.SIGTERM} if done or not output else set()
    killed = {-signal.SIGKILL} if kind.endswith("KILL") else set()
    return {75, 0} | outside | killed


# --- waiting


def wait_until(ready: Callable[[], bool], group: Group) -> bool:
    """Returns True once something is there; False if the processes end without it."""
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        if ready():
            return True
        if not running(group):
            return False
        time.sleep(_POLL_SECONDS)
    return False


def running(group: Group) -> bool:
    return any(process.poll() is None for process in group.processes)


def locked(workdir: Path, group: Group) -> bool:
    """Says whether the group's first process holds the run's lock."""
    return f"process {group.processes[0].pid} on" in runs.read(workdir, ".lock")


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None
