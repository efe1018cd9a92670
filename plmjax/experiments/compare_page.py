"""report.html and the plots of a study."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

from plmjax import config as config_lib
from plmjax import counted
from plmjax.console import duration
from plmjax.experiments import budget
from plmjax.experiments import compare_plots as plots
from plmjax.experiments import compare_tables as tables
from plmjax.experiments.cells import Cell
from plmjax.experiments.compare_plan import Plan
from plmjax.experiments.outcomes import Outcome
from plmjax.experiments.tables import cell
from plmjax.report import figures, page

_BOXES = (
    "A dot is a run; a cross is one that did not learn, a diamond the ensemble. The "
    "box holds the middle half, its line is the median."
)


def write(root: Path, plan: Plan, cells: Sequence[Cell]) -> list[Path]:
    """Writes plots/ and report.html; returns their paths, the page last."""
    drawn = {"boxes": plots.boxes(cells), "curves": plots.curves(cells)}
    (root / "plots").mkdir(exist_ok=True)
    written = []
    for name, panels in drawn.items():
        if panels:
            written.append(root / "plots" / f"{name}.png")
            figures.write_png(written[-1], panels)
    boxes, curves = map(page.plots, drawn.values())
    sections = [
        f"<p>{html.escape(headline(plan, cells))}</p>",
        page.section("Pretraining, each seed", _budgets(plan)),
        *(_task(compared) for compared in tables.by_task(cells).values()),
        page.section("Every run", boxes, _BOXES),
        page.section("By step", curves),
        page.section("Settings and models", _settings(plan)),
        page.section("Runs", _runs(root, cells)),
        page.section("Failures", _failures(cells)),
    ]
    title = f"Study {root.resolve().name}"
    return [*written, page.write(root / "report.html", title, sections)]


def headline(plan: Plan, cells: Sequence[Cell]) -> str:
    """Returns one or two sentences about the runs of a study."""
    outcomes = [outcome for cell in cells for outcome in cell.outcomes]
    counts = {
        state: sum(o.state == state for o in outcomes)
        for state in ("finished", "failed", "waiting")
    }
    summary = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    repeats = plan.repeats
    each = counted(repeats.seeds, "seed")
    if repeats.folds is not None:
        each += f" x {counted(repeats.folds, 'fold')}"
    text = f"{counted(len(outcomes), 'run')} ({summary}): {len(cells)} x {each}."
    if repeats.seeds > 1 and len(repeats.vary) < 3:
        text += f" What differs between seeds is {' and '.join(repeats.vary)} alone."
    return text


def _budgets(plan: Plan) -> str | None:
    if not plan.budgets:
        return None
    rows = ([one.name, *budget.row(one, plan.budgets[0])] for one in plan.budgets)
    return page.table(["", *budget.HEAD], rows)


def _task(cells: Sequence[Cell]) -> str | None:
    head = ["", *tables.HEAD, "against the first"]
    named = zip(tables.names_of(cells), cells, strict=True)
    rows = ([name, *tables.row(cell), cell.verdict] for name, cell in named)
    items = "".join(f"<li>{html.escape(text)}\n" for text in tables.sentences(cells))
    title = f"{cells[0].task}: {tables.what(cells[0])}"
    return page.section(title, f"{page.table(head, rows)}\n<ul>{items}</ul>")


def _settings(plan: Plan) -> str:
    """Returns the changes of each setting, for the first model and task that has it."""

    def is_integer(value) -> bool:  # 3 given for a key with float values becomes 3.0
        return isinstance(value, float) and value.is_integer()

    texts = {}
    for run in plan.runs:
        first = next(one for one in plan.runs if one.cell[:2] == run.cell[:2])
        changed = config_lib.changes(first.config, run.config).items()
        values = [
            f"{key}={int(new) if is_integer(new) else new}"
            for key, (_, new) in changed
            if key != "baselines"
        ]
        texts.setdefault(run.setting, ", ".join(values) or "the config as it is")
    texts |= plan.stands_on["models"]
    return "\n".join(
        f"<p><b>{html.escape(name)}</b>: {html.escape(text)}</p>"
        for name, text in texts.items()
    )


def _runs(root: Path, cells: Sequence[Cell]) -> str:
    head = "task model setting seed fold score state step time".split()
    runs = [_run(root, outcome) for cell in cells for outcome in cell.outcomes]
    return page.table(head, runs)


def _run(root: Path, o: Outcome) -> list:
    state = "did not learn" if o.learned is False else o.state
    kind = "failed" if o.learned is False else o.state
    return [
        *o.run.cell,
        page.link(o.run.seed, os.path.relpath(o.run.directory, root)),
        cell(o.run.fold),
        cell(o.score, ".4f"),
        page.marked(state, kind),
        cell(o.step, ","),
        cell(o.seconds, duration),
    ]


def _failures(cells: Sequence[Cell]) -> str:
    failed = [o for cell in cells for o in cell.outcomes if o.state == "failed"]
    return "\n".join(
        f"<p>{html.escape(o.run.label)}</p><pre>{html.escape(o.message)}</pre>"
        for o in failed
    )
