"""What a vocabulary loses of a text, counted by cause."""

import pytest

from plmjax.tokenizers import TokenizerConfig, train_tokenizer, unknown_words

SENTENCES = ["the old ship sailed to the old sea and the sea was old"] * 3
KINDS = {
    "wordpiece": TokenizerConfig(vocab_size=40),
    "bpe": TokenizerConfig(kind="bpe", vocab_size=270),
    "unigram": TokenizerConfig(kind="unigram", vocab_size=30),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return train_tokenizer(KINDS[request.param], SENTENCES)


def test_unknown_words_by_cause(tokenizer):
    sequence = "that" * 30
    texts = ["the sea", f"{sequence} {sequence}\nthe " + "st" * 55, "old 東 ship x7 東"]
    seen = unknown_words(tokenizer, texts)
    if tokenizer.kind == "bpe":  # its bytes write everything
        assert seen.words == 13  # a line break and the 7 of x7 are words
        assert (seen.unknown, seen.share, seen.characters) == (0, 0.0, ())
        return
    assert seen.words == 11
    assert seen.characters == ("東", "7", "x")
    assert seen.character_examples == (
        ("東", "x7") if tokenizer.kind == "wordpiece" else ("▁東", "▁x7")
    )
    if tokenizer.kind == "wordpiece":
        assert (seen.unknown, seen.too_long, seen.limit) == (6, 3, 100)
        assert seen.long_examples == (
            sequence[:23] + "…",
            "st" * 11 + "s…",
        )
        assert seen.share == 6 / 11
    else:
        assert (seen.unknown, seen.too_long, seen.limit) == (3, 0, None)
        assert seen.long_examples == ()


def test_the_unknown_words_are_those_that_the_tokenizer_cannot_write(tokenizer):
    texts = [*SENTENCES, "Ärger über 12 ships", "", " ", "a" * 101, "a" * 100]
    seen = unknown_words(tokenizer, texts)
    encoded = tokenizer.encode_batch(texts)
    assert seen.words == encoded.word_start.sum()
    word = encoded.word_start.cumsum()
    assert seen.unknown == len(set(word[encoded.tokens == tokenizer.unk_id].tolist()))


def test_no_words_at_all(tokenizer):
    seen = unknown_words(tokenizer, ["", " \n"])
    blanks = 1 if tokenizer.kind == "bpe" else 0
    assert (seen.words, seen.unknown, seen.share) == (blanks, 0, 0.0)
