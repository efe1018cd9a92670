"""What `plmjax data` prints of texts, and the plot of their lengths."""

from pathlib import Path
from typing import Any

from plmjax import counted
from plmjax.console import as_lines, as_table
from plmjax.report.figures import COLOURS, NEUTRAL, png

_RULES = 6  # of a step, the most frequent
_EXAMPLES = 12  # of all rules together
_SHARES, _SMALL = 5, 0.0005  # the largest; the smallest that is shown
_WHAT = ("dropped", "changed")


def clean_as_text(result: dict[str, Any]) -> str:
    """Returns the report of `plmjax data clean` for the screen."""
    total, kept = result["documents"], result["kept"]
    rows, examples = [], []

    def add(name: str, *counts: dict[str, Any]) -> None:
        dropped, changed = (sum(c[what] for c in counts) for what in _WHAT)
        rows.append((name, f"{dropped:,}", f"{dropped / total:.1%}", f"{changed:,}"))

    for name, step in result["steps"].items():
        add(name, step)
        rules = sorted(
            step["rules"].items(), key=lambda r: -r[1]["dropped"] - r[1]["changed"]
        )
        for rule, counts in rules[:_RULES]:
            if (rule, len(rules)) != (name, 1):
                add(f"  {rule}", counts)
            examples += [(rule, e) for e in counts["examples"][:1]]
        if others := rules[_RULES:]:
            add(f"  {len(others)} more", *(counts for _, counts in others))
    lines = ["Examples:"] * bool(examples)
    for rule, example in examples[:_EXAMPLES]:
        reason = example["reason"].partition(":")[2]
        lines.append(f"  {rule}, document {example['document']:,}:{reason}")
        lines.append(f"    {example['before']}")
        if example["after"]:
            how = "like" if example["dropped"] else "->"
            lines.append(f"    {how} {example['after']}")
    lines += [f"WARNING: {remark}" for remark in result["remarks"]]
    lines.append(
        f"{counted(kept['documents'], 'document')} of {total:,} kept "
        f"({kept['documents'] / total:.1%}), {kept['characters']:,} characters, in "
        f"{result['to']}; all counts and more examples: "
        f"{result['to']}/manifest.json."
    )
    lines.append(f"\nNext:\n  plmjax pretrain {result['to']}")
    columns = "step and rule", "dropped", "of all", "changed"
    return as_lines(as_table("Cleaning, in this order", columns, rows), *lines)


def inspect_as_text(result: dict[str, Any]) -> str:
    """Returns the figures of `plmjax data inspect` for the screen."""
    facts = [
        (name.replace("_", " "), f"{result[name]:,}")
        for name in ("documents", "bytes", "characters", "words", "tokens")
    ]
    tokenizer = result["tokenizer"]
    used = tokenizer["pieces_used"] / tokenizer["pieces"]
    facts += [
        ("tokens a word", f"{result['tokens_per_word']:.2f}"),
        ("bytes a token", f"{result['bytes_per_token']:.2f}"),
        ("unknown tokens", f"{result['unknown_share']:.2%}"),
        ("pieces of the vocabulary in use", f"{used:.1%} of {tokenizer['pieces']:,}"),
        ("copies of another document", f"{result['copies_share']:.1%}"),
        _near(result["near_duplicates"]),
        ("scripts of the letters", _shares(result["scripts"])),
        ("languages", _shares(result["languages"])),
    ]
    lengths = result["lengths"]
    quantiles = {f"{mark}%": f"{n:,}" for mark, n in lengths["quantiles"].items()}
    names = {"0%": "shortest", "50%": "median", "100%": "longest"}
    marks = [*(names.get(mark, mark) for mark in quantiles), "mean"]
    spread = [[*quantiles.values(), f"{lengths['mean']:,.0f}"]]
    rows = [
        (
            f"{int(length):,}",
            *(f"{how['single'][k]:{f}}" for k, f in _ROWS),
            *(f"{how['packed'][k]:{f}}" for k, f in _ROWS),
        )
        for length, how in result["rows"].items()
    ]
    columns = ["tokens of a row", "rows: a document each", "padding"]
    columns += ["rows: packed", "padding"]
    lines = [(line, f"{n:,}") for line, n in result["repeated_lines"]["examples"]]
    parts: list[Any] = [
        as_table("Text", ("what", "figure"), facts),
        as_table("Tokens of a document", marks, spread),
        as_table("Rows", columns, rows),
    ]
    if lines:
        parts.append(as_table("Repeated lines", ("line", "in documents"), lines))
    parts += ["As the model sees it:", *(f"  {row}" for row in result["seen"])]
    problems = [*tokenizer["notes"], *result["problems"]]
    parts += ["\nTo look at before training:"] * bool(problems)
    parts += [f"  - {problem}" for problem in problems]
    parts += [f"\nPlot: {result['plot']}"] if result["plot"] else []
    return as_lines(*parts)


_ROWS = (("rows", ","), ("padding", ".1%"))


def _near(near: dict[str, Any]) -> tuple[str, str]:
    of = f"near-duplicates (of {near['documents']:,} documents)"
    return of, f"{near['share']:.1%}"


def _shares(shares: dict[str, float] | None) -> str:
    """Returns the largest shares, as "en 95.0%, de 5.0%"."""
    if shares is None:
        return "not known without py3langid (pip install 'plmjax[data]')"
    seen = {name: share for name, share in shares.items() if share >= _SMALL}
    shown = [f"{name} {share:.1%}" for name, share in [*seen.items()][:_SHARES]]
    return ", ".join(shown) + ", ..." * (len(seen) > _SHARES)


def plot_lengths(path: Path, result: dict[str, Any]) -> None:
    """Draws how many documents and tokens are in documents of each length, as PNG."""
    histogram = result["lengths"]["histogram"]
    edges = [*histogram["from"][1:], 2 * max(histogram["from"][-1], 1)]
    left = [max(edge, 0.5) for edge in histogram["from"]]
    width = [right - begin for begin, right in zip(left, edges, strict=False)]
    with png(path, (8, 6), 2) as plots:
        for plot, what, colour in zip(
            plots, ("documents", "tokens"), COLOURS, strict=False
        ):
            total = max(sum(histogram[what]), 1)
            shares = [100 * count / total for count in histogram[what]]
            plot.bar(left, shares, width, align="edge", color=colour, edgecolor="white")
            plot.set_xscale("log", base=2)
            plot.xaxis.set_major_formatter("{x:,.0f}")
            plot.set_ylabel(f"% of the {what}")
            for length in result["rows"]:
                plot.axvline(int(length), color=NEUTRAL, linestyle=":")
                top = plot.get_xaxis_transform()
                plot.text(int(length), 1.0, f" {length}", transform=top, va="top")
        plots[-1].set_xlabel("tokens of a document (dotted: rows)")


def split_as_text(result: dict[str, Any]) -> str:
    """Returns the report of `plmjax data split` for the screen."""
    sides = {side: result[side] for side in ("train", "test")}
    total = sum(facts["documents"] for facts in sides.values())
    rows = [
        (
            side,
            f"{facts['documents']:,}",
            f"{facts['documents'] / total:.1%}",
            f"{facts['characters']:,}",
            f"{result['to']}/{side}",
        )
        for side, facts in sides.items()
    ]
    by = f"Chosen by a hash of the words of each document and --seed={result['seed']}"
    near = result["near_duplicates_together"]
    by += "; near-duplicates may stand on both sides (--near)." * (near is None)
    by += f"; {near:,} near-duplicates beside their first one." if near else ""
    return as_lines(
        as_table(
            "Split", ("side", "documents", "of all", "characters", "folder"), rows
        ),
        by + "." * (near == 0),
        f"\nNext:\n  plmjax pretrain {result['to']}/train\n"
        f"  plmjax evaluate --model=RUN --text={result['to']}/test",
    )
