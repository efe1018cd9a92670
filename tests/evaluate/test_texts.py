"""Several models on the same hidden words of a text, against a count word by word."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from interop.cases import draw
from tests_common import batch_of, sentences

from plmjax import Exit, PlmjaxError, cli
from plmjax.data.corpus import SourceConfig
from plmjax.data.sources import open_source
from plmjax.evaluate import texts
from plmjax.evaluate.model import Model
from plmjax.evaluate.texts import Contender, make_plan, notes, score_texts, trained_on
from plmjax.evaluate.words import SHARE, cut_windows, free_borders, hidden_words
from plmjax.interop import export_folder
from plmjax.models import EncoderConfig, heads
from plmjax.report.scores import text_lines
from plmjax.tokenizers import TokenizerConfig, train_tokenizer

LENGTH = 40
DOCUMENTS = [" ".join(sentences(1 + n % 3, seed=n)) for n in range(30)]


def contender(name: str, length: int = LENGTH, causal: bool = False, **settings):
    settings = {"vocab_size": 100, "min_frequency": 1} | settings
    tokenizer = train_tokenizer(TokenizerConfig(**settings), DOCUMENTS)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        layers=1,
        width=8,
        heads=2,
        ffn_width=8,
        max_positions=length,
        causal=causal,
        head="plain" if causal else "transform",
    )
    # Large ones, so that neighbours matter and models differ.
    params = jax.tree.map(lambda x: 10 * x, draw(config, ("head",)))
    return Contender(name, Model(config, params, tokenizer, name), length)


@pytest.fixture(scope="module")
def pieces() -> Contender:
    return contender("pieces")


@pytest.fixture(scope="module")
def bytes_() -> Contender:
    return contender("bytes", kind="bpe", vocab_size=300)


outputs = jax.jit(heads.outputs, static_argnums=0)


def log_shares(model: Model, ids, at) -> np.ndarray:
    """Returns [K, V] log-probabilities at positions of one row."""
    row = np.zeros((1, LENGTH), np.int32)
    row[0, : len(ids)] = ids
    batch = batch_of(row, mask_positions=np.arange(LENGTH, dtype=np.int32)[None])
    batch["segments"] *= batch["positions"] < len(ids)
    logits = np.asarray(outputs(model.encoder, model.params, batch)["head"])[0]
    logits = logits[list(at)].astype(float)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def windows_of(one: Contender, text: str) -> tuple[np.ndarray, ...]:
    """Returns the free borders, the windows and the hidden words of a document."""
    _, spans = one.model.tokenizer.encode_spans([text])
    free = free_borders(len(text), [spans])
    windows = cut_windows(text, free, [spans[:, 0]], [one.length - 2])
    return free, windows, hidden_words(text, free, windows)


def counted(one: Contender, documents) -> tuple[float, float]:
    """Returns bits per byte and the share of words right, word by word."""
    tokenizer = one.model.tokenizer
    nats, size, right = 0.0, 0, []
    for text in documents:
        _, windows, words = windows_of(one, text)
        for begin, end in windows:
            inside = [(b, e) for b, e in words.tolist() if begin <= b < end]
            ids, slots, at = [tokenizer.cls_id], [], begin
            for b, e in [*inside, (end, end)]:
                ids += tokenizer.encode_batch([text[at:b]]).tokens.tolist()
                truth = tokenizer.encode_batch([text[b:e]]).tokens.tolist()
                slots.append([(len(ids) + n, t) for n, t in enumerate(truth)])
                ids += [tokenizer.mask_id] * len(truth)
                at = e
            ids.append(tokenizer.sep_id)
            if not inside:
                continue
            flat = [slot for word in slots for slot in word]
            shares = dict(
                zip(
                    [at for at, _ in flat],
                    log_shares(one.model, ids, [at for at, _ in flat]),
                    strict=True,
                )
            )
            for word in slots[:-1]:
                nats -= sum(shares[at][t] for at, t in word)
                right.append(all(shares[at].argmax() == t for at, t in word))
            size += sum(len(text[b:e].encode()) for b, e in inside)
    return nats / math.log(2) / size, sum(right) / len(right)


def test_the_bits_are_those_of_each_hidden_word_alone(pieces):
    plan = make_plan([pieces], DOCUMENTS)
    bits, right = counted(pieces, DOCUMENTS)
    assert len(plan.windows.bytes) > len(DOCUMENTS)  # some have several windows
    (record,) = score_texts([pieces], plan, batch=3)
    assert record["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert record["accuracy"] == pytest.approx(right)
    assert record["unknown_share"] == 0
    nats = record["bits_per_byte"] * math.log(2) * record["bytes"]
    assert record["loss"] == pytest.approx(nats / record["pieces"])


def test_every_model_guesses_the_same_words_in_the_same_windows(pieces, bytes_):
    plan = make_plan([pieces, bytes_], DOCUMENTS)
    for one, rows in zip((pieces, bytes_), plan.rows, strict=True):
        assert {int(n) for row in rows for n in row.unit} == {
            *range(len(plan.words.bytes))
        }
        assert max(len(row.tokens) for row in rows) <= one.length
        size = np.zeros(len(plan.words.bytes), int)
        for row in rows:
            masked = row.tokens[row.at]
            assert (masked == one.model.tokenizer.mask_id).all()
            np.add.at(size, row.unit, one.model.tokenizer.token_bytes[row.labels])
        assert size.tolist() == plan.words.bytes
    # Each alone has the same words where its windows are the same.
    short = [text for text in DOCUMENTS if len(text) < LENGTH]
    short += ["the model learns a word from its context"]
    alone = [make_plan([one], short).words.bytes for one in (pieces, bytes_)]
    assert alone[0] == alone[1] == make_plan([pieces, bytes_], short).words.bytes


def test_the_hidden_words_are_a_fixed_share_chosen_by_the_text_alone():
    text = " ".join(f"word{n}" for n in range(5_000))
    free, windows = np.ones(len(text) + 1, bool), np.array([[0, len(text)]])
    words = hidden_words(text, free, windows)
    assert len(words) / 5_000 == pytest.approx(SHARE, abs=0.015)
    assert all(text[b:e].startswith("word") for b, e in words)
    assert {(text[b - 1 : b].strip(), text[e : e + 1].strip()) for b, e in words} == {
        ("", "")
    }
    assert hidden_words(text, free, windows).tolist() == words.tolist()
    other = hidden_words(text.replace("word", "text"), free, windows)
    assert other.tolist() != words.tolist()


@pytest.mark.parametrize(
    "text, words",
    [
        ("don't U.S. 3,5", ["don", "t", "U", "S", "3", "5"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("cafe\u0301 ŝi_ĉe", ["cafe\u0301", "ŝi", "ĉe"]),
        ("我们 a", ["我", "们", "a"]),
        ("カナ!", ["カ", "ナ"]),
    ],
)
def test_words_of_many_scripts(text, words, monkeypatch):
    monkeypatch.setattr("plmjax.evaluate.words.SHARE", 1.0)
    every = np.array([[0, len(text)]])
    found = hidden_words(text, np.ones(len(text) + 1, bool), every)
    assert [text[b:e] for b, e in found] == words
    # A piece over a border joins what it touches, for all models.
    free = np.ones(len(text) + 1, bool)
    free[1 : len(text)] = False
    assert hidden_words(text, free, every).tolist() == [[0, len(text)]]
    # A word that a window cuts is not hidden.
    assert not len(hidden_words("abcd", np.ones(5, bool), np.array([[0, 2], [2, 4]])))


def test_windows_hold_what_fits_and_end_after_blanks():
    text = "aa bb cc dd"
    begins = np.array([0, 1, 3, 4, 6, 7, 9, 10])  # a piece a letter
    free = np.ones(len(text) + 1, bool)
    found = cut_windows(text, free, [begins], [5])
    assert [text[b:e] for b, e in found] == ["aa bb ", "cc dd"]
    found = cut_windows(text, free, [begins, begins[::2]], [5, 1])
    assert [text[b:e] for b, e in found] == ["aa ", "bb ", "cc ", "dd"]
    found = cut_windows("abcdef", np.ones(7, bool), [np.arange(6)], [4])
    assert found.tolist() == [[0, 4], [4, 6]]
    # One piece of one model that is too many pieces of the other is left out.
    free[7:8] = False
    found = cut_windows(text, free, [begins], [1])
    assert [text[b:e] for b, e in found] == ["a", "a ", "b", "b ", " ", "d", "d"]


def test_an_unknown_word_is_no_free_win(pieces):
    """A word of letters without a piece costs 8 bits a byte and is not right."""
    text = " ".join(["model", "ж", "жж"] * 12)
    plan = make_plan([pieces], [text])
    _, _, words = windows_of(pieces, text)
    expected = [0 if text[b] == "m" else 2 * int(e - b) for b, e in words]
    assert plan.spelled == [expected] and {2, 4} <= {*expected}
    # A model sure of [UNK], which is nothing to be proud of.
    sure = jax.tree.map(np.zeros_like, pieces.model.params)
    bias = np.zeros(pieces.model.encoder.vocab_size, np.float32)
    bias[pieces.model.tokenizer.unk_id] = 100
    sure["head"]["bias"] = bias
    model = dataclasses.replace(pieces.model, params=sure)
    only = [n for n, size in enumerate(expected) if size]
    cost = texts.guess(pieces._replace(model=model), plan.rows[0], len(words), 4, print)
    assert cost.nats[only] == pytest.approx(np.zeros(len(only)), abs=1e-6)
    (record,) = score_texts([pieces._replace(model=model)], plan, 4)
    assert record["bits_per_byte"] * record["bytes"] >= 8 * sum(expected)
    assert record["accuracy"] == 0
    assert record["unknown_share"] == sum(expected) / record["bytes"]
    # Nor is a word without any piece.
    plan.rows[0], plan.spelled[0] = [], plan.words.bytes
    (record,) = score_texts([pieces], plan, 4)
    assert (record["bits_per_byte"], record["accuracy"]) == (8, 0)


def test_a_causal_model_guesses_all_of_the_text_and_is_named_apart(pieces):
    one = contender("causal", causal=True)
    tokenizer, nats = one.model.tokenizer, 0.0
    for text in DOCUMENTS[:6]:
        _, windows, _ = windows_of(one, text)
        for begin, end in windows:
            tokens = tokenizer.encode_batch([text[begin:end]]).tokens
            ids = [tokenizer.cls_id, *tokens]
            shares = log_shares(one.model, ids, range(len(tokens)))
            nats -= sum(shares[n][t] for n, t in enumerate(tokens))
    size = sum(len(text.encode()) for text in DOCUMENTS[:6])
    group = [pieces, one, one._replace(name="again")]
    records = score_texts(group, make_plan(group, DOCUMENTS[:6]), 8)
    assert [record["kind"] for record in records] == ["masked", "causal", "causal"]
    assert records[1]["bytes"] == size
    assert records[1]["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert "difference" not in records[1] and "difference" not in records[0]
    assert records[2]["difference"] == 0
    assert records[2]["verdict"] == "not distinguishable"
    lines = text_lines(records)
    assert lines[0].startswith("hidden words") and lines[2].startswith("causal models")
    assert lines[4].startswith("again")


def test_differences_have_intervals_over_documents(pieces):
    """A model with the frequent pieces in its bias beats one without."""
    biased = dict(pieces.model.params)
    bias = np.zeros(pieces.model.encoder.vocab_size, np.float32)
    tokens = pieces.model.tokenizer.encode_batch(DOCUMENTS).tokens
    np.add.at(bias, tokens, 1)
    flat = jax.tree.map(np.zeros_like, biased)
    good = flat | {"head": flat["head"] | {"bias": np.log(bias + 1)}}
    group = [
        pieces._replace(name=name, model=dataclasses.replace(pieces.model, params=p))
        for name, p in (("flat", flat), ("frequencies", good))
    ]
    records = score_texts(group, make_plan(group, DOCUMENTS), 8)
    a, b = records
    assert b["difference"] == pytest.approx(b["bits_per_byte"] - a["bits_per_byte"])
    assert b["low"] < b["difference"] < b["high"] < 0 and b["verdict"] == "better"
    ranks = [line.split()[0] for line in text_lines(records)[1:]]
    assert ranks == ["flat", "frequencies"]
    assert text_lines(records)[2].endswith("better")
    # One document shows no interval.
    records = score_texts(group, make_plan(group, DOCUMENTS[:1]), 8)
    assert "difference" in records[1] and "low" not in records[1]


def test_notes_name_what_makes_a_comparison_unequal(pieces):
    other = contender("cased", length=24, lowercase=False, strip_accents=False)
    plan = make_plan([pieces, other], DOCUMENTS)
    told = "\n".join(notes([pieces, other], plan))
    assert "fit into cased (24 tokens)" in told
    assert "Without capitals: pieces." in told
    assert notes([other, other], plan) == []


def test_the_text_of_a_training_is_recognised(tmp_path):
    (tmp_path / "corpus.txt").write_text("\n".join(DOCUMENTS))
    source = open_source(
        SourceConfig(kind="text", document="line", paths=f"{tmp_path}/corpus.txt")
    )
    run = tmp_path / "run"
    (run / "data" / "k").mkdir(parents=True)
    (run / "config.json").write_text('{"objective": {}}')
    (run / "run.json").write_text('{"store": "k"}')
    manifest = {"source": {"fingerprint": source.fingerprint}, "held_out_percent": 20}
    (run / "data" / "k" / "manifest.json").write_text(json.dumps(manifest))
    assert " of its 30 documents" in str(trained_on(str(run), source))
    other = dataclasses.replace(source, fingerprint="other")
    assert trained_on(str(run), other) is None
    assert trained_on(str(tmp_path), source) is None


def test_the_command_line_scores_folders(pieces, tmp_path, capsys):
    model = pieces.model
    for name in ("one", "two"):
        export_folder(
            tmp_path / name, model.encoder, model.params, model.tokenizer, "# Card\n"
        )
    given = ["evaluate", f"--model={tmp_path}/one", "--text=none.txt"]
    assert cli.main(given) == Exit.USAGE
    assert "--text: 'none.txt' matches no file" in capsys.readouterr().err
    (tmp_path / "new.txt").write_text("\n".join(DOCUMENTS))
    given = ["evaluate", f"--model={tmp_path}/one,{tmp_path}/two"]
    given += [f"--text={tmp_path}/new.txt", "--rows=9"]
    assert cli.main([*given, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["windows"] == 9 and told["documents"] <= 9
    one, two = told["models"]
    assert one["bits_per_byte"] == two["bits_per_byte"] and two["difference"] == 0
    plan = make_plan([pieces], DOCUMENTS, 9)
    (here,) = score_texts([pieces], plan, 32)
    assert one["bits_per_byte"] == pytest.approx(here["bits_per_byte"])
    assert cli.main(given) == 0
    out, err = capsys.readouterr()
    assert "9 windows" in err and f"{here['bits_per_byte']:.4f}" in out


def test_what_cannot_be_scored_is_refused_in_words(tmp_path, capsys, pieces):
    for given, words in (
        (["--text=a.txt"], "--text needs --model"),
        (["--model=a", "--text=a.txt", "--input=b.csv"], "no --input"),
        (["--model=a,b"], "not clear what to score"),
        (["--model=nowhere"], "nowhere holds no run"),
        ([], "not clear what to score"),
    ):
        assert cli.main(["evaluate", *given]) == Exit.USAGE
        assert words in capsys.readouterr().err
    run = tmp_path / "tuned"
    run.mkdir()
    (run / "config.json").write_text('{"objective": {}, "task": {}}')
    assert cli.main(["evaluate", f"--model={run}", "--text=a.txt"]) == Exit.USAGE
    assert f"--workdir={run} --input=FILE" in capsys.readouterr().err
    with pytest.raises(PlmjaxError, match="none of the 2 documents has a word"):
        make_plan([pieces], ["!", "?"])
