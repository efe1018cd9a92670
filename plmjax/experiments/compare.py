"""Runs a study from its checks to its report, one run after the other, in-process."""

import contextlib
import functools
import gc
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from plmjax import Exit, PlmjaxError, counted, processes
from plmjax.console import console, duration, ignore_line
from plmjax.evaluate.model import open_models
from plmjax.experiments import budget, compare_page
from plmjax.experiments import compare_tables as tables
from plmjax.experiments.cells import collect
from plmjax.experiments.compare_plan import Encoders, Plan, Repetition
from plmjax.experiments.outcomes import (
    Outcome,
    check_study,
    read_outcome,
    state_of,
    write_failure,
)
from plmjax.experiments.runs import naming
from plmjax.files import write_json
from plmjax.finetune.build import build
from plmjax.finetune.run import finetune
from plmjax.models import EncoderConfig
from plmjax.report.page import with_size
from plmjax.train import sharding
from plmjax.train.job import shapes_of
from plmjax.workdir import Workdir

# Prints a text as it is, without adding a line break.
Print = Callable[[str], Any]


def encoders() -> Encoders:
    """Returns a function that gives the encoder config of a model, with a cache."""

    @functools.cache
    def encoder(path: str, checkpoint: str) -> EncoderConfig:
        return next(iter(open_models(path, checkpoint).values())).encoder

    return encoder


def study(plan: Plan, show: Print) -> dict:
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
            check_study(plan)

        processes.run_on_all(begin)
        waiting = processes.run_on_first(
            lambda: [n for n, r in enumerate(plan.runs) if state_of(r) == "waiting"]
        )
        if waiting:
            check([plan.runs[number] for number in waiting], show)
        processes.run_on_first(
            lambda: write_json(plan.root / "study.json", plan.stands_on)
        )
        stopped = _run_all(plan, waiting, show)
        if stopped is not None:
            return stopped
        report(plan, show)
    return {}


def check(runs: Sequence[Repetition], show: Print) -> None:
    """Reads the data and builds, but does not train, one run of each cell.

    Raises:
      PlmjaxError: one of these runs cannot work.
    """
    first = {run.cell: run for run in reversed(runs)}
    for run in reversed(first.values()):
        config = run.build()
        mesh = processes.run_on_all(
            lambda config=config: sharding.make_mesh(config.mesh)
        )
        with jax.set_mesh(mesh), naming(", ".join(run.cell)):
            # What it logs about the data, the run's log repeats.
            setup = processes.run_on_all(
                lambda config=config, mesh=mesh: build(config, mesh, ignore_line)
            )
            batch = setup.batches.batch(0)
            zero1 = config.mesh.zero1
            shapes_of(setup.objective, setup.train, mesh, zero1, batch)
    what = "combination" if len(first) == 1 else "combinations"
    show(f"Checked: {len(first)} {what} of model, task and setting.\n")


def _run_all(plan: Plan, waiting: Sequence[int], show: Print) -> dict | None:
    """Runs the runs with these numbers; returns the result of an interrupted run."""
    if done := len(plan.runs) - len(waiting):
        show(f"Done already: {done} of {counted(len(plan.runs), 'run')}.\n")
    began = time.monotonic()
    for count, number in enumerate(waiting):
        run = plan.runs[number]
        show(f"Run {number + 1} of {len(plan.runs)}, {run.label}: ")
        try:
            result = train(run)
        except PlmjaxError as error:
            show("FAILED.\n")
            if error.code != Exit.NUMERIC:
                raise
            if processes.is_first():
                write_failure(run, error)
            if processes.several():
                raise  # the processes are out of step; the same command starts the next
            show(f"  {error.message}\n")
            continue
        if "stopped" in result:
            show("stopped.\n")
            return result
        if processes.is_first():
            # Export and scores stay; checkpoints of twenty BERT-bases take 80 GB.
            shutil.rmtree(run.workdir.checkpoints, ignore_errors=True)
        left = (time.monotonic() - began) / (count + 1) * (len(waiting) - count - 1)
        end = f", {duration(left)} left.\n" if left else ".\n"
        show(describe(read_outcome(run)) + end)
    return None


def describe(outcome: Outcome) -> str:
    """Returns the result of a run as text: "test accuracy 0.7412 (step 700)"."""
    if outcome.metric is None:
        return outcome.message
    name = f"{outcome.split.replace('_', '-')} {outcome.metric.replace('_', ' ')}"
    score = outcome.scores[outcome.split][outcome.metric]
    return f"{name} {score:.4f} (step {outcome.step:,})"


def train(run: Repetition) -> dict:
    """Executes one run and appends its output to its log.txt."""
    processes.run_on_all(run.workdir.create)
    name = "log.txt" if processes.is_first() else f"log-{jax.process_index()}.txt"
    with open(run.directory / name, "a", encoding="utf-8", buffering=1) as log:
        with contextlib.redirect_stdout(log):
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {run.label}")
            try:
                return finetune(run.build(), run.directory)
            except PlmjaxError as error:
                print(f"error: {error}")
                raise
            finally:
                gc.collect()  # frees this run's state before the next run starts


def report(plan: Plan, show: Print) -> None:
    """Writes and prints the results of a study."""
    cells = collect(plan)

    def write() -> None:
        show(f"\n{compare_page.headline(plan, cells)}\n")
        if plan.budgets:
            console().print(budget.screen(plan.budgets))
        for rows in tables.by_task(cells).values():
            console().print(tables.screen(rows))
            for sentence in tables.sentences(rows):
                show(f"{sentence}\n")
        files = tables.write(plan.root, plan, cells)
        *pictures, report = compare_page.write(plan.root, plan, cells)
        others = ", ".join(map(str, [*files, *pictures]))
        show(f"\nPage: {with_size(report)}\nFiles: {others}\n")

    processes.run_on_first(write)
