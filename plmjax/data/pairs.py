"""Rows of sentence pairs: [CLS] A [SEP] B [SEP], for NSP and SOP.

A piece is a run of consecutive complete sentences of one document. The end of A in it,
and whether B is another text (NSP) or the two are swapped (SOP), are sampled again in
each epoch (data/pair_rows.py); the plan only lists where A may end.
"""

import bisect
import dataclasses
import functools
from typing import Literal, NamedTuple

import numpy as np

from plmjax import DataError, PlmjaxError
from plmjax.data.packing import Plan, count_up, pack
from plmjax.data.philox import below, make_key, philox
from plmjax.data.store import Split

OVERHEAD = 3  # [CLS], [SEP], [SEP]


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """The pairs: nsp, B follows A or is another text; sop, in order or swapped."""

    kind: Literal["nsp", "sop"] = "nsp"
    # The source of a B that does not follow A: another document, or any text.
    negatives: Literal["document", "corpus"] = "document"
    # Share of the pieces that get a random shorter length.
    short_share: float = 0.1


class Tails(NamedTuple):
    """All spans that may be a B, sorted by PairPlan.key; all arrays are [C].

    `weight` [C] float64 is the cumulative sum of each one's chance to be its piece's B.
    """

    key: np.ndarray
    start: np.ndarray
    size: np.ndarray
    piece: np.ndarray
    weight: np.ndarray


@dataclasses.dataclass(frozen=True)
class PairPlan(Plan):
    """A plan with pieces of complete sentences.

    In piece p, B may begin at the stream positions cut[cut_first[p]:cut_first[p + 1]];
    a piece without any is not a pair. `amid` [C] bool: the position is inside a
    sentence that was too long, as no sentence begins inside that piece.
    """

    pairs: PairsConfig
    cut_first: np.ndarray
    cut: np.ndarray
    amid: np.ndarray

    @property
    def tokens(self) -> int:
        """Tokens in all rows, as in Plan; a pair has one more [SEP]."""
        paired = np.count_nonzero(np.diff(self.cut_first))
        return super().tokens + int(paired)

    @functools.cached_property
    def most(self) -> int:
        """P: the most pieces that a row holds."""
        return int(np.diff(self.first).max())

    @functools.cached_property
    def tails(self) -> Tails:
        """The possible B of all pieces."""
        cuts = np.diff(self.cut_first)
        piece = np.repeat(np.arange(len(cuts)), cuts)
        size = self.start[piece] + self.size[piece] - self.cut
        key = self.key(size, self.amid)
        order = np.argsort(key, kind="stable")
        piece = piece[order]
        return Tails(
            key[order], self.cut[order], size[order], piece, np.cumsum(1 / cuts[piece])
        )

    def key(self, size: np.ndarray, amid: np.ndarray) -> np.ndarray:
        """A sort key: texts that begin a sentence first, then by length in tokens."""
        return size + amid * (self.length + 1)


def make_pair_plan(
    split: Split, length: int, packed: bool, pairs: PairsConfig
) -> PairPlan:
    """Plans the rows of `length` tokens of a split.

    Raises:
      PlmjaxError: the store does not record sentences.
    """
    if split.sentences is None:
        raise no_sentences()
    room = length - OVERHEAD
    offsets = np.asarray(split.offsets)
    bounds, opens = divide(np.asarray(split.sentences), offsets, room)
    start, size = _fill(bounds, offsets, room, pairs.short_share)
    if packed:
        start, size, first = pack(start, size, length, OVERHEAD, divisible=False)
    else:
        first = np.arange(len(start) + 1)
    # B may begin at the units inside a piece, but only at sentences if it has any.
    begin = np.searchsorted(bounds, start) + 1
    inner = np.searchsorted(bounds, start + size) - begin
    piece, unit = np.repeat(np.arange(len(size)), inner), np.repeat(begin, inner)
    unit += count_up(inner)
    sentences = np.bincount(piece, opens[unit], len(size)) > 0
    kept = opens[unit] | ~sentences[piece]
    cuts = np.bincount(piece[kept], minlength=len(size))
    return PairPlan(
        length=length,
        first=first,
        start=start,
        size=size,
        pairs=pairs,
        cut_first=np.concatenate([[0], np.cumsum(cuts)]),
        cut=bounds[unit[kept]],
        amid=~opens[unit[kept]],
    )


def divide(
    sentences: np.ndarray, offsets: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts long sentences into even units of at most half the room.

    The only sentence of a document is not cut if it fits: it makes no pair. Returns the
    stream positions of the units and of the end [U + 1], and whether a sentence begins
    there [U].
    """
    first = np.searchsorted(sentences, offsets)
    alone = np.repeat(np.diff(first) == 1, np.diff(first))
    size = np.diff(sentences)
    units = np.where(alone & (size <= room), 1, -(-size // (room // 2)))
    nth, of = count_up(units), np.repeat(units, units)
    begin = np.repeat(sentences[:-1], units) + nth * np.repeat(size, units) // of
    return np.append(begin, sentences[-1]), nth == 0


def _fill(
    bounds: np.ndarray, offsets: np.ndarray, room: int, short_share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (start, size) of pieces: consecutive units of a document that fit."""
    targets, positions = _targets(bounds, room, short_share).data, bounds.data
    firsts = np.searchsorted(bounds, offsets).tolist()
    begins = []  # the first unit of each piece
    for unit, end in zip(firsts[:-1], firsts[1:], strict=True):
        while unit < end:
            begins.append(unit)
            limit = positions[unit] + targets[unit]
            top = min(end, unit + room)  # a unit has at least one token
            after = bisect.bisect_right(positions, limit, unit, top + 1) - 1
            # Two units always fit. A last unit that would be alone is added if it fits.
            after = max(after, min(unit + 2, end))
            if end - after == 1:
                if positions[end] - positions[unit] <= room:
                    after = end
                elif after - unit > 2:
                    after -= 1
            unit = after
    ends = np.array([*begins[1:], len(bounds) - 1])
    start = bounds[begins]
    return start, (bounds[ends] - start).astype(np.int32)


def _targets(bounds: np.ndarray, room: int, short_share: float) -> np.ndarray:
    """Returns [U] the maximum size of a piece that begins with each unit."""
    begin = bounds[:-1]
    words = philox(make_key(room), begin & 0xFFFFFFFF, begin >> 32, 0, 0)
    short = words[0] < np.uint64(round(short_share * 2**32))
    return np.where(short, 2 + below(words[1], room - 1), room)


def check_negatives(split: Split, plan: PairPlan) -> None:
    """Raises PlmjaxError if a split has no pair, or no other text for a false B."""
    pieces = np.flatnonzero(np.diff(plan.cut_first))
    if not len(pieces):
        raise no_two_sentences(split.name)
    if plan.pairs.kind == "sop":
        return
    where = plan.start[pieces]
    if plan.pairs.negatives == "document":
        where = split.document(where)
    if where.min() == where.max():
        what = {"document": "document", "corpus": "stretch"}[plan.pairs.negatives]
        raise DataError(
            f"the {split.name} split has one {what} of two sentences or more, so there "
            "is no other to sample a false next sentence from.",
            hint="Give more documents (--config.data.source.document=blank or line, "
            "--config.data.held_out_percent), or set objective.negatives=corpus.",
        )


def no_two_sentences(split: str) -> PlmjaxError:
    """The error (code 3) for a split without a document of two sentences."""
    return DataError(
        f"no document of the {split} split holds two sentences, which sentence pairs "
        "need.",
        hint="Make documents longer (--config.data.source.document=blank or file), or "
        "change --config.data.sentences or --config.data.held_out_percent.",
    )


def no_sentences() -> PlmjaxError:
    """The error for a store that does not record sentences."""
    return PlmjaxError(
        "sentence pairs need the ends of sentences, which the prepared data do not "
        "record.",
        hint="Set --config.data.sentences=punctuation, or lines where a line is a "
        "sentence.",
    )
