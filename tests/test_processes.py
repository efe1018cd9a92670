"""Several processes: how they are found, and that their run is one process's run."""

import json
import signal
import time

import numpy as np
import pytest
from processes_common import spawn, start, succeed
from test_resume import assert_same_run, records
from tests_common import TINY, campaign, once, sentences

from plmjax import PlmjaxError, processes
from plmjax.checkpoint.checkpoints import Checkpoints

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def test_a_process_alone_is_alone():
    assert processes.find_group({}) is None
    assert processes.find_group({"PLMJAX_NUM_PROCESSES": "1"}) is None
    assert processes.initialise() is None
    assert processes.broadcast_from_first({"a": 1}) == {"a": 1} and processes.is_first()


def test_flags_and_environment_name_a_group():
    environment = {
        "JAX_COORDINATOR_ADDRESS": "host:1",
        "PLMJAX_NUM_PROCESSES": "4",
        "PLMJAX_PROCESS_ID": "3",
    }
    group = processes.find_group(environment | SLURM)
    assert group.arguments == {
        "coordinator_address": "host:1",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }
    # A flag lies over the environment.
    flags = processes.find_group(environment, "other:2", None, 0).arguments
    assert (flags["coordinator_address"], flags["process_id"]) == ("other:2", 0)


@pytest.mark.parametrize(
    "given, message",
    [
        ((None, 2, 0), "needs --coordinator"),
        (("host:1", 2, None), "needs --coordinator"),
        (("host:1", 2, 2), "must be between 0 and"),
        (("host", 2, 1), "must be HOST:PORT"),
    ],
)
def test_half_a_group_is_refused(given, message):
    with pytest.raises(PlmjaxError, match=message):
        processes.find_group({}, *given)
    with pytest.raises(PlmjaxError, match="PLMJAX_PROCESS_ID=x is not an integer"):
        processes.find_group({"PLMJAX_PROCESS_ID": "x"})


def test_slurm_is_found_and_so_are_its_gpus():
    assert processes.find_group(SLURM).source == "Slurm"
    # A shell inside an allocation is no task.
    shell = {k: v for k, v in SLURM.items() if k != "SLURM_PROCID"}
    assert processes.find_group(shell) is None
    assert processes.find_group(SLURM | {"SLURM_NTASKS": "1"}) is None
    bound = SLURM | {"SLURM_GPUS_PER_TASK": "2", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert processes.find_group(bound).arguments == {"local_device_ids": [0, 1]}
    seen = bound | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert processes.find_group(seen).arguments == {"local_device_ids": [2, 3]}


def test_open_mpi_is_found(monkeypatch):
    assert processes.find_group({"OMPI_COMM_WORLD_SIZE": "1"}) is None
    old = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1"}
    assert processes.find_group(old).arguments == {}
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlmjaxError, match="without mpi4py"):
        processes.find_group({"OMPI_COMM_WORLD_SIZE": "2"})


def test_a_pod_of_an_indexed_job_is_found(monkeypatch):
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name)
    assert processes.find_group(pod) is None
    group = processes.find_group(pod | {"JOB_COMPLETION_INDEX": "0"})
    assert group.source == "Kubernetes"


# Four devices each, so that a batch of 8 is the same one everywhere.
STEPS = (
    "--config.train.steps=40",
    "--config.train.evaluate_every_steps=20",
    "--config.train.checkpoint_every_steps=10",
)


def command(corpus, workdir, *more):
    source = f"--config.data.source.paths={corpus}"
    more = ("--config.model.dtype=float32", f"--workdir={workdir}", *more)
    return ("-m", "plmjax", "pretrain", *TINY, source, *more)


def go_on(count: int, devices: int, *arguments) -> None:
    """Starts a run until it ends with 0, again on what schedulers start again on."""
    for _ in range(4):
        found = spawn(count, devices, *arguments, timeout=600)
        codes = {process.code for process in found}
        if codes == {0}:
            return
        assert codes <= {0, 75, -signal.SIGABRT}, found
    raise AssertionError(found)


def losses(workdir) -> list[float]:
    return [r["loss"] for r in records(workdir) if r["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_one_run(corpus, tmp_path):
    """The smallest whole run: found, shared data, one writer, the losses of one."""
    first, second = succeed(2, 2, *command(corpus, tmp_path / "two"), timeout=600)
    assert "2 processes, found by: given" in first and "Exported step 10" in first
    assert "step" not in second  # one writes, one speaks
    succeed(1, 4, *command(corpus, tmp_path / "one"), timeout=600)
    np.testing.assert_allclose(
        losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5
    )
    one, two = (
        json.loads((tmp_path / name / "scores.json").read_text())
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(corpus, workdir) of a run of two processes that nobody touched."""

    def make(folder):
        (folder / "corpus.txt").write_text("\n".join(sentences(400)) + "\n")
        arguments = command(folder / "corpus.txt", folder / "run", *STEPS)
        succeed(2, 2, *arguments, timeout=600)

    folder = once(tmp_path_factory, "unbroken-processes", make)
    return folder / "corpus.txt", folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.alone
@pytest.mark.parametrize("index", campaign([0, 1], 0))
def test_a_signal_to_one_stops_all_and_no_step_is_lost(unbroken, tmp_path, index):
    corpus, reference = unbroken
    arguments = command(corpus, tmp_path / "run", *STEPS)
    with start(2, 2, *arguments) as group:
        wait_for_step(group, tmp_path / "run", 13)
        group.send(index, signal.SIGTERM)
        found = group.finish(240)
    assert [process.code for process in found] == [75, 75], found
    saved = Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1]
    done = [r["step"] for r in records(tmp_path / "run") if r["kind"] == "train"]
    assert saved == done[-1] and f"step {saved} is saved" in found[0].output
    succeed(2, 2, *arguments, timeout=600)
    assert_same_run(reference, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.alone
@pytest.mark.parametrize("index", campaign([0, 1], 0))
def test_when_one_is_killed_the_others_end_and_the_run_goes_on(
    unbroken, tmp_path, index
):
    corpus, reference = unbroken
    arguments = command(corpus, tmp_path / "run", *STEPS)
    with start(2, 2, *arguments) as group:
        wait_for_step(group, tmp_path / "run", 13)
        group.kill(index)
        began = time.monotonic()
        other = group.finish(240)[1 - index]
        # The heartbeat is 10 s here; a collective notices sooner.
        assert time.monotonic() - began < 10 + 5 + 60
    assert other.code in (75, -signal.SIGABRT), other.output
    go_on(2, 2, *arguments)
    assert_same_run(reference, tmp_path / "run")


@pytest.mark.campaign
@pytest.mark.timeout(900)
def test_a_process_that_hangs_is_noticed(corpus, tmp_path):
    patience = "--config.train.hang_after_seconds=10"
    arguments = command(corpus, tmp_path / "run", *STEPS, patience)
    with start(2, 2, *arguments, PLMJAX_HEARTBEAT_SECONDS="200") as group:
        wait_for_step(group, tmp_path / "run", 13)
        group.send(1, signal.SIGSTOP)
        group.processes[0].wait(timeout=240)
        assert group.processes[0].returncode == 75
        assert "nothing has moved" in group.output(0)
    stacks = (tmp_path / "run" / "hang-0.txt").read_text()
    assert "in fit" in stacks


@pytest.mark.campaign
@pytest.mark.timeout(1200)
def test_a_run_goes_on_with_other_processes_devices_and_meshes(unbroken, tmp_path):
    """The same batches in the same order: losses as if nothing had changed."""
    corpus, reference = unbroken
    stages = [
        (10, 1, 2, ()),
        (20, 4, 1, ()),
        (30, 2, 2, ("--config.mesh.data=2", "--config.mesh.fsdp=2")),
        (40, 1, 1, ()),
    ]
    for steps, count, devices, mesh in stages:
        arguments = command(corpus, tmp_path / "run", *STEPS, *mesh)
        # Stopped by the clock of steps: the schedule is that of all forty.
        with start(count, devices, *arguments) as group:
            if steps < 40:
                wait_for_step(group, tmp_path / "run", steps - 4)
                group.send(0, signal.SIGTERM)
            found = group.finish(400)
        assert {process.code for process in found} == {75 if steps < 40 else 0}, found
    ours, theirs = losses(tmp_path / "run"), losses(reference)
    assert len(ours) == 40
    np.testing.assert_allclose(ours[:20], theirs[:20], rtol=1e-5)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def wait_for_step(group, workdir, step: int, timeout: float = 400) -> None:
    """Returns once metrics.jsonl has a record of a step or a later one."""
    path, end = workdir / "metrics.jsonl", time.monotonic() + timeout
    while time.monotonic() < end:
        if path.exists() and any(r["step"] >= step for r in records(workdir)[-1:]):
            return
        if any(process.poll() is not None for process in group.processes):
            break
        time.sleep(0.01)
    raise AssertionError(f"no step {step}:\n{group.all_output()}")


@pytest.mark.campaign
@pytest.mark.timeout(120)
def test_an_error_of_one_is_the_end_of_all(corpus, tmp_path):
    """A workdir in use: the process that finds it speaks, none waits for ever."""
    from plmjax.workdir import Workdir

    workdir = Workdir(tmp_path / "run")
    workdir.create()
    with workdir.locked():
        found = spawn(2, 1, *command(corpus, tmp_path / "run"), timeout=100)
    assert [process.code for process in found] == [2, 2], found
    assert "is in use by process" in found[0].output
