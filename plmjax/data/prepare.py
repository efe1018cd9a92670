"""Tokenises documents once, into a store on disk whose key covers all its inputs."""

import errno
import glob
import hashlib
import itertools
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plmjax import DataError, Exit, PlmjaxError, counted
from plmjax.children import is_alive
from plmjax.data import quality
from plmjax.data.corpus import Source
from plmjax.data.parallel import ordered_map
from plmjax.data.sentences import VERSION, check_rule, split_sentences
from plmjax.data.store import (
    FORMAT,
    MANIFEST,
    SPLITS,
    UNIGRAM,
    Split,
    Store,
    offsets_file,
    open_store,
    sentences_file,
    starts_file,
    tokens_file,
)
from plmjax.files import digest, sync
from plmjax.machine import cores
from plmjax.tokenizers import Tokenizer

__all__ = ["Split", "Store", "open_store", "prepare", "store_key"]

BATCH_BYTES = 1_000_000  # of text that a worker receives at once
# A worker takes 2 s to start; the cache encodes 20 MB in that time.
PARALLEL_BYTES = 20 * BATCH_BYTES
SHARD_TOKENS = 1 << 25  # tokens buffered in memory before they are written: 100 MB


class Batch(NamedTuple):
    """Tokenised documents end to end, with the split of each."""

    tokens: np.ndarray  # [n] as stored
    starts: np.ndarray  # [n] bool
    lengths: np.ndarray  # [documents] int64
    sentences: np.ndarray  # [n] bool: a sentence begins here, or a document
    held_out: np.ndarray  # [documents] bool
    counted: quality.Counted


def store_key(
    source: Source,
    tokenizer: Tokenizer,
    held_out_percent: float,
    sentences: str | None = None,
) -> str:
    """Returns a name for the store that changes with every input of its content."""
    shape = [FORMAT, source.fingerprint, tokenizer.digest, float(held_out_percent)]
    if sentences is not None:  # keys of stores without sentences must not change
        shape += [sentences, VERSION]
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:24]


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    directory: str | Path,
    held_out_percent: float,
    workers: int | None = None,
    log: Callable[[str], Any] = print,
    sentences: str | None = None,
) -> Store:
    """Opens the store of source in directory/KEY, and creates it if it does not exist.

    Its files are the same for every number of workers (default: one per core if the
    text is large). `sentences` is the rule for the end of sentences; None: they are not
    stored. Raises PlmjaxError: code 3 for the data, 5 for the disk.
    """
    if not 0 < held_out_percent < 100:
        raise PlmjaxError(
            f"data.held_out_percent={held_out_percent} is not between 0 and 100.",
            hint="Give for example --config.data.held_out_percent=2.",
        )
    check_rule(sentences)
    directory = Path(directory)
    key = store_key(source, tokenizer, held_out_percent, sentences)
    final = directory / key
    if final.exists():
        store = open_store(final, verify=True)
        log(f"Prepared data found in {final}.")
        return store
    partial = directory / f".{key}.tmp-{this_run()}"
    try:
        _remove_leftovers(directory)
        shutil.rmtree(partial, ignore_errors=True)  # left by a dead run with our pid
        partial.mkdir(parents=True)
        shape = _Shape(tokenizer, held_out_percent, sentences)
        facts = _write(source, shape, partial, workers)
        manifest = {
            "format": FORMAT,
            "key": key,
            "held_out_percent": held_out_percent,
            "tokenizer": tokenizer.digest,
            "vocab_size": tokenizer.vocab_size,
            "sentences": sentences,
            "source": {"fingerprint": source.fingerprint, **source.description},
            **facts,
        }
        _write_manifest(partial, manifest)
        _publish(partial, final)
    except OSError as error:
        raise _disk_error(error, directory) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    counts = {name: manifest["splits"][name] for name in SPLITS}
    counted = ["documents", *(["sentences"] if sentences else []), "tokens"]
    log(
        f"Prepared data written to {final}: "
        + ", ".join(
            f"{name} " + ", ".join(f"{c[what]:,} {what}" for what in counted)
            for name, c in counts.items()
        )
        + "."
    )
    return open_store(final)


class _Shape(NamedTuple):
    """The settings that turn texts into the store's tokens."""

    tokenizer: Tokenizer
    held_out_percent: float
    sentences: str | None


def _write(
    source: Source, shape: _Shape, partial: Path, workers: int | None
) -> dict[str, Any]:
    stored = shape.sentences is not None
    writers = {name: _Writer(partial, name, stored) for name in SPLITS}
    unigram = np.zeros(shape.tokenizer.vocab_size, np.int64)
    empty, counts = 0, quality.Counts()
    for batch in _tokenise(source, shape, workers):
        counts.add(batch.counted)
        empty += int(np.count_nonzero(batch.lengths == 0))
        held_out_token = np.repeat(batch.held_out, batch.lengths)
        for name, writer in writers.items():
            held_out = name == "held_out"
            lengths = batch.lengths[batch.held_out == held_out]
            here = held_out_token == held_out
            writer.add(
                batch.tokens[here],
                batch.starts[here],
                lengths[lengths > 0],
                batch.sentences[here],
            )
        unigram += np.bincount(batch.tokens[~held_out_token], minlength=len(unigram))
    np.save(partial / UNIGRAM, unigram)
    splits = {name: writer.finish() for name, writer in writers.items()}
    facts = counts.facts(shape.tokenizer)
    _check_splits(splits, shape.held_out_percent, facts["distinct_documents"])
    return {"splits": splits, "empty_documents": empty, "quality": facts}


def _check_splits(
    splits: dict[str, dict[str, Any]], held_out_percent: float, distinct: int
) -> None:
    """Raises PlmjaxError for an empty split; `distinct` documents are no copies."""
    documents = sum(facts["documents"] for facts in splits.values())
    tokens = sum(facts["tokens"] for facts in splits.values())
    # With this share 5 documents are held out on average: none is then unlikely.
    percent = min(50, math.ceil(500 / max(distinct, 1)))
    larger = f"Set --config.data.held_out_percent={percent}, or give more"
    for name, facts in splits.items():
        if not facts["documents"]:
            raise DataError(
                f"The {name} split is empty: the text of {tokens:,} tokens is "
                f"{counted(documents, 'document')}"
                + f" ({distinct:,} distinct)"
                * (distinct < documents)
                + ", and all of it went to the other split "
                f"(data.held_out_percent={held_out_percent}).",
                hint=(larger if name == "held_out" and distinct > 1 else "Give more")
                + " documents (--config.data.source.document=line, blank or file says "
                "where one of a text ends).",
            )


# --- documents to batches, in this process or in others


def _tokenise(source: Source, shape: _Shape, workers: int | None) -> Iterator[Batch]:
    groups = _groups(source.documents(), BATCH_BYTES)
    first = list(itertools.islice(groups, PARALLEL_BYTES // BATCH_BYTES))
    if workers is None:
        workers = cores() if len(first) == PARALLEL_BYTES // BATCH_BYTES else 1
    yield from ordered_map(
        _tokenise_group,
        itertools.chain(first, groups),
        workers,
        _start_worker,
        (shape, workers > 1),
    )


def _groups(documents: Iterable[str], limit_characters: int) -> Iterator[list[str]]:
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document)
        if size >= limit_characters:
            yield group
            group, size = [], 0
    if group:
        yield group


def _start_worker(shape: _Shape, alone: bool) -> None:
    """Sets the global that _tokenise_group reads, once per process."""
    global _worker
    _worker = shape
    if alone:  # one thread per process: the processes already run in parallel
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


_worker: _Shape


def _tokenise_group(texts: list[str]) -> Batch:
    tokenizer, held_out_percent, rule = _worker
    sentences_of = [split_sentences(text, rule) if rule else [text] for text in texts]
    encoded = tokenizer.encode_batch(list(itertools.chain.from_iterable(sentences_of)))
    ends = np.concatenate([[0], np.cumsum(encoded.lengths)])
    sentences = np.zeros(len(encoded.tokens), bool)
    # A sentence without tokens has the begin of the next one, or the end: skip it.
    sentences[ends[:-1][encoded.lengths > 0]] = True
    ends_of_texts = ends[np.cumsum([0, *map(len, sentences_of)])]
    digests = [_digest(text) for text in texts]
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    return Batch(
        encoded.tokens.astype(dtype),
        encoded.word_start,
        np.diff(ends_of_texts),
        sentences,
        np.array([_is_below(digest, held_out_percent) for digest in digests]),
        counted=quality.count(texts, encoded, ends_of_texts, tokenizer.unk_id, digests),
    )


def is_held_out(text: str, percent: float) -> bool:
    """Whether a document is held out, by its text alone: other text has no effect."""
    return _is_below(_digest(text), percent)


def _digest(text: str) -> int:
    raw = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(raw, "big")


def _is_below(digest: int, percent: float) -> bool:
    return digest < percent / 100 * (1 << 64)


# --- batches to files


class _Writer:
    """Collects one split's tokens and writes them in shards of SHARD_TOKENS."""

    def __init__(self, directory: Path, split: str, sentences: bool):
        self._directory = directory
        self._split = split
        self._sentences: list[np.ndarray] | None = [] if sentences else None
        self._total = 0
        self._tokens: list[np.ndarray] = []
        self._starts: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._pending = 0
        self._shards = 0

    def add(
        self,
        tokens: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        sentences: np.ndarray,
    ) -> None:
        if self._sentences is not None:
            self._sentences.append(self._total + np.flatnonzero(sentences))
        self._total += len(tokens)
        self._tokens.append(tokens)
        self._starts.append(starts)
        self._lengths.append(lengths)
        self._pending += len(tokens)
        while self._pending >= SHARD_TOKENS:
            self._flush()

    def _flush(self) -> None:
        tokens, starts = np.concatenate(self._tokens), np.concatenate(self._starts)
        size = min(SHARD_TOKENS, len(tokens))
        np.save(self._directory / tokens_file(self._split, self._shards), tokens[:size])
        np.save(self._directory / starts_file(self._split, self._shards), starts[:size])
        self._tokens, self._starts = [tokens[size:]], [starts[size:]]
        self._pending = len(tokens) - size
        self._shards += 1

    def finish(self) -> dict[str, Any]:
        if self._pending:
            self._flush()
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        offsets = np.cumsum(lengths)
        np.save(self._directory / offsets_file(self._split), offsets)
        facts = {}
        if self._sentences is not None:
            begins = np.concatenate([*self._sentences, offsets[-1:]])
            np.save(self._directory / sentences_file(self._split), begins)
            facts["sentences"] = len(begins) - 1
        return {
            **facts,
            "documents": len(offsets) - 1,
            "tokens": int(offsets[-1]),
            "shards": self._shards,
            "shard_tokens": SHARD_TOKENS,
        }


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest, last, when every other file is on the disk."""
    files = sorted(folder.iterdir())
    for path in files:
        sync(path)
    digests = {path.name: digest(path) for path in files}
    manifest["files"] = {
        name: {"bytes": size, "sha256": sha} for name, (size, sha) in digests.items()
    }
    text = json.dumps(manifest, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def _publish(partial: Path, final: Path) -> None:
    try:
        partial.rename(final)
    except OSError as error:
        # Another run has written the same store meanwhile, with the same content.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    sync(final.parent)


def _remove_leftovers(directory: Path) -> None:
    """Removes partial stores of dead runs of this host; others cannot be checked."""
    host = this_run().rpartition("-")[0]
    for partial in directory.glob(f".*.tmp-{glob.escape(host)}-*"):
        pid = partial.name.rpartition("-")[2]
        if pid.isdecimal() and not is_alive(int(pid)):
            shutil.rmtree(partial, ignore_errors=True)


def this_run() -> str:
    """The name of this run: host and process id."""
    return f"{platform.node()}-{os.getpid()}"


def _disk_error(error: OSError, directory: Path) -> PlmjaxError:
    # numpy's error has no errno: "8164 requested and 3968 written".
    full = error.errno in (None, errno.ENOSPC, errno.EDQUOT)
    return PlmjaxError(
        f"The prepared data cannot be written to {directory}: "
        f"{error.strerror or error}.",
        hint="Free some space there." if full else "Check that it can be written to.",
        code=Exit.DISK,
    )
