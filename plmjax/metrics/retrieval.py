"""The rank of a text's pair among the pairs of all texts, by their vectors.

Legend: N examples, b some of them, C texts of one (text, pair, perhaps a negative), M
candidates: the P distinct pairs, then distinct negatives; H width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

_BLOCK = 512  # texts that are compared with all candidates at once


class PairRank(NamedTuple):
    """The rank of an example's pair, from 1, its cosine, and the loss."""

    rank: int
    cosine: float
    loss: float


# texts -> vectors [N, F], an array or a scipy matrix
Vectors = Callable[[Sequence[str]], Any]


class Candidates(NamedTuple):
    """The [M] texts that all are compared with: text [row, column] of [N, C].

    The first `pairs` are pairs; `own` [N] is the index of each example's pair. Equal
    texts, of one `number`, are one candidate.
    """

    number: np.ndarray
    row: np.ndarray
    column: np.ndarray
    pairs: int
    own: np.ndarray


def candidates_of(number_NC: np.ndarray) -> Candidates:
    """Returns the distinct candidates; equal texts have equal numbers [N, C]."""
    ids, row, own = np.unique(number_NC[:, 1], return_index=True, return_inverse=True)
    blocks = [(ids, row, np.full(len(ids), 1))]
    for column in range(2, number_NC.shape[1]):
        more, where = np.unique(number_NC[:, column], return_index=True)
        new = ~np.isin(more, ids)
        blocks.append((more[new], where[new], np.full(new.sum(), column)))
    number, row, column = map(np.concatenate, zip(*blocks, strict=True))
    return Candidates(number, row, column, len(ids), own)


def number_texts(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns [N, C] of C texts an example; equal texts have equal numbers."""
    number: dict[str, int] = {}
    return np.array([[number.setdefault(t, len(number)) for t in own] for own in texts])


def look_up(
    number_NC: np.ndarray,
    candidates: Candidates,
    score: Callable[[slice], np.ndarray],
    temperature: float = 1.0,
) -> list[PairRank]:
    """Returns the ranks of all examples' pairs; score(rows) -> cosines [b, M].

    Not counted are the text itself and the other pairs of the same text. Among equally
    near candidates a text's own comes last, so that equal vectors of all texts rank
    every pair last.
    """
    text_N = number_NC[:, 0]
    order = np.argsort(text_N, kind="stable")
    begin = np.searchsorted(text_N[order], text_N)
    end = np.searchsorted(text_N[order], text_N, "right")
    ranks = []
    for first in range(0, len(number_NC), _BLOCK):
        rows = slice(first, min(first + _BLOCK, len(number_NC)))
        every = np.arange(rows.start, rows.stop)
        inside = every - rows.start
        left_out = candidates.number == text_N[rows, None]
        for row in every[end[rows] - begin[rows] > 1]:
            left_out[row - first, candidates.own[order[begin[row] : end[row]]]] = True
        own = candidates.own[rows]
        left_out[inside, own] = False
        scores = np.where(left_out, -np.inf, score(rows))
        right = scores[inside, own]
        rank = (scores[:, : candidates.pairs] >= right[:, None]).sum(1)
        # A score that is not finite counts as the last.
        rank = np.where(np.isfinite(right), rank, candidates.pairs)
        logits = scores.astype(np.float64) / temperature
        highest = logits.max(1)
        sums = np.exp(logits - highest[:, None]).sum(1)
        loss = highest + np.log(sums) - logits[inside, own]
        ranks += map(PairRank, rank.tolist(), right.tolist(), loss.tolist())
    return ranks


def find_pairs(
    vectors_NCH: np.ndarray, number_NC: np.ndarray, temperature: float = 1.0
) -> list[PairRank]:
    """Returns the ranks by the cosines of float32 vectors."""
    candidates = candidates_of(number_NC)
    unit_NCH = unit(vectors_NCH)
    candidates_MH = unit_NCH[candidates.row, candidates.column]

    def score(rows: slice) -> np.ndarray:
        return unit_NCH[rows, 0] @ candidates_MH.T

    return look_up(number_NC, candidates, score, temperature)


def rank_pairs(texts: Sequence[Sequence[str]], vectors: Vectors) -> list[int]:
    """Returns the rank of each example's pair, by the cosines of `vectors`.

    `texts` are a text, its pair, and perhaps more, which are not read. Sparse vectors
    must have length 1.
    """
    number_N2 = number_texts([own[:2] for own in texts])
    candidates = candidates_of(number_N2)
    firsts = vectors([own[0] for own in texts])
    pairs = [own[1] for own in texts]
    others = vectors([pairs[row] for row in candidates.row])
    if isinstance(firsts, np.ndarray):
        firsts, others = unit(firsts), unit(others)

    def score(rows: slice) -> np.ndarray:
        product = firsts[rows] @ others.T
        return product if isinstance(product, np.ndarray) else product.toarray()

    return [one.rank for one in look_up(number_N2, candidates, score)]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [..., H] scaled to length 1."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norm, np.float32(1e-6))
