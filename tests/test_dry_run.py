"""The dry run's tables: blocks, shardings, memory; what is sent."""

import dataclasses
import functools
import io
import re
import types
import typing

import jax
import numpy as np
import pytest
from rich.console import Console
from test_step import ENCODER, make_batch, pieces
from tests_common import TINY

from plmjax import tree
from plmjax.cli import main
from plmjax.objectives import MLM, OBJECTIVES, ElectraConfig, MLMConfig
from plmjax.report import cost
from plmjax.report import dry_run as lib
from plmjax.train import sharding
from plmjax.train.collectives import Collective
from plmjax.train.config import MeshConfig, OptimizerConfig
from plmjax.train.optimizer import make_optimizer
from plmjax.train.step import init_state


def state_of(objective, ema: bool = False):
    optimizer = make_optimizer(OptimizerConfig())
    return jax.eval_shape(
        lambda batch: init_state(objective, optimizer, 0, batch, ema), make_batch()
    )


def blocks(objective, sizes, zero1=False, ema=False):
    mesh = sharding.make_mesh(MeshConfig(*sizes), jax.devices())
    return lib.blocks_of(mesh, state_of(objective, ema), zero1)


encoder = functools.partial(dataclasses.replace, ENCODER)


def text(table, width: int = 100) -> str:
    out = Console(file=io.StringIO(), width=width)
    out.print(table)
    return out.file.getvalue()  # type: ignore[attr-defined]


def test_blocks_of_a_mixed_mesh():
    objective = MLM(MLMConfig(), encoder(layers=3), pieces(96))
    embeddings, layers, head = blocks(objective, (2, 2, 2))
    assert [b.name for b in (embeddings, layers, head)] == [
        "encoder/embeddings",
        "encoder/layer_0 .. 2",
        "head",
    ]
    assert layers.parameters == 3 * (4 * 32 * 33 + 64 * 33 + 32 * 65 + 4 * 32)
    assert ("token", "96x32", "tensor x fsdp") in embeddings.arrays
    query = "attention/{key,query,value}/kernel"
    assert (query, "32x32", "fsdp x tensor") in layers.arrays
    # A quarter of the kernels; biases on tensor, the other vectors whole.
    kernels, split, whole = 4 * 32 * 32 + 2 * 32 * 64, 3 * 32 + 64, 2 * 32 + 4 * 32
    assert layers.weights == 3 * 4 * (kernels / 4 + split / 2 + whole)
    assert layers.gradients == layers.weights
    assert layers.optimizer == 2 * layers.weights
    shown = text(lib.sharding_table([embeddings, layers, head]))
    assert re.search(r"ffn/up/kernel +│ +32x64 │ fsdp x tensor", shown)


@pytest.mark.parametrize(
    "sizes, zero1, weights, optimizer",
    [
        ((8, 1, 1), False, 1, 1),
        ((8, 1, 1), True, 1, 1 / 8),
        ((1, 8, 1), False, 1 / 8, 1 / 8),
        ((2, 4, 1), True, 1 / 4, 1 / 8),
    ],
)
def test_bytes_of_a_device(sizes, zero1, weights, optimizer):
    """The share of the bytes of the kernels, which are nearly all."""
    big = encoder(width=256, ffn_width=1024, max_positions=8, vocab_size=1024)
    objective = MLM(MLMConfig(), big, pieces(1024))
    state = state_of(objective, ema=True)
    found = blocks(objective, sizes, zero1, ema=True)
    whole = tree.size_in_bytes(state.params)
    held = {n: sum(getattr(b, n) for b in found) / whole for n in lib.SIZES}
    assert held["weights"] == pytest.approx(weights, abs=0.03)
    # Two moments and the average.
    assert held["optimizer"] == pytest.approx(3 * optimizer, abs=0.09)
    # Each device computes whole layers, and so whole gradients.
    assert held["gradients"] == 1
    mesh = sharding.make_mesh(MeshConfig(*sizes), jax.devices())
    counts = 4 * 3 + 4  # step, bad steps, skipped; Adam's count
    assert (held["weights"] + held["optimizer"]) * whole + counts == pytest.approx(
        sharding.bytes_per_device(mesh, state, zero1), abs=4
    )


def test_the_parts_of_electra_have_their_own_blocks():
    pair = OBJECTIVES["electra"](ElectraConfig(), encoder(layers=2), pieces(96))
    found = blocks(pair, (8, 1, 1))
    names = [block.name for block in found]
    assert "discriminator/encoder/layer_0 .. 1" in names
    assert {"generator/encoder/embeddings", "discriminator/detector"} <= set(names)
    assert sum(b.parameters for b in found) == tree.count(state_of(pair).params)
    assert lib.sharding_table(found) == "Every device holds all weights.\n"


def test_layers_that_differ_are_not_joined():
    objective = MLM(MLMConfig(), encoder(layers=4, sharing="all", groups=2), pieces(96))
    names = [block.name for block in blocks(objective, (8, 1, 1))]
    # Two sets of parameters serve four layers.
    assert "encoder/layer_0 .. 1" in names
    odd = [
        lib.Block(f"encoder/layer_{i}", 10 + (i == 2), 1, 1, 1, arrays=())
        for i in range(4)
    ]
    joined = [(b.name, b.parameters) for b in lib._folded(odd)]
    assert joined == [
        ("encoder/layer_0 .. 1", 20),
        ("encoder/layer_2", 11),
        ("encoder/layer_3", 10),
    ]


def test_what_is_sent_is_a_row_for_each_axis_and_operation():
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2), jax.devices())
    groups = tuple(map(tuple, np.arange(8).reshape(4, 2).tolist()))
    one = Collective("all-reduce", 3_000_000, groups, 4, True, "")
    whole = (tuple(range(8)),)
    every = Collective("all-gather", 8_000_000, whole, 1, True, "")
    shown = text(lib.collectives_table([one, one, every], mesh))
    assert re.search(r"tensor \(2\) +│ all-reduce +│ +8 │ 24.0 ", shown)
    assert re.search(r"data x fsdp x tensor \(8\) +│ all-gather +│ +1 │ +7.0 ", shown)
    assert re.search(r"all +│ +│ +9 │ 31.0 ", shown)


LOCAL = {"layer_kinds": ("global", "local"), "window": 8}


@pytest.mark.parametrize(
    "changes, kind, length, expected",
    [
        ({}, "gpu", 512, ("80.0%", "33.6")),
        ({}, "gpu", 96, ("42.9%", "1.2")),  # the training's own length
        ({}, "cpu", 16384, ("99.2%", "0.000")),  # in tiles
        (LOCAL, "cpu", 1024, ("79.4%", "0.7%", "80.1%", "0.000")),
        (LOCAL, "gpu", 1024, ("79.4%", "0.7%", "80.1%", "67.7")),
        (
            {"attention": "nystrom", "landmarks": 16, "value_convolution": 3},
            "cpu",
            512,
            ("26.4%", "2.1"),
        ),
    ],
)
def test_what_attention_takes_by_length(changes, kind, length, expected):
    """The products between tokens of 4 layers beside 8 products of 32 x 32 a token.

    Full: 2 of L x 32. Local: 2 of 9 x 32 in half of the layers. Landmarks: 4 of 16 x 32
    and 3 x 32, and once a row 24 of 16 x 16 x 16 a head, 2 of 16 x 16 x 32.
    """
    objective = MLM(MLMConfig(), encoder(layers=4, **changes), pieces(96))
    shown = text(lib.attention_table(objective, kind, own=96))
    cells = (
        re.search(rf"│ +{length:,}(?: .here.)? │(.*)", shown)[1]
        .replace(" ", "")
        .split("│")
    )
    assert tuple(cells[: len(expected)]) == expected


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "mesh",
    [
        ("--config.mesh.fsdp=4",),
        pytest.param(
            ("--config.mesh.fsdp=2", "--config.mesh.tensor=2"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=" ".join,
)
def test_a_dry_run_compiles_the_step_and_reads_it(mesh, corpus, tmp_path, capsys):
    workdir = tmp_path / "run"
    paths = f"--config.data.source.paths={corpus}"
    arguments = ["pretrain", *TINY, paths, f"--workdir={workdir}", "--dry_run", *mesh]
    assert main([*arguments, "--device=h100:8", "--price_per_hour=2"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[5:])) <= 100
    assert re.search(r"[\d,]+ MB a device: state and batch [\d.]+, temporaries", shown)
    assert re.search(r"fsdp \(\d\) +│ +all-gather", shown)
    assert re.search(r"here, by three real steps │ +[\d,.]+ │", shown)
    assert "h100:8, at an MFU of 40%" in shown and "price at 2 an hour" in shown
    assert "Price: hours x devices x" in shown and "Trust this figure" in shown
    assert "│ 32 (here) │" in shown
    assert "nothing was trained" in shown
    assert not (workdir / "checkpoints").exists()


def training_of(objective, **more):
    fields = {"objective": objective, "steps": 100, "flops": lambda step: 4e15}
    return types.SimpleNamespace(**fields, mesh=types.SimpleNamespace(size=2), **more)


def test_the_work_of_all_blocks_is_that_of_the_objective():
    objective = MLM(MLMConfig(), encoder(layers=3), pieces(96))
    params = state_of(objective).params
    shown = text(cost.work_table(training_of(objective), params, 16))  # type: ignore
    rows = re.findall(r"│ ([a-z-]+) +│ +([\d,]+) .* ([\d,]+) │ +[\d.]+% │", shown)
    numbers = {n: [int(x.replace(",", "")) for x in two] for n, *two in rows}
    assert [*numbers] == ["embeddings", "attention", "feed-forward", "heads"]
    assert sum(one for one, _ in numbers.values()) == tree.count(params)
    total = sum(flops for _, flops in numbers.values())
    assert total == pytest.approx(objective.flops(16) / 16, abs=4)
    # Two products forward and four backward, of 32 x 64 and back in three layers.
    assert numbers["feed-forward"][1] == 6 * 3 * 2 * 32 * 64
    assert numbers["attention"][0] == 3 * (4 * 32 * 33 + 2 * 32)


def test_times_and_prices_follow_from_steps_peaks_and_devices():
    asked = cost.Asked(("h100:8", "v5e"), 0.5, 3.0)
    training: typing.Any = training_of(None)
    shown = text(cost.cost_table(training, 50, [2.0, 36.0, 72.0], asked), 120)
    rows = [
        re.split(r" *│ *", line)[1:-1] for line in shown.splitlines() if "│" in line
    ]
    # 100 steps of 36 s are an hour of two devices.
    assert rows[0][1:] == ["36,000.0", "30:00", "1:00:00", "1.00", "6.00"]
    seconds = 4e15 / (8 * 989e12 * 0.5)
    assert rows[1][1] == f"{1e3 * seconds:,.1f}"
    assert rows[1][-1] == f"{100 * seconds / 3600 * 8 * 3:,.2f}"
    assert rows[2][1] == f"{1e3 * 4e15 / (197e12 * 0.5):,.1f}"
    assert cost.cost_table(training, 50, [], cost.NOTHING) == ""
