"""Measures how fast `prepare` turns text into tokens."""

import dataclasses
import os
import statistics
import tempfile
import time
from typing import Any

from plmjax.data.prepare import prepare
from plmjax.data.sources import Source, SourceConfig, open_source
from plmjax.data.store import Store
from plmjax.tokenizers import Tokenizer, TokenizerConfig, get_tokenizer

HELD_OUT_PERCENT = 2.0


@dataclasses.dataclass(frozen=True)
class Case:
    """The documents that are prepared, and the tokenizer for them."""

    source: Source
    texts: list[str]
    tokenizer: Tokenizer

    @property
    def megabytes(self) -> float:
        """Size of the texts in UTF-8, in units of 10^6 bytes."""
        return sum(len(text.encode()) for text in self.texts) / 1e6

    def facts(self) -> dict[str, Any]:
        """Returns the sizes of the documents and of the tokenizer, ready for JSON."""
        return {
            "megabytes": round(self.megabytes, 2),
            "documents": len(self.texts),
            "kind": self.tokenizer.kind,
            "vocab_size": self.tokenizer.vocab_size,
        }

    def prepare(self, folder: str, workers: int) -> tuple[Store, float]:
        """Writes the store from a cold cache; returns it and the seconds taken."""
        fresh = Tokenizer(self.tokenizer.backend, self.tokenizer.specials)
        begin = time.perf_counter()
        store = prepare(
            self.source, fresh, folder, HELD_OUT_PERCENT, workers, log=lambda _: None
        )
        return store, time.perf_counter() - begin


def open_case(paths: str, tokenizer: TokenizerConfig | None = None) -> Case:
    """Reads text files; trains a tokenizer on them unless the config names one."""
    # One thread per process, as `datasets` does with several processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    source = open_source(SourceConfig(kind="text", paths=paths))
    texts = list(source.documents())
    config = TokenizerConfig() if tokenizer is None else tokenizer
    return Case(source, texts, get_tokenizer(config, texts))


def bench_prepare(
    paths: str,
    tokenizer: TokenizerConfig | None = None,
    rounds: int = 3,
    workers: int = 1,
) -> dict[str, Any]:
    """Returns the median MB/s of `prepare`, each round from a cold cache.

    benchmarks/prepare.py compares this with the usual Hugging Face pipeline.
    """
    case = open_case(paths, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        seconds = [case.prepare(f"{folder}/{i}", workers)[1] for i in range(rounds)]
    rate = case.megabytes / statistics.median(seconds)
    return {
        **case.facts(),
        "workers": workers,
        "rounds": rounds,
        "plmjax_mb_per_s": round(rate, 2),
    }


def as_text(result: dict[str, Any]) -> str:
    """Returns the result as readable lines."""
    return (
        f"{result['megabytes']} MB, {result['documents']:,} documents, "
        f"{result['kind']} of {result['vocab_size']:,}, processes {result['workers']}, "
        f"median of {result['rounds']}\n"
        f"  plmjax prepare               {result['plmjax_mb_per_s']:6.2f} MB/s"
    )
