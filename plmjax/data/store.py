"""The prepared store on disk, written by prepare and opened here for reading.

KEY/manifest.json           counts, dtypes, and bytes and SHA-256 of each file
KEY/unigram.npy             [V] int64, counts over the train split
KEY/SPLIT.offsets.npy       [documents + 1] int64, into the split's token stream
KEY/SPLIT.sentences.npy     [sentences + 1] int64, as offsets; only if requested
KEY/SPLIT.0000.tokens.npy   shard_tokens ids each, fewer in the last one
KEY/SPLIT.0000.starts.npy   bool: this token begins a word
"""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import DataError, PlmjaxError
from plmjax.files import digest

FORMAT = 1
SPLITS = ("train", "held_out")
MANIFEST = "manifest.json"
UNIGRAM = "unigram.npy"
# What is counted of all text, to judge it (quality.py).
QUALITY = (
    "characters",
    "words",
    "unknown_tokens",
    "replacement_characters",
    "all_documents",
    "distinct_documents",
)


def offsets_file(split: str) -> str:
    """Returns the file name of the positions at which documents begin."""
    return f"{split}.offsets.npy"


def sentences_file(split: str) -> str:
    """Returns the file name of the positions at which sentences begin."""
    return f"{split}.sentences.npy"


def tokens_file(split: str, shard: int) -> str:
    """Returns the file name of a shard's token ids."""
    return f"{split}.{shard:04d}.tokens.npy"


def starts_file(split: str, shard: int) -> str:
    """Returns the file name of a shard's marks of tokens that begin a word."""
    return f"{split}.{shard:04d}.starts.npy"


class Split:
    """One split's stream of tokens, in memory-mapped shards."""

    def __init__(self, directory: Path, name: str, facts: dict[str, Any]):
        self._recipe = (directory, name, facts)
        self.name = name
        self._shard_tokens = facts["shard_tokens"]
        self.documents: int = facts["documents"]
        self.tokens: int = facts["tokens"]
        self.offsets = _open_array(directory / offsets_file(name))
        # The begin of each sentence, and so of each document; None: not requested.
        self.sentences = (
            _open_array(directory / sentences_file(name))
            if "sentences" in facts
            else None
        )
        shards = range(facts["shards"])
        self._tokens = [_open_array(directory / tokens_file(name, i)) for i in shards]
        self._starts = [_open_array(directory / starts_file(name, i)) for i in shards]

    def __reduce__(self):
        return Split, self._recipe  # pickle would copy the content of a mapped array

    def sizes_match(self) -> bool:
        """Whether the arrays have the sizes that the manifest gives."""
        _, _, facts = self._recipe
        sizes = [len(tokens) for tokens in self._tokens]
        ends = [(self.offsets, self.documents)]
        if self.sentences is not None:
            ends.append((self.sentences, facts["sentences"]))
        return (
            sizes == [len(starts) for starts in self._starts]
            and sum(sizes) == self.tokens
            and all(size == self._shard_tokens for size in sizes[:-1])
            and all(len(x) == n + 1 and x[-1] == self.tokens for x, n in ends)
        )

    def shards(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (tokens as stored, word_start bool) of each shard, mapped."""
        return zip(self._tokens, self._starts, strict=True)

    def document(self, index: np.ndarray) -> np.ndarray:
        """The document, counted from 0, at each stream position."""
        return np.searchsorted(self.offsets, index, side="right") - 1

    def read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32, word_start bool) at stream positions of any shape, int64."""
        if len(self._tokens) == 1:
            return self._tokens[0][index].astype(np.int32), self._starts[0][index]
        tokens = np.empty(np.shape(index), np.int32)
        starts = np.empty(np.shape(index), bool)
        shards, indices = np.divmod(index, self._shard_tokens)
        for shard in np.unique(shards):
            here = shards == shard
            tokens[here] = self._tokens[shard][indices[here]]
            starts[here] = self._starts[shard][indices[here]]
        return tokens, starts


class Store:
    """A prepared corpus, read-only; open it with open_store."""

    parts: Mapping[str, "Store"] = {}  # the sources of a mixture (data/mixture.py)

    def __init__(self, directory: Path, manifest: dict[str, Any]):
        self.directory = directory
        self.manifest = manifest
        self.key: str = manifest["key"]

    def __reduce__(self):
        return Store, (self.directory, self.manifest)

    @functools.cached_property
    def unigram(self) -> np.ndarray:
        """[V] int64: the count of each token in the train split."""
        return np.load(self.directory / UNIGRAM)

    @functools.cache  # noqa: B019
    def split(self, name: str) -> Split:
        """The split train or held_out."""
        return Split(self.directory, name, self.manifest["splits"][name])


def open_store(directory: str | Path, verify: bool = False) -> Store:
    """Opens the store in directory; verify also compares the SHA-256 of every file.

    Raises PlmjaxError (code 3), which names the first missing or damaged file.
    """
    directory = Path(directory)
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        files, version = manifest["files"], manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(directory, MANIFEST, "missing or no manifest") from None
    if version != FORMAT:
        raise _damaged(directory, MANIFEST, f"of format {version}, not {FORMAT}")
    try:
        _check_manifest(directory, manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(directory, MANIFEST, f"not complete ({error})") from None
    for name, facts in files.items():
        path = directory / name
        if not path.is_file():
            raise _damaged(directory, name, "missing")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise _damaged(directory, name, f"{size:,} bytes, not {facts['bytes']:,}")
        if verify and digest(path)[1] != facts["sha256"]:
            raise _damaged(directory, name, "not as it was written (SHA-256 differs)")
    store = Store(directory, manifest)
    for name in SPLITS:
        try:
            matches = store.split(name).sizes_match()
        except (OSError, ValueError) as error:
            raise _damaged(directory, f"{name}.*", f"not an array ({error})") from None
        if not matches:
            raise _damaged(directory, MANIFEST, f"not of the size of the {name} split")
    return store


def _check_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Checks all manifest values that readers use, as no digest covers the manifest.

    Raises ValueError, or the error that a missing or mistyped value causes.
    """
    files = manifest["files"]
    for facts in files.values():
        if type(facts["bytes"]) is not int or not isinstance(facts["sha256"], str):
            raise ValueError("a file's size or digest is none")
    if manifest["key"] != directory.name:
        raise ValueError("its key is not the name of the directory")
    if not isinstance(manifest["source"]["counts"], dict):
        raise ValueError("nothing was counted")
    quality = manifest.get("quality", dict.fromkeys(QUALITY, 0))  # older: none
    for name in {*QUALITY, *quality}:
        if type(quality[name]) is not (int if name in QUALITY else str):
            raise ValueError(f"its {name} is none")
    for name in SPLITS:
        facts = manifest["splits"][name]
        numbers = ("documents", "tokens", "shards", "shard_tokens")
        if any(type(facts[what]) is not int or facts[what] < 0 for what in numbers):
            raise ValueError(f"the sizes of the {name} split are none")
        if facts["tokens"] > facts["shards"] * facts["shard_tokens"]:
            raise ValueError(f"the {name} split has no room for its tokens")
        wanted = [UNIGRAM, offsets_file(name)]
        if "sentences" in facts:
            wanted.append(sentences_file(name))
        for shard in range(min(facts["shards"], len(files) + 1)):
            wanted += [tokens_file(name, shard), starts_file(name, shard)]
        if missing := [file for file in wanted if file not in files]:
            raise ValueError(f"no {missing[0]}")


def _open_array(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def again(directory: Path) -> str:
    """Returns a hint for a damaged store; the text may be elsewhere."""
    return (
        "Copy it again from a whole one, or run `plmjax data prepare` again with its "
        f"text and config; first delete {directory}."
    )


def _damaged(directory: Path, name: str, reason: str) -> PlmjaxError:
    return DataError(
        f"The prepared data are damaged: {directory / name} is {reason}.",
        hint=again(directory),
    )
