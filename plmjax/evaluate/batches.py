"""Rows of similar length as batches of few shapes, each of which is compiled once."""

from typing import NamedTuple

import numpy as np

# Row lengths, two in each doubling: above 8, at most a third of a row is padding.
_LENGTHS = sorted(size << n for size in (8, 12) for n in range(16))


class Batch(NamedTuple):
    """The rows [n] of one batch, at most `size` of at most `length` tokens."""

    length: int
    size: int
    rows: np.ndarray


def rounded(size: int, longest: int) -> int:
    """Returns the next of few row lengths that holds `size` tokens."""
    return min(next(n for n in _LENGTHS if n >= size), longest)


def make_batches(sizes: np.ndarray, longest: int, batch_tokens: int) -> list[Batch]:
    """Groups rows of `sizes` tokens into batches of few shapes, the longest first.

    A batch has at most `batch_tokens` tokens with padding, or is one row. As each
    length costs a compilation, it is used only if it saves at least `batch_tokens` of
    padding; else its rows use the next longer one. The longest come first, as they need
    most memory.
    """
    lengths = np.array([n for n in _LENGTHS if n < longest] + [longest])
    bucket = np.searchsorted(lengths, sizes)
    used = np.unique(bucket)
    for here, longer in zip(used[:-1], used[1:], strict=True):
        moved = bucket == here
        saved = moved.sum() * (lengths[longer] - lengths[here])
        if saved < batch_tokens:
            bucket[moved] = longer
    batches = []
    for number in np.unique(bucket)[::-1]:
        rows, length = np.flatnonzero(bucket == number), int(lengths[number])
        count = -(-len(rows) // max(batch_tokens // length, 1))
        size = -(-len(rows) // count)
        batches += [
            Batch(length, size, rows[begin : begin + size])
            for begin in range(0, len(rows), size)
        ]
    return batches
