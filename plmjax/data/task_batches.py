"""Batches of a task's rows: by (seed, step) for training, in order for evaluation."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from plmjax import PlmjaxError
from plmjax.data.features import NONE, TEACHER, Features
from plmjax.data.loader import Batch, permute

_PER_TOKEN = ("tokens", "segments", "positions", "types", "word_start")
_EMPTY = -1  # the number of an empty row, which only fills a batch
_BATCHES = 1 << 32  # permutation key of the batches; smaller ones are for buckets


class TaskBatches:
    """Training batches: each row once an epoch, in a different order each epoch.

    `lengths`: each row uses the shortest that holds it, and a batch has one length
    (without any: the features' length). Rows of weight 0 fill the last batch of each
    length. `mine` maps the size of a global batch to the rows that this process reads.
    """

    def __init__(
        self,
        features: Features,
        batch: int,
        seed: int,
        *,
        lengths: Sequence[int] = (),
        mine: Callable[[int], np.ndarray] = np.arange,
    ):
        self.features, self.size, self.seed = features, batch, seed
        self.mine = mine
        longest = features.length
        if any(not 0 < length <= longest for length in lengths):
            raise PlmjaxError(
                f"the lengths {tuple(lengths)!r} of batches must be above 0, and at "
                f"most task.length={longest}.",
                hint="Leave out the others.",
            )
        self.lengths = sorted({*lengths, longest})
        bucket = np.searchsorted(self.lengths, features.sizes())
        self._rows = [np.flatnonzero(bucket == n) for n in range(len(self.lengths))]
        self._ends = np.cumsum([-(-len(rows) // batch) for rows in self._rows])

    @property
    def steps(self) -> int:
        """The number of batches in an epoch."""
        return int(self._ends[-1])

    def rows(self, step: int) -> tuple[int, np.ndarray]:
        """Returns the length and the rows [B] of a step's global batch, -1 empty."""
        epoch, index = divmod(step, self.steps)
        key = (self.seed << 96) | (epoch << 48)
        index = permute(np.array([index]), self.steps, key | _BATCHES)[0]
        number = int(np.searchsorted(self._ends, index, side="right"))
        rows = self._rows[number]
        before = self._ends[number] - -(-len(rows) // self.size)
        ranks = (index - before) * self.size + np.arange(self.size)
        real = ranks < len(rows)
        chosen = np.full(self.size, _EMPTY)
        chosen[real] = rows[permute(ranks[real], len(rows), key | number)]
        return self.lengths[number], chosen

    def batch(self, step: int) -> Batch:
        """Returns this process's rows of the global batch of a step, as numpy."""
        length, rows = self.rows(step)
        return batch_of(self.features, rows[self.mine(self.size)], length)


def batches_in_order(
    features: Features,
    batch: int,
    *,
    lengths: Sequence[int] = (),
    mine: Callable[[int], np.ndarray] = np.arange,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields (rows [B] of the global batch, -1 empty; this process's batch of them).

    Every row comes once, in order, beginning with the shortest of `lengths`; rows of
    weight 0 fill the last batch of each length.
    """
    longest = features.length
    known = sorted({*(n for n in lengths if n < longest), longest})
    bucket = np.searchsorted(known, features.sizes())
    for number, length in enumerate(known):
        rows = np.flatnonzero(bucket == number)
        for begin in range(0, len(rows), batch):
            chosen = np.full(batch, _EMPTY)
            chosen[: len(rows) - begin] = rows[begin : begin + batch]
            yield chosen, batch_of(features, chosen[mine(batch)], length)


def batch_of(features: Features, rows: np.ndarray, length: int | None = None) -> Batch:
    """Returns the arrays of these rows, cut to `length` tokens; a row of -1 is empty.

    An empty row is padding with weight 0; its label is -1, or 0 where labels are floats
    or tokens of an answer.
    """
    per_token: set[str] = set(_PER_TOKEN)
    if features.word is not None:  # a label for each word
        per_token |= {"label", TEACHER}
    if features.spans is not None:
        per_token.add(TEACHER)
    arrays = {}
    empty = rows < 0
    for name, array in features.arrays.items():
        values = array[np.maximum(rows, 0)]
        fill = 0
        if name == "tokens":
            fill = features.pad_id
        elif name == "label" and values.dtype == np.int32 and features.spans is None:
            fill = NONE
        values[empty] = fill
        if name in ("label", TEACHER):  # a last axis may hold probabilities
            values = values[:, :length] if name in per_token else values
        elif name == "states":
            # The axis of tokens; its size is 1 if a pooler reads only one.
            values = values[..., :length, :]
        elif name in per_token:
            values = values[..., :length]
        arrays[name] = values
    return arrays
