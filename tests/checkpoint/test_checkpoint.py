"""Checkpoints: what is saved is loaded, onto anything; what is good survives."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_common import Small, assert_holds, mesh, numbers, save, shapes, state
from jax.sharding import SingleDeviceSharding

from plmjax import Exit, PlmjaxError, files
from plmjax.checkpoint import digests, states
from plmjax.checkpoint import meta as loading
from plmjax.checkpoint.checkpoints import Checkpoints


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1, 2 and 3, and what they have said."""
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3, said.append)
    save(checkpoints, 1, 2, 3)
    return checkpoints, said


def test_what_was_saved_is_loaded(saved):
    checkpoints, said = saved
    assert checkpoints.steps() == [1, 2, 3]
    assert checkpoints.good_step() == 3
    assert_holds(checkpoints.load(2, shapes()), 2)
    only = checkpoints.load(2, shapes(), only="params")
    assert only.step is None
    assert_holds(Small(state().step, only.params), 2)
    assert not said


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_alone_reads_the_state(saved):
    from orbax.checkpoint import v1 as ocp

    checkpoints, _ = saved
    found = ocp.load(checkpoints.path(3) / "state")
    assert_holds(Small(found["step"], found["params"]), 3)


def test_a_state_moves_to_any_mesh(tmp_path):
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, 9, said.append)
    meshes = [None, mesh(8, 1), mesh(2, 4)]
    for step, place in enumerate(meshes):
        checkpoints.save(step, state(step, place), {})
    checkpoints.wait()
    assert checkpoints.failure is None
    for step in range(len(meshes)):
        for place in meshes:
            assert_holds(checkpoints.load(step, shapes(place)), step)
    told = "Going on with mesh {'data': 2, 'fsdp': 4} instead of {'data': 8, 'fsdp': 1}"
    assert told + ": the same batches, equal to rounding." in said


def test_what_is_saved_is_a_copy_the_next_step_may_overwrite_the_state(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    update = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 5, s), donate_argnums=0)
    for place in (None, mesh(8, 1)):
        before = state(3, place)
        checkpoints.save(len(checkpoints.steps()), before, {})
        after = update(before)
        jax.block_until_ready(after)
        checkpoints.wait()
        assert_holds(checkpoints.load(checkpoints.steps()[-1], shapes(place)), 3)


def test_layouts_are_compared_in_words(saved):
    checkpoints, _ = saved
    meta = checkpoints.meta(3)
    assert loading.layout_changes(meta, shapes()) is None
    meta["layout"] |= {"devices": 4, "processes": 2}
    meta["layout"]["versions"]["jax"] = "0.9"
    told = loading.layout_changes(meta, shapes())
    assert told is not None and told.startswith(
        "8 instead of 4 devices, 1 instead of 2 processes, jax "
    )


def test_a_step_without_digests_does_not_count_and_is_removed(saved):
    checkpoints, said = saved
    (checkpoints.path(3) / "DIGESTS.json").unlink()
    assert checkpoints.good_step() == 2
    checkpoints.remove_unfinished()
    assert not checkpoints.path(3).exists()
    assert said == ["step_00000003 has no DIGESTS.json: unfinished, removed."]


def test_the_best_and_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    losses = {1: 1.0, 2: 0.0, 3: None, 4: float("nan"), 5: 3.0, 6: 4.0}
    for step, loss in losses.items():
        save(checkpoints, step, **({} if loss is None else {"loss": loss}))
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.best() == (2, 0.0)


def test_a_failed_save_takes_no_earlier_best_away(tmp_path, monkeypatch):
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, 2, said.append)
    save(checkpoints, 1, loss=1.0)

    finish = states._Orbax.finish

    def full(*arguments):
        finish(*arguments)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(states._Orbax, "finish", full)
        save(checkpoints, 2, loss=0.5)
    assert checkpoints.failure is not None and "No space left" in said[-1]
    assert not checkpoints.path(2).exists()
    save(checkpoints, 3, 4, 5, loss=2.0)
    assert checkpoints.failure is None
    assert checkpoints.best() == (1, 1.0) and checkpoints.steps() == [1, 4, 5]


def test_two_steps_stay_whatever_was_asked(tmp_path):
    checkpoints = Checkpoints(tmp_path, 0)
    save(checkpoints, 1, 2, 3)
    assert checkpoints.steps() == [2, 3]


def test_another_models_checkpoint_is_refused(saved):
    checkpoints, _ = saved
    with pytest.raises(PlmjaxError, match="another model: 1 leaves differ") as caught:
        checkpoints.load(3, shapes(width=5))
    assert "params/table is float32[16, 4], not float32[16, 5]" in str(caught.value)
    with pytest.raises(PlmjaxError, match="no checkpoint of step 9.*1, 2, 3"):
        checkpoints.good_step(9)


def test_a_newer_format_is_refused(saved):
    checkpoints, _ = saved
    path = checkpoints.path(3) / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3}))
    with pytest.raises(PlmjaxError, match="format 3; plmjax .* up to 2") as caught:
        checkpoints.load(3, shapes())
    assert caught.value.code == Exit.MODEL


def test_checkpoints_of_format_1_are_read(tmp_path):
    """Orbax wrote the state, and DIGESTS.json held names and digests alone."""
    from orbax.checkpoint import v1 as ocp

    folder = tmp_path / "step_00000004"
    folder.mkdir()
    ocp.save(str(folder / "state"), state(4, mesh(2, 4)))
    leaves = loading.leaves(shapes())
    meta = {"format": 1, "step": 4, "jax": "0.10", "leaves": leaves, "loss": 0.5}
    (folder / "meta.json").write_text(json.dumps(meta))
    files = [path for path in folder.rglob("*") if path.is_file()]
    sums = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes())
        for path in files
    }
    content = json.dumps({name: sha.hexdigest() for name, sha in sums.items()})
    (folder / digests.FILE).write_text(content)

    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, log=said.append)
    assert checkpoints.good_step() == 4 and checkpoints.best() == (4, 0.5)
    assert_holds(checkpoints.load(4, shapes(mesh(8, 1))), 4)
    only = checkpoints.load(4, shapes(), only="params").params
    np.testing.assert_array_equal(only["kernel"], numbers(4).params["kernel"])
    assert not said
    # Both formats in one directory: a run goes on from the one in the other.
    save(checkpoints, 5)
    assert checkpoints.steps() == [4, 5] and checkpoints.good_step() == 5
    (folder / "meta.json").write_text("{}")
    assert checkpoints.damage(4) == "meta.json does not match its SHA-256"


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_scalars_of_every_type_keep_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    kinds = ("bool", "int8", "uint32", "float16", "bfloat16", "float32")
    leaves = {kind: jnp.ones((), kind) for kind in kinds}
    saved = Small(jnp.int32(1), leaves)
    checkpoints.save(1, saved, {})
    checkpoints.wait()
    assert checkpoints.failure is None
    place = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved
    )
    found = checkpoints.load(1, abstract).params
    for kind in kinds:
        assert found[kind].dtype == kind and found[kind] == 1
