"""Results of pseudo-labelling: tables, a plot of score by rate, CSV and JSON."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from plmjax.config import flatten
from plmjax.console import as_table, console
from plmjax.experiments.repeats import fold_share, summary, verdict
from plmjax.experiments.tables import write_results
from plmjax.metrics.comparison import compare
from plmjax.report.curves import plot_rates


@dataclasses.dataclass(frozen=True)
class Round:
    """One fine-tuning of a chain; without drawn texts, a copy of round 0.

    `chain` names the fold or seed, "" if there is only one. Round 0 has the rate 0 and
    no pseudo-labels. `left_out` is as in pseudo_labels.Pool. `test` is empty without a
    test set.
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
    groups: dict[tuple[float, int], list[Round]] = {}
    for r in sorted(rounds, key=lambda r: (r.rate, r.round)):
        groups.setdefault((r.rate, r.round), []).append(r)
    statistics = []
    for key, group in groups.items():
        splits = {s: summary([r.score(s) for r in group]) for s in splits_of(rounds)}
        mean = {split: s.mean for split, s in splits.items() if s}
        deviation = {split: s.deviation for split, s in splits.items() if s}
        statistics.append(Setting(*key, len(group), mean, deviation))
    return statistics


def curve(rounds: Sequence[Round], split: str) -> dict[float, list[float]]:
    """Returns {rate: scores of the chains after the last round}; rate 0 is round 0."""
    last = max(r.round for r in rounds)
    scores: dict[float, list[float]] = {}
    for r in sorted(rounds, key=lambda r: r.rate):
        if r.round == (last if r.rate else 0):
            scores.setdefault(r.rate, []).append(r.score(split))
    return scores


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
    compared = {
        rate: compare(values, first, test_share=fold_share(folds))
        for rate, values in by_rate.items()
    }
    return [
        {"rate": rate, "split": split}
        | dataclasses.asdict(comparison)
        | {"verdict": verdict(rounds[0].metric, comparison)}
        for rate, comparison in compared.items()
    ]


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
    write_results(root, result, [_csv_row(row) for row in result["rounds"]])
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
    rows = []
    for r in rounds:
        counts = [f"{r.kept:,}", f"{r.drawn:,}"] if r.round else ["", ""]
        scores = [f"{r.score(split):.4f}" for split in splits]
        rows.append([r.chain, f"{r.rate:g}", str(r.round), *counts, *scores])
    columns = ["chain", "rate", "round", "sure", "drawn", *names]
    every = as_table("Rounds", columns, rows)
    if all(r.chain == rounds[0].chain for r in rounds):
        return [every]
    means = [
        [f"{s.rate:g}", str(s.round), str(s.chains)]
        + [f"{s.mean[n]:.4f} ± {s.deviation[n]:.4f}" for n in splits]
        for s in settings(rounds)
    ]
    title = "Mean and standard deviation over chains"
    return [every, as_table(title, ["rate", "round", "chains", *names], means)]


def _csv_row(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a round whose scores are columns, named split.name."""
    nested = {name: row[name] for name in ("held_out", "test", "left_out")}
    return {k: v for k, v in row.items() if k not in nested} | flatten(nested)
