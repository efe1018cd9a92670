"""Vocabularies side by side on a text: `plmjax tokenizer compare`."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from plmjax import PlmjaxError
from plmjax.console import as_lines, as_table
from plmjax.data.quality import SOME_UNKNOWN, why_unknown
from plmjax.data.sources import Source
from plmjax.experiments.budget import row_flops
from plmjax.pretrain import mixtures
from plmjax.report import figures
from plmjax.report.figures import COLOURS
from plmjax.tokenizers import Tokenizer, unknown_words
from plmjax.tokenizers.measure import (
    MOST_PIECES,
    measure,
    most_different,
    side_by_side,
    words_of,
)
from plmjax.workdir import RunConfig

Log = Callable[[str], Any]
Record = dict[str, Any]  # the figures of a vocabulary

_EVERY_SECONDS = 10.0  # between lines of progress
_SHOWN = 24  # pieces of an example
_FRAME = 2  # [CLS] and [SEP]
# What `compare` counts in: the cost of an epoch of BERT-base.
BERT_BASE = {"model": {"preset": "bert-base"}, "data": {"length": 512}}


def open_text(config: RunConfig) -> Source:
    """Opens the text of which a pretraining makes its vocabulary, as one source."""
    sources = mixtures.open_sources(config.data)
    first, *_ = sources.values()
    if not config.data.mixture:
        return first

    def documents() -> Iterator[str]:
        yield from mixtures.documents(config.data, sources)

    return dataclasses.replace(first, documents=documents, description={})


def counted(source: Source, log: Log) -> Iterator[str]:
    """Yields the documents, and logs their number now and then."""
    said, size, count = time.monotonic(), 0, 0
    of = source.description.get("bytes")
    share = f" of {of / 1e6:,.1f} MB" if of else ""
    for count, text in enumerate(source.documents(), 1):
        size += len(text)
        yield text
        if time.monotonic() - said > _EVERY_SECONDS:
            said = time.monotonic()
            log(f"Read: {count:,} documents, {size / 1e6:,.0f} M characters{share}.")
    log(f"Read: {count:,} documents, {size / 1e6:,.1f} M characters{share}.")


def example(tokenizer: Tokenizer, text: str) -> str:
    """Returns a line with the first pieces of a text."""
    ids = tokenizer.encode_batch([text[:1000]]).tokens[:_SHOWN].tolist()
    pieces = [str(tokenizer.backend.id_to_token(number)) for number in ids]
    return f"Pieces: {' '.join(pieces)} ..."


def open_vocabulary(path: str) -> Tokenizer:
    """Opens a file or folder of a vocabulary, or the one of a run.

    Raises:
      PlmjaxError: it does not exist, or is no tokenizer (code 4).
    """
    inside = Path(path) / "tokenizer"
    try:
        if not Path(path).exists():
            raise PlmjaxError(f"there is no vocabulary {path!r} (in {Path.cwd()}).")
        return Tokenizer.load(inside if inside.is_dir() else path)
    except PlmjaxError as error:
        error.hint = "Give a vocab.txt, a tokenizer.json, a SentencePiece model, a "
        error.hint += "folder with one of them, or a run's workdir."
        raise


# --- compare


def compare(
    named: Mapping[str, Tokenizer],
    texts: Sequence[str],
    words: Sequence[str],
    config: RunConfig,
    most: int = 10,
) -> dict[str, Any]:
    """Returns the figures of vocabularies on texts, and how they spell words.

    `words` are shown first, then the `most` that differ most. Rows and FLOPs are those
    of an epoch of `config` with each vocabulary.
    """
    records, seen = records_of(named, texts, config), words_of(texts)
    for record, tokenizer in zip(records, named.values(), strict=True):
        record["length"] = record["tokens"] / max(records[0]["tokens"], 1)
        if record["unknown_share"] > SOME_UNKNOWN:
            record["unknown"] = why_unknown(unknown_words(tokenizer, texts))[0]
    tokenizers = list(named.values())
    shown = [*words, *most_different(tokenizers, seen, most)]
    shown = list(dict.fromkeys(shown))
    spelt = side_by_side(tokenizers, shown)
    return {
        "vocabularies": records,
        "words": [
            {"word": word, "count": seen[word], "pieces": pieces}
            for word, pieces in zip(shown, spelt, strict=True)
        ],
        "row": config.data.shapes[0].length,
    }


def records_of(
    named: Mapping[str, Tokenizer], texts: Sequence[str], config: RunConfig
) -> list[Record]:
    """Returns the figures of vocabularies on texts.

    With them are the packed rows of an epoch, and the FLOPs of training on them.
    """
    records, words = [], words_of(texts)
    for name, tokenizer in named.items():
        record: Record = {"name": name} | measure(tokenizer, texts, words)
        tokens = record["tokens"] + _FRAME * len(texts)
        rows = math.ceil(tokens / config.data.shapes[0].length)
        flops = rows * row_flops(config, tokenizer.vocab_size)
        records.append(record | {"rows": rows, "flops": flops})
    return records


def compare_as_text(result: dict[str, Any]) -> str:
    """Returns the record of `compare` for the screen."""
    words = [words_table(result)] if result["words"] else []
    lines = [
        f"{record['name']} cannot write the text: {record['unknown']}"
        for record in result["vocabularies"]
        if "unknown" in record
    ]
    lines.append("FLOPs are those of BERT-base, trained on the text once in full rows.")
    return as_lines(screen(result), *words, *lines)


def screen(result: dict[str, Any]) -> Table:
    """Returns the figures of the vocabularies as a table: a column for each."""
    records = result["vocabularies"]
    first = records[0]
    lines = {
        "pieces": lambda r: f"{r['vocab_size']:,}",
        "tokens a word": lambda r: f"{r['tokens_per_word']:.3f}",
        "tokens a byte": lambda r: f"{r['tokens_per_byte']:.4f}",
        "tokens": lambda r: f"{r['tokens']:,}",
        "length against the first": lambda r: f"{r['length']:.1%}",
        f"rows of {result['row']}": lambda r: f"{r['rows']:,}",
        "FLOPs of an epoch": lambda r: f"{r['flops']:.3g}",
        "FLOPs against the first": lambda r: f"{r['flops'] / first['flops']:.1%}",
        "unknown tokens": lambda r: f"{r['unknown_share']:.2%}",
        "words kept whole": lambda r: f"{r['whole_words']:.1%}",
        "vocabulary in use": lambda r: f"{r['used_share']:.1%}",
        "Rényi efficiency": lambda r: f"{r['renyi_efficiency']:.3f}",
    }
    rows = [[name, *map(show, records)] for name, show in lines.items()]
    title = f"{first['documents']:,} documents, {first['words']:,} words"
    return as_table(title, ["", *(r["name"] for r in records)], rows)


def words_table(result: dict[str, Any]) -> Table:
    """Returns how the vocabularies spell words, with the numbers of pieces."""
    names = [record["name"] for record in result["vocabularies"]]
    rows = [
        [
            f"{line['word']} ({line['count']:,})",
            *(f"{len(p)}: {' '.join(p)}" if p else "[UNK]" for p in line["pieces"]),
        ]
        for line in result["words"]
    ]
    return as_table("Words (times in the text): pieces", ["", *names], rows)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws the words by their number of pieces, and the tokens a byte."""
    records = result["vocabularies"]
    with figures.png(path, (7, 6), rows=2) as (pieces, length):
        width = 0.8 / len(records)
        for number, record in enumerate(records):
            colour = COLOURS[number % len(COLOURS)]
            at = [n + number * width for n in range(1, MOST_PIECES + 1)]
            style = {"width": width, "color": colour, "label": record["name"]}
            pieces.bar(at, record["words_of_pieces"], **style)
            length.barh(record["name"], record["tokens_per_byte"], color=colour)
        ticks = [str(n) for n in range(1, MOST_PIECES)] + [f"{MOST_PIECES} or more"]
        middle = 0.4 - width / 2
        pieces.set_xticks([n + middle for n in range(1, MOST_PIECES + 1)], ticks)
        pieces.set_xlabel("pieces of a word")
        pieces.set_ylabel("share of the words")
        pieces.legend(frameon=False)
        length.invert_yaxis()
        length.set_xlabel("tokens a byte")
