"""Report of a sweep on one page, report.html."""

import functools
import html
import os
from pathlib import Path
from typing import TYPE_CHECKING

from plmjax import PlmjaxError, counted
from plmjax.experiments import sweep_plots as plots
from plmjax.experiments import sweep_results, trials
from plmjax.experiments.local import how_ended
from plmjax.experiments.search import study_of
from plmjax.experiments.space import Choices, Numbers
from plmjax.experiments.sweep_plan import Plan, describe
from plmjax.experiments.sweep_results import Outcome
from plmjax.experiments.tables import cell
from plmjax.experiments.trials import Result
from plmjax.report import page, scores
from plmjax.report.run_page import Part
from plmjax.workdir import Workdir

if TYPE_CHECKING:
    from optuna import Study

# Number of figures of scores.json that the table shows beside the objective.
_FIGURES = 4
_CURVES = "The best trial is thick, pruned ones are dashed; one evaluation is a dot."
_BY_KEY = (
    "Dots are finished trials, crosses pruned ones at their last evaluation; the large "
    "dot is the best. Later trials are darker."
)


def write(root: Path, name: str, plan: Plan, outcome: Outcome) -> Path:
    """Writes report.html atomically and returns its path."""
    study, missing = None, ""
    if plan.space is not None:
        try:
            study = study_of(outcome.results, plan.space, outcome.maximise)
        except PlmjaxError as error:
            missing = f"<p>Not drawn: {html.escape(error.message)}</p>"
    score = f"Held-out {outcome.objective.replace('_', ' ')}"
    names = plots.varying(outcome, outcome.results).values()
    history = f"{score} of each trial, and the best so far"
    curves = f"{score} by training step, a curve a trial"
    curves += f"; they differ in {', '.join(names)}" if names else ""
    parallel = f"{score} and values of each finished trial: the better, the more orange"
    by_key = plots.by_key(outcome).items()
    width = 120 * (len(names) + 1)
    sections = [
        _headline(outcome),
        page.section("Means over seeds", _settings(outcome)),
        page.section("Trials", _trials(root, outcome)),
        page.section("History", page.plot(history, plots.history(outcome))),
        page.section(
            "Learning curves", page.plot(curves, plots.curves(outcome)), _CURVES
        ),
        page.section(
            f"{outcome.objective.capitalize()} by key",
            page.grid({f"{score} by {name}": figure for name, figure in by_key}),
            _BY_KEY,
        ),
        page.section(
            "Parallel coordinates", page.plot(parallel, plots.parallel(outcome), width)
        ),
        _importance(outcome, study, missing),
        page.section("Failures", _failures(outcome)),
    ]
    return page.write(root / "report.html", f"Sweep {name}", sections)


def _headline(outcome: Outcome) -> str:
    goal = "highest" if outcome.maximise else "lowest"
    text = f"{counted(len(outcome.results), 'trial')}: {outcome.summary()}. "
    text += f"The {goal} {outcome.objective} is the best."
    lines = [f"<p>{html.escape(text)}</p>"]
    if (best := outcome.best) is not None:
        what = f"{outcome.objective} {best.value:.4f}: {describe(best.trial.values)}"
        lines.append(
            f'<p class="best">Best: trial {best.trial.number}, {html.escape(what)}'
            f"<br><code>plmjax evaluate --workdir="
            f"{html.escape(str(best.trial.directory))}</code></p>"
        )
    return "\n".join(lines)


def _settings(outcome: Outcome) -> str | None:
    columns, rows = sweep_results.setting_rows(outcome)
    return page.table(columns, rows) if rows else None


def _trials(root: Path, outcome: Outcome) -> str:
    figures = list(dict.fromkeys(n for r in outcome.finished for n in r.figures))
    figures = [n for n in figures if n not in (outcome.objective, "unigram_loss")]
    figures = figures[:_FIGURES]
    columns, rows = sweep_results.trial_rows(outcome)
    for r, row in zip(outcome.results, rows, strict=True):
        where = os.path.relpath(r.trial.directory, root)
        row[0] = page.link(r.trial.number, where)
        row[-3] = page.marked(r.state, r.state)
        row += [
            cell(r.figures.get(name), functools.partial(scores.as_text, name))
            for name in figures
        ]
    return page.table([*columns, *(name.replace("_", " ") for name in figures)], rows)


def _importance(outcome: Outcome, study: "Study | None", missing: str) -> str | None:
    if missing:
        return page.section("Importance", missing)
    title, shares, note = importance(outcome, study)
    return page.section("Importance", page.plot(title, plots.bars(shares)), note)


def importance(
    outcome: Outcome, study: "Study | None"
) -> tuple[str, dict[str, float], str]:
    """Returns a title, the share of each key in the results, and how it is computed."""
    if study is not None:
        shares = plots.importance(study, outcome)
        title = "What makes trials good: the share of each key"
        how = "PED-ANOVA by Optuna, over the finished trials; they sum to 100%."
    else:
        shares = plots.main_effects(outcome)
        title = "Variance of the results that each key explains alone"
        how = "Epsilon squared, over the finished trials; what keys do together is in "
        how += "none of the bars."
    few = " Few trials: a lead, not a result." if len(outcome.finished) < 20 else ""
    return title, shares, how + few


def saved_importance(root: Path) -> Part | None:
    """Returns the importance of a sweep's keys for the page of `plmjax report`.

    None: the folder is no sweep, or has no results yet.

    Raises:
      PlmjaxError: a file is damaged, or Optuna is missing for a search.
    """
    definition, ended = (Workdir(root).read(f"{n}.json") for n in ("sweep", "results"))
    if definition is None or ended is None:
        return None
    objective, maximise = ended["objective"], ended["maximise"]
    read = [trials.read_result(trial, objective) for trial in trials.saved_trials(root)]
    drawn, study = definition.get("space"), None
    if drawn is not None:
        ranges = {
            key: Choices(tuple(r["values"])) if "values" in r else Numbers(**r)
            for key, r in drawn.items()
        }
        study = study_of(read, ranges, maximise)
    title, shares, note = importance(
        sweep_results.outcome(read, objective, maximise), study
    )
    rows = [[key, (share, f"{share:.1%}")] for key, share in shares.items()]
    figure = {title: plots.bars(shares)} if shares else {}
    heading = f"Which parameter mattered: {root.name}"
    return Part(heading, note, ["key", "share"], rows, figure)


def _failures(outcome: Outcome) -> str:
    return "\n".join(map(_failure, (r for r in outcome.results if r.state == "failed")))


def _failure(r: Result) -> str:
    how = "" if r.code is None else how_ended(r.code)
    lines = html.escape("\n".join(r.log))
    text = html.escape(f"Trial {r.trial.number} ({describe(r.trial.values)}): {how}")
    return f"<p>{text}</p><pre>{lines}</pre>"
