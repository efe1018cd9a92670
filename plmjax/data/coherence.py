"""Checks that a corpus has sentence pairs, and that neighbouring sentences cohere."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from plmjax import DataError
from plmjax.data.packing import count_up
from plmjax.data.pairs import no_sentences, no_two_sentences
from plmjax.data.store import SPLITS, Split, Store

SAMPLE = 4000  # pairs that are compared
ENOUGH = 400  # with fewer pairs z is unreliable, and no corpus is refused
# In a shuffled corpus z is normal around 0: 1 in 1,000 is above this.
ALIKE = 3.0
_COMMON = 1e-3  # pieces with a larger share of the text do not show its subject
_LONGEST = 64  # tokens of a sentence that are compared


@dataclasses.dataclass(frozen=True)
class Coherence:
    """Mean similarity of a sentence to its neighbour, and to an unrelated sentence.

    Similarity is the cosine of the two sets of uncommon pieces, each weighted by its
    rarity. `z` is the mean difference over its standard error.
    """

    pairs: int
    neighbours: float
    strangers: float
    z: float


def check_pairs(store: Store, log: Callable[[str], Any]) -> None:
    """Checks that a store can give sentence pairs.

    Raises:
      PlmjaxError: the store has no sentences, no document of two sentences, or its
        sentences seem to be shuffled.
    """
    for name in SPLITS:
        split = store.split(name)
        if split.sentences is None:
            raise no_sentences()
        several = int(np.count_nonzero(_sentences_of(split) > 1))
        if not several:
            raise no_two_sentences(name)
        log(
            f"Sentence pairs: {several:,} of {split.documents:,} documents of the "
            f"{name} split hold two sentences or more."
        )
    coherence = measure(store.split("train"), store.unigram)
    figures = (
        f"neighbouring sentences are {coherence.neighbours:.4f} alike, strangers "
        f"{coherence.strangers:.4f} (z {coherence.z:.1f}, {coherence.pairs:,} pairs)"
    )
    if coherence.pairs >= ENOUGH and coherence.z < ALIKE:
        raise DataError(
            f"the corpus seems to have shuffled sentences: {figures}, so there "
            "is nothing to learn from sentence pairs.",
            hint="Give running text, check data.source.document, or set "
            "--config.objective.pairs=none.",
        )
    few = " Too few to judge whether the sentences are in order."
    log(f"Of the train split, {figures}.{few if coherence.pairs < ENOUGH else ''}")


def _sentences_of(split: Split) -> np.ndarray:
    """Returns the number of sentences of each document."""
    assert split.sentences is not None
    return np.diff(np.searchsorted(split.sentences, split.offsets))


def measure(split: Split, unigram: np.ndarray) -> Coherence:
    """Compares sentences with the next one, and with an unrelated one (a stranger).

    The stranger is the second sentence of another pair, from another document if the
    sample has several. `unigram` [V] counts the pieces of the split.
    """
    assert split.sentences is not None
    sentences = np.asarray(split.sentences)
    documents = np.repeat(np.arange(split.documents), _sentences_of(split))
    weight = _weights(unigram)
    draw = np.random.default_rng(0)
    first = np.flatnonzero(documents[:-1] == documents[1:])
    first = np.sort(draw.choice(first, min(SAMPLE, len(first)), replace=False))
    one = _Vectors(split, sentences, first, weight)
    next_ = _Vectors(split, sentences, first + 1, weight)
    # The pairs are in the order of the corpus: half of them away is another document,
    # unless one document has more than half of all pairs.
    shift = len(first) // 2 + draw.integers(len(first) // 4 + 1)
    other = np.roll(np.arange(len(first)), -shift)
    if np.any(documents[first] != documents[first[0]]):
        kept = documents[first] != documents[first[other]]
    else:
        kept = np.ones(len(first), bool)
    kept &= one.informative & next_.informative
    kept &= next_.informative[other]
    here = one.cosine(next_, np.arange(len(first)))[kept]
    there = one.cosine(next_, other)[kept]
    if len(here) < 2:
        return Coherence(len(here), 0.0, 0.0, 0.0)
    error = (here - there).std(ddof=1) / np.sqrt(len(here))
    gain = (here - there).mean()
    z = float(gain / error) if error > 0 else 0.0
    return Coherence(len(here), float(here.mean()), float(there.mean()), z)


def _weights(unigram: np.ndarray) -> np.ndarray:
    """Returns the weight of each piece [V] in the cosine: 0 for common pieces."""
    share = unigram / max(unigram.sum(), 1)
    # In a small vocabulary most shares are large: common is above twice the mean.
    common = max(_COMMON, 2 / max(np.count_nonzero(unigram), 1))
    return np.where(share < common, -np.log(np.maximum(share, 1e-12)), 0.0)


class _Vectors:
    """Sentences as sparse vectors of weighted pieces."""

    def __init__(self, split: Split, sentences, which, weight: np.ndarray):
        size = np.minimum(sentences[which + 1] - sentences[which], _LONGEST)
        tokens, _ = split.read(np.repeat(sentences[which], size) + count_up(size))
        of = np.repeat(np.arange(len(size)), size)
        self._vocabulary, self._weight = len(weight), weight
        keys = np.unique(of * len(weight) + tokens)
        self._of, self._token = np.divmod(keys, len(weight))
        self._keys, self._count = keys, len(size)
        squares = np.bincount(self._of, weight[self._token] ** 2, len(size))
        self._norm = np.sqrt(squares)
        self.informative = squares > 0

    def cosine(self, other: "_Vectors", partner: np.ndarray) -> np.ndarray:
        """Returns the similarity of each sentence to its partner in `other`."""
        wanted = partner[self._of] * self._vocabulary + self._token
        shared = np.isin(wanted, other._keys)
        squares = self._weight[self._token[shared]] ** 2
        product = np.bincount(self._of[shared], squares, self._count)
        return product / np.maximum(self._norm * other._norm[partner], 1e-12)
