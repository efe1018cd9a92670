"""Which pieces of documents share a row of L tokens: a plan, made once a length.

A document longer than L - 2 is split into pieces, and so is one that fills what a row
has left. A packed row holds several pieces,
each between its own [CLS] and [SEP]; attention never crosses from one to another.
"""

import dataclasses
import os
import zipfile
from pathlib import Path

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.data.store import Split

# Part of the name of a saved plan: raise it when the packing changes.
_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """Row r holds pieces first[r] to first[r + 1]; each is a stretch of the stream.

    `start` [P] int64 and `size` [P] int32 say where a piece begins in the split's
    token stream and how many tokens it has, [CLS] and [SEP] not counted.
    """

    length: int
    first: np.ndarray
    start: np.ndarray
    size: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.first) - 1

    @property
    def tokens(self) -> int:
        """Tokens in all rows, [CLS] and [SEP] included, padding not."""
        return int(self.size.sum()) + 2 * len(self.size)

    @property
    def fill(self) -> float:
        """The share of all positions that is not padding."""
        return self.tokens / max(self.rows * self.length, 1)


def split_documents(offsets: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents into pieces of at most `room` tokens; (start, size), in order."""
    lengths = np.diff(offsets)
    pieces = -(-lengths // room)
    document = np.repeat(np.arange(len(lengths)), pieces)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = offsets[:-1][document] + nth * room
    size = np.minimum(room, offsets[1:][document] - start)
    return start, size.astype(np.int32)


def pack(
    start: np.ndarray, size: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fills row after row with the longest piece that still fits.

    Where none fits and more than 2 % of the row is left, the longest piece is cut to
    fill it, and its rest waits on. Returns (start, size) of the pieces in their order,
    and the first piece of each row; sizes count neither [CLS] nor [SEP].
    """
    waiting: list[list[tuple[int, int]]] = [[] for _ in range(length + 1)]
    pieces = zip(start[::-1].tolist(), size[::-1].tolist(), strict=True)
    for piece in pieces:  # from the last, so that pop() follows the corpus
        waiting[piece[1] + 2].append(piece)
    # Bit n says that a piece which needs n tokens is waiting: the longest that fits
    # is the highest bit below the room.
    available = sum(1 << need for need, pieces in enumerate(waiting) if pieces)
    # Tokens below which a piece is not worth its own [CLS] and [SEP].
    crumb = max(2, min(6, length // 16))
    smallest = max(2 + crumb, length // 50 + 1)
    placed, first = [], [0]
    while available:
        room = length
        while True:
            need = (available & ((2 << room) - 1)).bit_length() - 1
            cut = need < 0 and bool(available) and room >= smallest
            if cut:
                need = available.bit_length() - 1
            if need < 0:
                break
            at, tokens = waiting[need].pop()
            if not waiting[need]:
                available ^= 1 << need
            if cut:
                # The rest shall be no crumb either.
                here = min(room - 2, tokens - min(crumb, tokens // 2))
                rest = (at + here, tokens - here)
                waiting[rest[1] + 2].append(rest)
                available |= 1 << (rest[1] + 2)
                tokens = here
            placed.append((at, tokens))
            room -= tokens + 2
        first.append(len(placed))
    starts, sizes = np.asarray(placed, np.int64).reshape(-1, 2).T
    return starts, sizes.astype(np.int32), np.asarray(first, np.int64)


def make_plan(split: Split, length: int, packed: bool = True) -> Plan:
    """Plans the rows of `length` tokens of a split.

    Raises:
      PlmjaxError: rows too short to hold a token.
    """
    if length < 8:
        raise PlmjaxError(
            f"data.length is {length}; a row needs at least 8 tokens.",
            hint="128 and 512 are usual.",
        )
    start, size = split_documents(np.asarray(split.offsets), length - 2)
    if packed:
        start, size, first = pack(start, size, length)
    else:
        first = np.arange(len(start) + 1)
    return Plan(length, first, start, size)


def load_plan(split: Split, length: int, packed: bool, directory: Path) -> Plan:
    """Returns the plan from `directory`, where it is made and kept the first time."""
    name = f"rows-v{_VERSION}-{split.name}-{length}-{'packed' if packed else 'single'}"
    path = directory / f"{name}.npz"
    if path.exists():
        try:
            # Opened here: numpy leaves a file that it cannot read open.
            with open(path, "rb") as file, np.load(file) as saved:
                return Plan(length, saved["first"], saved["start"], saved["size"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise PlmjaxError(
                f"{path.name} in the token store cannot be read ({error}).",
                hint="Delete it; it is made again from the store.",
                code=Exit.DATA,
            ) from error
    plan = make_plan(split, length, packed)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, first=plan.first, start=plan.start, size=plan.size)
    temporary.replace(path)
    return plan


def gather(split: Split, plan: Plan, rows: np.ndarray, cls: int, sep: int, pad: int):
    """Returns the arrays of the given rows of a plan, each [len(rows), L], as a dict.

    A row of -1 is empty: all padding, segment 0.
    """
    count, length = len(rows), plan.length
    shape = (count, length)
    real = np.flatnonzero(rows >= 0)
    begin, end = plan.first[rows[real]], plan.first[rows[real] + 1]
    pieces = end - begin
    row = np.repeat(real, pieces)  # of each piece
    nth = np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    piece = np.repeat(begin, pieces) + nth
    size = plan.size[piece].astype(np.int64)
    # Where in the flat [count * L] array each piece's [CLS] stands.
    ends = np.cumsum(size + 2)
    before_row = np.repeat((ends - size - 2)[nth == 0], pieces)
    at = row * length + (ends - size - 2) - before_row
    inner = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    token_at = np.repeat(at + 1, size) + inner
    tokens = np.full(shape, pad, np.int32)
    word_start = np.zeros(shape, bool)
    values = split.take(np.repeat(plan.start[piece], size) + inner)
    tokens.reshape(-1)[token_at], word_start.reshape(-1)[token_at] = values
    tokens.reshape(-1)[at] = cls
    tokens.reshape(-1)[at + size + 1] = sep
    whole = np.arange((size + 2).sum()) - np.repeat(ends - size - 2, size + 2)
    whole_at = np.repeat(at, size + 2) + whole
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    segments.reshape(-1)[whole_at] = np.repeat(nth + 1, size + 2)
    positions.reshape(-1)[whole_at] = whole
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "types": np.zeros(shape, np.int32),
        "word_start": word_start,
    }
