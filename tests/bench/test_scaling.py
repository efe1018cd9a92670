"""The scaling program: bytes to seconds, few layers to many, and the command itself."""

import dataclasses
import json
import math

import jax
import pytest
from tests_common import campaign, run_python

import compiled as steps
import roofline
import scaling
from plmjax.cli import run_program
from plmjax.models import EncoderConfig
from roofline import Chip, Traffic
from scaling import ROWS, ScalingConfig

# 1 FLOP/ns; 10 bytes/ns within groups of four, 1 beyond.
CHIP = Chip("chip", 1e9, 10e9, 4, 1e9)
FLAT = Chip("flat", 1e9, 10e9, 4, 1e9, flat=True)


def mesh(data=1, fsdp=1, tensor=1) -> dict[str, int]:
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


@pytest.mark.parametrize(
    "chip, axes, kind, sizes, nanoseconds",
    [
        # Within a group: 2 x 3/4 of 800 bytes at 10.
        (CHIP, ("data",), "all-reduce", mesh(4), 120),
        (CHIP, ("data",), "all-gather", mesh(4), 60),
        (CHIP, ("data",), "reduce-scatter", mesh(1), 0),
        # Two groups: as much within them; beyond, each chip half of its quarter, twice.
        (CHIP, ("data",), "all-reduce", mesh(8), 120 + 200),
        (FLAT, ("data",), "all-reduce", mesh(8), 2 * 700),
        # Two neighbours of a group, the others far: data steps over tensor.
        (CHIP, ("data",), "all-gather", mesh(4, 1, 2), 40 + 200),
        (CHIP, ("data",), "all-gather", mesh(4, 1, 4), 600),
        (CHIP, ("tensor",), "all-gather", mesh(4, 1, 4), 60),
        (CHIP, ("data", "fsdp"), "all-reduce", mesh(2, 4), 120 + 200),
        (CHIP, ("tensor",), "collective-permute", mesh(4, 1, 4), 80),
        (CHIP, ("data",), "collective-permute", mesh(4, 1, 4), 800),
    ],
)
def test_seconds_of_a_ring_within_and_beyond_a_group(
    chip, axes, kind, sizes, nanoseconds
):
    found = roofline.seconds(chip, Traffic(axes, kind, 800), sizes, 0)
    assert found * 1e9 == pytest.approx(nanoseconds)


def test_the_bound_is_where_sending_takes_as_long_as_computing():
    traffic = [Traffic(("data",), "all-reduce", 4e6)]
    given = (CHIP, traffic, mesh(8))
    tokens = roofline.bound(*given, flops_per_token=1e4, mfu=0.5)
    step = roofline.step(*given, tokens, 1e4, 0.5)
    assert step.computing == pytest.approx(step.sending)
    assert step.seconds_with_overlap == pytest.approx(step.seconds_without_overlap / 2)
    assert roofline.step(*given, 2 * tokens, 1e4, 0.5).computing > step.sending
    # A token that is sent for longer than it computes never pays.
    slow = [Traffic(("tensor",), "all-reduce", 0.0, 1e6)]
    assert math.isinf(roofline.bound(CHIP, slow, mesh(1, 1, 4), 1e4, 0.5))
    # Four chips share each token: a chip's share of them is a quarter.
    shared = roofline.bound(CHIP, traffic, mesh(8, 1, 4), 1e4, 0.5)
    one = roofline.step(CHIP, traffic, mesh(8, 1, 4), 4 * shared, 1e4, 0.5)
    assert one.computing == pytest.approx(one.sending)


def compiled(config: ScalingConfig) -> list[dict]:
    """What steps of 12 layers would give: 8 bytes a parameter of 24 + 7 a layer."""
    found = []
    for count in config.devices:
        for kind in config.meshes:
            for layers in (1, 2):
                for rows in (ROWS, 2 * ROWS) if kind == "tensor" else (ROWS,):
                    size = 24e6 + 7e6 * layers
                    traffic = [("data", "all-reduce", size)]
                    if kind == "tensor":
                        traffic += [("tensor", "all-reduce", 1e6 * rows * layers)]
                    found.append(
                        {
                            "mesh": kind,
                            "devices": count,
                            "layers": layers,
                            "rows": rows,
                            "traffic": traffic,
                            "state": 100 + 10 * layers,
                            "temporary": 5 * layers,
                            "model": {"layers": 12},
                        }
                    )
    return found


def test_all_layers_and_rows_follow_from_few():
    config = ScalingConfig(devices=(8, 64), meshes=("data", "tensor"))
    steps = compiled(config)
    data, tensor = (scaling._measured(config, kind, steps) for kind in config.meshes)
    whole = 24e6 + 7e6 * 12
    for size in data["sizes"]:
        n = size["devices"]
        assert size["sent"] == pytest.approx(2 * whole * (n - 1) / n)
        assert (size["state"], size["temporary"]) == (220, 60)
    assert scaling._deviation(config, data) == pytest.approx(0)
    (one, two) = tensor["sizes"][0]["traffic"]
    assert (one["bytes"], one["bytes_per_token"]) == (whole, 0)
    # A row of 128 tokens adds 1e6 bytes a layer, and there is nothing besides.
    assert two["bytes"] == pytest.approx(0)
    assert two["bytes_per_token"] == pytest.approx(12e6 / 128)


def test_what_a_formula_cannot_predict_is_reported():
    config = ScalingConfig(devices=(8, 64), meshes=("data",))
    steps = compiled(config)
    for one in steps:
        if one["devices"] == 64:
            one["traffic"] = [(a, k, 2 * size) for a, k, size in one["traffic"]]
    measured = scaling._measured(config, "data", steps)
    assert scaling._deviation(config, measured) == pytest.approx(1)


@pytest.mark.parametrize(
    "option, words",
    [
        ("--preset=bert-bass", "Known: bert-tiny"),
        ("--devices=12", "multiples of 8"),
        ("--devices=x", "must be numbers"),
        ("--tensor=5", "does not divide the 12 heads"),
        ("--meshes=ddp", "Known: data, zero1, fsdp, tensor"),
        ("--mfu=40", "must be in (0, 1]"),
        ("--length=1024", "longer than the 512 positions"),
        ("--batch=0", "at least 1"),
        ("--topology=v9", "Known: v5e, v5p, v6e, h100, h200"),
        ("--topology=v5e", "512 is no slice of v5e. Known: 1, 4, 8, 16"),
    ],
)
def test_a_wrong_option_is_refused_before_any_work(option, words, capsys):
    assert run_program(scaling.make_parser(), scaling.__file__, [option]) == 2
    assert words in capsys.readouterr().err


def test_a_child_that_dies_is_not_silent(monkeypatch):
    config = ScalingConfig(devices=(8,))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(scaling.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="compiling for 8 devices failed"):
        scaling.bench_scaling(config, lambda _: None)


@pytest.mark.campaign
@pytest.mark.timeout(600)
def test_the_command_compiles_and_prints_its_tables():
    given = "--preset=bert-tiny --length=32 --batch=512 --tensor=2 --devices=8"
    arguments = [*given.split(), "--meshes=data,tensor"]
    done = run_python(scaling.__file__, *arguments, "--json", timeout=500)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    data, tensor = result["meshes"]
    for size in data["sizes"]:
        n = size["devices"]
        sent = 2 * 4 * result["model"]["parameters"] * (n - 1) / n
        assert size["sent"] == pytest.approx(sent, rel=1e-4)
    along = {tuple(one["axes"]) for one in tensor["sizes"][0]["traffic"]}
    assert {("data",), ("tensor",)} <= along
    text = scaling.as_text(result)
    assert "| data x tensor 2 | 8 |" in text and "at most 0.0" in text


@pytest.mark.parametrize("family", campaign(["bert", "electra", "gpt2"], "bert"))
def test_an_objective_of_each_family_compiles_with_its_tables(family):
    encoder = EncoderConfig(
        family=family, vocab_size=64, layers=1, width=16, heads=4, ffn_width=16
    )
    encoder = dataclasses.replace(encoder, causal=family == "gpt2", max_positions=16)
    config = ScalingConfig("bert-tiny", length=16, meshes=("data",), tensor=2)
    found = steps._compile(config, "data", jax.devices(), encoder, 1)
    assert sum(size for *_, size in found["traffic"]) > 0
