"""The page of `plmjax report`, and its twin in Markdown: runs beside each other."""

import datetime
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plmjax import counted
from plmjax.console import duration
from plmjax.files import write_file
from plmjax.report import figures, page, runs
from plmjax.report.figures import COLOURS, Figure, axis_title
from plmjax.report.runs import Run

PAGE, MARKDOWN = "runs.html", "runs.md"
_SCRIPT = Path(__file__).with_suffix(".js")
_POINTS = 12_000  # of all curves of a metric; longer curves are thinned
_FIRST = ("loss", "accuracy", "bits_per_byte", "learning_rate", "tokens_per_second")
_HIDDEN = {"kind", "step", "tokens", "seconds", "nats_per_byte", "skipped"}
_WITH_GUESSES = 3  # runs
_CUT = 60  # characters of a value
_SEEDS = (
    "A dot is a finished run; the runs of a box differ in their seed alone. Runs that "
    "were stopped or killed, failed, or go on do not count."
)


class Part(NamedTuple):
    """A section of the report: a table, figures, and more (`html`; `text` in Markdown).

    A cell is a text, or (value to sort by, text).
    """

    title: str
    note: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    figures: Mapping[str, Figure] = {}
    html: str = ""
    text: str = ""


def write(folder: Path, some: list[Run], extra: Iterable[Part], live: bool) -> Path:
    """Writes the page and its Markdown twin atomically; returns the page's path.

    `extra` parts come after the differences. A `live` page reloads itself.
    """
    facts, axes = [runs.facts(run) for run in some], {}
    parts = [
        _listed("Runs", "", facts, _RUNS),
        _curves(some, axes),
        *_seeds(some),
        _differences(some),
        *extra,
        *_examples(some),
        _listed("Data", "", (f for r in some for f in runs.data_facts(r)), _DATA),
        _listed("Time", _LOST, (f for f in facts if "starts" in f), _TIME),
    ]
    kept = [part for part in parts if part.rows or part.figures or part.html]
    title = some[0].name if len(some) == 1 else counted(len(some), "run")
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    lines = [f"Written by plmjax report at {now}.", *_remarks(some)]
    markdown = [_plain(f"# {title}"), *map(_plain, lines), *map(_as_markdown, kept)]
    write_file(folder / MARKDOWN, ("\n\n".join(markdown) + "\n").encode())
    script = (
        f"const axes = {json.dumps(axes)}, live = {int(live)};\n{_SCRIPT.read_text()}"
    )
    shown = [*(f"<p>{html.escape(line)}</p>" for line in lines), *map(_as_html, kept)]
    return page.write(folder / PAGE, title, shown, script)


def _remarks(some: Sequence[Run]) -> Iterator[str]:
    yield from dict.fromkeys(remark for run in some for remark in run.remarks)
    if len({run.kind for run in some}) > 1:
        yield "Pretraining and fine-tuning: only figures that both have are drawn."
    if any(key.startswith("tokenizer.") for key in runs.differences(some)):
        yield "The vocabularies differ: compare bits per byte, not losses per token."


def _as_html(part: Part) -> str | None:
    body = ""
    if part.rows:
        long = any(len(str(c)) > _CUT for r in part.rows for c in r if type(c) is str)
        body = page.table(part.head, part.rows, "prose" * long)
    body += part.html
    if part.figures:
        first, *others = part.figures.items()
        body += page.plots(dict([first])) + (page.grid(dict(others)) or "")
    return page.section(part.title, body, part.note)


def _as_markdown(part: Part) -> str:
    rows = [[c[1] if isinstance(c, tuple) else c for c in row] for row in part.rows]
    table = [part.head, ["---"] * len(part.head), *rows] if rows else []
    lines = "\n".join(f"| {' | '.join(map(_plain, row))} |" for row in table)
    drawn = f"Drawn in {PAGE}: {', '.join(part.figures)}." if part.figures else ""
    texts = map(_plain, (f"## {part.title}", part.note, part.text, drawn))
    title, note, text, drawn = texts
    return "\n\n".join(filter(None, [title, note, lines, text, drawn]))


def _plain(text: str) -> str:
    """Returns a text in Markdown that shows as it is: no HTML, table cell or link."""
    marks = r"[\\|<*`]|(?<!\w)_|_(?!\w)|(?<=\])\(|&(?=#?\w+;)"
    return re.sub(marks, r"\\\g<0>", " ".join(str(text).split()))


_RUNS = """run kind state step tokens training score last best tokens_per_second mfu
goodput devices commit"""
_DATA = "run source part documents tokens unknown_tokens digest"
_TIME = "run starts processes training lost goodput between_starts steps_done_again"
_CLOCKS = {"training", "processes", "lost", "between_starts"}
_SHARES = {"mfu", "goodput", "unknown_tokens"}
_LOST = (
    "Lost is what no step that counts has used: reading text, compiling, evaluating, "
    "saving, and steps that were done again after a kill. Goodput is the rest."
)


def _listed(title: str, note: str, records: Iterable[dict], keys: str) -> Part:
    records = list(records)
    names = [n for n in keys.split() if any(r.get(n) is not None for r in records)]
    rows = [[_cell(name, record.get(name)) for name in names] for record in records]
    return Part(title, note, [name.replace("_", " ") for name in names], rows)


def _cell(name: str, value: Any) -> tuple[Any, str]:
    if value is None or isinstance(value, str):
        value = value or ""
        return value, value[:10] + value[40:] if name == "commit" else _cut(value)
    if name in _CLOCKS:
        return value, duration(value)
    large = isinstance(value, int) or value >= 100
    form = ".1%" if name in _SHARES else ",.0f" if large else ".4f"
    return value, format(value, form)


def _cut(text: str) -> str:
    return text if len(text) <= _CUT else f"{text[: _CUT - 1]}…"


def _curves(some: Sequence[Run], axes: dict[str, dict[str, list]]) -> Part:
    """Draws the metrics; fills {curve: {step, tokens, seconds: values}} of them all."""
    known = [{n for r in run.records for n in r} for run in some if run.records]
    alike = len({run.kind for run in some}) == 1
    metrics = (set.union if alike else set.intersection)(*known) - _HIDDEN
    order = [*dict.fromkeys([*(run.metric for run in some), *_FIRST, *sorted(metrics)])]
    drawn = {}
    for metric in (name for name in order if name in metrics):
        figure = figures.new("", axis_title(metric), 260 if drawn else 440)
        figure.update_layout(showlegend=not drawn)
        for number, run in enumerate(some):
            for kind in ("train", "evaluation"):
                records = [r for r in run.records if r["kind"] == kind]
                every = len(records) * len(some) // _POINTS + 1
                records = records[::-every][::-1]
                values = [_short(record.get(metric)) for record in records]
                if any(value is not None for value in values):
                    _add_curve(figure, number, run.name, kind, values)
                    axes[f"{number}.{kind}"] = {
                        axis: [_short(r.get(axis)) for r in records]
                        for axis in ("step", "tokens", "seconds")
                    }
        if figure.data:
            drawn[metric.replace("_", " ")] = figure
    note = "Lines are training, lines with dots are held-out figures."
    return Part("Curves", note, figures=drawn, html=_CONTROLS * bool(drawn))


def _short(value: Any) -> float | None:
    return float(f"{value:.6g}") if isinstance(value, int | float) else None


def _add_curve(figure: Figure, number: int, name: str, kind: str, y: list) -> None:
    colour = COLOURS[number % len(COLOURS)]
    dash = ("solid", "dash", "dot")[number // len(COLOURS) % 3]
    held_out = kind == "evaluation"
    figure.add_scatter(
        y=y,
        name=name,
        legendgroup=name,
        showlegend=all(other.name != name for other in figure.data),
        mode="lines+markers" if held_out or len(y) == 1 else "lines",
        line={"color": colour, "dash": dash, "width": 2 if held_out else 1.4},
        opacity=1 if held_out else 0.75,
        meta={"axes": f"{number}.{kind}", "smooth": not held_out},
        hovertemplate=f"%{{fullData.name}}, {kind}: %{{y}}<extra></extra>",
    )


def _seeds(some: Sequence[Run]) -> Iterator[Part]:
    """Draws the scores of finished runs that differ in their seed alone as boxes."""
    scored = [(run, run.best()) for run in some if run.state == "finished"]
    best = {run.name: value for run, value in scored if value is not None}
    for kind, metric in dict.fromkeys((run.kind, run.metric) for run in some):
        figure, rows = figures.new("", axis_title(metric), 380), []
        alike = [run for run in some if (run.kind, run.metric) == (kind, metric)]
        alike = [run for run in alike if run.name in best]
        for name, group in runs.groups(alike).items():
            y, number = [best[run.name] for run in group], str(len(rows) + 1)
            points = {"boxpoints": "all", "jitter": 0.4, "pointpos": 0}
            points["text"] = [run.name for run in group]
            colour = COLOURS[len(rows) % len(COLOURS)]
            # Its number: the values of several keys would not fit below a box.
            figure.add_box(y=y, name=number, marker_color=colour, **points)
            figured = sum(y) / len(y), min(y), max(y)
            figured = (_cell("mean", value) for value in figured)
            rows.append([number, name, str(len(y)), *figured])
        if all(row[2] == "1" for row in rows):
            continue
        figure.update_layout(showlegend=False)
        head = ["box", "runs", "seeds", "mean", "least", "most"]
        title = f"best held-out {metric.replace('_', ' ')}"
        yield Part(f"Seeds: {kind}", _SEEDS, head, rows, {title: figure})


def _differences(some: Sequence[Run]) -> Part:
    rows = [
        [key, *("" if value is None else _cut(str(value)) for value in row)]
        for key, row in runs.differences(some).items()
    ]
    return Part("What differs", "", ["key", *(run.name for run in some)], rows)


def _examples(some: Sequence[Run]) -> Iterator[Part]:
    """Yields what runs guessed for the same hidden words over time, and masked rows."""
    kept = [(run.name, run.read("examples.json")) for run in some]
    kept = [(n, r) for n, r in kept if {"guesses", "texts", "seen"} <= r.keys()]
    for name, record in kept[:_WITH_GUESSES]:
        steps = record["guesses"]
        steps = [
            steps[n] for n in sorted({k * (len(steps) - 1) // 4 for k in range(5)})
        ]
        rows = [
            [*text, *(one["lines"][n] for one in steps)]
            for n, text in enumerate(record["texts"])
        ]
        right = ", ".join(f"{one['right']} at step {one['step']:,}" for one in steps)
        note = f"Held-out text, {counted(len(rows), 'word')}; guessed right: {right}."
        head = ["text", "was", *(f"step {one['step']:,}" for one in steps)]
        yield Part(f"Guesses over time: {name}", note, head, rows)
    for name, record in kept[:1]:
        seen, _, legend = record["seen"].strip().partition(" \n")
        note = f"A held-out row of {name}. {legend}".strip()
        # With what was there: [MASK=word], [other=word], [=word].
        body = re.sub(
            r"\[[^\s\]]*=[^\s\]]+\]", r"<mark>\g<0></mark>", html.escape(seen)
        )
        body = f"<p>{body}</p>"
        yield Part("Masks as the model sees them", note, html=body, text=seen)


_CONTROLS = """<form class="controls" id="controls">
<label><input type="radio" name="axis" value="step" checked> training step</label>
<label><input type="radio" name="axis" value="tokens"> tokens</label>
<label><input type="radio" name="axis" value="seconds"> seconds of training</label>
<label>smoothing <input type="range" name="smooth" min="0" max="0.98" step="0.02"
 value="0"></label></form>"""
