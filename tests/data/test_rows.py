"""Packing plans and batches: nothing lost, nothing crosses, nothing twice."""

import time
import tracemalloc

import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.data import loader, rows
from plmjax.data.loader import Loader, Phase, held_out_batches, permute, read_ahead


class Stream:
    """Stands for a Split: token i of the stream is i + 100, odd ones begin a word."""

    name = "train"

    def __init__(self, lengths):
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])

    def read(self, index):
        return (index + 100).astype(np.int32), index % 2 == 1


class Ids:
    """Stands for a Tokenizer."""

    cls_id, sep_id, pad_id = 1, 2, 0


def lengths(count: int = 3000, longest: int = 300) -> np.ndarray:
    return np.random.default_rng(0).integers(1, longest, count)


@pytest.fixture(scope="module")
def plan():
    return rows.make_plan(Stream(lengths()), 64)


def test_a_plan_is_made_in_little_memory():
    size = np.random.default_rng(0).integers(1, 127, 20_000, np.int32)
    tracemalloc.start()
    rows.pack(np.cumsum(size), size, 128)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 60 * len(size)  # bytes: tuples of Python would need 160 a piece


def test_a_plan_holds_every_token_once(plan):
    seen = np.zeros(lengths().sum(), int)
    for start, size in zip(plan.start, plan.size, strict=True):
        seen[start : start + size] += 1
    assert (seen == 1).all()
    needs = np.add.reduceat(plan.size + 2, plan.first[:-1])
    assert needs.max() <= 64
    assert plan.fill > 0.98


@pytest.mark.parametrize("tokens, length", [(22, 32), (70, 128), (65, 128), (400, 512)])
def test_documents_of_one_awkward_length_fill_their_rows_too(tokens, length):
    plan = rows.make_plan(Stream([tokens] * 1000), length)
    assert plan.fill > 0.98
    seen = np.zeros(tokens * 1000, int)
    for start, size in zip(plan.start, plan.size, strict=True):
        seen[start : start + size] += 1
    assert (seen == 1).all() and plan.size.min() >= 3


def test_pieces_do_not_cross_documents(plan):
    offsets = Stream(lengths()).offsets
    ends = plan.start + plan.size
    document = np.searchsorted(offsets, plan.start, side="right")
    assert (ends <= offsets[document]).all()


def test_single_rows_hold_one_piece_each():
    plan = rows.make_plan(Stream([5, 100, 3]), 64, packed=False)
    np.testing.assert_array_equal(plan.first, np.arange(5))
    np.testing.assert_array_equal(plan.size, [5, 62, 38, 3])


def test_gathered_rows_are_the_documents_between_cls_and_sep(plan):
    wanted = np.array([0, 7, -1, plan.rows - 1])
    batch = rows.gather(Stream(lengths()), plan, wanted, cls=1, sep=2, pad=0)
    for i, row in enumerate(wanted):
        tokens, segments = batch["tokens"][i], batch["segments"][i]
        if row < 0:
            assert not tokens.any() and not segments.any()
            continue
        at = 0
        for number, piece in enumerate(range(plan.first[row], plan.first[row + 1]), 1):
            start, size = plan.start[piece], plan.size[piece]
            stream = np.arange(start, start + size)
            here = slice(at, at + size + 2)
            np.testing.assert_array_equal(tokens[here], [1, *(stream + 100), 2])
            np.testing.assert_array_equal(batch["positions"][i][here], range(size + 2))
            starts = batch["word_start"][i][here]
            np.testing.assert_array_equal(starts, [False, *(stream % 2 == 1), False])
            assert (segments[here] == number).all()
            at += size + 2
        assert not tokens[at:].any() and not segments[at:].any()


def test_only_a_document_that_goes_on_is_cut():
    plan = rows.make_plan(Stream([100, 30]), 64, packed=False)
    batch = rows.gather(Stream([100, 30]), plan, np.arange(3), cls=1, sep=2, pad=0)
    # 62 tokens of the first, the other 38, and the second document.
    assert np.argwhere(batch["cut"]).tolist() == [[0, 63]]
    assert batch["tokens"][0, 63] == 2


def test_a_plan_is_kept_and_a_damaged_one_is_named(tmp_path):
    stream = Stream(lengths(50))
    made = rows.load_plan(stream, 64, True, tmp_path)
    again = rows.load_plan(stream, 64, True, tmp_path)
    np.testing.assert_array_equal(made.start, again.start)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PlmjaxError, match="rows-v2-train-64-packed.npz") as caught:
        rows.load_plan(stream, 64, True, tmp_path)
    assert caught.value.code == 3


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 4097])
def test_permutations_are_permutations(size):
    one, other = (permute(np.arange(size), size, key) for key in (1, 2))
    np.testing.assert_array_equal(np.sort(one), np.arange(size))
    if size > 60:
        assert (one != other).mean() > 0.9
        # No trace of the order: neighbours end up anywhere.
        assert abs(np.corrcoef(one, np.arange(size))[0, 1]) < 6 / np.sqrt(size)


def make_loader(plan, **more) -> Loader:
    phases = [Phase(3, 16, plan), Phase(600, 32, plan)]
    return Loader(Stream(lengths()), phases, Ids(), seed=3, **more)


def test_an_epoch_reads_every_row_once(plan):
    """Each of six in an order of its own, whether its rows are of one batch or many."""
    source = Loader(Stream(lengths()), [Phase(6, plan.rows, plan)], Ids(), seed=3)
    epochs = [source.rows(step)[1] for step in range(6)]
    for number, order in enumerate(epochs):
        np.testing.assert_array_equal(np.sort(order), np.arange(plan.rows))
        for before in epochs[:number]:
            assert (order != before).any(), number
    source = make_loader(plan)
    found = np.concatenate([source.rows(3 + i)[1] for i in range(500)])
    first, second = found[: plan.rows], found[plan.rows : 2 * plan.rows]
    np.testing.assert_array_equal(np.sort(first), np.arange(plan.rows))
    assert (first[: len(second)] != second).any()


def test_batches_are_a_function_of_seed_and_step(plan):
    one, other = make_loader(plan), make_loader(plan)
    other.batch(100)
    for name, array in one.batch(50).items():
        np.testing.assert_array_equal(array, other.batch(50)[name])
    assert one.batch(0)["tokens"].shape == (16, 64)
    assert one.batch(3)["tokens"].shape == (32, 64)
    with pytest.raises(IndexError):
        one.batch(603)


def test_processes_share_one_global_batch(plan):
    whole = make_loader(plan).batch(9)
    # Contiguous or not: where a mesh lies across processes, shares are scattered.
    shares = [np.arange(0, 8), np.r_[8:12, 20:24], np.r_[12:20, 24:32]]
    for mine in shares:
        part = make_loader(plan, mine=lambda _, mine=mine: mine).batch(9)
        for name, array in whole.items():
            np.testing.assert_array_equal(array[mine], part[name])


def test_left_out_batches_are_not_read(plan):
    """A run that does without some batches reads what follows them, nothing twice."""
    loader = make_loader(plan)
    for step, ahead in ((5, 3), (3, 600)):
        there = loader.rows(step, ahead)[1:]
        if step + ahead < loader.steps:
            np.testing.assert_array_equal(there, loader.rows(step + ahead)[1:])
        batch = loader.batch(step, ahead)
        np.testing.assert_array_equal(batch["row"], there[0])


def test_copies_follow_epochs(plan):
    source = make_loader(plan, copies=2)
    steps = plan.rows // 32 + 2
    assert set(source.batch(3)["copy"]) == {0}
    assert set(source.batch(3 + steps)["copy"]) == {1}


def test_reading_ahead_changes_nothing_and_holds_little(plan):
    source = make_loader(plan)
    made = []
    batches = read_ahead(lambda step: made.append(step) or source.batch(step), 0, 500)
    next(batches)
    time.sleep(0.3)
    assert len(made) < 12
    for step, batch in zip(range(5, 9), read_ahead(source.batch, 5, 9), strict=True):
        np.testing.assert_array_equal(batch["tokens"], source.batch(step)["tokens"])


@pytest.mark.parametrize("batch", [7, 64])
def test_held_out_batches_hold_every_row_once(plan, batch):
    found = list(held_out_batches(Stream(lengths()), plan, Ids(), batch))
    assert all(b["tokens"].shape == (batch, 64) for b in found)
    rows_seen = np.concatenate([b["row"][b["segments"].any(1)] for b in found])
    np.testing.assert_array_equal(rows_seen, np.arange(plan.rows))
    few = list(held_out_batches(Stream(lengths()), plan, Ids(), batch, max_rows=3))
    assert len(few) == 1 and few[0]["segments"].any(1).sum() == 3


def test_permutation_of_a_row_is_what_it_was():
    """Golden values: whoever changes them changes the order of every resumed run."""
    np.testing.assert_array_equal(
        loader.permute(np.arange(6), 1000, 12345), [767, 7, 123, 504, 368, 658]
    )
