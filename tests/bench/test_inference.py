"""`plmjax bench inference`: the same states by each backend, and sums that add up."""

import json
import re
from argparse import Namespace

import jax
import numpy as np
import pytest
from finetune_common import make_folder
from tests_common import sentences

from plmjax import PlmjaxError
from plmjax.bench import backends, inference
from plmjax.cli import main
from plmjax.evaluate import latency
from plmjax.evaluate.latency import measure
from plmjax.models import PRESETS


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model") / "hub")


def options(model, **changes) -> Namespace:
    given = {"batch": (4,), "length": (16,), "threads": (1,), "backends": None}
    given |= {"input": None, "column": "text", "texts": 128, "seconds": 0.05}
    given |= {"documents": None, "price_per_hour": None, "preset": None}
    return Namespace(**{"model": str(model), **given, **changes})


class Clock:
    """A clock that `call` moves by the given seconds, one after the other."""

    def __init__(self, *steps: float):
        self.now, self.steps, self.calls = 0.0, steps, 0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now / 2

    def call(self) -> None:
        self.now += self.steps[self.calls % len(self.steps)]
        self.calls += 1


def measured(monkeypatch, clock, **how):
    monkeypatch.setattr(latency, "time", clock)
    return measure(clock.call, **how)


def test_calls_are_made_until_the_median_is_known(monkeypatch):
    even = Clock(1e-3)
    found = measured(monkeypatch, even, rounds=20, items=8)
    assert (found.rounds, even.calls) == (20, 21)  # the first one does not count
    assert found.median_ms == pytest.approx(1) == found.p95_ms
    assert found.per_second == pytest.approx(8000) and found.spread == pytest.approx(0)
    uneven = Clock(1e-3, 3e-3, 2e-3)
    found = measured(monkeypatch, uneven, rounds=20, spread=0.01, seconds=0.5)
    assert 20 < found.rounds <= 251 and found.median_ms == pytest.approx(2)
    assert measured(monkeypatch, uneven, rounds=20, spread=0.7).rounds == 20
    slow = Clock(7.0, 1.0, 2.0, 6.0)
    found = measured(monkeypatch, slow, rounds=20, seconds=1)
    assert (found.rounds, found.median_ms, found.p95_ms) == (3, 2000, 6000)
    assert found.per_second == pytest.approx(1 / 3)
    assert found.cpu_ms == pytest.approx(1500)  # (1 + 2 + 6) / 3 calls / 2


def test_a_round_is_all_of_several_calls(monkeypatch):
    clock = Clock(1.0, 3.0)
    monkeypatch.setattr(latency, "time", clock)
    found = measure([clock.call, clock.call], rounds=5, items=10, seconds=99)
    assert (found.rounds, clock.calls, found.spread) == (5, 12, 0)
    assert found.per_second == pytest.approx(10 / 4)
    assert (found.median_ms, found.p95_ms) == (2000, 3000)


def test_backends_compute_the_same_states(model, tmp_path, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    text = tmp_path / "texts.txt"
    text.write_text("\n".join([*sentences(5), "one", "", "the matrix of a word " * 20]))
    given = options(model, input=str(text), length=(16, None))
    subject = backends.open_subject(given.model)
    short, whole = inference._cases(given, subject)
    assert (short[1], whole[0]["length"]) == (7, 32)
    # The long text is several chunks of 16 tokens; the longest rows come first.
    sizes = [(b["segments"] > 0).sum(1).tolist() for b in short[2]]
    flat = sum(sizes, [])
    assert flat == sorted(flat, reverse=True) and flat[0] == 16 and len(flat) > 12
    assert inference._prepare(given, subject, tmp_path, {})[:2] == ["jax", "onnx"]
    ours, _ = backends._jax(given.model, "float32")
    theirs = {}
    for name in ("onnx", "int8"):
        path = tmp_path / "onnx" / backends.FILES[name]
        theirs[name], _ = backends._onnx(path, 1)
    batch = whole[2][-1]
    real = batch["segments"] > 0
    wanted = ours(batch)()[real]
    for name, bound in (("onnx", 1e-4), ("int8", 0.5)):
        (states,) = theirs[name](batch)()
        apart = np.abs(states[real[:, : states.shape[1]]] - wanted).max()
        assert apart < bound, name


@pytest.mark.peer
@pytest.mark.parametrize("preset", ["bert-tiny", "modernbert-tiny", "gpt2-tiny"])
def test_torch_computes_states_of_the_same_shape(preset, tmp_path):
    given = options(preset, length=(8,))
    subject = backends.open_subject(preset)
    (case,) = inference._cases(given, subject)
    given.backends = ["torch"]
    assert inference._prepare(given, subject, tmp_path, {}) == ["torch"]
    prepare, device = backends._torch(tmp_path, 1)
    (batch,) = case[2]
    states = prepare(batch)()
    assert states.shape == (4, 8, PRESETS[preset].width) and device == "cpu"


def test_a_model_is_measured_and_a_collection_costs(model, tmp_path, capsys):
    text, picture = tmp_path / "texts.jsonl", tmp_path / "plot.png"
    lines = [{"abstract": line} for line in (*sentences(6), "the row")]
    text.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["bench", "inference", f"--model={model}", f"--input={text}"]
    command += ["--column=abstract", "--batch=2,4", "--length=16", "--threads=1"]
    command += ["--backends=onnx", "--seconds=0.05", "--documents=4000000"]
    command += ["--price_per_hour=2.5", "--preset=scibert", f"--plot={picture}"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["batch"], row["length"]) for row in result["results"]] == [
        (2, 16),
        (4, 16),
    ]
    for row in result["results"]:
        assert row["rounds"] >= 3 and 0 < row["median_ms"] <= row["p95_ms"]
        assert (row["backend"], row["device"], row["threads"]) == ("onnx", "cpu", 1)
    # Of 2 and 4 rows: rows of other lengths share a batch, and are padded.
    two, four = (row["fill"] for row in result["results"])
    assert 0.5 < four < two <= 1
    best = max(row["documents_per_second"] for row in result["results"])
    (estimate,) = result["estimates"]
    assert estimate["hours"] == pytest.approx(4e6 / best / 3600)
    assert estimate["price"] == pytest.approx(2.5 * estimate["hours"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = " ".join(inference.as_text(result).split())
    # The published row: 256 x 512 tokens in 2.116 s.
    assert re.search(r"RTX 2080 Ti .* 2,116 .* 121 .* 61,943", shown), shown
    assert "4,000,000 documents on one such machine" in shown


def test_what_is_not_there_is_left_out_or_an_error(model, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "find_spec", lambda name: None)
    subject, left_out = backends.open_subject(str(model)), {}
    ready = inference._prepare(options(model), subject, tmp_path, left_out)
    assert ready == ["jax"] and left_out.keys() == {"onnx", "int8", "torch"}
    assert "pip install 'plmjax[onnx]'" in left_out["int8"]
    assert "torch and transformers not installed" in left_out["torch"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model=/no/such/folder"], "is not a folder"),
        (["--model=bert-bass"], "neither a folder nor a preset.*bert-base"),
        (["--model={tmp}"], "holds no run and no model"),
        ([], "--model is missing"),
        (["--model={model}", "--length=64"], "--length=64 must be from 8 to 32"),
        (["--model={model}", "--length=x"], "--length=x must be numbers"),
        (["--model={model}", "--batch=0"], "must be at least 1"),
        (["--model={model}", "--threads=9999"], "this process may use"),
        (
            ["--model={model}", "--backends=tpu", "--length=8"],
            "no 'tpu'.*jax, bf16, torch, onnx",
        ),
        (
            ["--model={model}", "--backends=static", "--length=8"],
            "no onnx/model_static.onnx",
        ),
        (["--model={model}", "--input={tmp}/blank.txt"], "only empty texts"),
        (["--model={model}", "--input={tmp}/empty.txt"], "holds no texts"),
        (["--model=bert-tiny", "--input={tmp}/blank.txt"], "the preset bert-tiny has"),
        (["--model={model}", "--price_per_hour=2"], "needs --documents"),
        (["--model={model}", "--plot=plot.svg"], "must end with .png"),
    ],
)
def test_bad_input(changes, message, model, tmp_path, capsys):
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "empty.txt").write_text("")
    places = {"model": model, "tmp": tmp_path}
    given = [each.format(**places) for each in changes]
    assert main(["bench", "inference", *given]) in (2, 3, 4)
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_a_backend_that_fails_says_why(model, tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no graph")
    given = options(model)
    cases = inference._cases(given, backends.open_subject(given.model))
    with pytest.raises(PlmjaxError, match="the backend onnx failed: .*Protobuf"):
        list(inference._measure(given, "onnx", 1, tmp_path, cases))
