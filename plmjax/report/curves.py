"""Plots of a run's metrics."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plmjax.metrics.scores import confusion
from plmjax.train.metrics import read_metrics

# {field of a record: (label of the axis, scale)}.
_AXES = {
    "step": ("step", 1.0),
    "tokens": ("million tokens", 1e-6),
    "seconds": ("minutes of training", 1 / 60),
}


def plot_curves(
    workdir: Path, token_loss: str | None, baseline: float | None = None
) -> list[Path]:
    """Draws the losses of metrics.jsonl by step, tokens and time into plots/.

    `token_loss` names the loss on predicted tokens; `baseline`, drawn as a line, is the
    loss of a guess without context, in nats. Further loss terms are drawn by step.
    Returns the files; none if metrics.jsonl has no training records.
    """
    records = read_metrics(workdir / "metrics.jsonl")
    train = [r for r in records if r["kind"] == "train"]
    held_out = [r for r in records if r["kind"] == "evaluation"]
    if not train:
        return []
    (workdir / "plots").mkdir(exist_ok=True)
    terms = [name for name in train[-1] if name.endswith("_loss")]
    first = token_loss or "loss"
    figures: dict[str, tuple[str, str, float | None]] = {
        f"loss_by_{axis}": (first, axis, baseline if token_loss else None)
        for axis in _AXES
    }
    figures |= {f"{n}_by_step": (n, "step", None) for n in terms if n != first}
    written = []
    for name, (key, axis, line) in figures.items():
        path = workdir / "plots" / f"{name}.png"
        _draw(path, key, axis, train=train, held_out=held_out, baseline=line)
        written.append(path)
    return written


def plot_scores(workdir: Path, metric: str) -> list[Path]:
    """Draws a held-out score by step; returns no file if it is not recorded."""
    records = read_metrics(workdir / "metrics.jsonl")
    found = [r for r in records if r["kind"] == "evaluation" and metric in r]
    if not found or metric == "loss":
        return []
    (workdir / "plots").mkdir(exist_ok=True)
    path = workdir / "plots" / f"{metric}_by_step.png"
    with _figure(path) as plot:
        steps = [record["step"] for record in found]
        plot.plot(steps, [r[metric] for r in found], marker="o", markersize=3)
        plot.set_xlabel("step")
        plot.set_ylabel(f"{metric.replace('_', ' ')}, held out")
    return [path]


_MOST_LABELS = 40  # more labels are unreadable


def plot_confusion(
    path: Path, truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> None:
    """Draws the confusion matrix: true labels are rows, predicted ones columns.

    Shades are shares of the row; of more than 40 labels the most frequent are drawn.
    """
    counts = confusion(truth, predicted, labels)
    often = np.argsort(-counts.sum(1), kind="stable")[:_MOST_LABELS]
    kept = np.sort(often) if len(labels) > _MOST_LABELS else np.arange(len(labels))
    counts = counts[np.ix_(kept, kept)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [labels[place] for place in kept.tolist()]
    side = max(4.2, 0.42 * len(names) + 1.8)
    path.parent.mkdir(exist_ok=True)
    with _figure(path, (side + 0.6, side)) as plot:
        plot.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        plot.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0)
        plot.set_yticks(range(len(names)), names)
        plot.set_xlabel("predicted")
        plot.set_ylabel("true")
        size = "small" if len(names) <= 12 else "xx-small"
        for row, column in np.argwhere(counts):
            dark = shares[row, column] > 0.5
            colour = "white" if dark else "0.2"
            text = f"{counts[row, column]:,}"
            plot.text(
                column, row, text, ha="center", va="center", color=colour, fontsize=size
            )


def plot_rates(
    path: Path, metric: str, curves: Mapping[str, Mapping[float, Sequence[float]]]
) -> None:
    """Draws scores by sampling rate, {split: {rate: a score a fold or seed}}.

    Lines are means, bars standard deviations, faint points the single scores.
    """
    with _figure(path) as plot:
        for number, (split, points) in enumerate(curves.items()):
            rates = [*points]
            means = [np.mean(values) for values in points.values()]
            style = {"color": f"C{number}", "label": split.replace("_", " ")}
            if all(len(values) > 1 for values in points.values()):
                bars = [np.std(values, ddof=1) for values in points.values()]
                plot.errorbar(rates, means, bars, marker="o", capsize=3, **style)
                for rate, values in points.items():
                    spots = {"color": f"C{number}", "alpha": 0.35, "linestyle": ""}
                    plot.plot([rate] * len(values), values, marker=".", **spots)
            else:
                plot.plot(rates, means, marker="o", **style)
        plot.set_xticks(sorted({rate for own in curves.values() for rate in own}))
        plot.set_xlabel("share of the sure pseudo-labels that is trained on")
        plot.set_ylabel(metric.replace("_", " "))
        plot.legend(frameon=False)


@contextlib.contextmanager
def _figure(path: Path, size: tuple[float, float] = (7, 4.2)) -> Iterator[Any]:
    """Yields the axes of a plot, then writes the plot."""
    import matplotlib

    matplotlib.use("Agg")  # draws without a screen
    from matplotlib import pyplot

    figure, plot = pyplot.subplots(figsize=size, layout="constrained")
    yield plot
    plot.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw(
    path: Path,
    key: str,
    axis: str,
    train: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    baseline: float | None,
) -> None:
    label, scale = _AXES[axis]
    styles = (
        (train, {"color": "0.7", "linewidth": 1, "label": "training"}),
        (held_out, {"marker": "o", "markersize": 3, "label": "held out"}),
    )
    with _figure(path) as plot:
        for records, style in styles:
            found = [r for r in records if key in r and axis in r]
            plot.plot(
                [r[axis] * scale for r in found], [r[key] for r in found], **style
            )
        if baseline is not None:
            plot.axhline(baseline, color="0.3", linestyle=":", linewidth=1)
            plot.annotate(
                "unigram baseline",
                (1, baseline),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                color="0.3",
                fontsize="small",
            )
        plot.set_xlabel(label)
        what = "loss on predicted tokens" if key == "loss" else key.replace("_", " ")
        plot.set_ylabel(f"{what} (nats)")
        plot.legend(frameon=False)
