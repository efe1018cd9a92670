"""Vocabularies trained, compared and chosen: `plmjax tokenizer`."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from plmjax.data.sources import Source, open_source
from plmjax.tokenizers import Tokenizer, train_tokenizer
from plmjax.workdir import RunConfig

_EVERY_SECONDS = 10.0  # between lines of progress
_SHOWN = 24  # pieces of an example


def open_text(config: RunConfig) -> Source:
    """Opens the text of a pretraining."""
    data = config.data
    return open_source(
        data.source, data.errors, data.encoding, unchecked=data.accept_warnings
    )


def train(config: RunConfig, source: Source, log: Callable[[str], Any]) -> Tokenizer:
    """Trains the vocabulary of a pretraining; says how far the text is read."""
    return train_tokenizer(config.tokenizer, _counted(source, log))


def _counted(source: Source, log: Callable[[str], Any]) -> Iterator[str]:
    """Yields the documents, and logs their number now and then."""
    said, size, count = time.monotonic(), 0, 0
    of = source.description.get("bytes")
    for count, text in enumerate(source.documents(), 1):
        size += len(text)
        yield text
        if time.monotonic() - said > _EVERY_SECONDS:
            said = time.monotonic()
            share = f" of {of / 1e6:,.0f} MB" if of else ""
            log(f"Read: {count:,} documents, {size / 1e6:,.0f} M characters{share}.")
    log(f"Read: {count:,} documents, {size / 1e6:,.1f} M characters. Training.")


def example(tokenizer: Tokenizer, text: str) -> str:
    """Returns a line with the first pieces of a text."""
    ids = tokenizer.encode_batch([text[:1000]]).tokens[:_SHOWN].tolist()
    pieces = [tokenizer.backend.id_to_token(number) for number in ids]
    return f"Pieces: {' '.join(pieces)} ..."
