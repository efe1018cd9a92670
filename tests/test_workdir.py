"""A run's directory between two starts: what may change, what is left, what is said."""

import argparse
import fcntl
import os
import threading
from types import SimpleNamespace

import jax
import pytest

from plmjax import Exit, PlmjaxError, cli
from plmjax import config as config_lib
from plmjax.console import ignore_line
from plmjax.files import locked_by
from plmjax.finetune.config import FinetuneConfig
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.workdir import RunConfig, Workdir, training_session


def changes(path, schema, before=(), **now):
    """The permitted changes of a run with the keys `before`, started with `now`."""
    old = config_lib.load(schema, None, before)
    more = [f"{key}={value}" for key, value in now.items()]
    new = config_lib.load(schema, None, [*before, *more])
    values = map(config_lib.to_dict, (old, new))
    return Workdir(path, schema).compare(*values)


@pytest.mark.parametrize("key", ["train.accumulation", "model.remat", "mesh.zero1"])
def test_what_is_equal_to_rounding_may_change(tmp_path, key):
    value = 4 if key == "train.accumulation" else True
    assert changes(tmp_path, RunConfig, **{key: value}).keys() == {key}
    if not key.startswith("model"):
        assert changes(tmp_path, FinetuneConfig, **{key: value}).keys() == {key}


def test_pairs_of_sentences_depend_on_the_micro_batches(tmp_path):
    kind, more = ["task.kind=embeddings"], {"train.accumulation": 4}
    with pytest.raises(PlmjaxError, match="train.accumulation: 1 -> 4"):
        changes(tmp_path, FinetuneConfig, kind, **more)


def test_a_changed_key_names_two_ways_to_continue(tmp_path):
    with pytest.raises(PlmjaxError, match=r"train.batch: 16 -> 8") as caught:
        changes(tmp_path, RunConfig, **{"train.batch": 8})
    assert f"`plmjax pretrain --workdir={tmp_path}` resumes it" in caught.value.hint
    weights = f"--config.train.init_from={tmp_path} --config.tokenizer.path={tmp_path}"
    assert weights in caught.value.hint
    # Weights of another size cannot start it.
    with pytest.raises(PlmjaxError, match="model.width") as caught:
        changes(tmp_path, RunConfig, **{"model.width": 64})
    assert "init_from" not in caught.value.hint
    with pytest.raises(PlmjaxError, match="train.batch: 32 -> 8") as caught:
        changes(tmp_path, FinetuneConfig, **{"train.batch": 8})
    assert f"`plmjax finetune --workdir={tmp_path}`" in caught.value.hint
    assert "init_from" not in caught.value.hint


def saved(path, step: int) -> Workdir:
    """A workdir that looks as if a step was saved in it."""
    folder = path / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "DIGESTS.json").write_text("{}")
    return Workdir(path)


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    workdir = saved(tmp_path, 80)
    workdir.check_length(80)
    Workdir(tmp_path / "new").check_length(1)
    with pytest.raises(PlmjaxError, match="has 80 steps done already.* 60") as caught:
        workdir.check_length(60)
    assert caught.value.code == Exit.USAGE and "steps=80 or more" in caught.value.hint


@pytest.fixture
def session():
    """session(workdir) locks it for a training, without its config."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    return lambda path: training_session(Workdir(path), RunConfig(), mesh, ignore_line)


def test_a_failed_start_leaves_no_empty_directory(session, tmp_path):
    with pytest.raises(PlmjaxError), session(tmp_path / "runs/a"):
        (tmp_path / "runs/a/.xla").mkdir()
        raise PlmjaxError("the text is empty.")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(PlmjaxError), session(tmp_path / "runs/b"):
        (tmp_path / "runs/b/run.json").touch()
        raise PlmjaxError("the disk is full.")
    assert {*os.listdir(tmp_path / "runs/b")} == {".lock", "run.json"}
    (tmp_path / "mine").mkdir()
    with pytest.raises(PlmjaxError), session(tmp_path / "mine"):
        raise PlmjaxError("the text is empty.")
    assert (tmp_path / "mine").is_dir()


def test_a_start_beside_another_leaves_its_directory(session, tmp_path, monkeypatch):
    path = tmp_path / "run"
    with session(path):
        # Both saw that it was not there.
        monkeypatch.setattr(Workdir, "create", lambda w: [path])
        with pytest.raises(PlmjaxError, match="is in use"), session(path):
            pass
        assert path.is_dir()


def test_a_reader_of_the_lock_refuses_no_run(tmp_path):
    (tmp_path / ".lock").touch()
    with open(tmp_path / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as locked_by does
        release = threading.Timer(0.1, fcntl.flock, (file, fcntl.LOCK_UN))
        release.start()
        with Workdir(tmp_path).locked():
            assert str(os.getpid()) in (locked_by(tmp_path) or "")
        release.join()
    assert locked_by(tmp_path) is None


@pytest.mark.parametrize("step", [None, 20])
def test_ctrl_c_names_what_is_saved(session, tmp_path, step, capsys):
    if step is not None:
        saved(tmp_path / "run", step)
    with pytest.raises(KeyboardInterrupt) as caught, session(tmp_path / "run"):
        raise KeyboardInterrupt
    args = SimpleNamespace(verb="pretrain", debug=False)
    assert cli._explain(caught.value, args) == Exit.RESUMABLE
    kept = "No step is saved." if step is None else "Step 20 is saved."
    end = "Run the same command again to resume it.\n"
    assert capsys.readouterr().err == f"\nInterrupted. {kept} {end}"
    cli._explain(KeyboardInterrupt(), SimpleNamespace(verb="fill", debug=False))
    assert capsys.readouterr().err == "\nInterrupted. Run the same command again.\n"


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"config": None}, "Lower --config.train.batch, or raise --config.train.accum"),
        ({"config": None, "batch": 32}, "Lower --batch (it is 32)."),
        ({"batch_tokens": 8192}, "Lower --batch_tokens (it is 8,192)."),
        ({}, "Close other programs"),
    ],
)
def test_every_verb_says_how_it_needs_less_memory(options, hint, capsys):
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5000000 bytes.")
    args = argparse.Namespace(verb="any", debug=False, **options)
    assert cli._explain(error, args) == Exit.MEMORY
    message = f"error: out of memory: 0.005 GB could not be allocated. {hint}"
    assert capsys.readouterr().err.startswith(message)
