"""The files of a store, written in bounded memory: each array grows on the disk."""

import contextlib
import errno
import glob
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.children import is_alive
from plmjax.data.store import (
    FORMAT,
    MANIFEST,
    SPLITS,
    Split,
    offsets_file,
    sentences_file,
    starts_file,
    tokens_file,
)
from plmjax.files import digest, sync

SHARD_TOKENS = 1 << 25  # 100 MB
CHUNK = 1 << 20  # items of a mapped array that are in memory at once


class Growing:
    """A one-dimensional .npy file that grows, byte for byte as np.save writes it."""

    def __init__(self, path: Path, dtype: Any):
        self._file, self._dtype, self.size = open(path, "wb"), np.dtype(dtype), 0
        self._write_header()

    def _write_header(self) -> None:
        # numpy leaves room in it for any length.
        kind = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": kind, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: np.ndarray) -> None:
        """Writes values behind the others."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self.size += len(values)

    def close(self) -> None:
        """Completes the file; does nothing if it is complete."""
        if not self._file.closed:
            with self._file:
                self._file.seek(0)
                self._write_header()


class SplitWriter:
    """Writes one split's tokens in shards of SHARD_TOKENS; use it in a `with`."""

    def __init__(self, directory: Path, split: str, dtype: Any, sentences: bool):
        self._directory, self._split, self._dtype = directory, split, dtype
        self._open = contextlib.ExitStack()
        self._shard: tuple[Growing, Growing] | None = None
        self._shards = self.tokens = 0
        self._offsets = self._array(offsets_file(split), np.int64)
        self._offsets.append(np.zeros(1))
        self._sentences = (
            self._array(sentences_file(split), np.int64) if sentences else None
        )

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.close()

    def _array(self, name: str, dtype: Any) -> Growing:
        array = Growing(self._directory / name, dtype)
        self._open.callback(array.close)
        return array

    def add(
        self, tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray, begins: Any
    ) -> None:
        """Adds documents of at least one token: [n] tokens and their word starts.

        `ends` of documents and `begins` of sentences (or None) are positions in tokens.
        """
        self._add_positions(ends, begins)
        self._add_tokens(tokens, starts)

    def extend(self, split: Split) -> None:
        """Adds all of another store's split."""
        begins = split.sentences if split.sentences is None else split.sentences[:-1]
        self._add_positions(split.offsets[1:], begins)
        for tokens, starts in split.shards():
            self._add_tokens(tokens, starts)

    def _add_positions(self, ends: np.ndarray, begins: Any) -> None:
        for array, new in ((self._offsets, ends), (self._sentences, begins)):
            if array is not None:
                for some in chunks(new):
                    array.append(self.tokens + some)

    def _add_tokens(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        while len(tokens):
            if self._shard is None or self._shard[0].size == SHARD_TOKENS:
                for array in self._shard or ():
                    array.close()
                self._shard = (
                    self._array(tokens_file(self._split, self._shards), self._dtype),
                    self._array(starts_file(self._split, self._shards), bool),
                )
                self._shards += 1
            room = SHARD_TOKENS - self._shard[0].size
            self._shard[0].append(tokens[:room])
            self._shard[1].append(starts[:room])
            self.tokens += len(tokens[:room])
            tokens, starts = tokens[room:], starts[room:]

    def finish(self) -> dict[str, Any]:
        """Completes the files; returns the facts of the split for the manifest."""
        facts = {}
        if self._sentences:
            facts["sentences"] = self._sentences.size
            self._sentences.append(np.full(1, self.tokens))
        self._open.close()
        return {
            **facts,
            "documents": self._offsets.size - 1,
            "tokens": self.tokens,
            "shards": self._shards,
            "shard_tokens": SHARD_TOKENS,
        }


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yields an array in pieces of at most CHUNK items."""
    for at in range(0, len(array), CHUNK):
        yield array[at : at + CHUNK]


def join(
    folders: Sequence[Path], facts: Sequence[dict[str, Any]], to: Path
) -> dict[str, Any]:
    """Writes the splits of several folders one behind the other; returns their facts.

    `facts` are those of the splits of each folder.
    """
    splits = {}
    for name in SPLITS:
        parts = [Split(f, name, s[name]) for f, s in zip(folders, facts, strict=True)]
        dtype = next((tokens.dtype for p in parts for tokens, _ in p.shards()), int)
        with SplitWriter(to, name, dtype, "sentences" in facts[0][name]) as writer:
            for part in parts:
                writer.extend(part)
            splits[name] = writer.finish()
    return splits


@contextlib.contextmanager
def new_store(final: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields a folder and a manifest to fill, which then become the store `final`.

    Raises:
      PlmjaxError: the disk fails (code 5). Nothing is left then.
    """
    directory, key = final.parent, final.name
    partial = directory / f".{key}.tmp-{this_run()}"
    try:
        _remove_leftovers(directory)
        shutil.rmtree(partial, ignore_errors=True)  # left by a dead run with our pid
        partial.mkdir(parents=True)
        manifest: dict[str, Any] = {"format": FORMAT, "key": key}
        yield partial, manifest
        _write_manifest(partial, manifest)
        _publish(partial, final)
    except OSError as error:
        raise disk_error(error, directory) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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


def disk_error(error: OSError, directory: Path) -> PlmjaxError:
    """The error (code 5) for a store that cannot be written to a directory."""
    # numpy's error has no errno: "8164 requested and 3968 written".
    full = error.errno in (None, errno.ENOSPC, errno.EDQUOT)
    return PlmjaxError(
        f"The prepared data cannot be written to {directory}: "
        f"{error.strerror or error}.",
        hint="Free some space there." if full else "Check that it can be written to.",
        code=Exit.DISK,
    )
