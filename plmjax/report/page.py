"""A report on one page that needs no other file and no network.

Its plots are embedded SVG: lines and letters take the page's text colour, and the
colours of the data are readable on white and on black.
"""

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from plmjax.files import write_file

# Placeholder for the page's text colour until the SVG is written.
INK = "#010203"
GOOD, OTHER = "#e8710a", "#4a86c5"
_WIDTH = 8.6  # inches; the page scales it


def write(path: Path, title: str, sections: Sequence[str | None]) -> Path:
    """Writes the page atomically and returns its path."""
    title = html.escape(title)
    body = "\n".join(section for section in sections if section)
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n{body}\n<script>{_SCRIPT}</script></body></html>\n"
    )
    write_file(path, text.encode())
    return path


def figure_of(height: float, columns: int = 1, rows: int = 1):
    """Returns a figure of `height` inches and its plots [rows, columns]."""
    import matplotlib

    matplotlib.use("Agg")  # draws without a screen
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(
        rows, columns, figsize=(_WIDTH, height), layout="constrained", squeeze=False
    )
    for plot in plots.flat:
        plot.spines[["top", "right"]].set_visible(False)
        plot.tick_params(colors=INK, which="both")
        for spine in plot.spines.values():
            spine.set(color=INK, alpha=0.4)
        plot.xaxis.label.set_color(INK)
        plot.yaxis.label.set_color(INK)
        plot.title.set_color(INK)
    return figure, plots


def as_svg(figure) -> str:
    """Returns a figure as <svg>, in the page's font and text colour."""
    import matplotlib
    from matplotlib import pyplot

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    pyplot.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # The page sets the width and the font family.
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%"', text, count=1)
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def section(title: str, content: str | None) -> str | None:
    """Returns a part of the page under its title; None if there is no content."""
    if not content:
        return None
    return f"<section><h2>{html.escape(title)}</h2>\n{content}</section>"


def cell(value, text: str) -> str:
    """Returns a cell that sorts by its value and shows its text."""
    key = html.escape(str(value), quote=True)
    return f'<td data-value="{key}">{html.escape(text)}'


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table that a click on a column sorts; its cells are HTML."""
    cells = "".join(f"<th><button>{html.escape(name)}</button></th>" for name in head)
    rows = "\n".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return (
        '<div class="wide"><table class="sortable">'
        f"<thead><tr>{cells}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


_STYLE = """
:root { color-scheme: light dark; --line: #8886; --good: #e8710a; }
body { background: Canvas; color: CanvasText; font: 16px/1.5 system-ui, sans-serif;
  max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.best { border-left: 4px solid var(--good); padding-left: .8rem; }
code, pre { font: .85em ui-monospace, monospace; }
pre { border: 1px solid var(--line); padding: .6rem; overflow-x: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .9rem; }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
tbody tr:hover { background: #8882; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--good); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
.failed { color: #d33; } .pruned, .stopped, .waiting { opacity: .65; }
/* The halo keeps letters readable where lines cross them. */
svg text { font-family: system-ui, sans-serif !important; paint-order: stroke;
  stroke: Canvas; stroke-width: .25em; stroke-linejoin: round; }
a { color: inherit; }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.value ?? row.cells[column].innerText;
    const empty = text => text === "" || text === "None" || text === "nan";
    body.append(...[...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (empty(x) || empty(y)) return empty(x) - empty(y);
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    }));
  }));
}
"""
