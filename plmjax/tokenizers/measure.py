"""Figures of a vocabulary on a text: how long it makes it, and what it keeps whole."""

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from plmjax.tokenizers.tokenizer import Tokenizer

ALPHA = 2.5  # of the Rényi entropy: fits translation best (Zouhar et al. 2023)
MOST_PIECES = 5  # words of this many pieces or more are counted together
LONGEST_SHOWN = 40  # characters
_TEXTS = 1000  # that are encoded at once
# Words that are encoded at once; of a text, this many of the commonest are compared.
_BLOCK = 10_000


def words_of(texts: Iterable[str]) -> Counter[str]:
    """Counts the words of texts: what stands between blanks, without signs around it.

    Every vocabulary is measured on the same words, whatever it takes for one.
    """
    between = Counter(itertools.chain.from_iterable(map(str.split, texts)))
    words = Counter[str]()
    for word, count in between.items():
        words[_bare(word)] += count
    del words[""]
    return words


def _bare(word: str) -> str:
    if word.isalnum():
        return word
    kinds = [unicodedata.category(character)[0] not in "PS" for character in word]
    if not any(kinds):
        return ""
    return word[kinds.index(True) : len(word) - kinds[::-1].index(True)]


def measure(
    tokenizer: Tokenizer, texts: Sequence[str], words: Counter[str]
) -> dict[str, Any]:
    """Returns the figures of a vocabulary on texts with some `words`.

    words_of_pieces is the share of the words with 1, 2, ..., MOST_PIECES pieces; words
    with an unknown one are the rest. renyi_efficiency is the entropy of the pieces that
    occur, relative to that of equally frequent ones (Zouhar et al. 2023, "Tokenization
    and the Noiseless Channel").
    """
    counts_V = np.zeros(tokenizer.vocab_size, np.int64)
    for begin in range(0, len(texts), _TEXTS):
        encoded = tokenizer.encode_batch(texts[begin : begin + _TEXTS])
        counts_V += np.bincount(encoded.tokens, minlength=len(counts_V))
    tokens, total = int(counts_V.sum()), max(words.total(), 1)
    unknown = int(counts_V[tokenizer.unk_id]) if tokenizer.unk_id is not None else 0
    ordinary = np.delete(counts_V, [*tokenizer.special_ids])
    shares = np.zeros(MOST_PIECES + 1)
    names = list(words)
    for some in (names[i : i + _BLOCK] for i in range(0, len(names), _BLOCK)):
        sizes = np.minimum([len(ids) for ids in _pieces(tokenizer, some)], MOST_PIECES)
        shares += np.bincount(
            sizes, [words[word] for word in some], minlength=len(shares)
        )
    size = sum(len(text.encode()) for text in texts)
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "documents": len(texts),
        "bytes": size,
        "words": words.total(),
        "tokens": tokens,
        "tokens_per_word": tokens / total,
        "tokens_per_byte": tokens / max(size, 1),
        "unknown_share": unknown / max(tokens, 1),
        "whole_words": float(shares[1] / total),
        "words_of_pieces": (shares[1:] / total).tolist(),
        "used_share": float(np.count_nonzero(ordinary) / max(len(ordinary), 1)),
        "renyi_efficiency": _renyi(ordinary[ordinary > 0]),
    }


def _renyi(counts: np.ndarray) -> float:
    """The Rényi efficiency of pieces with these counts; nan for fewer than two."""
    if len(counts) < 2:
        return float("nan")
    shares = counts / counts.sum()
    return float(np.log((shares**ALPHA).sum()) / (1 - ALPHA) / np.log(len(counts)))


def _pieces(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """The ids of each word inside a text; none of a word with an unknown part."""
    blank = " " if tokenizer.kind == "bpe" else ""
    encoded = tokenizer.encode_batch([blank + word for word in words])
    ends = np.cumsum(encoded.lengths)
    parts = np.split(encoded.tokens, ends[:-1]) if len(ends) else []
    return [[] if tokenizer.unk_id in part else part.tolist() for part in parts]


def side_by_side(
    tokenizers: Sequence[Tokenizer], words: Sequence[str]
) -> list[list[list[str]]]:
    """Returns the pieces of each word, as each vocabulary spells them."""
    known = [_pieces(tokenizer, words) for tokenizer in tokenizers]
    return [
        [
            [str(tokenizer.backend.id_to_token(number)) for number in ids]
            for tokenizer, ids in zip(tokenizers, row, strict=True)
        ]
        for row in zip(*known, strict=True)
    ]


def most_different(
    tokenizers: Sequence[Tokenizer], words: Counter[str], most: int
) -> list[str]:
    """Returns the words whose numbers of pieces differ most, times their count.

    Longer ones than LONGEST_SHOWN, such as Chinese sentences, are left out.
    """
    often = (word for word, _ in words.most_common(_BLOCK))
    names = [word for word in often if len(word) <= LONGEST_SHOWN]
    sizes = np.array(
        [[len(ids) for ids in _pieces(tokenizer, names)] for tokenizer in tokenizers]
    )
    if not sizes.size:
        return []
    spread = (sizes.max(0) - sizes.min(0)) * [words[word] for word in names]
    order = np.argsort(-spread, kind="stable")[:most]
    return [names[index] for index in order.tolist() if spread[index]]
