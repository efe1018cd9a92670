"""The job of `plmjax sweep`: from a sweep file to sorted results."""

import contextlib
import dataclasses
import hashlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from plmjax import RESUME, Exit, PlmjaxError, counted
from plmjax.console import as_table, console
from plmjax.experiments import sweep_page as page
from plmjax.experiments import sweep_results as results
from plmjax.experiments import trials
from plmjax.experiments.devices import local_slots
from plmjax.experiments.local import Local, Start, start_process
from plmjax.experiments.runs import wait_until_free
from plmjax.experiments.search import Search
from plmjax.experiments.sweep_plan import Plan, as_text, short_names
from plmjax.experiments.sweep_results import Outcome
from plmjax.experiments.texts import Texts
from plmjax.experiments.trials import Listed, Queue
from plmjax.experiments.verbs import verb_of
from plmjax.files import write_file
from plmjax.report.page import with_size
from plmjax.workdir import Workdir

Runner = Literal["local", "slurm", "print"]
Log = Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """How a sweep is run; its results do not depend on these."""

    runner: Runner = "local"
    parallel: int = 1
    retry_failed: bool = False
    share_text: bool = True
    poll_seconds: float = 0.2


def sweep(
    plan: Plan, root: Path, options: Options, log: Log, start: Start = start_process
) -> int:
    """Runs the remaining trials, or lists their commands; returns the exit code.

    Raises:
      PlmjaxError: `root` has another study or a changed trial, or it is in use.
    """
    workdir = Workdir(root)
    workdir.create()
    with workdir.locked():
        queue = _open(plan, root, options.retry_failed, log)
        if options.runner != "local":
            return _hand_out(plan, root, queue, options.runner, log)
        directories = [*(root / "trials").glob("*"), *(root / "texts").glob("*")]
        wait_until_free(directories, log)
        known = [result.trial for result in queue.results]
        shared = options.share_text and verb_of(plan.base).shares_text
        local = Local(
            queue,
            plan,
            Texts(root, known) if shared else None,
            local_slots(options.parallel),
            log,
            start=start,
            poll_seconds=options.poll_seconds,
        )
        try:
            signal = local.run()
        finally:
            outcome = _write(plan, root)
    if signal is not None:
        log(f"Stopped by {signal}: {outcome.summary()}. {RESUME}")
        return Exit.RESUMABLE
    return _conclude(outcome, root, log)


def collect(plan: Plan, root: Path, log: Log) -> int:
    """Reads and writes the results of a sweep, wherever its trials run.

    Returns the exit code, 75 while some trials have not ended.

    Raises:
      PlmjaxError: there is no sweep in `root`.
    """
    if not (root / "sweep.json").exists():
        raise PlmjaxError(f"{root} holds no sweep.", hint="Start it without --collect.")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(Workdir(root).locked())
        except PlmjaxError:
            pass  # a running sweep has the lock, and reports to Optuna itself
        else:
            _open(plan, root, False, log)
        outcome = _write(plan, root)
    return _conclude(outcome, root, log)


def show(plan: Plan) -> Table:
    """Returns the listed trials, or the space of a search, as a table."""
    if plan.space is not None:
        title = f"{counted(plan.study.trials or 0, 'trial')} drawn from"
        return as_table(title, ("key", "range"), plan.space.items())
    assert plan.listed is not None
    names = short_names(list(dict.fromkeys(key for t in plan.listed for key in t)))
    rows = (
        [number, *(as_text(values[key]) if key in values else "" for key in names)]
        for number, values in enumerate(plan.listed)
    )
    return as_table("", ("trial", *names.values()), rows)


def _open(plan: Plan, root: Path, retry_failed: bool, log: Log) -> Queue:
    """Returns the queue that chooses the next trial.

    The definition is written only after the check that the file still describes the
    trials that have been started.
    """
    trials.check_definition(root, plan)
    queue: Queue
    if plan.space is not None:
        queue = Search(root, plan, log, retry_failed)
    else:
        queue = Listed(trials.read_results(root, plan), retry_failed)
    trials.save_definition(root, plan)
    return queue


def _hand_out(plan: Plan, root: Path, queue: Queue, runner: Runner, log: Log) -> int:
    """Draws and writes all trials, and prints how to run those that are left."""
    if plan.space is not None:
        log("All trials are drawn at once: none can learn from the ones before it.")
    left = []
    while (trial := queue.next()) is not None:
        trial.save()
        left.append(trial)
    outcome = _write(plan, root)
    if not left:
        return _conclude(outcome, root, log)
    lines = [shlex.join(trial.command(plan.fixed)) for trial in left]
    if runner == "print":
        for line in lines:
            print(f"python -m plmjax {line}")
    else:
        path = _write_commands(root, lines)
        log(f"Commands of {counted(len(lines), 'trial')}: {path}. Submit them:")
        print(f"plmjax launch --target=slurm --commands={path}")
    log("Later, the same sweep with --collect reads what came of them.")
    return Exit.OK


def _write_commands(root: Path, lines: Sequence[str]) -> Path:
    """Writes the lines for `plmjax launch --commands`, and returns the file.

    Another list gets another file: a Slurm array reads its lines when its tasks start.
    """
    text = "".join(f"plmjax {line}\n" for line in lines).encode()
    path = root / f"commands-{hashlib.sha256(text).hexdigest()[:8]}.txt"
    write_file(path, text)
    return path


def _write(plan: Plan, root: Path) -> Outcome:
    """Writes the results of the listed trials, or of all that a search has drawn."""
    read = trials.read_results(root, plan)
    outcome = results.outcome(read, plan.study.objective, plan.study.maximise)
    results.write(root, outcome)
    page.write(root, root.name, plan, outcome)
    return outcome


def _conclude(outcome: Outcome, root: Path, log: Log) -> int:
    title = f"By {outcome.objective}: {outcome.summary()}"
    console().print(as_table(title, *results.trial_rows(outcome)))
    columns, rows = results.setting_rows(outcome)
    if rows:
        console().print(as_table("Means over seeds", columns, rows))
    report = with_size(root / "report.html")
    log(f"Results: {report}, results.csv, results.json.")
    unfinished = outcome.count("stopped") + outcome.count("waiting")
    if unfinished:
        log(f"Not ended: {counted(unfinished, 'trial')}. {RESUME}")
        return Exit.RESUMABLE
    failed = [r for r in outcome.in_order() if r.state == "failed"]
    if failed:
        numbers = ", ".join(str(r.trial.number) for r in failed)
        log(f"FAILED: trial {numbers}. --retry_failed starts them again.")
        # Never a code that makes a scheduler restart the sweep: nothing would change.
        code = failed[0].code
        known = code in {*Exit} - {Exit.OK, Exit.RESUMABLE}
        return Exit(code) if known else Exit.INTERNAL
    return Exit.OK
