"""Figures of vocabularies on a text, against counts by hand."""

import math
from collections import Counter

import pytest

from plmjax.tokenizers import Tokenizer
from plmjax.tokenizers.measure import (
    measure,
    most_different,
    side_by_side,
    words_of,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["The angiography, the (plasmid).", "the zz plasmid — 'tis"]


def vocabulary(folder, *pieces):
    folder.mkdir()
    lines = [*SPECIAL, *pieces, *"abcdefghijklmnopqrstuvwxy().,'"]
    lines += ["##" + letter for letter in "abcdefghijklmnopqrstuvwxy"]
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines))
    return Tokenizer.load(folder)


@pytest.fixture
def two(tmp_path):
    general = vocabulary(tmp_path / "a", "the", "ang", "##iography")
    science = vocabulary(tmp_path / "b", "the", "angiography", "plasmid")
    return general, science


def test_words_are_what_stands_between_blanks_without_signs():
    words = words_of([*TEXTS, "किताबें। isn't _x_ --"])
    assert words == Counter(
        {"the": 2, "The": 1, "plasmid": 2, "angiography": 1, "zz": 1, "tis": 1}
    ) + Counter(["किताबें", "isn't", "x"])


def test_figures_are_those_counted_by_hand(two):
    general, science = two
    words = words_of(TEXTS)
    found = measure(science, TEXTS, words)
    # the angiography , the ( plasmid ) . | the [UNK] plasmid [UNK] ' t ##i ##s
    assert found["tokens"] == 16 and found["words"] == 8
    size = sum(len(text.encode()) for text in TEXTS)
    assert found["bytes"] == size and found["tokens_per_byte"] == 16 / size
    assert found["tokens_per_word"] == 2.0
    assert found["unknown_share"] == 2 / 16
    # the x 3, angiography, plasmid x 2; tis has 3 pieces; zz is unknown.
    assert found["whole_words"] == 6 / 8
    assert found["words_of_pieces"] == [6 / 8, 0, 1 / 8, 0, 0]
    counts = [3, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1]  # without [UNK]
    assert found["used_share"] == len(counts) / (len(science.vocab) - 5)
    total = sum(counts)
    entropy = math.log(sum((n / total) ** 2.5 for n in counts)) / (1 - 2.5)
    assert found["renyi_efficiency"] == pytest.approx(entropy / math.log(len(counts)))
    other = measure(general, TEXTS, words)
    assert other["tokens"] == 16 + 1 + 2 * 6


def test_words_side_by_side(two):
    words = words_of(TEXTS)
    assert most_different(two, words, 5) == ["plasmid", "angiography"]
    assert most_different(two, words, 1) == ["plasmid"]
    assert side_by_side(two, ["angiography", "zz"]) == [
        [["ang", "##iography"], ["angiography"]],
        [[], []],
    ]
    assert most_different([two[0]] * 2, words, 5) == []


def test_equal_frequencies_are_fully_efficient(two):
    found = measure(two[0], ["a b c d"], words_of(["a b c d"]))
    assert found["renyi_efficiency"] == pytest.approx(1.0)
    assert math.isnan(measure(two[0], ["a"], words_of(["a"]))["renyi_efficiency"])
