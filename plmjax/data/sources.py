"""Sources of documents: one function for each kind, all with the same interface."""

import codecs
import dataclasses

from plmjax import PlmjaxError
from plmjax.data.blocks import Decoding
from plmjax.data.corpus import Source, SourceConfig, check_encoding
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

__all__ = ["SOURCES", "Source", "SourceConfig", "open_source"]

SOURCES = {
    "docstrings": open_docstrings,
    "text": open_text,
    "jsonl": open_jsonl,
    "csv": open_separated,
    "tsv": open_separated,
    "parquet": open_parquet,
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
    kind, files, notes = find_corpus(config)
    decoding = Decoding(codecs.lookup(encoding).name, errors)
    for key, given, kinds in (
        ("data.encoding", not decoding.is_utf8, ("text", "jsonl", "csv", "tsv")),
        ("data.source.column", config.column is not None, ("text",)),
    ):
        if given and kind not in kinds:
            raise PlmjaxError(
                f"{key} is for {', '.join(kinds)}, not for data.source.kind={kind}.",
                hint=f"Leave out --config.{key}.",
            )
    corpus = Corpus(files, decoding, notes, unchecked)
    source = SOURCES[kind](dataclasses.replace(config, kind=kind), corpus)
    if notes:
        source.description["notes"] = notes
    return source
