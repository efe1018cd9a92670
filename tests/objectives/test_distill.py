"""Distillation: each term by hand and as in PyTorch, sums, learning, bad settings."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import learned, lowered_step
from tests_common import batch_of

from plmjax import PlmjaxError
from plmjax.models import EncoderConfig, heads
from plmjax.objectives import Distill, DistillConfig, Key, Pieces, distances
from plmjax.objectives.distill import aligned, even_layers

VOCABULARY = 60
PIECES = Pieces(4, (0, 1, 2, 3, 4), (2,) * VOCABULARY)
TEACHER = EncoderConfig(
    vocab_size=VOCABULARY,
    layers=2,
    width=24,
    heads=4,
    ffn_width=32,
    max_positions=32,
    init_std=0.3,
)
STUDENT = dataclasses.replace(
    TEACHER, family="distilbert", layers=1, token_types=0, init_std=0.1
)
NARROW = dataclasses.replace(STUDENT, width=16)
FRESH = DistillConfig(teacher="t", start="fresh")
# Every term there is.
FULL = dataclasses.replace(FRESH, hidden_weight=0.7, attention_weight=0.4)


def key(step: int = 0) -> Key:
    return Key(jnp.uint32(1), jnp.uint32(step))


def make_batch(rows: int = 8, length: int = 16, seed: int = 0) -> dict:
    """Rows of two documents each, a fifth of them padding."""
    random = np.random.default_rng(seed)
    tokens = random.integers(5, VOCABULARY, (rows, length)).astype(np.int32)
    segments = np.ones((rows, length), np.int32)
    segments[:, length // 2 :] = 2
    segments[
        np.arange(length)[None] >= random.integers(9, length + 1, rows)[:, None]
    ] = 0
    tokens[:, [0, length // 2]] = 2
    tokens[segments == 0] = 0
    batch = batch_of(tokens, segments=segments)
    batch["row"] += 7
    batch["positions"] *= segments > 0
    return batch


@functools.cache
def frozen() -> dict:
    init = jax.jit(heads.init_model, static_argnums=(0, 3))
    return {"teacher": init(TEACHER, jax.random.key(9), make_batch(), ("head",))}


def losses(objective, params, frozen, batch, train=False, step=0):
    """Returns the jitted loss and metrics."""
    f = jax.jit(objective.loss, static_argnums=4)
    return f(params, objective.tables() | frozen, batch, key(step), train)


@functools.cache
def made(config=FRESH, encoder=STUDENT):
    """Returns the objective, fresh parameters and a corrupted batch."""
    objective = Distill(config, encoder, PIECES, TEACHER)

    @jax.jit
    def make(batch):
        corrupted = objective.corrupt(objective.tables(), batch, key(), jnp.float32(0))
        return objective.init(jax.random.key(0), batch), corrupted

    return objective, *make(make_batch())


@functools.partial(jax.jit, static_argnums=0)
def logits_of(config, params, batch):
    """Returns logits [B, L, V] and last states [B, L, H] of all tokens."""
    x_BLH = heads.encode(config, params, batch, None)
    logits = heads.vocabulary_logits(config, params, x_BLH.reshape(-1, config.width))
    return logits.reshape(*x_BLH.shape[:2], -1), x_BLH


@pytest.mark.peer
@pytest.mark.parametrize("where", ["all", "masked"])
def test_three_terms_are_those_of_pytorch(where):
    """As transformers' distillation example puts them together."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    config = dataclasses.replace(FRESH, soft_positions=where)
    objective, params, batch = made(config)
    value, metrics = losses(objective, params, frozen(), batch)

    def tensors(config, params):
        return [torch.from_numpy(np.array(x)) for x in logits_of(config, params, batch)]

    (ours, x), (theirs, y) = (
        tensors(STUDENT, params),
        tensors(TEACHER, frozen()["teacher"]),
    )
    labels = np.full(batch["tokens"].shape, -100)
    used = np.array(batch["weights"]) > 0
    rows = np.broadcast_to(np.arange(len(used))[:, None], used.shape)
    labels[rows[used], np.array(batch["mask_positions"])[used]] = np.array(
        batch["labels"]
    )[used]
    labels = torch.from_numpy(labels)
    real = torch.from_numpy(np.array(batch["segments"]) > 0)
    asked = real if where == "all" else labels >= 0
    soft = F.kl_div(
        F.log_softmax(ours[asked] / 2, -1),
        F.softmax(theirs[asked] / 2, -1),
        reduction="batchmean",
    )
    mlm = F.cross_entropy(ours.view(-1, VOCABULARY), labels.view(-1))
    cosine = F.cosine_embedding_loss(x[real], y[real], torch.ones(int(real.sum())))
    expected = {"soft_loss": soft * 4, "loss": mlm, "cosine_loss": cosine}
    for name, term in expected.items():
        total, count = metrics[name]
        np.testing.assert_allclose(total / count, float(term), rtol=1e-5)
    total = 5 * soft * 4 + 2 * mlm + cosine
    np.testing.assert_allclose(value, float(total), rtol=1e-5)


@pytest.mark.peer
def test_gradients_of_soft_loss_and_cosine_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    random = np.random.default_rng(0)
    a, b = (3 * random.standard_normal((7, 50)).astype(np.float32) for _ in "ab")

    def ours(a):
        return jnp.sum(distances.softened_kl(a, b, 3.0)) + jnp.sum(
            distances.cosine_loss(a, jnp.asarray(b))
        )

    x, y = torch.from_numpy(a).requires_grad_(), torch.from_numpy(b)
    soft = F.kl_div(F.log_softmax(x / 3, -1), F.softmax(y / 3, -1), reduction="sum") * 9
    (soft + F.cosine_embedding_loss(x, y, torch.ones(7), reduction="sum")).backward()
    np.testing.assert_allclose(jax.grad(ours)(a), x.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.campaign
@pytest.mark.parametrize(
    "more", [{}, {"remat": True}, {"sharing": "all"}], ids=["plain", "remat", "shared"]
)
def test_kept_states_are_those_of_the_plain_encoder(more):
    batch, config = make_batch(), dataclasses.replace(TEACHER, **more)
    params = heads.init_model(config, jax.random.key(0), batch, ())
    half = dataclasses.replace(config, layers=1)

    @jax.jit
    def run(params):
        noise = key().noise(batch)
        return (
            distances.encode(config, params, batch, noise),
            heads.encode(config, params, batch, noise),
            heads.encode(half, params, batch, noise),
        )

    (x_BLH, kept), plain, first = run(params)
    np.testing.assert_allclose(x_BLH, plain, atol=1e-6)
    assert len(kept.states) == config.layers
    np.testing.assert_array_equal(kept.states[1].reshape(plain.shape), x_BLH)
    # The first layer is a model of its own.
    np.testing.assert_allclose(kept.states[0].reshape(plain.shape), first, atol=1e-6)


@pytest.mark.parametrize("student, sizes", [(NARROW, (16, 24)), (STUDENT, None)])
def test_a_narrower_student_has_a_projection(student, sizes):
    objective = Distill(FULL, student, PIECES, TEACHER)
    params = jax.eval_shape(objective.init, jax.random.key(0), make_batch())
    assert objective.models["model"].extract(params).keys() == {"encoder", "head"}
    projection = params.get("projection")
    assert (projection and projection["kernel"].shape) == sizes


@pytest.mark.slow
def test_the_teacher_is_deterministic_and_has_no_gradient():
    # No dropout in the student, 10 % in the teacher: training and evaluation agree.
    still = dataclasses.replace(STUDENT, dropout=0.0, attention_dropout=0.0)
    objective, params, batch = made(FULL, still)
    assert TEACHER.dropout > 0

    @jax.jit
    def loss(frozen, step):
        given = objective.tables() | frozen
        return objective.loss(params, given, batch, Key(step, step), True)[0]

    both = jax.jit(jax.value_and_grad(loss))
    (first, grads), (other, _) = (both(frozen(), jnp.uint32(i)) for i in (3, 4))
    assert first == other
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_a_student_like_its_teacher_has_nothing_to_learn_from_it():
    still = dataclasses.replace(TEACHER, dropout=0.0, attention_dropout=0.0)
    objective, _, batch = made(FULL, still)
    _, metrics = losses(objective, frozen()["teacher"], frozen(), batch, True)
    means = {name: float(total / count) for name, (total, count) in metrics.items()}
    for name in ("soft_loss", "cosine_loss", "hidden_loss", "attention_loss"):
        assert abs(means[name]) < 1e-5, name
    scores = objective.scores(means)
    np.testing.assert_allclose(scores["loss"], 2 * means["loss"], atol=1e-4)
    assert scores["mlm_loss"] == means["loss"]


@pytest.mark.usefixtures("strict")
@pytest.mark.slow
@pytest.mark.parametrize(
    "config, encoder",
    [
        (FRESH, STUDENT),
        pytest.param(
            dataclasses.replace(FULL, soft_positions="masked"),
            NARROW,
            marks=pytest.mark.campaign,
        ),
    ],
    ids=["three terms", "all terms, narrower"],
)
def test_overfits_one_batch(config, encoder):
    """With the masks fixed, what the teacher says of a batch is learnt by heart."""
    still = dataclasses.replace(
        encoder, dropout=0.0, attention_dropout=0.0, init_std=0.2
    )
    config = dataclasses.replace(config, masks="static", mlm_weight=0.1)
    objective = Distill(config, still, PIECES, TEACHER)
    _, means = learned(objective, make_batch(), key(), 3e-3, 250, frozen=frozen())
    for name, smaller in {"soft": 0.05, "cosine": 0.1}.items():
        values = means[f"{name}_loss"]
        assert values[-1] < smaller * values[0], (name, values[0], values[-1])
    for name in ("hidden", "attention"):
        if config.weight(name):
            assert means[f"{name}_loss"][-1] < 0.5 * means[f"{name}_loss"][0]


def test_aligned_logits_leave_out_what_the_teacher_does_not_know():
    """Known pieces are compared by spelling; others get nothing, not even a push."""
    ours = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), jnp.float32)
    theirs = jnp.asarray(np.random.default_rng(1).standard_normal((3, 6)), jnp.float32)
    pieces = {
        "ids": jnp.array([5, 0, 2, 2]),
        "known": jnp.array([True, True, False, True]),
    }

    def soft(ours):
        return jnp.sum(distances.softened_kl(*aligned(ours, theirs, pieces), 2.0))

    at = jnp.array([0, 1, 3])
    direct: Any = distances.softened_kl(
        ours[:, at], theirs[:, jnp.array([5, 0, 2])], 2.0
    )
    np.testing.assert_allclose(soft(ours), direct.sum(), rtol=1e-5)
    grads = jax.grad(soft)(ours)
    assert not grads[:, 2].any() and grads[:, at].all()


@pytest.mark.slow
def test_the_teacher_reads_its_own_ids():
    """A teacher whose ids are shuffled says the same where they are mapped back."""
    order = np.random.default_rng(3).permutation(VOCABULARY).astype(np.int32)
    objective, params, batch = made()
    expected = losses(objective, params, frozen(), batch)[0]
    shuffled = jax.tree.map(np.array, frozen()["teacher"])
    for room, name in (("embeddings", "token"), (None, "bias")):
        home = shuffled["encoder"][room] if room else shuffled["head"]
        moved = np.empty_like(home[name])
        moved[order] = home[name]
        home[name] = moved
    config = dataclasses.replace(FRESH, align="strings")
    objective = Distill(config, STUDENT, PIECES, TEACHER)
    pieces = {"ids": order, "known": np.ones(VOCABULARY, bool)}
    given = {"teacher": shuffled, "pieces": pieces}
    found = losses(objective, params, given, batch)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    bare = {"teacher": shuffled, "pieces": pieces | {"ids": np.arange(VOCABULARY)}}
    assert abs(losses(objective, params, bare, batch)[0] - expected) > 0.01


@pytest.mark.campaign
def test_the_data_mesh_gathers_nothing():
    objective = Distill(FULL, NARROW, PIECES, TEACHER)
    text = (
        lowered_step(objective, make_batch(16), (8, 1, 1), frozen()).compile().as_text()
    )
    for other in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert f" {other}(" not in text
    assert re.search(r" all-reduce(-start)?\(", text)


def test_layers_are_spread_as_distilbert_spread_them():
    assert even_layers(6, 12) == (0, 2, 4, 7, 9, 11)
    assert even_layers(3, 3) == (0, 1, 2) and even_layers(1, 4) == (3,)
    assert even_layers(2, 4) == (0, 3)


@pytest.mark.parametrize(
    "more, encoder, teacher, message",
    [
        ({}, STUDENT, None, "has no teacher"),
        ({}, STUDENT, {"causal": True}, "is causal"),
        ({"layers": (0, 1)}, STUDENT, {}, "names 2 of the teacher's layers"),
        ({"layers": (2,)}, STUDENT, {}, "numbers from 0 to 1"),
        ({"start": "teacher"}, NARROW, {}, r"model.width=16 \(teacher: 24\)"),
        ({"start": "teacher"}, TEACHER, {"layers": 1}, "2 layers, more than"),
        ({"attention_weight": 1.0}, STUDENT, {"heads": 2}, "head by head"),
        ({"attention_weight": 1.0}, STUDENT, {"kv_heads": 2}, "head by head"),
        ({"start": "teacher"}, STUDENT, {"convolution_width": 3}, "convolution_width="),
    ],
)
def test_what_cannot_be_followed_is_refused(more, encoder, teacher, message):
    config = dataclasses.replace(FRESH, **more)
    given = None if teacher is None else dataclasses.replace(TEACHER, **teacher)
    with pytest.raises(PlmjaxError, match=message):
        Distill(config, encoder, PIECES, given)


def test_settings_out_of_range_are_refused():
    with pytest.raises(PlmjaxError, match="temperature"):
        DistillConfig(temperature=0)
    with pytest.raises(PlmjaxError, match="one must be above"):
        DistillConfig(soft_weight=0, mlm_weight=0, cosine_weight=0)
    with pytest.raises(PlmjaxError, match="hidden_weight is -1; it must be at least 0"):
        DistillConfig(hidden_weight=-1)
