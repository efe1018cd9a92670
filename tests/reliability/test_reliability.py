"""The programs of this folder in small; docs/reliability.md says what they found."""

import collections
import os
import random
import subprocess
import sys
from pathlib import Path

import chaos
import fuzz
import growth
import mutations
import pytest
import runs
import variants
import virtual
from tests_common import campaign

# A shared machine may be slow; each process has a limit of its own besides.
pytestmark = pytest.mark.timeout(900)


@pytest.mark.campaign
@pytest.mark.alone
def test_faults_at_random_moments_lose_nothing(tmp_path):
    case = runs.Case(tmp_path, "nsp", steps=60)
    count = chaos.campaign(case, seed=5, rounds=6, a_run=6, kinds=chaos.faults.KINDS)
    assert not count.problems
    assert count.done == 6 and count.runs >= 1 and count.steps_lost == 0


@pytest.mark.campaign
def test_what_watches_a_run_does_not_change_it(tmp_path):
    case = runs.Case(tmp_path, "mlm", steps=40)
    assert variants.check(case, variants.ALL_AT_ONCE) == []


@pytest.mark.slow
@pytest.mark.parametrize("cases", campaign([40, 2000], 40))
def test_changed_files_are_refused_in_words(tmp_path, cases):
    """In a process of its own, whose memory is limited."""
    program = Path(fuzz.__file__)
    found = subprocess.run(
        [sys.executable, str(program), f"--cases={cases}", "--seed=1"],
        capture_output=True,
        text=True,
        timeout=800,
        env=os.environ | {"TMPDIR": str(tmp_path), "JAX_NUM_CPU_DEVICES": "1"},
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert '"refused"' in found.stdout


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("devices", campaign(virtual.DEVICES, 2))
def test_virtual_devices_do_not_hang(devices):
    assert not virtual.hangs(devices)


@pytest.mark.slow
@pytest.mark.alone
def test_a_hang_of_virtual_devices_would_be_seen(monkeypatch):
    monkeypatch.setattr(virtual, "LIMIT_SECONDS", 1.0)
    assert virtual.hangs(2, "import time; time.sleep(60)")


@pytest.mark.campaign
@pytest.mark.alone
def test_nothing_grows_with_the_steps(tmp_path):
    case = runs.Case(tmp_path, "mlm", 600, checkpoint_every=30, evaluate_every=60)
    case.write_corpus()
    found = growth.grown(growth.watch(case, tmp_path / "run"), case.steps)
    # So short a run still fills its pools; the figure is that of a long one.
    assert found["memory_growth"] < 0.1
    # One that a save leaves behind would be 12 by now.
    assert found["files_growth"] < 6 and found["threads_growth"] < 6


def test_a_leak_would_be_seen():
    samples = [
        growth.Sample(step, 10**9 + step * 10**6, 10 + step // 100, 5)
        for step in range(1, 1000)
    ]
    found = growth.grown(samples, 1000)
    assert found["memory_growth"] > 0.3 and found["files_growth"] > 5


def test_every_mutation_changes_most_files():
    content = b'{"a": [1, {"b": "text"}], "c": {"d": null, "e": 12}}'
    for change in (mutations.bytes_changed, mutations.json_changed):
        changed = collections.Counter(
            change(content, random.Random(seed)) for seed in range(200)
        )
        assert changed[content] < 40 and len(changed) > 50
