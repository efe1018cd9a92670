"""Trains a unigram vocabulary as SentencePiece does (Kudo 2018), deterministically.

The tokenizers library's trainer sums in the order of a hash table, which differs from
process to process, so the last digits of its scores differ, and the ids with them.
Here numpy sums in a fixed order: the same words give the same vocabulary.

Legend: N pieces, E edges. An edge is one occurrence of a piece in a word, from the
node before its first character to the node after its last.
"""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np

METASPACE = "▁"  # replaces the blank before a word
LONGEST_PIECE = 16  # characters
LONGEST_RUN = 64  # characters; longer runs are cut for the training
SEEDS_PER_PIECE = 20  # SentencePiece always starts with a million
SHRINK = 0.75  # the share that each round of pruning keeps


def learn(words: Mapping[str, int], size: int, least: int) -> list[tuple[str, float]]:
    """Returns at most `size` pieces with their log probabilities, likeliest first.

    `words` are counts of words that begin with "▁". Every character is a piece; longer
    ones must occur `least` times. No piece mixes two scripts, digits or signs.
    """
    runs = Counter()
    for word, count in words.items():
        for run in _runs(word):
            runs[run] += count
    texts = sorted(runs)
    corpus = _Corpus.join(texts, np.array([runs[text] for text in texts], float))
    seeds = _seeds(corpus, max(least, 2), SEEDS_PER_PIECE * size)
    lattice = _lattice(corpus, seeds)
    inside = _inside(corpus, lattice, seeds)
    score_N = seeds.count * seeds.length
    log_N = np.log(score_N / score_N.sum())
    alive_N = np.ones(len(log_N), bool)
    required_N = seeds.length == 1
    assert np.count_nonzero(required_N) <= size
    while True:
        for _ in range(2):
            expected_N = lattice.expected(log_N, corpus.count)
            keep = max(size, int(np.count_nonzero(expected_N >= 0.5)))
            alive_N &= _best(np.where(alive_N, expected_N, 0.0), required_N, keep)
            log_N = _maximise(expected_N, alive_N)
            lattice, inside = lattice.of(alive_N), inside.of(alive_N)
        left = np.count_nonzero(alive_N)
        if left <= size:
            break
        # The loss in the text's log likelihood without each piece.
        other_N = inside.best(log_N, seeds)
        with np.errstate(invalid="ignore"):  # from pieces that are not alive
            loss_N = np.where(alive_N, expected_N * (log_N - other_N), -np.inf)
        alive_N &= _best(loss_N, required_N, max(size, int(SHRINK * left)))
        log_N = np.where(alive_N, log_N, -np.inf)
        lattice, inside = lattice.of(alive_N), inside.of(alive_N)
    names = corpus.pieces(seeds.first[alive_N], seeds.length[alive_N])
    scores = (round(float(score), 6) for score in log_N[alive_N])
    return sorted(zip(names, scores, strict=True), key=lambda item: (-item[1], item[0]))


def _runs(word: str) -> Iterable[str]:
    """Cuts a word where its script changes; "▁" joins the character after it."""
    begin, kind = 0, ""
    for index, character in enumerate(word):
        script = _script(character) or kind
        if index - begin >= LONGEST_RUN or (kind and script != kind):
            yield word[begin:index]
            begin = index
        kind = script
    yield word[begin:]


@cache
def _script(character: str) -> str:
    """The script, "N" for digits or "sign"; "" for "▁" and marks, which join any."""
    if character == METASPACE:
        return ""
    category = unicodedata.category(character)[0]
    if category != "L":
        return "" if category == "M" else "N" if category == "N" else "sign"
    script = unicodedata.name(character, "letter").split(" ")[0].split("-")[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA") else script


@dataclasses.dataclass(frozen=True)
class _Corpus:
    """Runs end to end: code point (letter) and run [characters], counts by run."""

    text: str
    letter: np.ndarray
    run: np.ndarray
    begin: np.ndarray  # [runs + 1]
    count: np.ndarray  # [runs]

    @classmethod
    def join(cls, texts: list[str], count: np.ndarray) -> "_Corpus":
        text = "".join(texts)
        letter = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        begin = np.concatenate([[0], np.cumsum(sizes)])
        return cls(text, letter, np.repeat(np.arange(len(texts)), sizes), begin, count)

    def pieces(self, first: np.ndarray, length: np.ndarray) -> list[str]:
        spans = zip(first.tolist(), length.tolist(), strict=True)
        return [self.text[start : start + size] for start, size in spans]


@dataclasses.dataclass(frozen=True)
class _Seeds:
    """Pieces: first position, length, count [N]; all positions, their pieces [E]."""

    first: np.ndarray
    length: np.ndarray
    count: np.ndarray
    position: np.ndarray  # [E]
    piece: np.ndarray  # [E]


def _seeds(corpus: _Corpus, least: int, limit: int) -> _Seeds:
    """All characters, and the longer frequent substrings that cover the most text.

    A substring that is always followed by the same character is left out, as in a
    suffix array: the longer one has the same count.
    """
    end = corpus.begin[corpus.run + 1]
    position = np.arange(len(corpus.letter))
    name = np.zeros(len(position), np.int64)  # id of the substring one shorter
    levels: list[list[np.ndarray]] = []  # first, count, position, name by length
    for length in range(1, LONGEST_PIECE + 1):
        fits = position + length <= end[position]
        position, name = position[fits], name[fits]
        if not len(position):
            break
        key = name * 0x110000 + corpus.letter[position + length - 1]
        _, at, longer = np.unique(key, return_index=True, return_inverse=True)
        count = np.bincount(longer, corpus.count[corpus.run[position]])
        if levels:
            shorter = levels[-1]
            same = count == shorter[1][name[at]]
            if length > 2:
                shorter[1][name[at[same]]] = 0.0
        levels.append([position[at], count, position, longer])
        frequent = count[longer] >= (0 if length == 1 else least)
        position, name = position[frequent], longer[frequent]
    covered = [(level[1] >= least) * level[1] * n for n, level in enumerate(levels, 1)]
    covered[0][:] = np.inf  # characters are always in
    chosen = _best(np.concatenate(covered), np.concatenate(covered) == np.inf, limit)
    chosen &= np.concatenate(covered) > 0
    sizes = np.array([len(level[0]) for level in levels])
    number = np.where(chosen, np.cumsum(chosen) - 1, -1)
    number_of = np.split(number, np.cumsum(sizes)[:-1])
    positions, pieces = [], []
    for level, numbers in zip(levels, number_of, strict=True):
        of_position = numbers[level[3]]
        positions.append(level[2][of_position >= 0])
        pieces.append(of_position[of_position >= 0])
    return _Seeds(
        np.concatenate([level[0] for level in levels])[chosen],
        np.repeat(np.arange(1, len(levels) + 1), sizes)[chosen],
        np.concatenate([level[1] for level in levels])[chosen],
        np.concatenate(positions),
        np.concatenate(pieces),
    )


@dataclasses.dataclass(frozen=True)
class _Lattice:
    """Edges of many words side by side; a word's first node has depth 0."""

    start: np.ndarray  # [E] nodes
    end: np.ndarray
    piece: np.ndarray
    depth: np.ndarray  # by node
    word: np.ndarray  # by node

    def of(self, alive_N: np.ndarray) -> "_Lattice":
        kept = alive_N[self.piece]
        edges = (self.start[kept], self.end[kept], self.piece[kept])
        return _Lattice(*edges, self.depth, self.word)

    def sweep(self, log_N: np.ndarray, backward: bool, best: bool) -> np.ndarray:
        """Returns by node the log of the sum (or maximum) over all paths to it."""
        begin, end = (self.end, self.start) if backward else (self.start, self.end)
        depth = self.depth[end] * (-1 if backward else 1)
        order = np.lexsort((end, depth))
        begin, end, log_E = begin[order], end[order], log_N[self.piece[order]]
        # The first edge of each node, and the first node of each depth.
        edge = np.flatnonzero(np.diff(end, prepend=-1))
        node = end[edge]
        steps = np.flatnonzero(np.diff(depth[order][edge], prepend=depth.min() - 1))
        bounds = np.append(edge, len(end))
        value = np.zeros(len(self.depth))
        for low, high in zip(steps, np.append(steps[1:], len(node)), strict=True):
            edges = slice(bounds[low], bounds[high])
            way = value[begin[edges]] + log_E[edges]
            at = bounds[low:high] - bounds[low]
            top = np.maximum.reduceat(way, at)
            if not best:
                sizes = np.diff(bounds[low : high + 1])
                way = np.exp(way - np.repeat(top, sizes))
                top += np.log(np.add.reduceat(way, at))
            value[node[low:high]] = top
        return value

    def expected(self, log_N: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Returns the expected count [N] of each piece over all segmentations."""
        before = self.sweep(log_N, backward=False, best=False)
        after = self.sweep(log_N, backward=True, best=False)
        total = after[self.depth == 0]
        word = self.word[self.start]
        chance = before[self.start] + log_N[self.piece] + after[self.end] - total[word]
        return np.bincount(self.piece, np.exp(chance) * count[word], len(log_N))

    def best(self, log_N: np.ndarray, seeds: _Seeds) -> np.ndarray:
        """Returns the log probability [N] of each piece's best split into others."""
        if not len(self.start):
            return np.full(len(log_N), -np.inf)
        last = np.cumsum(seeds.length + 1) - 1
        return self.sweep(log_N, backward=False, best=True)[last]


def _lattice(corpus: _Corpus, seeds: _Seeds) -> _Lattice:
    """The corpus as a lattice: its nodes are the gaps of each run, run after run."""
    word, depth = _nodes(np.diff(corpus.begin))
    start = seeds.position + corpus.run[seeds.position]
    order = np.argsort(start, kind="stable")
    start, piece = start[order], seeds.piece[order]
    return _Lattice(start, start + seeds.length[piece], piece, depth, word)


def _inside(corpus: _Corpus, lattice: _Lattice, seeds: _Seeds) -> _Lattice:
    """The pieces as a lattice: the other edges inside each piece's first occurrence."""
    first = seeds.first + corpus.run[seeds.first]
    # Edges are sorted by start, so those that begin in one piece are contiguous.
    low = np.searchsorted(lattice.start, first)
    sizes = np.searchsorted(lattice.start, first + seeds.length) - low
    owner = np.repeat(np.arange(len(first)), sizes)
    edge = np.arange(len(owner)) + np.repeat(low - (np.cumsum(sizes) - sizes), sizes)
    kept = lattice.end[edge] <= (first + seeds.length)[owner]
    kept &= lattice.piece[edge] != owner
    edge, owner = edge[kept], owner[kept]
    word, depth = _nodes(seeds.length)
    shift = np.flatnonzero(depth == 0)[owner] - first[owner]
    start, end = lattice.start[edge] + shift, lattice.end[edge] + shift
    return _Lattice(start, end, lattice.piece[edge], depth, word)


def _nodes(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each node's word and its depth, the characters before it in the word."""
    sizes = lengths + 1
    word = np.repeat(np.arange(len(sizes)), sizes)
    return word, np.arange(len(word)) - (np.cumsum(sizes) - sizes)[word]


def _best(value_N: np.ndarray, required_N: np.ndarray, keep: int) -> np.ndarray:
    """Marks the required pieces and, up to `keep` in all, the most valuable ones."""
    order = np.argsort(np.where(required_N, -np.inf, -value_N), kind="stable")
    chosen_N = required_N.copy()
    chosen_N[order[:keep]] = True
    return chosen_N


def _maximise(expected_N: np.ndarray, alive_N: np.ndarray) -> np.ndarray:
    """The log probabilities under a sparse prior: digamma for the logarithm (Kudo)."""
    # A character that is never used alone here may still occur in other text.
    count_N = np.maximum(expected_N, 0.5)
    log_N = _digamma(count_N) - _digamma(count_N[alive_N].sum())
    return np.where(alive_N, log_N, -np.inf)


def _digamma(x: np.ndarray) -> np.ndarray:
    """Digamma for x > 0: its recurrence up to x + 6, then its asymptotic series."""
    shift = sum(1.0 / (x + n) for n in range(6))
    x = x + 6
    square = 1.0 / (x * x)
    series = square * (1 / 12 - square * (1 / 120 - square / 252))
    return np.log(x) - 0.5 / x - series - shift
