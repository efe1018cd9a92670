"""Chinese words: jieba's (if installed; a stand-in for it always) and pre-segmented."""

import dataclasses
import importlib.util
import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.tokenizers import (
    Tokenizer,
    TokenizerConfig,
    check_segmenter,
    get_tokenizer,
    segmenters,
    train_tokenizer,
)
from plmjax.tokenizers.segmenters import Segmenter

needs_jieba = pytest.mark.skipif(
    importlib.util.find_spec("jieba") is None, reason="jieba is not installed"
)
TEXT = "我从哈尔滨去看珠穆朗玛峰，it isn't 卡拉OK。2018年playing"
TEXTS = [TEXT, "哈尔滨的冬天很冷，珠穆朗玛峰更冷。", "it isn't a play, OK? 卡拉OK"]
# With pieces of several characters, but none that runs over the end of a word.
PARTS = "我 从 哈尔 滨 去 看 珠穆 朗玛 峰 ， 卡拉 OK 。 2018 年 的 冬 天 很 冷 更 "
PARTS += "it isn't a play, playing?"
KINDS = {
    "wordpiece": TokenizerConfig(vocab_size=60, lowercase=False),
    "bpe": TokenizerConfig(kind="bpe", vocab_size=300, lowercase=False),
    "unigram": TokenizerConfig(kind="unigram", vocab_size=56, lowercase=False),
}


class Fake:
    """Finds the words it was told, as jieba finds those of its dictionary."""

    words = ("哈尔滨", "珠穆朗玛峰", "卡拉OK", "冬天")

    def cut(self, text):
        while text:
            word = next((w for w in self.words if text.startswith(w)), text[0])
            yield word
            text = text[len(word) :]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(segmenters, "_jieba", lambda dictionary: Fake())
    return Segmenter("jieba")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return train_tokenizer(KINDS[request.param], [PARTS] * 3)


def words(tokenizer, text):
    """The text of each word, decoded."""
    encoded = tokenizer.encode_batch([text])
    groups = []
    for number, start in zip(encoded.tokens.tolist(), encoded.word_start, strict=True):
        if start:
            groups.append([])
        groups[-1].append(number)
    shown = [tokenizer.decode(group) for group in groups]
    if tokenizer.kind == "wordpiece":  # decodes characters with blanks between them
        shown = [word.replace(" ", "") for word in shown]
    # Unigram has wide signs as narrow ones (NFKC).
    shown = [word.strip().removeprefix("##").replace(",", "，") for word in shown]
    return [word for word in shown if word]


def test_words_of_a_segmenter(fake, tokenizer):
    found = words(tokenizer.with_segmenter(fake), TEXT)
    isn = ["isn", "'t"] if tokenizer.kind == "bpe" else ["isn", "'", "t"]
    assert found == [
        *["我", "从", "哈尔滨", "去", "看", "珠穆朗玛峰", "，", "it", *isn, "卡拉OK"],
        *["。", "2018", "年", "playing"],
    ]
    plain = tokenizer.encode_batch(TEXTS)
    segmented = tokenizer.with_segmenter(fake).encode_batch(TEXTS)
    assert (plain.tokens == segmented.tokens).all()
    assert (plain.lengths == segmented.lengths).all()
    assert (plain.word_start != segmented.word_start).any()


def test_no_word_starts_inside_a_character(fake, tokenizer):
    """Bytes of one character, and pieces that run over a word's end."""
    bare = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=261), ["哈 a"])
    found = bare.with_segmenter(fake).encode_batch(["我哈尔滨，😀 哈尔滨"])
    assert len(found.tokens) == 3 + 9 + 3 + 4 + 1 + 9
    # The signs are one word to GPT-2; the blank, a token here, begins the last.
    assert found.word_start.nonzero()[0].tolist() == [0, 3, 12, 19]
    over = segmenters._mark(  # 哈尔|滨去 as one piece each, 滨去 over the word's end
        ["哈尔滨", "去", "看"],
        "哈尔滨去看",
        np.array([[0, 2], [2, 4], [4, 5]]),
        np.array([True, False, False]),
    )
    assert over.tolist() == [True, False, True]


def test_empty_texts(fake, tokenizer):
    segmented = tokenizer.with_segmenter(fake)
    found = segmented.encode_batch(["", " ", "哈尔滨", "\n"])
    assert found.lengths[0] == 0 and found.lengths.sum() == len(found.tokens)
    assert segmented.encode_batch([]).tokens.shape == (0,)
    assert segmented.encode_batch([""]).word_start.shape == (0,)


SPACED = "我 从 哈尔滨 去 看 珠穆朗玛峰 ， it isn't 卡拉OK 。 2018 年 playing"


def test_spaces_part_words_and_are_no_text(tokenizer):
    spaced = tokenizer.with_segmenter(Segmenter("spaces"))
    assert spaced.segmenter.plain(SPACED) == TEXT.replace("isn't ", "isn't")
    isn = ["isn", "'t"] if tokenizer.kind == "bpe" else ["isn", "'", "t"]
    assert words(spaced, SPACED) == [
        *["我", "从", "哈尔滨", "去", "看", "珠穆朗玛峰", "，", "it", *isn, "卡拉OK"],
        *["。", "2018", "年", "playing"],
    ]
    assert spaced.encode_prompt(SPACED) == spaced.encode_batch([SPACED]).tokens.tolist()
    if tokenizer.kind == "wordpiece":
        ids = spaced.encode_batch([SPACED]).tokens.tolist()
        assert ids == tokenizer.encode_batch([TEXT]).tokens.tolist()
        assert ids == tokenizer.encode_batch([SPACED]).tokens.tolist()


@pytest.mark.parametrize(
    "text, plain",
    [
        ("New York 的 A B", "New York的A B"),
        ("好 。\n 好 的\n", "好。\n 好的\n"),
        (" 好 ", "好"),
        ("", ""),
        ("a\tb 3 , 4", "a\tb 3 , 4"),
    ],
)
def test_which_blanks_are_text(text, plain):
    assert Segmenter("spaces").plain(text) == plain


def test_vocabulary_is_trained_on_the_plain_text():
    config = TokenizerConfig(kind="bpe", vocab_size=280, lowercase=False)
    spaces = dataclasses.replace(config, segmenter="spaces")
    with_spaces = train_tokenizer(spaces, [SPACED] * 5)
    plain = train_tokenizer(config, [Segmenter("spaces").plain(SPACED)] * 5)
    assert with_spaces.vocabulary_digest == plain.digest
    assert with_spaces.segmenter == Segmenter("spaces")


def test_the_segmenter_stays_with_the_tokenizer(tokenizer, tmp_path):
    digests = {tokenizer.digest}
    for segmenter in (
        Segmenter("spaces"),
        Segmenter("jieba"),
        Segmenter("jieba", "哈尔滨 5\n"),
    ):
        own = tokenizer.with_segmenter(segmenter)
        digests.add(own.digest)
        assert own.vocabulary_digest == tokenizer.digest
        own.save(tmp_path)
        for other in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(own))):
            assert (other.segmenter, other.digest) == (segmenter, own.digest)
    assert len(digests) == 4
    config = TokenizerConfig(path=str(tmp_path))
    assert get_tokenizer(config, []).segmenter == Segmenter("jieba", "哈尔滨 5\n")
    config = TokenizerConfig(path=str(tmp_path), segmenter="spaces")
    assert get_tokenizer(config, []).segmenter == Segmenter("spaces")
    # What goes to Hugging Face does not have it, and no older one is left behind.
    own.save(tmp_path, segmenter=False)
    assert not (tmp_path / segmenters.FILE).exists()
    assert Tokenizer.load(tmp_path).digest == tokenizer.digest


# --- bad input


def test_refuses_what_it_cannot_use(tmp_path):
    def fails(code, *words, **given):
        with pytest.raises(PlmjaxError) as caught:
            check_segmenter(TokenizerConfig(**given))
        assert caught.value.code == code and caught.value.hint
        assert all(word in str(caught.value) for word in words)

    fails(2, "jeiba", "none, jieba, spaces", segmenter="jeiba")
    fails(2, "jieba's", segmenter="spaces", user_dictionary="x")
    fails(2, "jieba's", user_dictionary="x")
    check_segmenter(TokenizerConfig())
    check_segmenter(TokenizerConfig(segmenter="spaces"))


def test_jieba_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    read = []
    documents = (read.append(1) or TEXT for _ in range(3))
    for call in (
        lambda config: check_segmenter(config),
        lambda config: get_tokenizer(config, documents),
    ):
        with pytest.raises(PlmjaxError, match="pip install 'plmjax\\[chinese\\]'"):
            call(TokenizerConfig(segmenter="jieba"))
    assert not read  # before any work


@pytest.mark.parametrize(
    "content, message",
    [
        ("哈尔滨 5 ns\n珠穆朗玛峰 NS\n".encode(), "words.txt:2"),
        (b"\xff", "byte 0 is not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_bad_user_dictionary(content, message, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    config = TokenizerConfig(segmenter="jieba", user_dictionary=str(path))
    with pytest.raises(PlmjaxError, match=message):
        check_segmenter(config)


@pytest.mark.parametrize("held", ["{}", "[", '{"segmenter": "x"}', "[1]"])
def test_bad_segmenter_file(held, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / segmenters.FILE).write_text(held)
    with pytest.raises(PlmjaxError, match="not a segmenter of plmjax"):
        Tokenizer.load(tmp_path)


# --- the real jieba


@needs_jieba
def test_jieba(tokenizer, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    segmenters._jieba.cache_clear()
    check_segmenter(TokenizerConfig(segmenter="jieba"))
    own = tokenizer.with_segmenter(Segmenter("jieba"))
    found = words(own, TEXT)
    assert found[:7] == ["我", "从", "哈尔滨", "去", "看", "珠穆朗玛峰", "，"]
    assert found[-4:] == ["。", "2018", "年", "playing"]
    assert "卡拉" in found and "卡拉OK" not in found
    assert list(tmp_path.iterdir()) == []  # no cache that others would share
    assert capfd.readouterr() == ("", "")


@needs_jieba
def test_user_dictionary(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("卡拉OK 100 n\n\n去看\n", encoding="utf-8-sig")
    config = TokenizerConfig(
        vocab_size=60, lowercase=False, segmenter="jieba", user_dictionary=str(path)
    )
    own = train_tokenizer(config, [PARTS] * 3)
    found = words(own, TEXT)
    assert found[2:5] == ["哈尔滨", "去看", "珠穆朗玛峰"] and "卡拉OK" in found
    own.save(tmp_path / "saved")
    path.unlink()  # the words themselves are kept
    assert words(Tokenizer.load(tmp_path / "saved"), TEXT) == found
    held = json.loads((tmp_path / "saved" / segmenters.FILE).read_text())
    assert held == {"segmenter": "jieba", "user_dictionary": "卡拉OK 100 n\n去看\n"}
    assert Path(tmp_path / "saved" / "tokenizer.json").is_file()
