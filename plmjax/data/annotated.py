"""Readers of annotated text: CoNLL, CoNLL-U and SQuAD."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plmjax.config import nearest
from plmjax.data.columns import ColumnsConfig
from plmjax.data.records import (
    Record,
    bad_data,
    no_column,
    parse_json,
    read_text,
)

CONLLU: tuple[str, ...] = (
    *("ID", "FORM", "LEMMA", "UPOS", "XPOS"),
    *("FEATS", "HEAD", "DEPREL", "DEPS", "MISC"),
)
_RANGE_OR_EMPTY = re.compile("[0-9]+[-.][0-9]+")
_ID = re.compile(r'"id"\s*:\s*("(?:[^"\\]|\\.)*"|[0-9]+)')


def _sentences(path: Path) -> Iterator[list[tuple[int, str]]]:
    """Yields (line, text) pairs by sentence; blank lines separate sentences."""
    lines = enumerate(read_text(path).split("\n"), 1)
    for blank, group in itertools.groupby(lines, lambda item: not item[1].strip()):
        if not blank:
            yield [(number, text.rstrip("\r")) for number, text in group]


def read_conll(path: Path, columns: ColumnsConfig) -> Iterator[Record]:
    """Reads CoNLL: a token and its tag a line, in columns separated by tabs or blanks.

    Raises:
      PlmjaxError: a line without a tag, or without a column that `columns` names.
    """
    for sentence in _sentences(path):
        tokens, tags = [], []
        for line, text in sentence:
            if text.startswith("-DOCSTART-"):
                continue
            fields = text.split("\t") if "\t" in text else text.split()
            where = f"{path}:{line}"
            if len(fields) < 2:
                raise bad_data(
                    where,
                    f"{text.strip()[:40]!r} has a token and no tag.",
                    "Write token, tab, tag; a blank line ends a sentence.",
                )
            tokens.append(_numbered(fields, columns.tokens, 1, "tokens", where))
            tags.append(_numbered(fields, columns.tags, len(fields), "tags", where))
        if tokens:
            values = {columns.name("tokens"): tokens, columns.name("tags"): tags}
            yield Record(values, str(path), sentence[0][0])


def _numbered(
    fields: list[str], name: str | None, default: int, role: str, where: str
) -> str:
    """Returns the field with the number `name`, or else `default`, counted from 1."""
    known = [str(number) for number in range(1, len(fields) + 1)]
    chosen = str(default) if name is None else name
    if chosen not in known:
        raise no_column(where, chosen, f"task.columns.{role}", known)
    return fields[int(chosen) - 1].strip()


def read_conllu(path: Path, columns: ColumnsConfig) -> Iterator[Record]:
    """Reads CoNLL-U (Universal Dependencies): words, and the column of their tags.

    Ranges (1-2, two words written as one) and empty nodes (1.1) are skipped.

    Raises:
      PlmjaxError: an unknown column name, or a line without ten columns.
    """
    chosen = {"tokens": columns.tokens or "FORM", "tags": columns.tags or "UPOS"}
    for role, name in chosen.items():
        if name not in CONLLU:
            raise no_column(str(path), name, f"task.columns.{role}", CONLLU)
    indices = {role: CONLLU.index(name) for role, name in chosen.items()}
    for sentence in _sentences(path):
        words: dict[str, list[str]] = {role: [] for role in indices}
        for line, text in sentence:
            if text.startswith("#"):
                continue
            fields = text.split("\t")
            if len(fields) != len(CONLLU):
                raise bad_data(
                    f"{path}:{line}",
                    f"{len(fields)} columns; CoNLL-U has {len(CONLLU)}, separated by "
                    "tabs.",
                    "Is it CoNLL? Then set task.format=conll.",
                )
            if _RANGE_OR_EMPTY.fullmatch(fields[0]):
                continue
            for role, index in indices.items():
                words[role].append(fields[index])
        if words["tokens"]:
            values = {columns.name(role): column for role, column in words.items()}
            yield Record(values, str(path), sentence[0][0])


def read_squad(path: Path, columns: ColumnsConfig) -> Iterator[Record]:
    """Reads SQuAD 1.1, 2.0 and files of the same form (CMRC): a record a question.

    Raises:
      PlmjaxError: the file is not JSON, or not of this form.
    """
    text = read_text(path)
    content = parse_json(text, path)
    lines = _lines_of_ids(text)
    for article in _list(content, "data", str(path)):
        for paragraph in _list(article, "paragraphs", str(path)):
            for question in _list(paragraph, "qas", str(path)):
                line = lines.get(str(question.get("id")), 1)
                answers = question.get("answers", [])
                if question.get("is_impossible"):
                    answers = []  # the file's answers are plausible, but wrong
                values = {
                    columns.context: paragraph.get("context"),
                    columns.question: question.get("question"),
                    columns.answers: answers,
                    "id": question.get("id"),
                }
                yield Record(values, str(path), line)


def _list(block: Any, key: str, where: str) -> list[dict]:
    items = block.get(key) if isinstance(block, dict) else None
    if not isinstance(items, list) or not all(isinstance(x, dict) for x in items):
        names = [*block] if isinstance(block, dict) else []
        raise bad_data(
            where,
            f"this is not SQuAD's form: no list {key!r}.",
            nearest(key, names) if names else 'Expected {"data": [{"paragraphs": ...',
        )
    return items


def _lines_of_ids(text: str) -> dict[str, int]:
    """Returns the line of each id; ids of paragraphs differ and are included."""
    lines, line, end = {}, 1, 0
    for match in _ID.finditer(text):
        line += text.count("\n", end, match.start())
        end = match.start()
        lines[match[1].strip('"')] = line
    return lines
