"""Documents in one field of records: jsonl, csv, tsv, parquet, datasets and tfds.

A list of strings in the field becomes a document with one string on each line, so
that data.sentences=lines gives these sentences.
"""

import codecs
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plmjax import DataError, PlmjaxError
from plmjax.data.blocks import ending, invalid_utf8, raw_blocks
from plmjax.data.corpus import (
    LINE_ENDS,
    Source,
    SourceConfig,
    Tally,
    describe_files,
    file_digests,
    make_source,
    not_utf8,
)
from plmjax.data.corpus_files import Corpus, check_kind, sample, single_path
from plmjax.data.records import (
    Record,
    bad_data,
    find_separator,
    no_field,
    open_datasets,
    open_tfds,
    read_datasets,
    read_jsonl,
    read_parquet,
    read_table,
    read_tfds,
    reason_of,
)
from plmjax.data.text import text_blocks, text_lines

# Reads records, with all fields or, where that is cheaper, only the given one.
Read = Callable[[Tally, str | None], Iterable[Record]]


def open_jsonl(config: SourceConfig, corpus: Corpus) -> Source:
    """Opens files with one JSON object a line."""
    decoding = corpus.decoding
    for path in corpus.files:
        check_kind(path, "jsonl", decoding)

    def read(tally: Tally, _: str | None) -> Iterator[Record]:
        of = " of the line"
        decode = functools.partial(_decode, errors=decoding.errors, tally=tally, of=of)
        for path in corpus.files:
            begin = next(raw_blocks(path, decoding)).removeprefix(codecs.BOM_UTF8)
            tally.empty_files += not begin
            yield from read_jsonl(path, decode, decoding, tally)

    return _from_records(config, corpus, corpus.files, read)


def open_separated(config: SourceConfig, corpus: Corpus) -> Source:
    """Opens tables of csv or tsv with the columns' names in their first line."""
    usual = "," if config.kind == "csv" else "\t"
    separators: dict[Path, str] = {}
    for path in corpus.files:
        check_kind(path, str(config.kind), corpus.decoding)
        head = sample(path, corpus.decoding._replace(errors="replace"))
        separators[path] = find_separator(head, usual)
        if separators[path] != usual:
            corpus.notes.append(
                f"{path.name}: the separator is {separators[path]!r}, not {usual!r}."
            )

    def read(tally: Tally, _: str | None) -> Iterator[Record]:
        for path, separator in separators.items():
            lines = text_lines(text_blocks(path, corpus.decoding, tally))
            quoting = config.quoting
            plain = separator == "\t" if quoting is None else not quoting
            rows = read_table(path, lines, separator, plain=plain)
            for number, record in enumerate(rows):
                if number == 0:
                    _check_names(record)
                yield record

    return _from_records(config, corpus, corpus.files, read)


def _check_names(first: Record) -> None:
    """Raises PlmjaxError if the names above the first row look like another row."""
    for name in first.values:
        if len(name.split()) > 4 or name.isdecimal():
            raise bad_data(
                f"{first.file}:{first.line - 1}",
                f"{name[:60]!r} is data, where a column's name was expected.",
                "Add a first line with the columns' names; data.source.kind=text with "
                "data.source.column=2 reads a column of lines with tabs.",
            )


def open_parquet(config: SourceConfig, corpus: Corpus) -> Source:
    """Opens one column of parquet files, a document a row."""

    def read(_: Tally, field: str | None) -> Iterator[Record]:
        for path in corpus.files:
            yield from read_parquet(path, field, _decode_later)

    return _from_records(config, corpus, corpus.files, read)


def open_hf(config: SourceConfig, corpus: Corpus) -> Source:
    """Opens a folder that datasets' save_to_disk wrote, or one of data files.

    With data.source.dataset, it is the data set of that name, streamed from the hub.
    """
    if config.dataset is not None:
        return _open_hub(config, corpus)
    folder = _folder(config, "a folder that save_to_disk wrote")
    hint = (
        "Check --config.data.source.paths and --config.data.source.split; jsonl, csv "
        "and parquet, also compressed, are read with --config.data.source.kind=none."
    )
    tables = any(ending(path) in ("csv", "tsv") for path in folder.rglob("*"))
    # Else the texts "null" and "NA" would be missing values.
    options = {"keep_default_na": False} if tables else {}
    rows = open_datasets(folder, config.split, hint, **options)

    def read(_: Tally, field: str | None) -> Iterator[Record]:
        return read_datasets(rows, str(folder), field)

    return _from_records(config, corpus, _files_below(folder), read)


def _open_hub(config: SourceConfig, corpus: Corpus) -> Source:
    """Opens a data set of the Hugging Face hub, at the commit that it now has."""
    if config.paths:
        raise PlmjaxError(
            "data.source.dataset names a data set of the hub, and data.source.paths "
            "files.",
            hint="Give one of them.",
        )
    import datasets
    from huggingface_hub import HfApi

    name = f"the data set {config.dataset}"
    try:
        facts = HfApi().dataset_info(str(config.dataset), revision=config.revision)
        rows = datasets.load_dataset(
            str(config.dataset),
            config.subset,
            split=config.split,
            revision=facts.sha,
            streaming=True,
        )
    except Exception as error:  # of many classes, from the network on
        raise DataError(
            f"{name} (subset {config.subset}, split {config.split}) cannot be read "
            f"from the hub: {reason_of(error)}.",
            hint="Is there a network, and is the name right? Without one, give files: "
            "--config.data.source.paths.",
        ) from None
    config = dataclasses.replace(config, revision=facts.sha)
    corpus.notes.append(f"Streaming {name} at the commit {facts.sha}.")

    def read(_: Tally, field: str | None) -> Iterator[Record]:
        return read_datasets(rows, name, field)

    source = _from_records(config, corpus, [], read)
    known = {"dataset": config.dataset, "subset": config.subset, "commit": facts.sha}
    source.description.update({key: value for key, value in known.items() if value})
    return source


def open_prepared(config: SourceConfig, corpus: Corpus) -> Source:
    """Opens a tfds data set prepared as array_record in data_dir (paths)."""
    folder = _folder(config, "tfds' data_dir")
    prepared = open_tfds(folder, config.dataset, config.split, "data.source.dataset")

    def read(_: Tally, field: str | None) -> Iterator[Record]:
        return read_tfds(prepared, str(config.dataset), field, _decode_later)

    return _from_records(config, corpus, _files_below(prepared.path), read)


# --- the field with the text

ROWS = 200  # that decide which field it is
# Letters of scripts without blanks between words.
_NO_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u9fff]{8}")


def choose_field(rows: Sequence[Mapping[str, Any]], where: str) -> str:
    """Returns the field of a table's first rows that holds the text.

    It is "text" if there is one, else the only field with texts, else the only one.

    Raises:
      PlmjaxError: several fields hold texts, or none (code 3).
    """
    names = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    columns = {name: [row.get(name) for row in rows] for name in names}
    if "text" in columns:
        return "text"
    texts = [name for name in names if _is_text(columns[name])]
    if len(names) == 1 or len(texts) == 1:
        return (texts or names)[0]
    shown = []
    for name in (texts or names)[:20]:
        text = repr(next((v for v in columns[name] if v not in (None, "")), None))
        shown.append(f"{name} ({text if len(text) <= 40 else f'{text[:37]}...'})")
    count = f"{len(texts)} fields" if texts else "no field"
    raise DataError(
        f"{where} has no field 'text', and {count} that look{'s' * (not texts)} like "
        f"texts: {', '.join(shown)}.",
        hint="Set --config.data.source.field to the one to read.",
    )


def _is_text(values: Sequence[Any]) -> bool:
    """Whether most values are texts, not ids, numbers, dates, URLs or categories."""
    items = (value if isinstance(value, list) else [value] for value in values)
    texts = list(itertools.chain.from_iterable(items))
    texts = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in texts]
    texts = [text for text in texts if text is not None and text != ""]
    if not texts or not all(isinstance(text, str) for text in texts):
        return False
    categories = len(texts) >= 20 and len({*texts}) <= 0.1 * len(texts)
    return not categories and 2 * sum(map(_is_prose, texts)) > len(texts)


def _is_prose(text: str) -> bool:
    letters = sum(map(str.isalpha, text))
    words = text.split()
    prose = len(words) > 1 and 2 * letters > sum(map(len, words))
    return prose or _NO_BLANKS.search(text) is not None


# --- shared by all kinds


def _from_records(
    config: SourceConfig, corpus: Corpus, files: list[Path], read: Read
) -> Source:
    errors, field = corpus.decoding.errors, config.field
    if field is None:
        begin = list(itertools.islice(read(Tally(), None), ROWS))
        field = choose_field([r.values for r in begin], begin[0].file) if begin else ""

    def documents(tally: Tally) -> Iterator[str]:
        for record in read(tally, field):
            if config.kind in ("jsonl", "csv", "tsv"):
                where = f"{record.file}:{record.line}"
                if field not in record.values:
                    raise no_field(where, field, record.values)
                where += f": field {field!r}"
            else:
                where = f"{record.file}: {field!r} of row {record.line - 1:,}"
            value = record.values[field]
            if value is None or value in ("", b"", []):
                tally.empty_records += 1
            else:
                yield _document(value, where, errors, tally)

    digests = file_digests(files) if files else []
    content = [field, config.split, config.dataset, errors, digests]
    if not files and config.revision is not None:
        content += [config.subset, config.revision]
    changes: dict[str, Any] = corpus.decoding.changes
    if config.quoting is not None:
        changes = changes | {"quoting": config.quoting}
    if changes:
        content.append(changes)
    description = {**describe_files(digests), "document": f"the field {field}"}
    chosen = dataclasses.replace(config, field=field)
    return make_source(chosen, documents, content, description)


def _folder(config: SourceConfig, what: str) -> Path:
    folder = single_path(config)
    if folder is None or not folder.is_dir():
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
            where = f"{where}: byte {error.start:,}{of}"
            raise invalid_utf8(where, raw, error.start) from None
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
        raise DataError(
            f"{where} is {type(value).__name__}, not text.",
            hint="Choose another --config.data.source.field, or fix the data.",
        )
    try:
        value.encode()
        return value
    except UnicodeEncodeError:
        if errors == "strict":
            raise not_utf8(f"{where}: a surrogate character") from None
    clean = value.encode(errors="surrogatepass").decode(errors="replace")
    tally.replaced_characters += clean.count("\ufffd")
    return clean
