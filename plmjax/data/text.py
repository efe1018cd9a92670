"""Reads plain text files in bounded memory, whatever the length of their lines."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from plmjax import Exit, PlmjaxError
from plmjax.data.corpus import (
    Source,
    SourceConfig,
    Tally,
    cut,
    describe_files,
    file_digests,
    find_files,
    make_source,
    not_utf8,
    unreadable,
)

BLOCK_BYTES = 1 << 20
GZIP_RATIO = 200  # usual text has a ratio of 3 to 10; far above it is a gzip bomb
ENDS = {"line": re.compile("\n"), "blank": re.compile("\n[ \t]*\n"), "file": None}


def open_text(config: SourceConfig, errors: str) -> Source:
    """Opens text files; `errors` (strict, replace) is for invalid UTF-8.

    Raises:
      PlmjaxError: no file matches, or data.source.document is not known.
    """
    files = find_files(config.paths)
    digests = file_digests(files)
    if config.document is not None:
        document, reason = config.document, "given"
    else:
        document, reason = choose_document(files, errors)
    if document not in ENDS:
        raise PlmjaxError(
            f"data.source.document={document!r} is not known.",
            hint=f"Choose one of {', '.join(ENDS)}.",
        )

    def read(tally: Tally) -> Iterator[str]:
        for path in files:
            blocks = text_blocks(path, errors, tally)
            yield from split_documents(blocks, ENDS[document], config)

    return make_source(
        config,
        read,
        content=[document, errors, digests],
        description={**describe_files(digests), "document": document, "why": reason},
    )


def choose_document(files: list[Path], errors: str) -> tuple[str, str]:
    """Returns the likely end of a document (line, blank or file), and the reason."""
    sizes = [path.stat().st_size for path in files]
    if len(files) >= 100 and sum(sizes) < 100_000 * len(files):
        return "file", "many small files"
    for path in files:
        lines = next(text_blocks(path, errors, Tally()), "").split("\n")
        full = sum(bool(line.strip()) for line in lines)
        if full:
            blank = len(lines) - 1 - full
            if blank >= 0.01 * full and blank > 1:
                return "blank", f"blank lines between paragraphs in {path.name}"
            return "line", f"no blank lines between paragraphs in {path.name}"
    return "line", "no text found"


def split_documents(
    blocks: Iterable[str], end: re.Pattern | None, config: SourceConfig
) -> Iterator[str]:
    """Yields documents from the blocks of one file; a long one in several pieces."""
    remainder = ""
    for block in blocks:
        remainder += block
        if end is not None:
            *documents, remainder = end.split(remainder)
            yield from documents
        *pieces, remainder = cut(remainder, config.max_document_bytes)
        yield from pieces
    yield remainder


def text_blocks(path: Path, errors: str, tally: Tally) -> Iterator[str]:
    """Yields the file's text in blocks, without BOM, with "\\n" as line end."""
    utf8 = codecs.getincrementaldecoder("utf-8")(errors)
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0  # offset of the block in bytes
    for raw in raw_blocks(path):
        kept = len(utf8.getstate()[0])  # bytes of a character split between blocks
        try:
            text = utf8.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            byte = offset - kept + error.start
            wrong = f"byte {byte:,} (0x{error.object[error.start]:02x})"
            raise not_utf8(f"{path}: {wrong}") from None
        if errors == "replace":
            there = raw.count("\ufffd".encode())
            tally.replaced_characters += max(0, text.count("\ufffd") - there)
        text = newlines.decode(text, final=not raw)
        if offset == 0:
            text = text.removeprefix("\ufeff")
        if text:
            yield text
        offset += len(raw)
    tally.empty_files += offset == 0


def raw_blocks(path: Path) -> Iterator[bytes]:
    """Yields the file's bytes, unpacked if it ends in .gz, then an empty block."""
    size = 0
    try:
        with open_bytes(path) as stream:
            while raw := stream.read(BLOCK_BYTES):
                size += len(raw)
                _check_ratio(path, size)
                yield raw
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from None
    yield b""


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file for reading bytes, through gzip if its name ends in .gz."""
    if path.suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    return open(path, "rb")


def _check_ratio(path: Path, size: int) -> None:
    if path.suffix == ".gz" and size > GZIP_RATIO * max(path.stat().st_size, 1 << 20):
        raise PlmjaxError(
            f"{path} unpacks to more than {GZIP_RATIO} times its size.",
            hint="If that is right, unpack it by hand.",
            code=Exit.DATA,
        )
