"""Processes of a group end together, are heard by lines, and leave nobody behind."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from plmjax.launch import group
from plmjax.launch.group import Ended, Process, run_group

# The launcher has one thread and no jax; this process may have both.
pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning"),
    pytest.mark.timeout(60),
]


def python(code: str) -> Process:
    return Process((sys.executable, "-c", code), os.environ)


def run(*codes: str, grace: float = 10) -> tuple[Ended, list[str], list[str]]:
    out, err = io.BytesIO(), io.BytesIO()
    ended = run_group([python(code) for code in codes], grace, out, err)
    return ended, out.getvalue().decode().splitlines(), err.getvalue().decode().split()


def gone(pid: int, seconds: float = 10) -> bool:
    """Waits until there is no such process; a zombie counts as none."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


SLEEP = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('x'); " + SLEEP
)


def test_output_is_marked_line_by_line_and_streams_stay_apart():
    talk = "import sys; print('one\\ntwo'); print('three', end=''); "
    ended, out, err = run(talk, talk + "sys.stderr.write('bad')")
    assert ended == Ended((0, 0), None, None) and ended.code == 0
    for number in (0, 1):
        mine = [line for line in out if line.startswith(f"[{number}] ")]
        assert mine == [f"[{number}] {word}" for word in ("one", "two", "three")]
    assert err == ["[1]", "bad"]


def test_a_part_of_a_line_waits_for_its_end():
    slowly = (
        "import sys, time\n"
        "for part in ('a', 'b\\nc', 'd\\n'):\n"
        "  sys.stdout.write(part); sys.stdout.flush(); time.sleep(.2)"
    )
    assert run(slowly)[1] == ["[0] ab", "[0] cd"]


def test_a_line_without_end_does_not_fill_the_memory():
    ended, out, _ = run("print('x' * 5_000_000)")
    assert ended.code == 0 and len(out) > 1
    assert all(line.startswith("[0] x") for line in out)
    assert sum(len(line) - 4 for line in out) == 5_000_000


def test_the_first_failure_ends_the_others():
    start = time.monotonic()
    ended, _, _ = run(SLEEP, "import sys, time; time.sleep(.3); sys.exit(3)", SLEEP)
    assert ended == Ended((143, 3, 143), 1, None) and ended.code == 3
    assert time.monotonic() - start < 20


def test_who_does_not_go_is_killed_after_the_grace_time(capfd):
    fails = "import sys, time; time.sleep(1); sys.exit(6)"
    ended, _, _ = run(STUBBORN, fails, grace=0.5)
    assert ended == Ended((137, 6), 1, None)
    said = capfd.readouterr().err
    assert "process 1, which ended with exit code 6" in said
    assert "Killing 1 process." in said


def test_of_two_failures_at_once_the_cause_counts(monkeypatch):
    pump = group._Output.pump

    def late(self, seconds):
        time.sleep(1)
        return pump(self, seconds)

    monkeypatch.setattr(group._Output, "pump", late)
    abort = "import os; os.kill(os.getpid(), 9)"
    ended, _, _ = run(abort, "import sys; sys.exit(3)")
    assert ended == Ended((137, 3), 1, None)


def test_what_a_process_started_ends_with_the_group(tmp_path):
    note = tmp_path / "pid"
    starts = (
        "import subprocess, pathlib\n"
        f"child = subprocess.Popen(['sleep', '60'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))"
    )
    ended, _, _ = run(starts)
    assert ended.code == 0
    assert gone(int(note.read_text()))


def test_a_program_that_is_not_there_ends_those_that_are(tmp_path):
    note = tmp_path / "pid"
    first = python(f"import os; open({str(note)!r}, 'w').write('x'); {SLEEP}")
    missing = Process((str(tmp_path / "nothing"),), os.environ)
    before = signal.getsignal(signal.SIGHUP)  # ignored under nohup
    with pytest.raises(FileNotFoundError):
        run_group([first, missing], 1)
    assert signal.getsignal(signal.SIGHUP) == before


SAVES = """
import os, signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("pid", os.getpid(), flush=True)
time.sleep(60)
"""
LAUNCHER = """
import os, sys
from plmjax.launch import group, local
codes = sys.argv[2:]
processes = [group.Process((sys.executable, "-c", c), os.environ) for c in codes]
ended = group.run_group(processes, float(sys.argv[1]))
print(ended, file=sys.stderr, flush=True)
sys.exit(local.exit_code(ended))
"""


@pytest.fixture
def launcher():
    """launcher(grace, *codes) -> (the launcher, the pids of its processes)."""
    started = []

    def start(grace: float, *codes: str):
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(grace), *codes],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout
        lines = [process.stdout.readline() for _ in codes]
        pids = [int(line.split()[2]) for line in lines]
        return process, pids

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_handed_on_as_sigterm(launcher, number):
    process, pids = launcher(20, SAVES, SAVES)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]
    assert process.returncode == 75
    assert f"because of {number.name}" in err
    assert all(gone(pid) for pid in pids)


def test_a_second_signal_kills(launcher):
    deaf = SAVES.replace("signal.SIGTERM, save", "signal.SIGTERM, signal.SIG_IGN")
    process, pids = launcher(50, deaf, deaf)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert "codes=(137, 137)" in err and process.returncode == 75
    assert all(gone(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_processes_die_with_a_launcher_that_is_killed(launcher):
    process, pids = launcher(50, SAVES, STUBBORN.replace("print('x')", SHOW))
    process.kill()
    assert all(gone(pid) for pid in pids)


SHOW = "import os; print('pid', os.getpid(), flush=True)"


def test_when_the_reader_of_the_output_leaves_all_are_stopped(launcher):
    chatty = SAVES.replace(
        "time.sleep(60)", "while True: print('x', flush=True); time.sleep(.05)"
    )
    process, pids = launcher(20, chatty)
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=30)
    assert process.returncode == 75 and "reader of the output" in err
    assert all(gone(pid) for pid in pids)
    process.stdout = None
