"""Readers of annotated text: CoNLL, CoNLL-U and SQuAD."""

import collections
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plmjax.config import nearest
from plmjax.data.columns import ColumnsConfig
from plmjax.data.records import (
    Record,
    bad_data,
    no_column,
    parse_json,
    read_jsonl,
    read_lines,
    read_text,
)
from plmjax.metrics.entities import find_scheme

# What a reader remarks on: {what: file and line of each time}.
Notes = collections.defaultdict[str, list[str]]

CONLLU = tuple("ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC".split())
_RANGE_OR_EMPTY = re.compile("[0-9]+[-.][0-9]+")
_GLOBAL_COLUMNS = "# global.columns ="
# Other white space, such as U+00A0 in "10 000", is part of a token.
_BLANKS = " \t\f\v"
_FEW_LINES = 20  # in fewer, columns of numbers or names can be tokens
_ID = re.compile(r'"id"\s*:\s*("(?:[^"\\]|\\.)*"|[0-9]+)')


class _Line(NamedTuple):
    """A line of CoNLL; `number` counts from 1."""

    number: int
    text: str
    fields: list[str]


def _sentences(path: Path) -> Iterator[list[tuple[int, str]]]:
    """Yields (line, text) pairs by sentence; blank lines separate sentences."""
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    lines = enumerate(text.split("\n"), 1)
    for blank, group in itertools.groupby(lines, lambda x: not x[1].strip(_BLANKS)):
        if not blank:
            yield [*group]


# --- CoNLL


def read_conll(path: Path, columns: ColumnsConfig, notes: Notes) -> Iterator[Record]:
    """Reads CoNLL: a token and its tag a line, in columns separated by tabs or blanks.

    Lines with # before the first token of a sentence are comments, unless they have as
    many columns as other lines, and a tag of theirs.

    Raises:
      PlmjaxError: a line without a tag, or without a column that `columns` names;
        columns that are not those of tokens and tags.
    """
    sentences = _without_comments(path, columns, notes)
    _check_form(path, columns, sentences)
    for sentence in sentences:
        tokens, tags = [], []
        for line in sentence:
            where, fields = f"{path}:{line.number}", line.fields
            tokens.append(_numbered(fields, columns.tokens, 1, "tokens", where))
            tags.append(_numbered(fields, columns.tags, len(fields), "tags", where))
            if not tokens[-1]:
                notes["tokens without a character"].append(f"{path.name}:{line.number}")
            if not tags[-1]:
                hint = "Fill it or remove the line, or set task.columns.tags to the "
                hint += "number of the tags' column."
                raise bad_data(where, "the tag is empty.", hint)
        values = {columns.name("tokens"): tokens, columns.name("tags"): tags}
        yield Record(values, str(path), sentence[0].number)


def _without_comments(
    path: Path, columns: ColumnsConfig, notes: Notes
) -> list[list[_Line]]:
    """Returns the sentences of a file, without -DOCSTART- and comments."""
    sentences = [
        [
            _Line(number, text, _fields(text))
            for number, text in group
            if not text.startswith("-DOCSTART-")
        ]
        for group in _sentences(path)
    ]

    def form(line: _Line) -> tuple:
        """Returns the number of columns, and the tag if there is one."""
        number = columns.tags or str(len(line.fields))
        index = int(number) - 1 if number.isdecimal() else len(line.fields)
        return len(line.fields), *line.fields[index : index + 1]

    lines = itertools.chain(*sentences)
    forms = {form(line) for line in lines if not line.text.startswith("#")}
    kept = []
    for sentence in sentences:
        head = itertools.takewhile(lambda line: line.text.startswith("#"), sentence)
        comments = [line for line in head if form(line) not in forms]
        notes["comment lines skipped"] += [
            f"{path.name}:{line.number} {line.text[:40]!r}" for line in comments
        ]
        kept.append([line for line in sentence if line not in comments])
    return [sentence for sentence in kept if sentence]


def _fields(text: str) -> list[str]:
    if "\t" in text:
        return [field.strip(_BLANKS) for field in text.split("\t")]
    return re.split(f"[{_BLANKS}]+", text.strip(_BLANKS))


def _check_form(
    path: Path, columns: ColumnsConfig, sentences: list[list[_Line]]
) -> None:
    """Raises PlmjaxError if the default columns are not those of tokens and tags."""
    lines = [*itertools.chain(*sentences)]
    sizes = collections.Counter(len(line.fields) for line in lines)
    usual, often = max(sizes.items(), key=lambda item: item[1], default=(0, 0))
    for line in lines:
        where, shown = f"{path}:{line.number}", repr(line.text.strip()[:40])
        if len(line.fields) < 2:
            raise bad_data(
                where,
                f"{shown} has a token and no tag.",
                "Write token, tab, tag; a blank line ends a sentence.",
            )
        if len(line.fields) != usual and columns.tags is None:
            raise bad_data(
                where,
                f"{shown} has {len(line.fields)} columns, and {often:,} of "
                f"{len(lines):,} lines have {usual}.",
                "Separate columns by tabs if tokens contain blanks; if lines may "
                "differ, set --config.task.columns.tags to the column of the tags.",
            )
    if columns.tokens is not None or not lines:
        return
    first = [[line.fields[0] for line in sentence] for sentence in sentences]
    several = sum(len(column) > 1 for column in first)
    numbers = [*map(str, range(len(lines) + 1))]
    what = ""
    hint = "Set --config.task.columns.tokens and --config.task.columns.tags."
    if not any(itertools.chain(*first)):
        what = "is empty"
    elif several and all(
        column in (numbers[: len(column)], numbers[1 : len(column) + 1])
        for column in first
    ):
        what = "counts the words of each sentence"
        hint += " The ten columns of CoNLL-U are --config.task.format=conllu."
    elif len(lines) > _FEW_LINES and several * 2 > len(first):
        if all(len({*column}) == 1 for column in first):
            what = f"is the same in each sentence ({first[0][0][:40]!r})"
    if columns.tags is None and (scheme := find_scheme(itertools.chain(*first))):
        if find_scheme(line.fields[-1] for line in lines) is None:
            what = f"has the tags ({', '.join([*scheme.tags][:3])})"
            hint = "Set --config.task.columns.tags=1 --config.task.columns.tokens=2."
    if what:
        raise bad_data(str(path), f"column 1, the tokens, {what}.", hint)


def _numbered(
    fields: list[str], name: str | None, default: int, role: str, where: str
) -> str:
    """Returns the field with the number `name`, or else `default`, counted from 1."""
    known = [str(number) for number in range(1, len(fields) + 1)]
    chosen = str(default) if name is None else name
    if chosen not in known:
        raise no_column(where, chosen, f"--config.task.columns.{role}", known)
    return fields[int(chosen) - 1]


# --- CoNLL-U


def read_conllu(path: Path, columns: ColumnsConfig, notes: Notes) -> Iterator[Record]:
    """Reads CoNLL-U (Universal Dependencies): words, and the column of their tags.

    Ranges (1-2, two words written as one) and empty nodes (1.1) are skipped. CoNLL-U
    Plus names its columns in the first line.

    Raises:
      PlmjaxError: an unknown column name, a line with more or fewer columns, or a file
        without any FORM.
    """
    chosen = {"tokens": columns.tokens or "FORM", "tags": columns.tags or "UPOS"}
    sentences = [*_sentences(path)]
    first = sentences[0][0][1] if sentences else ""
    names: Sequence[str] = CONLLU
    if first.startswith(_GLOBAL_COLUMNS):
        names = first.removeprefix(_GLOBAL_COLUMNS).split()
    for role, name in chosen.items():
        if name not in names:
            raise no_column(str(path), name, f"--config.task.columns.{role}", names)
    indices = {role: names.index(name) for role, name in chosen.items()}
    blank, total = [], 0
    for sentence in sentences:
        words: dict[str, list[str]] = {role: [] for role in indices}
        for line, text in sentence:
            if text.startswith("#"):
                continue
            fields = text.split("\t")
            if len(fields) != len(names):
                what = f"{len(fields)} columns; CoNLL-U has {len(names)}, by tabs."
                hint = "Is it CoNLL? Then set --config.task.format=conll."
                raise bad_data(f"{path}:{line}", what, hint)
            if _RANGE_OR_EMPTY.fullmatch(fields[0]):
                continue
            for role, index in indices.items():
                words[role].append(fields[index])
        tokens = words["tokens"]
        total += len(tokens)
        if {*tokens} == {"_"}:  # among other words it is an underscore
            blank += [f"{path.name}:{sentence[0][0]}"] * len(tokens)
        if tokens:
            values = {columns.name(role): column for role, column in words.items()}
            yield Record(values, str(path), sentence[0][0])
    if total and len(blank) == total:
        raise bad_data(
            str(path),
            f"the {chosen['tokens']} of all {total:,} words is _.",
            "The text was removed from this corpus; its README says how to restore it.",
        )
    notes["words that are _, as in a corpus without its text"] += blank


# --- JSON


def read_json(path: Path) -> Iterator[Record]:
    """Reads a JSON array of objects, each a record, or else one object a line."""
    first = next(filter(bytes.strip, read_lines(path)), b"")
    rows = parse_json(read_text(path), path) if first.lstrip()[:1] == b"[" else []
    if not rows or not all(isinstance(row, dict) for row in rows):
        yield from read_jsonl(path)
    for row, values in enumerate(rows, 1):
        yield Record(values, str(path), row)


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
