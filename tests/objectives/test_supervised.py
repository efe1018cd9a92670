"""Losses of fine-tuning: their values, their weights, R-Drop, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests_common import batch_of, campaign

from plmjax import PlmjaxError
from plmjax.models import EncoderConfig
from plmjax.models.flops import encoder_flops
from plmjax.objectives import Key, Supervised, SupervisedConfig
from plmjax.tasks import KINDS
from plmjax.tasks.task import Task

ENCODER = EncoderConfig(
    vocab_size=16, layers=1, width=8, heads=2, ffn_width=8, max_positions=8
)
LABELS = ("a", "b", "c")
TASKS = {
    "classes": Task("classes", LABELS),
    "multilabel": Task("multilabel", LABELS),
    "regression": Task("regression"),
    "tags": Task("tags", LABELS),
    "answers": Task("answers"),
    "choices": Task("choices", LABELS),
}
KEY = Key(jnp.uint32(1), jnp.uint32(2))


def make_batch(kind, rows=8, step=0):
    """Random rows, some without a label, the last one a filler."""
    random = np.random.default_rng(step)
    length = 6
    shape = (rows, 3, length) if kind == "choices" else (rows, length)
    segments = np.ones(shape, np.int32)
    segments[..., -1:] = 0
    labels = {
        "classes": random.integers(-1, 3, rows),
        "multilabel": random.integers(0, 2, (rows, 3)).astype(np.float32),
        "regression": random.normal(size=rows).astype(np.float32),
        "tags": random.integers(-1, 3, (rows, length)),
        "answers": random.integers(0, length - 1, (rows, 2)),
        "choices": random.integers(0, 3, rows),
    }[kind]
    weight = np.ones(rows, np.float32)
    weight[-1] = 0
    return batch_of(
        random.integers(1, 16, shape),
        segments=segments,
        row=random.permutation(100)[:rows].astype(np.int32),
        weight=weight,
        label=labels if labels.dtype == np.float32 else labels.astype(np.int32),
    )


def quick(f, **more):
    options = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    }
    return jax.jit(f, compiler_options=options, **more)


@functools.cache
def made(kind, **values):
    """The objective, jitted: its parameters, corrupt, and (loss, metrics)."""
    objective = Supervised(SupervisedConfig(**values), ENCODER, TASKS[kind])
    params = quick(objective.init)(jax.random.key(0), make_batch(kind))
    # Larger scores, so that losses differ.
    params = jax.tree.map(lambda x: 20 * x, params)

    def corrupt(batch):
        return jax.device_get(objective.corrupt({}, batch, KEY, jnp.float32(0)))

    @functools.partial(quick, static_argnums=1)
    def loss(batch, train):
        return objective.loss(params, {}, batch, KEY, train)

    return objective, corrupt, loss


def test_filler_rows_and_missing_labels_weigh_nothing():
    batch = {"weight": jnp.array([1.0, 1, 0]), "label": jnp.array([2, -1, 1])}
    np.testing.assert_array_equal(KINDS["classes"].has(batch), [True, False, False])
    tags = batch | {"label": jnp.array([[2, -1], [0, 1], [1, 1]])}
    np.testing.assert_array_equal(
        KINDS["tags"].has(tags), [[True, False], [True, True], [False, False]]
    )
    soft = batch | {"label": jnp.full((3, 2), 0.5)}
    np.testing.assert_array_equal(KINDS["classes"].has(soft), [True, True, False])
    soft = batch | {"label": jnp.full((3, 2, 2), 0.5).at[1, 0].set(0)}
    np.testing.assert_array_equal(
        KINDS["tags"].has(soft), [[True, True], [False, True], [False, False]]
    )
    ends = batch | {"label": jnp.array([[0, 0], [-1, -1], [3, 4]])}
    np.testing.assert_array_equal(KINDS["answers"].has(ends), [True, False, False])
    numbers = batch | {"label": jnp.array([-3.0, 1.0, 0.0])}
    np.testing.assert_array_equal(KINDS["regression"].has(numbers), [True, True, False])


def test_a_batch_of_fillers_alone_has_no_loss():
    _, corrupt, loss = made("classes")
    empty = make_batch("classes") | {"weight": np.zeros(8, np.float32)}
    value, metrics = loss(corrupt(empty), True)
    assert float(value) == 0 and float(metrics["accuracy"][1]) == 0


def test_scores_slots_and_flops():
    objective = made("classes")[0]
    means = {"loss": 1.0, "accuracy": 0.5, "objective": 2.0}
    assert objective.scores(means) == {"loss": 1.0, "accuracy": 0.5}
    assert objective.token_loss is None and objective.slots(6) == 1
    assert objective.models["model"].heads == ("sequence",)
    one = objective.flops(6)
    assert one == encoder_flops(ENCODER, 6) + 3 * 2 * 8 * (8 + 3)
    twice = Supervised(SupervisedConfig(rdrop_weight=1.0), ENCODER, TASKS["classes"])
    assert twice.flops(6) == 2 * one
    choices = Supervised(SupervisedConfig(), ENCODER, TASKS["choices"])
    assert choices.flops(6) == 3 * (encoder_flops(ENCODER, 6) + 3 * 2 * 8 * (8 + 1))
    tags = Supervised(SupervisedConfig(), ENCODER, TASKS["tags"])
    assert tags.slots(6) == 6


def test_what_is_refused():
    with pytest.raises(PlmjaxError, match="label_smoothing is 1.0"):
        SupervisedConfig(label_smoothing=1.0)
    with pytest.raises(PlmjaxError, match="must be at least 0"):
        SupervisedConfig(rdrop_weight=-1.0)
    with pytest.raises(PlmjaxError, match="means nothing for a task of kind answers"):
        Supervised(SupervisedConfig(label_smoothing=0.1), ENCODER, TASKS["answers"])


MESHED = ("classes", "choices", "answers", "tags")
LAYOUTS = (((1, 1, 1), 2), ((8, 1, 1), 1), ((2, 2, 2), 2), ((1, 1, 1), 4))


@functools.cache
def trained(kind, mesh=(1, 1, 1), accumulation=1):
    """Losses and gradient norms of three steps of a run, R-Drop included."""
    from train.test_step import run

    objective = Supervised(SupervisedConfig(rdrop_weight=1.0), ENCODER, TASKS[kind])
    losses, norms, _ = run(
        mesh,
        accumulation,
        objective=objective,
        batches=lambda step=0: make_batch(kind, 32, step),
    )
    return losses, norms


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "kind, mesh, accumulation",
    campaign(
        [(kind, *layout) for kind in TASKS for layout in LAYOUTS],
        # Each layout once; test_task_figures.py has the micro-batches of each kind.
        *((kind, *layout) for kind, layout in zip(MESHED, LAYOUTS, strict=True)),
    ),
)
def test_meshes_and_accumulation_give_the_same_training(kind, mesh, accumulation):
    for found, wanted in zip(
        trained(kind, mesh, accumulation), trained(kind), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
