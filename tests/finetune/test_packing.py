"""Packed fine-tuning: several examples a row learn what they would learn alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finetune_common import config_of
from tests_common import campaign

from plmjax import PlmjaxError, tree
from plmjax.data.features import Features
from plmjax.data.task_batches import TaskBatches, batch_of
from plmjax.data.task_packs import pack_features
from plmjax.models import EncoderConfig
from plmjax.models.task_heads import init_model, task_logits
from plmjax.objectives import Key
from plmjax.objectives.supervised import Supervised, SupervisedConfig
from plmjax.tasks.task import Task

MODERN = EncoderConfig(
    family="modernbert",
    vocab_size=40,
    layers=1,
    width=16,
    heads=2,
    ffn_width=16,
    max_positions=16,
    token_types=0,
    gated=True,
    bias=False,
    norm_place="pre",
    norm_embeddings=True,
    layer_kinds=("local",),
    window=4,
    positions="rope",
    dropout=0.0,
    attention_dropout=0.0,
)
SIZES = np.array([3, 16, 5, 5, 4, 9, 3, 7, 4])
KEY = Key(jnp.uint32(0), jnp.uint32(0))


def make_features(kind: str) -> Features:
    random = np.random.default_rng(0)
    rows, length = len(SIZES), 16
    real = np.arange(length) < SIZES[:, None]
    word = np.where(real & (random.random(real.shape) < 0.5), 0, -1)
    labels = {
        "classes": random.integers(0, 3, rows).astype(np.int32),
        "multilabel": random.integers(0, 2, (rows, 3)).astype(np.float32),
        "regression": random.normal(size=rows).astype(np.float32),
        "tags": np.where(word < 0, -1, random.integers(0, 3, word.shape)),
        # Probabilities of pseudo-labels.
        "soft tags": random.dirichlet(np.ones(3), word.shape) * (word >= 0)[..., None],
    }
    label = labels[kind].astype(
        {"i": np.int32, "f": np.float32}[labels[kind].dtype.kind]
    )
    arrays = {
        "tokens": np.where(real, random.integers(5, 40, real.shape), 1).astype(
            np.int32
        ),
        "segments": real.astype(np.int32),
        "positions": np.where(real, np.arange(length), 0).astype(np.int32),
        "types": np.zeros(real.shape, np.int32),
        "word_start": real,
        "row": np.arange(rows, dtype=np.int32),
        "weight": random.random(rows, np.float32) + 0.5,
        "label": label,
    }
    example = np.arange(rows, dtype=np.int32)
    return Features(arrays, example, {}, 1, word=word if "tags" in kind else None)


@pytest.mark.parametrize(
    "kind",
    campaign(
        ["classes", "multilabel", "regression", "tags", "soft tags"], "classes", "tags"
    ),
)
def test_losses_gradients_and_scores_are_those_of_examples_alone(kind):
    features = make_features(kind)
    labels = () if kind == "regression" else ("a", "b", "c")
    task = Task(kind.removeprefix("soft "), labels)
    objective = Supervised(SupervisedConfig(), MODERN, task)
    packed = pack_features(features, seed=1)
    assert packed.features.rows == 4 == -(-SIZES.sum() // 16)
    alone = batch_of(features, np.arange(len(SIZES)))
    together = batch_of(packed.features, np.array([0, 1, 2, 3, -1]))
    params = init_model(MODERN, task, jax.random.key(0), alone)

    @jax.jit
    def learn(params, batch):
        def loss(params):
            masked = objective.corrupt({}, batch, KEY, 0.0)
            return objective.loss(params, {}, masked, KEY, True)

        return jax.value_and_grad(loss, has_aux=True)(params), task_logits(
            MODERN, task, params, batch, None
        )

    ((loss, metrics), grads), scores = learn(params, alone)
    ((ours, figures), slopes), values = learn(params, together)
    np.testing.assert_allclose(ours, loss, rtol=1e-6)
    for name, pair in metrics.items():
        np.testing.assert_allclose(figures[name], pair, rtol=1e-5, err_msg=name)
    for name, slope in tree.flatten(slopes).items():
        expected = tree.flatten(grads)[name]
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6, err_msg=name)
    seen = []
    for packs in (np.arange(2), np.arange(2, 4)):
        rows, back = packed.unpack(packs, np.asarray(values)[packs])
        seen += rows.tolist()
        for row, one in zip(rows, back, strict=True):
            size = SIZES[row] if features.word is not None else None
            wanted = np.asarray(scores[row])[:size]
            np.testing.assert_allclose(one[:size], wanted, rtol=1e-5, atol=1e-6)
    assert sorted(seen) == [*range(len(SIZES))]


def test_an_epoch_of_packed_rows_has_each_example_once():
    features = make_features("classes")
    packed = pack_features(features, seed=1).features
    batches = TaskBatches(packed, 3, seed=0)
    assert batches.steps == 2
    label, tokens = [], 0
    for step in range(2):
        batch = batches.batch(step)
        label += batch["label"][batch["weight"] > 0].tolist()
        tokens += (batch["segments"] > 0).sum()
    assert sorted(label) == sorted(features.arrays["label"].tolist())
    assert tokens == SIZES.sum()
    other = pack_features(features, seed=2).features
    assert (other.arrays["tokens"] != packed.arrays["tokens"]).any()


@pytest.mark.parametrize(
    "more, message",
    [
        (("task.kind=answers",), "task.rows=packed is not for task.kind=answers"),
        (("task.buckets=(8,)",), "task.buckets=(8,) has no effect"),
        (
            ("cache_features=True", "train.optimizer.freeze=encoder"),
            "with cache_features no step has one",
        ),
    ],
)
def test_what_cannot_be_packed_is_refused(more, message, tmp_path):
    with pytest.raises(PlmjaxError) as error:
        config_of(tmp_path, tmp_path, "task.rows=packed", *more)
    assert message in str(error.value)
