"""Fine-tuning by a teacher: its scores of the rows, its loss, and who may teach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finetune_common import config_of, make_folder, one_device, records, run, write

from plmjax import PlmjaxError
from plmjax.finetune.build import build
from plmjax.finetune.predict import Predictor
from plmjax.finetune.teacher import with_teacher
from plmjax.interop.huggingface import export_folder
from plmjax.tasks import KINDS
from plmjax.train import sharding
from plmjax.train.config import MeshConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Returns a directory with tags, and two taggers of them with new heads."""
    root = tmp_path_factory.mktemp("teacher")
    make_folder(root / "folder")
    write(root / "train.jsonl", records("tags", 40))
    write(root / "held_out.jsonl", records("tags", 8, seed=1))
    with one_device():
        for number, name in enumerate(("tagger", "other")):
            keys = "task.kind=tags", f"seeds.init={number}"
            made = build(config_of(root / "folder", root, *keys), mesh(), [].append)
            model = made.encoder, made.params, made.model.tokenizer
            export_folder(root / name, *model, card="A card.", task=made.task)
    return root


def mesh():
    return sharding.make_mesh(MeshConfig(), jax.devices()[:1])


def setup_of(root, *overrides: str):
    config = config_of(
        root / "folder",
        root,
        "task.kind=tags",
        f"objective.teacher={root / 'tagger'}",
        *overrides,
    )
    lines: list[str] = []
    return with_teacher(build(config, mesh(), lines.append), lines.append), lines


def test_training_rows_come_with_the_scores_that_the_teacher_predicts(root):
    with one_device():
        setup, _ = setup_of(root, "task.buckets=(8,10,12,14)")
        predictor = Predictor([str(root / "tagger")], ["length=16"])
        predicted = predictor.predict(setup.data.train)
    features, kind = setup.features["train"], KINDS["tags"]
    assert features.word is not None
    for index in range(8):
        at = features.word[index] >= 0
        scores = np.float64(features.arrays["teacher"][index, at])
        expected = np.asarray(predicted[int(features.example[index])])
        np.testing.assert_allclose(kind.probabilities(scores), expected, atol=1e-5)
    batches = [setup.batches.batch(step) for step in range(setup.batches.steps)]
    assert len({batch["tokens"].shape for batch in batches}) > 1
    assert all(b["teacher"].shape[:2] == b["tokens"].shape for b in batches)
    assert len(setup.origin["teacher"]) == 32


def test_a_student_resumes_with_its_teacher_alone(root):
    name = f"objective.teacher={root / 'tagger'}"
    with one_device():
        said: list[str] = []
        keys = "task.kind=tags", name, "objective.teacher_share=0.9"
        run(root / "student", root / "folder", root, *keys, said=said)
        assert any("has read 40 training rows" in line for line in said)
        keys = "task.kind=tags", f"objective.teacher={root / 'other'}", keys[2]
        with pytest.raises(PlmjaxError, match="another teacher"):
            run(root / "student", root / "folder", root, *keys, "train.steps=8")


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression", "answers"])
def test_the_loss_is_least_where_the_student_scores_as_its_teacher(kind):
    shape = {"answers": (2, 5, 2), "regression": (2, 1)}.get(kind, (2, 3))
    teacher = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    loss = KINDS[kind].soft_loss
    gradient = jax.grad(lambda scores: jnp.sum(loss(scores, teacher, 3.0)))
    np.testing.assert_allclose(gradient(jnp.asarray(teacher)), 0, atol=1e-6)
    towards = gradient(jnp.asarray(teacher) + np.eye(*shape[-2:], dtype=np.float32))
    assert (towards[..., 0, 0] > 0).all()
    assert loss(jnp.asarray(teacher), teacher, 3.0).shape == (2,)


def test_who_cannot_teach_is_refused(root, tmp_path):
    with one_device():
        with pytest.raises(PlmjaxError, match="has learnt no task"):
            setup_of(root, f"objective.teacher={root / 'folder'}")
        with pytest.raises(PlmjaxError, match="rows of one example"):
            setup_of(root, "task.rows=packed")
        write(tmp_path / "train.jsonl", records("classes", 8))
        write(tmp_path / "held_out.jsonl", records("classes", 8))
        with pytest.raises(PlmjaxError, match=r"has learnt tags.*learns classes"):
            files = [f"task.{n}={tmp_path / n}.jsonl" for n in ("train", "held_out")]
            setup_of(root, "task.kind=classes", *files)
        with pytest.raises(PlmjaxError, match="nothing for a task of kind embeddings"):
            write(tmp_path / "train.jsonl", records("embeddings", 8))
            write(tmp_path / "held_out.jsonl", records("embeddings", 8))
            setup_of(root, "task.kind=embeddings", *files)
        # A student with a larger embedding than its teacher is meant by nobody.
        make_folder(tmp_path / "wide", width=32)
        _, lines = setup_of(root, f"model={tmp_path / 'wide'}")
        assert any("more than the" in line for line in lines)
