"""The benchmarks run and say what they promise; no test here asks for a speed."""

import argparse
import json
import platform
import shlex
from pathlib import Path

import numpy as np
import pytest
from tests_common import TINY, run_cli, run_python

import attention
import device
import peer
import prepare
from plmjax import PlmjaxError, machine
from plmjax.bench.prepare import as_text, bench_prepare, open_case
from plmjax.cli import main
from plmjax.config import load, to_dict
from plmjax.tokenizers import TokenizerConfig
from plmjax.workdir import RunConfig
from sides import PeerConfig, Spec, Worker

SMALL = TokenizerConfig("wordpiece", 120)
PEER = peer.__file__
ROOT = Path(PEER).parents[1]


@pytest.mark.slow
def test_train_times_the_users_own_config(corpus):
    done = run_cli(
        "bench",
        "train",
        *TINY,
        f"--config.data.source.paths={corpus}",
        "--steps=3",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (phase,) = result["phases"]
    assert (phase["length"], phase["batch"], phase["steps"]) == (32, 8, 3)
    assert 0 < phase["best_ms"] <= phase["median_ms"]
    assert 0 < phase["fill"] <= 1
    assert 0 <= phase["loader_share"] <= 1
    assert phase["compile_s"] > 0 and phase["peak_memory_mb"] > 50
    assert phase["mfu"] is None  # No CPU's peak is known.
    assert result["machine"]["versions"]["jax"]
    assert len(result["load"]) == 2


def test_bench_needs_a_kind_and_steps(corpus):
    assert run_cli("bench").returncode == 2
    paths = f"--config.data.source.paths={corpus}"
    done = run_cli("bench", "train", *TINY, paths, "--steps=0")
    assert done.returncode == 2 and "--steps=0" in done.stderr


@pytest.mark.parametrize("what", ["peer", "scaling"])
def test_a_verb_that_has_moved_names_its_program(what, capsys):
    options = ["--paths=a *.txt", "--rounds=0", "--config.model.width=1", "--help"]
    for given in ([], options):
        assert main(["bench", what, *given]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"error: `plmjax bench {what}` has moved.")
        command = ["python", f"benchmarks/{what}.py", *given]
        assert shlex.split(error)[-len(command) :] == command


@pytest.mark.parametrize("what", ["peer", "scaling", "prepare", "attention", "device"])
def test_a_program_helps_from_anywhere(what, tmp_path):
    file = PEER.replace("peer.py", f"{what}.py")
    # An import of jax or torch would fail.
    for name in ("jax", "torch"):
        (tmp_path / f"{name}.py").write_text("assert False")
    done = run_python(file, "--help", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{what}.py" in done.stdout


def test_attention_is_measured_by_length(tmp_path):
    sizes = ["--lengths=16,8", "--width=8", "--window=4", "--rounds=1"]
    parse = attention.make_parser().parse_args
    result = attention.bench_attention(parse(["--kinds=window", *sizes]))
    found = [(row["kind"], row["length"]) for row in result["rows"]]
    assert found == [("window", 8), ("window", 16)]
    assert all(row["cpu_seconds"] > 0 < row["bytes"] for row in result["rows"])
    assert "window         8: " in attention.as_text(result)
    attention.plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(PlmjaxError, match="has 'sparse'"):
        attention.bench_attention(parse(["--kinds=full,sparse"]))


def test_a_part_that_fails_on_a_device_is_an_entry(monkeypatch):
    def fails(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    def speed(case, side, text, steps):
        assert text.read_text().count("\n") > 100 and steps == 20
        return {"case": case, "side": side}

    monkeypatch.setattr(device, "starts", fails)
    monkeypatch.setattr(device, "errors", lambda smoke: {"smoke": smoke})
    monkeypatch.setattr(device, "speed", speed)
    parse = device.make_parser().parse_args
    result = device.bench_device(parse(["--smoke"]))
    assert (
        result["start"]["error"] == "RESOURCE_EXHAUSTED" and result["kernels"]["smoke"]
    )
    for case in device.SMOKE:
        for side in ("xla", "auto"):
            found = result[f"{case[0]} {case[1]} {side}"]
            assert (found["case"], found["side"]) == (case, side)
    late = argparse.Namespace(**vars(parse(["--smoke"])) | {"minutes": -1})
    left = device.bench_device(late)["modernbert-tiny 160 auto"]
    assert left == {"left out": "after -1 minutes"}


def test_an_exponent_is_the_slope_of_the_logarithms():
    rows = [
        {"kind": "full", "length": n, "cpu_seconds": 3 * n**2, "bytes": 5 * n}
        for n in (512, 1024, 4096)
    ]
    slopes = attention._exponents(rows)["full"]
    assert slopes == pytest.approx({"time": 2, "memory": 1})


def test_preparing_is_timed(corpus):
    result = bench_prepare(str(corpus), SMALL, rounds=2)
    assert (result["documents"], result["rounds"]) == (400, 2)
    assert result["vocab_size"] == 120 and result["plmjax_mb_per_s"] > 0
    assert "wordpiece of 120, processes 1, median of 2\n" in as_text(result)


@pytest.mark.peer
def test_preparing_gives_the_peers_ids(corpus):
    pytest.importorskip("transformers")
    result = prepare.compare(open_case(str(corpus), SMALL), rounds=1, workers=1)
    assert result["identical_ids"] and result["ratio"] > 0
    assert "median of 1; ids identical\n" in prepare.as_text(result)


@pytest.mark.slow
def test_each_phase_is_timed(corpus):
    from plmjax.bench.train import as_text, bench_train

    overrides = [a.removeprefix("--config.") for a in TINY]
    overrides = [a for a in overrides if a not in ("data.length=32", "train.batch=8")]
    overrides += [
        f"data.source.paths={corpus}",
        "train.steps=none",
        "data.phases=((1, 32, 8), (2, 64, 8))",
    ]
    config = load(RunConfig, None, overrides, to_dict(RunConfig()))
    result = bench_train(config, steps=2, log=lambda _: None, profile=True)
    assert [phase["length"] for phase in result["phases"]] == [32, 64]
    assert "8 rows x 64 tokens" in (text := as_text(result))
    for phase in result["phases"]:
        parts = {part["what"]: part for part in phase["profile"]}
        layers = result["model"]["layers"]
        assert parts["ffn/up, product, forward"]["operations"] == layers
        # Two products a layer, and their operands' copies.
        assert parts["ffn/up, product, backward"]["operations"] >= 2 * layers
        assert sum(part["ms"] for part in parts.values()) > 0
    assert "%  ffn/up, product, backward" in text


def test_peak_memory_grows_with_what_is_held():
    before = machine.peak_rss_bytes()
    held = np.ones(30_000_000)
    assert machine.peak_rss_bytes() >= before
    assert machine.peak_rss_bytes() > held.nbytes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_goes_back_to_the_system():
    def used() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    # Through malloc, and below one that stays: glibc alone returns only the top.
    held = [bytes([1]) * 2000 for _ in range(30_000)]
    last = held[-1]
    held.clear()
    before = used()
    machine.return_memory()
    assert used() < before - 20_000_000 and last


def test_peer_says_what_to_install(monkeypatch):
    monkeypatch.setattr(peer, "find_spec", lambda name: None)
    with pytest.raises(PlmjaxError, match=r'pip install -e "\.\[peer\]"'):
        peer.bench_peer(PeerConfig())


def test_peer_refuses_another_start():
    here = {"generator_loss": 10.0, "detector_loss": 0.7}
    peer._check_same(here, {"generator_loss": 10.0009, "detector_loss": 0.7})
    for name, there in (
        ("generator_loss", 10.002),
        ("detector_loss", 0.7002),
        ("generator_loss", float("nan")),
    ):
        with pytest.raises(PlmjaxError, match="the models differ") as error:
            peer._check_same(here, here | {name: there})
        assert name.replace("_", " ") in str(error.value)


def test_peer_refuses_what_transformers_has_no_classes_for():
    assert PeerConfig(objective="electra").name == "electra-small"
    with pytest.raises(PlmjaxError, match="compares electra models") as error:
        PeerConfig(objective="electra", preset="bert-mini")
    assert "electra-tiny" in str(error.value)
    with pytest.raises(PlmjaxError, match="compares bert models"):
        PeerConfig(objective="distill", preset="no-such-model")
    with pytest.raises(PlmjaxError, match="longer than the 512 positions of bert-base"):
        PeerConfig(preset="bert-base", length=1024)
    with pytest.raises(PlmjaxError, match="--to_loss cannot be combined with"):
        PeerConfig(objective="distill", to_loss=5)


def test_ratios_compare_a_window_with_its_neighbours():
    def window(seconds):
        return {"seconds": seconds, "cpu_seconds": 2 * seconds, "tokens": 120}

    found = peer._figures([(window(1.0), window(4.0), window(1.5))] * 3)
    assert found["ratio"]["median"] == pytest.approx((120 + 80) / 2 / 30)
    assert found["plmjax_against_itself"]["median"] == pytest.approx(1 / 1.5)


def test_time_to_a_loss_is_read_between_evaluations():
    ours = [(0.0, 10.0), (1.0, 8.0), (2.0, 5.0)]
    theirs = [(0.0, 10.0), (4.0, 7.0), (8.0, 6.0)]
    found = peer._to_loss(ours, theirs)["to_loss"]
    assert found["loss"] == 6.0
    assert found["seconds"]["plmjax"] == pytest.approx(1 + 2 / 3)
    assert found["seconds"]["peer"] == 8.0


def test_a_dead_worker_shows_its_last_words(tmp_path):
    spec = Spec(str(tmp_path), "float32", 2, 32, 1)
    with Worker("no_such_side", spec) as worker:
        with pytest.raises(RuntimeError, match="No module named"):
            worker.call("loss")


@pytest.mark.peer
def test_peer_compares_the_same_model(corpus):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    done = run_python(
        PEER,
        f"--paths={corpus}",
        "--preset=bert-tiny",
        "--vocab_size=512",
        "--length=32",
        "--batch=4",
        "--dtype=both",
        "--padding=both",
        "--rounds=1",
        "--steps=2",
        "--to_loss=2",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["case"]["vocab_size"] == 512
    assert result["case"]["pieces"] < 512  # The text gives fewer; the table is kept.
    assert result["case"]["full"]["group_texts"] == 1.0
    assert result["case"]["full"]["line_by_line"] < 1.0
    rows = {(row["dtype"], row["padding"]): row for row in result["results"]}
    assert len(rows) == len(result["results"]) == 4
    for row in rows.values():
        assert row["peer"] == "eager"
        assert abs(row["initial_losses"]["loss"] - np.log(512)) < 0.5
        assert row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
        assert row["peak_memory_mb"].keys() == {"plmjax", "peer"}
        assert row["to_loss"]["seconds"].keys() == {"plmjax", "peer"}
        assert row["to_loss"]["final"]["peer"] < 10


@pytest.mark.peer
@pytest.mark.campaign
@pytest.mark.parametrize(
    ("objective", "preset", "models", "losses"),
    [
        (
            "electra",
            "electra-tiny",
            {
                "discriminator": "4 layers x 256",
                "generator": "4 layers x 64",
            },
            {"generator_loss": np.log(512), "detector_loss": np.log(2)},
        ),
        (
            "distill",
            "bert-tiny",
            {"student": "1 layers x 128", "teacher": "2 layers x 128"},
            {"mlm_loss": np.log(512), "soft_loss": 0, "cosine_loss": 1},
        ),
    ],
)
def test_peer_compares_other_objectives(corpus, objective, preset, models, losses):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    done = run_python(
        PEER,
        f"--objective={objective}",
        f"--preset={preset}",
        f"--paths={corpus}",
        "--vocab_size=512",
        "--length=32",
        "--batch=4",
        "--dtype=bfloat16",
        "--padding=both",
        "--rounds=1",
        "--steps=2",
        "--json",
    )
    # Where losses or numbers of parameters differ, it ends with an error.
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["case"]["objective"] == objective
    assert result["case"]["models"] == models
    assert len(result["results"]) == 2
    for row in result["results"]:
        assert row["initial_losses"].keys() == losses.keys()
        for name, expected in losses.items():
            assert abs(row["initial_losses"][name] - expected) < 0.5, name
        assert row["ratio"]["median"] > 0


@pytest.mark.peer
def test_the_peers_samples_follow_its_softmax():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from theirs import _sample

    torch.manual_seed(0)
    logits = torch.log(torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3, 0.0]))
    drawn = _sample(logits.expand(20_000, -1), 1.0)
    shares = np.bincount(drawn.numpy(), minlength=6) / 20_000
    np.testing.assert_allclose(shares, [0, 0.1, 0, 0.6, 0.3, 0], atol=0.015)
