"""Whole words are masked together, shown on encoded text by decoding.

Elsewhere words were told by "##", so that every byte-level piece, or every piece of a
SentencePiece vocabulary, was a word by itself (transformers issues 9866 and 11768).
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax.models.noise import Noise
from plmjax.objectives import masking
from plmjax.tokenizers import TokenizerConfig, segmenters, train_tokenizer
from plmjax.tokenizers.segmenters import Segmenter

ENGLISH = "The unhappiest sailors (of Rotterdam) didn't sail; they rebuilt harbours."
CHINESE = "我从哈尔滨去看珠穆朗玛峰，拍了unforgettable照片。"
SPACED = "我 从 哈尔滨 去 看 珠穆朗玛峰 ， 拍 了 unforgettable 照片 。"
# Vocabularies of little more than letters: every long word has several pieces.
LETTERS = " ".join(ENGLISH + CHINESE) + " un forget sail har er 哈尔 珠穆"
WORDS = (
    "The unhappiest sailors ( of Rotterdam ) didn ' t sail ; they rebuilt harbours ."
)
BYTE_WORDS = WORDS.replace("' t", "'t")
CHINESE_WORDS = "我 从 哈尔滨 去 看 珠穆朗玛峰 ， 拍 了 unforgettable 照片 。"


LENGTH, PROBABILITY = 128, 0.4


class Fake:
    """Stands for jieba: finds the words it is told."""

    def __init__(self, *words):
        self.words = words

    def cut(self, text):
        while text:
            word = next((w for w in self.words if text.startswith(w)), text[0])
            yield word
            text = text[len(word) :]


def tokenizer_of(kind, segmenter=None):
    letters = len(set(LETTERS)) + 5
    size = {"wordpiece": 2 * letters, "bpe": 275, "unigram": letters + 4}[kind]
    config = TokenizerConfig(
        kind=kind, vocab_size=size, min_frequency=1, lowercase=False
    )
    trained = train_tokenizer(
        config, [LETTERS, ENGLISH] if kind == "wordpiece" else [LETTERS]
    )
    return trained.with_segmenter(segmenter)


def rows(tokenizer, text, count=64):
    """The text `count` times as rows [CLS] text [SEP]: tokens, starts, maskable."""
    encoded = tokenizer.encode_batch([text])
    ids = [tokenizer.cls_id, *encoded.tokens.tolist(), tokenizer.sep_id]
    ids += [tokenizer.pad_id] * (LENGTH - len(ids))
    starts = np.zeros(LENGTH, bool)
    starts[1 : len(encoded.tokens) + 1] = encoded.word_start
    maskable = ~np.isin(ids, tokenizer.special_ids)
    return tuple(np.tile(x, (count, 1)) for x in (np.array(ids), starts, maskable))


@functools.cache
def compiled(unit):
    slots = masking.slots(PROBABILITY, LENGTH)
    return jax.jit(lambda *x: masking.choose(*x, PROBABILITY, slots, unit))


def mask(tokenizer, text, unit="word", count=64):
    """Which tokens of each row are chosen: [count, L] bool, with tokens [L]."""
    tokens_BL, starts_BL, maskable_BL = rows(tokenizer, text, count)
    noise = Noise(jnp.uint32(3), jnp.uint32(1), jnp.arange(count, dtype=jnp.int32))
    found = compiled(unit)(noise, maskable_BL, starts_BL)
    positions_BK, used_BK = map(np.asarray, found[:2])
    chosen_BL = np.zeros(tokens_BL.shape, bool)
    for chosen, positions, used in zip(chosen_BL, positions_BK, used_BK, strict=True):
        chosen[positions[used]] = True
    return tokens_BL[0], chosen_BL


def spell(tokenizer, ids):
    """What pieces stand for, without blanks and marks of the vocabulary's own."""
    shown = tokenizer.decode([int(number) for number in ids])
    if tokenizer.kind == "wordpiece":
        shown = shown.replace("##", "")
    return shown.replace(" ", "").replace(",", "，")


def masked_pieces(tokenizer, text, **options):
    """Of each row the decoded stretches that were chosen side by side."""
    tokens, chosen_BL = mask(tokenizer, text, **options)
    for chosen in chosen_BL:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen, [0]])))
        yield [
            spell(tokenizer, tokens[begin:end])
            for begin, end in edges.reshape(-1, 2).tolist()
        ]


def is_whole(stretch, words):
    """Whether a stretch is some consecutive words of the text."""
    return any(
        "".join(words[begin:end]) == stretch
        for begin in range(len(words))
        for end in range(begin + 1, len(words) + 1)
    )


def assert_whole_words(tokenizer, text, words, unit="word"):
    words = words.split()
    tokens = tokenizer.encode_batch([text]).tokens
    assert spell(tokenizer, tokens) == "".join(words)
    assert len(tokens) > 1.3 * len(words)  # or nothing would be shown
    found = [
        stretch for row in masked_pieces(tokenizer, text, unit=unit) for stretch in row
    ]
    broken = {stretch for stretch in found if not is_whole(stretch, words)}
    assert not broken
    alone = {stretch for stretch in found if stretch in words}
    return alone


ENGLISH_CASES = {"wordpiece": WORDS, "bpe": BYTE_WORDS, "unigram": WORDS}


@pytest.mark.parametrize("unit", ["word", "ngram", "span"])
@pytest.mark.parametrize("kind", ENGLISH_CASES)
def test_english(kind, unit):
    tokenizer = tokenizer_of(kind)
    alone = assert_whole_words(tokenizer, ENGLISH, ENGLISH_CASES[kind], unit)
    if unit != "word":
        return
    # Behind a blank, behind a sign, the first one, before a sign; signs by themselves.
    assert {"sailors", "Rotterdam", "The", "harbours", "(", "didn"} <= alone


@pytest.mark.parametrize("kind", ENGLISH_CASES)
def test_tokens_alone_do_break_words(kind):
    """The same check on masks of single tokens: it can fail."""
    words = ENGLISH_CASES[kind].split()
    found = masked_pieces(tokenizer_of(kind), ENGLISH, unit="token")
    assert any(not is_whole(stretch, words) for row in found for stretch in row)


@pytest.mark.parametrize("kind", ENGLISH_CASES)
def test_chinese_by_a_segmenter(kind, monkeypatch):
    stand_in = Fake("哈尔滨", "珠穆朗玛峰", "照片", "unforgettable")
    monkeypatch.setattr(segmenters, "_jieba", lambda dictionary: stand_in)
    tokenizer = tokenizer_of(kind, Segmenter("jieba"))
    alone = assert_whole_words(tokenizer, CHINESE, CHINESE_WORDS)
    assert {"哈尔滨", "珠穆朗玛峰", "照片", "我", "，", "unforgettable"} <= alone
    bare = [s for r in masked_pieces(tokenizer_of(kind), CHINESE) for s in r]
    words = CHINESE_WORDS.split()
    if kind == "wordpiece":  # characters, each by itself
        assert any(not is_whole(stretch, words) for stretch in bare)
    else:  # all that stands between two signs
        assert not {"哈尔滨", "珠穆朗玛峰"} & set(bare)


@pytest.mark.parametrize("kind", ENGLISH_CASES)
def test_chinese_parted_by_spaces(kind):
    tokenizer = tokenizer_of(kind, Segmenter("spaces"))
    alone = assert_whole_words(tokenizer, SPACED, CHINESE_WORDS)
    assert {"哈尔滨", "珠穆朗玛峰", "照片", "我", "，"} <= alone


@pytest.mark.skipif(
    importlib.util.find_spec("jieba") is None, reason="jieba is not installed"
)
@pytest.mark.parametrize("kind", ENGLISH_CASES)
def test_chinese_by_jieba_and_a_user_dictionary(kind):
    tokenizer = tokenizer_of(kind, Segmenter("jieba"))
    alone = assert_whole_words(tokenizer, CHINESE, CHINESE_WORDS)
    assert {"哈尔滨", "珠穆朗玛峰", "照片"} <= alone
    joined = CHINESE_WORDS.replace("去 看", "去看")
    own = tokenizer_of(kind, Segmenter("jieba", "去看 1000000\n"))
    assert "去看" in assert_whole_words(own, CHINESE, joined)
