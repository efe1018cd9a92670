"""Plots of a run's metrics as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plmjax.metrics.scores import confusion
from plmjax.report.figures import COLOURS, axis_title, png
from plmjax.train.metrics import read_metrics

# {field of a record: (label of the axis, scale)}.
_AXES = {
    "step": ("training step", 1.0),
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
    held_out = [r for r in records if r["kind"] == "evaluation"]
    held_out = [r for r in held_out if r.get(metric) is not None]
    if not held_out or metric == "loss":
        return []
    (workdir / "plots").mkdir(exist_ok=True)
    path = workdir / "plots" / f"{metric}_by_step.png"
    with png(path) as (plot,):
        steps = [record["step"] for record in held_out]
        plot.plot(steps, [r[metric] for r in held_out], marker="o", markersize=3)
        plot.set_title(_title(path, f"held-out {metric.replace('_', ' ')}"))
        plot.set_xlabel("training step")
        plot.set_ylabel(axis_title(metric, "held-out "))
    return [path]


_MOST_LABELS = 40  # more labels are unreadable
_LONGEST_LABEL, _LONGEST_NAME = 30, 50  # characters
_INCHES_A_LETTER = 0.085


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


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
    names = [_cut(labels[index], _LONGEST_LABEL) for index in kept.tolist()]
    run = _cut(path.resolve().parents[1].name, _LONGEST_NAME)
    side = max(3.2, 0.42 * len(names))  # inches, of the matrix alone
    beside = _INCHES_A_LETTER * max(map(len, names))
    upright = len(names) > 6 or beside * len(names) > side
    width = max(side + beside + 1.4, 0.1 * len(run) + 0.4)
    height = side + (beside if upright else 0.2) + 1.2
    path.parent.mkdir(exist_ok=True)
    with png(path, (width, height)) as (plot,):
        plot.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        plot.set_xticks(range(len(names)), names, rotation=90 if upright else 0)
        plot.set_yticks(range(len(names)), names)
        plot.figure.suptitle(f"{run}\ntrue and predicted labels")
        plot.set_xlabel("predicted label")
        plot.set_ylabel("true label")
        size = "small" if len(names) <= 12 else "xx-small"
        for row, column in np.argwhere(counts):
            dark = shares[row, column] > 0.5
            colour = "white" if dark else "0.2"
            text = f"{counts[row, column]:,}"
            plot.text(
                column, row, text, ha="center", va="center", color=colour, fontsize=size
            )


def plot_pruning(
    path: Path, metric: str, curves: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """Draws scores in percent by the share that is left, {part: [(share, score)]}."""
    with png(path) as (plot,):
        for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
            left, scores = zip(*curve, strict=True)
            plot.plot(left, scores, marker="o", markersize=3, color=colour, label=name)
        plot.xaxis.set_inverted(True)
        plot.xaxis.set_major_formatter("{x:.0%}")
        plot.set_xlabel("what is left")
        plot.set_ylabel(f"{axis_title(metric)} (%)")
        plot.legend(frameon=False)


def plot_rates(
    path: Path, metric: str, curves: Mapping[str, Mapping[float, Sequence[float]]]
) -> None:
    """Draws scores by sampling rate, {split: {rate: a score a fold or seed}}.

    Lines are means, bars standard deviations, faint points the single scores.
    """
    with png(path) as (plot,):
        for number, (split, points) in enumerate(curves.items()):
            rates = [*points]
            means = [np.mean(values) for values in points.values()]
            colour = COLOURS[number]
            style = {"color": colour, "label": split.replace("_", "-")}
            if all(len(values) > 1 for values in points.values()):
                bars = [np.std(values, ddof=1) for values in points.values()]
                plot.errorbar(rates, means, bars, marker="o", capsize=3, **style)
                for rate, values in points.items():
                    spots = {"color": colour, "alpha": 0.35, "linestyle": ""}
                    plot.plot([rate] * len(values), values, marker=".", **spots)
            else:
                plot.plot(rates, means, marker="o", **style)
        plot.set_xticks(sorted({rate for points in curves.values() for rate in points}))
        plot.set_xlabel("share of the sure pseudo-labels that is trained on")
        plot.set_title(_title(path, f"{metric.replace('_', ' ')} by sampling rate"))
        plot.set_ylabel(axis_title(metric))
        plot.legend(frameon=False)


def _title(path: Path, text: str) -> str:
    """Returns "RUN: text" for a file in RUN/plots."""
    return f"{path.resolve().parents[1].name}: {text}"


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
    what = "loss on predicted tokens" if key == "loss" else key.replace("_", " ")
    with png(path) as (plot,):
        for records, style in styles:
            known = [r for r in records if None not in (r.get(key), r.get(axis))]
            x = [r[axis] * scale for r in known]
            plot.plot(x, [r[key] for r in known], **style)
        if baseline is not None:
            style = {"color": "0.3", "linestyle": ":", "linewidth": 1}
            plot.axhline(baseline, label="unigram baseline", **style)
        plot.set_title(_title(path, f"{what}, training and held out"))
        plot.set_xlabel(label)
        plot.set_ylabel(f"{what} (nats)")
        plot.legend(frameon=False)
