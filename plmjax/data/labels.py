"""Converts a record to texts and a label, with one function per kind of task."""

import math
import re
from collections.abc import Mapping
from typing import Any

from plmjax.data.records import bad_data, text_of
from plmjax.data.tasks import TaskConfig

Values = Mapping[str, Any]
NO_PLACE = -1  # the start of an answer that is not in the context at answer_start
_FRACTION = re.compile(r"[+-]?[0-9]*\.[0-9]+(e[+-]?[0-9]+)?", re.IGNORECASE)


def column_names(names: str, field: str) -> list[str]:
    """The columns of a field: label, choices and entities may have several."""
    several = field in ("label", "choices", "entities") and "," in names
    return [name.strip() for name in names.split(",")] if several else [names]


# --- texts: (texts, unit), where examples of one unit stay together in every split


def _one_or_two(values: Values, where: str, config: TaskConfig):
    names = [config.columns.text, config.columns.pair]
    texts = tuple(text_of(values[n], where, n) for n in names if n is not None)
    if not any(text.strip() for text in texts):
        raise bad_data(where, "the text is empty.", "Mend or remove the record.")
    unit = "\0".join(texts)  # without markers: all relations of a text are one unit
    if config.columns.entities is not None:
        texts = (_marked(texts[0], values, where, config), *texts[1:])
    return texts, unit


def _marked(text: str, values: Values, where: str, config: TaskConfig) -> str:
    """Returns the text with a marker before and after each of its two entities."""
    assert config.columns.entities is not None
    names = column_names(config.columns.entities, "entities")
    places = [_place(values[name], where, name) for name in names]
    cuts = []
    for start, end, mark in zip(places[::2], places[1::2], config.markers, strict=True):
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            what = (
                f"an entity is at {start} to {end} of a text of {len(text)} characters."
            )
            raise bad_data(where, what, "Mend the places, or task.columns.entities.")
        # At one position, ends come before starts, and inner entities end first.
        cuts += [(start, 1, -end, mark), (end, 0, -start, mark)]
    parts, last = [], 0
    for at, *_, mark in sorted(cuts):
        parts += [text[last:at], mark]
        last = at
    return " ".join(part.strip() for part in [*parts, text[last:]] if part.strip())


def _place(value: Any, where: str, column: str) -> int:
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
        return int(value)
    except (TypeError, ValueError):
        what = f"the column {column!r} is {value!r}, not a place in the text."
        raise bad_data(where, what, "Count characters from 0.") from None


def _words(values: Values, where: str, config: TaskConfig):
    name = config.column("tokens")
    words = _list(values[name], where, name)
    if not words:
        raise bad_data(where, "there are no tokens.", "Remove the record.")
    return tuple(text_of(word, where, name) for word in words), "\0".join(words)


def _question(values: Values, where: str, config: TaskConfig):
    names = (config.columns.question, config.columns.context)
    question, context = (text_of(values[name], where, name) for name in names)
    if not context.strip():
        raise bad_data(where, "the context is empty.", "Remove the record.")
    return (question, context), context  # a context stays on one side of a split


def _choices(values: Values, where: str, config: TaskConfig):
    names = column_names(config.columns.choices, "choices")
    if len(names) > 1:
        found = [text_of(values[name], where, name) for name in names]
    else:
        found = [
            text_of(v, where, names[0])
            for v in _list(values[names[0]], where, names[0])
        ]
    if len(found) < 2:
        raise bad_data(where, f"{len(found)} choices; there must be two.", "Mend it.")
    text = text_of(values[config.columns.text], where, config.columns.text)
    if config.columns.pair is not None:
        stem = text_of(values[config.columns.pair], where, config.columns.pair)
        found = [f"{stem} {choice}" for choice in found]
    return (text, *found), text


def _belonging(values: Values, where: str, config: TaskConfig):
    """A text, its pair, and optionally a negative; none may be empty."""
    names = [config.columns.text, config.column("pair"), config.columns.negative]
    names = [name for name in names if name is not None]
    texts = tuple(text_of(values[name], where, name) for name in names)
    for name, text in zip(names, texts, strict=True):
        if not text.strip():
            what = f"the column {name!r} is empty."
            raise bad_data(where, what, "Mend or remove the record.")
    return texts, texts[0]  # all pairs of a text stay on one side of a split


def _list(value: Any, where: str, column: str) -> list:
    if not isinstance(value, list):
        kind = type(value).__name__
        raise bad_data(
            where, f"the column {column!r} is a {kind}, not a list.", "Give a list."
        )
    return value


FIELDS = {
    "classes": _one_or_two,
    "multilabel": _one_or_two,
    "regression": _one_or_two,
    "tags": _words,
    "answers": _question,
    "choices": _choices,
    "embeddings": _belonging,
}


# --- labels


def _name(value: Any, where: str, config: TaskConfig) -> str:
    """A class as text; a whole number is a class, a number with a fraction is not."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "" if value is None else str(value).strip()
    if not text:
        raise bad_data(where, "there is no label.", "Label or remove the record.")
    named = config.labels is not None and text in map(str, config.labels)
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


def _class(values: Values, where: str, config: TaskConfig) -> str:
    return _name(values[config.columns.label], where, config)


def _set(values: Values, where: str, config: TaskConfig) -> tuple[str, ...]:
    """Names in the order of the record, each once; an empty set is valid."""
    columns = column_names(config.columns.label, "label")
    if len(columns) > 1:
        marked = [_mark(values[name], where, name) for name in columns]
        return tuple(name for name, one in zip(columns, marked, strict=True) if one)
    value = values[columns[0]]
    if isinstance(value, str):
        value = [part for part in value.split(config.label_separator) if part.strip()]
    found = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(_name(name, where, config) for name in found))


def _mark(value: Any, where: str, column: str) -> bool:
    text = str(value).strip().lower()
    if text not in ("0", "1", "false", "true"):
        raise bad_data(
            where,
            f"the column {column!r} is {value!r}; a label of its own column is 0 or 1.",
            "Mend the record.",
        )
    return text in ("1", "true")


def _number(values: Values, where: str, config: TaskConfig) -> float:
    value = values[config.columns.label]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise bad_data(
            where,
            f"the label {value!r} is no finite number, which regression needs.",
            "Mend the record; names of classes are task.kind=classes.",
        )
    return number


def _tags(values: Values, where: str, config: TaskConfig) -> tuple[str, ...]:
    name = config.column("tags")
    tags = _list(values[name], where, name)
    words = len(values[config.column("tokens")])
    if len(tags) != words:
        raise bad_data(
            where, f"{words} tokens and {len(tags)} tags.", "Give each token one tag."
        )
    return tuple(_name(tag, where, config) for tag in tags)


def _answers(values: Values, where: str, config: TaskConfig):
    """(text, start) of each answer; a kept answer with a wrong start gets -1."""
    found = _pairs(values[config.columns.answers], where)
    context = values[config.columns.context]
    for place, (text, start) in enumerate(found):
        if context[start : start + len(text)] == text and start >= 0:
            continue
        if config.misplaced_answers == "keep":
            found[place] = (text, NO_PLACE)
            continue
        places = [m.start() for m in re.finditer(re.escape(text), context)]
        there = context[max(start, 0) : max(start, 0) + len(text)]
        if places:
            closest = min(places, key=lambda place: abs(place - start))
            hint = f"It stands at character {closest}."
            if len(context[:closest].encode()) == start:
                hint = f"{hint} answer_start counts bytes; it must count characters."
        else:
            hint = "It is nowhere in the context: is one of them normalised?"
        raise bad_data(
            where,
            f"the answer {text[:60]!r} is not in the context at answer_start={start}, "
            f"where {there[:60]!r} stands.",
            f"{hint} Mend it, or set task.misplaced_answers=keep.",
        )
    return tuple(found)


def _pairs(value: Any, where: str) -> list[tuple[str, int]]:
    """(text, start) from SQuAD's list of objects, or from datasets' dict of lists."""
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list):
            texts, starts = [None], [None]
    else:
        answers = [] if value is None else _list(value, where, "answers")
        objects = [a if isinstance(a, dict) else {} for a in answers]
        texts = [answer.get("text") for answer in objects]
        starts = [answer.get("answer_start") for answer in objects]
    good = len(texts) == len(starts)
    good = good and all(isinstance(text, str) and text for text in texts)
    if not good or any(type(start) is not int for start in starts):
        raise bad_data(
            where,
            "the answers are not of SQuAD's form.",
            'Write [{"text": ..., "answer_start": ...}], or [] where there is none.',
        )
    return list(zip(texts, starts, strict=True))  # pyright: ignore


def _choice(values: Values, where: str, config: TaskConfig) -> int:
    """A number from 0, a letter from A, or the name of the right choice's column."""
    columns = column_names(config.columns.choices, "choices")
    count = len(columns) if len(columns) > 1 else len(values[columns[0]])
    text = str(values[config.columns.label]).strip()
    letters = [chr(ord("A") + n) for n in range(min(count, 26))]
    named = columns if len(columns) > 1 else []
    for names in ([str(n) for n in range(count)], letters, named):
        if text in names:
            return names.index(text)
    raise bad_data(
        where,
        f"the label {text!r} names none of {count} choices.",
        f"Write 0 to {count - 1}, a letter from A, or the column's name.",
    )


LABELS = {
    "classes": _class,
    "multilabel": _set,
    "regression": _number,
    "tags": _tags,
    "answers": _answers,
    "choices": _choice,
    # The rank that a text's pair should have among the pairs of all texts.
    "embeddings": lambda values, where, config: 1,
}
