"""Is a text's own pair the nearest of all? Ranks, among the pairs of all texts.

Legend: N examples, b some of them, C texts of one (text, pair, perhaps a negative), M
candidates: the P distinct pairs, then distinct negatives; H width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from plmjax.data.labelled import Example

_BLOCK = 512  # texts that are held against all candidates at once


class Found(NamedTuple):
    """Of one example: the place of its pair, from 1, its cosine, and the loss."""

    rank: int
    cosine: float
    loss: float


# texts -> vectors [N, F], an array or a scipy matrix
Vectors = Callable[[Sequence[str]], Any]


class Candidates(NamedTuple):
    """What texts are held against: [M] candidate m is the text at row, place of [N, C].

    The first `pairs` are pairs, `own` [N] says which is that of an example. Of
    candidates of one number the first is taken.
    """

    number: np.ndarray
    row: np.ndarray
    place: np.ndarray
    pairs: int
    own: np.ndarray


def candidates_of(number_NC: np.ndarray) -> Candidates:
    """Returns the distinct candidates; `number` [N, C] is one for equal texts."""
    ids, row, own = np.unique(number_NC[:, 1], return_index=True, return_inverse=True)
    parts = [(ids, row, np.full(len(ids), 1))]
    for place in range(2, number_NC.shape[1]):
        more, where = np.unique(number_NC[:, place], return_index=True)
        new = ~np.isin(more, ids)
        parts.append((more[new], where[new], np.full(new.sum(), place)))
    number, row, place = map(np.concatenate, zip(*parts, strict=True))
    return Candidates(number, row, place, len(ids), own)


def numbers(examples: Sequence[Example]) -> np.ndarray:
    """[N, C]: one number for equal texts."""
    number: dict[str, int] = {}
    return np.array(
        [[number.setdefault(t, len(number)) for t in e.texts] for e in examples]
    )


def look_up(
    number_NC: np.ndarray,
    found: Candidates,
    score: Callable[[slice], np.ndarray],
    temperature: float = 1.0,
) -> list[Found]:
    """Returns the ranks of all examples' pairs; score(rows) -> cosines [b, M].

    Not counted are the text itself and the other pairs of the same text. Of candidates
    that are equally near, a text's own comes last: what is the same of all texts finds
    nothing.
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
        left_out = found.number == text_N[rows, None]
        for row in every[end[rows] - begin[rows] > 1]:
            left_out[row - first, found.own[order[begin[row] : end[row]]]] = True
        own = found.own[rows]
        left_out[inside, own] = False
        scores = np.where(left_out, -np.inf, score(rows))
        right = scores[inside, own]
        rank = (scores[:, : found.pairs] >= right[:, None]).sum(1)
        # What is not finite finds nothing.
        rank = np.where(np.isfinite(right), rank, found.pairs)
        logits = scores.astype(np.float64) / temperature
        highest = logits.max(1)
        sums = np.exp(logits - highest[:, None]).sum(1)
        loss = highest + np.log(sums) - logits[inside, own]
        ranks += map(Found, rank.tolist(), right.tolist(), loss.tolist())
    return ranks


def find_pairs(
    vectors_NCH: np.ndarray, number_NC: np.ndarray, temperature: float = 1.0
) -> list[Found]:
    """Returns the ranks by the cosines of vectors, float32."""
    found = candidates_of(number_NC)
    unit_NCH = unit(vectors_NCH)
    candidates_MH = unit_NCH[found.row, found.place]
    return look_up(
        number_NC, found, lambda rows: unit_NCH[rows, 0] @ candidates_MH.T, temperature
    )


def rank_by(vectors: Vectors) -> Callable[[Sequence[Example]], list[int]]:
    """Returns what ranks each example's pair, by cosines, among those of all given.

    Sparse vectors have length 1.
    """

    def predict(examples: Sequence[Example]) -> list[int]:
        number_N2 = numbers(
            [dataclasses.replace(e, texts=e.texts[:2]) for e in examples]
        )
        found = candidates_of(number_N2)
        texts = vectors([example.texts[0] for example in examples])
        others = vectors([examples[row].texts[1] for row in found.row])
        if isinstance(texts, np.ndarray):
            texts, others = unit(texts), unit(others)

        def score(rows: slice) -> np.ndarray:
            product = texts[rows] @ others.T
            return product if isinstance(product, np.ndarray) else product.toarray()

        return [one.rank for one in look_up(number_N2, found, score)]

    return predict


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [..., H] scaled to length 1."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norm, np.float32(1e-6))
