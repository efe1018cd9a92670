"""Checkpoints: what is damaged is found, what is good survives."""

import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax import Exit, PlmjaxError
from plmjax.train import checkpoint
from plmjax.train.checkpoint import Checkpoints


class Small(NamedTuple):
    """A state of two fields."""

    step: jax.Array
    params: dict


def state(value: float = 1.0, width: int = 4) -> Small:
    params = {"a": jnp.full((3, width), value, jnp.float32), "b": jnp.arange(5.0)}
    return Small(jnp.int32(7), params)


def abstract(width: int = 4):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        state(1.0, width),
    )


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1, 2 and 3, and what they have said."""
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3, said.append)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {})
    checkpoints.wait()
    return checkpoints, said


def test_what_was_saved_is_loaded(saved):
    checkpoints, _ = saved
    assert checkpoints.steps() == [1, 2, 3]
    assert checkpoints.good_step() == 3
    found = checkpoints.load(2, abstract())
    np.testing.assert_array_equal(found.params["a"], np.full((3, 4), 2))
    only = checkpoints.load(2, abstract(), only="params")
    np.testing.assert_array_equal(only.params["a"], np.full((3, 4), 2))


def test_every_kind_of_damage_to_every_file_is_found(saved, tmp_path):
    checkpoints, said = saved
    newest = checkpoints.path(3)
    whole = tmp_path / "whole"
    shutil.copytree(newest, whole)
    files = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]
    assert len(files) > 5

    def flip(path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def truncate(path):
        path.write_bytes(path.read_bytes()[:-1])

    def zero(path):
        path.write_bytes(b"\0" * path.stat().st_size)

    for name in files:
        for damage in (flip, truncate, zero, lambda path: path.unlink()):
            if (whole / name).stat().st_size == 0:
                continue
            shutil.rmtree(newest)
            shutil.copytree(whole, newest)
            damage(newest / name)
            assert checkpoints.good_step() == 2, (name, damage)
    assert all("step 3" in line for line in said)


def test_damaged_steps_are_set_aside_until_none_is_left(saved):
    checkpoints, _ = saved
    for step in (3, 2):
        (checkpoints.path(step) / "meta.json").write_text("{}")
    assert checkpoints.good_step(set_aside=True) == 1
    assert checkpoints.steps() == [1]
    assert (checkpoints.directory / "damaged" / "step_00000003").is_dir()
    (checkpoints.path(1) / "meta.json").write_text("{}")
    with pytest.raises(PlmjaxError, match="no readable checkpoint.*step 1") as caught:
        checkpoints.good_step()
    assert caught.value.code == Exit.MODEL


def test_a_step_without_digests_does_not_count_and_is_removed(saved):
    checkpoints, _ = saved
    (checkpoints.path(3) / "DIGESTS.json").unlink()
    assert checkpoints.good_step() == 2
    checkpoints.remove_unfinished()
    assert not checkpoints.path(3).exists()


def test_the_best_and_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in range(1, 6):
        # Step 3 was not evaluated.
        checkpoints.save(
            step, state(step), {} if step == 3 else {"loss": abs(step - 2.0)}
        )
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.best() == (2, 0.0)


def test_a_failed_save_takes_no_earlier_best_away(tmp_path, monkeypatch):
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, 2, said.append)
    checkpoints.save(1, state(1), {"loss": 1.0})
    checkpoints.wait()

    def full(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_fsync", full)
        checkpoints.save(2, state(2), {"loss": 0.5})
        checkpoints.wait()
    for step in (3, 4, 5):
        checkpoints.save(step, state(step), {"loss": 2.0})
    checkpoints.wait()
    assert checkpoints.best() == (1, 1.0) and checkpoints.steps() == [1, 4, 5]


def test_a_full_disk_costs_one_checkpoint_and_no_more(saved, monkeypatch):
    checkpoints, said = saved
    usage = shutil.disk_usage(checkpoints.directory)
    monkeypatch.setattr(
        checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=10)
    )
    checkpoints.save(4, state(4), {})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]
    assert checkpoints.failure is not None
    assert checkpoints.failure.code == Exit.DISK
    assert "no space" in said[-1] and "last good checkpoint is step 3" in said[-1]
    monkeypatch.undo()
    checkpoints.save(5, state(5), {})
    checkpoints.wait()
    assert checkpoints.failure is None and checkpoints.steps()[-1] == 5


def test_a_write_that_fails_midway_leaves_nothing(saved, monkeypatch):
    checkpoints, said = saved

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_fsync", full)
    checkpoints.save(4, state(4), {})
    checkpoints.wait()
    assert "No space left" in said[-1]
    assert not checkpoints.path(4).exists() and checkpoints.good_step() == 3


def test_another_models_checkpoint_is_refused(saved):
    checkpoints, _ = saved
    with pytest.raises(PlmjaxError, match="another model: 1 leaves differ") as caught:
        checkpoints.load(3, abstract(width=5))
    assert "params/a is float32[3, 4], not float32[3, 5]" in str(caught.value)
    with pytest.raises(PlmjaxError, match="no checkpoint of step 9.*1, 2, 3"):
        checkpoints.good_step(9)


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    checkpoint.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        checkpoint.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
