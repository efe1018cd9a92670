"""A task as a model knows it, written to config.json and read again."""

import dataclasses

import pytest

from plmjax.interop.task_names import from_json, kinds_of, to_json
from plmjax.models import EncoderConfig
from plmjax.tasks import KINDS
from plmjax.tasks.classes import Classes
from plmjax.tasks.task import Task

ENCODER = EncoderConfig(
    vocab_size=16, layers=1, width=8, heads=2, ffn_width=8, max_positions=8
)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.head])
def test_a_kind_is_read_as_it_was_written(name):
    task = Task(name, ("a", "b") if KINDS[name].label_names else ())
    body = to_json(ENCODER, task)
    assert "finetuning_task" not in body
    assert from_json("bert", body, str(task.head), task.outputs, "a") == task


def test_two_kinds_of_one_class_and_problem_type_are_told_apart(monkeypatch):
    class Ranks(Classes):
        name = "ranks"

    monkeypatch.setitem(KINDS, "ranks", Ranks())
    task = Task("ranks", ("a", "b"))
    assert kinds_of("sequence", Classes.problem_type) == ["classes", "ranks"]
    body = to_json(ENCODER, task)
    assert from_json("bert", body, "sequence", 2, "a") == task
    del body["finetuning_task"]
    classes = dataclasses.replace(task, kind="classes")
    assert from_json("bert", body, "sequence", 2, "a") == classes


def test_only_one_kind_has_no_head():
    """A folder of sentence-transformers names no kind."""
    assert kinds_of(None) == ["embeddings"]
