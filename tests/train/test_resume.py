"""Stopping and going on: the result is the run that nobody interrupted, bit for bit."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tests_common import TINY, USERS, environment, once, run_cli, sentences

from plmjax.checkpoint.checkpoints import Checkpoints

# Long enough to be stopped in its midst; records and checkpoints fall on steps of their
# own, so that a stop falls between them.
LONG = (
    "--config.train.steps=200",
    "--config.train.log_every_steps=3",
    "--config.train.evaluate_every_steps=50",
    "--config.train.checkpoint_every_steps=20",
)


def flat_state(workdir) -> dict[str, np.ndarray]:
    """Returns every leaf of the newest checkpoint, read without plmjax's own types.

    By one process on one device, however many have written it.
    """
    from orbax.checkpoint import v1 as ocp

    from plmjax import tree

    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.good_step()
    path = str(checkpoints.path(step) / "state")
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        ocp.metadata(path).metadata,
    )
    leaves = {}
    tree.map_named(
        lambda name, x: leaves.__setitem__(name, np.asarray(x)),
        ocp.load(path, abstract),
    )
    return leaves


def assert_same_run(a, b) -> None:
    """Two workdirs hold equal states and equal training records."""
    one, two = flat_state(a), flat_state(b)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert records(a) == records(b)


def records(workdir) -> list[dict]:
    """Returns metrics.jsonl without what depends on the clock."""
    clock = ("seconds", "tokens_per_second", "mfu")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in clock} for line in lines
    ]


def run_unbroken(factory, name: str, **environment: str):
    """Returns (arguments, workdir, environment) of 200 steps in one run."""

    def make(folder):
        (folder / "corpus.txt").write_text("\n".join(sentences(400)) + "\n")
        at = f"--workdir={folder / 'run'}"
        found = run_cli("pretrain", *arguments(folder), at, **environment)
        assert found.returncode == 0, found.stderr

    def arguments(folder):
        return (*TINY, *LONG, f"--config.data.source.paths={folder / 'corpus.txt'}")

    folder = once(factory, name, make)
    return arguments(folder), folder / "run", environment


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run_unbroken(tmp_path_factory, "unbroken")


@pytest.fixture(scope="module")
def as_users(tmp_path_factory):
    """The same run, compiled as users have it."""
    return run_unbroken(tmp_path_factory, "unbroken-users", **USERS)


@pytest.mark.parametrize(
    "run",
    [
        pytest.param("unbroken", marks=pytest.mark.campaign),
        pytest.param("as_users", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(run, request, tmp_path):
    arguments, reference, more = request.getfixturevalue(run)
    workdir = f"--workdir={tmp_path / 'run'}"
    process = start(arguments, tmp_path / "run", **more)
    wait_for_step(tmp_path / "run", 33)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 75, out
    assert "Run the same command again" in out
    found = run_cli("pretrain", *arguments, workdir, **more)
    assert found.returncode == 0, found.stderr
    assert "Going on from step" in found.stdout
    assert_same_run(reference, tmp_path / "run")


def start(arguments, workdir, **more: str):
    """Starts a run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "plmjax", "pretrain", *arguments]
        + [f"--workdir={workdir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**more),
    )


def wait_for_step(workdir, step: int, timeout: float = 120) -> None:
    """Returns once metrics.jsonl has a record of a step."""
    path, end = workdir / "metrics.jsonl", time.monotonic() + timeout
    while time.monotonic() < end:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {timeout} s")


@pytest.mark.slow
def test_killed_once(as_users, tmp_path):
    """Between two records; tests/reliability/ kills at other moments, and again."""
    arguments, reference, more = as_users
    chance = random.Random(0)
    process = start(arguments, tmp_path / "run", **more)
    wait_for_step(tmp_path / "run", 3 * chance.randint(8, 40))
    time.sleep(chance.random() * 0.02)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    found = run_cli("pretrain", *arguments, f"--workdir={tmp_path / 'run'}", **more)
    assert found.returncode == 0, found.stderr
    assert "Going on from step" in found.stdout
    assert_same_run(reference, tmp_path / "run")


@pytest.mark.campaign
def test_a_stretched_run_goes_on_with_a_warning(unbroken, tmp_path):
    arguments, reference, _ = unbroken
    shutil.copytree(reference, tmp_path / "run")
    arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    found = run_cli("pretrain", *arguments, "--config.train.steps=203")
    assert found.returncode == 0, found.stderr
    assert "train.steps changes from 200 to 203" in found.stdout
    assert "schedule is stretched" in found.stdout
    assert "Going on from step 200" in found.stdout
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == 203
