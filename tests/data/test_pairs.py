"""Sentence pairs: whole sentences, true labels, and no tell-tale in how they look."""

import itertools
import pickle

import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.data import rows
from plmjax.data.coherence import check_pairs, measure
from plmjax.data.loader import Loader, Phase, held_out_batches
from plmjax.data.pairs import PairsConfig, divide, make_pair_plan
from plmjax.data.philox import below, make_key, philox, unit

CLS, SEP, PAD = 1, 2, 0
NSP, SOP = PairsConfig("nsp"), PairsConfig("sop")


class Ids:
    """Stands for a Tokenizer."""

    cls_id, sep_id, pad_id = CLS, SEP, PAD


class Stream:
    """Stands for a Split of documents, each a list of the lengths of its sentences.

    Token i of the stream is i + 100 unless `tokens` says otherwise.
    """

    name = "train"

    def __init__(self, documents, tokens=None):
        sizes = [sum(sentences) for sentences in documents]
        self.offsets = np.cumsum([0, *sizes])
        self.sentences = np.cumsum([0, *itertools.chain.from_iterable(documents)])
        self.documents = len(documents)
        self.tokens = np.arange(self.offsets[-1]) + 100 if tokens is None else tokens

    def document(self, index):
        return np.searchsorted(self.offsets, index, side="right") - 1

    def read(self, index):
        return self.tokens[index].astype(np.int32), index % 2 == 1


def corpus(count=300, most=12, longest=30, seed=0) -> Stream:
    draw = np.random.default_rng(seed)
    return Stream(
        [draw.integers(1, longest, draw.integers(1, most)) for _ in range(count)]
    )


@pytest.fixture(scope="module")
def stream():
    return corpus()


def make(stream, pairs=NSP, packed=True, length=64, batch=16, seed=3, **more):
    plan = rows.make_plan(stream, length, packed, pairs)
    return Loader(stream, [Phase(600, batch, plan)], Ids(), seed, **more)


def pieces(batch):
    """Yields (label, A, B) of each piece, as stream positions; B may be empty."""
    for r in range(len(batch["segments"])):
        for slot in range(batch["segments"][r].max()):
            here = np.flatnonzero(batch["segments"][r] == slot + 1)
            tokens, types = batch["tokens"][r, here], batch["types"][r, here]
            assert here[0] == batch["cls"][r, slot] and tokens[0] == CLS
            np.testing.assert_array_equal(here, here[0] + np.arange(len(here)))
            np.testing.assert_array_equal(
                batch["positions"][r, here], np.arange(len(here))
            )
            label = batch["pair_label"][r, slot]
            ends = np.flatnonzero(tokens == SEP)
            assert ends[-1] == len(tokens) - 1 and len(ends) == (1 if label < 0 else 2)
            wanted = np.arange(len(tokens)) > ends[0]
            np.testing.assert_array_equal(types, wanted)
            words = batch["word_start"][r, here]
            first, second = tokens[1 : ends[0]], tokens[ends[0] + 1 : -1]
            np.testing.assert_array_equal(words[1 : ends[0]], first % 2 == 1)
            np.testing.assert_array_equal(words[ends[0] + 1 : -1], second % 2 == 1)
            assert not words[[0, *ends]].any()
            yield int(label), first - 100, second - 100


def all_pieces(stream, pairs, packed=True, epochs=1, length=64, seed=3):
    loader = make(stream, pairs, packed, length, seed=seed)
    plan = loader.phases[0].plan
    for step in range(epochs * plan.rows // 16):
        yield from pieces(loader.batch(step))


def consecutive(text) -> bool:
    return bool((np.diff(text) == 1).all())


# --- the plan


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("length", [16, 64, 512])
def test_a_plan_holds_every_token_once_in_whole_sentences(stream, packed, length):
    plan = make_pair_plan(stream, length, packed, NSP)
    seen = np.zeros(stream.offsets[-1], int)
    for start, size in zip(plan.start, plan.size, strict=True):
        seen[start : start + size] += 1
    assert (seen == 1).all()
    needs = np.add.reduceat(plan.size + 3, plan.first[:-1])
    assert needs.max() <= length and plan.size.max() <= length - 3
    assert packed or plan.most == 1
    ends = plan.start + plan.size
    assert (ends <= stream.offsets[stream.document(plan.start) + 1]).all()
    units, opens = divide(stream.sentences, stream.offsets, length - 3)
    assert np.isin(ends, units).all() and np.isin(plan.start, units).all()
    assert np.isin(stream.sentences[:-1], units[:-1][opens]).all()
    cut = np.repeat(np.arange(len(plan.size)), np.diff(plan.cut_first))
    assert (plan.cut > plan.start[cut]).all() and (plan.cut < ends[cut]).all()
    np.testing.assert_array_equal(np.isin(plan.cut, stream.sentences), ~plan.amid)
    # Amid a sentence only where no sentence begins; else wherever one does.
    whole = np.zeros(len(plan.size), bool)
    whole[cut[~plan.amid]] = True
    assert not whole[cut[plan.amid]].any()
    inside = ~np.isin(stream.sentences[:-1], plan.start)
    assert np.isin(stream.sentences[:-1][inside], plan.cut).all()
    # A piece without a cut is one sentence, and few are.
    alone = np.diff(plan.cut_first) == 0
    inner = np.searchsorted(units, ends) - np.searchsorted(units, plan.start)
    np.testing.assert_array_equal(alone, inner == 1)
    if length > 16:
        assert plan.size[alone].sum() < 0.15 * plan.size.sum()
        assert plan.tokens == plan.size.sum() + 3 * len(alone) - alone.sum()


def test_long_sentences_are_divided_to_make_pairs():
    plan = make_pair_plan(Stream([[100, 20], [200], [50]]), 64, False, NSP)
    assert plan.size.max() <= 61
    paired = np.diff(plan.cut_first) > 0
    # What is left over of two documents, and the one sentence that fits.
    assert plan.size[~paired].tolist() == [20, 29, 50]
    assert plan.size[paired].tolist() == [50, 50, 57, 57, 57] and plan.amid.all()


def test_short_pieces_come_by_chance():
    stream = Stream([[5] * 4000] * 3)
    sizes = {
        share: make_pair_plan(
            stream, 128, False, PairsConfig("nsp", short_share=share)
        ).size
        for share in (0.0, 0.1, 1.0)
    }
    assert (sizes[0.0] < 125).sum() <= 3  # the ends of documents
    assert 0.06 < (sizes[0.1] < 120).mean() < 0.14
    assert abs(np.mean(sizes[1.0]) - 62) < 5


def test_plans_are_kept_by_what_shapes_them(stream, tmp_path):
    for pairs in (None, NSP, SOP, PairsConfig("nsp", short_share=0.5)):
        made = rows.load_plan(stream, 64, True, tmp_path, pairs)
        again = rows.load_plan(stream, 64, True, tmp_path, pairs)
        np.testing.assert_array_equal(made.start, again.start)
        assert type(made) is type(again) and made.length == again.length
        assert getattr(again, "pairs", None) == pairs
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "pairs-v1-train-64-packed-0.1.npz",
        "pairs-v1-train-64-packed-0.5.npz",
        "rows-v2-train-64-packed.npz",
    ]


# --- what a batch holds


@pytest.mark.parametrize("packed", [True, False])
def test_next_sentences(stream, packed):
    labels = []
    for label, first, second in all_pieces(stream, NSP, packed, epochs=3):
        labels.append(label)
        assert consecutive(first) and consecutive(second)
        if label < 0:
            continue
        assert (second[0] == first[-1] + 1) == (label == 0)
        same = stream.document(first[:1]) == stream.document(second[:1])
        assert same == (label == 0)
        assert second[0] in stream.sentences and second[-1] + 1 in stream.sentences
    share = np.mean([label for label in labels if label >= 0])
    assert abs(share - 0.5) < 0.06 and labels.count(-1) < 0.2 * len(labels)


def test_sentence_order(stream):
    labels = []
    for label, first, second in all_pieces(stream, SOP, epochs=3):
        labels.append(label)
        if label >= 0:
            one, two = (first, second) if label == 0 else (second, first)
            np.testing.assert_array_equal(
                np.concatenate([one, two]), one[0] + np.arange(len(one) + len(two))
            )
            assert two[0] in stream.sentences
    assert abs(np.mean([label for label in labels if label >= 0]) - 0.5) < 0.06


def test_slots_hold_the_documents_of_a_row(stream):
    loader = make(stream, length=128)
    plan = loader.phases[0].plan
    for step in range(10):
        batch = loader.batch(step)
        assert batch["cls"].shape == batch["pair_label"].shape == (16, plan.most)
        assert plan.most >= 3 and batch["cls"].dtype == batch["pair_label"].dtype
        count = batch["segments"].max(1)
        empty = np.arange(plan.most) >= count[:, None]
        assert (batch["cls"][empty] == 0).all()
        assert (batch["pair_label"][empty] == -1).all()
        at_cls = np.take_along_axis(batch["tokens"], batch["cls"], 1)
        assert (at_cls[~empty] == CLS).all()
        assert not batch["types"][batch["segments"] == 0].any()


def test_anywhere_may_mean_the_same_document():
    one = Stream([[7, 8, 9] * 200])
    for label, first, second in all_pieces(one, PairsConfig("nsp", "corpus")):
        if label >= 0:
            assert (second[0] == first[-1] + 1) == (label == 0)
    # Not from its own piece either: of two pieces, always the other one.
    two = Stream([[5] * 12])
    plan = rows.make_plan(two, 33, False, PairsConfig("nsp", "corpus", 0.0))
    assert plan.size.tolist() == [30, 30]
    loader = Loader(two, [Phase(200, 2, plan)], Ids(), 0)
    for step in range(200):
        for label, first, second in pieces(loader.batch(step)):
            assert (first[0] // 30 != second[0] // 30) == (label == 1)


def test_where_a_ends_is_any_of_the_sentences_and_new_each_epoch():
    stream = Stream([[10] * 6] * 50)
    ends = []
    by_epoch = []
    for seed in range(2):
        for epoch in range(40):
            loader = make(stream, PairsConfig("nsp", short_share=0), False, 63, 50)
            loader.seed = seed
            found = [len(first) for _, first, _ in pieces(loader.batch(epoch))]
            by_epoch.append(tuple(found))
            ends += found
    assert len(set(by_epoch)) == 80
    counts = np.bincount(ends, minlength=51)[10::10]
    assert counts.sum() == len(ends)
    assert (abs(counts / counts.sum() - 0.2) < 0.03).all()


def test_false_ones_are_drawn_as_often_as_they_are_true_ones():
    # Half of the pieces have a B of 20 in 1 of 2 cuts, the others in 1 of 4.
    stream = Stream([[20, 20, 20]] * 50 + [[15, 10, 15, 10, 20]] * 50)
    loader = make(stream, PairsConfig("nsp", short_share=0), False, 73, 100)
    found = []
    for step in range(100):
        for label, _, second in pieces(loader.batch(step)):
            if label == 1 and len(second) == 20:
                found.append(int(stream.document(second[0])))
    counts = np.bincount(found, minlength=100)
    assert counts.min() > 0 and counts.sum() > 1000
    assert abs(counts[:50].sum() / counts.sum() - 2 / 3) < 0.05


def test_never_the_true_next_sentence_not_even_by_its_words():
    # Few texts, in many documents: whoever picks at random hits the true one.
    draw = np.random.default_rng(0)
    chosen = draw.integers(0, 3, (200, 4))
    tokens = (100 + 10 * chosen[:, :, None] + np.arange(5)).reshape(-1)
    stream = Stream([[5] * 4] * 200, tokens)
    loader = make(stream, PairsConfig("nsp", short_share=0), False, 23)
    hits = 0
    for step in range(20):
        batch = loader.batch(step)
        for r in range(16):
            row = batch["tokens"][r]
            one, two = np.flatnonzero(row == SEP)[:2]
            first, second = row[1:one], row[one + 1 : two]
            piece = loader.rows(step)[1][r]
            start = loader.phases[0].plan.start[piece]
            true = tokens[start + len(first) : start + 20]
            np.testing.assert_array_equal(tokens[start : start + len(first)], first)
            if batch["pair_label"][r, 0] == 0:
                np.testing.assert_array_equal(second, true)
            else:
                assert (second[:5] != true[:5]).any()
                hits += 1
    assert hits > 100


def test_a_text_that_is_everywhere_is_searched_or_refused():
    tokens = np.full(4000, 100)
    with pytest.raises(PlmjaxError, match="documents are the same") as caught:
        for step in range(4):
            make(Stream([[5] * 4] * 200, tokens)).batch(step)
    assert caught.value.code == 3
    tokens[-20:] = 7  # the one other document, which random draws would miss
    stream = Stream([[5] * 4] * 200, tokens)
    loader = make(stream, PairsConfig("nsp", short_share=0), False, 23)
    batch = loader.batch(0)
    false = batch["pair_label"][:, 0] == 1
    assert false.any()
    for row in batch["tokens"][false]:
        assert {7, 100} <= set(row.tolist())


def test_length_does_not_give_the_label_away():
    stream = corpus(count=3000)
    found = [
        (label, len(first), len(second))
        for label, first, second in all_pieces(stream, NSP, epochs=1)
        if label >= 0
    ]
    label, first, second = np.array(found).T
    # The share of label 1 among pairs of about the same lengths: a classifier that
    # sees both lengths, trained on a half and tried on the other.
    codes = np.minimum((first + second) // 8, 7) * 8 + np.minimum(second // 8, 7)
    half = np.arange(len(label)) % 2 == 0
    votes = np.bincount(codes[half], label[half] - 0.5, 64)
    right = (votes[codes[~half]] > 0) == label[~half]
    assert len(right) > 1500 and right.mean() < 0.54
    assert abs(second[label == 0].mean() - second[label == 1].mean()) < 1


# --- what a batch depends on


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("pairs", [NSP, SOP])
def test_a_batch_is_a_function_of_seed_and_step(stream, pairs):
    loader = make(stream, pairs)
    loader.batch(0)
    same(loader.batch(7), make(stream, pairs).batch(7))
    same(loader.batch(7), pickle.loads(pickle.dumps(loader)).batch(7))
    shares = np.split(np.arange(len(loader.batch(7)["row"])), 4)
    parts = [make(stream, pairs, mine=lambda _, m=m: m).batch(7) for m in shares]
    together = {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
    same(loader.batch(7), together)
    other = make(stream, pairs, seed=4).batch(7)
    assert (other["row"] != loader.batch(7)["row"]).any()


def by_row(batches):
    found = {}
    for batch in batches:
        for place, row in enumerate(batch["row"].tolist()):
            if batch["segments"][place].any():
                assert row not in found
                found[row] = {name: array[place] for name, array in batch.items()}
    return found


def test_a_row_is_drawn_by_its_epoch_and_not_by_its_batch(stream):
    plan = rows.make_plan(stream, 64, True, NSP)
    count = plan.rows // 20 * 20
    whole = by_row(make(stream, batch=20).batch(step) for step in range(count // 20))
    small = by_row(make(stream, batch=4).batch(step) for step in range(count // 4))
    assert whole.keys() == small.keys()
    for row in whole:
        same(whole[row], small[row])
    loader = make(stream, batch=plan.rows)
    first, second = by_row([loader.batch(0)]), by_row([loader.batch(1)])
    changed = [(first[r]["tokens"] != second[r]["tokens"]).any() for r in first]
    assert np.mean(changed) > 0.5


def test_held_out_pairs_are_always_the_same(stream):
    plan = rows.make_plan(stream, 64, True, NSP)
    found = [by_row(held_out_batches(stream, plan, Ids(), n)) for n in (5, 32)]
    assert found[0].keys() == found[1].keys() == set(range(plan.rows))
    for row in found[0]:
        same(found[0][row], found[1][row])
    last = list(held_out_batches(stream, plan, Ids(), plan.rows - 1))[-1]
    assert not last["segments"][1:].any() and (last["pair_label"][1:] == -1).all()


def test_philox_is_philox():
    """The known answers of its authors (Random123, philox4x32-10)."""

    def words(key, *counter):
        return [f"{int(word):08x}" for word in philox(key, *counter)]

    zeros = ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    f = 0xFFFFFFFF
    assert words((0, 0), 0, 0, 0, 0) == zeros
    assert words((f, f), f, f, f, f) == ones
    many = philox(make_key(1, 2), np.arange(10000), 3, 4, 5)
    assert abs(unit(many[0], many[1]).mean() - 0.5) < 0.02
    counts = np.bincount(below(many[2], 5), minlength=5)
    assert len(counts) == 5 and counts.min() > 1800


# --- refusals


class FakeStore:
    def __init__(self, stream, unigram):
        self._stream, self.unigram = stream, unigram

    def split(self, name):
        self._stream.name = name
        return self._stream


def topical(shuffled: bool) -> FakeStore:
    """200 documents of 6 sentences, each of 3 words of its subject and 3 of any."""
    draw = np.random.default_rng(0)
    own = 10 * np.arange(200)[:, None, None] + draw.integers(0, 10, (200, 6, 3))
    sentences = np.concatenate([own, draw.integers(0, 2000, (200, 6, 3))], 2)
    sentences = sentences.reshape(1200, 6)
    if shuffled:
        sentences = draw.permutation(sentences)
    tokens = sentences.reshape(-1)
    return FakeStore(Stream([[6] * 6] * 200, tokens), np.bincount(tokens))


def test_shuffled_sentences_are_refused():
    said = []
    check_pairs(topical(shuffled=False), said.append)
    assert "200 of 200 documents" in said[0] and "alike" in said[-1]
    with pytest.raises(PlmjaxError, match=r"shuffled.*strangers .*z .*pairs=none"):
        check_pairs(topical(shuffled=True), said.append)
    real, shuffled = (
        measure(store.split("train"), store.unigram)
        for store in (topical(False), topical(True))
    )
    assert real.z > 10 > 3 > abs(shuffled.z) and real.pairs > 400
    assert real.neighbours > 2 * real.strangers


def test_a_few_pairs_say_nothing_of_the_corpus():
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 50, 600)
    store = FakeStore(Stream([[5] * 4] * 30, tokens), np.bincount(tokens))
    check_pairs(store, lambda text: None)


def test_a_corpus_without_pairs_is_refused():
    single = FakeStore(Stream([[5]] * 30), np.ones(1000, int))
    with pytest.raises(PlmjaxError, match=r"two sentences.*source\.document") as caught:
        check_pairs(single, lambda text: None)
    assert caught.value.code == 3
    with pytest.raises(PlmjaxError, match="two sentences"):
        rows.make_plan(single.split("train"), 64, True, NSP)
    unknown = Stream([[5, 5]] * 30)
    unknown.sentences = None
    store = FakeStore(unknown, np.ones(1000, int))
    for attempt in (
        lambda: check_pairs(store, lambda text: None),
        lambda: rows.make_plan(unknown, 64, True, NSP),
    ):
        with pytest.raises(PlmjaxError, match="--config.data.sentences") as caught:
            attempt()
        assert caught.value.code == 2


def test_one_document_has_no_other():
    one = Stream([[5] * 100, [9]])
    with pytest.raises(PlmjaxError, match=r"one document.*negatives=corpus") as caught:
        rows.make_plan(one, 64, True, NSP)
    assert caught.value.code == 3
    rows.make_plan(one, 64, True, SOP)
    rows.make_plan(one, 64, True, PairsConfig("nsp", "corpus"))
    with pytest.raises(PlmjaxError, match="one stretch"):
        rows.make_plan(Stream([[5, 5]]), 64, True, PairsConfig("nsp", "corpus"))
