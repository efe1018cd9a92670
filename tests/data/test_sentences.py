"""Sentences: where they end, and that nothing is lost between them."""

import time

import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.data.sentences import check_rule, split_sentences
from plmjax.tokenizers import TokenizerConfig, train_tokenizer

# | stands where a sentence ends.
PUNCTUATION = [
    "He left!| “Really?” said he.| “Yes.”| He (too.)| Went…| And?| So did I.| We",
    "Mr. Smith met J. S. Mill and J.S. Bach, e.g. at 3.14 p.m., i.e. late",
    "Mr. Smith paid $3.14.| Then, cf. Plato, he left.",
    "See No. 5 and Fig. 2.| No.| He did not, on Dec. 11th.| 17 came.",
    "1. The first of all.| 2. The second...| Third?!| Fourth",
    "It is called ‘overlooked.’ ”| The next one.",
    "A title\n\nThen a text, over\ntwo lines.|\nMore|\n \t\n end",
    "他说。|「你好！」|她走了……我不知道?|真的。”，然后，走了。| 好。",
    "梵語。|今天（下雨。）|是吗？！|3.14 元。|Yes.| No",
    "他 说 ： “ 好 。 ”| 她 走 了 。| “ 是 。 ” ， 他 说 。",
    "क्या है?| यह है।| और",
    "ok.but not here, e.g.\nthere. and not before a small letter",
    "नमस्ते",
    ". x",
]


@pytest.mark.parametrize("marked", PUNCTUATION)
def test_punctuation(marked):
    expected = marked.split("|")
    found = split_sentences("".join(expected), "punctuation")
    if "A title" in marked:  # the blank line ends what no mark ends
        expected = ["A title", "\n\nThen a text, over\ntwo lines.", *expected[1:]]
    assert found == expected


def test_lines():
    text = "one. Two\n\n  three \nfour"
    assert split_sentences(text, "lines") == ["one. Two", "\n\n  three", " \nfour"]
    assert split_sentences("one", "lines") == ["one"]


def test_a_combining_mark_stays_with_its_character():
    assert len(split_sentences("好。\u0301好。", "punctuation")) == 1


def test_unknown_rules_are_refused():
    check_rule(None)
    with pytest.raises(PlmjaxError, match="lines, punctuation"):
        check_rule("words")


def noise(length: int, seed: int) -> str:
    alphabet = [
        *"aaBbI1.!?…。！？」”)（ ,，;\n\t'\"",
        "e.g.",
        "Mr.",
        "\xa0",
        "\u0301",
        "好",
    ]
    return "".join(np.random.default_rng(seed).choice(alphabet, length))


@pytest.mark.parametrize("rule", ["lines", "punctuation"])
def test_nothing_is_lost(rule):
    for seed in range(300):
        text = noise(60, seed)
        parts = split_sentences(text, rule)
        assert "".join(parts) == text
        assert (
            all(part.strip() for part in parts) or len(parts) == 1 or text[0] in " \n"
        )


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("rule", ["lines", "punctuation"])
def test_ids_are_those_of_the_whole_text(kind, rule):
    texts = [marked.replace("|", "") for marked in PUNCTUATION]
    texts += [noise(60, seed) for seed in range(200)]
    config = TokenizerConfig(kind=kind, vocab_size=320, min_frequency=1)
    tokenizer = train_tokenizer(config, texts * 3)
    if kind == "bpe":  # the exception that data/sentences.py names
        texts = [text for text in texts if not set(text) & set("。！？」）（，")]
        assert len(texts) > 10
    parts = [split_sentences(text, rule) for text in texts]
    assert sum(map(len, parts)) > len(texts)
    whole = tokenizer.encode_batch(texts)
    cut = tokenizer.encode_batch([part for some in parts for part in some])
    np.testing.assert_array_equal(cut.tokens, whole.tokens)
    np.testing.assert_array_equal(cut.word_start, whole.word_start)


def test_time_is_linear_in_the_worst_of_texts():
    n = 200_000
    texts = ["." * n, "a" + "\n" * n + "b", "." + " " * n, ".”" * n, "。" * n, ")" * n]
    texts += ["e.g. A " * (n // 7), "." + " ”" * n, " \n" * n + "b", "!?" * n, "…" * n]
    begin = time.perf_counter()
    for text in texts:
        for rule in ("lines", "punctuation"):
            assert "".join(split_sentences(text, rule)) == text
    assert time.perf_counter() - begin < 10
