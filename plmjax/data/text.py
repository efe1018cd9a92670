"""Reads plain text files in bounded memory, whatever the length of their lines."""

import codecs
import dataclasses
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from plmjax import DataError, counted
from plmjax.data.archives import size_of
from plmjax.data.blocks import Decoding, invalid_utf8, raw_blocks
from plmjax.data.corpus import (
    Source,
    SourceConfig,
    Tally,
    cut,
    describe_files,
    file_digests,
    make_source,
)
from plmjax.data.corpus_files import Corpus, check_kind

ENDS = {"line": re.compile("\n"), "blank": re.compile("\n[ \t]*\n"), "file": None}
# A document of more lines on average is none: the blank lines are there by chance.
DOCUMENT_LINES = 1000


def open_text(config: SourceConfig, corpus: Corpus) -> Source:
    """Opens text files.

    Raises:
      PlmjaxError: the files hold records rather than text (code 3).
    """
    files, decoding = corpus.files, corpus.decoding
    if config.column is None and not corpus.unchecked:
        for path in files:
            check_kind(path, "text", decoding)
    survey = Survey()
    for path in files:
        survey.add(_columns(text_blocks(path, decoding, Tally()), config, path))
    if not corpus.unchecked:
        survey.check()
    digests = file_digests(files)
    document, reason = choose_document(files, survey)
    if config.document is not None:
        document, reason = config.document, "given"

    def read(tally: Tally) -> Iterator[str]:
        for path in files:
            blocks = _columns(text_blocks(path, decoding, tally), config, path)
            yield from split_documents(blocks, ENDS[document], config, tally)

    column = {} if config.column is None else {"column": config.column}
    changes: dict[str, Any] = decoding.changes | column
    return make_source(
        dataclasses.replace(config, document=document),
        read,
        # Without changes, as before these keys existed: stores keep their names.
        content=[document, decoding.errors, digests, *([changes] if changes else [])],
        description={
            **describe_files(digests),
            "lines": survey.lines,
            "blank_lines": survey.blank_lines,
            "document": document,
            "why": reason,
            **changes,
        },
    )


_GAP = re.compile("\n(?:[ \t]*\n)+")
_NUMBERED = re.compile("\n[ ]*[0-9]+[.:)]?\t")
_RECORD = re.compile(r'\n\{"[^"\n]*"[ ]*:')
_WRAPPED = re.compile("\n(?<=[\\w,;-]\n)[^\\W\\d_A-Z]")


@dataclasses.dataclass
class Survey:
    """Counts over all files: what is said of a text is said of all of it."""

    files: int = 0
    characters: int = 0
    lines: int = 0  # that are not blank
    blank_lines: int = 0  # between two lines that are not
    gaps: int = 0  # one or more blank lines in a row
    numbered: int = 0  # lines that begin with a number and a tab
    records: int = 0  # lines that begin as a JSON object
    wrapped: int = 0  # line breaks inside a sentence

    def add(self, blocks: Iterable[str]) -> None:
        """Counts the blocks of one file."""
        self.files += 1
        kept = ""  # the last character of the previous block, and blanks after it
        for block in blocks:
            text = kept + block
            body = (text if kept else text.lstrip(" \t\n")).rstrip(" \t\n")
            self.characters += len(block)
            if not body:
                continue
            gaps = _GAP.findall(body)
            blank = sum(gap.count("\n") - 1 for gap in gaps)
            self.gaps += len(gaps)
            self.blank_lines += blank
            self.lines += body.count("\n") - blank + (not kept)
            begins = body if kept else "\n" + body
            self.numbered += len(_NUMBERED.findall(begins))
            self.records += len(_RECORD.findall(begins))
            self.wrapped += len(_WRAPPED.findall(begins))
            kept = text[text.rindex(body[-1]) :]

    def check(self) -> None:
        """Raises PlmjaxError if most of the lines are numbered, or are JSON."""
        for count, what, option in (
            (self.numbered, "begin with a number and a tab", "column=2"),
            (self.records, "are JSON objects", "kind=jsonl"),
        ):
            if count >= 0.5 * self.lines and count > 1:
                raise DataError(
                    f"{count:,} of the {self.lines:,} lines of data.source.paths "
                    f"{what}, which would be learnt as text.",
                    hint=f"Set --config.data.source.{option}; --yes reads all as text.",
                )

    @property
    def is_wrapped(self) -> bool:
        """Whether most line breaks are inside sentences, at a usual width."""
        width = self.characters / max(self.lines, 1)
        return self.wrapped >= 0.5 * self.lines and 40 <= width <= 100

    def __str__(self) -> str:
        count = self.blank_lines
        blank = counted(count, "blank line") if count else "no blank lines"
        lines, files = counted(self.lines, "line"), counted(self.files, "file")
        return f"{blank} between {lines} in {files}"


def choose_document(files: list[Path], survey: Survey) -> tuple[str, str]:
    """Returns the likely end of a document (line, blank or file), and the reason."""
    sizes = [size_of(path) for path in files]
    if len(files) >= 100 and sum(sizes) < 100_000 * len(files):
        return "file", f"{len(files):,} small files"
    if not survey.lines:
        return "line", "no text found"
    often = survey.blank_lines >= 0.01 * survey.lines or survey.is_wrapped
    # A hundred documents: enough to hold some of them out.
    units = survey.gaps >= 100 and survey.lines <= DOCUMENT_LINES * survey.gaps
    reason = f"{survey}{', which are hard-wrapped' * survey.is_wrapped}"
    if survey.gaps > 1 and (often or units):
        return "blank", reason
    few = ", too few to end documents; data.source.document=blank uses them"
    return "line", reason + few * (survey.gaps > 0)


def split_documents(
    blocks: Iterable[str], end: re.Pattern | None, config: SourceConfig, tally: Tally
) -> Iterator[str]:
    """Yields documents from the blocks of one file; a long one in several pieces."""
    remainder, size = "", 0  # bytes of its document that are yielded already
    for block in blocks:
        remainder += block
        if end is not None:
            *documents, remainder = end.split(remainder)
            if documents:
                _count_long(size, documents[0], tally)
                size = 0
            yield from documents
        *pieces, remainder = cut(remainder, config.max_document_bytes)
        size += sum(len(piece.encode()) for piece in pieces)
        yield from pieces
    _count_long(size, remainder, tally)
    yield remainder


def _count_long(size: int, last: str, tally: Tally) -> None:
    """Counts a document of which `size` bytes were cut off before its last piece."""
    if size:
        size += len(last.encode())
        tally.cut_documents += 1
        tally.longest_document_bytes = max(tally.longest_document_bytes, size)


def text_blocks(path: Path, decoding: Decoding, tally: Tally) -> Iterator[str]:
    """Yields the file's text in blocks, without BOM, with "\\n" as line end."""
    utf8 = codecs.getincrementaldecoder("utf-8")(decoding.errors)
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0  # offset of the block in bytes
    for raw in raw_blocks(path, decoding, tally):
        kept = len(utf8.getstate()[0])  # bytes of a character split between blocks
        try:
            text = utf8.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            byte, value = offset - kept + error.start, error.object[error.start]
            where = f"{path}: byte {byte:,} (0x{value:02x})"
            raise invalid_utf8(where, error.object, error.start) from None
        if decoding.errors == "replace":
            there = raw.count("\ufffd".encode())
            tally.replaced_characters += max(0, text.count("\ufffd") - there)
        text = newlines.decode(text, final=not raw)
        if offset == 0:
            text = text.removeprefix("\ufeff")
        if text:
            yield text
        offset += len(raw)
    tally.empty_files += offset == 0


def text_lines(blocks: Iterable[str]) -> Iterator[str]:
    """Yields the lines of blocks, each with its newline."""
    begun: list[str] = []  # joined once: a line may be as long as the file
    for block in blocks:
        *lines, rest = block.split("\n")
        for line in lines:
            yield "".join([*begun, line, "\n"])
            begun = []
        begun.append(rest)
    if any(begun):
        yield "".join(begun)


def _columns(blocks: Iterable[str], config: SourceConfig, path: Path) -> Iterator[str]:
    """Yields the blocks, or of each line only the column data.source.column."""
    if config.column is None:
        yield from blocks
        return
    for number, line in enumerate(text_lines(blocks), 1):
        columns = line.rstrip("\n").split("\t")
        if line.strip() and len(columns) < config.column:
            raise DataError(
                f"{path}:{number} has {len(columns)} of the {config.column} columns, "
                "separated by tabs.",
                hint="Check --config.data.source.column, or fix the line.",
            )
        yield (columns[config.column - 1] if line.strip() else "") + "\n"
