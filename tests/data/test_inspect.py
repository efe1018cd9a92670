"""`plmjax data inspect`, `split` and `clean` as commands, and what they count."""

import gzip
import json

import numpy as np
import pytest
from tests_common import sentences

from plmjax import Exit, PlmjaxError, cli
from plmjax.data import clean
from plmjax.data import inspect as inspect_lib
from plmjax.data.corpus import SourceConfig, make_source
from plmjax.data.inspect import inspect
from plmjax.data.prepare import is_held_out
from plmjax.data.rows import make_plan
from plmjax.data.sources import open_source
from plmjax.data.split_corpus import is_tested, split_corpus
from plmjax.tokenizers import TokenizerConfig, train_tokenizer

LINES = sentences(200)


def source_of(documents):
    return make_source(SourceConfig(), lambda tally: iter(documents), "test", {})


def read(folder) -> list[str]:
    with gzip.open(folder / "00000.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main(["data", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- inspect


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=120, strip_accents=True), LINES
    )
    tokenizer.save(folder)
    return tokenizer, folder


def test_figures_are_those_of_the_text(vocabulary):
    tokenizer, folder = vocabulary
    documents = [*LINES, " ".join(LINES), "ein ß д", LINES[0]]
    found = inspect(source_of(documents), str(folder), log=lambda text: None)
    encoded = tokenizer.encode_batch(documents)
    assert found["documents"] == 203 and found["tokens"] == len(encoded.tokens)
    assert found["bytes"] == sum(len(text.encode()) for text in documents)
    words = int(encoded.word_start.sum())
    assert found["tokens_per_word"] == pytest.approx(len(encoded.tokens) / words)
    unknown = np.count_nonzero(encoded.tokens == tokenizer.unk_id)
    assert found["unknown_share"] == pytest.approx(unknown / len(encoded.tokens))
    assert found["lengths"]["quantiles"]["100"] == encoded.lengths.max()
    assert sum(found["lengths"]["histogram"]["tokens"]) == found["tokens"]
    assert found["copies_share"] == pytest.approx(
        1 - len({*documents}) / len(documents)
    )
    letters = [c for text in documents for c in text if c.isalpha()]
    assert found["scripts"]["Cyrillic"] == pytest.approx(1 / len(letters))
    assert "en" in found["languages"]

    class Split:
        offsets = np.concatenate([[0], np.cumsum(encoded.lengths)])

    for length, packed in ((128, True), (128, False), (512, True)):
        plan = make_plan(Split, length, packed)  # type: ignore
        how = found["rows"][str(length)]["packed" if packed else "single"]
        assert how == {"rows": plan.rows, "padding": pytest.approx(1 - plan.fill)}


WRONG = {
    "mojibake": ([*LINES, "le cafÃ© noir"], "0.50% of the documents hold mojibake"),
    "one document": ([*LINES[:20], " ".join(LINES)], "One document has 9"),
    "unknown": ([*LINES[:9], "дом " * 300], "of the tokens are [UNK]"),
    "near": ([f"{t} {t}. {n}" for t in LINES[:9] for n in range(9)], "near-dupl"),
    "lines": ([f"Menu of it\n{line}" for line in LINES], "such as 'Menu of it'"),
    "long words": (
        [*LINES, *["".join(t.split())[:60] for t in LINES[:5]]],
        "are in words that rows of 128 never mask",
    ),
    "marks": ([*LINES, "ĉu ŝi ĝuas " * 9], "Accents are dropped"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_looks_wrong_is_said(name, vocabulary):
    documents, said = WRONG[name]
    found = inspect(source_of(documents), str(vocabulary[1]), log=lambda text: None)
    remarks = [*found["problems"], *found["tokenizer"]["notes"]]
    assert any(said in remark for remark in remarks), remarks


def test_ordinary_text_has_no_remark(vocabulary):
    found = inspect(source_of(LINES), str(vocabulary[1]), log=lambda text: None)
    assert found["problems"] == [] and found["tokenizer"]["notes"] == []


def test_counts_are_of_all_text_where_later_passes_read_less(monkeypatch, vocabulary):
    monkeypatch.setattr(inspect_lib, "NEAR_CHARACTERS", 100)
    found = inspect(source_of(LINES), str(vocabulary[1]), log=lambda text: None)
    assert found["near_duplicates"]["documents"] < 10
    assert found["source"]["counts"]["documents"] == len(LINES)


def test_languages_need_a_package(monkeypatch, vocabulary):
    def fails(name):
        raise PlmjaxError("missing")

    clean.identifier.cache_clear()
    monkeypatch.setattr(clean, "package", fails)
    found = inspect(source_of(LINES), str(vocabulary[1]), log=lambda text: None)
    assert found["languages"] is None


# --- split


def test_copies_stay_together_and_a_run_still_holds_out(tmp_path):
    documents = [*LINES, *(line.upper() + "!" for line in LINES)]
    report = split_corpus(source_of(documents), tmp_path / "a", 20)
    train, test = read(tmp_path / "a" / "train"), read(tmp_path / "a" / "test")
    assert sorted([*train, *test]) == sorted(documents)
    assert report["test"]["documents"] == len(test) and 40 < len(test) < 120
    assert not {t.lower().strip(".!") for t in train} & {
        t.lower().strip(".!") for t in test
    }
    # Not the hash of data.held_out_percent: else train/ had nothing to hold out.
    assert any(is_held_out(text, 20) for text in train)
    split_corpus(source_of(documents), tmp_path / "b", 20, seed=1)
    assert read(tmp_path / "b" / "test") != test
    split_corpus(source_of(documents), tmp_path / "c", 20)
    for side in ("train", "test"):
        name = f"{side}/00000.jsonl.gz"
        same = (tmp_path / folder / name for folder in "ac")
        assert len({path.read_bytes() for path in same}) == 1


def test_near_duplicates_go_where_their_first_goes(tmp_path):
    longer = [" ".join(sentences(8, seed)) for seed in range(40)]
    documents = [text for base in longer for text in (base, f"{base} End.")]
    apart = sum(
        is_tested(a, 30, 0) != is_tested(b, 30, 0)
        for a, b in zip(documents[::2], documents[1::2], strict=True)
    )
    assert apart > 5
    report = split_corpus(source_of(documents), tmp_path / "new", 30, near=True)
    assert report["near_duplicates_together"] >= 40
    test = {*read(tmp_path / "new" / "test")}
    for first, second in zip(documents[::2], documents[1::2], strict=True):
        assert (first in test) == (second in test)


def test_an_empty_side_is_refused(tmp_path):
    with pytest.raises(PlmjaxError, match="the test side is empty: the text is 1 doc"):
        split_corpus(source_of(LINES[:1]), tmp_path / "new", 1)
    assert not any(tmp_path.iterdir())


# --- commands


def test_a_written_folder_is_a_corpus_whatever_its_first_document(tmp_path):
    documents = ["A long line. " * 6000, *LINES]
    split_corpus(source_of(documents), tmp_path / "new", 10)
    sides = [tmp_path / "new" / side for side in ("train", "test")]
    assert any(read(side)[0] == documents[0].strip() for side in sides)
    for side in sides:
        source = open_source(SourceConfig(paths=(str(side),)))
        assert [*source.documents()] == read(side)


def test_the_commands(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n".join([*LINES, LINES[0]]))
    code, out, err = run(capsys, "inspect", text, f"--plot={tmp_path / 'a.png'}")
    assert code == Exit.OK and "a document is a line" in err
    assert "tokens a word" in out and "As the model sees it:" in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    new = tmp_path / "new"
    code, out, _ = run(capsys, "clean", text, f"--to={new}", "--languages=en", "--json")
    assert code == Exit.OK
    report = json.loads(out)
    assert report["steps"]["exact"]["dropped"] == 1 and report["to"] == str(new)
    code, out, _ = run(capsys, "split", new, f"--to={tmp_path / 'parts'}", "--test=10%")
    assert code == Exit.OK and f"plmjax pretrain {tmp_path / 'parts'}/train" in out
    code, out, err = run(capsys, "clean", text, f"--to={new}")
    assert code == Exit.USAGE and "exists and is not empty" in err
    code, out, err = run(capsys, "inspect")
    assert code == Exit.USAGE and "the texts are missing" in err
    for given, words in (
        (("clean", tmp_path, f"--to={tmp_path / 'sub' / 'new'}"), "is inside"),
        (("split", tmp_path, f"--to={tmp_path / 'sub'}"), "is inside"),
        (("split", text, "--to=s3://a/b"), "--to=s3://a/b must be a directory"),
        (("split", text, f"--to={tmp_path / 'sub'}", "--test=0.05"), "--test=5% for"),
        (("inspect", text, "--plot=a.txt"), "must end with .png"),
        (("domains", text, text, "--plot=a.txt"), "must end with .png"),
        (("domains", text, text, f"--plot={tmp_path}/no/a.png"), "no such folder"),
    ):
        code, _, err = run(capsys, *given)
        assert code == Exit.USAGE and words in err
    assert not (tmp_path / "sub").exists()
    helped = cli.make_parser().verbs.choices["data"]._actions[-1].choices["clean"]
    said = " ".join(helped.format_help().split())
    assert ", ".join(clean.STEPS) in said and ",".join(clean.DEFAULT) in said
