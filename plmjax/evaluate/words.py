"""Words of a text that are hidden from several models alike, and windows that fit each.

Legend: S characters of a text, P pieces that one tokenizer makes of it.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

SHARE = 0.15  # of the words are hidden
# Scripts written without spaces, where a character counts as a word: Thai, Lao,
# Burmese, Khmer, kana, ideographs.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)


@functools.cache
def word_pattern() -> re.Pattern:
    """Letters and digits with their marks; `\\w` alone has no Hindi vowel signs."""
    marks = re.escape("".join(filter(is_mark, map(chr, range(0x300, 0x20000)))))
    letter = f"[^\\W_{_UNSPACED}]"
    return re.compile(f"[{_UNSPACED}][{marks}]*|{letter}(?:{letter}+|[{marks}]+)*")


def is_mark(character: str) -> bool:
    """Whether a character is an accent or a vowel sign that combines with a letter."""
    return unicodedata.category(character)[0] == "M"


def free_borders(size: int, spans: Sequence[np.ndarray]) -> np.ndarray:
    """bool [S + 1]: no tokenizer has a piece on both sides; `spans` are [P, 2] each."""
    change = np.zeros(size + 2, np.int64)
    for begin, end in (span[span[:, 1] > span[:, 0]].T for span in spans):
        np.add.at(change, begin + 1, 1)
        np.add.at(change, end, -1)
    return np.cumsum(change[:-1]) == 0


def cut_windows(
    text: str, free: np.ndarray, begins: Sequence[np.ndarray], rooms: Sequence[int]
) -> np.ndarray:
    """Returns [windows, 2] characters: as much text as fits into every model.

    `begins` [P] are the ascending first characters of each tokenizer's pieces, `rooms`
    how many of them fit. Windows end after a blank if there is one. Characters for
    which a tokenizer needs more pieces than fit, between free borders, are left out.
    """
    edges = np.flatnonzero(free)
    blanks = edges[[edge > 0 and text[edge - 1].isspace() for edge in edges.tolist()]]
    windows, begin = [], 0
    while begin < len(text):
        end = len(text)
        for some, room in zip(begins, rooms, strict=True):
            last = np.searchsorted(some, begin) + room
            end = min(end, int(some[last]) if last < len(some) else end)
        if end < len(text):
            cuts = [_last(blanks, end), _last(edges, end)]
            end = next((cut for cut in cuts if cut > begin), begin)
            if end == begin:  # more pieces than fit, without a border
                begin = int(edges[np.searchsorted(edges, begin, "right")])
                continue
        windows.append((begin, end))
        begin = end
    return np.array(windows, np.int64).reshape(-1, 2)


def _last(cuts: np.ndarray, end: int) -> int:
    """Returns the last of the ascending `cuts` up to `end`; 0 if there is none."""
    return int(cuts[: np.searchsorted(cuts, end, "right")].max(initial=0))


def hidden_words(text: str, free: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Returns [n, 2] characters of the hidden words, each in one of the windows.

    Which of them are hidden depends on the text and the words' positions alone. A word
    ends where all tokenizers end a piece, so it may have more than its letters.
    """
    words = np.array([m.span() for m in word_pattern().finditer(text)], np.int64)
    words = words.reshape(-1, 2)
    edges = np.flatnonzero(free)
    begin = edges[np.searchsorted(edges, words[:, 0], "right") - 1]
    end = edges[np.searchsorted(edges, words[:, 1])]
    # Words that share a piece of some tokenizer are one.
    first = np.append(True, begin[1:] >= end[:-1])[: len(words)]
    begin, end = begin[first], end[np.append(first[1:], True)[: len(words)]]
    seed = hashlib.blake2b(text.encode(), digest_size=8).digest()
    draw = np.random.default_rng(int.from_bytes(seed)).random(len(text) + 1)
    window = np.searchsorted(windows[:, 0], begin, "right") - 1
    inside = (window >= 0) & (end <= np.append(windows[:, 1], 0)[window])
    return np.stack([begin, end], 1)[(draw[begin] < SHARE) & inside]
