"""Results of an experiment as tables: on the screen, as CSV and as JSON."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plmjax.files import write_csv, write_json

Cell = tuple[Any, str]  # what a column is sorted by, and its text


def cell(value: Any, form: str | Callable[[Any], str] = "") -> Cell:
    """Returns a cell of a table; that of None is empty."""
    if value is None:
        return None, ""
    return value, format(value, form) if isinstance(form, str) else form(value)


def write_results(
    root: Path,
    content: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] = (),
) -> list[Path]:
    """Writes results.json and results.csv, each atomically; returns their paths.

    `columns` of the rows are written; if none are given, all that a row has. NaN and
    infinities become null in JSON.
    """
    names = columns or list(dict.fromkeys(name for row in rows for name in row))
    cells = ([row.get(name) for name in names] for row in rows)
    write_json(root / "results.json", content)
    write_csv(root / "results.csv", [names, *cells])
    return [root / "results.json", root / "results.csv"]
