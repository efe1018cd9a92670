"""Sources of documents: one function for each kind, all with the same interface."""

import codecs
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from plmjax import PlmjaxError
from plmjax.data.blocks import Decoding
from plmjax.data.corpus import (
    NoText,
    Source,
    SourceConfig,
    add_counts,
    check_encoding,
)
from plmjax.data.corpus_files import Corpus, find_corpus
from plmjax.data.docstrings import open_docstrings
from plmjax.data.tables import (
    open_hf,
    open_jsonl,
    open_parquet,
    open_prepared,
    open_separated,
)
from plmjax.data.text import ENDS, open_text
from plmjax.data.web import open_warc

__all__ = ["SOURCES", "Source", "SourceConfig", "open_source"]

SOURCES = {
    "docstrings": open_docstrings,
    "text": open_text,
    "jsonl": open_jsonl,
    "csv": open_separated,
    "tsv": open_separated,
    "parquet": open_parquet,
    "warc": open_warc,
    "hf": open_hf,
    "tfds": open_prepared,
}


def open_source(
    config: SourceConfig,
    errors: str = "strict",
    encoding: str = "utf-8",
    unchecked: bool = False,
) -> Source:
    """Opens the corpus that config names; its description has the kind if not given.

    `errors` (strict, replace) is for bytes that are not in the encoding. `unchecked`
    reads as text what looks like records.

    Raises PlmjaxError: code 2 for an error in the config, 3 for one in the data.
    """
    for key, value, known in (
        ("data.source.kind", config.kind, SOURCES),
        ("data.source.document", config.document, ENDS),
        ("data.errors", errors, ("strict", "replace")),
    ):
        if value is not None and value not in known:
            raise PlmjaxError(
                f"{key}={value!r} is not known.",
                hint=f"Choose one of {', '.join(known)}.",
            )
    check_encoding(encoding)
    kinds, notes = find_corpus(config)
    decoding = Decoding(codecs.lookup(encoding).name, errors)
    for key, given, having in (
        ("data.encoding", not decoding.is_utf8, ("text", "jsonl", "csv", "tsv")),
        ("data.source.column", config.column is not None, ("text",)),
        ("data.source.quoting", config.quoting is not None, ("csv", "tsv")),
        ("data.source.subset", config.subset is not None, ("hf",)),
        ("data.source.revision", config.revision is not None, ("hf",)),
    ):
        if given and not {*kinds} & {*having}:
            raise PlmjaxError(
                f"{key} is for {', '.join(having)}, not for data.source.kind="
                f"{next(iter(kinds))}.",
                hint=f"Leave out --config.{key}.",
            )
    sources, openings = [], []
    for kind, files in kinds.items():
        corpus = Corpus(files, decoding, notes, unchecked)
        opened = SOURCES[kind](dataclasses.replace(config, kind=kind), corpus)
        sources.append(opened)
        openings.append((opened.config, corpus))
    source = sources[0] if len(sources) == 1 else _chain([*kinds], sources)
    if notes:
        source.description["notes"] = notes
    return dataclasses.replace(source, openings=tuple(openings))


def part_of(openings: tuple, begin: int, end: int) -> Source:
    """Returns a part of a source, with `openings`: of its files from begin to end."""
    sources = []
    for config, corpus in openings:
        if files := corpus.files[max(begin, 0) : max(end, 0)]:
            some = corpus._replace(files=files, notes=[], unchecked=True)
            sources.append(SOURCES[config.kind](config, some))
        begin, end = begin - len(corpus.files), end - len(corpus.files)
    description: dict[str, Any] = {}
    return Source(_documents_of(sources, description), "", description)


def _documents_of(
    sources: list[Source], description: dict[str, Any]
) -> Callable[[], Iterator[str]]:
    def documents() -> Iterator[str]:
        for source in sources:
            with contextlib.suppress(NoText):
                yield from source.documents()
        counts = [source.description["counts"] for source in sources]
        description["counts"] = add_counts(counts)

    return documents


def _chain(kinds: list[str], sources: list[Source]) -> Source:
    """Returns the documents of several sources as those of one."""
    parts = [source.description for source in sources]
    description: dict[str, Any] = {
        "kind": " and ".join(kinds),
        "files": sum(part["files"] for part in parts),
        "bytes": sum(part["bytes"] for part in parts),
        "names": [name for part in parts for name in part["names"]][:20],
        "document": "; ".join(
            f"{kind}: {part['document']}"
            for kind, part in zip(kinds, parts, strict=True)
        ),
        "counts": {},
    }

    shape = [source.fingerprint for source in sources]
    fingerprint = hashlib.sha256(json.dumps(shape).encode()).hexdigest()
    return Source(_documents_of(sources, description), fingerprint, description)
