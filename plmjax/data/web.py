"""Pages of a crawl in WARC or WET files; needs the extra `data`."""

import importlib
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from plmjax import PlmjaxError
from plmjax.data.archives import ERRORS, open_member
from plmjax.data.corpus import (
    Source,
    SourceConfig,
    Tally,
    describe_files,
    file_digests,
    make_source,
    unreadable,
)
from plmjax.data.corpus_files import Corpus


def open_warc(config: SourceConfig, corpus: Corpus) -> Source:
    """Opens the pages of WARC files: the main text of each, by trafilatura.

    A document is a response of HTML or plain text with status 200, or the text of a
    conversion record, which WET files have; other records are counted as empty.

    Raises:
      PlmjaxError: a package of the extra `data` is not installed (code 2).
    """
    archives, extract = _needs("warcio.archiveiterator"), _needs("trafilatura").extract

    def read(tally: Tally) -> Iterator[str]:
        for path in corpus.files:
            # warcio unpacks: each record of a .gz is packed by itself.
            with open_member(path) or open(path, "rb") as stream:
                try:
                    for record in archives.ArchiveIterator(stream):
                        text = _text(record, extract)
                        tally.empty_records += not text
                        yield text
                except (*ERRORS, archives.ArchiveLoadFailed) as error:
                    raise unreadable(path, error) from None

    digests, version = file_digests(corpus.files), metadata.version("trafilatura")
    corpus.notes.append(
        "WARC: a document is the main text of a page, without navigation, comments "
        f"and adverts, by trafilatura {version}; other records are counted as empty."
    )
    description = {**describe_files(digests), "document": "the main text of a page"}
    return make_source(config, read, [version, digests], description)


def _text(record: Any, extract: Any) -> str:
    """Returns the text of a record, or "" if it holds none."""
    http, kind = record.http_headers, "text/plain"
    if record.rec_type != "conversion":
        if record.rec_type != "response" or http is None:
            return ""
        if http.get_statuscode() != "200":
            return ""
        kind = str(http.get_header("Content-Type")).lower()
    if kind.startswith("text/plain"):
        return record.content_stream().read().decode(errors="replace")
    if not kind.startswith(("text/html", "application/xhtml")):
        return ""
    return extract(record.content_stream().read(), include_comments=False) or ""


def _needs(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise PlmjaxError(
            f"data.source.kind=warc needs the package {error.name}.",
            hint="pip install 'plmjax[data]'.",
        ) from None
