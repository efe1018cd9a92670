"""Input texts for a trained model: the lines of a file, or a column of records."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plmjax import DataError, PlmjaxError
from plmjax.data.annotated import read_json
from plmjax.data.blocks import ending
from plmjax.data.corpus import file_digests, find_inputs
from plmjax.data.corpus_files import KINDS
from plmjax.data.records import (
    no_column,
    read_csv,
    read_parquet,
    read_text,
    read_tsv,
    text_of,
)

# Readers by kind of file. A .txt is read by lines.
READERS = {
    "csv": read_csv,
    "tsv": read_tsv,
    "jsonl": read_json,
    "parquet": read_parquet,
}


class Inputs(NamedTuple):
    """Texts in the order of the files' rows, and a SHA-256 of the files."""

    texts: list[str]
    digest: str


def read_inputs(paths: str, column: str) -> Inputs:
    """Reads the texts of comma-separated files and globs into memory.

    A text is a line of a .txt, even if empty, or the value of `column` of a record.

    Raises:
      PlmjaxError: no such file, an unknown ending (code 2), no text at all, or a record
        without text in `column`, by file and line (3).
    """
    files = find_inputs(paths, "--input")
    texts = [text for path in files for text in _texts(path, column)]
    if not texts:
        raise DataError(
            f"--input={paths} holds no texts.", hint="Give a file with at least one."
        )
    contents = [digest for _, _, digest in file_digests(files)]
    digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    return Inputs(texts, digest)


def given_texts(texts: list[str]) -> Inputs:
    """Returns texts that no file holds: options, or lines of standard input."""
    return Inputs(texts, hashlib.sha256(json.dumps(texts).encode()).hexdigest())


def lines_of(path: Path) -> list[str]:
    """Returns the lines of a text file, even empty ones, without their ends."""
    lines = read_text(path).split("\n")
    if not lines[-1]:  # the file ends with a newline
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _texts(path: Path, column: str) -> Iterator[str]:
    kind = KINDS.get(ending(path))
    if ending(path) == "txt":
        yield from lines_of(path)
        return
    if kind not in READERS:
        known = [name for name, kind in KINDS.items() if kind in READERS]
        raise PlmjaxError(
            f"--input: {path.name} has an unknown ending.",
            hint=f"Rename it: .txt has a text a line; {', '.join(known)} have "
            "records. Only .gz, .bz2, .xz or .zst may follow.",
        )
    for record in READERS[kind](path):
        where = f"{record.file}:{record.line}"
        if column not in record.values:
            raise no_column(where, column, "--column", [*record.values])
        yield text_of(record.values[column], where, column)
