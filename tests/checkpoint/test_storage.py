"""A directory and an object store obey the same calls; checkpoints live on both."""

import hashlib
import importlib.util
import json
import os

import pytest
from checkpoint_common import assert_holds, mesh, save, shapes, state

from plmjax import Exit, PlmjaxError
from plmjax.checkpoint import checkpoints as checkpoint
from plmjax.checkpoint import states, storage
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.checkpoint.storage import Local, Remote, open_storage
from plmjax.children import free_port


def memory() -> Remote:
    """Returns an S3 in this process's memory: names and no folders."""
    return Remote({"driver": "memory", "path": "runs/mine/"}, "s3://memory")


@pytest.fixture(params=("local", "remote"))
def store(request, tmp_path):
    return Local(tmp_path / "root") if request.param == "local" else memory()


def test_files_are_written_listed_moved_and_deleted(store):
    assert store.entries() == [] and store.files("a") == []
    for folder in ("a/b", "ab", "damaged/a"):
        store.make(folder)
    for name in ("a/one", "a/b/two", "ab/one"):
        store.write(name, name.encode())
    assert [name for name in store.entries() if name != "damaged"] == ["a", "ab"]
    assert store.files("a") == ["b/two", "one"]
    assert store.exists("a/one") and not store.exists("a/on")
    assert not store.exists("a")
    assert store.read("a/b/two") == b"a/b/two"
    assert store.digest("ab/one") == (6, hashlib.sha256(b"ab/one").hexdigest())
    store.write("a/one", b"new")
    assert store.read("a/one") == b"new"
    with pytest.raises(FileNotFoundError):
        store.read("a/none")
    store.fsync("a")

    store.write("damaged/a/old", b"")
    store.move("a", "damaged/a")
    assert store.files("damaged/a") == ["b/two", "one"]
    assert store.entries() == ["ab", "damaged"]
    store.delete("damaged/a/one")
    assert store.files("damaged") == ["a/b/two"]
    store.delete("damaged")
    store.delete("damaged")
    assert store.entries() == ["ab"] and store.files("ab") == ["one"]


def test_local_files_are_replaced_whole(tmp_path):
    local = Local(tmp_path)
    local.write("a", b"old")
    with pytest.raises(TypeError):
        local.write("a", "no bytes")  # type: ignore
    assert local.read("a") == b"old" and os.listdir(tmp_path) == ["a"]
    free = local.free()
    assert free is not None and free > 0


def test_an_answer_that_does_not_come_is_an_error(monkeypatch):
    # Nobody listens on a port that was free a moment ago.
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr(storage, "ANSWER_SECONDS", 1.0)
    checkpoints = Checkpoints("s3://bucket/run")
    with pytest.raises(
        PlmjaxError, match="s3://bucket/run cannot be reached"
    ) as caught:
        checkpoints.good_step()
    assert caught.value.code == Exit.DISK


@pytest.mark.parametrize("where", ("s3://", "gs://bucket", "gs://bucket/", "hf://a/b"))
def test_a_place_that_is_none_is_refused(where):
    with pytest.raises(PlmjaxError, match="files cannot be saved to") as caught:
        open_storage(where)
    assert "s3://BUCKET/PATH" in caught.value.hint


def test_gs_needs_gcsfs(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PlmjaxError, match="gs://bucket/run needs gcsfs") as caught:
        open_storage("gs://bucket/run")
    assert "plmjax[gs]" in caught.value.hint


def lives_through_it_all(checkpoints: Checkpoints, said: list[str]) -> None:
    """Saves, prunes, loads, is damaged, sets aside and goes on."""
    save(checkpoints, 1, 2, 3)
    assert checkpoints.failure is None
    assert checkpoints.steps() == [2, 3] and checkpoints.good_step() == 3
    assert_holds(checkpoints.load(3, shapes(mesh(2, 4))), 3)
    checkpoints.save(4, state(4, mesh(2, 4)), {"loss": 1.0})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4] and checkpoints.best() == (4, 1.0)
    assert_holds(checkpoints.load(4, shapes()), 4)

    store = checkpoints._storage
    name = next(n for n in store.files("step_00000004") if "process_0/d/" in n)
    content = bytearray(store.read(f"step_00000004/{name}"))
    content[len(content) // 2] ^= 1
    store.write(f"step_00000004/{name}", bytes(content))
    assert checkpoints.good_step(set_aside=True) == 3
    assert f"step 4: {name} does not match its SHA-256" in said[-1]
    assert store.entries() == ["damaged", "step_00000003"]
    assert "step_00000004/DIGESTS.json" in store.files("damaged")
    store.write("step_00000009/state/part", b"of a save that was killed")
    checkpoints.remove_unfinished()
    save(checkpoints, 4)
    assert store.entries() == ["damaged", "step_00000003", "step_00000004"]


def test_checkpoints_in_an_object_store(monkeypatch):
    store, said = memory(), []
    monkeypatch.setattr(checkpoint, "open_storage", lambda _: store)
    checkpoints = Checkpoints("s3://memory", log=said.append)
    lives_through_it_all(checkpoints, said)
    assert checkpoints.meta(4)["state"] == states.ARRAYS


def test_what_orbax_wrote_is_not_read_from_s3(monkeypatch):
    store = memory()
    monkeypatch.setattr(checkpoint, "open_storage", lambda _: store)
    checkpoints = Checkpoints("s3://memory")
    save(checkpoints, 1)
    meta = checkpoints.meta(1) | {"state": states.ORBAX}
    store.write("step_00000001/meta.json", json.dumps(meta).encode())
    with pytest.raises(PlmjaxError, match="reads no s3://; copy it to a directory"):
        checkpoints.load(1, shapes())


@pytest.mark.slow
def test_checkpoints_in_s3(s3):
    said: list[str] = []
    lives_through_it_all(Checkpoints(s3, log=said.append), said)
    # A bucket that is not there is an error at the start, and a warning in training.
    elsewhere = Checkpoints("s3://nobody/run", log=said.append)
    with pytest.raises(PlmjaxError, match="s3://nobody/run cannot be reached"):
        elsewhere.good_step()
    save(elsewhere, 1)
    assert elsewhere.failure is not None and "WARNING" in said[-1]
