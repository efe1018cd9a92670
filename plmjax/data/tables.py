"""Documents in one field of records: jsonl, parquet, datasets and tfds.

A list of strings in the field becomes a document with one string on each line, so
that data.sentences=lines gives these sentences.
"""

import codecs
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

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
)
from plmjax.data.records import (
    Record,
    no_field,
    open_datasets,
    open_tfds,
    read_datasets,
    read_jsonl,
    read_parquet,
    read_tfds,
)
from plmjax.data.text import raw_blocks


def open_jsonl(config: SourceConfig, errors: str) -> Source:
    """Opens plain or gzipped files with one JSON object a line."""
    files = find_files(config.paths)

    def read(tally: Tally) -> Iterator[Record]:
        of = " of the line"
        decode = functools.partial(_decode, errors=errors, tally=tally, of=of)
        for path in files:
            begin = next(raw_blocks(path)).removeprefix(codecs.BOM_UTF8)
            tally.empty_files += not begin
            yield from read_jsonl(path, decode)

    return _from_records(config, errors, files, read)


def open_parquet(config: SourceConfig, errors: str) -> Source:
    """Opens one column of parquet files, a document a row."""
    files = find_files(config.paths)

    def read(_: Tally) -> Iterator[Record]:
        for path in files:
            yield from read_parquet(path, config.field, _decode_later)

    return _from_records(config, errors, files, read)


def open_hf(config: SourceConfig, errors: str) -> Source:
    """Opens a folder that datasets' save_to_disk wrote, or one of data files."""
    folder = _folder(config, "a folder that save_to_disk wrote")
    hint = "Check --config.data.source.paths and --config.data.source.split."
    rows = open_datasets(folder, config.split, hint)

    def read(_: Tally) -> Iterator[Record]:
        return read_datasets(rows, str(folder), config.field)

    return _from_records(config, errors, _files_below(folder), read)


def open_prepared(config: SourceConfig, errors: str) -> Source:
    """Opens a tfds data set prepared as array_record in data_dir (paths)."""
    folder = _folder(config, "tfds' data_dir")
    prepared = open_tfds(folder, config.dataset, config.split, "data.source.dataset")

    def read(_: Tally) -> Iterator[Record]:
        return read_tfds(prepared, str(config.dataset), config.field, _decode_later)

    return _from_records(config, errors, _files_below(prepared.path), read)


# --- shared by all kinds


def _from_records(
    config: SourceConfig,
    errors: str,
    files: list[Path],
    read: Callable[[Tally], Iterable[Record]],
) -> Source:
    field = config.field

    def documents(tally: Tally) -> Iterator[str]:
        for record in read(tally):
            if config.kind == "jsonl":
                where = f"{record.file}:{record.line}"
                if field not in record.values:
                    raise no_field(where, field, record.values)
                where += f": field {field!r}"
            else:
                where = f"{record.file}: {field!r} of row {record.line - 1:,}"
            yield _document(record.values[field], where, errors, tally)

    digests = file_digests(files)
    return make_source(
        config,
        documents,
        content=[field, config.split, config.dataset, errors, digests],
        description={
            **describe_files(digests),
            "document": f"the field {field}",
        },
    )


def _folder(config: SourceConfig, what: str) -> Path:
    folder = Path(config.paths or "").expanduser()
    if not config.paths or not folder.is_dir():
        raise PlmjaxError(
            f"data.source.paths={config.paths!r} is not a folder (in {Path.cwd()}).",
            hint=f"For data.source.kind={config.kind} it is {what}; nothing is "
            "downloaded.",
        )
    return folder


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _decode(raw: bytes, where: str, errors: str, tally: Tally, of: str = "") -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise not_utf8(f"{where}: byte {error.start:,}{of}") from None
        text = raw.decode(errors="replace")
        tally.replaced_characters += text.count("\ufffd")
        return text


def _decode_later(raw: bytes, where: str) -> bytes:
    return raw  # _text decodes it, and can name the column in an error


def _document(value: Any, where: str, errors: str, tally: Tally) -> str:
    """The text of a field; if it is a list of sentences, each becomes one line."""
    if not isinstance(value, list):
        return _text(value, where, errors, tally)
    sentences = (
        _text(item, f"{where}, item {number}", errors, tally)
        for number, item in enumerate(value)
    )
    return "\n".join(LINE_ENDS.sub(" ", sentence) for sentence in sentences)


def _text(value: Any, where: str, errors: str, tally: Tally) -> str:
    """The value as text that UTF-8 can encode; JSON may have half a surrogate pair."""
    if isinstance(value, bytes):
        return _decode(value, where, errors, tally)
    if not isinstance(value, str):
        raise PlmjaxError(
            f"{where} is {type(value).__name__}, not text.",
            hint="Choose another --config.data.source.field, or fix the data.",
            code=Exit.DATA,
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
