"""The figures of a study: the score of each run as a dot, and its curve as a line."""

from collections.abc import Sequence

import numpy as np

from plmjax.experiments.cells import Cell
from plmjax.experiments.compare_tables import by_task, names_of, what
from plmjax.experiments.outcomes import Outcome
from plmjax.report import figures
from plmjax.report.figures import COLOURS, NEUTRAL, Figure


def boxes(cells: Sequence[Cell]) -> dict[str, Figure]:
    """Returns {title: box plot of the scores of each cell}, one for each task.

    The box holds the middle half of the runs, its line is the median; whiskers reach
    the least and the most. Runs that did not learn are crosses, an ensemble a diamond.
    """
    drawn = {}
    for task, compared in by_task(cells).items():
        if not any(cell.done for cell in compared):
            continue
        score, count = what(compared[0]), len(compared)
        figure = figures.new(score, "", 80 + 54 * count)
        for number, cell in enumerate(compared):
            _add_box(figure, number, cell)
        ticks = {"tickvals": [*range(count)], "ticktext": names_of(compared)}
        figure.update_yaxes(**ticks, range=(count - 0.5, -0.5))
        # Names stand above the boxes: beside them they may fill a narrow screen.
        figure.update_yaxes(showticklabels=False)
        for number, name in enumerate(names_of(compared)):
            above = {"x": 0, "xref": "paper", "xanchor": "left", "yshift": 20}
            figure.add_annotation(text=name, y=number, showarrow=False, **above)
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


def _name(o: Outcome) -> str:
    seed, fold = o.run.pair
    return f"seed {seed}" + ("" if fold is None else f", fold {fold}")


def _add_box(figure: Figure, number: int, cell: Cell) -> None:
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
            width=0.42,
            line={"color": _colour(number), "width": 1.5},
            hoverinfo="x",
            showlegend=False,
        )
    # Spread vertically in their order, so that equal scores stay distinguishable.
    heights = number + 0.12 * np.sin(np.arange(len(scores)) * 2.4)
    for learned, symbol in ((True, "circle"), (False, "x")):
        of = [n for n, o in enumerate(cell.done) if (o.learned is not False) == learned]
        x, y = [scores[n] for n in of], [heights[n] for n in of]
        text = [f"{_name(cell.done[n])}: {scores[n]:.4f}" for n in of]
        marker = {"symbol": symbol, "color": _colour(number)}
        figures.add_points(figure, x, y, marker, text=text)
    if (score := cell.ensemble) is not None:
        marker = {"symbol": "diamond-open", "color": NEUTRAL, "size": 11}
        marker |= {"line": {"width": 2}}
        text = f"ensemble: {score:.4f}"
        figures.add_points(figure, [score], [number], marker, text=text)


def curves(cells: Sequence[Cell]) -> dict[str, Figure]:
    """Returns {title: held-out score of all runs by step}, one for each task."""
    drawn = {}
    for task, compared in by_task(cells).items():
        metric = compared[0].metric
        score = figures.axis_title(metric, "held-out ")
        figure = figures.new("training step", score, 380)
        names = names_of(compared)
        for number, (name, cell) in enumerate(zip(names, compared, strict=True)):
            line = {"color": _colour(number), "width": 1.8}
            for o in cell.outcomes:
                if o.curve:
                    hover = f"{name}, {_name(o)}"
                    figures.add_curve(figure, o.curve, name, hover, **line)
        if figure.data:
            title = f"{task}: held-out {metric.replace('_', ' ')} by training step"
            drawn[f"{title}, a curve a run{_by(compared)}"] = figure
    return drawn
