"""Packs pieces of documents into rows, and lays out their tokens."""

import dataclasses
from array import array

import numpy as np

from plmjax.data.store import Split


@dataclasses.dataclass(frozen=True)
class Plan:
    """Row r holds pieces first[r] to first[r + 1]; each is a span of the stream.

    `start` [P] int64 is where a piece begins in the split's token stream, `size` [P]
    int32 its number of tokens, without [CLS] and [SEP].
    """

    length: int
    first: np.ndarray
    start: np.ndarray
    size: np.ndarray

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.first) - 1

    @property
    def bounds(self) -> np.ndarray:
        """The rows' ends, source by source, after 0: here of the only source."""
        return np.array([0, self.rows])

    @property
    def tokens(self) -> int:
        """Tokens in all rows, with [CLS] and [SEP], without padding."""
        return int(self.size.sum()) + 2 * len(self.size)

    @property
    def fill(self) -> float:
        """The share of all positions that is not padding."""
        return self.tokens / max(self.rows * self.length, 1)


def pack(
    start: np.ndarray,
    size: np.ndarray,
    length: int,
    overhead: int = 2,
    divisible: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fills row after row with the longest piece that still fits.

    If none fits and more than 2 % of the row is left, the longest piece is cut to fill
    it, if pieces are `divisible`, and the remainder is packed later. Returns start and
    size of the pieces in row order, and the first piece of each row. Sizes exclude the
    `overhead`: [CLS] and each [SEP] of a piece.
    """
    # Their starts, by the tokens that pieces need; in arrays, as there may be millions.
    # In reverse, so that pop() takes them in corpus order.
    order = np.argsort(size[::-1], kind="stable")
    ends = np.cumsum(np.bincount(size, minlength=length + 1 - overhead))
    by_size = np.split(start[::-1][order].astype(np.int64), ends[:-1])
    waiting = [array("q") for _ in range(overhead)]
    waiting += [array("q", some.tobytes()) for some in by_size]
    del order, by_size
    # Bit n is set if a piece that needs n tokens is waiting. The longest piece that
    # fits is the highest set bit up to the room.
    available = sum(1 << need for need, pieces in enumerate(waiting) if pieces)
    # Pieces of fewer tokens would be mostly [CLS] and [SEP].
    crumb = max(2, min(6, length // 16))
    smallest = max(overhead + crumb, length // 50 + 1)
    starts, sizes, first = array("q"), array("i"), array("q", [0])
    while available:
        room = length
        while True:
            need = (available & ((2 << room) - 1)).bit_length() - 1
            cut = divisible and need < 0 and bool(available) and room >= smallest
            if cut:
                need = available.bit_length() - 1
            if need < 0:
                break
            at, tokens = waiting[need].pop(), need - overhead
            if not waiting[need]:
                available ^= 1 << need
            if cut:
                # The remainder must not be shorter than a crumb either.
                here = min(room - overhead, tokens - min(crumb, tokens // 2))
                waiting[need - here].append(at + here)
                available |= 1 << (need - here)
                tokens = here
            starts.append(at)
            sizes.append(tokens)
            room -= tokens + overhead
        first.append(len(starts))
    return np.asarray(starts), np.asarray(sizes), np.asarray(first)


def pieces_of(plan: Plan, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (piece, index into rows) of all pieces of these rows; -1 has none."""
    real = np.flatnonzero(rows >= 0)
    begin, end = plan.first[rows[real]], plan.first[rows[real] + 1]
    pieces = end - begin
    return np.repeat(begin, pieces) + count_up(pieces), np.repeat(real, pieces)


def count_up(counts: np.ndarray) -> np.ndarray:
    """Returns 0 .. counts[0] - 1, 0 .. counts[1] - 1, and so on."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


@dataclasses.dataclass(frozen=True)
class Spans:
    """Spans of the stream, in order, each followed by a [SEP]; all arrays [S] int64.

    `row` is the index in the batch. The first span of a piece (`lead` 1) has a [CLS]
    before it; the others (`lead` 0) continue the piece.
    """

    row: np.ndarray
    start: np.ndarray
    size: np.ndarray
    lead: np.ndarray


def lay(
    split: Split, spans: Spans, shape: tuple[int, int], ids: tuple[int, int, int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the arrays of rows, each of `shape`, and the position of each span.

    `ids` are those of [CLS], [SEP] and padding. The position is the index of a span's
    first token (its [CLS] if it has one) in the flattened arrays. `types` are 0 in a
    piece's first span and 1 in others.
    """
    cls, sep, pad = ids
    width = spans.lead + spans.size + 1
    ends = np.cumsum(width)
    begins = ends - width
    # Subtracting the begin of its row's first span gives a span's column.
    row_starts = np.flatnonzero(np.diff(spans.row, prepend=-1))
    row_sizes = np.diff(np.append(row_starts, len(width)))
    at = spans.row * shape[1] + begins - np.repeat(begins[row_starts], row_sizes)
    leads = np.flatnonzero(spans.lead)
    before = np.cumsum(spans.size) - spans.size
    text = np.arange(spans.size.sum())
    text_at = text + np.repeat(at + spans.lead - before, spans.size)
    values = split.read(text + np.repeat(spans.start - before, spans.size))
    tokens = np.full(shape, pad, np.int32)
    word_start = np.zeros(shape, bool)
    tokens.reshape(-1)[text_at], word_start.reshape(-1)[text_at] = values
    tokens.reshape(-1)[at[leads]] = cls
    tokens.reshape(-1)[at + width - 1] = sep
    piece = np.cumsum(spans.lead) - 1  # of each span
    piece_width = np.add.reduceat(width, leads) if len(leads) else width
    first_of_row = piece[row_starts]
    pieces = np.diff(np.append(first_of_row, len(leads)))
    segment = count_up(pieces) + 1
    position = count_up(piece_width)
    token_at = np.repeat(at[leads], piece_width) + position
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    segments.reshape(-1)[token_at] = np.repeat(segment, piece_width)
    positions.reshape(-1)[token_at] = position
    types = np.zeros(shape, np.int32)
    if len(leads) < len(width):
        types.reshape(-1)[token_at] = np.repeat(1 - spans.lead, width)
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "types": types,
        "word_start": word_start,
    }, at
