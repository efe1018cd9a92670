"""The job of `plmjax sweep`: from a sweep file to sorted results."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from plmjax import Exit, PlmjaxError
from plmjax.console import console
from plmjax.report.page import with_size
from plmjax.sweep import handout, page, results, trials
from plmjax.sweep.devices import local_slots
from plmjax.sweep.local import Local, Start, start_process
from plmjax.sweep.plan import Plan, as_text, short_names
from plmjax.sweep.results import Outcome
from plmjax.sweep.search import Search
from plmjax.sweep.study import Listed, Study
from plmjax.sweep.texts import Texts
from plmjax.sweep.trials import Trial
from plmjax.sweep.verbs import verb_of
from plmjax.workdir import Workdir

Runner = Literal["local", "slurm", "print"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How a sweep is run; its results do not depend on these."""

    runner: Runner = "local"
    parallel: int = 1
    retry_failed: bool = False
    share_text: bool = True
    poll_seconds: float = 0.2


def sweep(
    found: Plan,
    root: Path,
    options: Options,
    log: Callable[[str], Any],
    start: Start = start_process,
) -> int:
    """Runs the remaining trials, or lists their commands; returns the exit code.

    Raises:
      PlmjaxError: `root` has another study or a changed trial, or it is in use.
    """
    workdir = Workdir(root)
    workdir.create()
    with workdir.locked():
        known, study = _study(found, root, options.retry_failed, log)
        if options.runner != "local":
            return _hand_out(
                found, root, known, study=study, runner=options.runner, log=log
            )
        held = [*(root / "trials").glob("*"), *(root / "texts").glob("*")]
        trials.wait_until_free(held, log)
        shared = options.share_text and verb_of(found.base).shares_text
        texts = Texts(root, known) if shared else None
        local = Local(
            study,
            found.study,
            found.fixed,
            texts=texts,
            slots=local_slots(options.parallel),
            log=log,
            start=start,
            poll_seconds=options.poll_seconds,
        )
        before = [trials.result(trial, found.study.objective) for trial in known]
        local.remember(before)
        signal = None
        try:
            signal = local.run()
        finally:
            end = _write(found, root, known)
    if signal is not None:
        log(f"Stopped by {signal}: {end.summary()}. The same command goes on.")
        return Exit.RESUMABLE
    return _conclude(end, root, log)


def collect(found: Plan, root: Path, log: Callable[[str], Any]) -> int:
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
            # A running sweep holds the lock, and reports to Optuna itself.
            known = [] if found.listed is None else trials.settle(root, found)
        else:
            known, _ = _study(found, root, False, log)
        end = _write(found, root, known)
    return _conclude(end, root, log)


def show(found: Plan) -> Table:
    """Returns the listed trials, or the space of a search, as a table."""
    if found.space is not None:
        table = Table("key", "range", title=f"{found.study.trials} trials drawn from")
        for key, values in found.space.items():
            table.add_row(key, str(values))
        return table
    assert found.listed is not None
    keys = list(dict.fromkeys(key for trial in found.listed for key in trial))
    names = short_names(keys)
    table = Table("trial", *(names[key] for key in keys), title_style="")
    for number, values in enumerate(found.listed):
        shown = (as_text(values[key]) if key in values else "" for key in keys)
        table.add_row(str(number), *shown)
    return table


def _study(
    found: Plan, root: Path, retry_failed: bool, log: Callable[[str], Any]
) -> tuple[list[Trial], Study]:
    """Returns the known trials, and the study that chooses the next one.

    The study is written to disk only after the check that the file still describes the
    trials that have been started.
    """
    trials.agree(root, found)
    if found.space is not None:
        study: Study = Search(root, found, log, retry_failed)
        known = trials.saved(root)
    else:
        known = trials.settle(root, found)
        done = [trials.result(trial, found.study.objective) for trial in known]
        study = Listed(done, retry_failed)
    trials.note(root, found)
    return known, study


def _hand_out(
    found: Plan,
    root: Path,
    known: Sequence[Trial],
    study: Study,
    runner: Runner,
    log: Callable[[str], Any],
) -> int:
    """Draws and writes all trials, and prints how to run those that are left."""
    if found.space is not None:
        log("All trials are drawn at once: none can learn from the ones before it.")
    given = []
    while (trial := study.next()) is not None:
        trial.save()
        given.append(trial)
    end = _write(found, root, known)
    lines = handout.command_lines(given, found.fixed)
    if not given:
        return _conclude(end, root, log)
    if runner == "print":
        for line in lines:
            print(f"python -m plmjax {line}")
    else:
        path = handout.write_commands(root, lines)
        log(f"{len(lines)} trials that have not ended stand in {path}. Submit them:")
        print(f"plmjax launch --target=slurm --commands={path}")
    log("Later, the same sweep with --collect reads what came of them.")
    return Exit.OK


def _write(found: Plan, root: Path, listed: Sequence[Trial]) -> Outcome:
    """Writes the results of the listed trials, or of all that a search has drawn."""
    objective = found.study.objective
    known = trials.saved(root) if found.listed is None else listed
    read = [trials.result(trial, objective) for trial in known]
    end = results.outcome(read, objective, found.study.maximise)
    results.write(root, end)
    page.write(root, root.name, found, end)
    return end


def _conclude(end: Outcome, root: Path, log: Callable[[str], Any]) -> int:
    out = console()
    for table in (results.table(end), results.settings_table(end)):
        if table is not None:
            out.print(table)
    report = with_size(root / "report.html")
    log(f"Results: {report}, results.csv, results.json.")
    unfinished = end.count("stopped") + end.count("waiting")
    if unfinished:
        log(f"{unfinished} trials have not ended. The same command goes on.")
        return Exit.RESUMABLE
    failed = [r for r in end.in_order() if r.state == "failed"]
    if failed:
        numbers = ", ".join(str(r.trial.number) for r in failed)
        log(f"FAILED: trial {numbers}. --retry_failed starts them again.")
        return _exit_code(failed[0].code)
    return Exit.OK


def _exit_code(code: int | None) -> int:
    """Returns the sweep's exit code for a trial that failed with `code`.

    Never a code that makes a scheduler restart the sweep, as that would change nothing.
    """
    known = (Exit.USAGE, Exit.DATA, Exit.MODEL, Exit.DISK, Exit.NUMERIC)
    return code if code is not None and code in known else Exit.INTERNAL
