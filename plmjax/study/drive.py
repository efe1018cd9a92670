"""Runs a study from its checks to its report, one run after the other, in-process."""

import contextlib
import gc
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from plmjax import Exit, PlmjaxError, processes
from plmjax.console import console, duration
from plmjax.evaluate.model import open_models
from plmjax.files import write_json
from plmjax.finetune.build import build
from plmjax.finetune.run import finetune
from plmjax.models import EncoderConfig
from plmjax.report.page import with_size
from plmjax.study import budget, page, results, tables
from plmjax.study.outcomes import (
    Outcome,
    agree,
    note_failure,
    read_outcome,
    state_of,
)
from plmjax.study.plan import Encoders, Plan, Run
from plmjax.train import sharding
from plmjax.train.job import shapes_of
from plmjax.workdir import Workdir

# Prints a text as it is, without adding a line break.
Say = Callable[[str], Any]


def encoders() -> Encoders:
    """Returns a function that gives the encoder config of a model, with a cache."""
    known: dict[tuple[str, str], EncoderConfig] = {}

    def encoder(path: str, checkpoint: str) -> EncoderConfig:
        if (path, checkpoint) not in known:
            model = next(iter(open_models(path, checkpoint).values()))
            known[path, checkpoint] = model.encoder
        return known[path, checkpoint]

    return encoder


def study(plan: Plan, say: Say) -> dict:
    """Runs the waiting runs and reports all; {"stopped", "step"} after a signal.

    A run whose loss is not finite is a row of the report; any other error is raised.

    Raises:
      PlmjaxError: an error that the user can fix, where possible before any training.
    """
    workdir = Workdir(plan.root)
    processes.run_on_all(workdir.create)
    with contextlib.ExitStack() as stack:

        def begin() -> None:
            if processes.leader(plan.root) == jax.process_index():
                stack.enter_context(workdir.locked())
            agree(plan)

        processes.run_on_all(begin)
        waiting = processes.run_on_first(lambda: _waiting(plan.runs))
        if waiting:
            check([plan.runs[place] for place in waiting], say)
        processes.run_on_all(lambda: _note(plan))
        stopped = _run_all(plan, waiting, say)
        if stopped is not None:
            return stopped
        report(plan, say)
    return {}


def _waiting(runs: Sequence[Run]) -> list[int]:
    return [n for n, run in enumerate(runs) if state_of(run) == "waiting"]


def _note(plan: Plan) -> None:
    if processes.is_first():
        write_json(plan.root / "study.json", plan.stands_on)


def check(runs: Sequence[Run], say: Say) -> None:
    """Reads the data and builds, but does not train, one run of each cell.

    Raises:
      PlmjaxError: one of these runs cannot work.
    """
    first = {run.cell: run for run in reversed(runs)}
    for run in reversed(first.values()):
        config = run.config()
        mesh = processes.run_on_all(
            lambda config=config: sharding.make_mesh(config.mesh)
        )
        with jax.set_mesh(mesh), _about(run):
            setup = processes.run_on_all(
                lambda config=config, mesh=mesh: build(config, mesh, _quiet)
            )
            batch = setup.batches.batch(0)
            zero1 = config.mesh.zero1
            shapes_of(setup.objective, setup.train, mesh, zero1, batch)
    what = "combination" if len(first) == 1 else "combinations"
    say(f"Checked: {len(first)} {what} of model, task and setting.\n")


def _quiet(message: str) -> None:
    """Drops messages about a run's data, which the run's log repeats."""


@contextlib.contextmanager
def _about(run: Run) -> Iterator[None]:
    try:
        yield
    except PlmjaxError as error:
        where = ", ".join(run.cell)
        raise PlmjaxError(
            f"{where}: {error.message}", hint=error.hint, code=error.code
        ) from error


def _run_all(plan: Plan, waiting: Sequence[int], say: Say) -> dict | None:
    """Runs the runs with these numbers; returns the result of an interrupted run."""
    if done := len(plan.runs) - len(waiting):
        say(f"{done} of {len(plan.runs)} runs are done already.\n")
    began = time.monotonic()
    for count, number in enumerate(waiting):
        run = plan.runs[number]
        say(f"Run {number + 1} of {len(plan.runs)}, {run.label}: ")
        try:
            ended = in_its_log(run)
        except PlmjaxError as error:
            say("FAILED.\n")
            if error.code != Exit.NUMERIC:
                raise
            if processes.is_first():
                note_failure(run, error)
            if processes.several():
                raise  # the processes are out of step; the same command starts the next
            say(f"  {error.message}\n")
            continue
        if "stopped" in ended:
            say("stopped.\n")
            return ended
        if processes.is_first():
            _tidy(run)
        left = (time.monotonic() - began) / (count + 1) * (len(waiting) - count - 1)
        end = f", {duration(left)} left.\n" if left else ".\n"
        say(told(read_outcome(run)) + end)
    return None


def told(outcome: Outcome) -> str:
    """Returns the result of a run as text: "test accuracy 0.7412 (step 700)"."""
    if outcome.metric is None:
        return outcome.message
    name = f"{outcome.split.replace('_', '-')} {outcome.metric.replace('_', ' ')}"
    score = outcome.scores[outcome.split][outcome.metric]
    return f"{name} {score:.4f} (step {outcome.step:,})"


def in_its_log(run: Run) -> dict:
    """Executes one run and appends its output to its log.txt."""
    processes.run_on_all(Workdir(run.directory).create)
    name = "log.txt" if processes.is_first() else f"log-{jax.process_index()}.txt"
    with open(run.directory / name, "a", encoding="utf-8", buffering=1) as log:
        with contextlib.redirect_stdout(log):
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {run.label}")
            try:
                return finetune(run.config(), run.directory)
            except PlmjaxError as error:
                print(f"error: {error}")
                raise
            finally:
                gc.collect()  # frees this run's state before the next run starts


def _tidy(run: Run) -> None:
    """Removes the checkpoints of a finished run; its export and scores stay.

    The checkpoints of twenty runs of a BERT-base take 80 GB.
    """
    where = Workdir(run.directory).checkpoints
    shutil.rmtree(where, ignore_errors=True)


def report(plan: Plan, say: Say) -> None:
    """Writes and prints the results of a study."""
    cells = results.collect(plan)

    def write() -> None:
        if not processes.is_first():
            return
        say(f"\n{page.headline(plan, cells)}\n")
        if plan.budgets:
            console().print(budget.screen(plan.budgets))
        for own in tables.by_task(cells).values():
            console().print(tables.screen(own))
            for sentence in tables.sentences(own):
                say(f"{sentence}\n")
        files = tables.write(plan.root, plan, cells)
        *pictures, report = page.write(plan.root, plan, cells)
        others = ", ".join(map(str, [*files, *pictures]))
        say(f"\nPage: {with_size(report)}\nFiles: {others}\n")

    processes.run_on_all(write)
