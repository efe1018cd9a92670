"""Near-duplicate documents: MinHash and locality-sensitive hashing, a function a stage.

The sizes are FineWeb's (Penedo et al., 2024): 5-grams of words, 14 bands of 8 hashes.
Two documents that share the part s of their 5-grams have an equal key in some band with
the probability 1 - (1 - s^8)^14: 5 % at s = .5, 56 % at .7, 77 % at .75, 92 % at .8,
99.96 % at .9. All of it is deterministic, on any machine.

Shapes: D documents, W words, N n-grams, H hashes, B bands, E pairs.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

NGRAM, BANDS, BAND_HASHES = 5, 14, 8
_AT_ONCE = 1024  # n-grams: their hashes stay in the cache of a core
# Chinese and Japanese have no blanks: each of their characters is a word.
UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


def words(text: str) -> list[str]:
    """Returns the words of a text as they are compared: without case, punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def hashes(words: Sequence[str]) -> np.ndarray:
    """Returns a hash of each word, uint64 [W]."""
    return np.fromiter(map(_word_hash, words), np.uint64, len(words))


def ngrams(hashes_W: np.ndarray, size: int) -> np.ndarray:
    """Returns a hash of each n-gram of `size` words, uint64 [N]; N = W - size + 1."""
    count = max(len(hashes_W) - size + 1, 0)
    hashes_N = np.zeros(count, np.uint64)
    for begin in range(size):
        hashes_N = _mix(hashes_N ^ hashes_W[begin : begin + count])
    return hashes_N


def signature(text: str) -> np.ndarray:
    """Returns the MinHash of a text, uint64 [H]; [0] for a text without words."""
    hashes_W = hashes(words(text))
    if not len(hashes_W):
        return hashes_W
    hashes_N = np.unique(ngrams(hashes_W, min(NGRAM, len(hashes_W))))
    factors_H, terms_H = _family()
    least_H = np.full(len(factors_H), np.iinfo(np.uint64).max, np.uint64)
    for begin in range(0, len(hashes_N), _AT_ONCE):
        block_NH = hashes_N[begin : begin + _AT_ONCE, None] * factors_H + terms_H
        np.minimum(least_H, block_NH.min(0), out=least_H)
    return least_H


def band_keys(signature_H: np.ndarray) -> np.ndarray:
    """Returns the key of each band, uint64 [B]; 0 is that of a text without words."""
    keys_B = np.zeros(BANDS, np.uint64)
    if len(signature_H):
        for hashes_B in signature_H.reshape(BANDS, BAND_HASHES).T:
            keys_B = _mix(keys_B ^ hashes_B)
    return keys_B


def equal_pairs(keys_D: np.ndarray) -> np.ndarray:
    """Returns pairs of documents with an equal key in one band, int64 [2, E].

    A cluster of n documents gives n - 1 pairs. The key 0 is equal to none.
    """
    order = np.argsort(keys_D, kind="stable")
    ordered = keys_D[order]
    equal = (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)
    return np.stack([order[:-1][equal], order[1:][equal]])


def first_copies(pairs_2E: np.ndarray, documents: int) -> np.ndarray:
    """Returns the first document of the cluster of each, int64 [D].

    Pairs join documents to clusters. The first one stays: those whose number is not
    their own are to be dropped.
    """
    from scipy.sparse import coo_array, csgraph  # .5 s

    ones = np.ones(pairs_2E.shape[1], bool)
    graph = coo_array((ones, (pairs_2E[0], pairs_2E[1])), shape=(documents, documents))
    count, cluster_D = csgraph.connected_components(graph, directed=False)
    first = np.full(count, documents)
    np.minimum.at(first, cluster_D, np.arange(documents))
    return first[cluster_D]


def near_duplicates(keys_DB: np.ndarray) -> np.ndarray:
    """Returns the first document of the cluster of each, [D], by the keys of all."""
    pairs = [equal_pairs(keys_D) for keys_D in keys_DB.T]
    return first_copies(np.concatenate(pairs, axis=1), len(keys_DB))


def _mix(x: np.ndarray) -> np.ndarray:
    """Scrambles 64 bits: the finaliser of splitmix64 (Steele et al., 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


def text_hash(text: str) -> int:
    """Returns 64 bits that are the same on every machine."""
    raw = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(raw, "little")


_word_hash = functools.lru_cache(1 << 17)(text_hash)


@functools.cache
def _family() -> tuple[np.ndarray, np.ndarray]:
    """Returns the factors (odd) and terms of the H hash functions, modulo 2^64."""
    numbers = _mix(np.arange(1, 2 * BANDS * BAND_HASHES + 1).astype(np.uint64))
    factors, terms = np.split(_mix(numbers ^ 0x9E3779B97F4A7C15), 2)
    return factors | 1, terms
