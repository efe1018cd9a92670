"""What `plmjax data` prints of texts, and the plot of their lengths."""

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from plmjax import counted
from plmjax.console import console
from plmjax.report.figures import COLOURS, NEUTRAL, png

_RULES = 6  # of a step, the most frequent
_EXAMPLES = 12  # of all rules together
_SHARES, _SMALL = 5, 0.0005  # the largest; the smallest that is shown
_WHAT = ("dropped", "changed")


def as_lines(*parts: Any) -> str:
    """Returns tables and lines as one text, as wide as the screen."""
    screen = console()
    with screen.capture() as captured:
        for part in parts:
            screen.print(part, markup=False, soft_wrap=isinstance(part, str))
    return captured.get().rstrip()


def table(title: str, columns: str, rows: Any) -> Table:
    """Returns a table; the first of the comma-separated columns has names."""
    made = Table(title=title, title_style="")
    for index, name in enumerate(columns.split(",")):
        made.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        # Text keeps rich from reading "[UNK]" as markup.
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def clean_as_text(result: dict[str, Any]) -> str:
    """Returns the report of `plmjax data clean` for the screen."""
    total, kept = result["documents"], result["kept"]
    rows, examples = [], []
    for name, step in result["steps"].items():
        share = f"{step['dropped'] / total:.1%}"
        rows.append((name, f"{step['dropped']:,}", share, f"{step['changed']:,}"))
        rules = sorted(
            step["rules"].items(), key=lambda r: -r[1]["dropped"] - r[1]["changed"]
        )
        for rule, counts in rules[:_RULES]:
            if (rule, len(rules)) != (name, 1):
                share = f"{counts['dropped'] / total:.1%}"
                here = f"{counts['dropped']:,}", share, f"{counts['changed']:,}"
                rows.append((f"  {rule}", *here))
            examples += [(rule, e) for e in counts["examples"][:1]]
        if others := rules[_RULES:]:
            counts = [sum(c[what] for _, c in others) for what in _WHAT]
            share = f"{counts[0] / total:.1%}"
            rows.append((f"  {len(others)} more", counts[0], share, counts[1]))
    shown = Table(title="Examples", title_style="", show_lines=True)
    for name in ("rule", "document", "what it dropped or changed"):
        shown.add_column(name, overflow="fold")
    for rule, example in examples[:_EXAMPLES]:
        text = example["before"]
        if example["after"]:
            text += f"\n{'like' if example['dropped'] else '->'} {example['after']}"
        reason = example["reason"].partition(": ")[2]
        text += f"\n({reason})" if reason and "\n" not in reason else ""
        shown.add_row(rule, f"{example['document']:,}", Text(text))
    lines = [*(f"WARNING: {remark}" for remark in result["remarks"])]
    lines.append(
        f"{counted(kept['documents'], 'document')} of {total:,} kept "
        f"({kept['documents'] / total:.1%}), {kept['characters']:,} characters, in "
        f"{result['to']}; all counts and more examples: "
        f"{result['to']}/manifest.json."
    )
    lines.append(f"\nNext:\n  plmjax pretrain {result['to']}")
    columns = "step and rule,dropped,of all,changed"
    tables = [table("Cleaning, in this order", columns, rows)]
    return as_lines(*tables, *([shown] if examples else []), *lines)


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
    spread = Table(title="Tokens of a document", title_style="")
    for name in (*quantiles, "mean"):
        spread.add_column(names.get(name, name), justify="right")
    spread.add_row(*quantiles.values(), f"{lengths['mean']:,.0f}")
    rows = [
        (
            f"{int(length):,}",
            *(f"{how['single'][k]:{f}}" for k, f in _ROWS),
            *(f"{how['packed'][k]:{f}}" for k, f in _ROWS),
        )
        for length, how in result["rows"].items()
    ]
    columns = "tokens of a row,rows: a document each,padding,rows: packed,padding"
    lines = [(f"{n:,}", line) for line, n in result["repeated_lines"]["examples"]]
    parts: list[Any] = [table("Text", "what,figure", facts), spread]
    parts.append(table("Rows", columns, rows))
    if lines:
        parts.append(table("Repeated lines", "in documents,line", lines))
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
        table("Split", "side,documents,of all,characters,folder", rows),
        by + "." * (near == 0),
        f"\nNext:\n  plmjax pretrain {result['to']}/train\n"
        f"  plmjax evaluate --model=RUN --text={result['to']}/test",
    )
