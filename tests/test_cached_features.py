"""Frozen features: read once, they train the same head as when read in each step."""

import json

import jax
import numpy as np
import pytest
from finetune_common import (
    MESH,
    config_of,
    make_folder,
    records,
    run,
    write,
)
from tests_common import campaign

from plmjax import PlmjaxError, tree
from plmjax import config as config_lib
from plmjax.data.task_batches import TaskBatches
from plmjax.finetune import cached
from plmjax.finetune.build import build
from plmjax.finetune.config import FinetuneConfig
from plmjax.interop.huggingface import read_folder
from plmjax.models.task_heads import STATES, task_logits
from plmjax.train import sharding

FROZEN = ("train.optimizer.freeze=encoder",)
CACHED = (*FROZEN, "cache_features=True")
KINDS = ("classes", "multilabel", "regression", "tags", "answers", "choices")


pytestmark = pytest.mark.usefixtures("on_one_device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # Without dropout in the encoder: with it, what is read anew differs in each step.
    return make_folder(
        tmp_path_factory.mktemp("model") / "folder", dropout=0.0, attention_dropout=0.0
    )


def data(path, kind, count=40):
    write(path / "train.jsonl", records(kind, count))
    write(path / "held_out.jsonl", records(kind, 10, 1))
    return path


def parts_of(folder, path, kind, *overrides, make_mesh=None):
    config = config_of(folder, data(path, kind), f"task.kind={kind}", *overrides)
    built = config
    mesh = (make_mesh or sharding.make_mesh)(built.mesh)
    said = []
    with jax.set_mesh(mesh):
        parts = build(built, mesh, said.append)
        return cached.with_states(parts, said.append), said


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [record["loss"] for record in found if record["kind"] == "train"]


@pytest.mark.parametrize(
    "buckets, kind",
    [
        *(("(8,)", kind) for kind in KINDS),
        pytest.param("()", "answers", marks=pytest.mark.slow),
        *campaign([("()", kind) for kind in KINDS if kind != "answers"]),
    ],
)
def test_states_of_a_batch_give_the_scores_that_its_tokens_give(
    folder, tmp_path, kind, buckets
):
    more = (f"task.buckets={buckets}", "train.batch=8")
    parts, said = parts_of(folder, tmp_path, kind, *CACHED, *more)
    assert any("read once" in line for line in said)
    batch = parts.batches.batch(0)
    assert STATES in batch and STATES not in parts.features["held_out"].arrays
    without = {name: array for name, array in batch.items() if name != STATES}
    real = batch["weight"] > 0
    given, read = (
        np.asarray(task_logits(parts.encoder, parts.task, parts.params, own, None))
        for own in (batch, without)
    )
    np.testing.assert_allclose(given[real], read[real], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", campaign(["classes", "tags"], "tags"))
def test_the_head_learns_what_it_learns_without(folder, tmp_path, kind):
    data(tmp_path, kind)
    for name, more in (("plain", FROZEN), ("cached", CACHED)):
        run(tmp_path / name, folder, tmp_path, f"task.kind={kind}", *more)
    first, second = losses(tmp_path / "plain"), losses(tmp_path / "cached")
    assert len(first) == len(second) > 4 and first[-1] < first[0]
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_the_encoder_is_not_computed_in_a_step(folder, tmp_path):
    parts, _ = parts_of(folder, tmp_path, "classes", *CACHED)
    batch = parts.batches.batch(0)
    # Whatever the encoder's weights are, the scores are those of the states.
    broken = parts.params | {
        "encoder": jax.tree.map(lambda x: x * np.nan, parts.params["encoder"])
    }
    scores = task_logits(parts.encoder, parts.task, broken, batch, None)
    assert np.isfinite(np.asarray(scores)).all()
    plain, _ = parts_of(folder, tmp_path, "classes", *FROZEN)
    length = parts.batches.rows(0)[0]
    assert parts.objective.flops(length) < plain.objective.flops(length) / 5


@pytest.mark.slow
def test_eight_devices_read_what_one_reads(folder, tmp_path):
    one, _ = parts_of(folder, tmp_path, "tags", *CACHED)
    many, _ = parts_of(folder, tmp_path, "tags", *CACHED, make_mesh=MESH)
    assert many.mesh.size == 8
    read = [parts.features["train"].arrays[STATES] for parts in (one, many)]
    np.testing.assert_allclose(*read, atol=1e-5)


def test_without_the_key_nothing_is_kept(folder, tmp_path):
    parts, said = parts_of(folder, tmp_path, "classes", *FROZEN)
    assert STATES not in parts.batches.batch(0)
    assert isinstance(parts.batches, TaskBatches)
    assert not any("read once" in line for line in said)


def test_a_look_at_shapes_reads_nothing(folder, tmp_path):
    config = config_of(folder, data(tmp_path, "tags"), "task.kind=tags", *CACHED)
    built = config
    mesh = sharding.make_mesh(built.mesh)
    with jax.set_mesh(mesh):
        parts = build(built, mesh, lambda line: None)
        looked = cached.with_states(parts, pytest.fail, reads=False)
        known = cached.with_states(parts, lambda line: None)
    states, wanted = (p.features["train"].arrays[STATES] for p in (looked, known))
    assert states.shape == wanted.shape and states.dtype == wanted.dtype
    assert not states.any() and wanted.any()


def test_the_encoder_stays_as_it_was(folder, tmp_path):
    data(tmp_path, "classes")
    run(tmp_path / "run", folder, tmp_path, *CACHED)
    before = tree.flatten(read_folder(folder).params["encoder"])
    after = tree.flatten(read_folder(tmp_path / "run" / "export").params["encoder"])
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "given, message",
    [
        (("cache_features=True",), "train.optimizer.freeze=None"),
        (("cache_features=True", "train.optimizer.freeze=1"), "freeze=encoder"),
        ((*CACHED, "mixout=0.1"), "mixout=0.1 changes the encoder"),
        ((*CACHED, "task.kind=embeddings"), "embeddings has none"),
    ],
)
def test_what_cannot_be_kept_is_refused(given, message):
    with pytest.raises(PlmjaxError, match=message):
        config_lib.load(FinetuneConfig, None, given)


def test_more_than_the_machine_holds_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cached, "usable_memory", lambda: 10)
    with pytest.raises(PlmjaxError, match="may use 0 GB"):
        parts_of(folder, tmp_path, "classes", *CACHED)
