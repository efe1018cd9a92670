"""Scores of tags in every scheme and of random answers; the rest: test_figures.py."""

import itertools
import random
import unicodedata

import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.metrics.answers import answer_scores, answer_values, characters_of
from plmjax.metrics.comparison import SAME, compare
from plmjax.metrics.entities import broken_tags, entities, find_scheme
from plmjax.metrics.scores import tag_scores
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig

# --- tags


@pytest.mark.parametrize(
    "tags, usual, strict",
    [
        ("B-X I-X O B-Y", {("X", 0, 2), ("Y", 3, 4)}, {("X", 0, 2), ("Y", 3, 4)}),
        ("O I-X I-X", {("X", 1, 3)}, set()),
        ("B-X I-Y I-Y", {("X", 0, 1), ("Y", 1, 3)}, {("X", 0, 1)}),
        ("B-X B-X I-X", {("X", 0, 1), ("X", 1, 3)}, {("X", 0, 1), ("X", 1, 3)}),
        ("S-X I-X E-X E-X", {("X", 0, 1), ("X", 1, 3), ("X", 3, 4)}, set()),
        ("B-a-b I-a-b", {("a-b", 0, 2)}, {("a-b", 0, 2)}),
        ("O O", set(), set()),
        ("", set(), set()),
    ],
)
def test_entities_by_both_rules(tags, usual, strict):
    assert entities(tags.split()) == usual
    assert entities(tags.split(), strict=True) == strict


def test_tag_scores_name_apart_what_is_of_tags_and_of_entities():
    from sklearn import metrics

    truth, predicted = [["B-X", "I-X", "O"], ["O"]], [["B-X", "O", "O"], ["O"]]
    labels = ["B-X", "I-X", "O"]
    found = tag_scores(truth, predicted, labels)
    flat = [tag for tags in truth for tag in tags]
    other = [tag for tags in predicted for tag in tags]
    assert found["tag_accuracy"] == found["tag_f1_micro"] == 3 / 4
    macro = metrics.f1_score(flat, other, average="macro", zero_division=0)
    assert found["tag_f1_macro"] == pytest.approx(macro)
    assert found["entity_f1"] == found["entity_f1_strict"] == 0
    tags = tag_scores([["NN", "VB"]], [["NN", "NN"]], ["NN", "VB"])
    assert tags.keys() == {"tag_accuracy", "tag_f1_micro", "tag_f1_macro"}
    # The labels decide, not the tags of one part.
    none = tag_scores([["O", "O"]], [["O", "O"]], labels)
    assert (
        none["entity_f1"] == none["entity_precision"] == none["entity_f1_strict"] == 0
    )
    assert none["tag_accuracy"] == 1
    assert tag_scores([["O"]], [["B-X"]], labels)["entity_f1"] == 0


def write_tags(spans, size: int, marks: str, write) -> list[str]:
    """The tags of (kind, begin, end) spans; marks are those of B, I, E and S."""
    tags = ["O"] * size
    for kind, begin, end in spans:
        last = marks[2:3] or marks[1]
        each = [marks[0], *marks[1] * (end - begin - 2), last][: end - begin]
        each = [marks[3:] or marks[0]] if end - begin == 1 else each
        tags[begin:end] = [write(mark, kind) for mark in each]
    return tags


SCHEMES = {
    "IOB": ("BI", lambda mark, kind: f"{mark}-{kind}"),
    "IOBES": ("BIES", lambda mark, kind: f"{mark}-{kind}"),
    "BILOU": ("BILU", lambda mark, kind: f"{mark}-{kind}"),
    "BMES": ("BMES", lambda mark, kind: f"{mark}_{kind}"),
    "BMEWO": ("BMEW", lambda mark, kind: f"{kind}-{mark}"),
    "BILOU, small": ("bilu", lambda mark, kind: f"{mark}-{kind}"),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_entities_in_every_scheme_score_as_in_seqeval(name):
    seqeval = pytest.importorskip("seqeval.metrics")
    from seqeval.scheme import BILOU

    chance = random.Random(1)

    def draw():
        """Spans of one to four words, with a gap or none between them."""
        spans, begin = [], 0
        while (begin := begin + chance.randrange(3)) < 20:
            end = begin + chance.choice([1, 1, 2, 3, 4])
            spans.append((chance.choice(["PER", "LOC"]), begin, end))
            begin = end
        return spans

    truth, predicted = ([draw() for _ in range(50)] for _ in range(2))
    marks, write = SCHEMES[name]
    true, ours = (
        [write_tags(spans, 30, marks, write) for spans in some]
        for some in (truth, predicted)
    )
    labels = sorted({tag for tags in true + ours for tag in tags})
    scheme = find_scheme(labels)
    assert scheme is not None and scheme.name == name.split(",")[0]
    assert scheme.kinds == ["LOC", "PER"] and not broken_tags(true, scheme)
    true_bilou, ours_bilou = (
        [write_tags(spans, 30, "BILU", SCHEMES["BILOU"][1]) for spans in some]
        for some in (truth, predicted)
    )
    scores = tag_scores(true, ours, labels)
    wanted = seqeval.f1_score(true_bilou, ours_bilou, mode="strict", scheme=BILOU)
    assert 0.05 < wanted < 0.9
    assert scores["entity_f1"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    "tags, name, kinds",
    [
        ("B I O", "IOB", [""]),
        ("B I", "IOB", [""]),
        ("B M E S", "BMES", [""]),
        ("B I L U O", "BILOU", [""]),
        ("I-X I-Y O", "IO", ["X", "Y"]),
        ("I-X E-X O", "IOE", ["X"]),
        ("B-X", "IOB", ["X"]),
        ("U-X O", "BILOU", ["X"]),
        ("b-x i-x o", "IOB", ["x"]),
        ("B-a-b I-a-b O", "IOB", ["a-b"]),
    ],
)
def test_the_labels_decide_the_scheme(tags, name, kinds):
    scheme = find_scheme(tags.split())
    assert scheme is not None and (scheme.name, scheme.kinds) == (name, kinds)


@pytest.mark.parametrize(
    "tags",
    [
        *("", "O", "O B", "NN VB S", "0 1 2", "B-X I-X O X", "B-X B I-X"),
        # L and E, and M and I, mean the same; a scheme has one of them.
        *("B-X L-X E-X O", "B-X I-X M-X O", "N-S V-S O", "L-x M-x", "* (ORG*) *)"),
    ],
)
def test_labels_of_no_scheme(tags):
    assert find_scheme(tags.split()) is None


@pytest.mark.parametrize(
    "tags, broken",
    [
        ("B-X I-X O B-X B-X I-X", 0),
        ("O I-X", 1),
        ("I-X I-X", 1),
        ("B-X I-Y I-Y O I-X", 2),
        ("B-X I-X E-X O S-X B-X E-X", 0),
        ("B-X O", 0),
        ("B-X E-X B-X O", 1),
        ("B-X I-X E-X I-X", 2),
        ("B-X E-Y S-X E-X", 2),
        ("B-X L-X U-X L-X", 1),
    ],
)
def test_tags_that_break_their_scheme_are_counted(tags, broken):
    labels = {*tags.split()}
    scheme = find_scheme(labels)
    assert scheme is not None
    assert broken_tags([tags.split()], scheme) == broken


# --- answers


@pytest.mark.parametrize(
    "predicted, true, exact, f1",
    [
        ("The  Cat!", ["cat"], 1, 1),
        ("a black cat", ["the cat sat", "black dog"], 0, 1 / 2),
        ("cat cat", ["cat"], 0, 2 / 3),
        ("dog", ["cat"], 0, 0),
        ("", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("the", [], 1, 1),
        ("theatre", ["atre"], 0, 0),
        ("cat", ["...", "cat"], 1, 1),
    ],
)
def test_answers_in_words(predicted, true, exact, f1):
    found = answer_values([predicted], [true])
    assert [float(value[0]) for value in found] == pytest.approx([exact, f1])


# --- comparisons


def test_verdicts():
    chance = np.random.default_rng(0)
    noise = chance.normal(size=400)
    for method in ("t", "bootstrap"):
        how = {"method": method, "draws": 1000}
        better = compare(noise + chance.normal(0.3, 0.5, 400), noise, **how)
        worse = compare(noise, noise + chance.normal(0.3, 0.5, 400), **how)
        same = compare(noise + chance.normal(0, 0.5, 400), noise, **how)
        verdicts = [found.verdict for found in (better, worse, same)]
        assert verdicts == ["a is higher", "b is higher", SAME]
        assert better.low < better.difference < better.high
    assert compare([0.8, 0.8, 0.8], [0.7, 0.7, 0.7]).verdict == SAME
    assert compare([0.8, 0.9, 0.7], [0.7, 0.8, 0.8]).verdict == SAME


@pytest.mark.parametrize("a, b", [([1], [2]), ([1, 2], [1]), ([1, np.nan], [1, 2])])
def test_what_cannot_be_compared_is_refused(a, b):
    with pytest.raises(PlmjaxError) as info:
        compare(a, b)
    assert info.value.hint


PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def squad_words(text: str) -> list[str]:
    """Small letters, no punctuation, no articles, single blanks."""
    kept = [c for c in text.lower() if c not in PUNCTUATION]
    runs = ["".join(run) for _, run in itertools.groupby(kept, str.isalnum)]
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def cmrc_units(text: str) -> list[str]:
    """Characters without punctuation and white space; letters of ASCII in runs."""
    units: list[str] = []
    for c in text.lower():
        if unicodedata.category(c)[0] not in "LMN":
            continue
        if c.isascii() and units and units[-1].isascii():
            units[-1] += c
        else:
            units.append(c)
    return units


def bag_overlap(a: list[str], b: list[str]) -> int:
    left, same = list(b), 0
    for word in a:
        if word in left:
            left.remove(word)
            same += 1
    return same


def stretch_overlap(a: list[str], b: list[str]) -> int:
    """The longest stretch of both: every pair of beginnings is tried."""
    longest = 0
    for i, j in itertools.product(range(len(a)), range(len(b))):
        size = 0
        while i + size < len(a) and j + size < len(b) and a[i + size] == b[j + size]:
            size += 1
        longest = max(longest, size)
    return longest


def judged(text: str, known, units, overlap) -> tuple[float, float]:
    """Exact match and F1 with the best of the true answers."""
    true = [units(one) for one in known if units(one)] or [[]]
    mine, f1s = units(text), []
    for one in true:
        if not mine or not one:
            f1s.append(float(mine == one))
            continue
        same = overlap(mine, one)
        precision, recall = same / len(mine), same / len(one)
        f1s.append(2 * precision * recall / (precision + recall) if same else 0.0)
    return float(mine in true), max(f1s)


WORDS = "a The an cat Cat cats dog. ... the-cat theatre cata acat thecat Über".split()
WORDS += [*"cat,dog 2 —the— ca't a.n cat dog _an_ data another".split(), ""]
WORDS += [f"cat{sign}" for sign in PUNCTUATION] + ["the"] * 6 + ["cat"] * 12
SIGNS = ["泡", "泡", "堂", "年", "，", "。", " ", "NBA", "20", "1", "a", "-", "é", "堂"]


@pytest.mark.parametrize("by_characters", [False, True], ids=["words", "characters"])
def test_random_answers_are_judged_as_defined(by_characters):
    """Several true answers, repeated words, articles, punctuation, no answer."""
    chance = random.Random(0)
    pool, join = (SIGNS, "") if by_characters else (WORDS, " ")

    def draw():
        return join.join(chance.choices(pool, k=chance.randrange(6)))

    truth = [[draw() for _ in range(chance.randrange(4))] for _ in range(600)]
    said = [
        chance.choice(own) if own and chance.random() < 0.3 else draw() for own in truth
    ]
    units = cmrc_units if by_characters else squad_words
    overlap = stretch_overlap if by_characters else bag_overlap
    expected = [
        judged(text, own, units, overlap) for text, own in zip(said, truth, strict=True)
    ]
    exact, f1 = answer_values(said, truth, by_characters=by_characters)
    assert exact.tolist() == [one for one, _ in expected]
    np.testing.assert_allclose(f1, [one for _, one in expected], atol=1e-12)
    # Enough of every kind are among them.
    assert 60 < exact.sum() < 400 and 100 < ((0 < f1) & (f1 < 1)).sum()
    groups = {
        "": expected,
        "has_answer_": [e for e, own in zip(expected, truth, strict=True) if own],
        "no_answer_": [e for e, own in zip(expected, truth, strict=True) if not own],
    }
    wanted = {}
    for name, own in groups.items():
        wanted[f"{name}exact_match"] = sum(one for one, _ in own) / len(own)
        wanted[f"{name}f1"] = sum(one for _, one in own) / len(own)
    found = answer_scores(said, truth, by_characters=by_characters)
    assert found == pytest.approx(wanted)
    labels = [tuple((text, 0) for text in own) for own in truth]
    units = "characters" if by_characters else "words"
    config = TaskConfig("answers", compare_answers=units)
    found = KINDS["answers"].scores(labels, said, (), config)
    assert found == pytest.approx(wanted)
    if by_characters:
        assert [characters_of(text) for text in said] == [cmrc_units(t) for t in said]
