"""Documents that are one field of records: jsonl, parquet, datasets and tfds.

A field that holds a list of strings is a document of those sentences, a line each
(data.sentences=lines finds them again).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.data.corpus import (
    LINE_ENDS,
    Source,
    SourceConfig,
    Tally,
    describe_files,
    file_digests,
    find_files,
    make_source,
    not_utf8,
    unreadable,
)
from plmjax.data.text import raw_blocks

LINE_BYTES = 1 << 28  # a JSON record must be in memory whole
ROWS = 1000  # read at once


# --- jsonl


def open_jsonl(config: SourceConfig, errors: str) -> Source:
    """One JSON object a line, in plain or gzipped files."""
    files = find_files(config.paths)

    def read(tally: Tally) -> Iterator[str]:
        for path in files:
            for number, line in enumerate(_lines(path, tally), 1):
                if line.strip():
                    where = f"{path}:{number}"
                    yield _json_field(line, config.field, where, errors, tally)

    return _from_files(config, errors, files, read)


def _lines(path: Path, tally: Tally) -> Iterator[bytes]:
    rest: list[bytes] = []  # pieces of a line that goes on, joined once at its end
    size = total = 0
    for block in raw_blocks(path):
        block = block.removeprefix(b"\xef\xbb\xbf") if total == 0 else block
        total += len(block)
        first, *others = block.split(b"\n")
        rest.append(first)
        size += len(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest, size = [others[-1]], len(others[-1])
        if size > LINE_BYTES:
            raise PlmjaxError(
                f"{path} has a line of more than {LINE_BYTES:,} bytes.",
                hint="Is it one JSON array? Write one object a line instead.",
                code=Exit.DATA,
            )
    yield b"".join(rest)
    tally.empty_files += total == 0


def _json_field(line: bytes, field: str, where: str, errors: str, tally: Tally) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise not_utf8(f"{where}: byte {error.start:,} of the line") from None
        text = line.decode(errors="replace")
        tally.replaced_characters += text.count("\ufffd")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(
            f"{where} is no JSON: {error}.", "Mend or remove the line."
        ) from None
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise _bad(f"{where} holds a {kind}, not an object.", 'Write {"text": ...}.')
    if field not in record:
        raise _no_field(where, field, record)
    return _document(record[field], f"{where}: field {field!r}", errors, tally)


# --- parquet


def open_parquet(config: SourceConfig, errors: str) -> Source:
    """One column of parquet files, a document a row."""
    import pyarrow
    import pyarrow.parquet

    files = find_files(config.paths)

    def read(tally: Tally) -> Iterator[str]:
        for path in files:
            try:
                with pyarrow.parquet.ParquetFile(path) as table:
                    names = table.schema_arrow.names
                    if config.field not in names:
                        raise _no_field(str(path), config.field, names)
                    batches = table.iter_batches(ROWS, columns=[config.field])
                    values = (value for batch in batches for value in batch[0])
                    yield from _rows(values, str(path), config.field, errors, tally)
            except (OSError, pyarrow.ArrowException) as error:
                raise unreadable(path, error) from None

    return _from_files(config, errors, files, read)


# --- Hugging Face datasets, from a local folder


def open_hf(config: SourceConfig, errors: str) -> Source:
    """A folder that datasets' save_to_disk wrote, or a local folder of data files."""
    import datasets

    folder = _folder(config, "a folder that save_to_disk wrote")
    saved = any((folder / n).is_file() for n in ("state.json", "dataset_dict.json"))

    def load() -> Any:
        if not saved:
            return datasets.load_dataset(
                str(folder), split=config.split, streaming=True
            )
        found = datasets.load_from_disk(str(folder))
        return found[config.split] if isinstance(found, datasets.DatasetDict) else found

    try:
        rows = load()
    except (KeyError, ValueError, OSError) as error:  # DatasetNotFoundError is the last
        raise PlmjaxError(
            f"{folder} does not load, or has no split {config.split!r}: {error}.",
            hint="Check --config.data.source.paths and --config.data.source.split.",
            code=Exit.DATA,
        ) from None

    def read(tally: Tally) -> Iterator[str]:
        names = rows.column_names
        if names is not None and config.field not in names:
            raise _no_field(str(folder), config.field, names)
        column = rows.select_columns([config.field])
        values = (row[config.field] for row in column)
        yield from _rows(values, str(folder), config.field, errors, tally)

    return _from_files(config, errors, _files_below(folder), read)


# --- TensorFlow datasets, without TensorFlow


def open_tfds(config: SourceConfig, errors: str) -> Source:
    """A tfds data set prepared as array_record in data_dir (paths)."""
    import tensorflow_datasets as tfds

    folder = _folder(config, "tfds' data_dir")
    if config.dataset is None:
        raise PlmjaxError(
            "data.source.dataset is empty.",
            hint="Name it: --config.data.source.dataset=ag_news_subset.",
        )
    try:
        builder: Any = tfds.builder(config.dataset, data_dir=str(folder))
        rows = builder.as_data_source(split=config.split)
    except Exception as error:  # tfds has a dozen kinds for "it is not there"
        reason = str(error).strip().partition("\n")[0]
        raise PlmjaxError(
            f"tfds cannot read {config.dataset} (split {config.split!r}) in {folder}: "
            f"{reason}",
            hint="Nothing is downloaded here; prepare it first with tfds build "
            f"--file_format=array_record {config.dataset}.",
            code=Exit.DATA,
        ) from None

    def read(tally: Tally) -> Iterator[str]:
        for row in rows:
            if config.field not in row:
                raise _no_field(str(config.dataset), config.field, row)
            yield _document(row[config.field], str(config.dataset), errors, tally)

    return _from_files(config, errors, _files_below(Path(builder.data_path)), read)


# --- what they share


def _from_files(config: SourceConfig, errors: str, files: list[Path], read) -> Source:
    digests = file_digests(files)
    return make_source(
        config,
        read,
        content=[config.field, config.split, config.dataset, errors, digests],
        description={
            **describe_files(digests),
            "document": f"the field {config.field}",
        },
    )


def _folder(config: SourceConfig, what: str) -> Path:
    folder = Path(config.paths or "").expanduser()
    if not config.paths or not folder.is_dir():
        raise PlmjaxError(
            f"data.source.paths={config.paths!r} is no folder (in {Path.cwd()}).",
            hint=f"For data.source.kind={config.kind} it is {what}; nothing is "
            "downloaded.",
        )
    return folder


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _rows(
    values: Iterable[Any], name: str, field: str, errors: str, tally: Tally
) -> Iterator[str]:
    for number, value in enumerate(values):
        where = f"{name}: {field!r} of row {number:,}"
        if hasattr(value, "as_py"):  # pyarrow
            value = _as_python(value, where)
        yield _document(value, where, errors, tally)


def _as_python(value: Any, where: str) -> Any:
    """The value of a pyarrow scalar; bytes where it says text and is none."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        if not hasattr(value, "as_buffer"):  # a list of sentences
            raise not_utf8(where) from None
        return value.as_buffer().to_pybytes()


def _document(value: Any, where: str, errors: str, tally: Tally) -> str:
    """The text of a field, or of its sentences, each made one line."""
    if isinstance(value, np.ndarray):  # tfds
        value = value.tolist()
    if not isinstance(value, list):
        return _text(value, where, errors, tally)
    sentences = (
        _text(item, f"{where}, item {number}", errors, tally)
        for number, item in enumerate(value)
    )
    return "\n".join(LINE_ENDS.sub(" ", sentence) for sentence in sentences)


def _text(value: Any, where: str, errors: str, tally: Tally) -> str:
    """The value as text that UTF-8 can hold: JSON can spell half a surrogate pair."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            if errors == "strict":
                raise not_utf8(where) from None
            text = value.decode(errors="replace")
            tally.replaced_characters += text.count("\ufffd")
            return text
    if not isinstance(value, str):
        raise _bad(
            f"{where} is {type(value).__name__}, not text.",
            "Choose another --config.data.source.field, or mend the data.",
        )
    if value.isascii():
        return value
    replaced = value.encode(errors="replace").decode()
    if replaced == value:
        return value
    if errors == "strict":
        raise not_utf8(f"{where}: a surrogate character")
    clean = value.encode(errors="surrogatepass").decode(errors="replace")
    tally.replaced_characters += clean.count("\ufffd")
    return clean


def _no_field(where: str, field: str, found: Iterable[str]) -> PlmjaxError:
    names = ", ".join(map(str, found)) or "none"
    return _bad(
        f"{where} has no field {field!r}; there are: {names}.",
        "Set --config.data.source.field.",
    )


def _bad(message: str, hint: str) -> PlmjaxError:
    return PlmjaxError(message, hint=hint, code=Exit.DATA)
