"""`plmjax report` and `plmjax repro`."""

import contextlib
import time
from pathlib import Path
from typing import Any

from plmjax import Exit, PlmjaxError, counted
from plmjax.cli.options import json_option, log, print_result, start_jax
from plmjax.files import disk_errors

_POLL_SECONDS = 2.0


def add(verb) -> None:
    """Adds the parsers of `plmjax report` and `plmjax repro`."""
    added = verb(
        "report",
        _report,
        "write one page on runs: their curves, what differs, guesses over time, data, "
        "and where the time went",
        "plmjax report runs/mine runs/other --to=reports",
    )
    add = added.add_argument
    add("runs", nargs="+", metavar="RUN", help="a workdir, a sweep's, a folder of them")
    add("--to", metavar="DIR", help="folder of the page (default: the first RUN)")
    add(
        "--live",
        action="store_true",
        help="write the page again as long as a run goes on; Ctrl-C ends it",
    )
    json_option(added)

    added = verb(
        "repro",
        _repro,
        "print the commands that make a run again: code, packages, text, config",
        "plmjax repro runs/mine",
    )
    added.add_argument("workdir", metavar="WORKDIR", help="the directory of the run")
    only = added.add_mutually_exclusive_group()
    only.add_argument(
        "--against", metavar="DIR", help="check that DIR is the same run, bit for bit"
    )
    only.add_argument(
        "--diff", action="store_true", help="print what had changed since its commit"
    )


def _repro(args) -> int:
    from plmjax.experiments import repro

    path = Path(args.workdir)
    if args.diff:
        print(repro.open_run(path)[1]["diff"] or "", end="")
    elif args.against:
        print(repro.compare(path, Path(args.against)))
    else:
        start_jax()
        for line in repro.commands(path):
            print(line)
    return Exit.OK


def _report(args) -> int:
    from plmjax.report import runs
    from plmjax.report.page import with_size

    paths = [Path(path) for path in args.runs]
    folder = Path(args.to) if args.to else paths[0]
    if args.live:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(paths, folder)
    page, some = _write(paths, folder, live=False)
    facts, twin = [runs.facts(run) for run in some], page.with_suffix(".md")
    remarks = list(dict.fromkeys(remark for run in some for remark in run.remarks))
    result = {"page": str(page), "markdown": str(twin), "remarks": remarks}

    def as_text(result: dict[str, Any]) -> str:
        lines = [f"WARNING: {remark}" for remark in remarks]
        what = f"{counted(len(some), 'run')}: {with_size(page)} and {twin.name}."
        return "\n".join([*lines, what])

    return print_result(args, result | {"runs": facts}, as_text)


def _watch(paths: list[Path], folder: Path) -> None:
    """Writes the page when a run has written, until none goes on."""
    from plmjax.files import locked_by

    def below(name: str) -> list[Path]:
        return [file for path in paths for file in path.rglob(name)]

    seen = said = None
    while any(locked_by(lock.parent) for lock in below(".lock")):
        now = [file.stat().st_mtime for file in below("metrics.jsonl")]
        if now != seen:
            seen, text = now, f"Watching; open {folder}/runs.html in a browser."
            try:
                _write(paths, folder, live=True)
            except PlmjaxError as error:  # of a run that has just begun
                if error.code == Exit.DISK:
                    raise
                text = f"Waiting: {error.message}"
            if text != said:
                log(f"{text} Ctrl-C ends this, not the runs.")
            said = text
        time.sleep(_POLL_SECONDS)


def _write(paths: list[Path], folder: Path, live: bool) -> tuple[Path, list]:
    from plmjax.experiments.sweep_page import saved_importance
    from plmjax.report import run_page, runs

    some = runs.open_runs(paths)
    extra = [part for path in paths if (part := saved_importance(path))]
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return run_page.write(folder, some, extra, live), some
