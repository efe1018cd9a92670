"""The step against its recursion in NumPy: gradients, averages, skipped updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plmjax.objectives.base import Objective
from plmjax.train import job, sharding
from plmjax.train.config import MeshConfig, TrainConfig
from plmjax.train.loop import evaluate
from plmjax.train.metrics import means
from plmjax.train.step import init_state, make_evaluation, make_step
from plmjax.tree import flatten

ROWS, SLOTS, WIDTH, SEED = 8, 5, 4, 3
# Steps of which the loss is nan, and of which the gradient is, of a finite loss.
BAD_LOSS, BAD_GRADIENT = (2, 6), (3,)
STEPS, MOMENTUM = 8, 0.5


def make_params() -> dict:
    """Returns what rules divide in two ways or not at all; in the order of jax."""
    random = np.random.default_rng(0)
    table, kernel = random.normal(size=(2, WIDTH, WIDTH)).astype(np.float32)
    bias = random.normal(size=WIDTH).astype(np.float32)
    return {
        "encoder": {
            "embeddings": {"token": table},
            "layer_0": {"ffn": {"down": {"bias": bias}, "up": {"kernel": kernel}}},
        }
    }


def make_batch(step: int) -> dict:
    """Returns rows of unequal numbers of tokens, the last of them none."""
    random = np.random.default_rng(100 + step)
    shape = (ROWS, SLOTS, WIDTH)
    size = np.array([5, 1, 3, 2, 5, 1, 4, 0])
    poison = np.float32(step in BAD_LOSS) + 2 * np.float32(step in BAD_GRADIENT)
    return {
        "x": random.normal(size=shape).astype(np.float32),
        "y": random.normal(size=shape).astype(np.float32),
        "segments": (np.arange(SLOTS) < size[:, None]).astype(np.int32),
        "poison": np.full(ROWS, poison, np.float32),
    }


class Regression(Objective):
    """The weighted squares of x @ kernel @ table + bias - y, of tokens.

    What is sought moves with the step, the seed and the progress.
    """

    models = {}

    def corrupt(self, frozen, batch, key, progress):
        used = (batch["segments"] > 0).astype(jnp.float32)
        return batch | {"weights": used / jnp.sum(used), "y": batch["y"] + progress}

    def loss(self, params, frozen, batch, key, train):
        table, bias, kernel = flatten(params).values()
        moved = batch["y"] + 0.1 * key.step + 0.01 * key.seed + 0.5 * train
        error = jnp.sum(jnp.square(batch["x"] @ kernel @ table + bias - moved), -1)
        value = jnp.sum(error * batch["weights"])
        poison = batch["poison"][0]
        value += jnp.where(poison == 1, jnp.nan, 0)
        # The root of 0 has no slope, and 0 times what is infinite is nan.
        slope = jnp.sqrt(jnp.where(poison == 2, 0 * jnp.sum(table), 1))
        value += jnp.where(poison == 2, slope, 0)
        used = (batch["weights"] > 0).astype(jnp.float32)
        return value, {"squares": (jnp.sum(error * used), jnp.sum(used))}

    def init(self, key, batch):
        return jax.tree.map(jnp.asarray, make_params())

    def scores(self, means):
        return means

    def slots(self, length):
        return SLOTS

    def flops(self, length):
        return SLOTS


def by_hand(batch, table, bias, kernel, step: int, progress: float, train=True):
    """Returns the loss, and the gradients of all three, in float64."""
    loss = dtable = dbias = dkernel = 0.0
    count = batch["segments"].sum()
    shift = progress + 0.1 * step + 0.01 * SEED * train + 0.5 * train
    for row, at in np.argwhere(batch["segments"] > 0):
        x, y = np.float64(batch["x"][row, at]), np.float64(batch["y"][row, at])
        error = x @ kernel @ table + bias - (y + shift)
        loss += error @ error / count
        dbias += 2 * error / count
        dkernel += np.outer(x, 2 * error @ table.T) / count
        dtable += np.outer(x @ kernel, 2 * error) / count
    return loss, dtable, dbias, dkernel


def rate(step):
    return 0.02 / (1 + step)


@functools.cache
def recursion(kind: str) -> list[dict]:
    """Returns what there is after each step: weights, moments, average, figures."""
    params = [np.float64(leaf) for leaf in flatten(make_params()).values()]
    average = [leaf.copy() for leaf in params]
    moments = [np.zeros_like(leaf) for leaf in params]
    window: list = []  # the weights after each step that counts in the plain mean
    bad = skipped = 0
    found = []
    for step in range(STEPS):
        batch, at = make_batch(step), step / STEPS
        loss, *grads = by_hand(batch, *params, step, at)
        if step in (*BAD_LOSS, *BAD_GRADIENT):
            bad, skipped = bad + 1, skipped + 1
        else:
            bad = 0
            moments = [g + MOMENTUM * m for g, m in zip(grads, moments, strict=True)]
            params = [p - rate(step) * m for p, m in zip(params, moments, strict=True)]
            if kind == "ema":
                average = [
                    0.9 * a + 0.1 * p for a, p in zip(average, params, strict=True)
                ]
        if kind.startswith("from"):
            since = int(kind.removeprefix("from"))
            window += [params] if step >= since else []
            means = zip(*(window or [params]), strict=True)
            average = [np.mean(leaves, 0) for leaves in means]
        found.append(
            {
                "params": params,
                "moments": moments,
                "average": average,
                "loss": loss,
                "norm": np.sqrt(sum((g**2).sum() for g in grads)),
                "tokens": batch["segments"].sum(),
                "bad_steps": bad,
                "skipped": skipped,
                "rate": rate(step),
            }
        )
    return found


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


AVERAGES = {
    "ema": {"ema_decay": 0.9},
    "from0": {"average_from": 0},
    "from4": {"average_from": 4},
}


@pytest.mark.parametrize(
    "kind, sizes, accumulation, zero1",
    [
        ("ema", (1, 1, 1), 1, False),
        ("from4", (1, 1, 1), 2, False),
        ("ema", (2, 2, 1), 2, False),
        ("from0", (2, 2, 1), 1, True),
        ("from4", (2, 2, 2), 1, True),
    ],
)
def test_a_training_is_its_recursion(kind, sizes, accumulation, zero1):
    """Weights, moments, averages and figures, whatever devices the rows are on."""
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = sharding.make_mesh(MeshConfig(*sizes), devices)
    optimizer = optax.trace(MOMENTUM)
    objective = Regression()
    state = init_state(objective, optimizer, SEED, make_batch(0), True)
    with jax.set_mesh(mesh):
        state = jax.device_put(state, sharding.shardings(mesh, state, zero1))
        step = make_step(
            objective,
            optimizer,
            rate,
            mesh,
            seed=SEED,
            steps=STEPS,
            accumulation=accumulation,
            zero1=zero1,
            **AVERAGES[kind],
        )
        for i, wanted in enumerate(recursion(kind)):
            batch = sharding.put_rows(mesh, make_batch(i))
            state, metrics = step(state, {}, batch)
            now = jax.device_get(state)
            assert now.step == i + 1
            trees = {
                "params": now.params,
                "moments": now.moments.trace,
                "average": now.average,
            }
            for name, tree in trees.items():
                for ours, theirs in zip(
                    flatten(tree).values(), wanted[name], strict=True
                ):
                    close(ours, theirs)
            assert now.bad_steps == wanted["bad_steps"]
            assert now.skipped == wanted["skipped"]
            total = {name: float(s) for name, (s, _) in metrics.items()}
            counts = {name: float(n) for name, (_, n) in metrics.items()}
            assert total["bad_steps"] == wanted["bad_steps"]
            assert total["skipped"] == wanted["skipped"]
            assert total["tokens"] == wanted["tokens"]
            close(total["learning_rate"], wanted["rate"])
            # A micro-batch of a device counts one, that tokens a step can be meant.
            parts = accumulation * (sizes[0] * sizes[1] if sizes[2] == 1 else 1)
            assert counts.pop("tokens") == parts
            assert counts.pop("squares") == wanted["tokens"]
            assert set(counts.values()) == {1}
            close(total["squares"] / wanted["tokens"], wanted["loss"])
            if i not in BAD_LOSS:
                close(total["objective"], wanted["loss"])
            if i not in BAD_GRADIENT:
                close(total["gradient_norm"], wanted["norm"])


def test_evaluation_is_a_mean_over_all_batches():
    """Without noise, by one key, as at the last step: each token counts alike."""
    mesh = sharding.make_mesh(MeshConfig(1), jax.devices()[:1])
    evaluation = make_evaluation(Regression())
    params = jax.tree.map(jnp.asarray, make_params())
    weights = [np.float64(leaf) for leaf in flatten(make_params()).values()]
    batches = [make_batch(step) for step in range(3)]
    batches[1]["segments"][1:] = 0
    batches[2]["segments"][:] = 0
    total = count = 0
    for batch in batches[:2]:
        # By the key of evaluation, not by a run's.
        moved = batch | {"y": batch["y"] + 0.01 * np.float64(0x5EED)}
        size = batch["segments"].sum()
        total += size * by_hand(moved, *weights, step=0, progress=1.0, train=False)[0]
        count += size
    found = means(evaluate(evaluation, params, {}, mesh, iter(batches)))
    np.testing.assert_allclose(found["squares"], total / count, rtol=1e-5)
    nothing = means(evaluate(evaluation, params, {}, mesh, iter(batches[2:])))
    assert np.isnan(nothing["squares"])
    # Of one token it is what that costs.
    batches[2]["segments"][4, 2] = 1
    moved = batches[2] | {"y": batches[2]["y"] + 0.01 * np.float64(0x5EED)}
    one = by_hand(moved, *weights, step=0, progress=1.0, train=False)[0]
    found = means(evaluate(evaluation, params, {}, mesh, iter(batches[2:])))
    np.testing.assert_allclose(found["squares"], one, rtol=1e-5)


@pytest.mark.parametrize(
    "values, told",
    [
        ({}, (None, None)),
        ({"ema_decay": 0.75}, (0.75, None)),
        ({"average_from_percent": 0.0}, (None, 0)),
        # Of seven steps the last four.
        ({"average_from_percent": 50.0, "accumulation": 4}, (None, 3)),
    ],
)
@pytest.mark.parametrize("zero1", [True, False])
def test_a_job_steps_and_averages_as_its_config_says(monkeypatch, values, told, zero1):
    """The average starts from the first weights, and is what the job ends with."""
    train = TrainConfig(batch=ROWS, seed=SEED, **values)
    mesh = sharding.make_mesh(MeshConfig(1), jax.devices()[:1])
    monkeypatch.setattr(job, "make_step", lambda *_, **settings: settings)
    assert job.step_for(Regression(), train, mesh, zero1, 7) == {
        "seed": SEED,
        "steps": 7,
        "accumulation": values.get("accumulation", 1),
        "ema_decay": told[0],
        "average_from": told[1],
        "zero1": zero1,
        "loss_scale_steps": 2000,
        "prune": None,
    }
    state = job.initialise(Regression(), train)(make_batch(0))
    assert (state.average is None) == (told == (None, None))
    if state.average is None:
        assert job.weights_of(state) is state.params
    else:
        assert job.weights_of(state) is state.average
        jax.tree.map(np.testing.assert_array_equal, state.average, make_params())
