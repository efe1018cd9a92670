"""The results of a study on the screen, as CSV and as JSON."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from plmjax import counted
from plmjax.console import as_table
from plmjax.experiments import tables
from plmjax.experiments.cells import Cell
from plmjax.experiments.compare_plan import Plan
from plmjax.experiments.outcomes import SPLITS, Outcome
from plmjax.metrics.comparison import SAME


def by_task(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Returns {task: its cells}, in their order."""
    tasks: dict[str, list[Cell]] = {}
    for cell in cells:
        tasks.setdefault(cell.task, []).append(cell)
    return tasks


def names_of(cells: Sequence[Cell]) -> list[str]:
    """Returns the names of cells of one task: only the parts that differ."""
    models, settings = ({getattr(c, n) for c in cells} for n in ("model", "setting"))
    if len(models) == 1 and len(settings) > 1:
        return [cell.setting for cell in cells]
    if len(settings) == 1 and len(models) > 1:
        return [cell.model for cell in cells]
    return [f"{cell.model} ({cell.setting})" for cell in cells]


def what(cell: Cell) -> str:
    """Returns the split and metric that are compared: "test accuracy"."""
    return f"{cell.split.replace('_', '-')} {cell.metric.replace('_', ' ')}"


HEAD = ("runs", "mean", "95 % of the mean", "deviation", "min", "max", "ensemble")


def row(cell: Cell) -> list[tables.Cell]:
    """Returns the figures of a cell, in the order of HEAD."""
    runs = str(len(cell.outcomes))
    if (s := cell.summary) is None:
        return [(0, runs), *[tables.cell(None)] * (len(HEAD) - 1)]
    runs = runs if s.n == len(cell.outcomes) else f"{s.n} of {runs}"
    mean, *others = (
        tables.cell(value, ".4f")
        for value in (s.mean, s.deviation, s.least, s.most, cell.ensemble)
    )
    interval = tables.cell(s.low, lambda low: f"{low:.4f} to {s.high:.4f}")
    return [(s.n, runs), mean, interval, *others]


def screen(cells: Sequence[Cell]) -> Table:
    """Returns the table of the cells of one task for the screen."""
    rows = zip(names_of(cells), cells, strict=True)
    return as_table(
        f"{cells[0].task}: {what(cells[0])}",
        ["", *HEAD],
        [[name, *row(cell)] for name, cell in rows],
    )


def sentences(cells: Sequence[Cell]) -> list[str]:
    """Returns sentences on the cells of one task: failures, ensembles, comparisons."""
    names, lines = names_of(cells), []
    for name, cell in zip(names, cells, strict=True):
        about = [*_shortfalls(cell), *_ensemble(cell)]
        if cell is not cells[0]:
            about.append(_verdict(cell, names[0]))
        first = next(n for n, c in enumerate(cells) if c.model == cell.model)
        if cells[first] is not cell:
            about += _worst(cell, cells[first], names[first])
        lines += [f"{name}: {sentence}" for sentence in about]
    if cells[0].split == "held_out" and cells[0].done:
        lines.append(
            "There is no test set: these are scores of the examples by which the best "
            "step was chosen, and flatter."
        )
    return lines


def _shortfalls(cell: Cell) -> list[str]:
    lines, runs = [], len(cell.outcomes)
    if cell.unlearned:
        lines.append(
            f"{cell.unlearned} of {counted(runs, 'run')} did not learn (no better than "
            "one answer for all)."
        )
    if failed := cell.count("failed"):
        lines.append(f"{failed} of {counted(runs, 'run')} failed.")
    return lines


def _ensemble(cell: Cell) -> list[str]:
    if cell.ensemble is None or cell.summary is None:
        return []
    n = cell.summary.n
    of = f"ensemble of {n}"
    if cell.split == "held_out" and cell.outcomes[0].run.fold is not None:
        of = "ensembles of the seeds of each fold"
    return [
        f"{of}: {cell.ensemble:.4f} (mean {cell.summary.mean:.4f}, best single run "
        f"{cell.best:.4f})."
    ]


def _verdict(cell: Cell, first: str) -> str:
    if (against := cell.against) is None:
        return f"not compared with {first}: {cell.pairs} pairs of runs are too few."
    word = SAME if cell.verdict == SAME else cell.verdict
    word += f" from {first}" if cell.verdict == SAME else f" than {first}"
    return (
        f"{word}: {against.difference:+.4f}, 95 % {against.low:+.4f} to "
        f"{against.high:+.4f} ({cell.pairs} pairs)."
    )


def _worst(cell: Cell, first: Cell, name: str) -> list[str]:
    """Compares a setting's worst run with the mean of the model's first setting."""
    s, other = cell.summary, first.summary
    if s is None or other is None or s.n < 2:
        return []
    worst = max((s.least, s.most), key=cell.rank)
    above = cell.rank(worst) < cell.rank(other.mean)
    how = "better" if above else "no better"
    return [f"the worst run, {worst:.4f}, is {how} than the mean of {name}."]


# --- files


def write(root: Path, plan: Plan, cells: Sequence[Cell]) -> list[Path]:
    """Writes results.json and results.csv, each atomically; returns their paths."""
    outcomes = [outcome for cell in cells for outcome in cell.outcomes]
    rows = [_csv_row(outcome) for outcome in outcomes]
    scores = {s: {n for o in outcomes for n in o.scores.get(s, {})} for s in SPLITS}
    columns = ["task", "model", "setting", "seed", "fold", "state", "metric", "score"]
    columns += ["learned", "step", "seconds"]
    columns += [f"{split} {name}" for split in SPLITS for name in sorted(scores[split])]
    content = {"study": plan.stands_on, "cells": [as_json(cell) for cell in cells]}
    if plan.budgets:
        content["pretraining"] = [dataclasses.asdict(b) for b in plan.budgets]
    return tables.write_results(root, content, rows, [*columns, "message", "workdir"])


def _csv_row(o: Outcome) -> dict[str, Any]:
    names = {"task": o.run.task, "model": o.run.model, "setting": o.run.setting}
    scores = {
        f"{split} {name}": value
        for split, values in o.scores.items()
        for name, value in values.items()
    }
    return _run(o) | names | scores | {"metric": o.metric}


def as_json(cell: Cell) -> dict[str, Any]:
    """Returns a cell in the form of results.json."""
    against = None
    if cell.against is not None:
        against = dataclasses.asdict(cell.against)
        against |= {"pairs": cell.pairs, "verdict": cell.verdict}
    return {
        "task": cell.task,
        "model": cell.model,
        "setting": cell.setting,
        "metric": cell.metric,
        "split": cell.split,
        "summary": None if cell.summary is None else dataclasses.asdict(cell.summary),
        "best": cell.best,
        "ensemble": cell.ensemble,
        "failed": cell.count("failed"),
        "did_not_learn": cell.unlearned,
        "against_first": against,
        "runs": [_run(outcome) for outcome in cell.outcomes],
    }


def _run(o: Outcome) -> dict[str, Any]:
    return {
        "seed": o.run.seed,
        "fold": o.run.fold,
        "state": o.state,
        "score": o.score,
        "learned": o.learned,
        "step": o.step,
        "seconds": o.seconds,
        "scores": o.scores,
        "evaluations": o.curve,
        "message": o.message,
        "workdir": str(o.run.directory),
    }
