"""`plmjax launch --target=local`."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests_common import TINY, environment, run_cli

from plmjax import Exit, PlmjaxError
from plmjax.cli import main
from plmjax.launch import local
from plmjax.launch.group import Ended

# The launcher has one thread and no jax; this process may have both.
pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning"),
    pytest.mark.timeout(120),
]


@pytest.fixture
def devices(tmp_path):
    """devices(*names) -> a folder in the place of /dev."""

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


def variables(n, m=None, index=0, gpus=(), **environment):
    options = local.Options(num_processes=n, devices_per_process=m)
    found = local.variables(options, index, 4321, environment, gpus)
    assert found.pop("PYTHONUNBUFFERED") == "1"
    return found


def test_processes_of_cpus_get_their_place_devices_and_threads():
    assert variables(2, 4, index=1) == {
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:4321",
        "PLMJAX_NUM_PROCESSES": "2",
        "PLMJAX_PROCESS_ID": "1",
        "JAX_NUM_CPU_DEVICES": "4",
        "NPROC": str(max(os.cpu_count() or 1, 16)),
    }
    # Eight threads at least, and never fewer than somebody wanted.
    few = max(os.cpu_count() or 1, 8)
    assert variables(2) | {"NPROC": ""} == variables(2, JAX_NUM_CPU_DEVICES="1") | {
        "NPROC": ""
    }
    assert variables(2)["NPROC"] == str(few)
    assert variables(2, NPROC="999")["NPROC"] == "999"
    assert variables(2, JAX_NUM_CPU_DEVICES="64")["NPROC"] == "256"


def test_one_process_needs_no_coordinator():
    assert variables(1).keys() == {"NPROC"}


def test_gpus_are_divided():
    four = ["0", "1", "5", "7"]
    assert variables(2, gpus=four, index=1) | {"JAX_COORDINATOR_ADDRESS": ""} == {
        "JAX_COORDINATOR_ADDRESS": "",
        "PLMJAX_NUM_PROCESSES": "2",
        "PLMJAX_PROCESS_ID": "1",
        "CUDA_VISIBLE_DEVICES": "5,7",
        "JAX_LOCAL_DEVICE_IDS": "0,1",
    }
    assert variables(2, 1, gpus=four, index=1)["CUDA_VISIBLE_DEVICES"] == "1"
    assert variables(3, gpus=four, index=2)["CUDA_VISIBLE_DEVICES"] == "5"
    for n, m in ((5, None), (2, 3)):
        with pytest.raises(PlmjaxError, match="more than the 4 that are visible"):
            variables(n, m, gpus=four)
    assert "CUDA_VISIBLE_DEVICES" not in variables(9, gpus=four, JAX_PLATFORMS="cpu")


def test_which_gpus_are_visible(devices):
    folder = devices("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "null")
    assert local.visible_gpus({}, folder) == ["0", "1"]
    for given, seen in (("", []), ("3,1", ["3", "1"]), ("0,-1,1", ["0"])):
        environment = {"CUDA_VISIBLE_DEVICES": given}
        assert local.visible_gpus(environment, folder) == seen
    assert not local.has_tpus(folder)
    assert local.has_tpus(devices("accel0"))


@pytest.mark.parametrize(
    "codes, first, stopped, code",
    [
        ((0, 0), None, None, 0),
        ((0, 0), None, "SIGTERM", 0),
        ((143, 3), 1, None, 3),
        ((134, 3), 0, None, 75),  # the first one counts
        ((0, 75), 1, None, 75),
        ((137, 143), 0, None, 75),
        ((139, 143), 0, None, 139),
        ((75, 75), 0, "SIGTERM", 75),
        ((143, 3), 0, "SIGTERM", 3),
    ],
)
def test_the_exit_code(codes, first, stopped, code):
    assert local.exit_code(Ended(codes, first, stopped)) == code


COUNTS = """#!/usr/bin/env bash
echo "$PLMJAX_PROCESS_ID $JAX_COORDINATOR_ADDRESS $3" >> {log}
[ "$(wc -l < {log})" -gt {good} ] && exit 0
[ "$PLMJAX_PROCESS_ID" = 1 ] && {fails}
sleep 20
"""


@pytest.mark.parametrize(
    "fails, restarts, starts, code",
    [
        ("exit 75", 2, 2, 0),
        ("kill -9 $$", 1, 2, 0),
        ("exit 75", 0, 1, 75),
        ("kill -9 $$", 0, 1, 75),
        ("exit 3", 9, 1, 3),
    ],
)
def test_restarts(tools, tmp_path, capfd, fails, restarts, starts, code):
    log = tmp_path / "log"
    python = tools.add("fake", COUNTS.format(log=log, good=2, fails=fails))
    options = local.Options(
        num_processes=2, restarts=restarts, python=str(python), grace_seconds=5
    )
    assert local.launch(options, ["pretrain"], dry_run=False) == code
    rows = [line.split() for line in log.read_text().splitlines()]
    assert len(rows) == 2 * starts and {row[2] for row in rows} == {"pretrain"}
    # Each start has a port of its own.
    assert len({row[1] for row in rows}) == starts
    said = capfd.readouterr().err
    assert ("Process 1 " in said) and (("Starting again" in said) == (starts > 1))


def test_the_script_that_is_shown_runs_by_hand(tools, here, capfd, tmp_path):
    log = tmp_path / "log"
    python = tools.add("fake", COUNTS.format(log=log, good=99, fails="exit 6") + "exit")
    python.write_text(python.read_text().replace("sleep 20", "exit 0"))
    options = local.Options(num_processes=2, python=str(python))
    assert local.launch(options, ["it's $HOME"], dry_run=True) == 0
    script = capfd.readouterr().out
    assert not log.exists()
    found = subprocess.run(["bash"], input=script, text=True, cwd="/", timeout=30)
    assert found.returncode == 6
    rows = sorted(log.read_text().splitlines())
    assert [row.split(" ", 2)[2] for row in rows] == ["it's $HOME"] * 2
    assert [row[0] for row in rows] == ["0", "1"]


def test_two_real_processes_of_a_verb_and_their_code():
    common = ("launch", "--target=local", "--num_processes=2", "--")
    found = run_cli(*common, "evaluate", "--workdir=/nowhere")
    assert found.returncode == Exit.USAGE, found.stderr
    lines = found.stderr.splitlines()
    assert any(re.match(r"\[[01]\] error: .*/nowhere", line) for line in lines), lines
    said = r"\[launch\] Process [01] ended with exit code 2, the first of the failures."
    assert any(re.fullmatch(said, line) for line in lines), lines


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(600)
def test_a_training_of_two_goes_on_after_one_was_killed(corpus, tmp_path):
    command = [sys.executable, "-m", "plmjax", "launch", "--target=local"]
    options = ["--num_processes=2", "--restarts=1", "--grace_seconds=20", "--"]
    training = ["pretrain", *TINY, f"--config.data.source.paths={corpus}"]
    more = ["--config.train.steps=15", f"--workdir={tmp_path / 'run'}"]
    launcher = subprocess.Popen(
        [*command, *options, *training, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PLMJAX_HEARTBEAT_SECONDS="10"),
    )
    with launcher:
        try:
            assert launcher.stdout
            for line in launcher.stdout:
                if line.startswith("[0] step 5:"):
                    break
            os.kill(children(launcher.pid)[1], signal.SIGKILL)
            out, err = launcher.communicate(timeout=500)
        finally:
            launcher.kill()
    assert launcher.returncode == 0, err
    assert "Starting again, 1 of 1 times." in err
    assert "[0] step 15: held-out loss" in out


RECIPE = f"--config={Path(__file__).parents[2]}/configs/pretrain/bert_mini.py"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--target=cloud", "--", "pretrain"], "invalid choice: 'cloud'"),
        (["--", "pretrain"], "required: --target"),
        (["--target=local"], "no command follows --"),
        (["--target=local", "--"], "no command follows --"),
        (["--target=local", "--", "pretran"], "has no verb 'pretran'. Did you"),
        (["--target=local", "--", "pretrain", "--workdri=x"], "--workdri=x"),
        (["--target=local", "--", "pretrain", "--help"], "it only prints its help"),
        (["--target=local", "--", "launch", "--target=local"], "cannot be launched"),
        (["--target=local", "--", "export"], "required: --workdir, --to"),
        (
            ["--target=local", "--", "fill", "x", "--model=m", "--config.a=1"],
            "has no --config",
        ),
        (
            ["--target=slurm", "--", "pretrain", RECIPE, "--config.train.stpes=9"],
            "Did you mean train.steps",
        ),
        (["--target=sky", "--", "pretrain", f"{RECIPE}:3"], "bert_mini.py"),
        (["--target=local", "--", "finetune", RECIPE], "no key data"),
        (
            ["--target=sky", "--", "pretrain", "--config=elektra"],
            "Did you mean electra",
        ),
        (["--target=sky", "--", "pretrain", "--config=electra:huge"], "It has tiny,"),
        (["--target=sky", "--", "pretrain", "--lr=1"], "optimizer.learning_rate=1?"),
        (
            ["--target=gke", "--", "finetune", "--config.task.trian=x"],
            "Did you mean task.train",
        ),
        (
            ["--target=gke", "--", "pretrain", RECIPE, "--pretrain.train.steps=9"],
            "--pretrain.train.steps=9 has no effect",
        ),
        (
            ["--target=local", "--num_processes=0", "--", "pretrain"],
            "--num_processes=0 must be at least 1",
        ),
        (
            ["--target=local", "--num_processes=two", "--", "pretrain"],
            "invalid int value: 'two'",
        ),
        (
            ["--target=local", "--restarts=-1", "--", "pretrain"],
            "--restarts=-1 must be at least 0",
        ),
        (
            ["--target=local", "--zone=z", "--", "pretrain"],
            "--target=local has no option --zone. It belongs to tpu-vm.",
        ),
        (
            ["--target=local", "--python=/no/python", "--", "pretrain"],
            "--python=/no/python is not a program",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, message, capsys):
    assert main(["launch", *arguments]) == Exit.USAGE
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_fails_for_good_leaves_its_code_in_a_file(tmp_path, monkeypatch, capsys):
    note = tmp_path / "failure"
    monkeypatch.setenv("PLMJAX_FAILURE_FILE", str(note))
    assert main(["launch", "--target=local", "--", "nothing"]) == Exit.USAGE
    assert note.read_text() == "2\n"
    monkeypatch.setenv("PLMJAX_FAILURE_FILE", str(tmp_path / "no/failure"))
    assert main(["launch", "--target=local", "--", "nothing"]) == Exit.USAGE
    assert "no/failure" in capsys.readouterr().err
