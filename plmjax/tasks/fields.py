"""Parts of records that several kinds of task read: texts, entities, names."""

import re
from collections.abc import Mapping
from typing import Any

from plmjax.data.columns import ColumnsConfig
from plmjax.data.records import bad_data, text_of

Values = Mapping[str, Any]  # of a record, by column
_FRACTION = re.compile(r"[+-]?[0-9]*\.[0-9]+(e[+-]?[0-9]+)?", re.IGNORECASE)


def list_of(value: Any, where: str, column: str) -> list:
    """Returns the value of a column, a list.

    Raises:
      PlmjaxError: it is something else.
    """
    if not isinstance(value, list):
        kind = type(value).__name__
        raise bad_data(
            where, f"the column {column!r} is a {kind}, not a list.", "Give a list."
        )
    return value


def name_of(value: Any, where: str, known: tuple | None) -> str:
    """Returns a class as text; `known` are the classes, if the config names them.

    A whole number is a class, a number with a fraction only if the config names it.

    Raises:
      PlmjaxError: no class, or several.
    """
    if isinstance(value, bool):
        return str(value).lower()
    text = "" if value is None else str(value).strip()
    if not text:
        raise bad_data(where, "there is no label.", "Label or remove the record.")
    named = known is not None and text in map(str, known)
    if not named and (isinstance(value, float) or _FRACTION.fullmatch(text)):
        raise bad_data(
            where,
            f"the label {text} is a number with a fraction where a class was expected.",
            "Name the classes or write whole numbers; for scores it is "
            "task.kind=regression.",
        )
    if not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise bad_data(
            where,
            f"the label is a {kind} where one class was expected.",
            "Several labels a text are task.kind=multilabel.",
        )
    return text


def texts_of(values: Values, where: str, columns: ColumnsConfig) -> tuple[str, ...]:
    """Returns the text, or the text and its pair.

    Raises:
      PlmjaxError: all are empty.
    """
    names = [columns.text, columns.pair]
    texts = tuple(text_of(values[n], where, n) for n in names if n is not None)
    if not any(text.strip() for text in texts):
        raise bad_data(where, "the text is empty.", "Correct or remove the record.")
    return texts


def mark_entities(
    text: str,
    values: Values,
    where: str,
    columns: ColumnsConfig,
    markers: tuple[str, ...],
) -> str:
    """Returns the text with a marker before and after each of its two entities.

    Raises:
      PlmjaxError: the positions of an entity are not in the text.
    """
    positions = [_position(values[n], where, n) for n in columns.names("entities")]
    cuts = []
    for start, end, mark in zip(positions[::2], positions[1::2], markers, strict=True):
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise bad_data(
                where,
                f"an entity is at {start} to {end} of a text of {len(text)} "
                "characters.",
                "Correct the positions, or task.columns.entities.",
            )
        # At one position, ends come before starts, and inner entities end first.
        cuts += [(start, 1, -end, mark), (end, 0, -start, mark)]
    pieces, last = [], 0
    for position, *_, mark in sorted(cuts):
        pieces += [text[last:position], mark]
        last = position
    return " ".join(piece.strip() for piece in [*pieces, text[last:]] if piece.strip())


def _position(value: Any, where: str, column: str) -> int:
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
        return int(value)
    except (TypeError, ValueError):
        what = f"the column {column!r} is {value!r}, not a position in the text."
        raise bad_data(where, what, "Count characters from 0.") from None
