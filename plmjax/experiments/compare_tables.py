"""The results of a study on the screen, as CSV and as JSON."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from plmjax.experiments.cells import Cell
from plmjax.experiments.compare_plan import Plan
from plmjax.experiments.outcomes import Outcome
from plmjax.files import write_csv, write_json
from plmjax.metrics.comparison import SAME


def by_task(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Returns {task: its cells}, in their order."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.task, []).append(cell)
    return found


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


def row(cell: Cell) -> list[str]:
    """Returns the figures of a cell, in the order of HEAD."""
    runs = str(len(cell.outcomes))
    if (s := cell.summary) is None:
        return [runs, *[""] * (len(HEAD) - 1)]
    runs = runs if s.n == len(cell.outcomes) else f"{s.n} of {runs}"
    interval = "" if s.low is None else f"{s.low:.4f} to {s.high:.4f}"
    return [
        runs,
        f"{s.mean:.4f}",
        interval,
        "" if s.deviation is None else f"{s.deviation:.4f}",
        f"{s.least:.4f}",
        f"{s.most:.4f}",
        "" if cell.ensemble is None else f"{cell.ensemble:.4f}",
    ]


def screen(cells: Sequence[Cell]) -> Table:
    """Returns the table of the cells of one task for the screen."""
    shown = Table(title=f"{cells[0].task}: {what(cells[0])}", title_style="")
    shown.add_column("", overflow="fold")
    for name in HEAD:
        shown.add_column(name, justify="right")
    for name, cell in zip(names_of(cells), cells, strict=True):
        shown.add_row(name, *row(cell))
    return shown


def sentences(cells: Sequence[Cell]) -> list[str]:
    """Returns sentences on the cells of one task: failures, ensembles, comparisons."""
    names, said = names_of(cells), []
    for name, cell in zip(names, cells, strict=True):
        own = [*_shortfalls(cell), *_ensemble(cell)]
        if cell is not cells[0]:
            own.append(_verdict(cell, names[0]))
        place = next(n for n, c in enumerate(cells) if c.model == cell.model)
        if cells[place] is not cell:
            own += _worst(cell, cells[place], names[place])
        said += [f"{name}: {sentence}" for sentence in own]
    if cells[0].split == "held_out" and cells[0].done:
        said.append(
            "There is no test set: these are scores of the examples by which the best "
            "step was chosen, and flatter."
        )
    return said


def _shortfalls(cell: Cell) -> list[str]:
    said, runs = [], len(cell.outcomes)
    if cell.unlearned:
        said.append(
            f"{cell.unlearned} of {runs} runs did not learn (no better than one "
            "answer for all)."
        )
    if failed := cell.count("failed"):
        said.append(f"{failed} of {runs} runs failed.")
    return said


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
    if (found := cell.against) is None:
        return f"not compared with {first}: {cell.pairs} pairs of runs are too few."
    word = SAME if cell.verdict == SAME else cell.verdict
    word += f" from {first}" if cell.verdict == SAME else f" than {first}"
    return (
        f"{word}: {found.difference:+.4f}, 95 % {found.low:+.4f} to {found.high:+.4f} "
        f"({cell.pairs} pairs)."
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
    splits = {s: {n for c in cells for n in _figures(c, s)} for s in _SPLITS}
    columns = [(s, name) for s in _SPLITS for name in sorted(splits[s])]
    head = ["task", "model", "setting", "seed", "fold", "state", "metric", "score"]
    head += ["learned", "step", "seconds", *(f"{s} {name}" for s, name in columns)]
    rows: list[list[Any]] = [[*head, "message", "workdir"]]
    for o in (outcome for cell in cells for outcome in cell.outcomes):
        given = [*o.run.cell, *o.run.pair, o.state, o.metric, o.score, o.learned]
        given += [o.step, o.seconds]
        given += [o.scores.get(s, {}).get(name) for s, name in columns]
        rows.append([*given, o.message, o.run.directory])
    write_csv(root / "results.csv", rows)
    values = {"study": plan.stands_on, "cells": [as_json(cell) for cell in cells]}
    if plan.budgets:
        values["pretraining"] = [dataclasses.asdict(own) for own in plan.budgets]
    write_json(root / "results.json", values)
    return [root / "results.json", root / "results.csv"]


_SPLITS = ("held_out", "test")


def _figures(cell: Cell, split: str) -> set[str]:
    return {name for o in cell.outcomes for name in o.scores.get(split, {})}


def as_json(cell: Cell) -> dict[str, Any]:
    """Returns a cell in the form of results.json."""
    against = None
    if cell.against is not None:
        found = dataclasses.asdict(cell.against) | {"pairs": cell.pairs}
        against = found | {"verdict": cell.verdict}
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
        "scores": {
            split: {name: _number(value) for name, value in scores.items()}
            for split, scores in o.scores.items()
        },
        "evaluations": [[step, _number(value)] for step, value in o.curve],
        "message": o.message,
        "workdir": str(o.run.directory),
    }


def _number(value: float) -> float | None:
    """Returns the value, or None for NaN and infinities, which JSON cannot hold."""
    return value if math.isfinite(value) else None
