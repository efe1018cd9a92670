"""The step: accumulation and meshes agree, one reduction, bad updates skipped."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests_common import batch_of, campaign

from plmjax import PlmjaxError, processes
from plmjax.models import EncoderConfig
from plmjax.objectives import MLM, Key, MLMConfig, Pieces
from plmjax.train import sharding
from plmjax.train.config import MeshConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from plmjax.train.job import shapes_of, step_for
from plmjax.train.optimizer import make_optimizer
from plmjax.train.schedule import make_schedule
from plmjax.train.step import init_state, lower, make_evaluation, make_step

ENCODER = EncoderConfig(
    vocab_size=96, layers=1, width=32, heads=4, ffn_width=64, max_positions=32
)


def pieces(vocab_size: int) -> Pieces:
    return Pieces(4, (0, 1, 2, 3, 4), (3,) * vocab_size)


def make_batch(rows: int = 32, length: int = 32, step: int = 0, vocabulary: int = 96):
    """Random rows of two documents each, the last quarter padding."""
    random = np.random.default_rng(step)
    tokens = random.integers(5, vocabulary, (rows, length)).astype(np.int32)
    half, end = length // 2, length * 3 // 4
    segments = np.zeros((rows, length), np.int32)
    segments[:, :half], segments[:, half:end] = 1, 2
    tokens[:, [0, half]], tokens[:, [half - 1, end - 1]] = 2, 3
    tokens[:, end:] = 0
    starts = random.random((rows, length)) < 0.6
    row = random.permutation(1000)[:rows].astype(np.int32)
    batch = batch_of(tokens, segments=segments, word_start=starts, row=row)
    batch["positions"][:, half:] -= half
    batch["positions"] *= segments > 0
    return batch


def run(mesh_sizes, accumulation=1, dtype="float32", steps=3, unit="token", **more):
    """Trains a few steps on a mesh; returns losses, gradient norms, the state.

    Over several processes, each calls it.
    """
    count = int(np.prod(mesh_sizes))
    mesh = sharding.make_mesh(MeshConfig(*mesh_sizes), jax.devices()[:count])
    encoder = dataclasses.replace(ENCODER, dtype=dtype)
    objective = more.get("objective", MLM(MLMConfig(unit=unit), encoder, pieces(96)))
    batches = more.get("batches", make_batch)
    frozen = objective.tables() | more.get("frozen", {})
    settings = more.get("optimizer", OptimizerConfig())
    optimizer = make_optimizer(settings)
    rate = settings.learning_rate
    schedule = make_schedule(ScheduleConfig(warmup_percent=0), rate, 100)

    def initialise(batch):
        return init_state(objective, optimizer, 0, batch, more.get("ema") is not None)

    batch = batches()
    with jax.set_mesh(mesh):
        zero1 = more.get("zero1", False)
        places = sharding.shardings(mesh, jax.eval_shape(initialise, batch), zero1)
        state = jax.jit(initialise, out_shardings=places)(batch)
        frozen = jax.device_put(frozen, sharding.shardings(mesh, frozen))
        step = make_step(
            objective,
            optimizer,
            schedule,
            mesh,
            seed=0,
            steps=100,
            accumulation=accumulation,
            ema_decay=more.get("ema"),
            zero1=zero1,
        )
        losses, norms = [], []
        for i in range(steps):
            if i == more.get("restart_at"):
                state = more["restart"](state)
            batch = batches(step=i)
            mine = sharding.local_rows(mesh, len(batch["row"]))
            mine = {name: array[mine] for name, array in batch.items()}
            state, metrics = step(state, frozen, sharding.put_rows(mesh, mine))
            losses.append(float(metrics["objective"][0]))
            norms.append(float(metrics["gradient_norm"][0]))
        for place, leaf in zip(
            jax.tree.leaves(places), jax.tree.leaves(state), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    return np.array(losses), np.array(norms), processes.gather_to_host(state)


@functools.cache
def reference(dtype: str):
    """What one device gives without accumulation."""
    return run((1, 1, 1), dtype=dtype)


MESHES = [
    ("float32", (1, 1, 1), 2),
    ("float32", (8, 1, 1), 1),
    ("float32", (8, 1, 1), 4),
    ("float32", (2, 2, 1), 4),  # rows over two axes
    ("float32", (2, 2, 2), 2),
    ("float32", (1, 8, 1), 1),
    ("bfloat16", (1, 1, 1), 4),
    ("bfloat16", (8, 1, 1), 1),
    ("bfloat16", (2, 2, 2), 1),
]


# Each axis at every change; objectives/test_every_objective.py has further meshes.
@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, mesh, accumulation", campaign(MESHES, MESHES[3], MESHES[4], MESHES[7])
)
@pytest.mark.timeout(120)
def test_meshes_and_accumulation_give_the_same_training(dtype, mesh, accumulation):
    losses, norms, _ = reference(dtype)
    tolerance = 1e-5 if dtype == "float32" else 5e-5
    others = run(mesh, accumulation, dtype)
    np.testing.assert_allclose(others[0], losses, rtol=tolerance)
    np.testing.assert_allclose(others[1], norms, rtol=tolerance)


@pytest.mark.slow
def test_zero1_trains_alike_on_a_part_of_the_moments():
    """Each device holds and updates an eighth; the sums are those of all."""
    losses, norms, whole = reference("float32")
    others = run((8, 1, 1), zero1=True, accumulation=4)
    np.testing.assert_allclose(others[0], losses, rtol=1e-5)
    np.testing.assert_allclose(others[1], norms, rtol=1e-5)
    mesh = sharding.make_mesh(MeshConfig(8), jax.devices())
    moments = {"moments": whole.moments}
    alone = sharding.bytes_per_device(mesh, moments)
    shared = sharding.bytes_per_device(mesh, moments, zero1=True)
    assert shared < 1.1 * alone / 8, (alone, shared)


@pytest.mark.slow
def test_zero1_shares_the_average_and_goes_with_other_axes(monkeypatch):
    """Also where chips exchange line by line, two lines of two."""
    monkeypatch.setattr(sharding, "_lines", lambda chips: [2] * (len(chips) // 2))
    losses, norms, whole = reference("float32")
    for sizes in ((2, 2, 2), (4, 2, 1)):
        others = run(sizes, zero1=True, ema=0.9)
        np.testing.assert_allclose(others[0], losses, rtol=1e-5)
        np.testing.assert_allclose(others[1], norms, rtol=1e-5)
        assert_close(others[2].moments, whole.moments)


def assert_close(tree, expected):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_chips_of_a_tpu_exchange_along_their_lines():
    def stages(*coordinates):
        chips = [SimpleNamespace(platform="tpu", coords=c) for c in coordinates]
        devices = np.array(chips).reshape(-1, 1, 1)
        mesh: Any = SimpleNamespace(devices=devices, shape={"data": len(chips)})
        return sharding.stages(mesh, "data")

    flat = list(itertools.product(range(2), range(3), [0]))
    assert stages(*flat) == [[[0, 3], [1, 4], [2, 5]], [[0, 1, 2], [3, 4, 5]]]
    assert [len(s[0]) for s in stages(*itertools.product(*map(range, (2, 4, 3))))] == [
        2,
        4,
        3,
    ]
    ring = [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)]
    assert stages(*ring) == [[[0, 1, 2, 3]]]
    assert stages((0, 0, 0)) == [[[0]]]


@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_data_mesh_gives_the_losses_of_pmap():
    """Data parallelism as it used to be written: a replica a device, and a psum."""
    objective, steps = MLM(MLMConfig(), ENCODER, pieces(96)), 3
    settings = OptimizerConfig()
    optimizer = make_optimizer(settings)
    schedule = make_schedule(
        ScheduleConfig(warmup_percent=0), settings.learning_rate, 100
    )
    corrupt, tables = jax.jit(objective.corrupt), objective.tables()

    def step(params, moments, batch, index):
        key = Key(jnp.uint32(0), index.astype(jnp.uint32))
        f = jax.value_and_grad(objective.loss, has_aux=True)
        (loss, _), grads = f(params, tables, batch, key, True)
        loss, grads = jax.lax.psum((loss, grads), "replica")
        direction, moments = optimizer.update(grads, moments, params)
        rate = schedule(index)
        params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
        return params, moments, loss

    parallel = jax.pmap(step, axis_name="replica", in_axes=(0, 0, 0, None))
    params = objective.init(jax.random.key(0), make_batch())
    copies = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (8, *x.shape)), (params, optimizer.init(params))
    )
    losses = []
    for i in range(steps):
        # Masks, and the weights that sum to 1, are those of the global batch.
        key = Key(jnp.uint32(0), jnp.uint32(i))
        batch = corrupt(tables, make_batch(step=i), key, jnp.float32(i / 100))
        shares = {
            k: np.asarray(v).reshape(8, -1, *v.shape[1:]) for k, v in batch.items()
        }
        *copies, loss = parallel(*copies, shares, jnp.int32(i))
        losses.append(float(loss[0]))
    np.testing.assert_allclose(run((8, 1, 1))[0], losses, rtol=1e-6)


def lowered_step(objective, batch, mesh_sizes, frozen=None, **train):
    """Returns the program of a step on a mesh, made of shapes alone."""
    count = int(np.prod(mesh_sizes))
    mesh = sharding.make_mesh(MeshConfig(*mesh_sizes), jax.devices()[:count])
    config = TrainConfig(batch=len(batch["row"]), **train)
    frozen = objective.tables() | (frozen or {})

    def placed(arrays, shardings):
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            arrays,
            shardings,
        )

    return lower(
        step_for(objective, config, mesh, False, 100),
        shapes_of(objective, config, mesh, False, batch),
        placed(frozen, sharding.shardings(mesh, frozen)),
        placed(batch, dict.fromkeys(batch, sharding.rows(mesh))),
    )


def lowered(mesh_sizes, accumulation: int, unit: str, seed: int = 0):
    objective = MLM(MLMConfig(unit=unit), ENCODER, pieces(96))
    given = {"accumulation": accumulation, "seed": seed}
    return lowered_step(objective, make_batch(), mesh_sizes, **given)


def learned(objective, batch, key: Key, rate: float, steps: int, **given):
    """Trains on one batch with the same draws in each step.

    Returns the losses, and the means of the metrics by name, each [steps].
    """
    optimizer = optax.adam(rate)
    frozen = objective.tables() | given.get("frozen", {})

    def loss(params):
        masked = objective.corrupt(frozen, batch, key, jnp.float32(0))
        return objective.loss(params, frozen, masked, key, True)

    def step(state, _):
        params, moments = state
        figures, grads = jax.value_and_grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, updates), moments), figures

    @jax.jit
    def train(params):
        state = params, optimizer.init(params)
        return jax.lax.scan(step, state, length=steps)[1]

    params = given.get("params") or jax.jit(objective.init)(jax.random.key(0), batch)
    losses, metrics = jax.device_get(train(params))
    return losses, {n: total / np.maximum(m, 1) for n, (total, m) in metrics.items()}


def test_all_seeds_have_one_program():
    programs = [
        lowered((1, 1, 1), 1, "token", seed).as_text() for seed in (0, 2**32 - 1)
    ]
    assert programs[0] == programs[1]


@pytest.mark.campaign
def test_resharding_of_words_and_tokens_masks_the_same():
    a, b = run((1, 1, 1), unit="word", steps=2), run((8, 1, 1), unit="word", steps=2)
    np.testing.assert_allclose(a[0], b[0], rtol=1e-5)


def test_the_step_depends_on_the_row_not_on_its_place():
    """Dropout and masks follow a row when the batch is shuffled."""
    objective = MLM(MLMConfig(), ENCODER, pieces(96))
    batch = make_batch()
    order = np.random.default_rng(1).permutation(32)
    key, tables = Key(jnp.uint32(3), jnp.uint32(7)), objective.tables()
    params = jax.jit(objective.init)(jax.random.key(0), batch)

    @jax.jit
    def loss(batch):
        batch = objective.corrupt(tables, batch, key, 0.0)
        return objective.loss(params, tables, batch, key, True)[0], batch["tokens"]

    a, tokens = loss(batch)
    b, shuffled = loss({k: v[order] for k, v in batch.items()})
    np.testing.assert_array_equal(tokens[order], shuffled)
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_average_follows_the_weights():
    _, _, start = run((1, 1, 1), steps=0, ema=0.9)
    _, _, end = run((1, 1, 1), steps=1, ema=0.9)
    for a, b, mean in zip(
        jax.tree.leaves(start.params),
        jax.tree.leaves(end.params),
        jax.tree.leaves(end.average),
        strict=True,
    ):
        np.testing.assert_allclose(mean, 0.9 * a + 0.1 * b, atol=1e-6)


def test_evaluation_does_not_depend_on_the_batch():
    objective = MLM(MLMConfig(), ENCODER, pieces(96))
    evaluation, tables = make_evaluation(objective), objective.tables()
    batch = make_batch()
    params = jax.jit(objective.init)(jax.random.key(0), batch)
    whole = evaluation(params, tables, batch)
    parts = [
        evaluation(params, tables, {k: v[i : i + 8] for k, v in batch.items()})
        for i in range(0, 32, 8)
    ]
    for name, (total, count) in whole.items():
        assert count == sum(part[name][1] for part in parts)
        sums = sum(float(part[name][0]) for part in parts)
        np.testing.assert_allclose(sums, total, rtol=1e-5)


def test_what_an_axis_does_not_divide_is_said():
    params = {
        "encoder": {
            "embeddings": {"token": jax.ShapeDtypeStruct((97, 64), "float32")},
            "layer_0": {"ffn": {"up": {"bias": jax.ShapeDtypeStruct((7,), "float32")}}},
        }
    }
    mesh = sharding.make_mesh(MeshConfig(data=2, tensor=4), jax.devices())
    (sentence,) = sharding.undivided(mesh, params)
    assert sentence.startswith("mesh.tensor=4 does not divide 97, a size of enc")
    mesh = sharding.make_mesh(MeshConfig(8), jax.devices())
    assert sharding.undivided(mesh, params) == []


def test_batches_that_do_not_divide_name_the_nearest_that_does():
    mesh = sharding.make_mesh(MeshConfig(8), jax.devices())
    with pytest.raises(PlmjaxError, match="nearest batch that does is 16"):
        sharding.check_batch(mesh, 20, 2)
    with pytest.raises(PlmjaxError, match="do not multiply to the 8 devices"):
        sharding.make_mesh(MeshConfig(3, 2, 2))
