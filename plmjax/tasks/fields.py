"""Parts of records that several kinds of task read: texts, entities, names."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plmjax.data.columns import ColumnsConfig
from plmjax.data.records import bad_data, text_of

# The config asks the kinds, which read fields.
if TYPE_CHECKING:
    from plmjax.tasks.config import TaskConfig
else:
    TaskConfig = Any

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


def index_of(text: str, offset: int, unit: str) -> int:
    """Returns the index of the character at an offset; -1 if none begins there.

    `unit` is what the offset counts: characters, utf16 (units of UTF-16) or bytes (of
    UTF-8). The end of the text has an index, too.
    """
    if unit != "characters" and offset >= 0:
        codec, size = ("utf-16-le", 2) if unit == "utf16" else ("utf-8", 1)
        raw = text.encode(codec)
        try:
            head = raw[: offset * size].decode(codec)
        except UnicodeDecodeError:
            return -1
        offset = len(head) if offset * size <= len(raw) else -1
    return offset if 0 <= offset <= len(text) else -1


def mark_entities(text: str, values: Values, where: str, config: TaskConfig) -> str:
    """Returns the text with a marker before and after each of its two entities.

    Raises:
      PlmjaxError: the positions of an entity are not in the text.
    """
    names, unit = config.columns.names("entities"), config.offsets
    positions = [_position(values[name], where, name) for name in names]
    cuts = []
    for first, last, mark in zip(
        positions[::2], positions[1::2], config.markers, strict=True
    ):
        start, end = index_of(text, first, unit), index_of(text, last, unit)
        if not 0 <= start < end or not text[start:end].strip():
            raise bad_data(
                where,
                f"an entity is at {first} to {last} of a text of {len(text)} "
                "characters.",
                "Correct the positions, task.columns.entities, or task.offsets, which "
                f"says that they count {unit}.",
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
