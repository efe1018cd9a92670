"""Files of labelled data as records: named values, and where each was found.

The readers of whole formats (CoNLL, CoNLL-U, SQuAD) are in data/annotated.py.
"""

import csv
import dataclasses
import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.config import nearest
from plmjax.data.corpus import unreadable
from plmjax.data.tasks import TaskConfig

ROWS = 1000  # read at once
_SPLITS = {"train": "train", "held_out": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Record:
    """Values by name; `line` counts from 1, and is a row where there are no lines."""

    values: Mapping[str, Any]
    file: str
    line: int


def bad_data(where: str, what: str, hint: str) -> PlmjaxError:
    return PlmjaxError(f"{where}: {what}", hint=hint, code=Exit.DATA)


def no_column(where: str, name: str, key: str, found: Sequence[str]) -> PlmjaxError:
    """The error for a column that is not there; `key` is the config's."""
    hint = nearest(name, found) if found else ""
    return bad_data(where, f"there is no column {name!r}.", f"{hint} Set {key}.")


def text_of(value: Any, where: str, column: str) -> str:
    """The value of a column that must be text; `where` is file:line."""
    if not isinstance(value, str):
        kind = "empty" if value is None else f"a {type(value).__name__}, not text"
        raise bad_data(
            where, f"the column {column!r} is {kind}.", "Mend or remove the record."
        )
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair
        what = f"the column {column!r} holds half a surrogate pair."
        raise bad_data(where, what, "Mend the text.") from None
    return value


# --- files


def find_inputs(paths: str, key: str) -> list[Path]:
    """The files that paths and globs match, comma between, in their order.

    Raises:
      PlmjaxError: one matches none; `key` is the config's name for them.
    """
    found: dict[Path, None] = {}
    for pattern in (part.strip() for part in paths.split(",")):
        pattern = os.path.expanduser(pattern)
        exists = os.path.exists(pattern)
        matches = [pattern] if exists else sorted(glob.glob(pattern, recursive=True))
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if not files:
            what = "is no file" if exists else "matches no file"
            raise PlmjaxError(
                f"{key}: {pattern!r} {what} (in {Path.cwd()}).",
                hint="Check the spelling, or give an absolute path.",
                code=Exit.DATA,
            )
        found |= dict.fromkeys(files)
    return list(found)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, plain or gzipped, without a byte order mark."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from None
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise bad_data(
            f"{path}:{line}",
            f"byte {raw[error.start]:#04x} is not UTF-8.",
            "Convert the file to UTF-8.",
        ) from None


def parse_json(text: str, path: Path, line: int | None = None) -> Any:
    """The value of a JSON text: a line of a file, or the whole of it."""
    try:
        return json.loads(text)
    except ValueError as error:
        found = getattr(error, "lineno", 1) if line is None else line
        reason = getattr(error, "msg", error)
        column = getattr(error, "colno", 1)
        what = f"no JSON at column {column}: {reason}."
    except RecursionError:
        found, what = line or 1, "JSON that is nested too deep."
    raise bad_data(f"{path}:{found}", what, "Mend or remove the line.")


# --- tables


def read_csv(path: Path, config: TaskConfig) -> Iterator[Record]:
    """Comma-separated values: a field in double quotes may hold commas and lines."""
    return _separated(path, config, delimiter=",", strict=True)


def read_tsv(path: Path, config: TaskConfig) -> Iterator[Record]:
    """Tab-separated values: a quotation mark is a character like any other."""
    return _separated(path, config, delimiter="\t", quoting=csv.QUOTE_NONE)


def _separated(path: Path, config: TaskConfig, **dialect: Any) -> Iterator[Record]:
    csv.field_size_limit(1 << 28)  # the module's own refuses a book in a field
    reader = csv.reader(io.StringIO(read_text(path), newline=""), **dialect)
    names, before = None, 0
    try:
        for row in reader:
            line, before = before + 1, reader.line_num
            if not row:
                continue
            if names is None:
                names = row if config.header else _numbers(len(row))
                _check_header(names, f"{path}:{line}")
                if config.header:
                    continue
            if len(row) != len(names):
                raise bad_data(
                    f"{path}:{line}",
                    f"{len(row)} fields where {len(names)} columns were expected.",
                    "Is the separator right, and is each quotation closed?",
                )
            yield Record(dict(zip(names, row, strict=True)), str(path), line)
    except csv.Error as error:
        raise bad_data(
            f"{path}:{before + 1}", f"{error}.", "Mend the quotation marks."
        ) from None


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(1, count + 1)]


def _check_header(names: list[str], where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise bad_data(
            where,
            f"two columns are called {twice[0]!r}.",
            "Rename one; a file without a header needs task.header=False.",
        )


def read_jsonl(path: Path, config: TaskConfig) -> Iterator[Record]:
    """One JSON object a line."""
    for line, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        value = parse_json(text, path, line)
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise bad_data(
                f"{path}:{line}", f"a {kind}, not an object.", 'Write {"text": ...}.'
            )
        yield Record(value, str(path), line)


def read_parquet(path: Path, config: TaskConfig) -> Iterator[Record]:
    """A record a row."""
    import pyarrow
    import pyarrow.parquet

    line = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(ROWS):
                for row in range(batch.num_rows):
                    line += 1
                    (values,) = batch.slice(row, 1).to_pylist()
                    yield Record(values, str(path), line)
    except UnicodeDecodeError:
        where = f"{path}:{line}"
        raise bad_data(where, "not UTF-8.", "Convert the text to UTF-8.") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable(path, error) from None


# --- datasets and tfds


def split_of(paths: str, role: str) -> tuple[Path, str]:
    """Returns (folder, split) of "folder" or "folder:split"; PlmjaxError if no folder.

    `role` is train, held_out or test; the split defaults to its usual name.
    """
    folder, split = paths, _SPLITS[role]
    if not os.path.isdir(os.path.expanduser(paths)) and ":" in paths:
        folder, _, split = paths.rpartition(":")
    if not os.path.isdir(os.path.expanduser(folder)):
        raise PlmjaxError(
            f"task.{role}: {folder!r} is no folder (in {Path.cwd()}).",
            hint='Give a local "folder" or "folder:split"; nothing is downloaded.',
            code=Exit.DATA,
        )
    return Path(folder).expanduser(), split


def read_datasets(folder: Path, split: str, config: TaskConfig) -> Iterator[Record]:
    """A folder that datasets' save_to_disk wrote, or a local folder of data files."""
    import datasets

    saved = any((folder / n).is_file() for n in ("state.json", "dataset_dict.json"))
    try:
        if saved:
            found: Any = datasets.load_from_disk(str(folder))
            if isinstance(found, datasets.DatasetDict):
                found = found[split]
        else:
            found = datasets.load_dataset(str(folder), split=split, streaming=True)
    except (KeyError, ValueError, OSError) as error:
        raise bad_data(
            str(folder), f"no split {split!r}: {error}.", 'Write "folder:split".'
        ) from None
    names = _label_names(found.features or {})
    for line, values in enumerate(found, 1):
        yield Record(_named(values, names), f"{folder}:{split}", line)


def read_tfds(folder: Path, split: str, config: TaskConfig) -> Iterator[Record]:
    """A tfds data set prepared as array_record in the data_dir `folder`."""
    import tensorflow_datasets as tfds

    if config.dataset is None:
        raise PlmjaxError(
            "task.dataset is empty.", hint="Name tfds' data set, as ag_news_subset."
        )
    try:
        builder: Any = tfds.builder(config.dataset, data_dir=str(folder))
        rows = builder.as_data_source(split=split)
    except Exception as error:  # tfds has a dozen kinds for "it is not there"
        reason = str(error).strip().partition("\n")[0]
        raise bad_data(
            str(folder),
            f"tfds cannot read {config.dataset} (split {split!r}): {reason}",
            "Prepare it first, with tfds build --file_format=array_record.",
        ) from None
    names = _label_names(builder.info.features)
    for line, values in enumerate(rows, 1):
        where = f"{config.dataset}:{split}"
        plain = {
            name: _plain(value, f"{where}:{line}") for name, value in values.items()
        }
        yield Record(_named(plain, names), where, line)


def _label_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the classes that both libraries store as numbers, also in lists."""
    named = {}
    for column, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if getattr(inner, "names", None):
            named[column] = list(inner.names)
    return named


def _named(values: Mapping[str, Any], names: dict[str, list[str]]) -> dict[str, Any]:
    """Values with numbers of classes replaced by names; -1, no label, becomes None."""
    found = dict(values)
    for column, known in names.items():
        value = found[column]
        if isinstance(value, int):
            found[column] = known[value] if value >= 0 else None
        elif isinstance(value, list):
            found[column] = [known[number] for number in value]
    return found


def _plain(value: Any, where: str) -> Any:
    """The value of numpy arrays and bytes, as Python has it."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise bad_data(where, "not UTF-8.", "Prepare the data again.") from None
    if isinstance(value, dict):
        return {name: _plain(item, where) for name, item in value.items()}
    return [_plain(item, where) for item in value] if isinstance(value, list) else value
