"""Batches of sentence pairs: the end of A and the choice of B, sampled each epoch.

A false B (NSP) is a possible B of another piece: of the same length or barely shorter,
and sampled as often as it is a true one. So neither its length nor its number of
sentences distinguishes it from a true B.
"""

import dataclasses

import numpy as np

from plmjax import DataError
from plmjax.data.packing import Spans, count_up, lay, pieces_of
from plmjax.data.pairs import PairPlan
from plmjax.data.philox import below, make_key, philox, unit
from plmjax.data.store import Split

# How many neighbours in length to choose from (None: all that are shorter), and how
# often to sample, until one is from another document and has another text.
_ROUNDS = ((8, 4), (512, 64), (None, 512))
HELD_OUT = make_key(0x48454C44)  # the same pairs each time, whatever the run's seed


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The n pieces of a batch with their sampled pairs; the arrays are [n] int64.

    B is tokens `begin` to `end` of the stream; A ends at `cut`. An unpaired piece has
    label -1, and A is all of it.
    """

    piece: np.ndarray
    row: np.ndarray  # the index in the batch
    counter: tuple[np.ndarray, np.ndarray, np.ndarray]  # of philox
    cut: np.ndarray
    amid: np.ndarray  # bool: the cut is inside a sentence
    begin: np.ndarray
    end: np.ndarray
    label: np.ndarray


def gather_pairs(
    split: Split,
    plan: PairPlan,
    rows: np.ndarray,
    epochs: np.ndarray,
    key: tuple[int, int],
    ids: tuple[int, int, int],
) -> dict[str, np.ndarray]:
    """Returns the arrays of the given rows, as rows.gather, and cls and pair_label.

    A row's pairs depend only on (key, its epoch, its number). `ids` are those of [CLS],
    [SEP] and padding. cls [B, P] is the position of each piece's [CLS] (0 also if there
    is no piece). pair_label [B, P] is 0 for a true B or the right order, else 1; -1
    without a pair.
    """
    drawn = _draw(split, plan, rows, epochs, key)
    spans = _spans(plan, drawn)
    arrays, at = lay(split, spans, (len(rows), plan.length), ids)
    index, shape = (drawn.row, drawn.counter[0]), (len(rows), plan.most)
    cls, label = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
    cls[index] = at[spans.lead > 0] - drawn.row * plan.length
    label[index] = drawn.label
    return arrays | {"cls": cls, "pair_label": label}


def _draw(split: Split, plan: PairPlan, rows, epochs, key) -> Drawn:
    piece, row = pieces_of(plan, rows)
    slot = count_up(np.bincount(row, minlength=len(rows)))
    counter = slot, rows[row], epochs[row]
    words = philox(key, *counter, 0)
    end = plan.start[piece] + plan.size[piece]
    choices = plan.cut_first[piece + 1] - plan.cut_first[piece]
    paired = choices > 0
    chosen = plan.cut_first[piece] + below(words[0], choices)
    cut, amid = end.copy(), np.zeros(len(end), bool)
    cut[paired], amid[paired] = plan.cut[chosen[paired]], plan.amid[chosen[paired]]
    label = np.where(paired, below(words[1], 2), -1)
    drawn = Drawn(
        piece=piece,
        row=row,
        counter=counter,
        cut=cut,
        amid=amid,
        begin=cut.copy(),
        end=end,
        label=label,
    )
    if plan.pairs.kind == "nsp":
        _replace(split, plan, drawn, np.flatnonzero(label == 1), key)
    return drawn


def _spans(plan: PairPlan, drawn: Drawn) -> Spans:
    """The spans of A and B of each piece, swapped if its label for SOP is 1."""
    start = plan.start[drawn.piece]
    first = np.stack([start, drawn.begin], 1)
    size = np.stack([drawn.cut - start, drawn.end - drawn.begin], 1)
    if plan.pairs.kind == "sop":
        swapped = drawn.label == 1
        first[swapped], size[swapped] = first[swapped, ::-1], size[swapped, ::-1]
    kept = np.ones(first.shape, bool)
    kept[:, 1] = drawn.label >= 0
    lead = np.zeros(first.shape, np.int64)
    lead[:, 0] = 1
    row = np.repeat(drawn.row, 2).reshape(-1, 2)
    return Spans(row[kept], first[kept], size[kept], lead[kept])


# --- a B that does not follow


def _replace(split: Split, plan: PairPlan, drawn: Drawn, false: np.ndarray, key):
    """Replaces B by another text, never by an equal one, in these pieces."""
    left, block = false, 1
    for window, draws in _ROUNDS:
        if not len(left):
            return
        tails = _candidates(
            plan, drawn, left, key=key, block=block, window=window, draws=draws
        )
        left = _use_first(split, plan, drawn, left, tails)
        block += draws // 2
    for one in left.tolist():
        _search(split, plan, drawn, one=one, key=key, block=block)


def _candidates(
    plan: PairPlan, drawn: Drawn, which, key, block: int, window: int | None, draws: int
) -> np.ndarray:
    """Samples tails [n, draws] that are nearly as long as the true B, not longer."""
    tails, amid = plan.tails, drawn.amid[which]
    true_size = drawn.end[which] - drawn.cut[which]
    wanted = plan.key(true_size, amid)
    stop = np.searchsorted(tails.key, wanted, side="right")
    # Tails that differ in `amid` could be recognised by their beginning.
    bottom = np.searchsorted(tails.key, plan.key(np.zeros_like(true_size), amid))
    if window is not None:
        same = np.searchsorted(tails.key, wanted)
        bottom = np.maximum(bottom, np.minimum(same, stop - window))
    low = np.where(bottom > 0, tails.weight[bottom - 1], 0.0)
    high = tails.weight[stop - 1]
    counter = (word[which, None] for word in drawn.counter)
    words = philox(key, *counter, block + np.arange(draws // 2))
    share = np.concatenate([unit(*words[:2]), unit(*words[2:])], 1)
    at = low[:, None] + share * (high - low)[:, None]
    tail = np.searchsorted(tails.weight, at, side="right")
    return np.clip(tail, bottom[:, None], stop[:, None] - 1)


def _use_first(split: Split, plan: PairPlan, drawn: Drawn, which, tails) -> np.ndarray:
    """Uses the first valid candidate of each piece; returns pieces without one."""
    elsewhere = _elsewhere(split, plan, drawn.piece[which, None], tails)
    done = np.zeros(len(which), bool)
    for tail, allowed in zip(tails.T, elsewhere.T, strict=True):
        open_ = np.flatnonzero(allowed & ~done)
        good = open_[_differs(split, plan, drawn, which[open_], tail[open_])]
        _replace_by(plan, drawn, which[good], tail[good])
        done[good] = True
        if done.all():
            break
    return which[~done]


def _replace_by(plan: PairPlan, drawn: Drawn, which, tail) -> None:
    """Replaces B by these tails, cut if they are too long."""
    tails = plan.tails
    room = drawn.end[which] - drawn.cut[which]
    drawn.begin[which] = tails.start[tail]
    drawn.end[which] = tails.start[tail] + np.minimum(tails.size[tail], room)


def _elsewhere(split: Split, plan: PairPlan, piece, tail) -> np.ndarray:
    """Whether tails are from another document than pieces, or another piece."""
    others = plan.tails.piece[tail]
    if plan.pairs.negatives == "corpus":
        return others != piece
    return split.document(plan.start[others]) != split.document(plan.start[piece])


def _differs(split: Split, plan: PairPlan, drawn: Drawn, which, tail) -> np.ndarray:
    """Whether tails begin with another sentence than the true B, by its tokens."""
    assert split.sentences is not None
    begin, room = plan.tails.start[tail], drawn.end[which] - drawn.cut[which]
    after = split.sentences[np.searchsorted(split.sentences, begin, side="right")]
    size = np.minimum(np.minimum(after - begin, plan.tails.size[tail]), room)
    inner = count_up(size)
    theirs, _ = split.read(np.repeat(begin, size) + inner)
    ours, _ = split.read(np.repeat(drawn.cut[which], size) + inner)
    of = np.repeat(np.arange(len(size)), size)
    return np.bincount(of[theirs != ours], minlength=len(size)) > 0


def _search(split: Split, plan: PairPlan, drawn: Drawn, one: int, key, block: int):
    """Searches all tails, for a piece with a text that is in nearly all others."""
    tails, which = plan.tails, np.array([one])
    all_ = np.arange(len(tails.key))
    fits = tails.size <= drawn.end[one] - drawn.cut[one]
    allowed = _elsewhere(split, plan, drawn.piece[which], all_)
    word = philox(key, *(words[one] for words in drawn.counter), block)[0]
    # Tails that are too long come last and are cut.
    for options in (np.flatnonzero(allowed & fits), np.flatnonzero(allowed & ~fits)):
        for tail in np.roll(options, -below(word, len(options)))[:, None]:
            if _differs(split, plan, drawn, which, tail)[0]:
                _replace_by(plan, drawn, which, tail)
                return
    raise DataError(
        f"the {split.name} split has no text that can be a false next "
        "sentence: its documents are the same.",
        hint="Give a more varied corpus.",
    )
