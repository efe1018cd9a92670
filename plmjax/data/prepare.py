"""Tokenises documents once, into a store on disk whose key covers all its inputs."""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plmjax import DataError, PlmjaxError, counted
from plmjax.data import quality
from plmjax.data.corpus import Source, add_counts
from plmjax.data.parallel import ordered_map
from plmjax.data.sentences import VERSION, check_rule, split_sentences
from plmjax.data.store import FORMAT, SPLITS, UNIGRAM, Split, Store, open_store
from plmjax.data.writing import Growing, SplitWriter, chunks, join, new_store
from plmjax.files import write_json
from plmjax.machine import cores
from plmjax.tokenizers import Tokenizer

__all__ = ["Split", "Store", "open_store", "prepare", "store_key"]

BATCH_BYTES = 1_000_000  # of text that a worker receives at once
# A worker takes 2 s to start; the cache encodes 20 MB in that time.
PARALLEL_BYTES = 20 * BATCH_BYTES
PART = "part.json"  # the facts of a part
DIGESTS = "digests.npy"  # of each document; not kept in the store
SORTED = 1 << 22  # digests that are sorted at once


class Batch(NamedTuple):
    """Tokenised documents end to end, with the split of each."""

    tokens: np.ndarray  # [n] as stored
    starts: np.ndarray  # [n] bool
    lengths: np.ndarray  # [documents] int64
    sentences: np.ndarray  # [n] bool: a sentence begins here, or a document
    held_out: np.ndarray  # [documents] bool
    digests: np.ndarray  # [documents] uint64
    counted: quality.Counted


class Shape(NamedTuple):
    """The settings that turn texts into the store's tokens."""

    tokenizer: Tokenizer
    held_out_percent: float
    sentences: str | None

    @property
    def dtype(self) -> type:
        """The type of the ids in the store."""
        return np.uint16 if self.tokenizer.vocab_size <= 1 << 16 else np.uint32


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
    tasks: Callable[..., Sequence[Path]] | None = None,
) -> Store:
    """Opens the store of source in directory/KEY, and creates it if it does not exist.

    Its files are the same for every number of workers (default: one per core if the
    text is large). `sentences` is the rule for the end of sentences; None: they are not
    stored. `tasks` (parts.py) writes its parts elsewhere.
    Raises PlmjaxError: code 3 for the data, 5 for the disk.
    """
    if not 0 < held_out_percent < 100:
        raise PlmjaxError(
            f"data.held_out_percent={held_out_percent} is not between 0 and 100.",
            hint="Give for example --config.data.held_out_percent=2.",
        )
    check_rule(sentences)
    shape = Shape(tokenizer, held_out_percent, sentences)
    key = store_key(source, *shape)
    final = Path(directory) / key
    if final.exists():
        store = open_store(final, verify=True)
        log(f"Prepared data found in {final}.")
        return store
    with new_store(final) as (partial, manifest):
        if tasks is None:
            folders, parts = [partial], [write_part(source, shape, partial, workers)]
            splits = parts[0]["splits"]
        else:
            write = functools.partial(_save_part, shape)
            folders = tasks(source, key, write, read_part)
            parts = [read_part(folder) for folder in folders]
            splits = join(folders, [part["splits"] for part in parts], partial)
            np.save(partial / UNIGRAM, sum(np.load(f / UNIGRAM) for f in folders))
        facts = _facts(shape, splits, parts, folders)
        source.description["counts"] = add_counts([part["read"] for part in parts])
        (partial / DIGESTS).unlink(missing_ok=True)
        manifest |= {
            "held_out_percent": held_out_percent,
            "tokenizer": tokenizer.digest,
            "vocab_size": tokenizer.vocab_size,
            "sentences": sentences,
            "source": {"fingerprint": source.fingerprint, **source.description},
            **facts,
        }
    if tasks is not None:
        shutil.rmtree(folders[0].parent, ignore_errors=True)
    log(f"Prepared data written to {final}: {sizes(splits)}.")
    return open_store(final)


def sizes(splits: dict[str, dict[str, Any]]) -> str:
    """Returns the sizes of a store's splits, for the log."""
    return ", ".join(
        f"{name} "
        + ", ".join(
            counted(splits[name][f"{what}s"], what)
            for what in ("document", "sentence", "token")
            if f"{what}s" in splits[name]
        )
        for name in SPLITS
    )


def write_part(
    source: Source, shape: Shape, folder: Path, workers: int | None
) -> dict[str, Any]:
    """Writes the tokens of a source, or of a part of one, into a folder.

    Returns its facts, ready for JSON: splits, empty documents, what was counted of the
    text, and what was read.
    """
    stored, empty, counts = shape.sentences is not None, 0, quality.Counts()
    unigram = np.zeros(shape.tokenizer.vocab_size, np.int64)
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(SplitWriter(folder, name, shape.dtype, stored))
            for name in SPLITS
        }
        digests = Growing(folder / DIGESTS, np.uint64)
        stack.callback(digests.close)
        for batch in _tokenise(source, shape, workers):
            counts.add(batch.counted)
            digests.append(batch.digests)
            empty += int(np.count_nonzero(batch.lengths == 0))
            held_out_token = np.repeat(batch.held_out, batch.lengths)
            for name, writer in writers.items():
                held_out = name == "held_out"
                lengths = batch.lengths[batch.held_out == held_out]
                here = held_out_token == held_out
                begins = np.flatnonzero(batch.sentences[here]) if stored else None
                ends = np.cumsum(lengths[lengths > 0])
                writer.add(batch.tokens[here], batch.starts[here], ends, begins)
            unigram += np.bincount(
                batch.tokens[~held_out_token], minlength=len(unigram)
            )
        splits = {name: writer.finish() for name, writer in writers.items()}
    np.save(folder / UNIGRAM, unigram)
    return {
        "splits": splits,
        "empty_documents": empty,
        "counted": counts.counted,
        "read": source.description["counts"],
    }


def _save_part(shape: Shape, source: Source, folder: Path) -> None:
    write_json(folder / PART, write_part(source, shape, folder, workers=1))


def read_part(folder: Path) -> dict[str, Any]:
    """Returns the facts that a task has written beside its part.

    Raises:
      PlmjaxError: they, or the files, are not complete (code 3).
    """
    try:
        facts = json.loads((folder / PART).read_text())
        splits = [Split(folder, name, facts["splits"][name]) for name in SPLITS]
        found = sum(split.documents for split in splits) + facts["empty_documents"]
        if not all(split.sizes_match() for split in splits):
            raise ValueError("its files have other sizes than were written")
        if not found == len(np.load(folder / DIGESTS)) == facts["read"]["documents"]:
            raise ValueError(f"it has {found:,} documents, not all that were read")
        return facts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is not a whole part: {error}.") from None


def _facts(
    shape: Shape, splits: dict, parts: list[dict], folders: Sequence[Path]
) -> dict[str, Any]:
    """Returns what the manifest has of the content of the parts."""
    counts = quality.Counts()
    for part in parts:
        counts.add(quality.Counted(*part["counted"]))
    digests = [np.load(folder / DIGESTS, mmap_mode="r") for folder in folders]
    documents, distinct = sum(map(len, digests)), count_distinct(digests)
    tokens = sum(split["tokens"] for split in splits.values())
    _check_splits(splits, shape.held_out_percent, distinct)
    return {
        "splits": splits,
        "empty_documents": sum(part["empty_documents"] for part in parts),
        "quality": counts.facts(shape.tokenizer, tokens, documents, distinct),
    }


def count_distinct(digests: Sequence[np.ndarray]) -> int:
    """Returns how many of the digests [documents] uint64 differ, in bounded memory."""
    rounds = np.uint64(1 + sum(map(len, digests)) // SORTED)
    count = 0
    for rest in range(int(rounds)):
        pieces = itertools.chain.from_iterable(map(chunks, digests))
        some = np.concatenate([piece[piece % rounds == rest] for piece in pieces])
        count += len(np.unique(some))
    return count


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


def _tokenise(source: Source, shape: Shape, workers: int | None) -> Iterator[Batch]:
    groups = _groups(source.documents(), BATCH_BYTES)
    if workers is None:
        first = list(itertools.islice(groups, PARALLEL_BYTES // BATCH_BYTES))
        workers = cores() if len(first) == PARALLEL_BYTES // BATCH_BYTES else 1
        groups = itertools.chain(first, groups)
        del first  # the chain drops it when it is read
    setup = (shape, workers > 1)
    yield from ordered_map(_tokenise_group, groups, workers, _start_worker, setup)


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


def _start_worker(shape: Shape, alone: bool) -> None:
    """Sets the global that _tokenise_group reads, once per process."""
    global _worker
    _worker = shape
    if alone:  # one thread per process: the processes already run in parallel
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


_worker: Shape


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
    return Batch(
        encoded.tokens.astype(_worker.dtype),
        encoded.word_start,
        np.diff(ends_of_texts),
        sentences,
        np.array([_is_below(digest, held_out_percent) for digest in digests]),
        digests=np.array(digests, np.uint64),
        counted=quality.count(texts, encoded, ends_of_texts, tokenizer.unk_id),
    )


def is_held_out(text: str, percent: float) -> bool:
    """Whether a document is held out, by its text alone: other text has no effect."""
    return _is_below(_digest(text), percent)


def _digest(text: str) -> int:
    raw = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(raw, "big")


def _is_below(digest: int, percent: float) -> bool:
    return digest < percent / 100 * (1 << 64)
