"""A training that did not learn is named, with what to try."""

from types import SimpleNamespace

import pytest

from plmjax.data.examples import Example
from plmjax.finetune.config import FinetuneConfig
from plmjax.finetune.run import learning_line
from plmjax.tasks.config import TaskConfig


def line(kind, truth, readings, labels=(), metric="accuracy"):
    examples = [Example(str(n), "", ("x",), t, "x") for n, t in enumerate(truth)]
    return learning_line(
        SimpleNamespace(
            metric=metric,
            last="held_out",
            config=FinetuneConfig(),
            data=SimpleNamespace(config=TaskConfig(kind), labels=labels),
            examples=lambda split: examples,
        ),
        readings,
    )


def test_one_class_for_every_example_did_not_learn():
    said = line("classes", [*"aab" * 9], [*"a" * 27], ("a", "b"))
    assert said == (
        "The model did NOT learn (accuracy 0.6667): it gives 'a' for every example. "
        "Try another --config.train.optimizer.learning_rate (now 5e-05), more epochs, "
        "a model that is pretrained for longer, or --safe."
    )


def test_a_score_of_the_majority_or_less_did_not_learn():
    truth = [*"aab" * 9]
    for readings in ([*"aba" * 9], [*"bba" * 9]):
        said = line("classes", truth, readings, ("a", "b"))
        assert "one answer for all examples would have accuracy 0.6667" in said
    # The loss has no constant: the usual metric of the task stands for it.
    assert "accuracy" in line("classes", truth, [*"a" * 27], ("a", "b"), "loss")
    numbers = [1.0, 2.0, 3.0, 6.0]
    assert "mse" in line("regression", numbers, [9.0, 1.0, 2.0, 3.0], metric="mse")
    assert "pearson" in line("regression", numbers, [3.0] * 4, metric="pearson")


@pytest.mark.parametrize(
    "kind, truth, readings, labels, metric",
    [
        ("classes", [*"aab" * 9], [*"aab" * 8, *"aaa"], ("a", "b"), "accuracy"),
        ("classes", ["a"] * 9, ["a"] * 9, ("a", "b"), "accuracy"),  # nothing to see
        ("regression", [1.0, 2.0, 4.0], [1.0, 2.0, 5.0], (), "mse"),
        ("regression", [1.0, 2.0, 4.0], [1.0, 2.0, 5.0], (), "pearson"),
        ("embeddings", [0] * 3, [1, 1, 2], (), "accuracy_at_1"),
    ],
)
def test_a_model_that_learned_is_not_named(kind, truth, readings, labels, metric):
    assert line(kind, truth, readings, labels, metric) is None
