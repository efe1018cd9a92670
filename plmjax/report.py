"""Draws what a run wrote down."""

from pathlib import Path

from plmjax.train.metrics import read_metrics


def plot_curves(workdir: Path, baseline: float | None = None) -> list[Path]:
    """Draws the losses of metrics.jsonl by step, tokens and time into plots/.

    `baseline` is drawn as a line: the loss of a guess without context, in nats.
    Returns the files, none where nothing was recorded.
    """
    import matplotlib

    matplotlib.use("Agg")  # No screen is needed, or looked for.
    from matplotlib import pyplot

    records = read_metrics(workdir / "metrics.jsonl")
    train = [r for r in records if r["kind"] == "train"]
    held_out = [r for r in records if r["kind"] == "evaluation"]
    if not train:
        return []
    (workdir / "plots").mkdir(exist_ok=True)
    written = []
    axes = {
        "step": ("step", 1.0),
        "tokens": ("million tokens", 1e-6),
        "seconds": ("minutes of training", 1 / 60),
    }
    for key, (label, scale) in axes.items():
        figure, axis = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
        axis.plot(
            [r[key] * scale for r in train],
            [r["loss"] for r in train],
            color="0.7",
            linewidth=1,
            label="training",
        )
        axis.plot(
            [r[key] * scale for r in held_out],
            [r["loss"] for r in held_out],
            marker="o",
            markersize=3,
            label="held out",
        )
        if baseline is not None:
            axis.axhline(baseline, color="0.3", linestyle=":", linewidth=1)
            axis.annotate(
                "unigram baseline",
                (1, baseline),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                color="0.3",
                fontsize="small",
            )
        axis.set_xlabel(label)
        axis.set_ylabel("loss on masked tokens (nats)")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
        path = workdir / "plots" / f"loss_by_{key}.png"
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
        written.append(path)
    return written
