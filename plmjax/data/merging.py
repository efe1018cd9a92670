"""Stores one behind the other as one, and a look at every token of a store."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import DataError, PlmjaxError
from plmjax.data.corpus import add_counts
from plmjax.data.store import (
    FORMAT,
    QUALITY,
    SPLITS,
    UNIGRAM,
    Split,
    Store,
    again,
    offsets_file,
    sentences_file,
    starts_file,
    tokens_file,
)
from plmjax.data.writing import chunks, join, new_store

# What stores must have in common; without the first, ids mean other pieces.
_SAME = {
    "tokenizer": "tokenizer",
    "vocab_size": "tokenizer.vocab_size",
    "held_out_percent": "data.held_out_percent",
    "sentences": "data.sentences",
}


def merge(stores: Sequence[Store], directory: Path) -> str:
    """Writes directory/KEY with the documents of all stores in order; returns KEY.

    Documents that stand in two of them stay twice.

    Raises:
      PlmjaxError: the stores do not fit together, or are the same; the disk fails (5).
    """
    manifests, first = [store.manifest for store in stores], stores[0]
    for store in stores[1:]:
        for name, key in _SAME.items():
            if store.manifest[name] != first.manifest[name]:
                known = f" ({first.manifest[name]} and {store.manifest[name]})"
                raise DataError(
                    f"{store.directory} was prepared with another {key} than "
                    f"{first.directory}{known * (name != 'tokenizer')}.",
                    hint="Prepare its text again as that of the other.",
                )
    keys = [store.key for store in stores]
    if len({*keys}) < len(keys):
        raise PlmjaxError("A store is given twice.", hint="Give each once.")
    shape = json.dumps(["merged", FORMAT, keys])
    key = hashlib.sha256(shape.encode()).hexdigest()[:24]
    with new_store(directory / key) as (partial, manifest):
        folders = [store.directory for store in stores]
        splits = join(folders, [m["splits"] for m in manifests], partial)
        np.save(partial / UNIGRAM, np.sum([store.unigram for store in stores], axis=0))
        sources = [m["source"] for m in manifests]
        manifest |= {name: manifests[0][name] for name in _SAME} | {
            "source": {
                "fingerprint": hashlib.sha256(shape.encode()).hexdigest(),
                "kind": "stores",
                "document": "; ".join(
                    dict.fromkeys(str(source.get("document")) for source in sources)
                ),
                "stores": sources,
                "counts": add_counts([source["counts"] for source in sources]),
            },
            "splits": splits,
            "empty_documents": sum(m["empty_documents"] for m in manifests),
            **_quality(manifests),
        }
    return key


def _quality(manifests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the manifest's quality; nothing if a store of an older version has none.

    What is distinct is so in its own store.
    """
    if not all("quality" in manifest for manifest in manifests):
        return {}
    several = [manifest["quality"] for manifest in manifests]
    facts = {name: sum(one[name] for one in several) for name in QUALITY}
    for name in ("damaged", "unknown_words"):
        if some := [one[name] for one in several if name in one]:
            facts[name] = some[0]
    return {"quality": facts}


def verify(store: Store) -> dict[str, Any]:
    """Reads every token of a store; returns its sizes, ready for JSON.

    Raises:
      PlmjaxError: a file holds what no tokenizer of its vocabulary gives (code 3).
    """
    size = store.manifest["vocab_size"]
    unigram = np.zeros(size, np.int64)
    for name in SPLITS:
        split = store.split(name)
        _check_positions(store, offsets_file(name), split.offsets, split)
        if split.sentences is not None:
            _check_positions(store, sentences_file(name), split.sentences, split)
        for shard, (tokens, starts) in enumerate(split.shards()):
            for ids in chunks(tokens):
                if int(ids.max(initial=0)) >= size:
                    what = f"the id {ids.max():,}, but the vocabulary has {size:,}"
                    raise _wrong(store, tokens_file(name, shard), what)
                if name == "train":
                    unigram += np.bincount(ids, minlength=size)
            if starts.dtype != bool:
                raise _wrong(store, starts_file(name, shard), "no marks of words")
    if not np.array_equal(unigram, store.unigram):
        raise _wrong(store, UNIGRAM, "other counts than the train split")
    files = store.manifest["files"].values()
    return {
        "key": store.key,
        "files": len(files),
        "bytes": sum(file["bytes"] for file in files),
        "vocab_size": size,
        "splits": store.manifest["splits"],
    }


def _check_positions(
    store: Store, file: str, positions: np.ndarray, split: Split
) -> None:
    before = np.zeros(0, np.int64)
    for some in chunks(positions):
        both = np.concatenate([before, some])
        if (np.diff(both) <= 0).any() or (not len(before) and some[0] != 0):
            raise _wrong(store, file, "positions that do not ascend from 0")
        before = some[-1:]


def _wrong(store: Store, file: str, what: str) -> PlmjaxError:
    return DataError(
        f"{store.directory / file} holds {what}.",
        hint=again(store.directory),
    )
