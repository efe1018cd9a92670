"""Domains compared: words in common, a model's figures, clusters; what is refused."""

import json

import pytest
from finetune_common import make_folder
from tests_common import sentences

from plmjax.cli import main
from plmjax.embed import domains
from plmjax.report.domains import as_text


@pytest.fixture
def texts(tmp_path):
    """Two domains with different words; `mixed` has lines of both."""
    home = sentences(200)
    away = [" ".join(w[::-1] for w in line[:-1].split()) + "." for line in home]
    lines = {"home": home, "away": away, "mixed": home[:160] + away[:40]}
    for name, some in lines.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(some))
    (tmp_path / "signs.txt").write_text("... --- !!!\n")
    return tmp_path


def call(capsys, folder, names: str, *options: str) -> tuple[int, str, str]:
    paths = [str(folder / f"{name}.txt") for name in names.split()]
    code = main(["data", "domains", *paths, *options])
    return code, *capsys.readouterr()


def test_overlap_is_of_the_most_frequent_words_without_stop_words(monkeypatch):
    texts = (["the cat cat sat mat mat"], ["the dog dog sat mat of"])
    found = domains._overlap(texts)
    assert found == {"words": 3, "overlap": [[1, 2 / 3], [2 / 3, 1]]}
    monkeypatch.setattr(domains, "_TOP", 1)
    assert domains._overlap(texts)["overlap"] == [[1, 0], [0, 1]]


def test_domains_are_told_apart_and_drawn(texts, capsys):
    plot = texts / "plot.png"
    code, out, _ = call(capsys, texts, "home away mixed", f"--plot={plot}", "--json")
    assert code == 0 and plot.read_bytes().startswith(b"\x89PNG")
    found = json.loads(out)
    assert found["plot"] == str(plot) and f"Plot: {plot}" in as_text(found)
    assert [d["documents"] for d in found["domains"]] == [200, 200, 200]
    assert sum(d["share"] for d in found["domains"]) == pytest.approx(1)
    row = found["overlap"][0]
    assert row[0] == 1 and row[1] < 0.1 and row[2] > 0.6
    # Clusters cannot tell which domain the lines of `mixed` are of.
    assert 0.5 < found["purity"] < 0.95
    assert [a["likely"] for a in found["advice"]] == [True, False]
    assert sum(map(sum, found["clusters"])) == len(found["points"])
    code, out, _ = call(capsys, texts, "home away")
    assert code == 0 and "purity 1.000 (0.500 by chance)" in out
    assert "home -> away: adapting is likely to pay (0% of the most" in out
    assert "too few words for figures to trust" in out


def test_a_model_reads_them(texts, capsys):
    make_folder(texts / "bert")
    code, out, err = call(capsys, texts, "home away", f"--model={texts / 'bert'}")
    assert code == 0 and "reads away" in err
    assert "bits a byte" in out and "with another vocabulary is likely to pay" in out
    assert "tokens a word against" in out


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("home", "domains are compared with each other"),
        ("home home", "each once"),
        ("home signs", "signs has no words"),
        ("home nothing", "matches no file"),
    ],
)
def test_what_cannot_be_compared_is_refused(texts, capsys, names, words):
    code, out, err = call(capsys, texts, names, "--json")
    assert code > 1 and words in err and not out and err.count("\n") == 1
