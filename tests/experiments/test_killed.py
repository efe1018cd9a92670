"""Sweeps of real runs: killed, stopped, and gone on with; nothing is done twice."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from tests_common import environment, sentences

from plmjax import Exit

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.alone,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

# Twelve trials of two texts, which all compile the same programs; one without text.
SWEEP = """
def get_config():
    return {
        "data": {
            "source": {"kind": "text", "document": "line", "paths": "PLACE/corpus.txt"},
            "length": 32,
        },
        "tokenizer": {"vocab_size": 120},
        "model": {
            "preset": "bert-tiny",
            "layers": 1, "width": 32, "heads": 2, "ffn_width": 64,
        },
        "train": {
            "batch": 8, "steps": 8, "evaluate_every_steps": 4,
            "checkpoint_every_steps": 4, "log_every_steps": 1, "tensorboard": False,
        },
    }


def get_hyper(hyper):
    grid = hyper.product([
        hyper.sweep("data.held_out_percent", [10, 12]),
        hyper.sweep("train.keep_checkpoints", [2, 3, 4, 5, 6, 7]),
    ])
    missing = hyper.fixed("data.source.paths", "PLACE/missing.txt")
    return hyper.chainit([grid[:4], missing, grid[4:]])
"""
COUNT, MISSING = 13, 4


class Watch(threading.Thread):
    """Looks at the trials' processes until it is told to stop."""

    def __init__(self, root: Path):
        super().__init__(daemon=True)
        self.root = root
        self.most_at_once = self.most_of_one = 0
        self.cores: set[tuple[int, ...]] = set()
        self._over = threading.Event()

    def run(self):
        while not self._over.wait(0.02):
            found = trial_processes(self.root)
            self.most_at_once = max(self.most_at_once, len(found))
            times = Counter(name for _, name in found).values()
            self.most_of_one = max(self.most_of_one, *times, 0)
            self.cores |= {cores for pid, _ in found if (cores := cores_of(pid))}

    def stop(self):
        self._over.set()
        self.join()


def cores_of(pid: int) -> tuple[int, ...]:
    """Returns the cores of a trial; none while it still settles on them."""
    try:
        cores = tuple(sorted(os.sched_getaffinity(pid)))
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ()
    # Read in this order: the last step of settling is to become this command.
    return cores if b"plmjax" in words else ()


def trial_processes(root: Path) -> list[tuple[int, str]]:
    """Returns (process, workdir's name) of each trial that runs under `root`."""
    place = f"--workdir={root}/trials/"
    found: dict[int, tuple[int, str]] = {}  # process -> (its parent, name)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
            names = [w.removeprefix(place) for w in words if w.startswith(place)]
            if names:
                # What stands before the last ")" is the command's name.
                state = (path / "stat").read_text().rpartition(")")[2].split()
                found[int(path.name)] = (int(state[1]), names[0])
        except (OSError, UnicodeDecodeError):
            continue
    # A trial that starts a program (git) is two of one name until the exec.
    return [
        (pid, name)
        for pid, (parent, name) in found.items()
        if found.get(parent, (0, ""))[1] != name
    ]


def wait_for(condition, what: str, of: subprocess.Popen | None = None) -> None:
    """Waits for something to happen while a process runs."""
    end = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < end, f"{what}: not after 400 s"
        assert of is None or of.poll() is None, f"the sweep ended before {what}"
        time.sleep(0.05)


@pytest.fixture
def place(tmp_path):
    """A directory with a sweep; whatever a failed test leaves running is ended."""
    (tmp_path / "corpus.txt").write_text("\n".join(sentences(400)) + "\n")
    text = SWEEP.replace("PLACE", str(tmp_path))
    (tmp_path / "sweep_file.py").write_text(text)
    yield tmp_path
    for pid, _ in trial_processes(tmp_path / "sweep"):
        os.kill(pid, signal.SIGKILL)


def start(place: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "plmjax", "sweep", "--parallel=2"]
    command += [f"--config={place}/sweep_file.py", f"--workdir={place}/sweep", *more]
    with open(place / "log.txt", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment())


def finished(place: Path) -> dict[str, tuple[int, int]]:
    """Returns {trial: (size, time)} of the files that finished trials have."""
    scores = (place / "sweep" / "trials").glob("*/scores.json")
    return {
        str(file): (file.stat().st_size, file.stat().st_mtime_ns)
        for path in scores
        for file in path.parent.rglob("*")
        if file.is_file()
    }


def count_finished(place: Path) -> int:
    return len([*(place / "sweep" / "trials").glob("*/scores.json")])


def idle(place: Path) -> dict[str, tuple[int, int]]:
    """Returns the files of finished trials once their processes have ended."""
    wait_for(lambda: not trial_processes(place / "sweep"), "trials end")
    return finished(place)


@pytest.mark.timeout(1200)
def test_a_sweep_survives_being_killed_and_stopped(place):
    root = place / "sweep"
    watch = Watch(root)
    watch.start()
    try:
        process = start(place)
        wait_for(lambda: count_finished(place) >= 2, "two trials finish", process)
        wait_for(lambda: len(trial_processes(root)) == 2, "two trials run", process)
        process.kill()
        process.wait()
        # Nobody is left to tell the trials: they hear of it themselves, and save.
        before = idle(place)
        assert before and count_finished(place) < 7

        process = start(place)
        wait_for(lambda: count_finished(place) >= 7, "seven trials finish", process)
        wait_for(lambda: trial_processes(root), "a trial runs", process)
        process.terminate()
        assert process.wait(120) == Exit.RESUMABLE
        assert not trial_processes(root), "the sweep left before its trials"
        after = finished(place)
        assert before.items() <= after.items(), "a finished trial was run again"

        assert start(place).wait(400) == Exit.USAGE
        assert after.items() <= finished(place).items()
    finally:
        watch.stop()
    assert watch.most_of_one == 1 and watch.most_at_once == 2
    if len(everything := os.sched_getaffinity(0)) > 1:
        assert watch.cores and tuple(sorted(everything)) not in watch.cores
    check_results(place)

    # What was missing comes, and the one trial that lacked it is tried again.
    (place / "missing.txt").write_text((place / "corpus.txt").read_text())
    kept = finished(place)
    assert start(place, "--retry_failed").wait(400) == Exit.OK
    assert kept.items() <= finished(place).items()
    assert count_finished(place) == COUNT
    assert "<figure>" in (root / "report.html").read_text()


def check_results(place: Path) -> None:
    """Every trial stands in the table, and has done each step once."""
    root = place / "sweep"
    found = json.loads((root / "results.json").read_text())
    states = {t["trial"]: t["state"] for t in found["trials"]}
    assert states == {n: "finished" for n in range(COUNT)} | {MISSING: "failed"}
    values = [t["value"] for t in found["trials"][:-1]]
    assert values == sorted(values) and found["trials"][-1]["code"] == Exit.USAGE
    assert "missing.txt" in " ".join(found["trials"][-1]["log"])
    assert len([*(root / "texts").iterdir()]) == 2
    for number in range(COUNT):
        log = (root / "trials" / f"{number:04d}" / "log.txt").read_text()
        assert "is in use by" not in log
        steps = [
            record["step"]
            for record in map(json.loads, metrics(root, number))
            if record["kind"] == "train"
        ]
        assert steps == ([] if number == MISSING else [*range(1, 9)])
    log = (place / "log.txt").read_text()
    assert f"Trial {MISSING} FAILED (exit code 2)" in log
    starts = Counter(re.findall(r"^Trial (\d+): ", log, re.MULTILINE))
    # Twice two trials were under way when the sweep ended.
    assert set(starts) == {str(n) for n in range(COUNT)}
    assert sum(starts.values()) <= COUNT + 4


def metrics(root: Path, number: int) -> list[str]:
    path = root / "trials" / f"{number:04d}" / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []
