"""report.html and the plots of a study."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

from plmjax import config as config_lib
from plmjax.console import duration
from plmjax.experiments import budget
from plmjax.experiments import compare_plots as plots
from plmjax.experiments import compare_tables as tables
from plmjax.experiments.cells import Cell
from plmjax.experiments.compare_plan import Plan
from plmjax.experiments.outcomes import Outcome
from plmjax.report import page


def write(root: Path, plan: Plan, cells: Sequence[Cell]) -> list[Path]:
    """Writes plots/ and report.html; returns their paths, the page last."""
    figures = {"boxes": plots.boxes(cells), "curves": plots.curves(cells)}
    (root / "plots").mkdir(exist_ok=True)
    written, drawn = [], {}
    for name, figure in figures.items():
        if figure is not None:
            path = root / "plots" / f"{name}.png"
            figure.savefig(path, dpi=150, facecolor="white")
            written.append(path)
            drawn[name] = page.as_svg(figure)
    sections = [
        f"<p>{html.escape(headline(plan, cells))}</p>",
        page.section("Pretraining, each seed", _budgets(plan)),
        *(_task(own) for own in tables.by_task(cells).values()),
        page.section("Every run", _boxes(drawn.get("boxes"))),
        page.section("By step", drawn.get("curves")),
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
    told = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    repeats = plan.repeats
    each = f"{repeats.seeds} seeds" if repeats.seeds > 1 else "1 seed"
    if repeats.folds is not None:
        each += f" x {repeats.folds} folds"
    text = f"{len(outcomes)} runs ({told}): {len(cells)} x {each}."
    if repeats.seeds > 1 and len(repeats.vary) < 3:
        text += f" What differs between seeds is {' and '.join(repeats.vary)} alone."
    return text


def _budgets(plan: Plan) -> str | None:
    if not plan.budgets:
        return None
    first = plan.budgets[0]
    lines = []
    for own in plan.budgets:
        cost = own.cost
        keys = [cost.steps, cost.tokens, cost.flops, cost.flops, own.parameters]
        figures = zip(keys, budget.row(own, first), strict=True)
        named = page.cell(own.name, own.name)
        lines.append([named, *(page.cell(key, text) for key, text in figures)])
    return page.table(["", *budget.HEAD], lines)


def _task(cells: Sequence[Cell]) -> str | None:
    head = ["", *tables.HEAD, "against the first"]
    lines = []
    for name, cell in zip(tables.names_of(cells), cells, strict=True):
        s = cell.summary
        keys = [len(cell.outcomes), *([None] * 6)]
        if s is not None:
            keys = [s.n, s.mean, s.low, s.deviation, s.least, s.most, cell.ensemble]
        figures = zip(keys, tables.row(cell), strict=True)
        first = page.cell(name, name)
        last = page.cell(cell.verdict, cell.verdict)
        lines.append([first, *(page.cell(key, text) for key, text in figures), last])
    said = "".join(f"<li>{html.escape(text)}\n" for text in tables.sentences(cells))
    title = f"{cells[0].task}: {tables.what(cells[0])}"
    return page.section(title, f"{page.table(head, lines)}\n<ul>{said}</ul>")


def _boxes(drawn: str | None) -> str | None:
    if drawn is None:
        return None
    return (
        "<p>A dot is a run; a cross is one that did not learn, a diamond the ensemble. "
        "The box holds the middle half, its line is the median.</p>\n" + drawn
    )


def _settings(plan: Plan) -> str:
    """Returns the changes of each setting, for the first model and task that has it."""

    def whole(value) -> bool:  # a 3 given for a key with float values is read as 3.0
        return isinstance(value, float) and value.is_integer()

    told = {}
    for run in plan.runs:
        first = next(one for one in plan.runs if one.cell[:2] == run.cell[:2])
        changed = config_lib.changes(first.values, run.values).items()
        texts = [
            f"{key}={int(new) if whole(new) else new}"
            for key, (_, new) in changed
            if key != "baselines"
        ]
        told.setdefault(run.setting, ", ".join(texts) or "the config as it is")
    told |= plan.stands_on["models"]
    return "\n".join(
        f"<p><b>{html.escape(name)}</b>: {html.escape(text)}</p>"
        for name, text in told.items()
    )


def _runs(root: Path, cells: Sequence[Cell]) -> str:
    head = [
        "task",
        "model",
        "setting",
        "seed",
        "fold",
        "score",
        "state",
        "step",
        "time",
    ]
    return page.table(
        head, [_run(root, outcome) for cell in cells for outcome in cell.outcomes]
    )


def _run(root: Path, o: Outcome) -> list[str]:
    where = html.escape(os.path.relpath(o.run.directory, root), quote=True)
    fold = "" if o.run.fold is None else str(o.run.fold)
    state = "did not learn" if o.learned is False else o.state
    kind = "failed" if o.learned is False else o.state
    return [
        *(page.cell(name, name) for name in o.run.cell),
        f'<td data-value="{o.run.seed}"><a href="{where}/">{o.run.seed}</a>',
        page.cell(fold, fold),
        page.cell(o.score, "" if o.score is None else f"{o.score:.4f}"),
        f'<td class="{kind}">{state}',
        page.cell(o.step, "" if o.step is None else f"{o.step:,}"),
        page.cell(o.seconds, "" if o.seconds is None else duration(o.seconds)),
    ]


def _failures(cells: Sequence[Cell]) -> str:
    failed = [o for cell in cells for o in cell.outcomes if o.state == "failed"]
    return "\n".join(
        f"<p>{html.escape(o.run.label)}</p><pre>{html.escape(o.message)}</pre>"
        for o in failed
    )
