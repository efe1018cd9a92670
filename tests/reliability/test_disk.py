"""A disk that is read-only, fails, or is slow: said by name; nothing hangs (R10)."""

import errno
import os
import subprocess
import sys
import time

import pytest
from tests_common import TINY, environment, run_cli, sentences

from plmjax import Exit, cli

pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]

READ_ONLY = """
set -e
mkdir disk && mount -t tmpfs -o size=64m none disk
cp -r run disk/run && mount -o remount,ro disk
set +e
run() {{ {python} -m plmjax "$@" >> said.txt 2>&1; echo $1 $?; }}
run evaluate --workdir=disk/run
run pretrain {options} --workdir=disk/run
run export --workdir=disk/run --to=disk/export
run export --workdir=disk/run --to=export
run doctor --workdir=disk/run --num_processes=1
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder of a corpus and a finished run, the arguments it was started with)."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "corpus.txt").write_text("\n".join(sentences(400)) + "\n")
    arguments = (*TINY, f"--config.data.source.paths={folder / 'corpus.txt'}")
    found = run_cli("pretrain", *arguments, f"--workdir={folder / 'run'}")
    assert found.returncode == Exit.OK, found.stderr
    return folder, arguments


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
def test_a_read_only_disk(run):
    folder, arguments = run
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    script = READ_ONLY.format(python=sys.executable, options=" ".join(arguments))
    found = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        env=environment(),
    )
    said = (folder / "said.txt").read_text()
    assert found.stdout.split("\n")[:-1] == [
        "evaluate 0",  # Reading needs no writing.
        "pretrain 5",
        "export 5",
        "export 0",
        "doctor 5",
    ], said + found.stderr
    assert "--workdir=disk/run cannot be written: Read-only file system" in said
    assert "disk/export cannot be written" in said
    assert "Traceback" not in said and "bug" not in said


@pytest.fixture
def pretrain(run, tmp_path, capsys):
    """pretrain(*more) -> (exit code, seconds, what was said), in this process."""

    def start(*more: str):
        begin = time.monotonic()
        arguments = ["pretrain", *run[1], f"--workdir={tmp_path / 'run'}", *more]
        code = cli.main(arguments)
        said = capsys.readouterr()
        return code, time.monotonic() - begin, said.out + said.err

    return start


@pytest.mark.campaign
def test_a_disk_that_fails_under_a_save(pretrain, monkeypatch):
    """Training goes on; the end says that the last save is missing, with its path."""
    fsync = os.fsync

    def failing(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        if "/checkpoints/step_" in path:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    code, _, said = pretrain()
    assert code == Exit.DISK
    assert "step 10 could not be written" in said and "Input/output error" in said
    assert "step 10/10" in said  # All steps were done.
    monkeypatch.undo()
    code, _, said = pretrain()
    assert code == Exit.OK, said


@pytest.mark.campaign
def test_a_disk_that_fails_under_a_record(pretrain, tmp_path, monkeypatch):
    """It is kept in memory; once the disk takes it, the file is whole."""
    from plmjax.train import metrics

    def failing(path, mode="r", *rest, **more):
        if "a" in mode and sick():
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return open(path, mode, *rest, **more)

    def sick(calls=[]) -> bool:  # noqa: B006
        calls.append(None)
        return len(calls) < 6

    monkeypatch.setattr(metrics, "open", failing, raising=False)
    code, _, said = pretrain()
    assert code == Exit.OK, said
    assert said.count("metrics.jsonl cannot be written (Input/output error)") == 1
    steps = [r["step"] for r in metrics.read_metrics(tmp_path / "run/metrics.jsonl")]
    assert steps == sorted(steps) and set(steps) >= set(range(1, 11))


@pytest.mark.campaign
def test_a_disk_that_takes_no_record_at_all(pretrain, tmp_path, monkeypatch):
    from plmjax.train import metrics

    def failing(*_, **more):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(metrics, "open", failing, raising=False)
    code, _, said = pretrain()
    assert code == Exit.DISK and "could not be written; the curves" in said, said
    monkeypatch.undo()
    code, _, said = pretrain()
    assert code == Exit.OK and "Exported step 10" in said, said


@pytest.mark.campaign
def test_a_slow_disk_costs_its_time_and_no_more(pretrain, monkeypatch):
    fsync, calls = os.fsync, []

    def slow(handle):
        calls.append(handle)
        time.sleep(0.2)
        return fsync(handle)

    monkeypatch.setattr(os, "fsync", slow)
    code, seconds, said = pretrain()
    assert code == Exit.OK, said
    assert calls and seconds < 60 + 0.2 * len(calls)
