"""Files of records: named values with their file and line.

Each format has one reader, for pretraining text and for labelled examples; it yields
records one by one. Readers of CoNLL, CoNLL-U and SQuAD are in data/annotated.py.
"""

import codecs
import contextlib
import csv
import functools
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plmjax import DataError, PlmjaxError, with_article
from plmjax.config import nearest
from plmjax.data.archives import open_member
from plmjax.data.blocks import UTF8, Decoding, guess_encoding, raw_blocks
from plmjax.data.corpus import Tally, unreadable
from plmjax.files import did_you_mean

LINE_BYTES = 1 << 28  # a JSON record must fit into memory
ROWS = 1000  # read at once
SEPARATORS = ",;\t|"
_SEPARATOR_LINE = re.compile("sep=(.)[\r\n]")  # Excel writes and reads it
_HEAD, _FIRST_ROWS = 1 << 20, 20  # characters and rows that show the separator
_SPLITS = {"train": "train", "held_out": "validation", "test": "test"}
# Decodes bytes that should be text; the second argument is their file:line.
Decode = Callable[[bytes, str], Any]


class Record(NamedTuple):
    """Values by name; `line` counts from 1, rows in formats without lines."""

    values: Mapping[str, Any]
    file: str
    line: int


def bad_data(where: str, what: str, hint: str) -> PlmjaxError:
    """The error (code 3) for wrong data; `where` is file:line."""
    return DataError(f"{where}: {what}", hint=hint)


def no_column(where: str, name: str, key: str, columns: Sequence[str]) -> PlmjaxError:
    """The error for a missing column; `key` is the config's key for it."""
    hint = nearest(name, columns) if columns else ""
    return bad_data(where, f"there is no column {name!r}.", f"{hint} Set {key}.")


def no_field(where: str, field: str, fields: Iterable[str]) -> PlmjaxError:
    """The error for a field that the records of a corpus lack."""
    return DataError(
        f"{where} has no field {field!r}; there are: "
        f"{', '.join(map(str, fields)) or 'none'}.",
        hint="Set --config.data.source.field.",
    )


def utf8(raw: bytes, where: str) -> str:
    """Decodes bytes at `where`, a file:line; PlmjaxError if they are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        what = f"byte {raw[error.start]:#04x} is not UTF-8."
        raise bad_data(where, what, "Convert the text to UTF-8.") from None


def text_of(value: Any, where: str, column: str) -> str:
    """Returns the value of a column if it is valid text; `where` is file:line.

    Raises:
      PlmjaxError: it is empty, not text, or has half a surrogate pair.
    """
    if not isinstance(value, str):
        kind = (
            "empty"
            if value is None
            else f"{with_article(type(value).__name__)}, not text"
        )
        raise bad_data(
            where, f"the column {column!r} is {kind}.", "Fix or remove the record."
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
        what = f"the column {column!r} holds half a surrogate pair."
        raise bad_data(where, what, "Fix the text.") from None
    return value


# --- files


def read_text(path: Path) -> str:
    """Reads a file of UTF-8, plain or compressed, without a byte order mark."""
    raw = b"".join(raw_blocks(path))
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        name = guess_encoding(raw, error.start)
        hint = f"Convert the file to UTF-8{f'; it looks like {name}' if name else ''}."
        what = f"byte {raw[error.start]:#04x} is not UTF-8."
        raise bad_data(f"{path}:{line}", what, hint) from None


def parse_json(text: str, path: Path, line: int | None = None) -> Any:
    """Parses JSON: line `line` of a file, or all of it; PlmjaxError if invalid."""
    try:
        return json.loads(text)
    except ValueError as error:
        number = getattr(error, "lineno", 1) if line is None else line
        reason = getattr(error, "msg", error)
        what = f"column {getattr(error, 'colno', 1)}: {reason}"
    except RecursionError:
        number, what = line or 1, "it is nested too deeply"
    raise DataError(
        f"{path}:{number} is not valid JSON: {what}.", hint="Fix or remove the line."
    )


def read_lines(
    path: Path, decoding: Decoding = UTF8, tally: Tally | None = None
) -> Iterator[bytes]:
    """Yields the lines of a file as UTF-8, unpacked, without a byte order mark."""
    pending: list[bytes] = []  # pieces of an unfinished line, joined once at its end
    size, first = 0, True
    for block in raw_blocks(path, decoding, tally):
        block = block.removeprefix(codecs.BOM_UTF8) if first else block
        first = False
        head, *others = block.split(b"\n")
        pending.append(head)
        size += len(head)
        if others:
            yield b"".join(pending)
            yield from others[:-1]
            pending, size = [others[-1]], len(others[-1])
        if size > LINE_BYTES:
            raise DataError(
                f"{path} has a line of more than {LINE_BYTES:,} bytes.",
                hint="Is it one JSON array? Write one object a line instead.",
            )
    yield b"".join(pending)


# --- tables


def read_csv(
    path: Path, header: bool = True, separator: str | None = None, usual: str = ","
) -> Iterator[Record]:
    """Reads a table; a field in double quotes may contain separators and newlines.

    Without a separator it is `usual`, or the likely one where that divides nothing.
    """
    text = read_text(path)
    if separator is None:
        known = header or _SEPARATOR_LINE.match(text)
        separator = find_separator(text[:_HEAD], usual) if known else usual
    lines = io.StringIO(text, newline="")
    return read_table(path, lines, separator, header, plain=separator == usual == "\t")


# Tab-separated values, in which quotation marks have no special meaning.
read_tsv = functools.partial(read_csv, usual="\t")


def read_table(
    path: Path,
    lines: Iterable[str],
    separator: str,
    header: bool = True,
    *,
    plain: bool = False,
) -> Iterator[Record]:
    """Yields the records of a table; if it is `plain`, quotation marks are text.

    Raises:
      PlmjaxError: columns of one name, a row with more or fewer fields, an open
        quotation.
    """
    csv.field_size_limit(1 << 28)  # the default limit is less than a book
    quotes: Any = {"quoting": csv.QUOTE_NONE} if plain else {"strict": True}
    reader = csv.reader(lines, delimiter=separator, **quotes)
    names, before = None, 0
    try:
        for row in reader:
            line, before = before + 1, reader.line_num
            if not row or (line == 1 and re.fullmatch("sep=.?", "".join(row))):
                continue
            if names is None:
                numbers = map(str, range(1, len(row) + 1))
                names = [*(map(str.strip, row) if header else numbers)]
                _check_header(names, f"{path}:{line}")
                if header:
                    continue
            if len(row) != len(names):
                raise bad_data(
                    f"{path}:{line}",
                    f"{len(row)} fields where {len(names)} columns were expected.",
                    f"Is {separator!r} the separator, and is each quotation closed?",
                )
            yield Record(dict(zip(names, row, strict=True)), str(path), line)
    except csv.Error as error:
        raise bad_data(
            f"{path}:{before + 1}",
            f"{error}.",
            'Fix the quotation marks: within a field they are doubled (""); the '
            f"separator is {separator!r}.",
        ) from None


def find_separator(text: str, usual: str) -> str:
    """Returns the separator of a table that begins with `text`.

    That of Excel's line sep=;, else what divides the first rows into equally many
    columns, else the commonest in the header; `usual` goes before the others.
    """
    if first := _SEPARATOR_LINE.match(text):
        return first[1]
    candidates = dict.fromkeys(usual + SEPARATORS)
    for separator in candidates:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        with contextlib.suppress(csv.Error):
            sizes = {len(row) for row in itertools.islice(rows, _FIRST_ROWS) if row}
            if len(sizes) == 1 and sizes != {1}:
                return separator
    return max(candidates, key=text.lstrip().partition("\n")[0].count)


def _check_header(names: list[str], where: str) -> None:
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise bad_data(
            where,
            f"two columns are called {twice[0]!r}.",
            "Rename one; labels without a header need --config.task.header=False.",
        )


def read_jsonl(
    path: Path,
    decode: Decode = utf8,
    decoding: Decoding = UTF8,
    tally: Tally | None = None,
) -> Iterator[Record]:
    """Reads one JSON object a line; blank lines are skipped."""
    for line, raw in enumerate(read_lines(path, decoding, tally), 1):
        text = decode(raw, f"{path}:{line}")
        if not text.strip():
            continue
        value = parse_json(text, path, line)
        if not isinstance(value, dict):
            raise DataError(
                f"{path}:{line} holds a {type(value).__name__}, not an object.",
                hint='Write {"text": ...}.',
            )
        yield Record(value, str(path), line)


def read_parquet(
    path: Path, column: str | None = None, decode: Decode = utf8
) -> Iterator[Record]:
    """Reads a record a row, with all columns or only `column`."""
    import pyarrow
    import pyarrow.parquet

    line = 0
    try:
        with pyarrow.parquet.ParquetFile(open_member(path) or path) as table:
            names = table.schema_arrow.names
            if column is not None and column not in names:
                raise no_field(str(path), column, names)
            for batch in table.iter_batches(ROWS, columns=column and [column]):
                for row in zip(*batch.columns, strict=True):
                    line += 1
                    where = f"{path}:{line}"
                    values = (_as_python(value, where, decode) for value in row)
                    named = dict(zip(batch.schema.names, values, strict=True))
                    yield Record(named, str(path), line)
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable(path, error) from None


def _as_python(value: Any, where: str, decode: Decode) -> Any:
    """The value of a pyarrow scalar; one of type string may be invalid UTF-8."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        if not hasattr(value, "as_buffer"):  # a list or a struct
            raise bad_data(where, "not UTF-8.", "Convert the text to UTF-8.") from None
        return decode(value.as_buffer().to_pybytes(), where)


# --- datasets and tfds


def split_of(paths: str, role: str) -> tuple[Path, str]:
    """Parses "folder" or "folder:split"; PlmjaxError if there is no such folder.

    `role` is train, held_out or test; the split defaults to its usual name.
    """
    folder, split = paths, _SPLITS[role]
    if not os.path.isdir(os.path.expanduser(paths)) and ":" in paths:
        folder, _, split = paths.rpartition(":")
    if not os.path.isdir(os.path.expanduser(folder)):
        raise PlmjaxError(
            f"task.{role}: {folder!r} is not a folder (in {Path.cwd()}).",
            hint=f'{did_you_mean(folder)}Give a local "folder" or "folder:split"; '
            "nothing is downloaded.",
        )
    return Path(folder).expanduser(), split


def is_saved(folder: Path) -> bool:
    """Whether datasets' save_to_disk wrote the folder."""
    return any((folder / n).is_file() for n in ("state.json", "dataset_dict.json"))


def open_datasets(folder: Path, split: str, hint: str, **options: Any) -> Any:
    """Opens a folder that datasets' save_to_disk wrote, or a folder of data files.

    `options` are those of datasets' reader of the files' format.
    """
    import datasets

    try:
        if not is_saved(folder):
            return datasets.load_dataset(
                str(folder), split=split, streaming=True, **options
            )
        data: Any = datasets.load_from_disk(str(folder))
        return data[split] if isinstance(data, datasets.DatasetDict) else data
    except Exception as error:  # of many classes, from the reader of each format
        reason, packed = reason_of(error), next(folder.rglob("*.zst"), None)
        if packed is not None and "zstd" in reason:
            reason += f" ({packed.relative_to(folder)})"
        raise DataError(
            f"{folder} does not load, or has no split {split!r}: {reason}.",
            hint=hint,
        ) from None


def reason_of(error: Exception) -> str:
    """The innermost cause of a library's error, on one line."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def read_datasets(rows: Any, name: str, column: str | None = None) -> Iterator[Record]:
    """Yields a record for each row from open_datasets, with classes by name.

    With `column`, records have only that column, and its value is unchanged.
    """
    if column is not None:
        columns = rows.column_names
        if columns is not None and column not in columns:
            raise no_field(name, column, columns)
        rows = rows.select_columns([column])
    names = _label_names(rows.features or {}) if column is None else {}
    iterator, line = iter(rows), 0
    while True:
        try:
            values = next(iterator, None)
        except Exception as error:  # a file that the library cannot read
            what = f"row {line:,} cannot be read: {reason_of(error)}."
            hint = "Fix the file, or leave it out of the folder."
            raise bad_data(name, what, hint) from None
        if values is None:
            return
        line += 1
        yield Record(_named(values, names), name, line)


class Prepared(NamedTuple):
    """A data set that tfds has prepared as array_record, and its folder."""

    rows: Any
    features: Mapping[str, Any]
    path: Path


def open_tfds(folder: Path, dataset: str | None, split: str, key: str) -> Prepared:
    """Opens a data set in the data_dir `folder`; `key` is the config's name for it."""
    import tensorflow_datasets as tfds

    if dataset is None:
        hint = "Name tfds' data set, as ag_news_subset."
        raise PlmjaxError(f"{key} is empty.", hint=hint)
    try:
        builder: Any = tfds.builder(dataset, data_dir=str(folder))
        rows = builder.as_data_source(split=split)
    except Exception as error:  # tfds raises many classes if it cannot read the data
        reason = str(error).strip().partition("\n")[0]
        raise bad_data(
            str(folder),
            f"tfds cannot read {dataset} (split {split!r}): {reason}",
            "Nothing is downloaded here; prepare it first with tfds build "
            f"--file_format=array_record {dataset}.",
        ) from None
    return Prepared(rows, builder.info.features, Path(builder.data_path))


def read_tfds(
    prepared: Prepared, name: str, column: str | None = None, decode: Decode = utf8
) -> Iterator[Record]:
    """Yields a record for each row, as read_datasets does."""
    names = _label_names(prepared.features) if column is None else {}
    for line, values in enumerate(prepared.rows, 1):
        where = f"{name}:{line}"
        if column is not None:
            if column not in values:
                raise no_field(name, column, values)
            values = {column: values[column]}
        plain = {n: _plain(value, where, decode) for n, value in values.items()}
        yield Record(_named(plain, names), name, line)


def _label_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Class names by column; both libraries store classes as numbers, also in lists."""
    named = {}
    for column, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if getattr(inner, "names", None):
            named[column] = list(inner.names)
    return named


def _named(values: Mapping[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """Values with class numbers replaced by names; -1 (no label) becomes None."""
    named = dict(values)
    for column in named.keys() & names.keys():
        value, known = named[column], names[column]
        if isinstance(value, int):
            named[column] = known[value] if value >= 0 else None
        elif isinstance(value, list):
            named[column] = [known[number] for number in value]
    return named


def _plain(value: Any, where: str, decode: Decode) -> Any:
    """Converts numpy arrays and bytes to Python values, also in lists and dicts."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return decode(value, where)
    if isinstance(value, dict):
        return {name: _plain(item, where, decode) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, where, decode) for item in value]
    return value
