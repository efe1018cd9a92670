"""Figures by plotly for pages, and by matplotlib for PNG files.

Colours are readable on white and on black; `templates` has the colours of letters and
lines for light and dark pages.
"""

import contextlib
import copy
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# plotly.graph_objects.Figure, whose attributes type checkers do not know.
Figure = Any

OTHER, GOOD = "#4a86c5", "#e8710a"
NEUTRAL = "#8a8a8a"
COLOURS = (OTHER, GOOD, "#3a9d5d", "#9b6bd0", "#d6487e", "#1a9fa5", "#a5713a", NEUTRAL)
# From the first to the last trial.
SCALE = ("#9ecbe8", "#2f6fb5")


def axis_title(metric: str, prefix: str = "") -> str:
    """Returns the title of an axis: the name of a metric, with its unit if any."""
    unit = " (nats)" if metric == "loss" or metric.endswith("_loss") else ""
    return f"{prefix}{metric.replace('_', ' ')}{unit}"


def blend(share: float) -> str:
    """Returns a colour between OTHER (0) and GOOD (1)."""
    from plotly.colors import find_intermediate_color, hex_to_rgb

    low, high = (f"rgb{hex_to_rgb(colour)}" for colour in (OTHER, GOOD))
    return str(find_intermediate_color(low, high, share, colortype="rgb"))


def new(x: str, y: str, height: int = 340) -> Figure:
    """Returns an empty figure, `height` pixels high, with titles of its axes."""
    # Not at the top: plotly would slow down every command.
    from plotly import graph_objects

    figure = graph_objects.Figure()
    figure.update_layout(template=None, height=height, xaxis_title=x, yaxis_title=y)
    return figure


def add_points(figure: Figure, x, y, marker: dict[str, Any], **more: Any) -> None:
    """Adds points, with a `name` in the legend or a `text` for the pointer."""
    shown = {
        "showlegend": "name" in more,
        "hoverinfo": "text" if "text" in more else "all",
    }
    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, **shown, **more)


def add_curve(
    figure: Figure, curve: Sequence[tuple[int, float]], name: str, hover: str, **line
) -> None:
    """Adds (step, value) as a line; curves of one name share their entry of the legend.

    A curve of one point is a dot.
    """
    x, y = zip(*curve, strict=True)
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines" if len(x) > 1 else "markers",
        line=line,
        marker_color=line["color"],
        opacity=0.85,
        name=name,
        legendgroup=name,
        showlegend=all(other.name != name for other in figure.data),
        meta=html.escape(hover, quote=False),
        hovertemplate="%{meta}<br>step %{x}: %{y:.4f}<extra></extra>",
    )


def templates() -> dict[str, dict[str, Any]]:
    """Returns plotly's templates of a page: {"light": template, "dark": template}."""
    from plotly import io

    shared = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": COLOURS,
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "margin": {"l": 10, "r": 14, "t": 16, "b": 10},
        # Above the curves: a narrow screen has no room beside them.
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
    }
    axis = {"exponentformat": "power", "title_standoff": 8, "zeroline": False}
    changed = {}
    for name, base in (("light", "plotly_white"), ("dark", "plotly_dark")):
        layout: Any = copy.deepcopy(io.templates[base].layout)
        layout.update(shared).update(xaxis=axis, yaxis=axis)
        changed[name] = {"layout": layout.to_plotly_json()}
    return changed


@contextlib.contextmanager
def png(path: Path, inches: tuple[float, float] = (7, 4.2), rows: int = 1):
    """Yields `rows` matplotlib axes below each other, then writes them to `path`."""
    import matplotlib

    matplotlib.use("Agg")  # draws without a screen
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, figsize=inches, layout="constrained", squeeze=False
    )
    yield axes[:, 0]
    for plot in axes[:, 0]:
        plot.spines[["top", "right"]].set_visible(False)
    # Tight: a title that is wider than the axes makes the picture wider.
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def write_png(path: Path, panels: dict[str, Figure]) -> None:
    """Writes {title: figure} below each other as a PNG; plotly would need a browser.

    It draws lines, points and horizontal boxes.
    """
    height = sum(figure.layout.height for figure in panels.values()) / 80
    with png(path, (8.6, height), len(panels)) as axes:
        for plot, (title, figure) in zip(axes, panels.items(), strict=True):
            layout = figure.layout
            for trace in figure.data:
                (_draw_boxes if trace.type == "box" else _draw_line)(plot, trace)
            plot.set_title(title, loc="left", fontsize=11)
            plot.set_xlabel(layout.xaxis.title.text)
            plot.set_ylabel(layout.yaxis.title.text)
            if layout.yaxis.tickvals is not None:
                plot.set_yticks(layout.yaxis.tickvals, layout.yaxis.ticktext)
                plot.set_ylim(layout.yaxis.range)
            if plot.get_legend_handles_labels()[1]:
                # Beside the curves, which may be anywhere.
                plot.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


_MARKERS = {None: "o", "circle": "o", "x": "x", "diamond-open": "D"}


def _draw_line(plot, trace) -> None:
    lines = "lines" in trace.mode
    plot.plot(
        trace.x,
        trace.y,
        linestyle="-" if lines else "",
        linewidth=trace.line.width,
        marker=_MARKERS[trace.marker.symbol] if "markers" in trace.mode else "",
        markersize=0.7 * (trace.marker.size or 7),
        color=trace.line.color if lines else trace.marker.color,
        fillstyle="none" if trace.marker.symbol == "diamond-open" else "full",
        alpha=trace.opacity,
        label=None if trace.showlegend is False else trace.name,
    )


def _draw_boxes(plot, trace) -> None:
    names = {"q1": "q1", "med": "median", "q3": "q3"}
    names |= {"whislo": "lowerfence", "whishi": "upperfence"}
    box = {ours: trace[theirs][0] for ours, theirs in names.items()} | {"fliers": []}
    line = {"color": trace.line.color}
    plot.bxp(
        [box],
        positions=trace.y,
        orientation="horizontal",
        widths=trace.width,
        manage_ticks=False,
        showcaps=False,
        boxprops=line,
        medianprops=line,
        whiskerprops=line,
    )
