"""Cleans a corpus: single documents, then lines and documents that repeat others.

Documents wait in a file beside the result, not in memory: that holds 64 bits for each
document and each of its lines, and 14 times 64 for its MinHash. The result is the same,
byte for byte, for any number of workers.
"""

import array
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plmjax import DataError, counted
from plmjax.data.clean import CleanConfig, Step, steps
from plmjax.data.clean_report import EXAMPLES, Cleaned, Event, Report, excerpt
from plmjax.data.corpus import Source, add_counts, file_digests, find_inputs
from plmjax.data.near_duplicates import (
    BANDS,
    band_keys,
    near_duplicates,
    signature,
    text_hash,
)
from plmjax.data.parallel import ordered_map
from plmjax.files import (
    check_new,
    disk_errors,
    missing,
    no_empty_directory,
    replacing,
    replacing_folder,
    write_json,
)
from plmjax.machine import cores

# Left out where a folder is read as a corpus, as all files about a corpus are.
REPORT = "manifest.json"
SHARD_CHARACTERS = 1 << 28
_GROUP = 1 << 20  # characters that a worker receives at once
_FEW_GROUPS = 8  # are not worth the start of workers
_EVERY_SECONDS = 10.0


def clean_corpus(
    source: Source,
    config: CleanConfig,
    to: Path,
    *,
    dropped: Path | None = None,
    workers: int | None = None,
    log: Callable[[str], Any] = print,
    tasks: Callable[..., Sequence[Path]] | None = None,
) -> dict[str, Any]:
    """Writes the cleaned documents to a new folder; returns the report, ready for JSON.

    The folder has .jsonl.gz files and the report. `dropped` gets the dropped documents
    as JSON lines, each with its number in the corpus, from 1, and the reason. `tasks`
    (parts.py) takes single documents through their steps elsewhere.

    Raises:
      PlmjaxError: nothing is left (code 3); the folder is not empty (2); the disk (5).
    """
    config.check()
    check_new(to)
    todo, report = steps(config), Report(config)
    with (
        _rejects(dropped) as reject,
        disk_errors(to),
        no_empty_directory(missing(to.parent)),
        replacing_folder(to) as folder,
    ):
        spool, line_counts = folder / ".spool", LineCounts()
        if tasks is None:
            folders, texts = [], source.documents()
            documents = mapped(clean_group, texts, workers, (todo,))
        else:
            write = functools.partial(_write_part, todo)
            folders = tasks(source, _key(source, config), write, _check_part)
            documents = _read_parts(source, folders)
        with open(spool, "w", encoding="utf-8") as file:
            for number, document in enumerate(_timed(documents, log), 1):
                report.add(number, document, first=True)
                if not document.kept:
                    reject(number, document)
                    continue
                if "lines" in config.steps:
                    line_counts.add(document.text)
                file.write(json.dumps([number, document.text]) + "\n")
        repeated = line_counts.repeated(config.line_documents)
        copies = _find_copies(spool, repeated, config, workers)
        with Writer(folder) as writer:
            for number, document in _without_copies(spool, repeated, copies):
                report.add(number, document)
                if document.kept:
                    writer.add(document.text)
                else:
                    reject(number, document)
        spool.unlink()
        report.finish(source, writer.documents, writer.characters)
        write_json(folder / REPORT, report.content)
    for part in folders[:1]:
        shutil.rmtree(part.parent, ignore_errors=True)
    return report.content


# --- the part of a task: a line for each document, and one for what was read


def _key(source: Source, config: CleanConfig) -> str:
    given = [source.fingerprint, dataclasses.asdict(config)]
    if config.against:
        given += file_digests(find_inputs(config.against, "--against"))
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:24]


def _write_part(todo: list[tuple[str, Step]], source: Source, folder: Path) -> None:
    with open(folder / "part", "w", encoding="utf-8") as file:
        for text in source.documents():
            file.write(json.dumps(clean_document(text, todo)) + "\n")
        file.write(json.dumps(source.description["counts"]) + "\n")


def _read_parts(source: Source, folders: Sequence[Path]) -> Iterator[Cleaned]:
    counts = []
    for folder in folders:
        with open(folder / "part", encoding="utf-8") as file:
            for values in map(json.loads, file):
                if isinstance(values, dict):
                    counts.append(values)
                    continue
                text, kept, events = values
                yield Cleaned(text, kept, tuple(Event(*event) for event in events))
    source.description["counts"] = add_counts(counts)


def _check_part(folder: Path) -> None:
    """Raises PlmjaxError unless a part has as many documents as were read."""
    count, last = 0, "{}"
    try:
        with open(folder / "part", encoding="utf-8") as file:
            for count, last in enumerate(file):  # noqa: B007
                pass
        if json.loads(last)["documents"] != count:
            raise ValueError("documents are missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is not a whole part: {error}.") from None


class Writer:
    """Writes documents as JSON lines, in numbered files of SHARD_CHARACTERS each."""

    def __init__(self, folder: Path):
        self.documents = self.characters = self._shards = self._room = 0
        self._folder, self._file = folder, None

    def add(self, text: str) -> None:
        """Writes a document."""
        if self._room <= 0:
            self.__exit__()
            path = self._folder / f"{self._shards:05d}.jsonl.gz"
            # Without a time: the same content has the same bytes.
            self._file = gzip.GzipFile(path, "wb", 6, mtime=0)
            self._shards, self._room = self._shards + 1, SHARD_CHARACTERS
        assert self._file is not None
        self._file.write(_json_line({"text": text}))
        self._room -= len(text)
        self.documents += 1
        self.characters += len(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._file is not None:
            self._file.close()


def _json_line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace") + b"\n"


@contextlib.contextmanager
def _rejects(path: Path | None) -> Iterator[Callable[[int, Cleaned], None]]:
    """Yields a function that writes a dropped document, with its number, to a file."""
    if path is None:
        yield lambda number, document: None
        return
    with disk_errors(path), replacing(path) as raw:
        packed = path.suffix == ".gz"
        file = gzip.GzipFile("", "wb", 6, raw, mtime=0) if packed else raw

        def reject(number: int, document: Cleaned) -> None:
            _, reason, *_ = document.events[-1]
            values = {"document": number, "reason": reason, "text": document.text}
            file.write(_json_line(values))

        yield reject
        if packed:
            file.close()


def _timed(items: Iterable[Any], log: Callable[[str], Any]) -> Iterator[Any]:
    """Yields the items, and logs their number now and then."""
    began = shown = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown > _EVERY_SECONDS:
            log(f"{counted(number, 'document')} in {now - began:.0f} s ...")
            shown = now


# --- single documents, in this process or in others


def mapped(
    function: Callable[..., list[Any]],
    documents: Iterable[str],
    workers: int | None,
    setup: tuple[Any, ...] = (),
) -> Iterator[Any]:
    """Yields what function(texts, *setup) returns of all documents, in their order."""
    groups = _in_groups(documents)
    first = list(itertools.islice(groups, _FEW_GROUPS))
    if workers is None:
        workers = cores() if len(first) == _FEW_GROUPS else 1
    several = itertools.chain(first, groups)
    for results in ordered_map(_work, several, workers, _start, (function, setup)):
        yield from results


def _in_groups(documents: Iterable[str]) -> Iterator[list[str]]:
    size = 0

    def group_of(text: str) -> int:
        nonlocal size
        size += len(text)
        return size // _GROUP

    for _, group in itertools.groupby(documents, group_of):
        yield list(group)


def _start(function: Callable[..., list[Any]], setup: tuple[Any, ...]) -> None:
    """Sets the global that _work reads, once per process."""
    global _job
    _job = function, setup


_job: tuple[Callable[..., list[Any]], tuple[Any, ...]]


def _work(texts: list[str]) -> list[Any]:
    function, setup = _job
    return function(texts, *setup)


def clean_group(texts: list[str], todo: list[tuple[str, Step]]) -> list[Cleaned]:
    """Takes documents through the steps of `plmjax.data.clean.steps`."""
    return [clean_document(text, todo) for text in texts]


def clean_document(text: str, todo: list[tuple[str, Step]]) -> Cleaned:
    """Takes a document through steps, by name, until one drops it."""
    events = []
    for name, step in todo:
        new, reason = step(text)
        if new is None:
            events.append(Event(name, reason, True, excerpt(text)))
            return Cleaned(text, False, tuple(events))
        if new != text:
            events.append(Event(name, reason, False, *_difference(text, new)))
        text = new
    return Cleaned(text, True, tuple(events))


def _difference(old: str, new: str) -> tuple[str, str]:
    """Returns excerpts of two texts at their first difference."""
    pairs = enumerate(zip(old, new, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
    return excerpt(old, at), excerpt(new, at)


# --- what is repeated


class LineCounts:
    """In how many documents each line stands, by its hash."""

    def __init__(self) -> None:
        self._hashes = array.array("Q")

    def add(self, text: str) -> None:
        """Counts the lines of a document, each once."""
        lines = filter(None, map(str.strip, text.split("\n")))
        self._hashes.extend({*map(text_hash, lines)})

    def __len__(self) -> int:
        return len(self._hashes)

    def repeated(self, least: int) -> dict[int, int]:
        """Returns {hash: documents} of the lines in `least` documents or more."""
        all_hashes = np.array(self._hashes, np.uint64)
        hashes, counts = np.unique(all_hashes, return_counts=True)
        often = counts >= least
        return dict(zip(hashes[often].tolist(), counts[often].tolist(), strict=True))


def _without_lines(
    spool: Path, repeated: dict[int, int]
) -> Iterator[tuple[int, Cleaned]]:
    """Yields the numbered documents without the lines that an earlier one has."""
    seen: set[int] = set()
    with open(spool, encoding="utf-8") as file:
        for number, text in map(json.loads, file):
            events, kept, here = [], [], set()
            for line in text.split("\n") if repeated else ():
                key = text_hash(line.strip())
                if key in seen:
                    reason = f"lines: in {repeated[key]:,} documents"
                    events.append(Event("lines", reason, False, excerpt(line)))
                    continue
                kept.append(line)
                if key in repeated:
                    here.add(key)
            seen |= here
            text = "\n".join(kept).strip() if events else text
            if not text:
                events = [events[-1]._replace(dropped=True)]
            yield number, Cleaned(text, bool(text), tuple(events))


class Copies(NamedTuple):
    """For each document with a text after `lines`: the first with the same, [D]."""

    exact: np.ndarray
    near: np.ndarray


def _find_copies(
    spool: Path, repeated: dict[int, int], config: CleanConfig, workers: int | None
) -> Copies:
    """Returns the copies and near-duplicates; without these steps each is the first."""
    texts = (d.text for _, d in _without_lines(spool, repeated) if d.kept)
    exact, near = "exact" in config.steps, "near" in config.steps
    if not exact and not near:
        count = sum(1 for _ in texts)
        return Copies(np.arange(count), np.arange(count))
    hashes_D, keys_DB = sign_all(texts, workers, near)
    numbers = np.arange(len(hashes_D))
    _, first, inverse = np.unique(hashes_D, return_index=True, return_inverse=True)
    return Copies(
        first[inverse] if exact else numbers,
        near_duplicates(keys_DB) if near else numbers,
    )


def sign_all(
    texts: Iterable[str], workers: int | None = None, near: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes of texts, uint64 [D], and their keys [D, B], if `near`."""
    parts = [(np.zeros(0, np.uint64), np.zeros((0, BANDS), np.uint64))]
    parts += mapped(_sign, texts, workers, (near,))
    hashes, keys = zip(*parts, strict=True)
    return np.concatenate(hashes), np.concatenate(keys)


def _sign(texts: list[str], near: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the hashes and keys of a group of texts; a list of one, for `mapped`."""
    hashes = np.array([text_hash(text) for text in texts], np.uint64)
    none = np.zeros(0, np.uint64)
    keys = [band_keys(signature(text) if near else none) for text in texts]
    return [(hashes, np.stack(keys))]


def _without_copies(
    spool: Path, repeated: dict[int, int], copies: Copies
) -> Iterator[tuple[int, Cleaned]]:
    """Yields the numbered documents, with what repeats an earlier one as dropped."""
    # Of a few dropped ones, the first document is kept to be shown.
    shown = {
        int(first_D[i])
        for first_D in copies
        for i in np.flatnonzero(first_D != np.arange(len(first_D)))[:EXAMPLES]
    }
    firsts: dict[int, str] = {}
    numbers = array.array("q")
    for number, document in _without_lines(spool, repeated):
        if not document.kept:
            yield number, document
            continue
        index, text = len(numbers), document.text
        numbers.append(number)
        if index in shown:
            firsts[index] = text
        for name, first_D in zip(("exact", "near"), copies, strict=True):
            first = int(first_D[index])
            if first != index:
                pair = excerpt(text), ""
                if first in firsts:
                    pair = _difference(text, firsts[first])
                reason = f"{name}: as document {numbers[first]:,}"
                event = Event(name, reason, True, *pair)
                document = Cleaned(text, False, (*document.events, event))
                break
        yield number, document
