"""Rows of similar length as batches of few shapes, each of which is compiled once."""

from typing import NamedTuple

import numpy as np

# Row lengths, eight in each doubling from 64 on: at most a ninth of a row is padding.
_EIGHTHS = [eighth << n for n in range(3, 16) for eighth in range(8, 16)]
_LENGTHS = np.array([*range(8, 64, 8), *_EIGHTHS])


class Batch(NamedTuple):
    """The rows [n] of one batch, at most `size` of at most `length` tokens."""

    length: int
    size: int
    rows: np.ndarray


def rounded(size: int, longest: int) -> int:
    """Returns the next of few row lengths that holds `size` tokens."""
    return min(int(_LENGTHS[np.searchsorted(_LENGTHS, size)]), longest)


def make_batches(sizes: np.ndarray, longest: int, batch_tokens: int) -> list[Batch]:
    """Groups rows of `sizes` tokens into batches of few shapes, the longest first.

    A batch has at most `batch_tokens` tokens with padding, or is one row. The longest
    come first, as they need most memory.
    """
    lengths = _best_lengths(sizes, longest, 4 * batch_tokens)
    bucket = np.searchsorted(lengths, sizes)
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


def _best_lengths(sizes: np.ndarray, longest: int, price: int) -> list[int]:
    """Returns the row lengths, rising, that cost the fewest tokens with padding.

    Each length costs `price` tokens more: the time of its compilation.
    """
    known = np.append(_LENGTHS[_LENGTHS < longest], longest)
    known, counts = np.unique(known[np.searchsorted(known, sizes)], return_counts=True)
    done = np.concatenate([[0], np.cumsum(counts)])
    # For rows of the first n known lengths: their least cost, and the n below the last.
    least, below = np.zeros(len(done)), np.zeros(len(done), int)
    for n, length in enumerate(known, 1):
        costs = least[:n] + (done[n] - done[:n]) * length + price
        least[n], below[n] = costs.min(), costs.argmin()
    kept, n = [], len(known)
    while n:
        kept.append(int(known[n - 1]))
        n = below[n]
    return kept[::-1]
