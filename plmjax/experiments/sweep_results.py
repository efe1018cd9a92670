"""Results of a sweep: sorted, as a table, as CSV and as JSON."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plmjax import config as config_lib
from plmjax.console import duration
from plmjax.experiments.repeats import finite, summary
from plmjax.experiments.sweep_plan import as_text, short_names
from plmjax.experiments.tables import cell, write_results
from plmjax.experiments.trials import Result

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
        """The results of trials that have finished, the best first."""
        return [r for r in self.results if r.state == "finished"]

    @property
    def best(self) -> Result | None:
        """The best finished trial; None if none has a finite objective."""
        return next((r for r in self.finished if finite(r.value) is not None), None)

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
    """Sorts results: finished before pruned before the others, each the best first."""

    def order(result: Result):
        value = finite(result.value)
        value = math.inf if value is None else value
        sign = -1 if maximise and math.isfinite(value) else 1
        return _ORDER.index(result.state), sign * value, result.trial.number

    return Outcome(objective, maximise, tuple(sorted(results, key=order)))


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


def settings(outcome: Outcome) -> list[Setting]:
    """Returns means over seeds, the best first; [] if no setting has several seeds."""
    keys = [key for key in outcome.keys if key != _SEED]
    groups: dict[str, list[float]] = {}
    for result in outcome.finished:
        if (value := finite(result.value)) is not None:
            values = json.dumps({key: value_of(result, key) for key in keys})
            groups.setdefault(values, []).append(value)
    if all(len(group) == 1 for group in groups.values()):
        return []
    means = [
        Setting(json.loads(values), s.n, s.mean, s.deviation or 0.0)
        for values, group in groups.items()
        if (s := summary(group)) is not None
    ]
    return sorted(means, key=lambda s: -s.mean if outcome.maximise else s.mean)


def trial_rows(outcome: Outcome) -> tuple[list[str], list[list]]:
    """Returns the columns of the table of the trials, and its rows, the best first."""
    keys = short_names(outcome.keys)
    columns = ["trial", outcome.objective, *keys.values(), "state", "step", "training"]
    return columns, [
        [
            cell(r.trial.number),
            cell(r.value, ".4f"),
            *((v := value_of(r, key), as_text(v)) for key in keys),
            cell(r.state),
            cell(r.step, ","),
            cell(r.seconds, duration),
        ]
        for r in outcome.results
    ]


def setting_rows(outcome: Outcome) -> tuple[list[str], list[list]]:
    """Returns columns and rows of the table of means over seeds; no rows of one."""
    rows = settings(outcome)
    names = short_names([*rows[0].values]).values() if rows else ()
    return [*names, "trials", outcome.objective, "deviation"], [
        [
            *((value, as_text(value)) for value in row.values.values()),
            cell(row.trials),
            cell(row.mean, ".4f"),
            cell(row.deviation if row.trials > 1 else None, ".4f"),
        ]
        for row in rows
    ]


def write(root: Path, outcome: Outcome) -> None:
    """Writes results.json and results.csv, each atomically."""
    figures = sorted({name for r in outcome.results for name in r.figures})
    figures = [name for name in figures if name != outcome.objective]
    head = ["trial", "state", outcome.objective, "step", "seconds"]
    trials = [_as_json(r) for r in outcome.results]
    rows = [
        r.figures
        | {key: value_of(r, key) for key in outcome.keys}
        | trial
        | {outcome.objective: r.value}
        for r, trial in zip(outcome.results, trials, strict=True)
    ]
    content = {
        "objective": outcome.objective,
        "maximise": outcome.maximise,
        "best": None if outcome.best is None else outcome.best.trial.number,
        "settings": [dataclasses.asdict(s) for s in settings(outcome)],
        "trials": trials,
    }
    columns = [*head, *outcome.keys, *figures, "code", "workdir"]
    write_results(root, content, rows, columns)


def _as_json(r: Result) -> dict[str, Any]:
    return {
        "trial": r.trial.number,
        "values": r.trial.values,
        "state": r.state,
        "value": r.value,
        "step": r.step,
        "seconds": r.seconds,
        "figures": r.figures,
        "evaluations": r.curve,
        "code": r.code,
        "log": r.log,
        "workdir": str(r.trial.directory),
    }
