"""report.html: a sweep on one page that needs nothing else, not even a network."""

import html
import os
from pathlib import Path

from plmjax import PlmjaxError, show
from plmjax.display import duration
from plmjax.sweep import plots
from plmjax.sweep.local import how_ended
from plmjax.sweep.plan import Plan, as_text, describe, short_names
from plmjax.sweep.results import Outcome, settings, value_of
from plmjax.sweep.search import importances
from plmjax.sweep.trials import Result

# Figures of scores.json that the table shows beside the objective.
_FIGURES = 4


def write(root: Path, name: str, plan: Plan, found: Outcome) -> Path:
    """Writes report.html, whole, and returns its path."""
    sections = [
        _headline(found),
        _section("Means over seeds", _settings(found)),
        _section("Trials", _trials(root, found)),
        _section("History", plots.history(found)),
        _section("Learning curves", plots.curves(found)),
        _section(f"{found.objective.capitalize()} by key", plots.by_key(found)),
        _section("Parallel coordinates", plots.parallel(found)),
        _section("Importance", _importance(plan, found)),
        _section("Failures", _failures(found)),
    ]
    title = html.escape(f"Sweep {name}")
    body = "\n".join(section for section in sections if section)
    part, path = root / "report.html.tmp", root / "report.html"
    part.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n{body}\n<script>{_SCRIPT}</script></body></html>\n",
        encoding="utf-8",
    )
    os.replace(part, path)
    return path


def _section(title: str, content: str | None) -> str | None:
    if not content:
        return None
    return f"<section><h2>{html.escape(title)}</h2>\n{content}</section>"


def _headline(found: Outcome) -> str:
    goal = "highest" if found.maximise else "lowest"
    told = f"{len(found.results)} trials: {found.summary()}. "
    told += f"The {goal} {found.objective} is the best."
    parts = [f"<p>{html.escape(told)}</p>"]
    if (best := found.best) is not None:
        what = f"{found.objective} {best.value:.4f}: {describe(best.trial.values)}"
        parts.append(
            f'<p class="best">Best: trial {best.trial.number}, {html.escape(what)}'
            f"<br><code>plmjax evaluate --workdir="
            f"{html.escape(str(best.trial.directory))}</code></p>"
        )
    return "\n".join(parts)


def _settings(found: Outcome) -> str | None:
    rows = settings(found)
    if not rows:
        return None
    names = short_names([*rows[0].values])
    head = [*names.values(), "trials", found.objective, "deviation"]
    lines = [
        [
            *(_cell(value) for value in row.values.values()),
            _cell(row.trials),
            _cell(row.mean, f"{row.mean:.4f}"),
            _cell(row.deviation, f"{row.deviation:.4f}") if row.trials > 1 else "<td>",
        ]
        for row in rows
    ]
    return _table(head, lines)


def _trials(root: Path, found: Outcome) -> str:
    names = short_names(found.keys)
    figures = list(dict.fromkeys(n for r in found.finished for n in r.figures))
    figures = [n for n in figures if n not in (found.objective, "unigram_loss")]
    figures = figures[:_FIGURES]
    head = ["trial", found.objective, *names.values(), "state", "step", "time"]
    lines = []
    for r in found.results:
        where = html.escape(os.path.relpath(r.trial.directory, root))
        number = f'<td data-value="{r.trial.number}"><a href="{where}/">'
        lines.append(
            [
                f"{number}{r.trial.number}</a>",
                _cell(r.value, "" if r.value is None else f"{r.value:.4f}"),
                *(_cell(value_of(r, key)) for key in found.keys),
                f'<td class="{r.state}">{r.state}',
                _cell(r.step, "" if r.step is None else f"{r.step:,}"),
                _cell(r.seconds, "" if r.seconds is None else duration(r.seconds)),
                *(_figure(name, r.figures.get(name)) for name in figures),
            ]
        )
    return _table([*head, *(name.replace("_", " ") for name in figures)], lines)


def _cell(value, text: str | None = None) -> str:
    """Returns a cell that sorts by its value and shows its text."""
    shown = as_text(value) if text is None else text
    if value is None and text is None:
        shown = ""
    key = html.escape(str(value), quote=True)
    return f'<td data-value="{key}">{html.escape(shown)}'


def _figure(name: str, value: float | None) -> str:
    return _cell(value, "" if value is None else show.as_text(name, value))


def _table(head: list[str], lines: list[list[str]]) -> str:
    cells = "".join(f"<th><button>{html.escape(name)}</button></th>" for name in head)
    rows = "\n".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return (
        '<div class="wide"><table class="sortable">'
        f"<thead><tr>{cells}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _importance(plan: Plan, found: Outcome) -> str | None:
    if plan.space is None:
        shares = plots.main_effects(found)
        label = "variance of the results that the key explains alone"
        how = "Epsilon squared, over the finished trials; what keys do together is in "
        how += "none of the bars."
    else:
        try:
            shares = importances(found.results, plan.space, found.maximise)
        except PlmjaxError as error:
            return f"<p>Not drawn: {html.escape(error.message)}</p>"
        label = "share of what makes trials good"
        how = "PED-ANOVA by Optuna, over the finished trials; they sum to 100%."
    if not shares:
        return None
    few = " Few trials: a lead, not a result." if len(found.finished) < 20 else ""
    return f"<p>{how}{few}</p>\n{plots.bars(shares, label)}"


def _failures(found: Outcome) -> str:
    return "\n".join(map(_failure, (r for r in found.results if r.state == "failed")))


def _failure(r: Result) -> str:
    how = "" if r.code is None else how_ended(r.code)
    lines = html.escape("\n".join(r.log))
    told = html.escape(f"Trial {r.trial.number} ({describe(r.trial.values)}): {how}")
    return f"<p>{told}</p><pre>{lines}</pre>"


_STYLE = """
:root { color-scheme: light dark; --line: #8886; --good: #e8710a; }
body { background: Canvas; color: CanvasText; font: 16px/1.5 system-ui, sans-serif;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
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
