"""Measures a text as a model would read it, and says what looks wrong."""

import collections
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from plmjax import PlmjaxError
from plmjax.data import quality
from plmjax.data.clean import SURE, identifier, language_of
from plmjax.data.clean_corpus import LineCounts, mapped, sign_all
from plmjax.data.clean_report import excerpt
from plmjax.data.corpus import Source, describe_counts
from plmjax.data.near_duplicates import near_duplicates, text_hash
from plmjax.data.packing import pack
from plmjax.data.prepare import count_distinct
from plmjax.data.rows import split_documents
from plmjax.tokenizers import Tokenizer, TokenizerConfig, describe, get_tokenizer
from plmjax.tokenizers.train import sample_documents

LENGTHS = (128, 512, 2048)  # of rows, in tokens
MASKED = 0.15  # of a row; a longer word is never masked
SAMPLE_BYTES = 8_000_000  # for a vocabulary, languages and rows
VOCABULARY = 8192
PACKED_DOCUMENTS = 1_000_000  # of more, the first are packed
NEAR_CHARACTERS = 64_000_000  # of the text in which near-duplicates are looked for
LANGUAGE_DOCUMENTS = 1000
LINE_DOCUMENTS = 10  # a line in so many is repeated
_SHOWN_ROWS, _SHOWN_TOKENS, _SHOWN_LINES = 3, 40, 5
SOME = 0.01  # of tokens, lines or documents; fewer are not remarked on
MOST_NEAR = 0.05
# UTF-8 read as Latin-1 or Windows-1252: é becomes Ã©, ’ becomes â€™.
_MOJIBAKE = re.compile("[ÂÃ][\x80-\xbf\u0152-\u2122]|â€[\x80-\xbf\u0152-\u2122]")


class Figures(NamedTuple):
    """What a group of documents holds; D documents, V pieces of the vocabulary."""

    lengths_D: np.ndarray
    digests_D: np.ndarray
    counted: quality.Counted
    unigram_V: np.ndarray
    bytes: int
    characters: collections.Counter[str]
    too_long: np.ndarray  # tokens in words longer than MASKED of each of LENGTHS
    mojibake: list[str]  # an excerpt of each document with some


def measure(texts: list[str], tokenizer: Tokenizer) -> list[Figures]:
    """Measures some documents; a list of one, for `mapped`."""
    encoded = tokenizer.encode_batch(texts)
    ends = np.concatenate([[0], np.cumsum(encoded.lengths)])
    words = np.flatnonzero(encoded.word_start)
    sizes = np.diff(words, append=len(encoded.tokens))
    budgets = [max(int(MASKED * (length - 2)), 1) for length in LENGTHS]
    return [
        Figures(
            lengths_D=np.diff(ends),
            digests_D=np.array([*map(text_hash, texts)], np.uint64),
            counted=quality.count(texts, encoded, ends, tokenizer.unk_id),
            unigram_V=np.bincount(encoded.tokens, minlength=tokenizer.vocab_size),
            bytes=sum(len(text.encode()) for text in texts),
            characters=collections.Counter("".join(texts)),
            too_long=np.array([sizes[sizes > most].sum() for most in budgets]),
            mojibake=[
                excerpt(text, match.start())
                for text in texts
                if (match := _MOJIBAKE.search(text))
            ],
        )
    ]


def inspect(
    source: Source,
    vocabulary: str | None = None,
    *,
    workers: int | None = None,
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Measures all documents; returns the figures, ready for JSON.

    `vocabulary` is the path of a tokenizer; without one, a small WordPiece is trained
    on a sample.
    """
    sample = sample_documents(source.documents(), SAMPLE_BYTES)
    config = TokenizerConfig(path=vocabulary, vocab_size=VOCABULARY)
    tokenizer = get_tokenizer(config, sample)
    log(
        f"Tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} pieces, "
        + (f"from {vocabulary}." if vocabulary else "trained on a sample of the text.")
    )
    counts, unigram_V = quality.Counts(), np.zeros(0, np.int64)
    lengths, digests = [], []
    size, broken, too_long = 0, 0, np.zeros(len(LENGTHS), np.int64)
    characters, mojibake = collections.Counter[str](), ""
    for part in mapped(measure, source.documents(), workers, (tokenizer,)):
        counts.add(part.counted)
        lengths.append(part.lengths_D)
        digests.append(part.digests_D)
        unigram_V = part.unigram_V + (unigram_V if len(unigram_V) else 0)
        size += part.bytes
        characters.update(part.characters)
        too_long += part.too_long
        broken += len(part.mojibake)
        mojibake = mojibake or next(iter(part.mojibake), "")
    read = {**source.description}  # later passes, of which one stops early, count anew
    lengths_D = np.concatenate(lengths)
    tokens, distinct = int(lengths_D.sum()), count_distinct(digests)
    facts = counts.facts(tokenizer, tokens, len(lengths_D), distinct)
    some = max(tokens, 1)
    result: dict[str, Any] = {
        "tokenizer": {
            "path": vocabulary,
            "kind": tokenizer.kind,
            "pieces": tokenizer.vocab_size,
            "pieces_used": int(np.count_nonzero(unigram_V)),
            "notes": [*describe(tokenizer)],
        },
        "documents": len(lengths_D),
        "bytes": size,
        "characters": facts["characters"],
        "words": facts["words"],
        "tokens": tokens,
        "tokens_per_word": tokens / max(facts["words"], 1),
        "bytes_per_token": size / some,
        "unknown_share": facts["unknown_tokens"] / some,
        "lengths": _distribution(lengths_D),
        "rows": {str(n): _rows(lengths_D, n) for n in LENGTHS},
        "never_masked_share": dict(
            zip(map(str, LENGTHS), (too_long / some).tolist(), strict=True)
        ),
        "scripts": _scripts(characters),
        "languages": _languages(sample),
        "repeated_lines": _repeated_lines(source),
        "copies_share": 1 - distinct / len(lengths_D),
        "near_duplicates": _near(source, workers),
        "mojibake_share": broken / len(lengths_D),
        "seen": _rows_as_seen(tokenizer, sample),
        "source": read,
    }
    problems = [p.text for p in quality.of_counts(facts, tokens, unigram_V)]
    return result | {"problems": problems + [*_problems(result, mojibake)]}


def _distribution(lengths_D: np.ndarray) -> dict[str, Any]:
    """Returns quantiles of the documents' tokens, and a histogram by powers of 2."""
    marks = (0, 5, 25, 50, 75, 95, 99, 100)
    values = np.percentile(lengths_D, marks, method="lower").tolist()
    edges = [0, *(2**n for n in range(int(lengths_D.max()).bit_length() + 1))]
    documents, _ = np.histogram(lengths_D, edges)
    inside, _ = np.histogram(lengths_D, edges, weights=lengths_D)
    return {
        "mean": float(lengths_D.mean()),
        "quantiles": dict(zip(map(str, marks), values, strict=True)),
        "histogram": {
            "from": edges[:-1],
            "documents": documents.tolist(),
            "tokens": inside.astype(int).tolist(),
        },
    }


def _rows(lengths_D: np.ndarray, length: int) -> dict[str, Any]:
    """Returns the rows and their padding, of a document each and packed."""
    some = lengths_D[lengths_D > 0][:PACKED_DOCUMENTS]
    start, size = split_documents(np.concatenate([[0], np.cumsum(some)]), length - 2)
    _, packed, first = pack(start, size, length)
    result = {}
    for name, sizes, rows in (
        ("single", size, len(size)),
        ("packed", packed, len(first) - 1),
    ):
        filled = int(sizes.sum()) + 2 * len(sizes)
        result[name] = {"rows": rows, "padding": 1 - filled / max(rows * length, 1)}
    return result


def _scripts(characters: collections.Counter[str]) -> dict[str, float]:
    """Returns the share of each script in the letters, by Unicode's names."""
    scripts = collections.Counter[str]()
    for character, count in characters.items():
        if character.isalpha():
            plain = unicodedata.normalize("NFKC", character)[0]
            scripts[unicodedata.name(plain, "?").split()[0].capitalize()] += count
    total = scripts.total()
    return {n.replace("Cjk", "Chinese"): c / total for n, c in scripts.most_common()}


def _languages(sample: list[str]) -> dict[str, float] | None:
    """Returns the share of documents of each language; None without py3langid."""
    try:
        identifier()
    except PlmjaxError:
        return None
    guesses = map(language_of, sorted(sample, key=text_hash)[:LANGUAGE_DOCUMENTS])
    counts = collections.Counter(
        language if probability >= SURE else "unsure"
        for language, probability in guesses
    )
    return {language: n / counts.total() for language, n in counts.most_common()}


def _repeated_lines(source: Source) -> dict[str, Any]:
    """Returns the share of lines that many documents hold, and the commonest."""
    lines = LineCounts()
    for text in source.documents():
        lines.add(text)
    repeated = lines.repeated(LINE_DOCUMENTS)
    common = sorted(repeated, key=lambda key: (-repeated[key], key))[:_SHOWN_LINES]
    shown: dict[int, str] = {}
    texts = itertools.takewhile(lambda _: len(shown) < len(common), source.documents())
    for line in itertools.chain.from_iterable(text.split("\n") for text in texts):
        if (key := text_hash(line.strip())) in common:
            shown.setdefault(key, excerpt(line))
    return {
        "lines": len(repeated),
        "share": sum(repeated.values()) / max(len(lines), 1),
        "examples": [[shown[key], repeated[key]] for key in common],
    }


def _near(source: Source, workers: int | None) -> dict[str, Any]:
    """Returns the share of near-duplicates of an earlier document."""
    first_D = near_duplicates(sign_all(_first(source.documents()), workers)[1])
    copies = np.count_nonzero(first_D != np.arange(len(first_D)))
    return {"documents": len(first_D), "share": int(copies) / len(first_D)}


def _first(documents: Iterable[str]) -> Iterator[str]:
    """Yields documents of NEAR_CHARACTERS in all."""
    room = NEAR_CHARACTERS
    for text in documents:
        if room <= 0:
            return
        room -= len(text)
        yield text


def _rows_as_seen(tokenizer: Tokenizer, sample: list[str]) -> list[str]:
    """Returns the pieces with which the rows of some documents begin."""
    rows = []
    for text in sorted(sample, key=text_hash)[:_SHOWN_ROWS]:
        ids = tokenizer.encode_batch([text[: 40 * _SHOWN_TOKENS]]).tokens
        shown = ids[:_SHOWN_TOKENS].tolist()
        pieces = [tokenizer.backend.id_to_token(number) or "" for number in shown]
        end = "..." if len(ids) > _SHOWN_TOKENS else tokenizer.specials.sep
        rows.append(" ".join([tokenizer.specials.cls, *pieces, end]))
    return rows


def _problems(result: dict[str, Any], mojibake: str) -> Iterator[str]:
    """Yields what looks wrong in the figures, each with what to do."""
    clean = "plmjax data clean --steps="
    counts = result["source"]["counts"]
    total = counts["bytes"]
    # Without the white space at which it was cut, which the total lacks.
    longest = min(counts["longest_document_bytes"], total)
    if longest > quality.MOST * total:
        yield (
            f"One document has {longest / max(total, 1):.1%} of the text "
            f"({longest:,} of {total:,} bytes). {quality.ends_of(result['source'])}"
        )
    for length, share in result["never_masked_share"].items():
        if share > SOME:
            yield (
                f"{share:.1%} of the tokens are in words that rows of {length} never "
                f"mask: they are longer than {MASKED:.0%} of the row. "
                "--config.objective.unit=token masks pieces."
            )
            break
    if result["mojibake_share"]:
        yield (
            f"{result['mojibake_share']:.2%} of the documents hold mojibake: "
            f"{mojibake!r}. {clean}unicode repairs it."
        )
    near = result["near_duplicates"]
    if near["share"] > MOST_NEAR:
        yield (
            f"{near['share']:.1%} of the first {near['documents']:,} documents are "
            f"near-duplicates of an earlier one. {clean}near drops them."
        )
    lines = result["repeated_lines"]
    if lines["share"] > SOME:
        yield (
            f"{lines['share']:.1%} of the lines stand in {LINE_DOCUMENTS} documents or "
            f"more, such as {lines['examples'][0][0]!r}. {clean}lines removes them."
        )
    yield from describe_counts(counts)
