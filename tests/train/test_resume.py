"""Stopping and going on: the result is the run that nobody interrupted, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from tests_common import TINY, environment, run_cli

from plmjax.train.checkpoint import Checkpoints


def flat_state(workdir) -> dict[str, np.ndarray]:
    """Returns every leaf of the newest checkpoint, read without plmjax's own types."""
    from orbax.checkpoint import v1 as ocp

    from plmjax import tree

    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.good_step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Shardings come from the file.
        state = ocp.load(checkpoints.path(step) / "state")
    leaves = {}
    tree.map_named(lambda name, x: leaves.__setitem__(name, np.asarray(x)), state)
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
    clock = ("seconds", "tokens_per_second")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in clock} for line in lines
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(arguments, workdir) of ten steps in one run."""
    from tests_common import sentences

    root = tmp_path_factory.mktemp("unbroken")
    corpus = root / "corpus.txt"
    corpus.write_text("\n".join(sentences(400)) + "\n")
    arguments = (*TINY, f"--config.data.source.paths={corpus}")
    found = run_cli("pretrain", *arguments, f"--workdir={root / 'run'}")
    assert found.returncode == 0, found.stderr
    return arguments, root / "run"


def test_five_steps_and_five_more_are_ten(unbroken, tmp_path):
    arguments, reference = unbroken
    workdir = f"--workdir={tmp_path / 'run'}"
    # The schedule must be the ten steps' own: stop by a signal, not by fewer steps.
    process = start(arguments, tmp_path / "run")
    wait_for_step(tmp_path / "run", 4)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode in (75, 0), out
    found = run_cli("pretrain", *arguments, workdir)
    assert found.returncode == 0, found.stderr
    assert_same_run(reference, tmp_path / "run")


def start(arguments, workdir):
    """Starts a run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "plmjax", "pretrain", *arguments]
        + [f"--workdir={workdir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )


def wait_for_step(workdir, step: int, timeout: float = 120) -> None:
    """Returns once metrics.jsonl has a record of a step."""
    path, end = workdir / "metrics.jsonl", time.monotonic() + timeout
    while time.monotonic() < end:
        if path.exists() and f'"step": {step},' in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {timeout} s")


def kill_and_go_on(arguments, workdir, seed: int) -> None:
    """Kills a run at a random moment of its training, then lets it finish."""
    chance = random.Random(seed)
    process = start(arguments, workdir)
    wait_for_step(workdir, chance.randint(1, 9))
    time.sleep(chance.random() * 0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    found = run_cli("pretrain", *arguments, f"--workdir={workdir}")
    assert found.returncode == 0, found.stderr


def test_killed_once(unbroken, tmp_path):
    arguments, reference = unbroken
    kill_and_go_on(arguments, tmp_path / "run", 0)
    assert_same_run(reference, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_five_times_while_saving_at_every_step(unbroken, tmp_path):
    arguments, reference = unbroken
    arguments = (*arguments, "--config.train.checkpoint_every_steps=1")
    for seed in range(1, 6):
        workdir = tmp_path / f"run{seed}"
        kill_and_go_on(arguments, workdir, seed)
        one, two = flat_state(reference), flat_state(workdir)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_a_finished_run_says_so_and_a_changed_one_is_refused(unbroken):
    arguments, reference = unbroken
    workdir = f"--workdir={reference}"
    found = run_cli("pretrain", *arguments, workdir)
    assert found.returncode == 0 and "is finished: 10 of 10" in found.stdout
    found = run_cli("pretrain", *arguments, workdir, "--config.train.batch=16")
    assert found.returncode == 2
    assert "train.batch: 8 -> 16" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_stretched_run_goes_on_with_a_warning(unbroken, tmp_path):
    arguments, reference = unbroken
    shutil.copytree(reference, tmp_path / "run")
    arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    found = run_cli("pretrain", *arguments, "--config.train.steps=12")
    assert found.returncode == 0, found.stderr
    assert "train.steps changes from 10 to 12" in found.stdout
    assert "schedule is stretched" in found.stdout
    assert "Going on from step 10" in found.stdout
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == 12


def test_a_damaged_newest_checkpoint_is_set_aside(unbroken, tmp_path):
    arguments, reference = unbroken
    shutil.copytree(reference, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    newest = checkpoints.path(checkpoints.steps()[-1])
    data = max(newest.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    found = run_cli("pretrain", *arguments)
    assert found.returncode == 0, found.stderr
    assert "does not match its SHA-256" in found.stdout
    assert "Going on from step 5" in found.stdout
    assert (tmp_path / "run/checkpoints/damaged/step_00000010").is_dir()
    assert_same_run(reference, tmp_path / "run")
