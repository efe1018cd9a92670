"""What is counted while a text is tokenised, and what the counts say against it."""

import json

import pytest

from plmjax.data import prepare as preparation
from plmjax.data.corpus import SourceConfig, make_source
from plmjax.data.prepare import open_store, prepare
from plmjax.data.quality import problems
from plmjax.tokenizers import Tokenizer, TokenizerConfig, train_tokenizer
from plmjax.tokenizers.backends import BERT, WORDPIECE_ORDER, wordpiece_backend

LINES = [f"Ship {n} sails to the {n % 7} seas, and no wind blows." for n in range(300)]
DNA = ["acgt" * 30 + "acgt"[n % 4] * n for n in range(100)]
CYRILLIC = [f"{n} домов стоят у воды" for n in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TokenizerConfig(vocab_size=90), LINES)


def build(tokenizer, folder, documents, percent=10.0, **description):
    source = make_source(
        SourceConfig(), lambda tally: iter(documents), "test", description
    )
    return prepare(source, tokenizer, folder, percent, 1, lambda text: None)


def held_out(text: str, percent: float) -> str:
    """Returns the text with a number behind it by which it is held out."""
    texts = (f"{text} {n}" for n in range(10_000))
    return next(t for t in texts if preparation.is_held_out(t, percent))


def test_counts_are_those_of_all_text(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "BATCH_BYTES", 500)
    documents = [*LINES, "a \ufffd sea \ufffd", "д sea", "a sea", "a sea"]
    facts = build(tokenizer, tmp_path, documents).manifest["quality"]
    encoded = tokenizer.encode_batch(documents)
    assert facts == {
        "characters": sum(map(len, documents)),
        "words": int(encoded.word_start.sum()),
        "unknown_tokens": 1,
        "replacement_characters": 2,
        "all_documents": 304,
        "distinct_documents": 303,
        "damaged": "a \ufffd sea \ufffd",
    }


def test_ordinary_text_has_no_problem(tokenizer, tmp_path):
    assert problems(build(tokenizer, tmp_path, LINES), 10) == []


LONG = "and " * 8000
CASES = {
    "dna": (
        DNA,
        True,
        "100.0% of the tokens are [UNK] (100 of 100). Words of over 100 characters",
        "'acgtacgtacgtacgtacgtacg…'",
        "--config.tokenizer.kind=bpe",
    ),
    "script": (CYRILLIC, True, "% of the tokens are [UNK]", "lacks 'о'", "'домов'"),
    "some unknown": (
        [*LINES, *CYRILLIC[:60]],
        False,
        f"% of the tokens are [UNK] ({60 * 4} of ",
        "--config.tokenizer.path=none",
    ),
    "damaged": (
        [*LINES, "mit gr\ufffd\ufffden Grü\ufffden " * 9],
        True,
        "are \ufffd (27 of ",
        "'mit gr\ufffd\ufffden Grü",
        "--config.data.encoding=latin-1",
    ),
    "copies": (
        [*LINES[:100], *["No wind blows."] * 150],
        False,
        "59.6% of the documents repeat another one word for word (149 of 250)",
    ),
    "one long document": (
        [*LINES, LONG],
        False,
        "of the text (8,000 of ",
        "--config.data.source.document=blank or file",
    ),
    "one held-out document": (
        [t for t in LINES if not preparation.is_held_out(t, 10)]
        + [held_out("the sea", 10)],
        False,
        "The held-out text is one document of ",
        "--config.data.held_out_percent=10",
    ),
    "held out is the corpus": (
        [*LINES, held_out(LONG, 10), held_out("the sea", 10)],
        True,
        "One document has ",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named(case, tokenizer, tmp_path):
    documents, refused, *words = CASES[case]
    (problem,) = problems(build(tokenizer, tmp_path, documents, document="line"), 10.0)
    assert problem.refused == refused and not problem.final
    assert all(word in problem.text for word in words), problem.text


@pytest.mark.parametrize("document", ["the field text", None])
def test_a_document_of_records_has_no_end_to_set(document, tokenizer, tmp_path):
    store = build(tokenizer, tmp_path, [*LINES, LONG], document=document)
    (problem,) = problems(store, 10)
    assert problem.text.endswith("tokens). A document is a record of the source.")


def test_few_unknown_words_are_no_problem(tokenizer, tmp_path):
    # 60 unknown words of about 4,000 are under 2 %.
    documents = [*LINES, *(f"{n} воды" for n in range(60))]
    store = build(tokenizer, tmp_path, documents)
    assert store.manifest["quality"]["unknown_tokens"] == 60
    assert problems(store, 10) == []


def test_a_vocabulary_that_spells_words_out(tmp_path):
    letters = [chr(code) for code in range(ord("а"), ord("я") + 1)]
    english = [f"w{n}" for n in range(1000)]
    pieces = [*WORDPIECE_ORDER, *"0123456789", *letters, *(f"##{x}" for x in letters)]
    vocab = {piece: number for number, piece in enumerate([*pieces, *english])}
    backend = wordpiece_backend(vocab, lowercase=True, strip_accents=None)
    texts = [f"{' '.join(str(n))} достопримечательности" for n in range(300)]
    (problem,) = problems(build(Tokenizer(backend, BERT), tmp_path, texts), 10)
    assert "spells the text out: " in problem.text and not problem.refused
    assert f"of its {len(vocab):,} pieces occur" in problem.text


def test_a_store_of_an_older_version_opens_without_counts(tokenizer, tmp_path):
    store = build(tokenizer, tmp_path, DNA)
    path = store.directory / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["quality"]
    path.write_text(json.dumps(manifest))
    assert problems(open_store(store.directory, verify=True), 10) == []
