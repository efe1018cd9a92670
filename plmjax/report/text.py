"""What `plmjax data` prints of texts, and the plot of their lengths."""

from typing import Any

from rich.table import Table
from rich.text import Text

from plmjax import counted
from plmjax.console import console

_RULES = 6  # of a step, the most frequent
_EXAMPLES = 12  # of all rules together
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
