"""The comparison of domains as text and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plmjax.console import as_lines, as_table
from plmjax.report.figures import COLOURS, png

_FIGURES = {  # of a model
    "bits_per_byte": ("bits a byte", "{:.3f}"),
    "accuracy": ("right", "{:.1%}"),
    "unknown_share": ("unknown", "{:.2%}"),
    "tokens_per_word": ("tokens a word", "{:.2f}"),
}
_SMALL = 100_000  # bytes of a sample, below which words are counted by chance


def as_text(result: Mapping[str, Any]) -> str:
    """Returns the record of `embed.domains.compare_domains` for the screen."""
    domains = result["domains"]
    names = [domain["name"] for domain in domains]
    shown = {n: _FIGURES[n] for n in _FIGURES if n in domains[0]}
    heads = ["documents", "MB", "share", *(head for head, _ in shown.values())]
    rows = [
        [
            domain["name"],
            f"{domain['documents']:,}",
            f"{domain['bytes'] / 1e6:.2f}",
            f"{domain['share']:.1%}",
            *(form.format(domain[name]) for name, (_, form) in shown.items()),
        ]
        for domain in domains
    ]
    common = [
        [name, *(f"{share:.1%}" for share in row)]
        for name, row in zip(names, result["overlap"], strict=True)
    ]
    text = [
        f"Clusters of passages: purity {result['purity']:.3f} "
        f"({result['purity_by_chance']:.3f} by chance).",
    ]
    if result["sample_bytes"] < _SMALL:
        text.append(
            f"Each sample has only {result['sample_bytes']:,} bytes: too few words for "
            f"figures to trust (better {_SMALL:,} or more of each domain)."
        )
    for advice in result["advice"]:
        what = "likely" if advice["likely"] else "unlikely"
        change = " with another vocabulary" if advice["vocabulary"] else ""
        text.append(
            f"{names[0]} -> {advice['to']}: adapting{change} is {what} to pay "
            f"({'; '.join(advice['why'])})."
        )
    text += [f"Plot: {result['plot']}"] if result.get("plot") else []
    title = f"Of the {result['words']:,} most frequent words, in common"
    return as_lines(
        as_table("Domains", ["", *heads], rows),
        as_table(title, ["", *names], common),
        *text,
    )


def write_plot(result: Mapping[str, Any], path: Path) -> None:
    """Writes the passages on their first two principal components as a PNG."""
    points, begin = np.array(result["points"]), 0
    with png(path) as axes:
        for index, size in enumerate(result["passages"]):
            some = points[begin : begin + size]
            name = result["domains"][index]["name"]
            colour = COLOURS[index % len(COLOURS)]
            axes[0].plot(*some.T, ".", color=colour, alpha=0.6, label=name)
            begin += size
        axes[0].set_xlabel("first principal component")
        axes[0].set_ylabel("second")
        axes[0].set_title(f"Passages, purity {result['purity']:.3f}", loc="left")
        axes[0].legend(frameon=False)
