"""The figures of a sweep's page."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plmjax.experiments.sweep_plan import as_text, describe, short_names
from plmjax.experiments.sweep_results import Outcome, value_of
from plmjax.experiments.trials import Result
from plmjax.report import figures
from plmjax.report.figures import (
    COLOURS,
    GOOD,
    NEUTRAL,
    OTHER,
    SCALE,
    Figure,
    axis_title,
)

if TYPE_CHECKING:
    from optuna import Study


_NEAR = 0.16  # of an axis: labels closer than this would overlap
_SEED = "train.seed"
_CROSS = {"symbol": "x", "color": NEUTRAL}


@dataclasses.dataclass(frozen=True)
class Axis:
    """The values of a key as positions on a line, between 0 and 1."""

    name: str
    positions: dict[Any, float]  # of every value that occurs
    ticks: list[tuple[float, str]]

    def position(self, value: Any) -> float:
        """Returns the position of a value, between 0 and 1."""
        return self.positions[_hashable(value)]


def _hashable(value: Any) -> Any:
    return as_text(value) if isinstance(value, list | dict | tuple) else value


def make_axis(name: str, values: Sequence[Any]) -> Axis:
    """Returns an axis of the values: numbers by size, by log over a decade or more."""
    seen = list(dict.fromkeys(map(_hashable, values)))
    if not all(_is_number(value) for value in seen) or len(seen) < 2:
        spread = np.linspace(0, 1, len(seen)) if len(seen) > 1 else [0.5]
        positions = dict(zip(seen, map(float, spread), strict=True))
        return Axis(name, positions, [(p, as_text(v)) for v, p in positions.items()])
    low, high = min(seen), max(seen)
    scale = math.log if low > 0 and high / low >= 9.99 else float
    width = scale(high) - scale(low)
    positions = {v: (scale(v) - scale(low)) / width for v in seen}
    ticked = sorted(seen)
    if np.diff(sorted(positions.values())).min() < _NEAR:
        scaled = np.linspace(scale(low), scale(high), 4)[1:-1]
        inner = [math.exp(x) if scale is math.log else float(x) for x in scaled]
        integers = all(isinstance(v, int) for v in seen)
        ticked = [low, *(round(x) if integers else x for x in inner), high]
    ticks = [((scale(v) - scale(low)) / width, _tick(v)) for v in ticked]
    return Axis(name, positions, ticks)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tick(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else as_text(value)


def _limits(values: Sequence[float], maximise: bool) -> tuple[float, float]:
    """Returns the limits of an axis; a diverged run must not hide the others."""
    sign = -1 if maximise else 1
    costs = sorted(sign * value for value in values)
    best, middle, worst = costs[0], costs[len(costs) // 2], costs[-1]
    if middle > best:
        worst = max(cost for cost in costs if cost <= middle + 4 * (middle - best))
    margin = 0.06 * (worst - best) or 0.05 * abs(best) or 1.0
    low, high = sorted((sign * (best - margin), sign * (worst + margin)))
    return low, high


def _valued(outcome: Outcome, *states: str) -> list[Result]:
    return [
        r
        for r in outcome.in_order()
        if r.state in states and r.value is not None and math.isfinite(r.value)
    ]


def history(outcome: Outcome) -> Figure | None:
    """Draws the objective by trial, and the best so far; None without values."""
    done, pruned = _valued(outcome, "finished"), _valued(outcome, "pruned")
    if not done:
        return None
    x, y = _points(done)
    figure = figures.new("trial", axis_title(outcome.objective))
    figures.add_points(figure, x, y, {"color": OTHER}, name="finished")
    best = (np.maximum if outcome.maximise else np.minimum).accumulate(y)
    line = {"color": GOOD, "shape": "hv"}
    figure.add_scatter(x=x, y=best, mode="lines", line=line, name="best so far")
    if pruned:
        early, last = _points(pruned)
        name = "pruned, at its last"
        figures.add_points(figure, early, last, _CROSS, name=name)
        x, y = x + early, y + last
    limits = min(x) - 0.5, max(x) + 0.5
    figure.update_xaxes(tickformat="d", range=limits)
    figure.update_yaxes(range=_limits(y, outcome.maximise))
    return figure


def _points(results: Sequence[Result]) -> tuple[list[int], list[float]]:
    known = [(r.trial.number, r.value) for r in results if r.value is not None]
    return [x for x, _ in known], [y for _, y in known]


def curves(outcome: Outcome) -> Figure | None:
    """Draws each trial's evaluations, the best trial on top; None without any.

    A curve has the name and the colour of what distinguishes its trial but for the
    seed. If there are more of these than colours, only the best has its own.
    """
    drawn = [r for r in outcome.in_order() if r.curve]
    if not drawn:
        return None
    keys = varying(outcome, drawn)
    keys = [key for key in keys if key != _SEED] or [*keys]
    labels = {
        r.trial.number: describe({key: value_of(r, key) for key in keys}) for r in drawn
    }
    if len(set(labels.values())) > len(COLOURS):
        labels = {r.trial.number: "other trials" for r in drawn}
        if outcome.best is not None:
            number = outcome.best.trial.number
            labels[number] = f"trial {number}, the best"
    colours = dict(zip(dict.fromkeys(labels.values()), COLOURS * 2, strict=False))
    figure = figures.new("training step", axis_title(outcome.objective), 420)
    extremes: list[float] = []
    for r in sorted(drawn, key=lambda r: r is outcome.best):
        label = labels[r.trial.number]
        line = {"color": colours[label], "width": 3.5 if r is outcome.best else 1.8}
        line["dash"] = "dash" if r.state == "pruned" else "solid"
        hover = f"trial {r.trial.number}: {describe(r.trial.values)}"
        figures.add_curve(figure, r.curve, label, hover, **line)
        if finite := [value for _, value in r.curve if math.isfinite(value)]:
            extremes += [min(finite), max(finite)]
    limits = _limits(extremes, outcome.maximise) if extremes else None
    return figure.update_yaxes(range=limits)


def by_key(outcome: Outcome) -> dict[str, Figure]:
    """Returns {short name of a key: the objective over it}, with pruned trials.

    The later a trial, the darker it is.
    """
    done = _valued(outcome, "finished", "pruned")
    finished, pruned = (
        [n for n, r in enumerate(done) if r.state == state]
        for state in ("finished", "pruned")
    )
    best = [n for n, r in enumerate(done) if r is outcome.best]
    later = {"color": [done[n].trial.number for n in finished], "colorscale": SCALE}
    groups = [(finished, later), (pruned, _CROSS), (best, {"color": GOOD, "size": 12})]
    drawn = {}
    for key, name in varying(outcome, done).items():
        values = [value_of(r, key) for r in done]
        texts = [as_text(value) for value in values]
        axis = make_axis(name, values)
        positions, labels = zip(*axis.ticks, strict=True)
        figure = figures.new(name, axis_title(outcome.objective))
        ticks = {"tickvals": positions, "ticktext": labels, "range": (-0.08, 1.08)}
        figure.update_xaxes(**ticks)
        for numbers, marker in groups:
            x = [axis.position(values[n]) for n in numbers]
            y = [done[n].value for n in numbers]
            named = [f"trial {done[n].trial.number}, {texts[n]}" for n in numbers]
            hover = [f"{text}: {v:.4f}" for text, v in zip(named, y, strict=True)]
            figures.add_points(figure, x, y, marker, text=hover)
        figure.update_layout(height=260, showlegend=False)
        figure.update_yaxes(range=_limits(_points(done)[1], outcome.maximise))
        drawn[name] = figure
    return drawn


def varying(outcome: Outcome, results: Sequence[Result]) -> dict[str, str]:
    """Returns {key: its short name} of the keys in which the results differ."""
    return {
        key: name
        for key, name in short_names(outcome.keys).items()
        if len({_hashable(value_of(r, key)) for r in results}) > 1
    }


def parallel(outcome: Outcome) -> Figure | None:
    """Draws each finished trial as a line through its values; None if too few.

    The better a trial, the more its line has the colour of the best one.
    """
    done = _valued(outcome, "finished")
    names = varying(outcome, done)
    if len(names) < 2 or len(done) < 2:
        return None
    _, y = _points(done)
    low, high = _limits(y, outcome.maximise)
    y = [min(max(value, low), high) for value in y]
    columns = {axis_title(outcome.objective): y} | {
        name: [value_of(r, key) for r in done] for key, name in names.items()
    }
    figure = _parallel([make_axis(*column) for column in columns.items()], columns)
    y = [line.y[0] for line in figure.data]
    better = np.argsort(np.argsort(y if outcome.maximise else np.negative(y)))
    for line, rank in zip(figure.data, better.tolist(), strict=True):
        share = rank / (len(done) - 1)
        line.update(line_color=figures.blend(share**2), opacity=0.35 + 0.6 * share**2)
        line.line.width = 3.5 if share == 1 else 1.5
    figure.data = [figure.data[n] for n in np.argsort(better)]
    # Room for the names of the first and the last axis.
    return figure.update_layout(margin={"l": 50, "r": 60})


def _parallel(axes: Sequence[Axis], columns: dict[str, list[Any]]) -> Figure:
    """Returns lines through vertical axes."""
    figure = figures.new("", "")
    for values in zip(*columns.values(), strict=True):
        points = [axis.position(v) for axis, v in zip(axes, values, strict=True)]
        figure.add_scatter(
            x=[*range(len(axes))],
            y=points,
            mode="lines",
            showlegend=False,
            customdata=[
                f"{a.name}: {as_text(v)}" for a, v in zip(axes, values, strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    for number, axis in enumerate(axes):
        figure.add_vline(number, line={"color": NEUTRAL, "width": 1}, layer="below")
        for position, text in axis.ticks:
            beside = {"x": number, "xanchor": "left", "xshift": 4}
            figure.add_annotation(y=position, text=text, showarrow=False, **beside)
    ticks = {"tickvals": [*range(len(axes))], "ticktext": [*columns]}
    figure.update_xaxes(**ticks, range=(-0.2, len(axes) - 0.7), showgrid=False)
    figure.update_yaxes(visible=False, range=(-0.05, 1.05))
    return figure


def bars(shares: dict[str, float]) -> Figure | None:
    """Draws the share of each key as a bar, the largest on top; None without any."""
    if not shares:
        return None
    names = short_names([*shares])
    keys = sorted(shares, key=lambda key: shares[key])
    figure = figures.new("share", "", 80 + 34 * len(keys))
    x, y = [shares[key] for key in keys], [names[key] for key in keys]
    shown = {"texttemplate": "%{x:.0%}", "textposition": "outside"}
    figure.add_bar(
        x=x, y=y, orientation="h", marker_color=OTHER, cliponaxis=False, **shown
    )
    return figure.update_xaxes(range=(0, 1.15), tickformat=".0%")


def importance(study: "Study", outcome: Outcome) -> dict[str, float]:
    """Returns Optuna's importance of each key; {} if too few trials have finished.

    By PED-ANOVA (arXiv:2304.10255).
    """
    if len(_valued(outcome, "finished")) < 2 * len(outcome.keys) + 2:
        return {}
    from optuna.importance import get_param_importances

    return get_param_importances(study)


def main_effects(outcome: Outcome) -> dict[str, float]:
    """Returns the share of the variance of a list's results that each key explains.

    Epsilon squared: the variance between the means of a key's values, less what chance
    alone would give. A key with a different value in every trial is left out.
    """
    done = _valued(outcome, "finished")
    y = np.array([r.value for r in done], float)
    total = float(((y - y.mean()) ** 2).sum()) if len(y) else 0.0
    shares = {}
    for key in varying(outcome, done) if total > 0 else []:
        groups: dict[Any, list[float]] = {}
        for r, value in zip(done, y, strict=True):
            groups.setdefault(_hashable(value_of(r, key)), []).append(value)
        if len(groups) == len(done):
            continue
        within = sum(
            float(((np.array(g) - np.mean(g)) ** 2).sum()) for g in groups.values()
        )
        chance = (len(groups) - 1) * within / (len(done) - len(groups))
        shares[key] = max(0.0, (total - within - chance) / total)
    return shares
