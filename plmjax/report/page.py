"""HTML pages that need no other file and no network: text, tables, plotly's figures.

The script of plotly is in the page once, compressed. A page without figures lacks it.
"""

import base64
import functools
import gzip
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from plmjax.files import write_file
from plmjax.report import figures
from plmjax.report.figures import Figure


def write(
    path: Path, title: str, sections: Sequence[str | None], script: str = ""
) -> Path:
    """Writes the page atomically and returns its path.

    `script` may define adapt(figure), which changes each figure before it is drawn.
    """
    title = html.escape(title)
    body = "\n".join(section for section in sections if section)
    drawing = hint = ""
    if _JSON in body:
        drawing = _figure_script()
        hint = "<noscript>The figures need JavaScript; the tables do not.</noscript>"
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n{hint}{body}\n<script>{_SORT}{script}</script>{drawing}"
        "</body></html>\n"
    )
    write_file(path, text.encode())
    return path


def with_size(path: Path) -> str:
    """Returns the path with the size of its file: "report.html (2.0 MB)"."""
    return f"{path} ({path.stat().st_size / 1e6:.1f} MB)"


def section(title: str, content: str | None, note: str = "") -> str | None:
    """Returns content under a title and a note; None if there is no content."""
    if not content:
        return None
    note = f"<p>{html.escape(note)}</p>\n" if note else ""
    return f"<section><h2>{html.escape(title)}</h2>\n{note}{content}</section>"


class Html(str):
    """A cell of a table that is HTML already."""


def link(value: Any, folder: str) -> Html:
    """Returns a cell that leads to a folder."""
    return Html(
        f'<td data-value="{value}"><a href="{html.escape(folder)}/">{value}</a>'
    )


def marked(text: str, kind: str) -> Html:
    """Returns a cell with the colour of a state, such as "failed"."""
    return Html(f'<td class="{kind}">{html.escape(text)}')


def _cell(content: Any) -> str:
    if isinstance(content, Html):
        return content
    value, text = content if isinstance(content, tuple) else (content, content)
    return f'<td data-value="{html.escape(str(value))}">{html.escape(str(text))}'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], more: str = "") -> str:
    """Returns a table that a click on a column sorts.

    A cell is a value, or (value to sort by, its text), or Html. `more` is a class
    besides "sortable": "prose" for cells of several lines.
    """
    cells = "".join(f"<th><button>{html.escape(name)}</button></th>" for name in head)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="sortable {more}">'
        f"<thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def plot(title: str, figure: Figure | None, width: int = 0) -> str | None:
    """Returns a figure under its title; None without a figure.

    On screens with less than `width` pixels it scrolls sideways.
    """
    if figure is None:
        return None
    # The page has the templates once.
    values = _escaped(json.loads(figure.update_layout(template=None).to_json()))
    values = json.dumps(values).replace("<", "\\u003c")  # no end of a script
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<div class="wide"><div style="min-width: {width}px"></div></div>'
        f"{_JSON}{values}</script></figure>"
    )


def _escaped(value: Any, key: str = "") -> Any:
    """Returns a figure whose words show as they are: plotly reads <b> and the like."""
    if isinstance(value, dict):
        return {name: _escaped(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item, key) for item in value]
    words = isinstance(value, str) and key in ("text", "name", "ticktext", "customdata")
    return html.escape(value, quote=False) if words else value


def plots(drawn: dict[str, Figure]) -> str:
    """Returns {title: figure} below each other."""
    return "\n".join(plot(title, figure) or "" for title, figure in drawn.items())


def grid(drawn: dict[str, Figure]) -> str | None:
    """Returns {title: figure} side by side, as many as the screen has room for."""
    return f'<div class="grid">{plots(drawn)}</div>' if drawn else None


@functools.cache
def _figure_script() -> str:
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), mtime=0)
    templates = json.dumps(figures.templates())
    return (
        f'<script type="text/plain" id="plotly">{base64.b64encode(packed).decode()}'
        f"</script>\n<script>const templates = {templates};{_DRAW}</script>"
    )


_JSON = '<script type="application/json">'

# The browser refuses to load anything. Plotly saves a figure by way of an image.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:"
)

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --good: #e8710a; }
body { background: Canvas; color: CanvasText; font: 16px/1.5 system-ui, sans-serif;
  max-width: 68rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.best { border-left: 4px solid var(--good); padding-left: .8rem; }
code, pre { font: .85em ui-monospace, monospace; }
pre { border: 1px solid var(--line); padding: .6rem; overflow-x: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .9rem; }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
tbody tr:hover { background: #8882; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--good); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
.failed { color: light-dark(#c22, #ff7070); }
.pruned, .stopped, .waiting { opacity: .65; }
figure { margin: 1rem 0; min-width: 0; }
figcaption { font-size: .95rem; }
.grid { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
/* The halo keeps letters readable where lines cross them. */
.annotation-text { paint-order: stroke; stroke: Canvas; stroke-width: .3em;
  stroke-linejoin: round; }
mark { background: light-dark(#ffe3b8, #6b4a12); color: inherit; padding: 0 .15em; }
.prose td, .prose th { white-space: normal; text-align: left; vertical-align: top; }
.prose td { min-width: 8rem; }
.controls { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: center; }
a { color: inherit; }
"""

_SORT = """
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

_DRAW = """
const dark = matchMedia("(prefers-color-scheme: dark)");
// A finger has no pointer to hide the buttons with.
const config = {responsive: true, displayModeBar: matchMedia("(hover: hover)").matches
  && "hover", displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]]};
const draw = () => document.querySelectorAll("figure").forEach(figure => {
  const {data, layout} = (globalThis.adapt ?? (drawn => drawn))(
    JSON.parse(figure.querySelector("script").textContent));
  layout.template = templates[dark.matches ? "dark" : "light"];
  Plotly.react(figure.querySelector("div div"), data, layout, config);
});
(async () => {
  const packed = atob(document.getElementById("plotly").textContent);
  const bytes = Uint8Array.from(packed, letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream();
  const text = stream.pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(text).text();
  document.head.append(script);
  draw();
  dark.addEventListener("change", draw);
})();
"""
