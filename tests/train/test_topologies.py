"""Devices that are not there: which are known, and steps that their compilers took."""

import dataclasses
import importlib.util
import itertools
import math
import re

import pytest
from test_every_objective import CASES
from tests_common import TINY, campaign

from compiled import compile_step, shapes
from plmjax import Exit, PlmjaxError, machine
from plmjax.cli import main
from plmjax.models import EncoderConfig, Platform
from plmjax.objectives import MLM, MLMConfig, Pieces
from plmjax.train import collectives, hlo, sharding
from plmjax.train import topologies as lib
from plmjax.train.config import MeshConfig

ABSENT = {"v5e:2x2": "libtpu", "h100": "jax_plugins"}
EXTRA = {"v5e:2x2": "tpu", "h100": "topology"}


@pytest.mark.parametrize(
    "name", ["", "v9", "v5e", "v5e:3x5", "v5p:4x4", "h100:0", "h100:64x8", "h100:x"]
)
def test_an_unknown_topology_is_refused_with_the_known_ones(name):
    with pytest.raises(PlmjaxError, match=r"Known: v5e:\{1x1,2x2.*v5p.*h100:8") as no:
        lib.absent_devices(name)
    assert no.value.code == Exit.USAGE


@pytest.mark.parametrize(
    "name, more, words",
    [
        ("v5e:2x3", ["--dry_run"], "Known: v5e"),
        ("v5e:2x2", [], "Add --dry_run"),
        ("h100", ["--dry_run=shapes"], "Add --dry_run"),
        *(
            pytest.param(
                name,
                ["--dry_run"],
                f'pip install "plmjax[{EXTRA[name]}]"',
                marks=pytest.mark.skipif(
                    importlib.util.find_spec(package) is not None,
                    reason=f"{package} is installed",
                ),
            )
            for name, package in ABSENT.items()
        ),
    ],
)
def test_what_cannot_be_compiled_for_leaves_no_run(name, more, words, corpus, capsys):
    run = corpus.parent / "run"
    given = ["pretrain", str(corpus), f"--workdir={run}", *more, f"--topology={name}"]
    assert main(given) == Exit.USAGE
    assert words in capsys.readouterr().err
    assert not run.exists()


def test_libtpu_is_told_to_look_for_nothing_where_no_tpu_is(monkeypatch):
    kept = machine._NO_TPU
    for name in kept:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TPU_WORKER_ID", "3")
    for tpu in (True, False):
        monkeypatch.setattr(machine, "has_tpu", lambda tpu=tpu: tpu)
        machine.hide_absent_tpu()
        told = {name: machine.os.environ.get(name) for name in kept}
        others = dict.fromkeys(kept) if tpu else kept
        assert told == others | {"TPU_WORKER_ID": "3"}


@pytest.mark.topology
@pytest.mark.parametrize("name", ["v5e:1x1", "v5e:16x16", "v6e:8x8", "v5p:4x4x4"])
def test_every_mesh_fits_a_slice(name):
    """Also those that split an axis of it, such as 2 x 32 on 8 x 8."""
    devices = lib.absent_devices(name)
    sizes = [2**n for n in range(9) if 2**n <= len(devices)]
    for data, fsdp in itertools.product(sizes, sizes):
        if data * fsdp <= len(devices):
            config = MeshConfig(data, fsdp, len(devices) // data // fsdp)
            mesh = sharding.make_mesh(config, devices)
            assert mesh.devices.shape == (config.data, config.fsdp, config.tensor)
            assert set(mesh.devices.flat) == set(devices)
            assert lib.absent_chip(mesh) is lib.CHIPS[name[:3]]


@pytest.mark.topology
@pytest.mark.optimised
@pytest.mark.timeout(600)
def test_a_dry_run_for_a_tpu(corpus, tmp_path, capsys):
    """A chip's bytes, its collectives along each axis; a mesh of other size is not."""
    given = ["pretrain", *TINY, str(corpus), f"--workdir={tmp_path / 'run'}"]
    given += ["--dry_run", "--topology=v5e:2x2", "--config.mesh.fsdp=2"]
    assert main([*given, "--config.mesh.tensor=3"]) == Exit.USAGE
    assert "do not multiply to the 4 devices" in capsys.readouterr().err
    assert main([*given, "--config.mesh.tensor=2"]) == Exit.OK
    shown = capsys.readouterr().out
    assert "4 x TPU v5 lite, mesh data 1 x fsdp 2 x tensor 2" in shown
    assert re.search(r"compiled for TPU v5 lite in [\d.]+ s:\n +\d+ MB a dev", shown)
    assert re.search(r"\d MB are read and written a device, for \S+ FLOPs", shown)
    assert re.search(r"fsdp \(2\) +│ all-gather", shown)
    assert re.search(r"tensor \(2\) +│ all-reduce", shown)


@pytest.mark.topology
@pytest.mark.optimised
@pytest.mark.timeout(600)
def test_the_bytes_of_a_step_on_a_gpu_do_not_grow():
    """Measured: 1.83 GB. What lowers it, lowers the bound, too."""
    encoder = EncoderConfig(
        vocab_size=1024, layers=2, width=256, heads=4, ffn_width=1024, dtype="bfloat16"
    )
    devices = lib.absent_devices("h100")
    pieces = Pieces(4, (0, 1, 2, 3, 4), (1,) * encoder.vocab_size)
    objective = MLM(MLMConfig(), encoder, pieces, platform=Platform.of(devices))
    mesh = sharding.make_mesh(MeshConfig(), devices)
    step = compile_step(objective, mesh, shapes(64, 128))
    moved = hlo.movements(step.as_text())
    assert all(one.known for one in moved)
    assert 1e9 < sum(one.total for one in moved) < 1.9e9


@pytest.mark.topology
@pytest.mark.campaign
@pytest.mark.optimised
@pytest.mark.timeout(900)
@pytest.mark.parametrize("topology", ["v5e:2x2", "h100:4"])
@pytest.mark.parametrize("name", campaign(list(CASES)))
def test_every_objective_and_attention_compiles(name, topology):
    case, devices = CASES[name], lib.absent_devices(topology)
    objective = case.make(dtype="bfloat16")
    objective = dataclasses.replace(objective, platform=Platform.of(devices))
    mesh = sharding.make_mesh(MeshConfig(2, 2, 1), devices)
    step = compile_step(objective, mesh, case.batches(), frozen=case.frozen())
    assert collectives.sent(collectives.collectives(step.as_text())) > 0
    assert math.isfinite(hlo.bytes_moved(step.as_text()))
