import dataclasses
import itertools
import pickle
import random
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.tokenizers import (
    Tokenizer,
    TokenizerConfig,
    get_tokenizer,
    train_tokenizer,
)
from plmjax.tokenizers.coverage import describe
from plmjax.tokenizers.train import sample_documents

SENTENCES = [
    "The café’s owner—an old sailor—told us about the sea and the ships.",
    "The ships sailed; the sailors told old tales of the sea, didn't they?",
    "A matrix is a table of numbers. The rank of a matrix isn't its size.",
    "In 1914 the old ship sailed 300 miles in 12 days: what a tale!",
    "Ärger über Größe: naïve façade, 東京 and Москва.",
]
KINDS = [
    TokenizerConfig(vocab_size=160),
    TokenizerConfig(vocab_size=160, lowercase=False),
    TokenizerConfig(vocab_size=160, lowercase=True, strip_accents=True),
    TokenizerConfig(kind="bpe", vocab_size=330, lowercase=False),
    TokenizerConfig(kind="bpe", vocab_size=330, lowercase=True),
    TokenizerConfig(kind="unigram", vocab_size=140),
    TokenizerConfig(kind="unigram", vocab_size=140, lowercase=False),
]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def tokenizer(request):
    return train_tokenizer(request.param, SENTENCES * 3)


def test_the_pieces_that_end_a_sentence_are_found(tokenizer):
    ids = tokenizer.global_ids["sentences"]
    assert {tokenizer.decode([n]).strip() for n in ids} >= {"."}
    assert tokenizer.encode_batch(["the old ships."]).tokens[-1] in ids
    assert tokenizer.global_ids["question"] == (tokenizer.sep_id,)


def reference(tokenizer, texts):
    """The library's own answer, text by text."""
    backend = tokenizer.backend
    if any(token in text for token in tokenizer.specials.tokens() for text in texts):
        backend = tokenizer._plain  # a unigram model would find them in the text
    tokens, starts, lengths = [], [], []
    for encoding in backend.encode_batch(texts, add_special_tokens=False):
        words = list(encoding.word_ids)
        if tokenizer.kind == "unigram":  # "▁word" and its signs are one to the library
            pieces = [backend.id_to_token(number) for number in encoding.ids]
            parts = [
                (is_sign(piece) and before != "▁") or is_sign(before)
                for piece, before in zip(pieces, ["", *pieces], strict=False)
            ]
            words = list(zip(words, itertools.accumulate(parts), strict=False))
        tokens += encoding.ids
        starts += [a != b for a, b in zip(words, [None, *words], strict=False)]
        lengths.append(len(encoding.ids))
    return tokens, starts, lengths


def strips(tokenizer):
    """Whether its normaliser drops accents."""
    normalizer = tokenizer.backend.normalizer
    return normalizer is not None and normalizer.normalize_str("ŭ") != "ŭ"


def is_sign(piece):
    letters = piece.replace("▁", "")
    return bool(letters) and all(unicodedata.category(c)[0] in "PS" for c in letters)


def assert_exact(tokenizer, texts):
    encoded = tokenizer.encode_batch(texts)
    assert (encoded.tokens.dtype, encoded.word_start.dtype) == (np.int32, bool)
    found = [array.tolist() for array in encoded]
    if found != list(reference(tokenizer, texts)):
        for text in texts:  # name the text
            one = [array.tolist() for array in tokenizer.encode_batch([text])]
            assert one == list(reference(tokenizer, [text])), repr(text)
    assert found == list(reference(tokenizer, texts))


def test_special_ids_are_those_of_the_published_models():
    bert = train_tokenizer(KINDS[0], SENTENCES * 3)
    assert [bert.pad_id, bert.unk_id, bert.cls_id, bert.sep_id, bert.mask_id] == [
        *range(5)
    ]
    roberta = train_tokenizer(KINDS[3], SENTENCES * 3)
    ids = [roberta.cls_id, roberta.pad_id, roberta.sep_id, roberta.unk_id]
    assert [*ids, roberta.mask_id] == [*range(5)]
    assert bert.special_ids == roberta.special_ids == (0, 1, 2, 3, 4)
    assert (bert.vocab_size, roberta.vocab_size) == (160, 330)


def test_word_starts(tokenizer):
    text = "The sailors didn't sail, café"
    ids, starts, _ = tokenizer.encode_batch([text])
    words, word = [], []
    for number, start in zip(ids, starts, strict=True):
        if start and word:
            words.append(tokenizer.decode(word).strip())
            word = []
        word.append(number)
    words.append(tokenizer.decode(word).strip())
    expected = (
        ["the", "sailors", "didn", "'", "t", "sail", ",", "cafe"]
        if tokenizer.kind != "bpe"
        else ["the", "sailors", "didn", "'t", "sail", ",", "cafe"]
    )
    plain = [w.removeprefix("##").lower().replace("é", "e") for w in words]
    assert plain == expected
    assert words[-1].removeprefix("##") == ("cafe" if strips(tokenizer) else "café")


def test_cache_is_exact_on_every_character(tokenizer):
    characters = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    texts = [f"a{character}b {character} 1" for character in characters[:0x3400:3]]
    texts += [f"x{c}'s{c}" for c in characters[:0x500]]
    texts += ["".join(characters[i : i + 50]) for i in range(0, len(characters), 50)]
    assert_exact(tokenizer, texts)


def test_cache_is_exact_on_random_texts(tokenizer):
    chance = random.Random(0)
    alphabets = [
        "ab \t\n\r",
        "aB1.,'-[] \x00\x0b\x0c\x1c\x7f\x85\xa0",
        "aé\u0301\u0327ß İIıΣς’“—…\u2028\u200b\ufeff 中の한",
        "'sSdDlLrRtTvVeEmM K\u017f",
    ]
    texts = [
        "".join(chance.choices(chance.choice(alphabets), k=chance.randrange(30)))
        for _ in range(3000)
    ]
    assert_exact(tokenizer, texts)
    assert_exact(tokenizer, texts)  # now from the cache


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize(
    "text", ["वह अपने शहर में नई किताबें पढ़ेगा", "บ้าน นี้ ใหญ่ มาก", "cafe\u0301 u\u0308ber"]
)
def test_no_word_ends_at_a_mark(kind, text, tmp_path):
    trained = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=500), [text] * 3)
    trained.save(tmp_path)
    for tokenizer in (trained, Tokenizer.load(tmp_path)):
        encoded = tokenizer.encode_batch([text])
        assert encoded.word_start.sum() == len(text.split())
        plain = tokenizer.decode(encoded.tokens)
        assert unicodedata.normalize("NFC", plain) == unicodedata.normalize("NFC", text)
        assert_exact(tokenizer, [text, "a'b ,x  \n1"])
    if kind == "bpe":
        assert "marks on letters" in " ".join(trained.notes)
        plain = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=500), ["cafés"])
        assert "Split" not in str(plain.backend.pre_tokenizer)
        assert "marks" not in " ".join(plain.notes)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_cache_is_exact_where_accents_are_dropped(kind):
    config = TokenizerConfig(kind=kind, vocab_size=330, strip_accents=True)
    tokenizer = train_tokenizer(config, SENTENCES * 3)
    assert strips(tokenizer)
    chance = random.Random(0)
    texts = [
        "".join(chance.choices("ae\u0301é\u0327  İ中'sK1.\n", k=12)) for _ in range(300)
    ]
    assert_exact(tokenizer, [*texts, *SENTENCES])


def test_cache_is_exact_on_long_words_and_empty_texts(tokenizer):
    texts = ["", " ", "a" * 99, "b" * 100, "c" * 101, "d" * 5000 + " e", "é" * 400, ""]
    assert_exact(tokenizer, texts)
    assert tokenizer.encode_batch([]).tokens.shape == (0,)
    assert tokenizer.encode_batch([]).lengths.shape == (0,)


def test_cache_forgets_and_stays_exact(tokenizer, monkeypatch):
    from plmjax.tokenizers import words

    monkeypatch.setattr(words, "KEPT_WORDS", 20)
    monkeypatch.setattr(words, "BLOCK_CHARACTERS", 100)
    fresh = pickle.loads(pickle.dumps(tokenizer))
    assert_exact(fresh, SENTENCES * 2 + ["", "x" * 1000])
    assert len(fresh._cache._number) < 200
    assert all(len(unit) <= words.KEPT_CHARACTERS for unit in fresh._cache._number)


def test_specials_spelt_in_a_text_stay_text(tokenizer):
    texts = [f"about {token} here" for token in tokenizer.specials.tokens()]
    encoded = tokenizer.encode_batch(texts)
    assert not set(encoded.tokens.tolist()) & {
        tokenizer.mask_id,
        tokenizer.cls_id,
        tokenizer.sep_id,
        tokenizer.pad_id,
    }
    assert_exact(tokenizer, texts)


def test_prompt_and_decode(tokenizer):
    ids = tokenizer.encode_prompt("The [MASK] of a <mask>.")
    assert ids.count(tokenizer.mask_id) == 2
    shown = tokenizer.decode([*ids, tokenizer.pad_id])
    assert shown.count(tokenizer.specials.mask) == 2
    assert tokenizer.specials.pad not in shown
    plain = tokenizer.encode_batch(["The"]).tokens.tolist()
    assert ids[: len(plain) + 1] == [*plain, tokenizer.mask_id]
    assert tokenizer.encode_prompt("The sea") == (
        tokenizer.encode_batch(["The sea"]).tokens.tolist()
    )


def test_token_bytes_sum_to_the_text(tokenizer):
    text = "the old ships sailed 300 miles , tales of the sea"
    ids = tokenizer.encode_batch([text]).tokens
    assert tokenizer.token_bytes[ids].sum() == len(text.replace(" ", ""))
    assert not tokenizer.token_bytes[list(tokenizer.special_ids)].any()
    assert tokenizer.token_bytes.dtype == np.int32
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)


def test_save_load_and_pickle(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for other in (
        Tokenizer.load(tmp_path),
        Tokenizer.load(tmp_path / "tokenizer.json"),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert other.digest == tokenizer.digest == tokenizer.vocabulary_digest
        assert other.kind == tokenizer.kind
        assert other.special_ids == tokenizer.special_ids
        assert_exact(other, SENTENCES)
    config = TokenizerConfig(path=str(tmp_path))
    assert get_tokenizer(config, []).digest == tokenizer.digest


def test_loads_the_older_files(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    if tokenizer.backend.normalizer is None or tokenizer.kind == "wordpiece":
        assert Tokenizer.load(tmp_path).digest == tokenizer.digest


def test_bakes_in_no_truncation(tmp_path):
    tokenizer = train_tokenizer(KINDS[0], SENTENCES * 3)
    tokenizer.backend.enable_truncation(4)
    tokenizer.backend.enable_padding(length=4)
    tokenizer.save(tmp_path)
    assert len(Tokenizer.load(tmp_path).encode_batch(SENTENCES[:1]).tokens) > 4


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_same_documents_same_vocabulary_in_every_process(kind):
    # Ties abound in this text; hash tables differ from process to process.
    program = (
        "from plmjax.tokenizers import *; import random\n"
        "r = random.Random(1); letters = 'abcdefghijklmnopqrst'\n"
        "texts = [' '.join(''.join(r.choices(letters, k=5)) for _ in range(50))"
        " for _ in range(40)]\n"
        f"config = TokenizerConfig(kind={kind!r}, vocab_size=500)\n"
        "print(train_tokenizer(config, texts).digest)"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(digests) == 1


def test_sample_is_bounded_and_independent_of_order():
    documents = [f"document {number} " + "x" * (number % 50) for number in range(500)]
    sample = sample_documents(documents, limit_bytes=5000)
    assert 1000 < sum(map(len, sample)) <= 5000
    assert sorted(sample) == sorted(sample_documents(documents[::-1], 5000))
    assert sample_documents(documents, 10**6) == documents
    for pair in itertools.pairwise(documents):  # neither fits beside the other
        assert len(sample_documents(pair, max(map(len, pair)))) == 1


# --- bad input


def fails(code, *words):
    class Check:
        def __enter__(self):
            self.raises = pytest.raises(PlmjaxError)
            self.info = self.raises.__enter__()
            return self

        def __exit__(self, *error):
            self.raises.__exit__(*error)
            assert self.info.value.code == code
            assert self.info.value.hint
            assert "\n" not in str(self.info.value)
            for word in words:
                assert word in str(self.info.value)
            return True

    return Check()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_text_with_too_few_pieces_gives_those_it_has(kind):
    asked = TokenizerConfig(kind=kind, vocab_size=5000)
    small = train_tokenizer(asked, SENTENCES)
    size = small.vocab_size
    assert sorted(small.vocab.values()) == list(range(size))
    assert {"wordpiece": 90, "bpe": 270, "unigram": 60}[kind] < size < 400
    (note,) = small.notes
    for part in (f"gives {size} pieces", "at least 2 times", "vocab_size=5,000"):
        assert part in note
    # The size that it has gives the same vocabulary, with nothing to say.
    exact = train_tokenizer(dataclasses.replace(asked, vocab_size=size), SENTENCES)
    assert (exact.digest, exact.notes) == (small.digest, ())


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_too_many_letters_names_the_size_that_works(kind):
    with fails(3, "tokenizer.kind=bpe", "vocab_size=20") as check:
        train_tokenizer(TokenizerConfig(kind=kind, vocab_size=20), SENTENCES)
    size = int(re.search(r"vocab_size=(\d+) or more", str(check.info.value))[1])
    assert train_tokenizer(TokenizerConfig(kind=kind, vocab_size=size), SENTENCES)
    with fails(3, "letters"):
        train_tokenizer(TokenizerConfig(kind=kind, vocab_size=size - 1), SENTENCES)


def test_bad_training():
    with fails(3, "no text"):
        train_tokenizer(TokenizerConfig(), ["", "  \n"])
    with fails(2, "wordpeice", "wordpiece, bpe"):
        train_tokenizer(TokenizerConfig(kind="wordpeice"), SENTENCES)
    for kind in ("wordpiece", "unigram"):
        with fails(3, "letters", "vocab_size=20"):
            train_tokenizer(TokenizerConfig(kind=kind, vocab_size=20), SENTENCES)
    with fails(2, "261"):
        train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=100), SENTENCES)


SPECIALS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


@pytest.mark.parametrize(
    "content, words",
    [
        ("", ["[PAD]"]),
        ("[PAD]\n[UNK]\n[SEP]\n[MASK]\na\n", ["[CLS]"]),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", ["[MASK]"]),
    ],
)
def test_bad_vocab_txt(tmp_path, content, words):
    (tmp_path / "vocab.txt").write_text(content)
    with fails(4, *words):
        Tokenizer.load(tmp_path / "vocab.txt")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_an_id_is_the_number_of_a_line(tmp_path, end, last):
    """An empty line is a piece; of equal lines the last one counts."""
    lines = [*SPECIALS.split(), "a", "", "b", "a", "##c", "c"]
    content = end.join([*lines, ""] if last else lines)
    (tmp_path / "vocab.txt").write_bytes(content.encode())
    ours = Tokenizer.load(tmp_path)
    assert ours.vocab_size == 11
    assert {piece: ours.vocab[piece] for piece in ("a", "", "b", "##c", "c")} == {
        "a": 8,
        "": 6,
        "b": 7,
        "##c": 9,
        "c": 10,
    }
    assert ours.encode_batch(["a bc c"]).tokens.tolist() == [8, 7, 9, 10]
    assert ours.token_bytes.tolist() == [0] * 7 + [1, 1, 1, 1]
    # Line 5 of the copy, whose piece is not known any more, shifts nothing.
    ours.save(tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").unlink()
    copy = Tokenizer.load(tmp_path / "copy")
    assert (copy.digest, copy.vocab) == (ours.digest, ours.vocab)


def test_a_vocabulary_with_capitals_is_cased(tmp_path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text(SPECIALS + "The\nCat\nthe\ncat\n")
    cased = Tokenizer.load(tmp_path)
    assert cased.encode_batch(["The Cat the cat"]).tokens.tolist() == [5, 6, 7, 8]
    (note,) = cased.notes
    assert "50% of its pieces have capitals" in note and "do_lower_case" in note
    assert Tokenizer.load(tmp_path, lowercase=False).notes == ()
    # What the files say counts, and so does the vocabulary's great majority.
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    asked = Tokenizer.load(tmp_path)
    assert asked.encode_batch(["The Cat"]).tokens.tolist() == [7, 8]
    assert asked.notes == ()
    assert describe(asked) == [
        "2 of 9 pieces can never be used: they have capitals, but text is lower-cased, "
        'e.g. The, Cat. If that is not meant, set "do_lower_case": false in '
        "tokenizer_config.json."
    ]
    (tmp_path / "tokenizer_config.json").unlink()
    few = "".join(f"{letter}{other}\n" for letter in "abcdefgh" for other in "abcdefgh")
    vocab.write_text(SPECIALS + few + "Γ\n")
    uncased = Tokenizer.load(tmp_path)
    assert uncased.notes == () and uncased.encode_batch(["AB"]).tokens.tolist() == [6]


def test_a_piece_may_be_a_line_separator(tmp_path):
    (tmp_path / "vocab.txt").write_text(SPECIALS + "\u2028\n\u3000\na\n")
    found = Tokenizer.load(tmp_path)  # bert-base-chinese has U+2028
    assert (found.vocab["\u2028"], found.vocab["a"]) == (5, 7)


def test_bad_files(tmp_path):
    with fails(2, "does not exist"):
        Tokenizer.load(tmp_path / "nothing")
    with fails(4, "holds none of"):
        Tokenizer.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with fails(4, "not a tokenizer.json"):
        Tokenizer.load(path)
    path.write_bytes(b"\xff")
    with fails(4, "byte 0 is not UTF-8"):
        Tokenizer.load(tmp_path)


def test_refuses_other_models(tmp_path):
    import tokenizers

    model = tokenizers.models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with fails(4, "WordLevel", "byte-level BPE"):
        Tokenizer.load(tmp_path)


def test_vocab_txt_follows_its_arguments_or_its_config(tmp_path):
    words = "The the ships é e " + " ".join("abcdfghijklmnopqrstuvwxyz")
    words += " " + " ".join(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    (tmp_path / "vocab.txt").write_text(SPECIALS + words.replace(" ", "\r\n"))
    vocab = tmp_path / "vocab.txt"
    text = ["The é"]
    assert Tokenizer.load(vocab).encode_batch(text).tokens.tolist() == [6, 9]
    cased = Tokenizer.load(vocab, lowercase=False)
    assert cased.encode_batch(text).tokens.tolist() == [5, 8]
    accents = Tokenizer.load(vocab, strip_accents=False)
    assert accents.encode_batch(text).tokens.tolist() == [6, 8]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer.load(vocab).encode_batch(text).tokens.tolist() == [5, 8]


@pytest.mark.parametrize("kind", [KINDS[3], KINDS[5]], ids=str)
def test_added_tokens_and_unknown_normalizers_go_through_the_library(kind, tmp_path):
    from tokenizers import normalizers

    for number, change in enumerate(
        [
            lambda backend: backend.add_tokens(["the sea"]),
            lambda backend: setattr(backend, "normalizer", normalizers.NFKC()),
            lambda backend: setattr(backend, "normalizer", normalizers.Strip()),
        ]
    ):
        tokenizer = train_tokenizer(kind, SENTENCES * 3)
        change(tokenizer.backend)
        tokenizer.save(tmp_path / str(number))
        assert_exact(Tokenizer.load(tmp_path / str(number)), SENTENCES)


def test_special_tokens_spelt_in_the_text_shape_no_piece():
    documents = ["the [MASK] of a page about bert"] * 20 + ["more words of it"] * 20
    trained = train_tokenizer(TokenizerConfig(vocab_size=58), documents)
    upper = [p for p in trained.vocab if p != p.lower()]
    assert sorted(upper) == ["[CLS]", "[MASK]", "[PAD]", "[SEP]", "[UNK]"]
    config = TokenizerConfig(kind="unigram", vocab_size=50, lowercase=False)
    trained = train_tokenizer(config, documents)
    spelt = [p for p in trained.vocab if "MASK" in p or "]" in p]
    assert {"[CLS]", "[MASK]", "[SEP]", "]"} <= set(spelt)
    assert {"[CLS]", "[MASK]", "[SEP]", "]", "MASK", "▁MASK"} >= set(spelt)


def test_nothing_but_controls():
    for kind in ("wordpiece", "unigram"):
        with fails(3, "gives only"):
            train_tokenizer(TokenizerConfig(kind=kind), ["\x01\x02"])
