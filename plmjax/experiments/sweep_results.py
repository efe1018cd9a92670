"""Results of a sweep: sorted, as a table, as CSV and as JSON."""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from plmjax import config as config_lib
from plmjax.console import duration
from plmjax.experiments.sweep_plan import as_text, short_names
from plmjax.experiments.trials import Result
from plmjax.files import write_csv, write_json

_SEED = "train.seed"
_ORDER = ("finished", "pruned", "failed", "stopped", "waiting")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All results of a sweep, the best first, and the objective they are sorted by."""

    objective: str
    maximise: bool
    results: tuple[Result, ...]

    @property
    def finished(self) -> list[Result]:
        return [r for r in self.results if r.state == "finished"]

    @property
    def best(self) -> Result | None:
        """The best finished trial; None if none has a finite objective."""
        found = [r for r in self.finished if _is_number(r.value)]
        return found[0] if found else None

    @property
    def keys(self) -> list[str]:
        """The keys that trials set, in the order of the sweep's file."""
        named = [key for r in self.in_order() for key in r.trial.values]
        return list(dict.fromkeys(named))

    def in_order(self) -> list[Result]:
        """Returns the results by trial number."""
        return sorted(self.results, key=lambda r: r.trial.number)

    def count(self, state: str) -> int:
        """Returns the number of trials in a state."""
        return sum(r.state == state for r in self.results)

    def summary(self) -> str:
        """Returns the number of trials of each state: "11 finished, 1 failed"."""
        counts = {state: self.count(state) for state in _ORDER}
        return ", ".join(f"{n} {state}" for state, n in counts.items() if n)


def outcome(results: Sequence[Result], objective: str, maximise: bool) -> Outcome:
    """Sorts results: finished before pruned before the rest, each the best first."""

    def place(result: Result):
        value = result.value if _is_number(result.value) else math.inf
        assert value is not None
        sign = -1 if maximise and math.isfinite(value) else 1
        return _ORDER.index(result.state), sign * value, result.trial.number

    return Outcome(objective, maximise, tuple(sorted(results, key=place)))


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def value_of(result: Result, key: str) -> Any:
    """Returns a trial's value of a key of its full config; None if it lacks the key."""
    return config_lib.flatten(result.trial.config).get(key)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Statistics of the trials that differ in the seed alone."""

    values: dict[str, Any]
    trials: int
    mean: float
    # Standard deviation over the trials; 0 for a single one.
    deviation: float


def settings(found: Outcome) -> list[Setting]:
    """Returns means over seeds, the best first; [] if no setting has several seeds."""
    keys = [key for key in found.keys if key != _SEED]
    groups: dict[str, list[Result]] = {}
    for result in found.finished:
        if _is_number(result.value):
            values = [value_of(result, key) for key in keys]
            groups.setdefault(json.dumps(values), []).append(result)
    if all(len(group) == 1 for group in groups.values()):
        return []
    made = []
    for group in groups.values():
        values = [r.value for r in group if r.value is not None]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        shared = {key: value_of(group[0], key) for key in keys}
        made.append(Setting(shared, len(group), statistics.fmean(values), deviation))
    return sorted(made, key=lambda s: -s.mean if found.maximise else s.mean)


def table(found: Outcome) -> Table:
    """Returns the table of the trials for the screen, the best first."""
    shown = Table(title=f"By {found.objective}: {found.summary()}", title_style="")
    shown.add_column("trial", justify="right")
    shown.add_column(found.objective, justify="right")
    names = short_names(found.keys)
    for key in found.keys:
        shown.add_column(names[key], justify="right", overflow="fold")
    for name in ("state", "step", "time"):
        shown.add_column(name, justify="right")
    for r in found.results:
        shown.add_row(
            str(r.trial.number),
            "" if r.value is None else f"{r.value:.4f}",
            *(as_text(value_of(r, key)) for key in found.keys),
            r.state,
            "" if r.step is None else f"{r.step:,}",
            "" if r.seconds is None else duration(r.seconds),
        )
    return shown


def settings_table(found: Outcome) -> Table | None:
    """Returns the table of means over seeds for the screen; None if there are none."""
    rows = settings(found)
    if not rows:
        return None
    shown = Table(title="Means over seeds", title_style="")
    names = short_names([*rows[0].values])
    for key in rows[0].values:
        shown.add_column(names[key], justify="right", overflow="fold")
    for name in ("trials", found.objective, "deviation"):
        shown.add_column(name, justify="right")
    for row in rows:
        values = map(as_text, row.values.values())
        deviation = f"{row.deviation:.4f}" if row.trials > 1 else ""
        shown.add_row(*values, str(row.trials), f"{row.mean:.4f}", deviation)
    return shown


def write(root: Path, found: Outcome) -> None:
    """Writes results.json and results.csv, each atomically."""
    figures = sorted({name for r in found.results for name in r.figures})
    figures = [name for name in figures if name != found.objective]
    head = ["trial", "state", found.objective, "step", "seconds"]
    rows: list[list[Any]] = [[*head, *found.keys, *figures, "code", "workdir"]]
    for r in found.results:
        given = [r.trial.number, r.state, r.value, r.step, r.seconds]
        given += [value_of(r, key) for key in found.keys]
        given += [r.figures.get(name) for name in figures]
        rows.append([*given, r.code, r.trial.directory])
    write_csv(root / "results.csv", rows)
    write_json(
        root / "results.json",
        {
            "objective": found.objective,
            "maximise": found.maximise,
            "best": None if found.best is None else found.best.trial.number,
            "settings": [dataclasses.asdict(s) for s in settings(found)],
            "trials": [_as_json(r) for r in found.results],
        },
    )


def _number(value: float | None) -> float | None:
    """Returns the value, or None for NaN and infinities, which JSON cannot hold."""
    return value if _is_number(value) else None


def _as_json(r: Result) -> dict[str, Any]:
    return {
        "trial": r.trial.number,
        "values": r.trial.values,
        "state": r.state,
        "value": _number(r.value),
        "step": r.step,
        "seconds": r.seconds,
        "figures": {name: _number(value) for name, value in r.figures.items()},
        "evaluations": [[step, _number(value)] for step, value in r.curve],
        "code": r.code,
        "log": list(r.log),
        "workdir": str(r.trial.directory),
    }
