"""Rows of a task packed into fewer: several examples a row, kept apart by segments.

Legend: N rows, P packed rows, L tokens a row, K examples a packed row at most.
"""

import dataclasses

import numpy as np

from plmjax.data.features import NONE, Features
from plmjax.data.packing import count_up, pack


@dataclasses.dataclass(frozen=True)
class Packed:
    """Packed rows, and where each of the N rows is, in the order of the packs.

    `features` has P rows. Its per-token arrays are those of the members, one after
    another; segments count them from 1. If each word has a label, `label` and `weight`
    are per token, too; else they are [P, K, ...], and "cls" [P, K] int32 is the place
    of each member's first token.

    `row`, `pack`, `slot`, `at`, `size` [N]: the row's number, its packed row, its index
    and its first token there, and its tokens.
    """

    features: Features
    row: np.ndarray
    pack: np.ndarray
    slot: np.ndarray
    at: np.ndarray
    size: np.ndarray

    def unpack(
        self, packs: np.ndarray, scores: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (rows, their scores) from the scores of consecutive packed rows.

        Scores per token, [B, L, C], are as long as the longest of the rows.
        """
        here = slice(*np.searchsorted(self.pack, [packs[0], packs[-1] + 1]))
        inside, size = self.pack[here] - packs[0], self.size[here]
        if self.features.word is None:
            return self.row[here], scores[inside, self.slot[here]]
        column = count_up(size)
        each = np.repeat(np.arange(len(size)), size)
        values = np.zeros((len(size), size.max(), scores.shape[-1]), scores.dtype)
        values[each, column] = scores[inside[each], self.at[here][each] + column]
        return self.row[here], values


def pack_features(features: Features, seed: int = 0) -> Packed:
    """Packs rows into as few of the same length as a greedy choice finds.

    The longest row that fits is next; the seed orders rows of equal length.
    """
    length, sizes = features.length, features.sizes()
    order = np.random.default_rng(seed).permutation(features.rows)
    row, size, first = pack(order, sizes[order], length, 0, divisible=False)
    counts = np.diff(first)
    number, slot = np.repeat(np.arange(len(counts)), counts), count_up(counts)
    before = np.cumsum(size) - size
    at = before - np.repeat(before[first[:-1]], counts)
    # A power of two, so that the splits share programs.
    most = 1 << int(counts.max() - 1).bit_length()
    each, column = np.repeat(np.arange(len(row)), size), count_up(size)
    place = number[each], at[each] + column

    def spread(array: np.ndarray, fill: int) -> np.ndarray:
        """[N, L, ...] -> [P, L, ...]"""
        values = np.full((len(counts), *array.shape[1:]), fill, array.dtype)
        values[place] = array[row[each], column]
        return values

    def collect(array: np.ndarray) -> np.ndarray:
        """[N, ...] -> [P, K, ...]"""
        values = np.zeros((len(counts), most, *array.shape[1:]), array.dtype)
        values[number, slot] = array[row]
        return values

    arrays = {}
    for name, array in features.arrays.items():
        if name in ("label", "weight") and features.word is None:
            arrays[name] = collect(array)
        elif name != "row":
            if name == "weight":
                array = np.repeat(array[:, None], length, axis=1)
            fill = {"tokens": features.pad_id, "label": NONE}.get(name, 0)
            arrays[name] = spread(array, fill)
    arrays["row"] = np.arange(len(counts), dtype=np.int32)
    arrays["segments"][place] = slot[each] + 1
    word = features.word
    if word is None:
        arrays["cls"] = np.zeros((len(counts), most), np.int32)
        arrays["cls"][number, slot] = at
    packed = dataclasses.replace(
        features,
        arrays=arrays,
        example=features.example[row[first[:-1]]],
        word=None if word is None else spread(word, NONE),
    )
    return Packed(packed, row=row, pack=number, slot=slot, at=at, size=size)
