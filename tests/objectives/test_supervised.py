"""Losses of fine-tuning: their values, their weights, R-Drop, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests_common import campaign

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
    return {
        "tokens": random.integers(1, 16, shape).astype(np.int32),
        "segments": segments,
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), shape).copy(),
        "types": np.zeros(shape, np.int32),
        "row": random.permutation(100)[:rows].astype(np.int32),
        "weight": weight,
        "label": labels if labels.dtype == np.float32 else labels.astype(np.int32),
    }


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


@pytest.mark.parametrize("kind", campaign([*TASKS], "tags"))
def test_micro_batches_add_up_to_the_whole(kind, strict):
    """With dropout: each row has its own, wherever it stands."""
    _, corrupt, loss = made(kind)
    batch = corrupt(make_batch(kind))
    assert batch["weights"].sum() == pytest.approx(1)
    # Padded to one shape, which is compiled once; rows of weight 0 count nothing.
    parts = []
    for i in range(2):
        here = np.arange(8) % 2 == i
        weights = batch["weights"] * here.reshape(
            -1, *[1] * (batch["weights"].ndim - 1)
        )
        parts.append(loss(batch | {"weights": weights}, True))
    value, metrics = loss(batch, True)
    assert float(value) == pytest.approx(sum(float(p[0]) for p in parts), rel=1e-6)
    for name, (total, count) in metrics.items():
        assert float(total) == pytest.approx(
            sum(float(p[1][name][0]) for p in parts), rel=1e-5
        )
        assert float(count) == sum(float(p[1][name][1]) for p in parts)
    assert float(value) == pytest.approx(
        float(metrics["loss"][0] / metrics["loss"][1]), rel=1e-6
    )


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


@pytest.mark.parametrize("kind", ["classes", "tags"])
def test_the_loss_is_the_mean_weighted_by_rows(kind, strict):
    _, corrupt, loss = made(kind)
    plain = make_batch(kind)
    weight = np.float32([1, 0.25, 0.5, 1, 0.25, 1, 0.125, 0])
    batch = corrupt(plain | {"weight": weight})
    assert batch["weights"].sum() == pytest.approx(1)
    # Each row alone: what it costs, and how many of it have a label.
    sums, counts = [], []
    for row in range(8):
        alone = np.zeros(8, np.float32)
        alone[row] = 1
        own = corrupt(plain | {"weight": alone})
        total, count = loss(own, False)[1]["loss"]
        sums.append(float(total))
        counts.append(float(count))
    wanted = (weight * sums).sum() / (weight * counts).sum()
    value, metrics = loss(batch, False)
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    # What a person reads counts all alike.
    assert float(metrics["loss"][0]) == pytest.approx(sum(sums[:7]), rel=1e-5)
    # Weights are shares: all of them small is all of them 1.
    small = corrupt(plain | {"weight": weight / 100})
    np.testing.assert_allclose(small["weights"], batch["weights"], rtol=1e-6)


def test_soft_labels_of_0_and_1_are_labels(strict):
    for kind in ("classes", "tags"):
        _, corrupt, loss = made(kind)
        batch = make_batch(kind)
        label = batch["label"]
        soft = np.eye(3, dtype=np.float32)[np.maximum(label, 0)]
        soft[label < 0] = 0
        hard, softened = corrupt(batch), corrupt(batch | {"label": soft})
        np.testing.assert_array_equal(hard["weights"], softened["weights"])
        (a, ours), (b, theirs) = loss(hard, False), loss(softened, False)
        assert float(a) == pytest.approx(float(b), rel=1e-6)
        for name, (total, count) in ours.items():
            assert float(total) == pytest.approx(float(theirs[name][0]), rel=1e-6)
            assert float(count) == float(theirs[name][1])


def test_a_batch_of_fillers_alone_has_no_loss():
    _, corrupt, loss = made("classes")
    empty = make_batch("classes") | {"weight": np.zeros(8, np.float32)}
    value, metrics = loss(corrupt(empty), True)
    assert float(value) == 0 and float(metrics["accuracy"][1]) == 0


def test_losses_are_those_of_the_textbook():
    random = np.random.default_rng(0)
    scores = random.normal(size=(5, 3)).astype(np.float32)
    logp = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    labels = np.array([0, 2, 1, 1, 0])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    kind, rows = KINDS["classes"], np.arange(5)
    close(kind.loss(scores, labels, 0.0), -logp[rows, labels])
    smooth = 0.9 * -logp[rows, labels] + 0.1 * -logp.mean(-1)
    close(kind.loss(scores, labels, 0.1), smooth)
    soft = np.exp(random.normal(size=(5, 3)).astype(np.float32))
    soft /= soft.sum(-1, keepdims=True)
    close(kind.loss(scores, soft, 0.0), -(soft * logp).sum(-1))
    close(kind.score(scores, labels), scores.argmax(-1) == labels)
    close(kind.score(scores, soft), scores.argmax(-1) == soft.argmax(-1))

    several = random.integers(0, 2, (5, 3)).astype(np.float32)
    p = 1 / (1 + np.exp(-scores))
    bce = -(several * np.log(p) + (1 - several) * np.log(1 - p))
    close(KINDS["multilabel"].loss(scores, several, 0.0), bce.mean(-1))
    hits = (p > 0.5) == (several > 0)
    close(KINDS["multilabel"].score(scores, several), hits.mean(-1))

    numbers = random.normal(size=5).astype(np.float32)
    close(
        KINDS["regression"].loss(scores[:, :1], numbers, 0.0),
        (scores[:, 0] - numbers) ** 2,
    )
    close(
        KINDS["regression"].score(scores[:, :1], numbers), abs(scores[:, 0] - numbers)
    )

    ends = random.normal(size=(4, 6, 2)).astype(np.float32)
    where = np.array([[0, 0], [1, 3], [5, 5], [2, 4]])
    logp = ends - np.log(np.exp(ends).sum(1, keepdims=True))
    rows = np.arange(4)
    wanted = -(logp[rows, where[:, 0], 0] + logp[rows, where[:, 1], 1]) / 2
    close(KINDS["answers"].loss(ends, where, 0.0), wanted)
    close(KINDS["answers"].score(ends, where), (ends.argmax(1) == where).all(-1))


def test_divergences_are_those_of_the_textbook():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 5, 3)).astype(np.float32)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    def both(p, q):
        return ((p - q) * np.log(p / q)).sum(-1) / 2

    close(KINDS["classes"].divergence(a, b), both(softmax(a), softmax(b)))
    yes = [1 / (1 + np.exp(-x)) for x in (a, b)]
    pairs = [np.stack([p, 1 - p], -1) for p in yes]
    close(KINDS["multilabel"].divergence(a, b), both(*pairs).mean(-1))
    close(KINDS["regression"].divergence(a[:, :1], b[:, :1]), (a - b)[:, 0] ** 2)
    for kind in KINDS.values():
        x = a[:, :, None] * np.ones(2, np.float32) if kind is KINDS["answers"] else a
        assert np.abs(kind.divergence(x, x)).max() == 0


def test_r_drop_adds_what_two_passes_disagree():
    _, corrupt, plain = made("classes")
    _, _, twice = made("classes", rdrop_weight=3.0)
    batch = corrupt(make_batch("classes"))
    value, metrics = twice(batch, True)
    means = {name: float(t / c) for name, (t, c) in metrics.items()}
    assert means["rdrop"] > 0
    wanted = means["loss"] + 3 * means["rdrop"]
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    # The second pass has another dropout than the first, so the mean is not the first.
    assert means["loss"] != pytest.approx(float(plain(batch, True)[0]), rel=1e-4)
    # Without dropout there is one pass.
    same, more = twice(batch, False)
    assert float(same) == float(plain(batch, False)[0]) and "rdrop" not in more


def test_smoothing_shapes_training_alone():
    _, corrupt, plain = made("classes")
    _, _, smooth = made("classes", label_smoothing=0.3)
    batch = corrupt(make_batch("classes"))
    assert float(smooth(batch, False)[0]) == float(plain(batch, False)[0])
    assert float(smooth(batch, True)[0]) != float(plain(batch, True)[0])


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
        # Each kind once, and each layout.
        *((kind, *LAYOUTS[n % len(LAYOUTS)]) for n, kind in enumerate(TASKS)),
    ),
)
def test_meshes_and_accumulation_give_the_same_training(kind, mesh, accumulation):
    for found, wanted in zip(
        trained(kind, mesh, accumulation), trained(kind), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
