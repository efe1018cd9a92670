"""Pseudo-labels: which texts may have them, which are taken, and what is learned."""

import json

import numpy as np
import pytest

from plmjax import Exit, PlmjaxError
from plmjax.data.examples import Example
from plmjax.data.task_batches import batch_of
from plmjax.experiments.pseudo_labels import (
    PseudoConfig,
    check_kind,
    choose,
    draw,
    make_pool,
    read_added,
    write_records,
)
from plmjax.finetune.added import NOTHING, Added, added_features
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.labelled import Labelled
from plmjax.tokenizers import TokenizerConfig, train_tokenizer

NAN = float("nan")


def example(text, label=None, unit=None):
    texts = tuple(text) if isinstance(text, list) else (text,)
    return Example("7", "a.csv:7", texts, label, unit or "\0".join(texts))


def labelled(kind, labels, train, held_out=(), test=()):
    config = TaskConfig(kind, length=16)
    return Labelled(config, labels, tuple(train), tuple(held_out), tuple(test))


def test_what_is_scored_or_labelled_already_is_left_out():
    data = labelled(
        "classes",
        ("n", "p"),
        [example("seen", "n"), example("both", "n")],
        [example("held out", "p", "group"), example("both", "n")],
        [example("tested", "p")],
    )
    texts = ["new", "Held  OUT ", "both", "tested", "SEEN", "New", "other"]
    pool = make_pool([example(text) for text in texts], data, False)
    assert [e.texts[0] for e in pool.examples] == ["new", "other"]
    assert pool.left_out == {"test": 1, "held_out": 2, "train": 1, "repeated": 1}
    # All of a group that has an example held out.
    kin = [example("kin", unit="group"), example("stranger", unit="other")]
    assert [e.texts[0] for e in make_pool(kin, data, True).examples] == ["stranger"]
    assert len(make_pool(kin, data, False).examples) == 2


@pytest.mark.parametrize(
    "kind, said, sure",
    [
        ("classes", [0.2, 0.7, 0.1], 0.7),
        ("multilabel", [0.1, 0.97, 0.6], 0.6),
        ("multilabel", [0.1, 0.97, 0.05], 0.9),
        ("tags", [[0.9, 0.1], [0.3, 0.7], [NAN, NAN]], 0.7),
        ("tags", [[NAN, NAN]], 0.0),
    ],
)
def test_confidence_is_that_of_the_least_sure_part(kind, said, sure):
    assert KINDS[kind].confidence(np.array(said)) == pytest.approx(sure)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_without_pseudo_labels_are_refused_with_the_reason(kind):
    if kind in CASES:
        check_kind(kind)
        return
    with pytest.raises(PlmjaxError, match=f"{kind}: .+ probability") as caught:
        check_kind(kind)
    assert "classes, multilabel, tags" in caught.value.hint


def test_a_draw_is_a_share_of_each_label_and_grows_with_the_rate():
    strata = ["a"] * 600 + ["b"] * 200
    names = [f"text {n}" for n in range(800)]
    drawn = {rate: draw(strata, names, rate, 0) for rate in (0.0, 0.25, 0.5, 1.0)}
    assert [len(own) for own in drawn.values()] == [0, 200, 400, 800]
    assert sum(strata[n] == "b" for n in drawn[0.25]) == 50
    assert {*drawn[0.25]} < {*drawn[0.5]}
    # The order in which they come does not matter; the seed does.
    back = draw(strata[::-1], names[::-1], 0.5, 0)
    assert {names[n] for n in drawn[0.5]} == {names[::-1][n] for n in back}
    assert drawn[0.5] != draw(strata, names, 0.5, 1)


def test_no_label_is_more_frequent_than_among_the_labelled():
    strata = ["a"] * 90 + ["b"] * 10
    names = [str(n) for n in range(100)]
    shares = {"a": 0.5, "b": 0.5}
    drawn = draw(strata, names, 1.0, 0, shares)
    assert [sum(strata[n] == name for n in drawn) for name in "ab"] == [50, 10]
    drawn = draw(strata, names, 0.5, 0, shares)
    assert [sum(strata[n] == name for n in drawn) for name in "ab"] == [25, 5]


CASES = {
    "classes": (
        ("n", "p"),
        [example("a \u2028 line", "n"), example("b", "p")],
        [[0.95, 0.05], [0.4, 0.6], [0.08, 0.92]],
        ["n", "p"],
    ),
    "multilabel": (
        ("x", "y"),
        [example("a", ("x",)), example("b", ())],
        [[0.95, 0.05], [0.4, 0.9], [0.02, 0.01]],
        [("x",), ()],
    ),
    "tags": (
        ("B-X", "O"),
        [example(["a", "b"], ("O", "B-X")), example(["b"], ("O",))],
        [[[0.05, 0.95], [0.99, 0.01]], [[0.4, 0.6]], [[0.1, 0.9], [NAN, NAN]]],
        [("O", "B-X"), ("O", "O")],
    ),
}
TEXTS = {
    "tags": [["of", "rows"], ["of"], ["one", "list"]],
    "texts": ["of rows \u2028 and", "of", "one list"],
}


def chosen(kind, soft, tmp_path):
    labels, train, said, _ = CASES[kind]
    data = labelled(kind, labels, train)
    settings = PseudoConfig(0.9, soft, 0.25)
    texts = TEXTS.get(kind, TEXTS["texts"])
    pool = make_pool([example(text) for text in texts], data, False)
    said = [np.array(own) for own in said]
    drawn = choose(settings, data, pool, said, 1.0, 0)
    path = tmp_path / "round-1.jsonl"
    write_records(path, drawn.records)
    return data, pool, drawn, path, read_added(path, data, settings)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", CASES)
def test_the_sure_ones_are_written_and_read_back(kind, soft, tmp_path):
    _, pool, drawn, path, added = chosen(kind, soft, tmp_path)
    said, wanted = CASES[kind][2:]
    assert drawn.kept == len(drawn.records) == 2
    assert [e.label for e in added.examples] == wanted
    assert [e.texts for e in added.examples] == [pool.examples[n].texts for n in (0, 2)]
    assert added.weight == 0.25 and (added.soft is not None) == soft
    for values, n in zip(added.soft or (), (0, 2), strict=False):
        np.testing.assert_allclose(values, np.nan_to_num(said[n]), atol=1e-6)
    first = json.loads(path.read_text().split("\n")[0])
    assert first["confidence"] == 0.95 and KINDS[kind].label_key in first


def test_a_file_that_was_spoilt_is_no_bug_of_ours(tmp_path):
    data, _, drawn, path, _ = chosen("classes", True, tmp_path)
    bad = dict(drawn.records[0])
    for wrong, told in (
        ("{", "is no file of pseudo-labels"),
        (json.dumps(bad | {"label": "q"}), "'q'"),
        (json.dumps(bad | {"probabilities": [1.0]}), "is no file of pseudo-labels"),
    ):
        path.write_text(wrong + "\n")
        with pytest.raises(PlmjaxError, match=told) as caught:
            read_added(path, data, PseudoConfig(soft=True))
        assert caught.value.code == Exit.DATA


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", CASES)
def test_added_examples_are_rows_with_their_weight_and_targets(kind, soft, tmp_path):
    data, _, _, _, added = chosen(kind, soft, tmp_path)
    words = ["a b of rows and one list line"] * 3
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=39), words)
    args = (tokenizer, data.labels)
    plain = added_features(data.config, data.train, NOTHING, *args)
    found = added_features(data.config, data.train, added, *args)
    np.testing.assert_array_equal(found.arrays["weight"], [1, 1, 0.25, 0.25])
    for name, array in plain.arrays.items():
        if name != "label":
            np.testing.assert_array_equal(found.arrays[name][:2], array)
    label = found.arrays["label"]
    if not soft:
        assert label.dtype == plain.arrays["label"].dtype
        return
    said = CASES[kind][2]
    if kind == "tags":
        assert label.shape == (4, 16, 2)
        # After [CLS]: "a b" as labelled, "of rows" and "one list" as the model said.
        np.testing.assert_allclose(label[0, 1:3], [[0, 1], [1, 0]])
        np.testing.assert_allclose(label[2, 1:3], said[0], atol=1e-6)
        np.testing.assert_allclose(label[3, 1], said[2][0], atol=1e-6)
        assert not label[:, 0].any() and not label[:, 3:].any()
        cut = batch_of(found, np.array([2, -1]), 4)["label"]
        np.testing.assert_array_equal(cut, [label[2, :4], np.zeros((4, 2))])
        return
    truth = {"classes": [[1, 0], [0, 1]], "multilabel": [[1, 0], [0, 0]]}[kind]
    np.testing.assert_allclose(label, [*truth, said[0], said[2]], atol=1e-6)


def test_what_is_learned_is_told_apart():
    one = Added((example("a", "n"),))
    several = [
        NOTHING,
        one,
        Added(one.examples, weight=0.5),
        Added(one.examples, (np.array([0.9, 0.1]),)),
        Added((example("a", "p"),)),
    ]
    assert len({tuple(added.bytes()) for added in several}) == len(several)


def test_settings_that_mean_nothing_are_refused():
    for wrong in ({"threshold": 1.2}, {"weight": 0.0}, {"weight": float("inf")}):
        with pytest.raises(PlmjaxError, match=f"--{next(iter(wrong))}="):
            PseudoConfig(**wrong)
