"""Trials on this machine, a few at a time, each in a process of its own."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from plmjax import Exit
from plmjax.console import duration
from plmjax.sweep import halving, trials
from plmjax.sweep.devices import Slot
from plmjax.sweep.plan import StudyConfig, as_text, describe
from plmjax.sweep.study import Study
from plmjax.sweep.texts import Texts
from plmjax.sweep.trials import Result, Trial

# Lines of its log that a failure is reported with.
_TAIL = 6
# How a process ends that can be started again: it was told to stop.
_STOPPED = (Exit.RESUMABLE, -signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR2)


class Process(Protocol):
    """A running command; subprocess.Popen is one."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


# Starts `plmjax ARGUMENT...` in a slot, its output appended to a file.
Start = Callable[[Sequence[str], Path, Slot, Mapping[str, str]], Process]


def start_process(
    arguments: Sequence[str], log: Path, slot: Slot, environment: Mapping[str, str]
) -> subprocess.Popen:
    """Starts `plmjax ARGUMENT...` on the cores and devices of a slot."""
    cores = ",".join(map(str, slot.cores))
    command = [sys.executable, "-m", "plmjax.sweep.child", str(os.getpid()), cores]
    with open(log, "ab") as output:
        return subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment | slot.environment,
            # Ctrl-C at the terminal reaches the sweep alone, which tells them.
            start_new_session=True,
        )


class Stop:
    """Turns Ctrl-C, SIGTERM and SIGUSR2 into a flag; a second Ctrl-C interrupts.

    Handlers are installed within `with`, in the main thread, and put back after it.
    """

    def __init__(self):
        self.received: str | None = None
        self._old: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _receive(self, number, _frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        os.write(2, b"\nThe trials save and stop; Ctrl-C again ends them at once.\n")


@dataclasses.dataclass
class _Job:
    """A process under way: a trial's, or the one that prepares its text."""

    trial: Trial
    process: Process
    slot: Slot
    log: Path
    log_begins: int
    began: float
    # None for the preparation of text.
    follower: halving.Follower | None
    curve: halving.Curve
    pruned: bool = False


class Local:
    """Runs a study to its end, or until a signal comes."""

    def __init__(
        self,
        study: Study,
        config: StudyConfig,
        fixed: Sequence[str],
        texts: Texts | None,
        slots: Sequence[Slot],
        log: Callable[[str], Any],
        start: Start = start_process,
        poll_seconds: float = 0.2,
    ):
        self.study, self.config, self.fixed, self.texts = study, config, fixed, texts
        self.log, self._start, self._poll = log, start, poll_seconds
        self._free = [*slots]
        self._jobs: list[_Job] = []
        # One that has been taken from the study and waits for its text.
        self._held: Trial | None = None
        # What others have shown, by number: pruning compares with it.
        self._curves: dict[int, halving.Curve] = {}

    def remember(self, results: Sequence[Result]) -> None:
        """Takes the evaluations of earlier trials, which later ones are held to."""
        self._curves |= {r.trial.number: dict(r.curve) for r in results if r.curve}

    def run(self) -> str | None:
        """Runs until nothing is left; returns the signal that came before, if one did.

        Raises:
          PlmjaxError: the objective is no figure of the runs.
        """
        told = False
        with Stop() as stop, self._no_orphans():
            while True:
                if not stop.received:
                    self._fill()
                if not self._jobs:
                    return stop.received
                if stop.received and not told:
                    told = True
                    for job in self._jobs:
                        job.process.terminate()
                for job in [*self._jobs]:
                    code = job.process.poll()
                    self._watch(job)
                    if code is not None:
                        self._jobs.remove(job)
                        self._free.append(job.slot)
                        self._ended(job, code)
                time.sleep(self._poll)

    @contextlib.contextmanager
    def _no_orphans(self):
        """Ends every process, whatever ends the loop."""
        try:
            yield
        finally:
            for job in self._jobs:
                job.process.kill()
            while any(job.process.poll() is None for job in self._jobs):
                time.sleep(self._poll)

    def _fill(self) -> None:
        """Starts what there is room for."""
        while self._free:
            trial = self._held or self.study.next()
            self._held = None
            if trial is None:
                return
            if self.texts is not None and self.texts.wanted(trial):
                if failure := self.texts.failure(trial):
                    self._failed(trial, **failure)
                    continue
                self._held = trial
                if all(job.follower is not None for job in self._jobs):
                    self._prepare(trial)
                return
            self._begin(trial)

    def _prepare(self, trial: Trial) -> None:
        assert self.texts is not None
        directory = self.texts.directory(trial)
        directory.mkdir(parents=True, exist_ok=True)
        self.log(f"Preparing the text in {directory}.")
        command = self.texts.command(trial, self.fixed)
        self._launch(trial, command, directory / "log.txt", None)

    def _begin(self, trial: Trial) -> None:
        trial.save()
        (trial.directory / "outcome.json").unlink(missing_ok=True)
        if self.texts is not None:
            self.texts.link(trial)
        follower = halving.Follower(trial.directory / "metrics.jsonl")
        log = trial.directory / "log.txt"
        job = self._launch(trial, trial.command(self.fixed), log, follower)
        where = f" ({job.slot.name})" if job.slot.name else ""
        self.log(f"{trial.name.capitalize()}: {describe(trial.values)}{where}.")

    def _launch(
        self,
        trial: Trial,
        command: Sequence[str],
        log: Path,
        follower: halving.Follower | None,
    ) -> _Job:
        slot = self._free.pop(0)
        begins = log.stat().st_size if log.exists() else 0
        # Trials compile much the same programs.
        cache = {"JAX_COMPILATION_CACHE_DIR": str(trial.directory.parents[1] / ".xla")}
        # All trials of a text wait for it: it may have every core.
        given = slot if follower else dataclasses.replace(slot, cores=())
        process = self._start(command, log, given, cache | _own_cache())
        job = _Job(
            trial=trial,
            process=process,
            slot=slot,
            log=log,
            log_begins=begins,
            began=time.monotonic(),
            follower=follower,
            curve={},
        )
        self._jobs.append(job)
        return job

    def _watch(self, job: _Job) -> None:
        """Takes in new evaluations of a trial, and ends it if it falls behind."""
        if job.follower is None:
            return
        for record in job.follower.read():
            value = record.get(self.config.objective)
            if value is None:
                self._check_objective(record)
                continue
            job.curve[record["step"]] = value
            self._curves[job.trial.number] = job.curve
            if self._to_prune(job):
                job.pruned = True
                # Before it ends: killed in between, we must not start it again.
                trials.write_outcome(job.trial, "pruned")
                job.process.terminate()

    def _to_prune(self, job: _Job) -> bool:
        first, step = self.config.prune_from_step, max(job.curve)
        if first is None or job.pruned or step >= job.trial.config["train"]["steps"]:
            return False
        others = [c for n, c in self._curves.items() if n != job.trial.number]
        factor, maximise = self.config.prune_factor, self.config.maximise
        return halving.falls_behind(job.curve, others, first, factor, maximise)

    def _check_objective(self, record: dict) -> None:
        """Refuses a name that no run gives, instead of training them all first."""
        known = record.keys() - {"kind", "step", "tokens", "seconds"}
        waits = self.config.prune_from_step is None
        if not (waits and self.config.objective in _ONLY_AT_THE_END):
            raise trials.unknown_objective(self.config.objective, known)

    def _ended(self, job: _Job, code: int) -> None:
        trial = job.trial
        spent = duration(time.monotonic() - job.began)
        if job.follower is None:
            if code not in (Exit.OK, *_STOPPED):
                assert self.texts is not None
                failure = {"code": code, "path": job.log, "lines": _tail(job)}
                self.texts.failed(trial, failure)
            return
        result = trials.result(trial, self.config.objective)
        name = trial.name.capitalize()
        if result.state == "finished":
            (trial.directory / "outcome.json").unlink(missing_ok=True)
            self.log(f"{name} finished in {spent}: {self._value(result)}.")
            if code != Exit.OK:
                self.log(f"{name}: {how_ended(code)} after its scores; see {job.log}.")
        elif job.pruned and code in _STOPPED:
            self.log(f"{name} pruned at step {result.step:,}: {self._value(result)}.")
        elif code in _STOPPED:
            self.log(f"{name} was stopped after {spent}.")
            return
        else:
            self._failed(trial, code, job.log, _tail(job))
            return
        self.study.ended(result)

    def _value(self, result: Result) -> str:
        return f"{self.config.objective} {as_text(result.value)}"

    def _failed(
        self, trial: Trial, code: int, path: Path, lines: Sequence[str]
    ) -> None:
        trial.save()
        trials.write_outcome(trial, "failed", code, lines)
        quoted = "".join(f"\n  {line}" for line in lines)
        name = trial.name.capitalize()
        self.log(f"{name} FAILED ({how_ended(code)}); the end of {path}:{quoted}")
        self.study.ended(trials.result(trial, self.config.objective))


# What scores.json has and evaluations lack.
_ONLY_AT_THE_END = (
    "unigram_loss",
    "teacher_loss",
    "teacher_accuracy",
    "kept",
    "smaller",
    "faster",
)


def _own_cache() -> dict[str, str]:
    name = "JAX_COMPILATION_CACHE_DIR"
    return {name: os.environ[name]} if name in os.environ else {}


def how_ended(code: int) -> str:
    """Returns an exit code for a person: signals by name."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _tail(job: _Job) -> list[str]:
    """Returns the last lines that a process has printed."""
    with open(job.log, "rb") as file:
        file.seek(job.log_begins)
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if line.strip()][-_TAIL:]
