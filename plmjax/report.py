"""Draws what a run wrote down."""

from pathlib import Path
from typing import Any

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

    `token_loss` names the loss on predicted tokens, and `baseline`, drawn as a line,
    what a guess without context costs them, in nats; the other terms of an objective
    with several follow by step. Returns the files, none where nothing was recorded.
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
        _draw(path, key, axis, train, held_out, line)
        written.append(path)
    return written


def _draw(
    path: Path,
    key: str,
    axis: str,
    train: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    baseline: float | None,
) -> None:
    import matplotlib

    matplotlib.use("Agg")  # No screen is needed, or looked for.
    from matplotlib import pyplot

    label, scale = _AXES[axis]
    figure, plot = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    styles = (
        (train, {"color": "0.7", "linewidth": 1, "label": "training"}),
        (held_out, {"marker": "o", "markersize": 3, "label": "held out"}),
    )
    for records, style in styles:
        found = [r for r in records if key in r and axis in r]
        plot.plot([r[axis] * scale for r in found], [r[key] for r in found], **style)
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
    plot.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
