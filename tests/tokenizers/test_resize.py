"""Larger and smaller vocabularies, and what their pieces are made of."""

import pytest
from tests_common import sentences

from plmjax import PlmjaxError
from plmjax.tokenizers import Tokenizer, TokenizerConfig, resize, train_tokenizer
from plmjax.tokenizers.backends import BERT, WORDPIECE_ORDER, wordpiece_backend

HOME = sentences(200)
# A word that no piece spells, a letter and a sign that are not there.
AWAY = [
    text.replace("matrix", "antimatrices").replace("the", "thé") + " 12, γ"
    for text in sentences(200, seed=5)
]
SIZES = {"wordpiece": 90, "bpe": 300, "unigram": 90}


@pytest.fixture(scope="module", params=SIZES)
def home(request) -> Tokenizer:
    kind = request.param
    config = TokenizerConfig(kind=kind, vocab_size=SIZES[kind])
    return train_tokenizer(config, HOME)


def pieces(tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    spelling = {number: piece for piece, number in tokenizer.vocab.items()}
    return [spelling[number] for number in tokenizer.encode_batch(texts).tokens]


def test_added_pieces_follow_the_old_ones_and_are_used(home):
    larger = resize.extended(home, resize.words_of(home, AWAY), 40)
    assert home.vocab.items() < larger.vocab.items()
    assert sorted(larger.vocab.values()) == [*range(larger.vocab_size)]
    assert larger.special_ids == home.special_ids
    before, after = pieces(home, AWAY), pieces(larger, AWAY)
    assert len(after) < len(before) and home.specials.unk not in after
    new = larger.vocab.keys() - home.vocab.keys()
    assert len(new) <= 40
    if home.kind != "bpe":  # its pieces are made of those in between
        assert {piece for piece in new if len(piece.removeprefix("##")) > 1} <= {*after}
    # The template of rows knows the ids.
    assert larger.backend.encode("").ids == home.backend.encode("").ids


def test_a_smaller_vocabulary_splits_its_text_as_before(home):
    larger = resize.extended(home, resize.words_of(home, AWAY), 40)
    words = resize.words_of(larger, HOME[:40])
    smaller = resize.shrunk(larger, words)
    assert pieces(smaller, HOME[:40]) == pieces(larger, HOME[:40])
    assert smaller.vocab_size < larger.vocab_size
    assert smaller.specials == home.specials
    assert smaller.backend.encode("").tokens == home.backend.encode("").tokens
    order = sorted(smaller.vocab, key=smaller.vocab.__getitem__)
    assert order == sorted(order, key=larger.vocab.__getitem__)
    least = resize.shrunk(larger, words, least=10**6)  # specials and the alphabet
    assert home.specials.unk not in pieces(least, HOME[:40])
    most = least.vocab_size + 4
    assert least.vocab_size < resize.shrunk(larger, words, most=most).vocab_size <= most
    with pytest.raises(PlmjaxError, match="less than the special tokens and the alph"):
        resize.shrunk(larger, words, most=least.vocab_size - 1)


def wordpiece(*ordinary: str) -> Tokenizer:
    numbers = {piece: n for n, piece in enumerate([*WORDPIECE_ORDER, *ordinary])}
    backend = wordpiece_backend(numbers, lowercase=True, strip_accents=None)
    return Tokenizer(backend, BERT)


def test_pieces_are_spelt_by_the_old_ones():
    old = wordpiece("li", "##li", "##po", "anti", "the")
    new = wordpiece("the", "lipo", "##lipo", "anti", "##xyz", "The", "[unused1]")
    ids, equal = resize.sources(new, old)
    spelt = {p: [*map(int, ids[n])] for p, n in new.vocab.items()}
    assert spelt["the"] == [9] and spelt["anti"] == [8] and equal[[5, 8]].all()
    # Inside a word, so is the first of the old pieces.
    assert spelt["lipo"] == [5, 7] and spelt["##lipo"] == [6, 7]
    assert spelt["##xyz"] == [] and spelt["[unused1]"] == []
    assert spelt["The"] == [9] and not equal[new.vocab["The"]]
    assert [spelt[f"[{role}]"] for role in ("PAD", "MASK")] == [[0], [4]]


def test_between_kinds_the_letters_and_the_blank_count():
    old = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=300), HOME)
    new = wordpiece("the", "##the", "##er", "matrix", "中")
    ids, equal = resize.sources(new, old)
    spelling = {number: piece for piece, number in old.vocab.items()}
    spelt = {p: [spelling[int(i)] for i in ids[n]] for p, n in new.vocab.items()}
    assert spelt["[MASK]"] == ["<mask>"] and spelt["[CLS]"] == ["<s>"]
    # A blank alone is left out.
    assert "".join(spelt["matrix"]).removeprefix("Ġ") == "matrix"
    assert "".join(spelt["##the"]) == "the"
    assert equal[new.vocab["the"]] == ("Ġthe" in old.vocab)
    assert len(spelt["中"]) == 3  # bytes
    again, equal = resize.sources(old, new)
    mask = old.require_mask()
    assert again[mask].tolist() == [new.mask_id] and equal[mask]
