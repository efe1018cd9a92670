"""The figures of a study: the score of each run as a dot, and its curve as a line."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from plmjax.experiments.cells import Cell
from plmjax.experiments.compare_tables import by_task, names_of, what
from plmjax.experiments.outcomes import Outcome
from plmjax.report import figures
from plmjax.report.figures import COLOURS, NEUTRAL

if TYPE_CHECKING:
    from plmjax.report.figures import Figure


def boxes(cells: Sequence[Cell]) -> "dict[str, Figure]":
    """Returns {title: box plot of the scores of each cell}, one for each task.

    The box holds the middle half of the runs, its line is the median; whiskers reach
    the least and the most. Runs that did not learn are crosses, an ensemble a diamond.
    """
    drawn = {}
    for task, compared in by_task(cells).items():
        if not any(cell.done for cell in compared):
            continue
        score, count = what(compared[0]), len(compared)
        figure = figures.new(score, "", 90 + 42 * count)
        for number, cell in enumerate(compared):
            _add_box(figure, number, cell)
        ticks = {"tickvals": [*range(count)], "ticktext": names_of(compared)}
        figure.update_yaxes(**ticks, range=(count - 0.5, -0.5))
        drawn[f"{task}: {score} of every run{_by(compared)}"] = figure
    return drawn


def _by(cells: Sequence[Cell]) -> str:
    """Returns what the cells of a task differ in: ", by model"."""
    differ = [
        n for n in ("model", "setting") if len({getattr(c, n) for c in cells}) > 1
    ]
    return f", by {' and '.join(differ)}" if differ else ""


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _hover(run: Outcome) -> str:
    seed, fold = run.run.pair
    return f"seed {seed}" + ("" if fold is None else f", fold {fold}")


def _add_box(figure: "Figure", number: int, cell: Cell) -> None:
    scores = [o.score for o in cell.done if o.score is not None]
    if len(scores) > 1:
        low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75])
        figure.add_box(
            lowerfence=[min(scores)],
            q1=[low],
            median=[middle],
            q3=[high],
            upperfence=[max(scores)],
            y=[number],
            orientation="h",
            width=0.56,
            line={"color": _colour(number), "width": 1.5},
            hoverinfo="x",
            showlegend=False,
        )
    # Spread vertically in their order, so that equal scores stay distinguishable.
    heights = number + 0.16 * np.sin(np.arange(len(scores)) * 2.4)
    for learned, symbol in ((True, "circle"), (False, "x")):
        of = [n for n, o in enumerate(cell.done) if (o.learned is not False) == learned]
        if of:
            figure.add_scatter(
                x=[scores[n] for n in of],
                y=[heights[n] for n in of],
                mode="markers",
                marker={"symbol": symbol, "color": _colour(number)},
                text=[_hover(cell.done[n]) for n in of],
                hovertemplate="%{text}: %{x:.4f}<extra></extra>",
                showlegend=False,
            )
    if cell.ensemble is not None:
        figure.add_scatter(
            x=[cell.ensemble],
            y=[number],
            mode="markers",
            marker={
                "symbol": "diamond-open",
                "color": NEUTRAL,
                "size": 11,
                "line": {"width": 2},
            },
            hovertemplate="ensemble: %{x:.4f}<extra></extra>",
            showlegend=False,
        )


def curves(cells: Sequence[Cell]) -> "dict[str, Figure]":
    """Returns {title: held-out score of all runs by step}, one for each task."""
    drawn = {}
    for task, compared in by_task(cells).items():
        if not any(o.curve for cell in compared for o in cell.outcomes):
            continue
        metric = compared[0].metric
        score = figures.axis_title(metric, "held-out ")
        figure = figures.new("training step", score, 380)
        for number, (name, cell) in enumerate(
            zip(names_of(compared), compared, strict=True)
        ):
            for index, outcome in enumerate(o for o in cell.outcomes if o.curve):
                x, y = zip(*outcome.curve, strict=True)
                figure.add_scatter(
                    x=x,
                    y=[value if math.isfinite(value) else None for value in y],
                    mode="lines" if len(x) > 1 else "markers",
                    marker_color=_colour(number),
                    line={"color": _colour(number), "width": 1.8},
                    opacity=0.8,
                    name=name,
                    legendgroup=name,
                    showlegend=index == 0,
                    hovertemplate=f"{name}, {_hover(outcome)}"
                    "<br>step %{x}: %{y:.4f}<extra></extra>",
                )
        title = f"{task}: held-out {metric.replace('_', ' ')} by training step"
        drawn[f"{title}, a curve a run{_by(compared)}"] = figure
    return drawn
