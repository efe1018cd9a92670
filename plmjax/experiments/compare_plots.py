"""The plots of a study: the score of each run as a dot, and its curve as a line."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from plmjax.experiments.cells import Cell
from plmjax.experiments.compare_tables import by_task, names_of, what
from plmjax.report.page import (
    GOOD,
    INK,
    OTHER,
    figure_of,
)

# Readable on white and on black; the ninth cell has the colour of the first.
_COLOURS = (
    OTHER,
    GOOD,
    "#3a9d5d",
    "#9b6bd0",
    "#d6487e",
    "#1a9fa5",
    "#a5713a",
    "#8a8a8a",
)


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def boxes(cells: Sequence[Cell]):
    """Returns a figure with a box plot of the scores of each cell; None without scores.

    The box holds the middle half of the runs, its line is the median; whiskers reach
    the least and the most. Runs that did not learn are crosses, an ensemble a diamond.
    """
    tasks = {
        task: own for task, own in by_task(cells).items() if any(c.done for c in own)
    }
    if not tasks:
        return None
    inches = sum(1.0 + 0.42 * len(own) for own in tasks.values())
    figure, panels = figure_of(inches, 1, len(tasks))
    for plot, own in zip(panels[:, 0], tasks.values(), strict=True):
        for place, cell in enumerate(own):
            _box(plot, place, cell)
        plot.set_yticks(range(len(own)), names_of(own))
        plot.set_ylim(len(own) - 0.5, -0.5)
        plot.set_xlabel(what(own[0]))
        if len(tasks) > 1:
            plot.set_title(own[0].task, loc="left", fontsize=11, color=INK)
    return figure


def _box(plot, place: int, cell: Cell) -> None:
    scores = [o.score for o in cell.done if o.score is not None]
    if not scores:
        return
    colour = _colour(place)
    low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75])
    if len(scores) > 1:
        line: dict[str, Any] = {"color": INK, "linewidth": 1, "alpha": 0.6}
        plot.hlines(place, min(scores), low, **line)
        plot.hlines(place, high, max(scores), **line)
        plot.barh(
            place, high - low, 0.56, low, color=colour, alpha=0.22, edgecolor=colour
        )
        plot.vlines(middle, place - 0.28, place + 0.28, color=colour, linewidth=2)
    # Spread vertically in their order, so that equal scores stay distinguishable.
    heights = place + 0.16 * np.sin(np.arange(len(scores)) * 2.4)
    for learned, marker in ((True, "o"), (False, "x")):
        of = [n for n, o in enumerate(cell.done) if (o.learned is not False) == learned]
        x, y = [scores[n] for n in of], [heights[n] for n in of]
        plot.plot(x, y, marker, color=colour, markersize=5, alpha=0.85)
    if cell.ensemble is not None:
        plot.plot(
            [cell.ensemble], [place], "D", color=INK, markersize=6, fillstyle="none"
        )


def curves(cells: Sequence[Cell]):
    """Returns a figure of the held-out score of all runs by step; None if none."""
    tasks = {
        task: own
        for task, own in by_task(cells).items()
        if any(o.curve for c in own for o in c.outcomes)
    }
    if not tasks:
        return None
    figure, panels = figure_of(3.3 * len(tasks), 1, len(tasks))
    for plot, own in zip(panels[:, 0], tasks.values(), strict=True):
        for place, (name, cell) in enumerate(zip(names_of(own), own, strict=True)):
            for outcome in cell.outcomes:
                points = [(x, y) for x, y in outcome.curve if math.isfinite(y)]
                if points:
                    plot.plot(
                        *zip(*points, strict=True),
                        "-" if len(points) > 1 else "o",
                        color=_colour(place),
                        alpha=0.6,
                        linewidth=1.2,
                        markersize=4,
                    )
            plot.plot([], [], "-", color=_colour(place), linewidth=2, label=name)
        plot.set_xlabel("step")
        plot.set_ylabel(f"held-out {own[0].metric.replace('_', ' ')}")
        plot.legend(frameon=False, labelcolor=INK)
        if len(tasks) > 1:
            plot.set_title(own[0].task, loc="left", fontsize=11, color=INK)
    return figure
