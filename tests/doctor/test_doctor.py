"""The doctor: a sound machine is called sound, and each ailment is found by name."""

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata

import jax
import pytest
from tests_common import run_cli

from plmjax import Exit, machine
from plmjax.doctor import (
    check,
    clock,
    devices,
    disk,
    environment,
    processes,
    report,
    versions,
)


def by_name(checks: list[check.Check]) -> dict[str, check.Check]:
    return {found.name: found for found in checks}


@pytest.mark.slow
def test_a_sound_machine(tmp_path):
    found = run_cli("doctor", f"--workdir={tmp_path}", "--json", timeout=200)
    assert found.returncode == Exit.OK, found.stdout + found.stderr
    told = json.loads(found.stdout)
    assert told["problems"] == 0
    names = {one["name"] for one in told["checks"] if one["status"] == "ok"}
    assert names >= {
        *("plmjax", "python", "packages", "devices", "product", "sum", "processes"),
        *("workdir", "rename", "lock", "file times", "clock"),
    }
    assert os.listdir(tmp_path) == []


def test_a_jax_that_cannot_be_imported_is_a_finding(tmp_path):
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise ImportError('no libcudnn')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    found = run_cli("doctor", "--num_processes=1", "--json", PYTHONPATH=path)
    assert found.returncode == Exit.USAGE, found.stdout
    told = {one["name"]: one for one in json.loads(found.stdout)["checks"]}
    assert told["devices"]["status"] == "problem"
    assert "no libcudnn" in told["devices"]["seen"]
    assert told["lock"]["status"] == told["clock"]["status"] == "ok"
    assert found.stderr == ""


# --- what hangs or crashes


def test_what_hangs_is_ended_with_all_that_it_started(tmp_path):
    inner = f"import time; time.sleep(1.5); open({str(tmp_path / 'late')!r}, 'w')"
    program = (
        "import subprocess, sys, time;"
        f"subprocess.Popen([sys.executable, '-c', {inner!r}]); time.sleep(60)"
    )
    begin = time.monotonic()
    assert check.output([sys.executable, "-c", program], 1.0) is None
    assert time.monotonic() - begin < 20
    time.sleep(2)
    assert not (tmp_path / "late").exists()


def test_a_probe_that_hangs_or_crashes_is_a_problem(monkeypatch):
    monkeypatch.setattr(check, "output", lambda *_: None)
    (hung,) = check.isolated("disk", (".",), 3, "Look at it.")
    assert hung.status == "problem" and "did not end within 3 s" in hung.seen
    assert hung.fix == "Look at it."
    monkeypatch.undo()
    (failed,) = check.isolated("nosuch", (), 30, "")
    assert failed.status == "problem" and "No module named" in failed.seen
    monkeypatch.setattr(check, "output", lambda *_: (-11, "", ""))
    (crashed,) = check.isolated("devices", (), 30, "")
    assert crashed.status == "problem" and "SIGSEGV" in crashed.seen


def test_processes_that_do_not_meet_in_time(monkeypatch):
    monkeypatch.setattr(processes, "SECONDS", 0.2)
    begin = time.monotonic()
    (found,) = processes.checks("2")
    assert found.status == "problem" and "2 of 2 still waited" in found.seen
    assert time.monotonic() - begin < 20


def test_exit_codes_and_the_table():
    full = check.problem("space", "none", "Free some.", disk=True)
    old = check.problem("jax", "is old", "pip install jax")
    fine = check.ok("python", "3.11")
    proxy = check.warning("proxies", "set", "Unset them.")
    assert report.exit_code([fine, proxy]) == Exit.OK
    assert report.exit_code([fine, full]) == Exit.DISK
    assert report.exit_code([old, full]) == Exit.USAGE
    text = report.as_text([fine, proxy, full])
    assert "-> Unset them." in text and text.endswith("1 problem, 1 warning")
    assert report.as_text([fine]).endswith("No problems.")


# --- versions


def test_packages_that_are_old_missing_or_do_not_fit(monkeypatch):
    asked = ["jax>=99", "no-such-thing>=1", "numpy>=1", 'torch>=99; extra == "peer"']
    requires = metadata.requires
    monkeypatch.setattr(
        metadata, "requires", lambda n: asked if n == "plmjax" else requires(n)
    )
    found = by_name(versions.checks())
    assert found["jax"].status == "problem" and ">=99 is needed" in found["jax"].seen
    assert "is missing" in found["no-such-thing"].seen
    assert not {"numpy", "torch", "packages"} & found.keys()


def test_a_plugin_of_another_jaxlib(monkeypatch, tmp_path):
    info = tmp_path / "jax_cuda13_plugin-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: jax-cuda13-plugin\nVersion: 0.1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = by_name(versions.checks())["jax-cuda13-plugin"]
    assert found.status == "warning" and "0.1 beside jaxlib" in found.seen


# --- devices


def test_all_local_devices_are_seen_and_summed_over():
    found = by_name(devices.checks())
    count = jax.local_device_count()
    assert found["devices"].seen.startswith(f"{count} x ")
    assert found["sum"].seen == f"over {count} devices, exact"
    assert found["product"].seen.endswith(f"exact on {count} devices")
    assert found["threads"].status == "ok"


def test_a_device_that_computes_wrongly(monkeypatch):
    put = jax.device_put
    last = jax.local_devices()[-1]

    def lying(x, device=None):
        return put(x + 1e-3 * (device == last) if device == last else x, device)

    monkeypatch.setattr(jax, "device_put", lying)
    found = devices._product(jax.local_devices())
    assert found.status == "problem" and str(last) in found.seen


def test_too_few_threads_for_virtual_devices(monkeypatch):
    monkeypatch.setenv("NPROC", "8")
    (found,) = devices._threads(jax.local_devices())
    assert found.status == "warning" and "NPROC=32" in found.fix


def test_an_accelerator_that_jax_does_not_see(monkeypatch, tmp_path):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(devices, "_GPU", (str(tmp_path / "nvidia0"),))
    (asked,) = devices._accelerators("cpu")
    assert asked.status == "warning" and "JAX_PLATFORMS=cpu" in asked.seen
    monkeypatch.delenv("JAX_PLATFORMS")
    (broken,) = devices._accelerators("cpu")
    assert broken.status == "problem" and ".[cuda]" in broken.fix
    assert devices._accelerators("gpu") == []


# --- environment


def checks_in(monkeypatch, **variables: str) -> dict[str, check.Check]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return by_name(environment.checks())


def test_part_of_slurm(monkeypatch):
    found = checks_in(monkeypatch, SLURM_JOB_ID="7", SLURM_NTASKS="2")
    assert found["cluster"].status == "warning"
    assert "no SLURM_STEP_NODELIST, SLURM_PROCID" in found["cluster"].seen
    more = {"SLURM_STEP_NODELIST": "a", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    found = checks_in(monkeypatch, **more)
    assert found["cluster"] == check.ok("cluster", "one of several processes (Slurm)")


def test_part_of_a_group(monkeypatch):
    found = checks_in(monkeypatch, PLMJAX_NUM_PROCESSES="2")
    assert found["cluster"].status == "problem"
    assert "--coordinator" in found["cluster"].seen


def test_proxies_and_the_hub(monkeypatch):
    variables = {"https_proxy": "http://a", "no_proxy": "b"}
    found = checks_in(monkeypatch, **variables)
    assert found["proxies"].status == "warning"
    assert "https_proxy set" in found["proxies"].seen
    assert "no_proxy" not in found["proxies"].seen
    assert found["Hugging Face"].seen.startswith("nothing is downloaded")


def test_few_open_files_and_little_memory(monkeypatch, tmp_path):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(environment, "memory_limit", lambda: 2_000_000_000)
    found = checks_in(monkeypatch)
    assert found["open files"].status == "warning"
    assert "ulimit -n 4096" in found["open files"].fix
    assert found["memory"].status == "warning" and "2.0 GB" in found["memory"].seen


def test_the_memory_of_a_control_group_and_its_parents(monkeypatch):
    files = {
        "/proc/self/cgroup": "0::/job/step\n",
        "/sys/fs/cgroup/job/step/memory.max": "max\n",
        "/sys/fs/cgroup/job/memory.max": "3000000000\n",
    }
    monkeypatch.setattr(machine, "read", lambda path: files.get(str(path), ""))
    assert machine.memory_limit() == 3_000_000_000
    files["/sys/fs/cgroup/job/memory.max"] = "max\n"
    assert machine.memory_limit() is None


# --- disk and clock


def test_a_disk_that_cannot_be_written():
    (found,) = disk.checks("/proc/run")
    assert "cannot be written" in found.seen
    assert report.exit_code([found]) == Exit.DISK


def test_a_full_disk(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = by_name(disk.checks(str(tmp_path / "new")))
    assert found["space"].status == "problem" and found["space"].disk
    assert "speed" not in found  # Nothing more is written to it.
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fails_while_it_is_tried(monkeypatch, tmp_path):
    def failing(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    (found,) = disk.checks(str(tmp_path))
    assert found.status == "problem" and found.disk
    assert "Input/output error" in found.seen


def test_a_file_system_without_locks(monkeypatch, tmp_path):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert "two processes can hold" in by_name(disk.checks(str(tmp_path)))["lock"].seen

    def refusing(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refusing)
    found = by_name(disk.checks(str(tmp_path)))["lock"]
    assert found.status == "problem" and "No locks available" in found.seen


@pytest.mark.parametrize("dead", [False, True])
def test_a_workdir_in_use(tmp_path, dead):
    pid = os.getpid()
    if dead:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        pid = process.pid
    with open(tmp_path / ".lock", "w") as lock:
        lock.write(f"process {pid} on {socket.gethostname()}")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = by_name(disk.checks(str(tmp_path)))["run"]
    assert held.status == ("problem" if dead else "warning")
    assert f"process {pid}" in held.seen
    assert by_name(disk.checks(str(tmp_path)))["run"].status == "ok"


def test_a_slow_disk_with_a_clock_of_its_own(monkeypatch, tmp_path):
    now = time.time
    monkeypatch.setattr(disk, "_SLOW_BYTES_PER_SECOND", 1e15)
    monkeypatch.setattr(disk.time, "time", lambda: now() - 100)
    found = by_name(disk.checks(str(tmp_path)))
    assert found["speed"].status == "warning"
    assert (
        found["file times"].status == "warning" and "+100" in found["file times"].seen
    )


def test_a_clock_that_jumps_or_stands_in_the_past(monkeypatch):
    now, calls = time.time, []

    def jumping():
        calls.append(None)
        return now() + 3 * (len(calls) > 1)

    monkeypatch.setattr(clock.time, "time", jumping)
    (found,) = clock.checks()
    assert found.status == "warning" and "jumped by +3" in found.seen
    monkeypatch.setattr(clock.time, "time", lambda: 1.0)
    (found,) = clock.checks()
    assert found.status == "problem" and "1970-01-01" in found.seen
