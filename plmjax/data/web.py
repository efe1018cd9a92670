"""Pages of a crawl in WARC or WET files; needs the extra `data`."""

from collections.abc import Iterator
from importlib import metadata
from typing import Any

from plmjax.data.blocks import open_bytes
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
from plmjax.machine import package

PAGE_BYTES = 1 << 24  # of a page; the rest of a longer one is not read


def open_warc(config: SourceConfig, corpus: Corpus) -> Source:
    """Opens the pages of WARC files: the main text of each, by trafilatura.

    A document is a response of HTML or plain text with status 200, or the text of a
    conversion record, which WET files have; other records are counted as empty.

    Raises:
      PlmjaxError: a package of the extra `data` is not installed (code 2).
    """
    archives = package("warcio.archiveiterator")
    extract = package("trafilatura").extract

    def read(tally: Tally) -> Iterator[str]:
        for path in corpus.files:
            with open_bytes(path) as stream:
                try:
                    for record in archives.ArchiveIterator(stream):
                        text = _text(record, extract)
                        tally.empty_records += not text
                        yield text
                    # warcio takes the place where a file is cut for its end.
                    stream.read(1)
                except Exception as error:  # of many classes, if a record is wrong
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
    page = record.content_stream()
    http, kind = record.http_headers, "text/plain"
    if record.rec_type != "conversion":
        if record.rec_type != "response" or http is None:
            return ""
        if http.get_statuscode() != "200":
            return ""
        kind = str(http.get_header("Content-Type")).lower()
    if kind.startswith("text/plain"):
        return page.read(PAGE_BYTES).decode(errors="replace")
    if not kind.startswith(("text/html", "application/xhtml")):
        return ""
    return extract(page.read(PAGE_BYTES), include_comments=False) or ""
