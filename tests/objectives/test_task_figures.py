"""Loss, gradient and figures of fine-tuning, by brute force.

Scores are read off a table, so that NumPy knows them; what is tested is all that the
objectives make of them, on rows of unequal weights, some without a label.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_figures import (
    KEY,
    SEED,
    Case,
    check_figures,
    check_gradient,
    close,
    in_parts,
    log_softmax,
    one_step,
    sigmoid,
)
from tests_common import batch_of

from plmjax.models import EncoderConfig
from plmjax.objectives import (
    Contrastive,
    Supervised,
    SupervisedConfig,
    contrastive,
    supervised,
)
from plmjax.objectives.supervised import row_losses
from plmjax.tasks.task import Task
from plmjax.train.metrics import fetch, means
from plmjax.train.step import make_evaluation

ROWS, LENGTH, VOCABULARY, UNREACHABLE = 8, 6, 16, -1e30
ENCODER = EncoderConfig(
    vocab_size=VOCABULARY, layers=1, width=8, heads=2, ffn_width=8, max_positions=8
)
# The last row fills the batch up.
WEIGHT = np.float32([1, 0.25, 0.5, 1, 0.25, 1, 0.125, 0])
LABELS = ("a", "b", "c")
SMOOTHING, RDROP = 0.2, 0.7
# What dropout makes of the scores: in the first pass of a step, in the second.
FIRST, SECOND = 0.8, 1.5


def make_batch(kind: str, soft: bool = False) -> dict:
    random = np.random.default_rng(3)
    shape = (ROWS, 3, LENGTH) if kind == "choices" else (ROWS, LENGTH)
    sizes = random.integers(2, LENGTH + 1, shape[:-1])
    segments = (np.arange(LENGTH) < sizes[..., None]).astype(np.int32)
    labels = {
        "classes": [0, 1, 2, -1, 1, 1, 0, 2],
        "multilabel": random.integers(0, 2, (ROWS, 3)).astype(np.float32),
        "regression": random.normal(size=ROWS).astype(np.float32),
        "tags": np.where(segments, random.integers(-1, 3, shape), -1),
        "answers": [[0, 1], [1, 1], [-1, -1], [0, 0], [0, 1], [1, 1], [0, 0], [0, 0]],
        "choices": [0, 1, 1, -1, 0, 1, 0, 1],
    }[kind]
    labels = np.asarray(labels)
    if kind == "choices":
        segments[[1, 4], 2] = 0  # of two choices alone
    if soft:
        hard, labels = labels, random.dirichlet((1, 1, 1), labels.shape)
        labels[hard < 0] = 0
    kept = labels.dtype.kind == "f"
    return {
        "tokens": random.integers(0, VOCABULARY, shape).astype(np.int32),
        "segments": segments,
        "row": np.arange(ROWS, dtype=np.int32),
        "weight": WEIGHT,
        "label": labels.astype(np.float32 if kept else np.int32),
    }


def scores_of(kind: str, params, batch, factor=1.0):
    """Returns scores, of NumPy's and of jax's arrays alike."""
    found = params["encoder"]["embeddings"]["token"][batch["tokens"]] * factor
    real = batch["segments"] > 0
    if kind in ("classes", "multilabel", "regression"):
        return found[:, 0]
    if kind == "tags":
        return found
    where = jnp.where if isinstance(found, jax.Array) else np.where
    if kind == "choices":
        return where(real[..., 0], found[..., 0, 0], UNREACHABLE)
    return where(real[..., None], found, UNREACHABLE)


def task_logits(config, task, params, batch, noise, platform=None):
    if noise is None:
        return scores_of(task.kind, params, batch)
    factor = jnp.where(noise.seed == SEED, FIRST, SECOND)
    return scores_of(task.kind, params, batch, factor)


# --- the reference: of one row or token


def class_loss(scores, label, smoothing):
    target = label if np.ndim(label) else np.eye(len(scores))[label]
    target = target * (1 - smoothing) + smoothing / len(scores)
    there = scores > UNREACHABLE / 2
    return -(target[there] * log_softmax(scores[there])).sum()


def class_hit(scores, label):
    return scores.argmax() == (label.argmax() if np.ndim(label) else label)


def divergence(p, q):
    """Returns half of both Kullback-Leibler divergences of two softmaxes."""
    there = p > UNREACHABLE / 2
    p, q = log_softmax(p[there]), log_softmax(q[there])
    forth, back = (np.exp(p) * (p - q)).sum(), (np.exp(q) * (q - p)).sum()
    return (forth + back) / 2


def odds(x):
    """Returns the logits of no and yes, whose log odds are the score."""
    return np.array([0.0, x])


def judge(kind: str, scores, label, smoothing):
    """Returns the loss and the score of a row or token."""
    if kind == "multilabel":
        p = sigmoid(scores)
        loss = -np.mean(label * np.log(p) + (1 - label) * np.log(1 - p))
        return loss, np.mean((p > 0.5) == (label == 1))
    if kind == "regression":
        return (scores[0] - label) ** 2, abs(scores[0] - label)
    if kind == "answers":
        ends = [scores[:, 0], scores[:, 1]]
        losses = [class_loss(x, at, 0.0) for x, at in zip(ends, label, strict=True)]
        hits = [class_hit(x, at) for x, at in zip(ends, label, strict=True)]
        return np.mean(losses), all(hits)
    return class_loss(scores, label, smoothing), class_hit(scores, label)


def apart(kind: str, a, b):
    """Returns how far two passes are apart at a row or token."""
    if kind == "multilabel":
        return np.mean(
            [divergence(odds(x), odds(y)) for x, y in zip(a, b, strict=True)]
        )
    if kind == "regression":
        return (a[0] - b[0]) ** 2
    if kind == "answers":
        return np.mean([divergence(a[:, i], b[:, i]) for i in (0, 1)])
    return divergence(a, b)


def labelled(kind: str, batch):
    """Returns the indices of rows, or of tokens, that have a label."""
    found, label = [], batch["label"]
    for row in range(ROWS):
        for at in range(LENGTH) if kind == "tags" else [None]:
            here = (row,) if at is None else (row, at)
            one = label[here]
            if kind in ("multilabel", "regression"):
                has = True
            elif one.dtype.kind == "f":
                has = one.sum() > 0
            else:
                has = np.min(one) >= 0
            if has and WEIGHT[row] > 0:
                found.append(here)
    return found


def reference(kind: str, config, params, batch, train: bool):
    """Returns the loss, and each metric as (sum, count)."""
    factors = (FIRST, SECOND) if train else (1.0, 1.0)
    passes = [scores_of(kind, params, batch, factor) for factor in factors]
    smoothing = config.label_smoothing if train else 0.0
    twice = train and config.rdrop_weight > 0
    total = weights = 0.0
    losses, scores, between = [], [], []
    for here in labelled(kind, batch):
        label = batch["label"][here]
        loss, score = judge(kind, passes[0][here], label, smoothing)
        cost = loss
        if twice:
            other, _ = judge(kind, passes[1][here], label, smoothing)
            loss = (loss + other) / 2
            between.append(apart(kind, passes[0][here], passes[1][here]))
            cost = loss + config.rdrop_weight * between[-1]
        total += WEIGHT[here[0]] * cost
        weights += WEIGHT[here[0]]
        losses.append(loss)
        scores.append(score)
    name = "absolute_error" if kind == "regression" else "accuracy"
    found = {"loss": losses, name: scores} | ({"rdrop": between} if twice else {})
    return total / weights, {n: (np.sum(x), len(x)) for n, x in found.items()}


CASES = {
    "classes": {},
    "soft classes": {"label_smoothing": SMOOTHING, "rdrop_weight": RDROP},
    "multilabel": {"rdrop_weight": RDROP},
    "regression": {"rdrop_weight": RDROP},
    "tags": {"label_smoothing": SMOOTHING, "rdrop_weight": RDROP},
    "soft tags": {},
    "answers": {"rdrop_weight": RDROP},
    "choices": {"label_smoothing": SMOOTHING, "rdrop_weight": RDROP},
}


@pytest.mark.parametrize("name", CASES)
def test_fine_tuning_is_that_of_the_definition(name, monkeypatch):
    """Training with dropout in parts of the batch, and what held-out rows score."""
    monkeypatch.setattr(supervised, "task_logits", task_logits)
    kind, config = name.removeprefix("soft "), SupervisedConfig(**CASES[name])
    several = kind in ("classes", "multilabel", "tags")
    task = Task(kind, LABELS if several else ())
    random = np.random.default_rng(2)
    table = random.normal(0, 1.5, (VOCABULARY, task.outputs)).astype(np.float32)
    params = {"encoder": {"embeddings": {"token": table}}}
    wide, batch = jax.tree.map(np.float64, params), make_batch(kind, name != kind)
    objective = Supervised(config, ENCODER, task)
    case = Case(objective, params, lambda *_: None, None)

    wanted, metrics = reference(kind, config, wide, batch, True)
    if "accuracy" in metrics:
        assert 0 < metrics["accuracy"][0] < metrics["accuracy"][1]
    if name == "tags":
        loss, sums, gradient = one_step(case, batch)
    else:
        out = jax.device_get(objective.corrupt({}, batch, KEY, jnp.float32(0)))
        loss, sums, gradient = in_parts(case, out)
    close(loss, wanted)
    check_figures(sums, metrics)
    check_gradient(
        gradient,
        lambda params, _: reference(kind, config, params, batch, True)[0],
        params,
    )

    sums = fetch(make_evaluation(objective)(params, {}, batch))
    _, metrics = reference(kind, config, wide, batch, False)
    check_figures(sums, metrics)
    scores = objective.scores(means(sums))
    assert set(scores) == set(metrics)
    for figure, (total, count) in metrics.items():
        close(scores[figure], total / count)
    held_out = row_losses(kind, scores_of(kind, params, batch), batch)
    close([float(x) for x in held_out], metrics["loss"])


# --- contrast

TEXTS, TEMPERATURE = 3, 0.3


def vectors_of(params, batch):
    found = params["encoder"]["embeddings"]["token"][batch["tokens"]]
    real = (batch["segments"] > 0)[..., None]
    return (found * real).sum(-2) / (real.sum(-2) + 1e-9)


def make_texts() -> dict:
    """Returns texts, pairs and negatives, of which some are equal; the last fills."""
    random = np.random.default_rng(5)
    number = np.arange(ROWS * TEXTS, dtype=np.int32).reshape(ROWS, TEXTS)
    # Each beside one of its own micro-batch: a text, a pair and a negative twice, and
    # a pair that is another's text.
    number[2, 0], number[3, 1] = number[0, 0], number[1, 1]
    number[5, 2], number[4, 1] = number[3, 1], number[6, 0]
    # What fills the batch up would be right, if it counted.
    number[-1] = number[-1, 0]
    tokens = random.integers(0, VOCABULARY, (ROWS * TEXTS, LENGTH))[number]
    sizes = random.integers(2, LENGTH + 1, ROWS * TEXTS)[number]
    segments = (np.arange(LENGTH) < sizes[..., None]).astype(np.int32)
    return batch_of(tokens, segments=segments, weight=WEIGHT, label=number)


def contrast(params, batch, parts: int):
    """Returns the loss and figures; negatives are those of each micro-batch."""
    vectors = vectors_of(params, batch)
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    number, total, losses, hits = batch["label"], 0.0, [], []
    for begin in range(parts):
        rows = [row for row in range(begin, ROWS, parts) if WEIGHT[row] > 0]
        for row in rows:
            text, pair = number[row, :2]
            seen = [vectors[row, 1]]
            for other in rows:
                equal = number[other, 0] == text
                if other != row and not equal and number[other, 1] not in (text, pair):
                    seen.append(vectors[other, 1])
                if number[other, 2] not in (text, pair):
                    seen.append(vectors[other, 2])
            logits = np.array([vectors[row, 0] @ x for x in seen]) / TEMPERATURE
            losses.append(-log_softmax(logits)[0])
            hits.append(logits.argmax() == 0)
            total += WEIGHT[row] / WEIGHT.sum() * losses[-1]
    return total, {"loss": losses, "accuracy": hits}


def test_contrast_is_that_of_the_definition(monkeypatch):
    """A step on four devices in two micro-batches, and what held-out rows score."""
    monkeypatch.setattr(
        contrastive,
        "task_logits",
        lambda config, task, params, batch, noise, platform: vectors_of(params, batch),
    )
    objective = Contrastive(
        SupervisedConfig(), ENCODER, Task("embeddings"), TEMPERATURE, TEXTS
    )
    table = np.random.default_rng(2).normal(size=(VOCABULARY, 8)).astype(np.float32)
    params, batch = {"encoder": {"embeddings": {"token": table}}}, make_texts()
    wide = jax.tree.map(np.float64, params)
    case = Case(objective, params, lambda *_: None, None)
    loss, sums, gradient = one_step(case, batch)
    wanted, values = contrast(wide, batch, 2)
    close(loss, wanted)
    check_figures(sums, {n: (np.sum(x), len(x)) for n, x in values.items()})
    check_gradient(gradient, lambda params, _: contrast(params, batch, 2)[0], params)

    sums = fetch(make_evaluation(objective)(params, {}, batch))
    _, values = contrast(wide, batch, 1)
    assert 0 < sum(values["accuracy"]) < len(values["accuracy"])
    scores = objective.scores(means(sums))
    assert set(scores) == set(values)
    for figure, x in values.items():
        close(scores[figure], np.mean(x), figure)
