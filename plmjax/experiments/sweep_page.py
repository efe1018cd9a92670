"""Report of a sweep on one page, report.html."""

import html
import os
from pathlib import Path

from plmjax import PlmjaxError
from plmjax.console import duration
from plmjax.experiments import sweep_plots as plots
from plmjax.experiments.local import how_ended
from plmjax.experiments.search import importances
from plmjax.experiments.sweep_plan import Plan, as_text, describe, short_names
from plmjax.experiments.sweep_results import Outcome, settings, value_of
from plmjax.experiments.trials import Result
from plmjax.report import page, scores

# Number of figures of scores.json that the table shows beside the objective.
_FIGURES = 4


def write(root: Path, name: str, plan: Plan, found: Outcome) -> Path:
    """Writes report.html atomically and returns its path."""
    sections = [
        _headline(found),
        page.section("Means over seeds", _settings(found)),
        page.section("Trials", _trials(root, found)),
        page.section("History", plots.history(found)),
        page.section("Learning curves", plots.curves(found)),
        page.section(f"{found.objective.capitalize()} by key", plots.by_key(found)),
        page.section("Parallel coordinates", plots.parallel(found)),
        page.section("Importance", _importance(plan, found)),
        page.section("Failures", _failures(found)),
    ]
    return page.write(root / "report.html", f"Sweep {name}", sections)


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
    return page.table(head, lines)


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
    return page.table([*head, *(name.replace("_", " ") for name in figures)], lines)


def _cell(value, text: str | None = None) -> str:
    """Returns a table cell that sorts by `value` and shows `text`."""
    shown = as_text(value) if text is None else text
    if value is None and text is None:
        shown = ""
    return page.cell(value, shown)


def _figure(name: str, value: float | None) -> str:
    return _cell(value, "" if value is None else scores.as_text(name, value))


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
