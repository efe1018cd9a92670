"""What a vocabulary loses of a text, counted by cause."""

import dataclasses
import unicodedata

import pytest

from plmjax.tokenizers import (
    TokenizerConfig,
    get_tokenizer,
    train_tokenizer,
    unknown_words,
)
from plmjax.tokenizers.coverage import describe, describe_text, dropped_characters

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
        assert (seen.unknown, seen.characters) == (0, ())
        return
    assert seen.words == 11
    assert seen.characters == ("東", "7", "x")
    assert seen.character_examples == (
        ("東", "x7") if tokenizer.kind == "wordpiece" else ("▁東", "▁x7")
    )
    if tokenizer.kind == "wordpiece":
        assert (seen.unknown, seen.too_long, seen.limit) == (6, 3, 100)
        assert seen.long_examples == (sequence[:23] + "…", "st" * 11 + "s…")
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
    assert (seen.words, seen.unknown) == (blanks, 0)


LANGUAGES = ["Hodiaŭ ambaŭ knaboj manĝas hodiaŭ.", "वह अपने शहर में नई किताबें पढ़ेगा।"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowercase", [True, False])
def test_accents_and_vowel_signs_are_letters(kind, lowercase):
    config = TokenizerConfig(kind=kind, lowercase=lowercase)
    tokenizer = train_tokenizer(config, LANGUAGES * 3)
    for text in LANGUAGES:
        ids = tokenizer.encode_batch([text]).tokens
        expected = text.lower() if lowercase else text
        # WordPiece's decoder puts blanks around signs.
        assert tokenizer.decode(ids).replace(" ", "") == expected.replace(" ", "")
    assert describe_text(tokenizer, LANGUAGES) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_accents_are_counted(kind):
    config = TokenizerConfig(kind=kind, strip_accents=True)
    tokenizer = train_tokenizer(config, LANGUAGES * 3)
    seen = dropped_characters(tokenizer, LANGUAGES)
    assert seen.examples[:2] == ("Hodiaŭ -> hodiau", "ambaŭ -> ambau")
    # Four hats; BERT's rule keeps the spacing signs ा and ि, the others' does not.
    assert seen.characters == sum(len(t.replace(" ", "")) for t in LANGUAGES) == 58
    assert seen.marks == 4 + {"wordpiece": 7, "bpe": 10, "unigram": 10}[kind]
    assert seen.formats == 0
    (line,) = describe_text(tokenizer, LANGUAGES * 3)
    assert line in tokenizer.notes
    share = f"{seen.marks * 3} of 174 characters ({seen.marks / 58:.2%})"
    for part in (share, "Hodiaŭ -> hodiau", "tokenizer.strip_accents=false"):
        assert part in line


def test_a_setting_that_a_loaded_tokenizer_overrules_is_said(tmp_path):
    config = TokenizerConfig(strip_accents=True)
    train_tokenizer(config, LANGUAGES * 3).save(tmp_path)
    loaded = TokenizerConfig(path=str(tmp_path))
    (dropped,) = get_tokenizer(loaded, LANGUAGES).notes
    assert "Hodiaŭ -> hodiau" in dropped
    for asked, count in ((True, 1), (False, 2)):
        config = dataclasses.replace(loaded, strip_accents=asked)
        notes = get_tokenizer(config, LANGUAGES).notes
        assert len(notes) == count and notes[0] == dropped
    assert "strip_accents=False has no effect: accents are dropped" in notes[1]
    (tmp_path / "vocab.txt").rename(tmp_path / "alone.txt")
    bare = TokenizerConfig(path=str(tmp_path / "alone.txt"), strip_accents=False)
    (tmp_path / "tokenizer_config.json").unlink()
    assert get_tokenizer(bare, LANGUAGES).notes == ()  # here it has


def test_dropped_joiners_are_counted():
    text = "می\u200cخواهم soft\u00adware plain"
    tokenizer = train_tokenizer(TokenizerConfig(), [text] * 3)
    seen = dropped_characters(tokenizer, [text])
    assert (seen.marks, seen.formats, seen.names) == (0, 2, ("U+00AD", "U+200C"))
    (line,) = describe_text(tokenizer, [text])
    assert "2 (9.09%), U+00AD, U+200C" in line
    kept = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), [text] * 3)
    assert describe_text(kept, [text]) == ()


def test_pieces_that_accents_keep_from_use():
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=70), LANGUAGES * 3)
    assert describe(tokenizer) == []
    normalizer = tokenizer.backend.normalizer
    normalizer.strip_accents = True
    tokenizer.backend.normalizer = normalizer
    (line,) = describe(tokenizer)
    count, vocabulary = line.split(" pieces")[0].split(" of ")
    assert int(vocabulary) == tokenizer.vocab_size
    assert int(count) == sum(
        any(
            unicodedata.category(c) == "Mn" for c in unicodedata.normalize("NFD", piece)
        )
        for piece in tokenizer.vocab
    )
    assert '"strip_accents": false' in line
