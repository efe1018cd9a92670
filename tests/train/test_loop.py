"""How a training ends: early, without memory, without a disk, or interrupted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_best import taken, trained  # noqa: F401

from plmjax import Exit, PlmjaxError, machine
from plmjax.checkpoint import storage
from plmjax.stop import Stop
from plmjax.train import loop, memory
from plmjax.train.config import MeshConfig
from plmjax.train.metrics import MetricWriter
from plmjax.train.sharding import make_mesh

XLA = "RESOURCE_EXHAUSTED: "
WORDINGS = [
    (f"{XLA}Out of memory allocating 123000000000 bytes.", "123.000 GB"),
    (f"{XLA}Out of memory while trying to allocate 4770354232 bytes.\n", "4.770 GB"),
    (f"{XLA}Failed to allocate request for 2.99GiB (3206250496B) on", "2.99GiB"),
    (f"{XLA}Ran out of memory in memory space hbm. Used 21.95G of 15.48G", "21.95G"),
    (f"{XLA}Attempting to reserve 3.95G at the bottom of memory.", "3.95G"),
    ("INTERNAL: Failed to allocate 1500000000 bytes for new constant", "1.500 GB"),
    ("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory", None),
    ("INTERNAL: cublas error CUBLAS_STATUS_ALLOC_FAILED", None),
]


@pytest.mark.parametrize(("text", "size"), WORDINGS)
def test_every_wording_of_exhausted_memory(text, size):
    asked = "" if size is None else f": {size} could not be allocated"
    assert machine.out_of_memory(RuntimeError(text)) == f"out of memory{asked}"


def test_memory_that_is_really_refused():
    with pytest.raises(RuntimeError) as caught:
        jnp.zeros(2**48, jnp.float32)
    message = machine.out_of_memory(caught.value)
    assert message == "out of memory: 1,125,899.907 GB could not be allocated"
    with pytest.raises(MemoryError) as caught:
        np.zeros((2**40, 1024))
    message = machine.out_of_memory(caught.value)
    assert message == "out of memory: 8.00 PiB could not be allocated"
    assert machine.out_of_memory(OSError(12, "Cannot allocate memory"))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(f"{XLA}the message is larger than 4 MB"),
        ValueError("out of memory"),
        OSError(28, "No space left on device"),
    ],
)
def test_other_errors_are_not_about_memory(error):
    assert machine.out_of_memory(error) is None


@pytest.mark.parametrize(("limit", "usable"), [(4e9, 5e9), (None, 17e9)])
def test_usable_memory_counts_control_groups_and_swap(monkeypatch, limit, usable):
    monkeypatch.setattr(machine, "memory_bytes", lambda: 16e9)
    monkeypatch.setattr(machine, "memory_limit", lambda: limit)
    monkeypatch.setattr(machine, "read", lambda path: "SwapTotal:   976562 kB\n")
    assert machine.usable_memory() == pytest.approx(usable, rel=1e-3)


@pytest.fixture
def run(taken, monkeypatch, tmp_path):  # noqa: F811
    """run(values, **config) trains a step for each score; run.said has its lines."""

    def start(values, metric="loss", **more):
        given = taken(None if metric == "loss" else metric)
        path = tmp_path / "run"
        return trained(given, monkeypatch, values, metric, path, start.said, **more)

    start.said = []
    return start


def test_a_step_without_memory_names_its_batch_and_leaves_the_checkpoint(run, tmp_path):
    def refuse(*_):
        raise RuntimeError(f"{XLA}Out of memory allocating 5000000000 bytes.")

    def saved():
        files = (tmp_path / "run" / "checkpoints").rglob("*")
        return {path: path.read_bytes() for path in files if path.is_file()}

    run([1.0])
    before = saved()
    with pytest.raises(PlmjaxError, match="5.000 GB could not be allocated") as caught:
        run([1.0, 1.0], accumulation=2, step=refuse)
    assert before and saved() == before
    assert caught.value.code == Exit.MEMORY
    assert "in a step of 1 rows of 4 tokens in 2 micro-batches" in caught.value.message
    for key in ("train.batch", "train.accumulation", "model.remat"):
        assert f"--config.{key}" in caught.value.hint


@pytest.mark.parametrize(("gigabytes", "fails"), [(1, False), (2, False), (9, True)])
def test_activations_against_the_device(run, monkeypatch, gigabytes, fails):
    """Just above the memory is a warning, far above it an error before any work."""
    monkeypatch.setattr(memory, "device_memory", lambda _: 2_000_000_000)
    activations = {"activations": lambda: gigabytes * 1_000_000_000}
    if fails:
        with pytest.raises(PlmjaxError, match="needs about 9.0 GB") as caught:
            run([1.0], changes=activations)
        assert caught.value.code == Exit.MEMORY and "train.batch" in caught.value.hint
        return
    run([1.0], changes=activations)
    warned = any("needs about 2.0 GB" in line for line in run.said)
    assert warned == (gigabytes == 2)


@pytest.mark.parametrize(("held", "fits"), [(20, True), (19, False)])
def test_weights_that_cannot_fit_are_refused(run, monkeypatch, held, fits):
    """A weight and its gradient of four bytes each, and three counts."""
    monkeypatch.setattr(memory, "device_memory", lambda _: held)
    if fits:
        assert run([1.0]).step == 1
        return
    with pytest.raises(PlmjaxError, match="weights, gradients") as caught:
        run([1.0])
    assert caught.value.code == Exit.MEMORY and "mesh.fsdp" in caught.value.hint


def test_devices_of_a_cpu_share_its_memory(monkeypatch):
    monkeypatch.setattr(memory, "usable_memory", lambda: 8_000)
    mesh = make_mesh(MeshConfig())
    assert memory.device_memory(mesh) == 8_000 // jax.local_device_count()


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_training_out_of_patience_gives_its_best_step(run, metric):
    values = [3.0, 1.0, 2.0, 2.5, 0.5] if metric == "loss" else [0.1, 0.9, 0.2, 0.3, 1]
    ended = run(values, metric, patience_evaluations=2)
    assert ended.step == 2 and float(ended.weights["w"]) == 2
    assert ended.saved == 4  # which --checkpoint=newest reads
    assert ended.scores[metric] == values[1]
    assert "Step 2 was the best one; its weights are used." in run.said
    hint = "Other commands read it by --checkpoint=best."
    assert (hint in run.said) == (metric == "loss")


def test_a_training_that_keeps_its_patience_gives_its_last_step(run):
    ended = run([3.0, 1.0, 2.0], patience_evaluations=2)
    assert ended.step == ended.saved == 3


def test_weights_are_exported_though_no_checkpoint_can_be_written(run, monkeypatch):
    free = iter([10**9])
    monkeypatch.setattr(storage.Local, "free", lambda _: next(free, 10))
    done, ended = [], run([2.0, 1.0])
    assert ended.stopped is None and float(ended.weights["w"]) == 2
    folder = "runs/mine/export"
    with pytest.raises(PlmjaxError) as caught, ended.exporting(folder):
        done.append("export")
    assert done == ["export"] and caught.value.code == Exit.DISK
    assert "step 2 could not be written: no space" in caught.value.message
    assert f"The weights of step 2 are in {folder}." in caught.value.message
    with pytest.raises(PlmjaxError) as caught, ended.exporting(folder):
        raise OSError(28, "No space left on device")
    assert caught.value.code == Exit.DISK
    for text in ("step 2 could not be written", "exported either: [Errno 28] No space"):
        assert text in caught.value.message


def test_a_stopped_run_on_a_full_disk_says_so(run, monkeypatch):
    free, stop = iter([10**9]), Stop()
    monkeypatch.setattr(storage.Local, "free", lambda _: next(free, 10))
    monkeypatch.setattr(loop, "Stop", lambda: stop)

    class Stopping(list):
        def __getitem__(self, at):
            stop.received = "SIGTERM"
            return super().__getitem__(at)

    with pytest.raises(PlmjaxError, match="could not be written: no space") as caught:
        run(Stopping([2.0, 1.0, 0.5]))
    assert caught.value.code == Exit.DISK


def test_records_that_cannot_be_written_do_not_keep_the_weights_back(run, monkeypatch):
    error = PlmjaxError("2 records could not be written.", code=Exit.DISK)

    def fail(_):
        raise error

    monkeypatch.setattr(MetricWriter, "check", fail)
    failure = run([2.0]).failure
    assert failure is not None and failure.message == error.message


def test_a_start_says_that_ctrl_c_saves_and_that_it_compiles(run, capsys):
    run([2.0, 1.0])
    assert sum("Ctrl-C saves" in line for line in run.said) == 1
    assert "step 0/2  compiling\n" in capsys.readouterr().out
    run.said.clear()
    run([2.0, 1.0])  # finished: there is nothing to stop
    assert not any("Ctrl-C saves" in line for line in run.said)
