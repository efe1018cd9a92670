"""Cleans a corpus: single documents, then lines and documents that repeat others.

Documents wait in a file beside the result, not in memory: that holds 64 bits for each
document and each of its lines, and 14 times 64 for its MinHash. The result is the same,
byte for byte, for any number of workers.
"""

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

from plmjax import DataError, PlmjaxError, counted
from plmjax.data.clean import STEPS, CleanConfig, Step, steps
from plmjax.data.corpus import Source, add_counts, file_digests, find_inputs
from plmjax.data.near_duplicates import (
    band_keys,
    near_duplicates,
    signature,
    text_hash,
)
from plmjax.data.parallel import ordered_map
from plmjax.data.rules import LIMITS, LINES
from plmjax.files import (
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
_EXAMPLES = 2  # of each rule
_EXCERPT, _BEFORE = 100, 30  # characters of an example; those before what changed
_EVERY_SECONDS = 10.0
MOST_DROPPED = 0.5  # of the documents; more is remarked on


class Event(NamedTuple):
    """What a step did to a document, with excerpts.

    `after` is the changed text, or the earlier document that a dropped one repeats.
    """

    step: str
    reason: str
    dropped: bool
    before: str
    after: str = ""


class Cleaned(NamedTuple):
    """A document after some steps; `kept` or dropped by the last of its events."""

    text: str
    kept: bool
    events: tuple[Event, ...] = ()


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
    against = find_inputs(config.against, "--against") if config.against else []
    given = [source.fingerprint, dataclasses.asdict(config)]
    given += file_digests(against) if against else []
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


def check_new(to: Path) -> None:
    """Raises PlmjaxError for a path that is a file, or a folder that is not empty."""
    with disk_errors(to):
        if to.is_dir() and not any(to.iterdir()):
            return
        if to.exists():
            raise PlmjaxError(
                f"--to={to} exists and is not empty.",
                hint="Choose a new folder, or remove it.",
            )


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


def excerpt(text: str, begin: int = 0) -> str:
    """Returns some characters of a text on one line."""
    begin = max(begin - _BEFORE, 0)
    return " ".join(text[begin : begin + _EXCERPT].split())


def _difference(old: str, new: str) -> tuple[str, str]:
    """Returns excerpts of two texts at their first difference."""
    pairs = enumerate(zip(old, new, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
    return excerpt(old, at), excerpt(new, at)


# --- what is repeated


class LineCounts:
    """In how many documents each line stands, by its hash."""

    def __init__(self) -> None:
        self.total = 0  # lines of documents, each once a document
        self._hashes = [np.zeros(0, np.uint64)]

    def add(self, text: str) -> None:
        """Counts the lines of a document, each once."""
        lines = {text_hash(line) for line in map(str.strip, text.split("\n")) if line}
        self.total += len(lines)
        self._hashes.append(np.fromiter(lines, np.uint64, len(lines)))

    def repeated(self, least: int) -> dict[int, int]:
        """Returns {hash: documents} of the lines in `least` documents or more."""
        hashes, counts = np.unique(np.concatenate(self._hashes), return_counts=True)
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
                events.append(events[-1]._replace(dropped=True))
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
    signed = [*sign_all(texts, workers, near)]
    hashes_D = np.array([key for key, _ in signed], np.uint64)
    numbers = np.arange(len(signed))
    if not len(signed):
        return Copies(numbers, numbers)
    _, first, inverse = np.unique(hashes_D, return_index=True, return_inverse=True)
    return Copies(
        first[inverse] if exact else numbers,
        near_duplicates(np.stack([keys_B for _, keys_B in signed]))
        if near
        else numbers,
    )


def sign_all(
    texts: Iterable[str], workers: int | None = None, near: bool = True
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each text's hash, and its band keys [B] if `near`, in order."""
    return mapped(_sign, texts, workers, (near,))


def _sign(texts: list[str], near: bool) -> list[tuple[int, np.ndarray]]:
    none = np.zeros(0, np.uint64)
    return [(text_hash(t), band_keys(signature(t) if near else none)) for t in texts]


def _without_copies(
    spool: Path, repeated: dict[int, int], copies: Copies
) -> Iterator[tuple[int, Cleaned]]:
    """Yields the numbered documents, with what repeats an earlier one as dropped."""
    # Of a few dropped ones, the first document is kept to be shown.
    shown = {
        int(first_D[i])
        for first_D in copies
        for i in np.flatnonzero(first_D != np.arange(len(first_D)))[:_EXAMPLES]
    }
    firsts: dict[int, str] = {}
    numbers: list[int] = []
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


# --- report


class Report:
    """Counts the events of all documents; `content` is ready for JSON."""

    def __init__(self, config: CleanConfig):
        self.content: dict[str, Any] = {
            "config": dataclasses.asdict(config),
            "documents": 0,
            "steps": {
                name: {"dropped": 0, "changed": 0, "rules": {}}
                for name in STEPS
                if name in config.steps
            },
        }

    def add(self, number: int, document: Cleaned, first: bool = False) -> None:
        """Counts what happened to a document, which `first` counts as read."""
        self.content["documents"] += first
        changed = set()
        for event in document.events:
            step = self.content["steps"][event.step]
            rules = event.reason.partition(":")[0].split(", ")
            which = "dropped" if event.dropped else "changed"
            if (event.step, which) not in changed:
                step[which] += 1
            changed.add((event.step, which))
            for rule in rules[:1] if event.dropped else rules:
                counts = step["rules"].setdefault(
                    rule, {"dropped": 0, "changed": 0, "examples": []}
                )
                counts[which] += 1
                if len(counts["examples"]) < _EXAMPLES:
                    example = {"document": number, **event._asdict()}
                    counts["examples"].append(example)

    def finish(self, source: Source, documents: int, characters: int) -> None:
        """Adds what is left, and remarks on steps that drop most of the documents.

        Raises:
          PlmjaxError: nothing is left.
        """
        total, remarks = self.content["documents"], []
        for name, step in self.content["steps"].items():
            if step["dropped"] > MOST_DROPPED * total:
                rules = step["rules"].items()
                rule, counts = max(rules, key=lambda item: item[1]["dropped"])
                hint = f"--without={rule} leaves it out."
                if rule not in (*LIMITS, *LINES):
                    hint = f"Is the step {name} meant for this text?"
                elif rule == "gopher-stop-words":
                    hint = f"It is for English; {hint}"
                elif rule == "gopher-words":
                    ends = source.description.get("document")
                    hint = f"A document is a {ends or 'record'} here; {hint}"
                remarks.append(
                    f"{name} dropped {step['dropped'] / total:.0%} of the documents, "
                    f"most by {rule} ({counts['dropped']:,}). {hint}"
                )
        if not documents:
            raise DataError(
                f"no document of {counted(total, 'document')} is left.",
                hint=" ".join(remarks) or "Choose fewer --steps.",
            )
        self.content |= {
            "kept": {"documents": documents, "characters": characters},
            "source": source.description,
            "remarks": remarks,
        }
