"""The shared part of all sources of documents: config, files and cleaning."""

import dataclasses
import glob
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from plmjax import DataError, PlmjaxError
from plmjax.config import Block, nearest, number
from plmjax.data.archives import container
from plmjax.files import did_you_mean, digest

RIGHTS = ("license", "rights", "url")  # keys of a source, for the model card
CLEANING = 1  # increase it when clean() changes: it is part of every fingerprint


@dataclasses.dataclass(frozen=True)
class SourceConfig(Block, prefix="data.source."):
    """The source of the documents."""

    # None: docstrings without paths, else the kind of the files, by name and content.
    kind: (
        Literal["docstrings", "text", "jsonl", "csv", "tsv", "parquet", "warc"]
        | Literal["hf", "tfds"]
        | None
    ) = None
    # Files, folders, archives and globs (also **), separated by commas; or a tuple.
    paths: str | tuple | None = None
    # text: the end of a document; None: chosen from the text, and logged.
    document: Literal["line", "blank", "file"] | None = None
    # text: the column, from 1, of lines whose columns are separated by tabs.
    column: int | None = number(None, at_least=1)
    # Records: the field with the text; None: text, or the only one that holds texts.
    field: str | None = None
    # csv, tsv: whether quotation marks enclose fields; None: in csv they do.
    quoting: bool | None = None
    split: str = "train"  # hf, tfds
    # Longer documents are cut at white space; a UTF-8 character has at most 4 bytes.
    max_document_bytes: int = number(1_000_000, at_least=4)
    # Only so many are read, the first ones (of each kind of files).
    max_documents: int | None = number(None, at_least=1)
    # tfds: its name, with paths as the data_dir; hf: its name on the hub, read from
    # there, with its subset (configuration) and revision (branch, tag or commit).
    dataset: str | None = None
    subset: str | None = None
    revision: str | None = None
    # For the model card: the text's licence, whose rights it is, where it is from.
    license: str | None = None
    rights: str | None = None
    url: str | None = None

    def __post_init__(self):
        super().__post_init__()
        given = self.paths if isinstance(self.paths, tuple) else (self.paths,)
        if any(isinstance(path, str) and not path.strip() for path in given):
            raise PlmjaxError(
                "data.source.paths has an empty path.",
                hint="Name files or folders (is a variable of the shell unset?); none "
                "at all: data.source.paths=none.",
            )
        if not isinstance(self.paths, tuple):
            return
        if not all(isinstance(path, str) for path in self.paths):
            raise PlmjaxError(f"data.source.paths={self.paths!r} must hold strings.")
        if not any("," in path or path != path.strip() for path in self.paths):
            # The usual form, so that both forms are the same config.
            object.__setattr__(self, "paths", ",".join(self.paths) or None)


@dataclasses.dataclass
class Tally:
    """Counts of one pass over the documents, updated during the pass."""

    documents: int = 0
    bytes: int = 0
    longest_document_bytes: int = 0  # before it is cut
    empty_files: int = 0
    empty_records: int = 0  # rows without text in the field
    cut_documents: int = 0
    replaced_characters: int = 0  # invalid bytes that became U+FFFD
    control_characters: int = 0  # removed by clean()


def add_counts(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Returns the tallies of several readings as if they were one."""
    return {
        name: (max if name.startswith("longest") else sum)(c[name] for c in counts)
        for name in counts[0]
    }


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus: each call of documents() yields all documents in the same order.

    fingerprint is a SHA-256 of everything that determines the documents. description
    can be written as JSON; its "counts" are those of the latest pass.
    """

    documents: Callable[[], Iterator[str]]
    fingerprint: str
    description: dict[str, Any]
    # With all that was chosen from the files; None for several kinds.
    config: SourceConfig | None = None
    # (config, corpus) of each kind: what opens parts of the corpus.
    openings: tuple = ()


class NoText(DataError):
    """The error for a source without text."""


def make_source(
    config: SourceConfig,
    read: Callable[[Tally], Iterator[str]],
    content: Any,
    description: dict[str, Any],
) -> Source:
    """Makes a source of the cleaned documents of read(tally).

    content is any JSON value that changes whenever the documents can change.
    """
    kind = config.kind or "docstrings"
    description = {"kind": kind, **description, "counts": {}}

    def documents() -> Iterator[str]:
        tally = Tally()
        try:
            for raw in itertools.islice(read(tally), config.max_documents):
                yield from _finish(raw, config.max_document_bytes, tally)
        finally:
            description["counts"] = dataclasses.asdict(tally)
        if not tally.documents:
            empty = f" (records: {tally.empty_records:,})" * (tally.empty_records > 0)
            header = ", below a line of column names" * (kind in ("csv", "tsv"))
            raise NoText(
                f"The corpus (data.source.kind={kind}, paths={config.paths}) is empty "
                f"or only white space{empty}.",
                hint=f"Give files that hold text{header}.",
            )

    shape = [kind, CLEANING, config.max_document_bytes, content]
    if config.max_documents is not None:  # else as before there was the key
        shape.append(config.max_documents)
    fingerprint = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
    return Source(documents, fingerprint, description, config)


def _finish(raw: str, limit: int, tally: Tally) -> Iterator[str]:
    pieces = list(cut(raw, limit))
    tally.cut_documents += len(pieces) > 1
    size = 0
    for piece in pieces:
        text, removed = clean(piece)
        tally.control_characters += removed
        if text:
            size += len(text.encode())
            tally.documents += 1
            yield text
    tally.bytes += size
    tally.longest_document_bytes = max(tally.longest_document_bytes, size)


# All control characters except tab and line breaks, as BERT's cleaner removes them.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
LINE_ENDS = re.compile("[\n\r\x0b\x0c\x85]+")  # after clean() these are newlines
_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85]")  # line breaks other than \n
_SUSPECT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # clean() acts on these


def clean(text: str) -> tuple[str, int]:
    """Replaces line breaks by newlines and removes other control characters.

    Returns the text without white space around it, and the number of removed
    characters.
    """
    if not _SUSPECT.search(text):  # nearly every document
        return text.strip(), 0
    text, removed = _CONTROLS.subn("", _BREAKS.sub("\n", text))
    return text.strip(), removed


def cut(text: str, limit: int) -> Iterator[str]:
    """Yields the text in pieces of at most limit bytes, cut at white space if any."""
    at = 0
    while (len(text) - at) * 4 > limit:  # a character has at most 4 bytes
        raw = text[at : at + limit].encode(errors="surrogatepass")
        if len(raw) <= limit and len(text) - at <= limit:
            break
        head = raw[:limit].decode(errors="ignore")
        blank = max(head.rfind(" "), head.rfind("\n"))
        # Without white space, cut anywhere, but take at least one character.
        end = blank + 1 if blank > 0 else max(len(head), 1)
        yield text[at : at + end]
        at += end
    yield text[at:]


def find_inputs(
    paths: str | tuple[str, ...],
    key: str,
    files_in: Callable[[Path], Sequence[Path]] | None = None,
) -> list[Path]:
    """Returns the files that match paths and globs, in their order.

    A string has commas between the paths, unless it is the name of one file. `key` is
    the config's name for `paths`, for error messages. `files_in` chooses the files of a
    folder; without it, folders are refused.

    Raises:
      PlmjaxError: `paths` is empty, or a pattern matches no file.
    """
    patterns = [*paths]
    if isinstance(paths, str):
        single = os.path.exists(os.path.expanduser(paths))
        patterns = [paths] if single else [path.strip() for path in paths.split(",")]
    patterns = [os.path.expanduser(pattern) for pattern in patterns if pattern]
    if not patterns:
        option = key if key.startswith("--") else f"--config.{key}"
        hint = f"Give it files and globs, comma between: {option}='texts/*.txt'."
        raise PlmjaxError(f"{key} is empty.", hint=hint)
    chosen: dict[Path, None] = {}
    for pattern in patterns:
        what, hint = "matches no file", did_you_mean(pattern)
        hint = hint or "Check the spelling, or give an absolute path."
        if os.path.isdir(pattern):
            if files_in is not None:
                chosen |= dict.fromkeys(files_in(Path(pattern)))
                continue
            what = "is a directory"
            hint = f"Name its files: {os.path.join(pattern, '*')!r}."
        exists = os.path.exists(pattern)  # even if its name looks like a glob
        matches = [pattern] if exists else sorted(glob.glob(pattern, recursive=True))
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if not files:
            message = f"{key}: {pattern!r} {what} (in {Path.cwd()})."
            raise PlmjaxError(message, hint=hint.rstrip())
        chosen |= dict.fromkeys(files)
    return list(chosen)


def relative_names(files: Sequence[Path]) -> list[str]:
    """Names relative to the deepest common folder, so that a corpus can be moved."""
    root = os.path.commonpath([path.absolute().parent for path in files])
    return [path.absolute().relative_to(root).as_posix() for path in files]


def file_digests(files: Sequence[Path]) -> list[list[Any]]:
    """[name, bytes, SHA-256] of each file, or archive of files."""
    rows, files = [], list(dict.fromkeys(map(container, files)))
    for name, path in zip(relative_names(files), files, strict=True):
        try:
            rows.append([name, *digest(path)])
        except OSError as error:
            raise unreadable(path, error) from None
    return rows


def describe_files(digests: list[list[Any]]) -> dict[str, Any]:
    """A summary of the files for the log and the model card, with the first names."""
    return {
        "files": len(digests),
        "bytes": sum(size for _, size, _ in digests),
        "names": [name for name, _, _ in digests[:20]],
    }


_DOCUMENTS = {
    "line": "a line",
    "blank": "the text between blank lines",
    "file": "a file",
}


def describe_source(text: dict[str, Any]) -> list[str]:
    """Returns lines for the log on a source, from its description."""
    why = f" ({text['why']})" if text.get("why") else ""
    document = _DOCUMENTS.get(str(text.get("document")), text.get("document"))
    line = f"Source: {text['kind']}; a document is {document}{why}."
    return [line, *text.get("notes", ())]


_ODD = {
    "replaced_characters": "Invalid bytes, replaced by U+FFFD",
    "control_characters": "Control characters, removed",
    "cut_documents": "Documents that were cut, as they are too long",
    "empty_files": "Empty files",
    "empty_records": "Records without text, left out",
}


def describe_counts(counts: Mapping[str, int]) -> list[str]:
    """Returns a line on each thing that a pass over a source has changed or skipped."""
    return [f"{what}: {counts[n]:,}." for n, what in _ODD.items() if counts.get(n)]


def unreadable(path: Path, error: Exception) -> PlmjaxError:
    """The error (code 3) for a file that cannot be read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return DataError(
        f"{path} cannot be read: {str(reason).rstrip('.')}.",
        hint="Fix the file or its permissions, or leave it out.",
    )


def not_utf8(where: str, guess: str = "") -> PlmjaxError:
    """The error (code 3) for invalid UTF-8.

    `where` is a file and a position; `guess` is a sentence on the likely encoding.
    """
    return DataError(
        f"{where} is not UTF-8.",
        hint=f"{guess}{'Or convert' if guess else 'Convert'} the file, or set "
        "--config.data.errors=replace.",
    )


def check_encoding(name: str) -> None:
    """Raises PlmjaxError if `name` is no encoding of text that Python knows."""
    try:
        "".encode(name)
    except (LookupError, UnicodeError):  # of encodings that are not of text
        known = ("utf-8", "utf-16", "latin-1", "cp1252", "cp1251", "koi8-r")
        known += ("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")
        raise PlmjaxError(
            f"data.encoding={name} is not known.", hint=nearest(name, known)
        ) from None
