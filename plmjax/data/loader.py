"""Batches as a pure function of (seed, step, store), without iterator state.

Resuming, replaying a step or changing the number of processes needs no other call.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from plmjax import PlmjaxError
from plmjax.data.mixture import Mix
from plmjax.data.pair_rows import HELD_OUT, gather_pairs
from plmjax.data.pairs import PairPlan
from plmjax.data.philox import make_key
from plmjax.data.rows import Plan, gather
from plmjax.data.store import Split
from plmjax.tokenizers import Tokenizer

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training: `steps` batches of `batch` rows of the plan's length.

    `before`: the rows that earlier stretches of the same plan have read, whose epochs
    go on; 0: new epochs. `mix`: the sources of the rows, if there are several.
    """

    steps: int
    batch: int
    plan: Plan
    before: int = 0
    mix: Mix | None = None


# The batch grows in at most so many steps; a program is compiled for each.
_RAMP = 8


def ramped(
    phases: list[Phase], tokens: int, first: int, whole: bool = False
) -> list[Phase]:
    """Returns phases whose batch grows from `first` rows over the first `tokens`.

    The steps are as many as before, or with `whole` the rows that are read.

    Raises:
      PlmjaxError: the first phase is shorter.
    """
    last, *others = phases
    shares = np.linspace(1, last.batch // first, _RAMP + 1)[:-1]
    sizes = sorted({first * int(share) for share in shares} - {last.batch})
    a_row, before, stages = last.plan.tokens / last.plan.rows, 0, []
    for size in sizes:
        steps = max(round(tokens / len(sizes) / (a_row * size)), 1)
        stages.append(Phase(steps, size, last.plan, before))
        before += steps * size
    left = last.steps - sum(stage.steps for stage in stages)
    if whole:
        left = -(-(last.steps * last.batch - before) // last.batch)
    if left < 1:
        raise PlmjaxError(
            f"data.batch_ramp: {tokens:,} tokens take {last.steps - left:,} steps, but "
            f"the phase in which the batch grows has {last.steps:,}.",
            hint="Train longer, or name fewer tokens.",
        )
    return [*stages, dataclasses.replace(last, steps=left, before=before), *others]


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Applies to each index < size the pseudorandom permutation that `key` selects.

    A Feistel network of four rounds over the next power of four; results >= size go
    through it again. It stores nothing, whatever the size.
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    words = np.random.SeedSequence(key).generate_state(4, np.uint64)
    value = np.asarray(index, np.uint64)
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = value[outside] >> shift, value[outside] & mask
        for word in words:
            left, right = right, left ^ (_mix(right ^ word) & mask)
        value[outside] = (left << shift) | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Scrambles uint64 words (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Loader:
    """Training batches of a split, phase after phase, reshuffled each epoch.

    `mine` maps the size of a global batch to the rows that this process reads. `copies`
    is the number of static masks per row, used in turn by the epochs.
    """

    def __init__(
        self,
        split: Split,
        phases: list[Phase],
        tokenizer: Tokenizer,
        seed: int,
        *,
        copies: int = 1,
        mine: Callable[[int], np.ndarray] = np.arange,
    ):
        self.split, self.phases, self.tokenizer = split, phases, tokenizer
        self.seed, self.copies = seed, copies
        self.mine = mine
        self._ends = np.cumsum([phase.steps for phase in phases])
        # The first phase of each one's epochs. Those of a mixture go on in all phases
        # of one length.
        begins = [n * (not phase.before) for n, phase in enumerate(phases)]
        firsts = zip(np.maximum.accumulate(begins).tolist(), phases, strict=True)
        self._group = [p.plan.length if p.mix else first for first, p in firsts]

    def endless(self) -> "Loader":
        """Returns the loader whose last phase goes on."""
        *phases, last = self.phases
        return Loader(
            self.split,
            [*phases, dataclasses.replace(last, steps=2**31 - 1)],
            self.tokenizer,
            self.seed,
            copies=self.copies,
            mine=self.mine,
        )

    @property
    def steps(self) -> int:
        """The steps of all phases."""
        return int(self._ends[-1])

    def phase(self, step: int) -> Phase:
        """The phase of a step."""
        return self.phases[self._number(step)]

    def _number(self, step: int) -> int:
        number = int(np.searchsorted(self._ends, step, side="right"))
        if number == len(self._ends):
            raise IndexError(f"step {step} of {self.steps}")
        return number

    def rows(self, step: int, skipped: int = 0) -> tuple[Phase, np.ndarray, np.ndarray]:
        """Returns the phase of a step and (row, epoch) of its global batch.

        `skipped` batches before it are left out.
        """
        number = self._number(step)
        phase = self.phases[number]
        before = step + skipped - (self._ends[number] - phase.steps)
        index = phase.before + before * phase.batch + np.arange(phase.batch)
        source, index = phase.mix.locate(index) if phase.mix else (0 * index, index)
        bounds = phase.plan.bounds.tolist()
        epoch, row = np.divmod(index, np.diff(bounds)[source])
        each = source + len(bounds) * epoch
        for one in np.unique(each).tolist():
            # A batch that spans two epochs uses the permutations of both.
            here, (e, s) = each == one, divmod(one, len(bounds))
            key = (s << 128) | (self.seed << 64) | (self._group[number] << 32) | e
            row[here] = bounds[s] + permute(row[here], bounds[s + 1] - bounds[s], key)
        return phase, row, epoch

    def batch(self, step: int, skipped: int = 0) -> Batch:
        """Returns this process's rows of the global batch of a step, as numpy."""
        phase, row, epoch = self.rows(step, skipped)
        # Sentence pairs are sampled again in each epoch and each phase.
        key = make_key(self.seed, self._group[self._number(step)])
        mine = self.mine(phase.batch)
        seeds = (epoch[mine], key)
        arrays = _gather(self.split, phase.plan, row[mine], self.tokenizer, seeds)
        return arrays | {"copy": (epoch[mine] % self.copies).astype(np.int32)}


def held_out_batches(
    split: Split,
    plan: Plan,
    tokenizer: Tokenizer,
    batch: int,
    max_rows: int | None = None,
    *,
    source: int | None = None,
    mine: Callable[[int], np.ndarray] = np.arange,
) -> Iterator[Batch]:
    """Yields every row once, in order; empty rows fill the last batch.

    `source`: only the rows of this source of a mixture. Sentence pairs are the same in
    every evaluation.
    """
    first, end = (0, -1) if source is None else (source, source + 1)
    first, end = int(plan.bounds[first]), int(plan.bounds[end])
    end = end if max_rows is None else min(end, first + max_rows)
    here = mine(batch)
    seeds = (np.zeros(len(here), np.int64), HELD_OUT)
    for begin in range(first, end, batch):
        row = begin + here
        arrays = _gather(split, plan, np.where(row < end, row, -1), tokenizer, seeds)
        yield arrays | {"copy": np.zeros(len(here), np.int32)}


def _gather(
    split: Split,
    plan: Plan,
    rows: np.ndarray,
    tokenizer: Tokenizer,
    seeds: tuple[np.ndarray, tuple[int, int]],
) -> Batch:
    """The arrays of rows; `seeds` of sentence pairs: the rows' epochs, and a key."""
    ids = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
    if isinstance(plan, PairPlan):
        arrays = gather_pairs(split, plan, rows, *seeds, ids)
    else:
        arrays = gather(split, plan, rows, *ids)
    return arrays | {"row": np.maximum(rows, 0).astype(np.int32)}


def read_ahead(batch: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """Yields batch(start) .. batch(stop - 1), prefetched by threads."""
    import grain

    data = grain.MapDataset.range(start, stop).map(batch)
    # grain's default buffer of 500 batches needs 36 GB for 8,192 rows x 512.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(data.to_iter_dataset(options))
