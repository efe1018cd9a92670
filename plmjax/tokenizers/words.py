"""The exact word cache: the library tokenises each distinct word once.

A tokenizer that works word by word gives a word the same pieces in every context, so
we cut the text into words as the library would, and look them up. A unit may hold
several of the library's words, or a full text that we cannot cut safely. The cut must
never change the library's result; each pattern below states its assumptions.
"""

import functools
import itertools
import json
import re
import string
import sys
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from plmjax.tokenizers.backends import (
    WHITE,
    chunk_size,
    overlapping,
    unigram_pre_tokenizer,
)

if TYPE_CHECKING:
    import tokenizers

# About 200 MB at most: a kept word needs about 150 bytes and its text.
KEPT_WORDS = 1_000_000
KEPT_CHARACTERS = 256  # longer units are rarely seen twice
NEW = -1  # the number of a unit that is not in the cache
BLOCK_CHARACTERS = 4_000_000  # texts are encoded in blocks, to bound the lists


class Cutter(NamedTuple):
    """The rule that cuts texts into units for one tokenizer.

    The ids of a text are the joined ids of its units. is_word is true only if the
    library certainly treats the unit as one word.
    """

    split: Callable[[str], list[str]]
    is_word: Callable[[str], object]  # true or false


class Encoded(NamedTuple):
    """Texts end to end: tokens [n] int32, word_start [n] bool, lengths [texts]."""

    tokens: np.ndarray
    word_start: np.ndarray
    lengths: np.ndarray


class WordCache:
    """Encodes the units that a Cutter returns, each once, and caches their ids."""

    def __init__(self, backend: "tokenizers.Tokenizer", cutter: Cutter):
        self._backend = backend
        self._cutter = cutter
        self._forget()

    def _forget(self):
        self._number: dict[str, int] = {}  # unit -> index in _begin
        self._ids = array("i")
        self._starts = array("b")
        self._begin = array("q", [0])

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encodes texts in blocks of about BLOCK_CHARACTERS."""
        sizes = np.cumsum([0, *map(len, texts)])
        blocks = np.searchsorted(
            sizes, np.arange(0, sizes[-1] + BLOCK_CHARACTERS, BLOCK_CHARACTERS)
        )
        blocks[-1] = len(texts)
        encoded = [
            self._encode_block(texts[begin:end])
            for begin, end in itertools.pairwise([0, *blocks.tolist()])
            if end > begin
        ]
        if len(encoded) == 1:
            return encoded[0]
        return Encoded(
            np.concatenate([np.empty(0, np.int32), *(e.tokens for e in encoded)]),
            np.concatenate([np.empty(0, bool), *(e.word_start for e in encoded)]),
            np.concatenate([np.empty(0, np.int64), *(e.lengths for e in encoded)]),
        )

    def _encode_block(self, texts: Sequence[str]) -> Encoded:
        units_of_text = [self._cutter.split(text) for text in texts]
        units = list(itertools.chain.from_iterable(units_of_text))
        numbers = self._look_up(units)
        if len(self._number) + np.count_nonzero(numbers == NEW) > KEPT_WORDS:
            self._forget()
            numbers[:] = NEW
        missing = np.flatnonzero(numbers == NEW)
        new = [units[index] for index in missing.tolist()]
        kept = self._learn(set(new))
        numbers[missing] = self._look_up(new)

        begin = np.frombuffer(self._begin, np.int64)
        counts = np.diff(begin)[numbers]
        ends = np.cumsum(counts)
        # Token j of a unit is at index `begin[number] + j` of the cached ids.
        shift = begin[numbers] - (ends - counts)
        indices = np.repeat(shift, counts) + np.arange(counts.sum())
        unit_ends = np.cumsum([0, *map(len, units_of_text)])
        encoded = Encoded(
            np.frombuffer(self._ids, np.int32)[indices],
            np.frombuffer(self._starts, bool)[indices],
            np.diff(np.concatenate([[0], ends])[unit_ends]),
        )
        del begin  # an array cannot be resized while numpy has a view of it
        self._drop_after(kept)
        return encoded

    def _look_up(self, units: list[str]) -> np.ndarray:
        numbers = map(self._number.get, units, itertools.repeat(NEW))
        return np.fromiter(numbers, np.int64, len(units))

    def _learn(self, new: set[str]) -> int:
        """Adds new units; returns how many of all units to keep."""
        words, others = [], []
        for unit in new:
            short = len(unit) <= KEPT_CHARACTERS
            (words if short and self._cutter.is_word(unit) else others).append(unit)
        self._learn_words(words)
        # The long units come last, so that they are easily dropped again.
        others.sort(key=len)
        self._learn_others(others)
        long = sum(len(unit) > KEPT_CHARACTERS for unit in others)
        return min(len(self._number) - long, KEPT_WORDS)

    def _learn_words(self, units: list[str]):
        """Adds units of one word each, in groups of 1,000, which is twice as fast."""
        groups = [units[start : start + 1000] for start in range(0, len(units), 1000)]
        encodings = self._backend.encode_batch(
            groups, is_pretokenized=True, add_special_tokens=False
        )
        for group, encoding in zip(groups, encodings, strict=True):
            words = np.array(encoding.word_ids, np.int64)
            counts = np.bincount(words, minlength=len(group))
            ends = np.cumsum(counts)
            starts = np.zeros(len(encoding.ids), np.int8)
            starts[(ends - counts)[counts > 0]] = 1
            self._number.update(zip(group, itertools.count(len(self._number))))
            self._begin.extend((len(self._ids) + ends).tolist())
            self._ids.extend(encoding.ids)
            self._starts.frombytes(starts.tobytes())

    def _learn_others(self, units: list[str]):
        encodings = self._backend.encode_batch(units, add_special_tokens=False)
        for unit, encoding in zip(units, encodings, strict=True):
            self._number[unit] = len(self._number)
            self._ids.extend(encoding.ids)
            self._starts.extend(word_starts(encoding))
            self._begin.append(len(self._ids))

    def _drop_after(self, kept: int):
        while len(self._number) > kept:
            self._number.popitem()
        del self._begin[kept + 1 :]
        del self._ids[self._begin[-1] :]
        del self._starts[self._begin[-1] :]


def word_starts(encoding: "tokenizers.Encoding") -> list[bool]:
    """Whether each token begins a word, by the library's word ids."""
    words = encoding.word_ids
    # The word id of an added token is None: each is a separate word.
    return [
        word is None or word != before
        for word, before in zip(words, [None, *words], strict=False)
    ]


def cutter(backend: "tokenizers.Tokenizer") -> Cutter:
    """Returns the Cutter for a tokenizer; UNCUT, which does not cut, if unknown."""
    from tokenizers import models, normalizers, pre_tokenizers

    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    if any(not t.special for t in backend.get_added_tokens_decoder().values()):
        return UNCUT  # the library matches these before it cuts the text into words
    if isinstance(backend.model, models.WordPiece):
        if chunk := chunk_size(backend):
            return _sequence_cutter(backend, chunk)
        nfkc = isinstance(normalizer, normalizers.Sequence) and len(normalizer) == 2
        if nfkc and isinstance(normalizer[0], normalizers.NFKC):
            normalizer = normalizer[1]  # which composes across signs, but not blanks
        if (
            isinstance(normalizer, normalizers.BertNormalizer)
            and normalizer.clean_text
            and isinstance(pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        ):
            unit = _UNIGRAM_UNIT if nfkc else _bert_pattern()
            return Cutter(unit.findall, _ASCII_WORD.fullmatch)
    elif isinstance(backend.model, models.Unigram):
        if (
            pre_tokenizer is not None
            and pre_tokenizer.__getstate__() == unigram_pre_tokenizer().__getstate__()
            and _is_cut_by_blanks(normalizer)
        ):
            return Cutter(_UNIGRAM_UNIT.findall, _ASCII_UNIT.fullmatch)
    elif (
        isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
        and pre_tokenizer.use_regex
        and not pre_tokenizer.add_prefix_space
        and backend.model.dropout is None
    ):
        if normalizer is None:
            return _gpt2_cutter(*_gpt2_patterns())
        if _keeps_ascii(normalizer):
            return _gpt2_cutter(*_gpt2_patterns(only_ascii=True))
    return UNCUT


UNCUT = Cutter(split=lambda text: [text], is_word=lambda unit: False)


# Besides ASCII: general punctuation and guillemets, frequent in books. All are category
# P and have no decomposition, so BERT makes each a separate word in any context.
_BOOK_PUNCTUATION = "¡¿«»" + "".join(map(chr, range(0x2010, 0x2028)))


_ASCII_WORD = re.compile("[0-9A-Za-z]+")
_UNIGRAM_UNIT = re.compile("[^ \t\n\r]+")  # the library also knows rarer blanks
_ASCII_WHITE = re.compile("[\t-\r ]+")
_ASCII_UNIT = re.compile("[!-~]+")


@functools.cache
def _bert_pattern() -> re.Pattern:
    """Cuts at the blanks that BERT's cleaner keeps, and around plain punctuation.

    Neither affects how BERT's normaliser changes its neighbours: cleaning and
    lower-casing work on single characters, and decomposition never crosses a starter.
    Other characters (controls, accents, Chinese) stay in their unit for the library.
    """
    marks = re.escape(string.punctuation + _BOOK_PUNCTUATION)
    return re.compile(f"[^ \t\n\r{marks}]+|[{marks}]")


@functools.cache
def _gpt2_patterns(only_ascii: bool = False) -> tuple[re.Pattern, re.Pattern]:
    """Patterns for GPT-2's words, and for characters that we leave to the library.

    These are unassigned characters and those beyond the basic plane, as the library's
    Unicode tables may be newer than Python's. With only_ascii (for tokenizers that
    change letters) they are all but ASCII and plain punctuation.
    """
    letters, numbers, unknown = [], [], [(0x10000, sys.maxunicode)]
    for code in range(0x10000):
        category = unicodedata.category(chr(code))
        if only_ascii and code > 127 and chr(code) not in _BOOK_PUNCTUATION:
            unknown.append((code, code))
        elif category in ("Cn", "Cs", "Co"):
            unknown.append((code, code))
        elif category[0] == "L":
            letters.append((code, code))
        elif category[0] == "N":
            numbers.append((code, code))
    blank = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    letter, number = _ranges(letters), _ranges(numbers)
    clitics = "[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD]"
    if not only_ascii:  # the tokenizer does not lower-case
        clitics = "s|t|re|ve|m|ll|d"
    words = (
        f"'(?:{clitics})| ?[{letter}]+| ?[{number}]+| ?[^{blank}{letter}{number}]+"
        f"|[{blank}]+(?![^{blank}])|[{blank}]+"
    )
    return re.compile(words), re.compile(f"[{_ranges(unknown)}]")


def _ranges(spans: list[tuple[int, int]]) -> str:
    """The inside of a character class for these code points, adjacent spans joined."""
    joined: list[list[int]] = []
    for first, last in sorted(spans):
        if joined and first == joined[-1][1] + 1:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in joined)


# GPT-2's words begin, but never go on, with a blank before one of these, and what
# `cutter` accepts normalises nothing across that blank.
_NEXT_WORD = re.compile(" [!-~]")


def _gpt2_cutter(words: re.Pattern, unknown: re.Pattern) -> Cutter:
    def split(text: str) -> list[str]:
        units, done = [], 0
        while found := unknown.search(text, done):
            # Of the text, the library gets only the words around what is unknown.
            begin = text.rfind(" ", done, found.start())
            while begin > done and not _NEXT_WORD.match(text, begin):
                begin = text.rfind(" ", done, begin)
            begin = max(begin, done)
            end = _NEXT_WORD.search(text, found.end())
            units += words.findall(text, done, begin)
            done = end.start() if end else len(text)
            units.append(text[begin:done])
        return units + words.findall(text, done) if units else words.findall(text)

    return Cutter(split, lambda unit: not unknown.search(unit))


def _sequence_cutter(backend: "tokenizers.Tokenizer", k: int) -> Cutter:
    """Cuts ASCII text into chunks of k characters, if sequence_backend made this."""
    from tokenizers import normalizers as n

    content = json.loads(backend.to_str())
    steps = (content["normalizer"] or {}).get("normalizers", [])
    white = [step.get("pattern") == {"Regex": WHITE} for step in steps]
    at = white.index(True) if any(white) else 0
    before, after = [step["type"] for step in steps[:at]], steps[at + 1 :]
    copies = (step for step in after if "String" in step.get("pattern", ()))
    letters = "".join(step["content"] for step in copies)
    every = n.Sequence(overlapping(letters, k) if letters else []).__getstate__()
    if (
        not any(white)
        or not {"NFKC", "NFD", "StripAccents", "Lowercase"}.issuperset(before)
        or after != json.loads(every)["normalizers"]
    ):
        return UNCUT
    change = str.lower if "Lowercase" in before else str
    known = re.compile(f"[{re.escape(letters) or '.'}]+|.")

    def split(text: str) -> list[str]:
        if not text.isascii():
            return [text]
        text = _ASCII_WHITE.sub(steps[at]["content"], change(text))
        if not after:
            return [text[i : i + k] for i in range(0, len(text), k)]
        return [
            run[i : i + k]
            for run in known.findall(text)
            # A letter without a piece is a chunk alone.
            for i in range(len(run) - k + 1 if run[0] in letters else 1)
        ]

    return Cutter(split, str.isascii)


def _is_cut_by_blanks(normalizer) -> bool:
    """Whether ASCII blanks stay blanks, and nothing is normalised across them."""
    from tokenizers import normalizers as n

    if isinstance(normalizer, n.Sequence):
        return all(_is_cut_by_blanks(step) for step in normalizer)  # pyright: ignore
    forms = n.NFC | n.NFD | n.NFKC | n.NFKD  # a blank never composes
    return isinstance(normalizer, forms | n.Nmt | n.StripAccents | n.Lowercase)


def _keeps_ascii(normalizer) -> bool:
    """Whether it at most lower-cases ASCII, and changes nothing across words."""
    from tokenizers import normalizers as n

    if isinstance(normalizer, n.Sequence):
        return all(_keeps_ascii(step) for step in normalizer)  # pyright: ignore
    return isinstance(normalizer, n.Lowercase | n.StripAccents | n.NFC | n.NFD)
