"""The plots of a sweep, each an SVG to be embedded in a page."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from plmjax.experiments.sweep_plan import as_text, short_names
from plmjax.experiments.sweep_results import Outcome, value_of
from plmjax.experiments.trials import Result
from plmjax.report.page import (
    GOOD,
    INK,
    OTHER,
    as_svg,
    figure_of,
)

_NEAR = 0.16  # of an axis: labels closer than this would overlap


@dataclasses.dataclass(frozen=True)
class Axis:
    """The values of a key as positions on a line, between 0 and 1."""

    name: str
    places: dict[Any, float]  # {value: position} of every value that occurs
    ticks: list[tuple[float, str]]

    def place(self, value: Any) -> float:
        """Returns the position of a value, between 0 and 1."""
        return self.places[_hashable(value)]


def _hashable(value: Any) -> Any:
    return as_text(value) if isinstance(value, list | dict | tuple) else value


def make_axis(name: str, values: Sequence[Any]) -> Axis:
    """Returns an axis of the values: numbers by size, by log over a decade or more."""
    seen = list(dict.fromkeys(map(_hashable, values)))
    if not all(_is_number(value) for value in seen) or len(seen) < 2:
        spread = np.linspace(0, 1, len(seen)) if len(seen) > 1 else [0.5]
        places = dict(zip(seen, map(float, spread), strict=True))
        return Axis(name, places, [(p, as_text(v)) for v, p in places.items()])
    low, high = min(seen), max(seen)
    scale = math.log if low > 0 and high / low >= 9.99 else float
    width = scale(high) - scale(low)
    places = {v: (scale(v) - scale(low)) / width for v in seen}
    ticked = sorted(seen)
    if np.diff(sorted(places.values())).min() < _NEAR:
        inner = np.linspace(scale(low), scale(high), 4)[1:-1]
        whole = all(isinstance(v, int) for v in seen)
        made = [math.exp(x) if scale is math.log else float(x) for x in inner]
        ticked = [low, *(round(x) if whole else x for x in made), high]
    ticks = [((scale(v) - scale(low)) / width, _tick(v)) for v in ticked]
    return Axis(name, places, ticks)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tick(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else as_text(value)


def _limits(values: Sequence[float], maximise: bool) -> tuple[float, float]:
    """Returns the limits of an axis; a diverged run must not hide the others."""
    sign = -1 if maximise else 1
    costs = sorted(sign * value for value in values)
    best, middle, worst = costs[0], costs[len(costs) // 2], costs[-1]
    worst = min(worst, middle + 4 * (middle - best)) if middle > best else worst
    margin = 0.06 * (worst - best) or 0.05 * abs(best) or 1.0
    low, high = sorted((sign * (best - margin), sign * (worst + margin)))
    return low, high


def _valued(found: Outcome, *states: str) -> list[Result]:
    return [
        r
        for r in found.in_order()
        if r.state in states and r.value is not None and math.isfinite(r.value)
    ]


def history(found: Outcome) -> str | None:
    """Draws the objective by trial, and the best so far; None without values."""
    done, pruned = _valued(found, "finished"), _valued(found, "pruned")
    if not done:
        return None
    figure, ((plot,),) = figure_of(3.2)
    if pruned:
        x, y = _points(pruned)
        plot.plot(x, y, "x", color=OTHER, alpha=0.8, label="pruned, at its last")
    x, y = _points(done)
    plot.plot(x, y, "o", color=OTHER, label="finished")
    best = np.maximum.accumulate(y) if found.maximise else np.minimum.accumulate(y)
    plot.step(x, best, where="post", color=GOOD, linewidth=2, label="best so far")
    plot.set_ylim(_limits(y + _points(pruned)[1], found.maximise))
    plot.set_xlabel("trial")
    plot.set_ylabel(found.objective)
    plot.xaxis.get_major_locator().set_params(integer=True)
    plot.legend(frameon=False, labelcolor=INK)
    return as_svg(figure)


def _points(results: Sequence[Result]) -> tuple[list[int], list[float]]:
    known = [(r.trial.number, r.value) for r in results if r.value is not None]
    return [x for x, _ in known], [y for _, y in known]


def curves(found: Outcome) -> str | None:
    """Draws each trial's evaluations, the best trial on top; None without any."""
    drawn = [r for r in found.in_order() if r.curve]
    if not drawn:
        return None
    figure, ((plot,),) = figure_of(3.8)
    values = []
    for r in sorted(drawn, key=lambda r: r is found.best):
        x, y = zip(*r.curve, strict=True)
        style: dict[str, Any] = {"color": OTHER, "alpha": 0.55, "linewidth": 1.2}
        if r is found.best:
            style = {"color": GOOD, "linewidth": 2.5}
        dashed = "--" if r.state == "pruned" else "-"
        # A trial that ended at its first evaluation is drawn as a point.
        plot.plot(x, y, "x" if len(x) == 1 else dashed, **style)
        values += [value for value in y if math.isfinite(value)]
    handles = [plot.plot([], [], "-", color=OTHER, label="finished")[0]]
    if any(r.state == "pruned" for r in drawn):
        handles += plot.plot([], [], "--", color=OTHER, label="pruned")
    if found.best is not None:
        label = f"best: trial {found.best.trial.number}"
        handles += plot.plot([], [], "-", color=GOOD, linewidth=2.5, label=label)
    plot.legend(handles=handles, frameon=False, labelcolor=INK)
    plot.set_ylim(_limits(values, found.maximise))
    plot.set_xlabel("step")
    plot.set_ylabel(found.objective)
    return as_svg(figure)


def by_key(found: Outcome) -> str | None:
    """Draws the objective over each key, with pruned trials; None if no key varies."""
    done = _valued(found, "finished", "pruned")
    keys = _varying(found, done)
    if not keys:
        return None
    names, columns = short_names(keys), min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure, plots = figure_of(2.7 * rows, columns, rows)
    _, y = _points(done)
    for index, plot in enumerate(plots.flat):
        if index >= len(keys):
            plot.set_visible(False)
            continue
        key = keys[index]
        values = [value_of(r, key) for r in done]
        axis = make_axis(names[key], values)
        x = [axis.place(value) for value in values]
        for state, marker in (("finished", "o"), ("pruned", "x")):
            of = [n for n, r in enumerate(done) if r.state == state]
            at, height = [x[n] for n in of], [y[n] for n in of]
            plot.plot(at, height, marker, color=OTHER, alpha=0.8)
        if found.best in done:
            best = done.index(found.best)
            plot.plot([x[best]], [y[best]], "o", color=GOOD, markersize=9)
        plot.set_xticks([p for p, _ in axis.ticks], [t for _, t in axis.ticks])
        plot.set_xlim(-0.08, 1.08)
        plot.set_ylim(_limits(y, found.maximise))
        plot.set_xlabel(axis.name)
        if index % columns == 0:
            plot.set_ylabel(found.objective)
    return as_svg(figure)


def _varying(found: Outcome, results: Sequence[Result]) -> list[str]:
    return [
        key
        for key in found.keys
        if len({_hashable(value_of(r, key)) for r in results}) > 1
    ]


def parallel(found: Outcome) -> str | None:
    """Draws each finished trial as a line through its values; None if too few."""
    done = _valued(found, "finished")
    keys = _varying(found, done)
    if len(keys) < 2 or len(done) < 2:
        return None
    names = short_names(keys)
    axes = [make_axis(names[key], [value_of(r, key) for r in done]) for key in keys]
    _, y = _points(done)
    low, high = _limits(y, found.maximise)
    goal = [min(max((value - low) / (high - low), 0.0), 1.0) for value in y]
    figure, ((plot,),) = figure_of(4.2)
    better = np.argsort(np.argsort(y if found.maximise else np.negative(y)))
    for index in np.argsort(better):
        r = done[index]
        x = [axis.place(value_of(r, k)) for axis, k in zip(axes, keys, strict=True)]
        share = float(better[index]) / (len(done) - 1)
        plot.plot(
            range(len(axes) + 1),
            [*x, goal[index]],
            color=_blend(share),
            alpha=0.35 + 0.6 * share**2,
            linewidth=3 if r is found.best else 1.3,
        )
    marks = [(low + part * (high - low)) for part in (0, 0.25, 0.5, 0.75, 1)]
    last = Axis(found.objective, {}, [(i / 4, f"{v:.3g}") for i, v in enumerate(marks)])
    for place, axis in enumerate([*axes, last]):
        plot.axvline(place, color=INK, alpha=0.5, linewidth=1)
        for at, text in axis.ticks:
            plot.annotate(
                text,
                (place, at),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                fontsize=9,
            )
    plot.set_xticks(range(len(axes) + 1), [*(a.name for a in axes), found.objective])
    plot.set_yticks([])
    plot.set_xlim(-0.1, len(axes) + 0.35)
    plot.spines[:].set_visible(False)
    plot.tick_params(length=0)
    return as_svg(figure)


def _blend(share: float) -> tuple[float, ...]:
    """Returns a colour between that of the other trials (0) and of the best (1)."""
    from matplotlib.colors import to_rgb

    low, high = np.array(to_rgb(OTHER)), np.array(to_rgb(GOOD))
    return tuple(low + (high - low) * share**2)


def bars(shares: dict[str, float], label: str) -> str:
    """Draws the importance of each key as a bar, the largest on top."""
    names = short_names([*shares])
    keys = sorted(shares, key=lambda key: shares[key])
    figure, ((plot,),) = figure_of(0.7 + 0.38 * len(keys))
    plot.barh([names[key] for key in keys], [shares[k] for k in keys], color=OTHER)
    for place, key in enumerate(keys):
        plot.annotate(
            f"{shares[key]:.0%}",
            (shares[key], place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
    plot.set_xlim(0, 1.08)
    plot.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    plot.set_xlabel(label)
    return as_svg(figure)


def main_effects(found: Outcome) -> dict[str, float]:
    """Returns the share of the variance of a list's results that each key explains.

    Epsilon squared: the variance between the means of a key's values, less what chance
    alone would give. A key with a different value in every trial is left out.
    """
    done = _valued(found, "finished")
    y = np.array([r.value for r in done], float)
    total = float(((y - y.mean()) ** 2).sum()) if len(y) else 0.0
    shares = {}
    for key in _varying(found, done) if total > 0 else []:
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
