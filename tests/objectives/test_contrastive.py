"""Learning by contrast: what is no negative, and meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests_common import batch_of

from plmjax import PlmjaxError
from plmjax.models import EncoderConfig
from plmjax.objectives import Contrastive, Key, SupervisedConfig
from plmjax.objectives.contrastive import candidates
from plmjax.tasks.task import Task
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.step import gradients

ENCODER = EncoderConfig(
    vocab_size=16, layers=1, width=8, heads=2, ffn_width=8, max_positions=8, dropout=0.1
)
TASK = Task("embeddings")
TEMPERATURE = 0.1
KEY = Key(jnp.uint32(1), jnp.uint32(2))
ROWS, TEXTS, LENGTH = 16, 3, 6


@functools.cache
def objective_of(texts=TEXTS):
    return Contrastive(SupervisedConfig(), ENCODER, TASK, TEMPERATURE, texts)


def make_batch(step=0):
    """Rows of which two have one text, two one pair, one is turned round; a filler."""
    random = np.random.default_rng(step)
    shape = (ROWS, TEXTS, LENGTH)
    segments = np.ones(shape, np.int32)
    segments[..., -2:] = random.integers(0, 2, (ROWS, TEXTS, 1))
    number = np.arange(ROWS * TEXTS, dtype=np.int32).reshape(ROWS, TEXTS)
    number[1, 0] = number[0, 0]  # a text twice
    number[3, 1] = number[2, 1]  # a pair twice
    number[5, :2] = number[4, 1::-1]  # b, a beside a, b
    number[6, 2] = number[7, 1]  # a negative that is another's pair
    weight = np.ones(ROWS, np.float32)
    weight[-1] = 0
    table = random.integers(1, 16, (ROWS * TEXTS, LENGTH)).astype(np.int32)
    row = random.permutation(100)[:ROWS].astype(np.int32)
    batch = batch_of(
        table[number], segments=segments, row=row, weight=weight, label=number
    )
    for name in ("tokens", "segments", "positions", "label"):
        batch[name][-1] = 0
    return batch


@functools.cache
def params():
    made = jax.jit(objective_of().init)(jax.random.key(0), make_batch())
    return jax.device_get(jax.tree.map(lambda x: 20 * x, made))


@functools.cache
def corrupted():
    given = {}, make_batch(), KEY, jnp.float32(0)
    return jax.device_get(objective_of().corrupt(*given))


def test_what_is_the_same_is_no_negative(strict):
    batch = make_batch()
    number, real = jnp.asarray(batch["label"]), jnp.asarray(batch["weight"] > 0)
    found = np.asarray(candidates(number, number, real, 0))
    pairs, negatives = found[:, :ROWS], found[:, ROWS:]
    left_out = {(0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)}
    for row in range(ROWS - 1):
        for other in range(ROWS):
            counts = other < ROWS - 1 and (row, other) not in left_out
            assert pairs[row, other] == counts, (row, other)
            own = (row, other) == (7, 6)  # its own pair, in another's place
            assert negatives[row, other] == (other < ROWS - 1 and not own)
    # Even a text that is its own pair has that pair.
    same = jnp.zeros((2, 2), jnp.int32)
    alone = np.asarray(candidates(same, same, jnp.ones(2, bool), 0))
    np.testing.assert_array_equal(alone, np.eye(2, dtype=bool))


@functools.cache
def program(shape):
    """batch -> (loss, gradients) on so many devices, as in training."""
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = sharding.make_mesh(MeshConfig(*shape), devices)
    f = gradients(objective_of(), mesh, params(), {})
    # The quicker code of tests/conftest.py rounds exp by where it stands in an array.
    f = jax.jit(f, compiler_options={"xla_cpu_use_fusion_emitters": True})

    def call(batch):
        with jax.set_mesh(mesh):
            placed = jax.device_put(params(), sharding.shardings(mesh, params()))
            loss, _, grads = f(placed, {}, sharding.put_rows(mesh, batch), KEY, None)
        return jax.device_get((loss, grads))

    return call


ALONE = (1, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(4, 2, 1), pytest.param((2, 2, 2), marks=pytest.mark.campaign)]
)
def test_negatives_are_those_of_all_devices(shape):
    (loss, grads), (wanted, theirs) = (program(s)(corrupted()) for s in (shape, ALONE))
    assert loss == pytest.approx(wanted, rel=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs))
    for ours, other in zip(
        jax.tree.leaves(grads), jax.tree.leaves(theirs), strict=True
    ):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("values", [{"label_smoothing": 0.1}, {"rdrop_weight": 1.0}])
def test_what_is_for_labels_is_refused(values):
    with pytest.raises(PlmjaxError, match=f"objective.{next(iter(values))}"):
        Contrastive(SupervisedConfig(**values), ENCODER, TASK, TEMPERATURE)


def test_a_batch_of_fillers_alone_is_finite():
    batch = corrupted() | {"weights": np.zeros(ROWS, np.float32)}
    batch |= {"weight": np.zeros(ROWS, np.float32)}
    batch |= {"segments": np.zeros_like(batch["segments"])}
    value, grads = program(ALONE)(batch)
    assert float(value) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
