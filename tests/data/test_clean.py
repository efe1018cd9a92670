"""Cleaning: published rules at their thresholds, duplicates, a corpus in one folder."""

import functools
import gzip
import json
import pickle
import random

import numpy as np
import pytest

from plmjax import PlmjaxError, machine
from plmjax.data import clean, clean_corpus, near_duplicates
from plmjax.data.clean import CleanConfig, in_languages, mask, repair, unlike
from plmjax.data.corpus import SourceConfig, make_source
from plmjax.data.rules import LIMITS, LINES, c4, gopher, repetition


def repeated(size: int, total: int) -> str:
    """Returns words of 3 letters, of which the first `size` are also the last."""
    words = [f"{n:03d}" for n in range(total - size)]
    return " ".join(words + words[:size])


def lines(distinct: int, total: int, end: str = "\n") -> str:
    return end.join(str(n % distinct) for n in range(total))


# Rule: a text at the published threshold, and one beyond it.
THRESHOLDS = [
    ("gopher-words", "word " * 50, "word " * 49),
    ("gopher-words", "w " * 100_000, "w " * 100_001),
    ("gopher-word-length", "abc " * 9, "abc " * 9 + "ab"),
    ("gopher-word-length", "abcdefghij " * 9, "abcdefghij " * 9 + "abcdefghijk"),
    ("gopher-symbols", "a " * 9 + "#a", "a " * 8 + "#a"),
    ("gopher-symbols", "a " * 9 + "a...", "a " * 8 + "a…"),
    ("gopher-bullets", "• a\n" * 90 + "a\n" * 10, "- a\n" * 91 + "a\n" * 9),
    ("gopher-ellipsis", "a...\n" * 3 + "a\n" * 7, "a…\n" * 4 + "a\n" * 6),
    ("gopher-letters", "a " * 8 + "1 %", "a " * 7 + "1 2 %"),
    ("gopher-stop-words", "the end of it", "the end the end"),
    ("repeated-lines", lines(7, 10), lines(6, 10)),
    ("repeated-paragraphs", lines(7, 10, "\n\n"), lines(6, 10, "\n\n")),
    ("repeated-line-characters", lines(8, 10), lines(7, 10)),
    ("repeated-paragraph-characters", lines(8, 10, "\n\n"), lines(7, 10, "\n\n")),
    ("repeated-2-grams", repeated(2, 20), repeated(2, 19)),
    ("repeated-3-grams", repeated(3, 34), repeated(3, 33)),
    ("repeated-4-grams", repeated(4, 50), repeated(4, 49)),
    ("repeated-5-grams", repeated(5, 34), repeated(5, 33)),
    ("repeated-6-grams", repeated(6, 43), repeated(6, 42)),
    ("repeated-7-grams", repeated(7, 54), repeated(7, 53)),
    ("repeated-8-grams", repeated(8, 67), repeated(8, 66)),
    ("repeated-9-grams", repeated(9, 82), repeated(9, 81)),
    ("repeated-10-grams", repeated(10, 100), repeated(10, 99)),
    ("c4-lorem", "Lorem and ipsum.", "A Lorem ipsum."),
    ("c4-brace", "No brace [].", "A brace {."),
    ("c4-sentences", "It is. It was. It will be.", "It is. It was"),
]


@pytest.mark.parametrize("rule, inside, outside", THRESHOLDS)
def test_rules_drop_beyond_their_published_thresholds(rule, inside, outside):
    step = {"gopher": gopher, "repeated": repetition, "c4": c4}[rule.split("-")[0]]
    others = {*LIMITS, *LINES} - {rule}
    assert step(inside, others) == (inside.strip() if rule[0] == "c" else inside, "")
    text, reason = step(outside, others)
    assert text is None and reason.startswith(f"{rule}: ")
    assert step(outside, {*LIMITS, *LINES})[0] is not None


def test_every_rule_has_a_threshold_here():
    assert {rule for rule, *_ in THRESHOLDS} == {*LIMITS}


def test_c4_removes_lines_that_are_no_sentences():
    kept = ["He read the whole book.", "“Did she read the book?”", "他们去看书了。"]
    removed = {
        "c4-end": "Read the whole book today",
        "c4-words": "Read it all now.",
        "c4-javascript": "Please enable JavaScript in your browser.",
        "c4-policy": "This site uses cookies to know you.",
    }
    text = "\n".join([*kept, *removed.values(), "It was the last[12] book."])
    new, reason = c4(text)
    assert new == "\n".join([*kept, "It was the last book."])
    assert {*reason.split(", ")} == {*LINES}
    assert c4(text, LINES) == (text, "")


def test_rules_of_words_do_not_judge_chinese():
    chinese = "这是一本关于海洋的书。" * 30
    assert gopher(chinese, ["gopher-words"]) == (chinese, "")


def test_unicode_is_repaired_and_typography_kept():
    assert repair("schÃ¶n &amp; â€œgutâ€\x9d") == ("schön & “gut”", "unicode")
    for text in ("“gut”，其他", "plain"):
        assert repair(text) == (text, "")


def test_language_drops_only_what_is_surely_another():
    english, esperanto = "The dog runs in the garden.", "La hundo kuras en la ĝardeno."
    assert in_languages(english, ["en"]) == (english, "")
    text, reason = in_languages(esperanto, ["en"])
    assert text is None and reason.startswith("language-eo: ")
    assert in_languages("R. W.", ["en"])[0] == "R. W."


MASKED = {
    "Write to j.doe+x@mail.example.org.": "Write to <email>.",
    "from 192.168.0.1:80 or 2001:db8::1": "from <ip>:80 or <ip>",
    "call +44 20 7946 0958, (555) 123-4567 or 020 7946 0958": "call <phone>, <phone> "
    "or <phone>",
    "version 1.2.3.4.5 of std::vector at 12:30:45, 300.1.1.1": None,
    "on 2026-11-30, 1999-2004, 3.141592653, 1 000 000 000, urn:isbn:0387484361": None,
}


@pytest.mark.parametrize("text, masked", MASKED.items())
def test_addresses_and_numbers_of_people_are_masked(text, masked):
    assert mask(text)[0] == (masked or text)


def test_evaluation_texts_are_found_in_every_kind_of_file(tmp_path):
    words = [f"w{n}" for n in range(60)]
    texts = {
        "a.jsonl": json.dumps({"text": " ".join(words[:13]), "label": "x"}),
        "a.csv": "text,label\n" + " ".join(words[13:26]) + ",x\n",
        "squad.json": json.dumps(
            {"data": [{"paragraphs": [{"context": " ".join(words[26:39])}]}]}, indent=1
        ),
        "a.conll": "\n".join(f"{word}\tO" for word in words[39:47]) + "\n",
        "a.txt": "too short\n" + " ".join(words[47:60]) + "\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    ngrams = clean.read_ngrams([str(tmp_path / name) for name in texts])
    step = pickle.loads(pickle.dumps(functools.partial(unlike, known=ngrams)))
    for begin, end in ((0, 13), (13, 26), (26, 39), (39, 47), (47, 60)):
        text = "Before it, " + ", ".join(words[begin:end]).upper() + " and after."
        assert step(text) == (None, f"against: {' '.join(words[begin:end])}")
        changed = text.replace(words[begin + 4].upper(), "other")
        assert step(changed) == (changed, "")


# --- near-duplicates


def jaccard(first: str, second: str) -> float:
    a, b = (
        {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
        for words in (first.split(), second.split())
    )
    return len(a & b) / len(a | b)


def test_planted_near_duplicates_are_found(capsys):
    drawn = random.Random(0)
    vocabulary = [f"word{n}" for n in range(500)]
    originals = [
        drawn.choices(vocabulary, k=drawn.randrange(40, 200)) for _ in range(300)
    ]
    documents, planted = [" ".join(words) for words in originals], []
    for number, words in enumerate(originals):
        copy = list(words)
        for _ in range(drawn.choice([0, 1, 2, 4, 8, 16])):
            copy[drawn.randrange(len(copy))] = drawn.choice(vocabulary)
        planted.append((number, len(documents)))
        # Case and punctuation are no difference.
        documents.append(", ".join(copy).upper())
    keys = [near_duplicates.band_keys(near_duplicates.signature(t)) for t in documents]
    first = near_duplicates.near_duplicates(np.stack(keys))
    similar = {
        pair: jaccard(*(documents[i].lower().replace(",", "") for i in pair))
        for pair in planted
    }
    near = [pair for pair, share in similar.items() if share >= 0.85]
    found = [pair for pair in near if first[pair[1]] == pair[0]]
    dropped = [pair for pair in planted if first[pair[1]] == pair[0]]
    right = [pair for pair in dropped if similar[pair] >= 0.5]
    recall, precision = len(found) / len(near), len(right) / len(dropped)
    with capsys.disabled():
        print(
            f"\nnear-duplicates: recall {recall:.1%} of {len(near)} pairs with 85 % of "
            f"their 5-grams in common; precision {precision:.1%} at 50 %"
        )
    assert len(near) > 120 and recall >= 0.98 and precision >= 0.98
    # The chance that a pair meets is the one of the bands.
    expected = sum(1 - (1 - share**8) ** 14 for share in similar.values())
    assert abs(len(dropped) - expected) < 0.05 * len(planted)
    assert (first[:300] == np.arange(300)).all()  # all others stay


def test_the_first_of_a_cluster_stays_and_no_words_are_no_copy():
    pairs = np.array([[4, 2, 5], [2, 1, 6]])
    assert near_duplicates.first_copies(pairs, 8).tolist() == [0, 1, 1, 3, 1, 5, 5, 7]
    keys = [near_duplicates.band_keys(near_duplicates.signature(t)) for t in "!!? "]
    assert not np.any(keys)
    assert near_duplicates.near_duplicates(np.stack(keys)).tolist() == [0, 1, 2, 3]


# --- a corpus


def source_of(documents):
    return make_source(SourceConfig(), lambda tally: iter(documents), "test", {})


def read(folder) -> list[str]:
    return [
        json.loads(line)["text"]
        for path in sorted(folder.glob("*.jsonl.gz"))
        for line in gzip.open(path, "rt", encoding="utf-8")
    ]


STORY = "The ship number {0} sails to the seas of {0}, and no wind of {0} blows there."
MENU = "Home | About us | Contact"
CORPUS = [f"{MENU}\n{STORY.format(n)}" for n in range(12)]
CORPUS += [CORPUS[3], STORY.format(5).upper(), "cafÃ© au lait", MENU]


def test_a_corpus_loses_lines_copies_and_near_duplicates(tmp_path):
    report = clean_corpus.clean_corpus(
        source_of(CORPUS), CleanConfig(), tmp_path / "new", dropped=tmp_path / "d.jsonl"
    )
    # The first document keeps the line that all have.
    kept = [CORPUS[0], *(STORY.format(n) for n in range(1, 12)), "café au lait"]
    assert read(tmp_path / "new") == kept
    counts = {
        name: (step["dropped"], step["changed"])
        for name, step in report["steps"].items()
    }
    assert counts == {
        "unicode": (0, 1),
        "lines": (1, 12),
        "exact": (1, 0),
        "near": (1, 0),
    }
    assert report["documents"] == 16 and report["kept"]["documents"] == 13
    rejected = [
        json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()
    ]
    assert [(r["document"], r["reason"]) for r in rejected] == [
        (13, "exact: as document 4"),
        (14, "near: as document 6"),
        (16, "lines: in 14 documents"),
    ]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "00000.jsonl.gz",
        "manifest.json",
    ]


def test_the_result_is_the_same_for_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(clean_corpus, "_GROUP", 300)
    monkeypatch.setattr(clean_corpus, "SHARD_CHARACTERS", 500)
    config = CleanConfig(steps=("unicode", "mask", "lines", "exact", "near"))
    files = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        clean_corpus.clean_corpus(source_of(CORPUS), config, folder, workers=workers)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1] and len(files[0]) > 2


def test_nothing_is_left_behind_by_what_fails(tmp_path):
    short = CleanConfig(steps=("gopher",))
    with pytest.raises(PlmjaxError, match="no document of 16 documents") as error:
        clean_corpus.clean_corpus(
            source_of(CORPUS), short, tmp_path / "a" / "b", dropped=tmp_path / "d.jsonl"
        )
    assert "--without=gopher-words" in error.value.hint
    (tmp_path / "file").write_text("x")
    for to in ("file", "file/below"):
        with pytest.raises(PlmjaxError) as error:
            clean_corpus.clean_corpus(source_of(CORPUS), CleanConfig(), tmp_path / to)
        assert error.value.code == 2

    def stopped():
        yield from CORPUS
        raise KeyboardInterrupt

    source = make_source(SourceConfig(), lambda tally: stopped(), "test", {})
    with pytest.raises(KeyboardInterrupt):
        clean_corpus.clean_corpus(source, CleanConfig(), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


WRONG = {
    "--steps=unicod is not known": {"steps": ("unicod",)},
    "--without=gopher is not known": {"without": ("gopher",)},
    "--languages and the step": {"languages": ("en",)},
    "--against and the step": {"steps": ("against",)},
    "--languages=english is not": {"steps": ("language",), "languages": ("english",)},
    "--line_documents=1 must": {"line_documents": 1},
    "--steps is empty": {"steps": ()},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_option_is_refused(message):
    with pytest.raises(PlmjaxError, match=message):
        CleanConfig(**WRONG[message]).check()


def test_a_missing_package_is_named(monkeypatch):
    def fails(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(machine.importlib, "import_module", fails)
    with pytest.raises(PlmjaxError, match="ftfy is not installed") as error:
        CleanConfig().check()
    assert "pip install 'plmjax[data]'" in error.value.hint
