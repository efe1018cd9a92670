"""Results of pseudo-labelling: tables, a plot of score by rate, CSV and JSON."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from plmjax.console import console
from plmjax.files import write_csv, write_json
from plmjax.metrics.comparison import SAME, compare
from plmjax.report.curves import plot_rates
from plmjax.tasks.scores import cost


@dataclasses.dataclass(frozen=True)
class Round:
    """One fine-tuning of a chain; without drawn texts, a copy of round 0.

    `chain` names the fold or seed, "" if there is only one. Round 0 has the rate 0 and
    no pseudo-labels. `left_out` is as in finetune.pseudo.Pool. `test` is empty without
    a test set.
    """

    chain: str
    rate: float
    round: int
    metric: str
    step: int
    held_out: dict[str, float]
    test: dict[str, float] = dataclasses.field(default_factory=dict)
    pool: int = 0
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    kept: int = 0
    drawn: int = 0

    def score(self, split: str) -> float:
        """Returns the score of the metric on a split."""
        return getattr(self, split)[self.metric]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Statistics of rounds that differ only in the chain.

    `mean` and `deviation` are {split: value}; a single chain has no deviation.
    """

    rate: float
    round: int
    chains: int
    mean: dict[str, float]
    deviation: dict[str, float | None]


def splits_of(rounds: Sequence[Round]) -> list[str]:
    """Returns the splits that have scores: held_out, and test if there is one."""
    return ["held_out", "test"] if rounds[0].test else ["held_out"]


def settings(rounds: Sequence[Round]) -> list[Setting]:
    """Returns mean and standard deviation over chains, by rate and round."""
    found = []
    for rate, number in sorted({(r.rate, r.round) for r in rounds}):
        own = [r for r in rounds if (r.rate, r.round) == (rate, number)]
        mean, deviation = {}, {}
        for split in splits_of(rounds):
            values = [r.score(split) for r in own]
            mean[split] = statistics.fmean(values)
            several = len(values) > 1
            deviation[split] = statistics.stdev(values) if several else None
        found.append(Setting(rate, number, len(own), mean, deviation))
    return found


def curve(rounds: Sequence[Round], split: str) -> dict[float, list[float]]:
    """Returns {rate: scores of the chains after the last round}; rate 0 is round 0."""
    last = max(r.round for r in rounds)
    found: dict[float, list[float]] = {}
    for r in sorted(rounds, key=lambda r: r.rate):
        if r.round == (last if r.rate else 0):
            found.setdefault(r.rate, []).append(r.score(split))
    return found


def gains(rounds: Sequence[Round], folds: int | None) -> list[dict[str, Any]]:
    """Returns the gain of each rate's last round over round 0, with 95 % intervals.

    Chains are pairs. Folds are compared on their held-out parts, seeds on the test set
    if there is one. [] with one chain, which cannot show the size of chance.
    """
    split = "held_out" if folds else splits_of(rounds)[-1]
    by_rate = curve(rounds, split)
    first = by_rate.pop(0.0)
    if len(first) < 2:
        return []
    metric = rounds[0].metric
    share = 0.0 if folds is None else 1 / (folds - 1)
    higher_is_better = cost(metric, 1.0) < 0
    words = {"a is higher": "better", "b is higher": "worse", SAME: SAME}
    if not higher_is_better:
        words |= {"a is higher": "worse", "b is higher": "better"}
    found = []
    for rate, values in by_rate.items():
        c = compare(values, first, test_share=share)
        interval = {"difference": c.difference, "low": c.low, "high": c.high}
        verdict = {"verdict": words[c.verdict]}
        found.append({"rate": rate, "split": split, **interval, **verdict})
    return found


def conclude(
    root: Path, rounds: Sequence[Round], folds: int | None, log: Callable[[str], Any]
) -> dict[str, Any]:
    """Prints and writes all results; returns the content of results.json."""
    metric = rounds[0].metric
    result = {
        "metric": metric,
        "settings": [dataclasses.asdict(s) for s in settings(rounds)],
        "gains": gains(rounds, folds),
        "rounds": [dataclasses.asdict(r) for r in rounds],
    }
    for table in tables(rounds):
        console().print(table)
    name = metric.replace("_", " ")
    for gain in result["gains"]:
        log(
            f"Rate {gain['rate']:g} against round 0, {_plain(gain['split'])} {name}: "
            f"{gain['difference']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}], "
            f"{gain['verdict']}."
        )
    if not result["gains"]:
        log("One chain cannot tell a gain from chance; --seeds or --folds can.")
    write_json(root / "results.json", result)
    _write_csv(root / "results.csv", rounds)
    path = root / "plots" / "score_by_rate.png"
    path.parent.mkdir(exist_ok=True)
    plot_rates(path, metric, {s: curve(rounds, s) for s in splits_of(rounds)})
    log(f"Score by sampling rate: {path}")
    return result


def _plain(split: str) -> str:
    return split.replace("_", "-")


def tables(rounds: Sequence[Round]) -> list[Table]:
    """Returns tables of the rounds and, with several chains, of their means."""
    metric, splits = rounds[0].metric.replace("_", " "), splits_of(rounds)
    names = [f"{_plain(split)} {metric}" for split in splits]
    every = Table(title="Rounds", title_style="")
    for column in ("chain", "rate", "round", "sure", "drawn", *names):
        every.add_column(column, justify="right")
    for r in rounds:
        counts = [f"{r.kept:,}", f"{r.drawn:,}"] if r.round else ["", ""]
        values = [f"{r.score(split):.4f}" for split in splits]
        every.add_row(r.chain, f"{r.rate:g}", str(r.round), *counts, *values)
    if all(r.chain == rounds[0].chain for r in rounds):
        return [every]
    means = Table(title="Mean and standard deviation over chains", title_style="")
    for column in ("rate", "round", "chains", *names):
        means.add_column(column, justify="right")
    for s in settings(rounds):
        values = [f"{s.mean[n]:.4f} ± {s.deviation[n]:.4f}" for n in splits]
        means.add_row(f"{s.rate:g}", str(s.round), str(s.chains), *values)
    return [every, means]


def _write_csv(path: Path, rounds: Sequence[Round]) -> None:
    """Writes one row per round; the columns of scores are named split.name."""
    rows = []
    for r in rounds:
        row = dataclasses.asdict(r)
        for name in ("held_out", "test", "left_out"):
            row |= {f"{name}.{key}": value for key, value in row.pop(name).items()}
        rows.append(row)
    names = [*dict.fromkeys(name for row in rows for name in row)]
    write_csv(path, [names, *([row.get(name, "") for name in names] for row in rows)])
