"""Characters and k-mers, and the other options of training a vocabulary."""

import pickle
import random
import re

import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.tokenizers import (
    Tokenizer,
    TokenizerConfig,
    train_tokenizer,
    unknown_words,
)

CHANCE = random.Random(0)
DNA = ["".join(CHANCE.choices("ACGT", k=60)) for _ in range(40)]


def pieces(tokenizer, text):
    ids = tokenizer.encode_batch([text]).tokens.tolist()
    return [tokenizer.backend.id_to_token(number) for number in ids]


def library(tokenizer, texts):
    """The ids that the tokenizers library gives for each text."""
    found = tokenizer.backend.encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in found]


@pytest.fixture(scope="module", params=[1, 3], ids=["overlap", "beside"])
def kmers(request):
    config = TokenizerConfig(kind="kmer", k=3, stride=request.param, vocab_size=80)
    return train_tokenizer(config, DNA)


def test_kmers_are_what_they_should_be(kmers):
    sequence = DNA[0].lower()
    step = 1 if kmers.overlap == 3 else 3
    expected = [sequence[i : i + 3] for i in range(0, 58, step)]
    assert pieces(kmers, DNA[0]) == expected
    # A wrapped sequence is one sequence.
    assert pieces(kmers, f" {DNA[0][:10]}\n{DNA[0][10:]}\t") == expected
    assert kmers.kind == "kmer" and kmers.token_bytes.max() == step
    assert kmers.decode(kmers.encode_batch([DNA[0]]).tokens) == sequence
    prompt = f"{sequence[:9]}[MASK]{sequence[9:]}"
    assert kmers.decode(kmers.encode_prompt(prompt)) == prompt


def test_masking_a_word_hides_a_letter(kmers):
    """No unmasked k-mer shows the letters in the middle of a word of k overlapping."""
    starts = kmers.encode_batch([DNA[0], DNA[1]]).word_start.reshape(2, -1)
    if kmers.overlap == 1:
        assert starts.all()
    else:
        assert (starts == (np.arange(58) % 3 == 0)).all()


def test_other_letters_are_unknown_and_end_no_frame_of_others(kmers):
    unk = kmers.specials.unk
    if kmers.overlap > 1:
        assert pieces(kmers, "acgtXacg") == ["acg", "cgt", unk, "acg"]
    else:
        assert pieces(kmers, "acgtXacg") == ["acg", unk, "c", "g"]
    words = unknown_words(kmers, ["acgtXacg"])
    assert words.unknown == 1 and words.too_long == 0


def test_the_cache_of_sequences_is_exact(kmers, tmp_path):
    letters = train_tokenizer(TokenizerConfig(kind="characters", vocab_size=60), DNA)
    texts = ["", "A", " ", "ac", DNA[0]]
    for _ in range(400):
        alphabet = CHANCE.choice(
            ["ACGTacgt \n\t", "acgtN\x0b\x1c\x85-]", "acé\u0301K東"]
        )
        texts += ["".join(CHANCE.choices(alphabet, k=CHANCE.randrange(20)))]
    for tokenizer in (kmers, letters):
        tokenizer.save(tmp_path / tokenizer.kind)
        for other in (
            Tokenizer.load(tmp_path / tokenizer.kind),
            pickle.loads(pickle.dumps(tokenizer)),
        ):
            encoded = other.encode_batch(texts)
            parts = np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])
            assert [part.tolist() for part in parts] == library(other, texts)
            assert (other.kind, other.overlap) == (tokenizer.kind, tokenizer.overlap)
        assert tokenizer._cache._cutter.split("ACGTAC") != ["ACGTAC"]


def test_characters_keep_blanks_and_fill_no_others():
    text = "The café, 東京  now"
    trained = train_tokenizer(TokenizerConfig(kind="characters", vocab_size=60), [text])
    assert pieces(trained, text) == list("the▁café,▁東京▁now")
    assert trained.decode(trained.encode_batch([text]).tokens) == "the café, 東京 now"
    assert trained.encode_batch([text]).word_start.all()
    size = len("thecafé,東京now".encode())
    assert trained.token_bytes[trained.encode_batch([text]).tokens].sum() == size
    assert trained.kind == "characters" and not trained.notes[1:]


def test_the_commonest_kmers_are_learned_wherever_they_begin():
    config = TokenizerConfig(kind="kmer", k=2, vocab_size=5 + 3 + 1, lowercase=False)
    assert "AB" in train_tokenizer(config, ["CABCABC AB"]).vocab
    # Fewer than min_frequency, or with a letter that is left out.
    config = TokenizerConfig(kind="kmer", k=2, vocab_size=20, alphabet=2)
    assert set(train_tokenizer(config, ["ababac", "ba"]).vocab) > {"a", "b", "ab", "ba"}
    assert "ac" not in train_tokenizer(config, ["ababacac"] * 2).vocab


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "characters"])
def test_an_alphabet_keeps_the_commonest_letters(kind):
    texts = ["中文中文 ab ab ab"] * 5 + ["龘 xab"] * 2
    most = 5 if kind == "characters" else 4  # with the blank
    config = TokenizerConfig(kind=kind, vocab_size=60, alphabet=most)
    trained = train_tokenizer(config, texts)
    letters = {c for piece in trained.vocab for c in piece.removeprefix("##")}
    assert letters >= set("中文ab") and not letters & set("龘x")
    assert trained.unk_id in trained.encode_batch(["龘"]).tokens
    assert re.search(r"of the words have letters .*(龘|xab|x)", trained.notes[-1])
    assert trained.digest == train_tokenizer(config, texts).digest


def test_special_tokens_have_the_ids_after_the_usual_five():
    for kind in ("wordpiece", "bpe", "unigram", "characters", "kmer"):
        config = TokenizerConfig(
            kind=kind, vocab_size=300, special_tokens=("[GENE]", "[CELL]")
        )
        trained = train_tokenizer(config, ["some text [GENE] here"] * 3)
        assert [trained.vocab[token] for token in config.special_tokens] == [5, 6]
        assert trained.special_ids == tuple(range(7))
        # Spelt out in a text it is text, as all special tokens are.
        assert not {5, 6} & set(trained.encode_batch(["a [GENE] b"]).tokens.tolist())


def test_longest_word_and_nfkc():
    texts = ["ﬁne ＡＢＣ abcdefgh"] * 3
    long = train_tokenizer(TokenizerConfig(longest_word=7, vocab_size=90), texts)
    assert pieces(long, "abcdefg abcdefgh")[-1] == "[UNK]"
    assert "[UNK]" not in pieces(long, "abcdefg")
    normal = train_tokenizer(TokenizerConfig(nfkc=True, vocab_size=90), texts)
    assert pieces(normal, "ﬁne ＡＢＣ") == pieces(normal, "fine abc")
    texts = ["a<\u0338b ≠ ﬁ=\u0338", "½ a\u00a0b ´ x\u3000y'z", "ﬀ's…"]
    for config in (
        TokenizerConfig(nfkc=True, vocab_size=90),
        TokenizerConfig(kind="bpe", nfkc=True, vocab_size=300),
    ):
        trained = train_tokenizer(config, texts * 3)
        found = [trained.encode_batch([text]).tokens.tolist() for text in texts]
        assert found == library(trained, texts)


@pytest.mark.parametrize(
    "given, texts, message",
    [
        ({"special_tokens": ("[A]", "[A]")}, ["a"], "'\\[A\\]' is given twice"),
        ({"special_tokens": ("[MASK]",)}, ["a"], "'\\[MASK\\]' is given twice"),
        ({"special_tokens": ("[a b]",)}, ["a"], "no text may spell"),
        ({"special_tokens": ("a",)}, ["a"], "no text may spell"),
        ({"kind": "bpe", "alphabet": 9}, ["a"], "no effect on kind=bpe"),
        ({"kind": "unigram", "nfkc": False}, ["a"], "no effect on kind=unigram"),
        ({"k": 3}, ["a"], "tokenizer.k=3 has no effect"),
        ({"kind": "kmer", "stride": 2}, ["a"], "must be 1 or k=6"),
        ({"kind": "characters", "vocab_size": 9}, ["abcdefg"], "has 7 letters"),
        ({"kind": "kmer"}, [" \n"], "no text"),
        (
            {"kind": "kmer", "stride": 1, "k": 2},
            ["".join(map(chr, range(0x4E00, 0x4E80)))],
            "at most 64",
        ),
    ],
)
def test_options_that_cannot_work_are_refused(given, texts, message):
    with pytest.raises(PlmjaxError, match=message):
        train_tokenizer(TokenizerConfig(**given), texts * 3)
