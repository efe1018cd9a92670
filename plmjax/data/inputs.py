"""Input texts for a trained model: the lines of a file, or a column of records."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plmjax import Exit, PlmjaxError
from plmjax.data.corpus import file_digests, find_inputs
from plmjax.data.records import (
    no_column,
    read_csv,
    read_jsonl,
    read_parquet,
    read_text,
    read_tsv,
    text_of,
)

# Readers by file ending, before an optional .gz. A .txt is read by lines.
READERS = {
    "csv": read_csv,
    "tsv": read_tsv,
    "tab": read_tsv,
    "jsonl": read_jsonl,
    "ndjson": read_jsonl,
    "json": read_jsonl,
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
      PlmjaxError: no such file, an unknown ending, no text at all (code 3), or a record
        without text in `column`, by file and line (3).
    """
    files = find_inputs(paths, "--input")
    texts = [text for path in files for text in _texts(path, column)]
    if not texts:
        raise PlmjaxError(
            f"--input={paths} holds no texts.",
            hint="Give a file with at least one.",
            code=Exit.DATA,
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
    ending = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if ending == "txt":
        yield from lines_of(path)
        return
    if ending not in READERS:
        raise PlmjaxError(
            f"--input: {path.name} has an unknown ending.",
            hint=f"Rename it: .txt has a text a line; {', '.join(READERS)} have "
            "records. Only .gz may follow.",
        )
    for record in READERS[ending](path):
        where = f"{record.file}:{record.line}"
        if column not in record.values:
            raise no_column(where, column, "--column", [*record.values])
        yield text_of(record.values[column], where, column)
