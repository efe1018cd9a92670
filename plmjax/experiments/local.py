"""Trials on this machine, a few at a time, each in a separate process."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from plmjax import Exit
from plmjax.console import duration
from plmjax.experiments import halving, trials
from plmjax.experiments.devices import Slot
from plmjax.experiments.sweep_plan import Plan, as_text, describe
from plmjax.experiments.texts import Texts
from plmjax.experiments.trials import Queue, Result, Trial

# Last lines of the log that the report of a failure quotes.
_TAIL = 6
# Exit codes of a process that was stopped and can be resumed.
_STOPPED = (Exit.RESUMABLE, -signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR2)


class Process(Protocol):
    """A running command, for example subprocess.Popen."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


# Starts `plmjax ARGUMENT...` in a slot and appends its output to a file.
Start = Callable[[Sequence[str], Path, Slot, Mapping[str, str]], Process]


def start_process(
    arguments: Sequence[str], log: Path, slot: Slot, environment: Mapping[str, str]
) -> subprocess.Popen:
    """Starts `plmjax ARGUMENT...` on the cores and devices of a slot."""
    cores = ",".join(map(str, slot.cores))
    command = [
        sys.executable,
        "-m",
        "plmjax.experiments.child",
        str(os.getpid()),
        cores,
    ]
    with open(log, "ab") as output:
        return subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment | slot.environment,
            # Ctrl-C at the terminal reaches the sweep alone, which stops the trials.
            start_new_session=True,
        )


@contextlib.contextmanager
def _signals() -> Iterator[list[str]]:
    """Yields a list that collects the names of the signals that shall stop the sweep.

    A second Ctrl-C interrupts. Only the main thread can handle signals.
    """
    received: list[str] = []

    def receive(number, _frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)
        os.write(2, b"\nThe trials save and stop; Ctrl-C again ends them at once.\n")

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2) if main else ()
    old = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@dataclasses.dataclass
class _Job:
    """A running process, of a trial or of the preparation of its text."""

    trial: Trial
    process: Process
    slot: Slot
    log: Path
    log_begins: int
    # None in a preparation of text.
    follower: halving.Follower | None
    began: float = dataclasses.field(default_factory=time.monotonic)
    curve: halving.Curve = dataclasses.field(default_factory=dict)
    pruned: bool = False

    def tail(self) -> list[str]:
        """Returns the last lines that the process has printed."""
        with open(self.log, "rb") as file:
            file.seek(self.log_begins)
            lines = file.read().decode(errors="replace").splitlines()
        return [line for line in lines if line.strip()][-_TAIL:]


class Local:
    """Runs the trials of a queue to its end, or until a signal arrives."""

    def __init__(
        self,
        queue: Queue,
        plan: Plan,
        texts: Texts | None,
        slots: Sequence[Slot],
        log: Callable[[str], Any],
        start: Start = start_process,
        poll_seconds: float = 0.2,
    ):
        self.queue, self.texts, self.log = queue, texts, log
        self.config, self.fixed = plan.study, plan.fixed
        self._start, self._poll = start, poll_seconds
        self._free = [*slots]
        self._jobs: list[_Job] = []
        # A trial that has left the queue and waits for its text.
        self._held: Trial | None = None
        # Evaluations of all trials by number: pruning compares with them.
        self._curves = {r.trial.number: dict(r.curve) for r in queue.results if r.curve}

    def run(self) -> str | None:
        """Runs until no trial is left; returns the name of a signal that ended it.

        Raises:
          PlmjaxError: the runs report no figure named as the objective.
        """
        stopping = False
        with _signals() as received, self._no_orphans():
            while True:
                if not received:
                    self._fill()
                if not self._jobs:
                    return received[-1] if received else None
                if received and not stopping:
                    stopping = True
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
        """Kills all remaining processes, whatever ends the loop."""
        try:
            yield
        finally:
            for job in self._jobs:
                job.process.kill()
            while any(job.process.poll() is None for job in self._jobs):
                time.sleep(self._poll)

    def _fill(self) -> None:
        """Starts trials while slots are free."""
        while self._free:
            trial = self._held or self.queue.next()
            self._held = None
            if trial is None:
                return
            if self.texts is not None and self.texts.wanted(trial):
                if failure := self.texts.failure(trial):
                    self._failed(trial, **failure)
                    continue
                self._held = trial
                if all(job.follower is not None for job in self._jobs):
                    self._prepare(trial, self.texts)
                return
            self._begin(trial)

    def _prepare(self, trial: Trial, texts: Texts) -> None:
        directory = texts.directory(trial)
        directory.mkdir(parents=True, exist_ok=True)
        self.log(f"Preparing the text in {directory}.")
        self._launch(trial, texts.command(trial, self.fixed), directory, None)

    def _begin(self, trial: Trial) -> None:
        trial.save()
        (trial.directory / "outcome.json").unlink(missing_ok=True)
        if self.texts is not None:
            self.texts.link(trial)
        follower = halving.Follower(trial.directory / "metrics.jsonl")
        command = trial.command(self.fixed)
        slot = self._launch(trial, command, trial.directory, follower)
        where = f" ({slot.name})" if slot.name else ""
        self.log(f"{trial.name.capitalize()}: {describe(trial.values)}{where}.")

    def _launch(
        self,
        trial: Trial,
        command: Sequence[str],
        directory: Path,
        follower: halving.Follower | None,
    ) -> Slot:
        slot, log = self._free.pop(0), directory / "log.txt"
        begins = log.stat().st_size if log.exists() else 0
        # Trials compile much the same programs, so they share a compilation cache.
        name = "JAX_COMPILATION_CACHE_DIR"
        cache = os.environ.get(name, str(trial.directory.parents[1] / ".xla"))
        # All trials of a text wait for its preparation, so it may use every core.
        limits = slot if follower else dataclasses.replace(slot, cores=())
        process = self._start(command, log, limits, {name: cache})
        self._jobs.append(_Job(trial, process, slot, log, begins, follower=follower))
        return slot

    def _watch(self, job: _Job) -> None:
        """Reads new evaluations of a trial, and ends it if it falls behind."""
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
                # Written first: a sweep killed in between must not start it again.
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
        """Raises for an objective that no run reports, before all are trained."""
        known = record.keys() - {"kind", "step", "tokens", "seconds"}
        waits = self.config.prune_from_step is None
        if not (waits and self.config.objective in _ONLY_AT_THE_END):
            raise trials.unknown_objective(self.config.objective, known)

    def _ended(self, job: _Job, code: int) -> None:
        trial, name = job.trial, job.trial.name.capitalize()
        if job.follower is None:
            if code not in (Exit.OK, *_STOPPED):
                assert self.texts is not None
                failure = {"code": code, "path": job.log, "lines": job.tail()}
                self.texts.failed(trial, failure)
            return
        spent = duration(time.monotonic() - job.began)
        result = trials.read_result(trial, self.config.objective)
        if result.state == "finished":
            (trial.directory / "outcome.json").unlink(missing_ok=True)
            trained = duration(result.seconds or 0.0)
            self.log(
                f"{name} finished in {spent} (training: {trained}): "
                f"{self._value(result)}."
            )
            if code != Exit.OK:
                self.log(f"{name}: {how_ended(code)} after its scores; see {job.log}.")
        elif job.pruned and code in _STOPPED:
            self.log(f"{name} pruned at step {result.step:,}: {self._value(result)}.")
        elif code in _STOPPED:
            self.log(f"{name} was stopped after {spent}.")
            return
        else:
            self._failed(trial, code, job.log, job.tail())
            return
        self.queue.ended(result)

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
        self.queue.ended(trials.read_result(trial, self.config.objective))


# Figures that scores.json has and evaluations lack.
_ONLY_AT_THE_END = (
    "unigram_loss",
    "teacher_loss",
    "teacher_accuracy",
    "kept",
    "smaller",
    "faster",
)


def how_ended(code: int) -> str:
    """Returns an exit code as text: signals by name."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
