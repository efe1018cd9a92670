"""R9, R10: a disk that is full, slow, gone or read-only costs a save, not the run."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from checkpoint_common import assert_holds, save, shapes, state
from processes_common import environment

from plmjax import Exit, PlmjaxError, files
from plmjax.checkpoint import checkpoints as checkpoint
from plmjax.checkpoint import saving, states, storage
from plmjax.checkpoint.checkpoints import Checkpoints


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1, 2 and 3, and what they have said."""
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3, said.append)
    save(checkpoints, 1, 2, 3)
    return checkpoints, said


def assert_survived(checkpoints, said, step: int, reason: str) -> None:
    """A save has failed, loudly; nothing is left of it, and the next one works."""
    assert checkpoints.failure is not None
    assert checkpoints.failure.code == Exit.DISK
    assert f"WARNING: the checkpoint of step {step} could not be written" in said[-1]
    assert reason in said[-1]
    assert "last good checkpoint is step 3" in said[-1]
    assert not checkpoints.path(step).exists()
    assert checkpoints.good_step() == 3
    save(checkpoints, step + 1)
    assert checkpoints.failure is None
    assert checkpoints.steps() == [2, 3, step + 1]


def test_a_full_disk_is_seen_before_it_is_written_to(saved, monkeypatch):
    checkpoints, said = saved
    with monkeypatch.context() as patch:
        patch.setattr(storage.Local, "free", lambda _: 10)
        save(checkpoints, 4)
    assert_survived(checkpoints, said, 4, "no space: a checkpoint needs 0.0 MB")


# Where the disk may give up, and how it does.
PLACES = {
    "making the folder": (storage.Local, "make", 30, "Read-only file system"),
    "the copy of the state": (states, "_catch_up", 28, "No space left on device"),
    "the state": (states._Orbax, "join", 5, "Input/output error"),
    "files of ours": (files, "write_file", 28, "No space left on device"),
    "waiting for the disk": (storage.Local, "fsync", 5, "Input/output error"),
    "reading back": (storage.Local, "digest", 116, "Stale file handle"),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_error_in_every_place_of_a_save(saved, monkeypatch, place):
    checkpoints, said = saved
    owner, name, number, told = PLACES[place]

    def fail(*_, **__):
        raise OSError(number, told)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        save(checkpoints, 4)
    assert_survived(checkpoints, said, 4, told)


def test_old_checkpoints_that_cannot_be_removed_are_no_failure(saved, monkeypatch):
    checkpoints, said = saved

    def fail(*_):
        raise OSError(5, "the disk gives up")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_remove", fail)
        save(checkpoints, 4)
    assert checkpoints.failure is None and "stay: [Errno 5] the disk" in said[-1]
    assert checkpoints.steps() == [1, 2, 3, 4]
    save(checkpoints, 5)
    assert checkpoints.steps() == [3, 4, 5]


def test_a_directory_that_vanishes_is_made_again(saved):
    checkpoints, said = saved
    shutil.rmtree(checkpoints.path(3).parent)
    assert checkpoints.steps() == [] and checkpoints.best() is None
    save(checkpoints, 4)
    assert checkpoints.failure is None and checkpoints.steps() == [4]
    assert_holds(checkpoints.load(4, shapes()), 4)


def test_a_directory_that_vanishes_during_a_save(saved, monkeypatch):
    checkpoints, said = saved
    finish = states._Orbax.finish

    def vanish(*arguments):
        finish(*arguments)
        shutil.rmtree(checkpoints.path(3).parent)

    with monkeypatch.context() as patch:
        patch.setattr(states._Orbax, "finish", vanish)
        save(checkpoints, 4)
    assert checkpoints.failure is not None
    assert "There is no good checkpoint yet" in said[-1]
    save(checkpoints, 5)
    assert checkpoints.failure is None and checkpoints.good_step() == 5


def test_a_directory_that_cannot_be_listed(saved, monkeypatch):
    checkpoints, said = saved

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage.Local, "entries", fail)
    # Training goes on: it has no best one, and cannot save.
    assert checkpoints.best() is None
    save(checkpoints, 4)
    assert checkpoints.failure is not None
    # A start is no start from nothing.
    for ask in (
        checkpoints.steps,
        checkpoints.good_step,
        checkpoints.remove_unfinished,
    ):
        with pytest.raises(PlmjaxError, match="cannot be reached.*Input") as caught:
            ask()
        assert caught.value.code == Exit.DISK


def test_training_does_not_wait_for_a_slow_disk(saved, monkeypatch):
    checkpoints, said = saved
    go, finish = threading.Event(), states._Orbax.finish

    def slow(*arguments):
        assert go.wait(60)
        finish(*arguments)

    monkeypatch.setattr(checkpoint, "_PATIENCE_SECONDS", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(states._Orbax, "finish", slow)
        before = time.monotonic()
        checkpoints.save(4, state(4), {})
        checkpoints.save(5, state(5), {})
        checkpoints.wait(patient=False)
        assert time.monotonic() - before < 30
    assert "step 5 could not be written: step 4 is still being written" in said[-1]
    assert checkpoints.failure is not None
    go.set()
    # The last one waits for it.
    checkpoints.save(6, state(6), {}, last=True)
    checkpoints.wait()
    assert checkpoints.failure is None and checkpoints.steps() == [3, 4, 6]
    assert_holds(checkpoints.load(4, shapes()), 4)


def test_a_disk_that_hangs_is_given_up(saved, monkeypatch):
    checkpoints, said = saved
    go, finish = threading.Event(), states._Orbax.finish

    def hang(*arguments):
        assert go.wait(60)
        finish(*arguments)

    monkeypatch.setattr(saving, "_LATE_SECONDS", 0.2)
    monkeypatch.setattr(saving, "_BARRIER_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "_SLACK_SECONDS", 0.2)
        patch.setattr(states._Orbax, "finish", hang)
        with checkpoints:
            checkpoints.save(4, state(4), {})
        assert "step 4 could not be written: the disk does not answer" in said[-1]
        # What is left of it could still arrive: nothing is written in the same place.
        save(checkpoints, 4)
        assert "step 4 could not be written: the save of step 4 is stuck" in said[-1]
    save(checkpoints, 5)
    assert checkpoints.failure is None and checkpoints.steps()[-1] == 5
    name = "checkpoint 4, local part"
    thread = next(t for t in threading.enumerate() if t.name == name)
    go.set()
    thread.join(60)
    save(checkpoints, 6)
    assert checkpoints.failure is None and checkpoints.good_step() == 6
    checkpoints.remove_unfinished()
    assert not checkpoints.path(4).exists()


LIMITED = """
import logging, resource, sys
logging.getLogger("absl").setLevel(logging.CRITICAL)  # As the command line does.
sys.path.insert(0, {tests!r})
import jax, jax.numpy as jnp
from checkpoint_common import Small
from plmjax.checkpoint.checkpoints import Checkpoints

def state(value):
    noise = jax.random.normal(jax.random.key(value), 1_000_000)
    return Small(jnp.int32(value), {{"a": noise}})

checkpoints = Checkpoints(sys.argv[1])
def save(step):
    checkpoints.save(step, state(step), {{}})
    checkpoints.wait()
    print(step, checkpoints.steps(), checkpoints.failure, flush=True)
save(1)
{body}
"""


def child(tmp_path, body: str, *before: str) -> list[str]:
    """Runs a program that saves 4 MB a step, after a shell's commands."""
    tests = str(Path(__file__).parent)
    program = tmp_path / "program.py"
    program.write_text(LIMITED.format(tests=tests, body=body))
    command = [sys.executable, str(program), str(tmp_path / "disk" / "checkpoints")]
    (tmp_path / "disk").mkdir()
    if before:
        shell = " && ".join([*before, 'exec "$@"'])
        command = ["unshare", "-rm", "bash", "-c", shell, "bash", *command]
    found = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(0, 1, 1, 0),
    )
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    return [line for line in found.stdout.splitlines() if "WARNING" not in line]


def test_a_limit_on_the_size_of_files(tmp_path):
    """The kernel breaks off the state's file at its second megabyte."""
    body = """
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
save(2)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
save(3)
"""
    one, two, three = child(tmp_path, body)
    assert one == "1 [1] None" and three == "3 [1, 3] None"
    assert two.startswith("2 [1] the checkpoint of step 2 could not be written")
    assert "File too large" in two
    names = sorted(p.name for p in (tmp_path / "disk/checkpoints").iterdir())
    assert names == ["step_00000001", "step_00000003"]


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
def test_a_small_disk_that_fills_up_and_turns_read_only(tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    # 24 MB: three checkpoints fit, and a filler comes while the fourth is written.
    body = """
import os, subprocess
from plmjax.checkpoint import states
disk = os.path.dirname(sys.argv[1])
save(2)
begin = states._catch_up
def filled():
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with open(disk + "/filler", "wb") as file:
        file.write(bytes(free - 1_000_000))
states._catch_up = filled
save(3)
states._catch_up = begin
save(4)
os.remove(disk + "/filler")
save(5)
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
save(6)
print(checkpoints.good_step())
subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
save(7)
print(sorted(os.listdir(sys.argv[1])))
"""
    mount = "mount -t tmpfs -o size=24m none disk"
    one, two, three, four, five, six, good, seven, names = child(tmp_path, body, mount)
    assert two == "2 [1, 2] None"
    assert three.startswith("3 [1, 2] the checkpoint of step 3") and "No space" in three
    assert four.startswith("4 [1, 2] the checkpoint of step 4") and "no space" in four
    assert five == "5 [2, 5] None"
    assert six.startswith("6 [2, 5] the checkpoint of step 6")
    assert "Read-only file system" in six and good == "5"
    assert seven == "7 [5, 7] None"
    assert names == "['step_00000005', 'step_00000007']"
