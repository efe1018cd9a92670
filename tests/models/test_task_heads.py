"""The heads of fine-tuning: shapes, what they read, where dropout falls."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests_common import batch_of, campaign

from plmjax import PlmjaxError
from plmjax.models import EncoderConfig, Noise, heads
from plmjax.models.task_heads import (
    POOLERS,
    TaskHead,
    check,
    default_dropout,
    init_model,
    task_logits,
)
from plmjax.tasks.task import Task
from plmjax.tree import flatten

CONFIG = EncoderConfig(
    vocab_size=13, layers=1, width=4, heads=2, ffn_width=6, max_positions=8
)
LABELS = ("a", "b", "c")
TASKS = {
    "classes": Task("classes", LABELS),
    "multilabel": Task("multilabel", LABELS),
    "regression": Task("regression"),
    "tags": Task("tags", LABELS),
    "answers": Task("answers"),
    "choices": Task("choices"),
}
# Heads of which transformers has no class.
LACKING = [("eurobert", "answers"), ("eurobert", "choices")]
NOISE = Noise(jnp.uint32(1), jnp.uint32(2), jnp.arange(2, dtype=jnp.int32))


def make_batch(shape):
    random = np.random.default_rng(0)
    batch = batch_of(random.integers(1, 13, shape))
    batch["types"] += batch["positions"] > 2
    names = ("tokens", "segments", "positions", "types")
    return {name: jnp.asarray(batch[name]) for name in names}


def shape_of(task):
    return (2, 3, 5) if task.head == "choices" else (2, 5)


@functools.cache
def drawn(head, outputs, family="bert"):
    """A head's parameters, all random."""
    config = dataclasses.replace(CONFIG, family=family)
    shapes = jax.eval_shape(
        lambda key: TaskHead(config, head, outputs).init(key, jnp.zeros((1, 4))),
        jax.random.key(0),
    )["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), shapes
    )


SHAPES = [(f, k) for f in POOLERS["sequence"] for k in TASKS]


# At every change each kind, and each family.
@pytest.mark.parametrize(
    "family, kind",
    campaign(SHAPES, *(case for case in SHAPES if "bert" in case or "tags" in case)),
)
def test_scores_have_the_shape_of_their_kind(family, kind, strict):
    config, task = dataclasses.replace(CONFIG, family=family), TASKS[kind]
    if (family, task.head) in LACKING:
        return
    batch = make_batch(shape_of(task))

    def both(key, batch):
        params = init_model(config, task, key, batch)
        return params, task_logits(config, task, params, batch, NOISE)

    params, scores = jax.eval_shape(both, jax.random.key(0), batch)
    wanted = {
        "classes": (2, 3),
        "multilabel": (2, 3),
        "regression": (2, 1),
        "tags": (2, 5, 3),
        "answers": (2, 5, 2),
        "choices": (2, 3),
    }
    assert scores.shape == wanted[kind] and scores.dtype == jnp.float32
    modules = {name.split("/")[0] for name in flatten(params[task.head])}
    pools = task.head in POOLERS or family == "modernbert"
    pooled = {"pooler"} if pools else set()
    if (family, task.head) == ("bigbird", "answers"):
        pooled = {"ffn", "norm"}
    assert modules == {"classifier"} | pooled


def numpy_head(family, head, params, x):
    """What a head gives, from the definition in words."""

    def affine(x, leaves):
        return x @ np.asarray(leaves["kernel"]) + np.asarray(leaves["bias"])

    activation = {
        "distilbert": lambda x: np.maximum(x, 0),
        "electra": lambda x: np.asarray(jax.nn.gelu(x, approximate=False)),
        "deberta-v2": lambda x: np.asarray(jax.nn.gelu(x, approximate=False)),
    }
    activation["eurobert"] = activation["modernbert"] = activation["electra"]
    # BigBird has the activation of its layers, which is exact in CONFIG.
    exact = activation["electra"]
    if head == "sequence":
        activation["bigbird"] = exact

    def normed(x, leaves):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + CONFIG.norm_eps)
        return x * np.asarray(leaves["scale"]) + np.asarray(leaves["bias"])

    if (family, head) == ("bigbird", "answers"):
        inner = affine(exact(affine(x, params["ffn"]["up"])), params["ffn"]["down"])
        return affine(normed(x + inner, params["norm"]), params["classifier"])
    activation["nystromformer"] = activation[
        "distilbert" if head == "choices" else "electra"
    ]
    if head in POOLERS or family == "modernbert":
        x = activation.get(family, np.tanh)(affine(x, params["pooler"]["dense"]))
    if family == "modernbert":
        x = normed(x, params["pooler"]["norm"])
    return affine(x, params["classifier"])


@pytest.mark.parametrize("family", POOLERS["sequence"])
@pytest.mark.parametrize("head", ["sequence", "tags", "answers", "choices"])
def test_a_head_is_what_the_family_has(family, head, strict):
    if (family, head) in LACKING:
        return
    params = drawn(head, 3, family)
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    config = dataclasses.replace(CONFIG, family=family)
    found = TaskHead(config, head, 3, 0.5).apply({"params": params}, jnp.asarray(x))
    wanted = numpy_head(family, head, params, x)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "family, pooling", [("modernbert", "mean"), ("eurobert", "late")]
)
def test_a_classifier_reads_the_tokens_but_no_padding(family, pooling):
    config = dataclasses.replace(CONFIG, family=family)
    task = Task("classes", LABELS, head_pooling=pooling)
    batch = make_batch((2, 5))
    batch["segments"] = batch["segments"].at[1, 3:].set(0)
    params = init_model(config, task, jax.random.key(0), batch)
    params["sequence"] = drawn("sequence", 3, family)
    found = task_logits(config, task, params, batch, None)
    states = np.asarray(heads.encode(config, params, batch, None))
    for row, count in ((0, 5), (1, 3)):
        x = states[row, :count]
        x = x.mean(0, keepdims=True) if pooling == "mean" else x
        wanted = numpy_head(family, "sequence", params["sequence"], x).mean(0)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(PlmjaxError, match=f"pooling is {pooling}; a bert for sequence"):
        check(CONFIG, "sequence", pooling)


@pytest.mark.parametrize(
    "family, sites", [("bert", 1), ("roberta", 2), ("electra", 2), ("deberta-v2", 1)]
)
def test_dropout_stands_where_the_family_has_it(family, sites):
    """Before the classifier, and before the pooler of RoBERTa and ELECTRA."""
    config = dataclasses.replace(CONFIG, family=family)
    params = jax.tree.map(jnp.ones_like, drawn("sequence", 1))
    # A pooler that lets through whether anything comes in.
    x = jnp.full((4096, 4), 9.0)
    rows = jnp.arange(4096, dtype=jnp.int32)
    noise = Noise(jnp.uint32(1), jnp.uint32(2), rows)
    params["pooler"]["dense"]["kernel"] = 9 * jnp.eye(4)
    params["pooler"]["dense"]["bias"] = jnp.zeros(4)
    head = TaskHead(config, "sequence", 1, 0.25)
    found = head.apply({"params": params}, x, noise)
    plain = head.apply({"params": params}, x)
    # Each of four inputs is kept with .75 at each site.
    nothing = float(jnp.mean((found == 1.0).astype(jnp.float32)))
    kept = 0.75**sites
    assert nothing == pytest.approx((1 - kept) ** 4, abs=0.02)
    assert not bool(jnp.any(plain == 1.0))


def test_dropout_follows_the_row_and_not_its_place():
    head = TaskHead(CONFIG, "tags", 3, 0.5)
    x = jnp.ones((2, 4))
    params = {"params": drawn("tags", 3)}
    rows = jnp.array([7, 9], jnp.int32)
    found = head.apply(params, x, NOISE._replace(rows=rows))
    turned = head.apply(params, x, NOISE._replace(rows=rows[::-1]))
    np.testing.assert_array_equal(found, turned[::-1])
    other = head.apply(params, x, NOISE._replace(rows=rows, step=jnp.uint32(3)))
    assert not np.array_equal(found, other)


def test_choices_are_rows_of_their_own():
    """Each choice is scored as if it stood alone, and types that a family lacks are
    none."""
    config = dataclasses.replace(CONFIG, token_types=1, family="roberta")
    task, batch = TASKS["choices"], make_batch((2, 3, 5))

    @functools.partial(
        jax.jit,
        compiler_options={
            "xla_backend_optimization_level": 0,
            "xla_llvm_disable_expensive_passes": True,
        },
    )
    def score(batch):
        params = init_model(config, task, jax.random.key(0), batch)
        return task_logits(config, task, params, batch, None)

    # Compiled once: the choices of both rows change places.
    first = score(batch)
    second = score({name: array[::-1, ::-1] for name, array in batch.items()})
    assert np.isfinite(first).all()
    np.testing.assert_allclose(first, second[::-1, ::-1], atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "bigbird"])
def test_an_answer_is_never_padding(family):
    config = dataclasses.replace(CONFIG, family=family)
    batch = make_batch((2, 5))
    batch["segments"] = batch["segments"].at[:, 3:].set(0)
    task = TASKS["answers"]

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def score(batch):
        params = init_model(config, task, jax.random.key(0), batch)
        return task_logits(config, task, params, batch, None)

    assert (np.argmax(score(batch), axis=1) < 3).all()
    assert (score(batch)[:, 3:] < -1e29).all()
    # Of the question, type 0, BigBird can choose [CLS] alone.
    hidden = np.asarray(score(batch)[:, :3] < -1e29)
    assert hidden[:, 1:].all() == (family == "bigbird") and not hidden[:, 0].any()


def test_the_usual_dropout_is_transformers():
    def usual(family, head):
        config = dataclasses.replace(CONFIG, family=family, dropout=0.3)
        return default_dropout(config, head)

    assert usual("bert", "sequence") == usual("deberta-v2", "tags") == 0.3
    assert usual("bert", "answers") == usual("albert", "answers") == 0
    assert usual("distilbert", "sequence") == 0.2
    assert usual("distilbert", "answers") == 0.1
    assert usual("albert", "tags") == usual("electra", "choices") == 0.1


@pytest.mark.parametrize(
    "values, message",
    [
        (("classes", ("a",)), "has 1 labels; it needs at least 2"),
        (("tags", ()), "has 0 labels"),
        (("multilabel", ()), "at least 1"),
        (("regression", ("a", "b")), "it needs none"),
        (("classes", ("a", "b", "a")), "not distinct"),
        (("classes", ("a", "b"), 1.0), "dropout of the classifier is 1.0"),
    ],
)
def test_a_task_that_is_none(values, message):
    with pytest.raises(PlmjaxError, match=message):
        Task(*values)


def test_what_no_class_has_is_refused():
    with pytest.raises(PlmjaxError, match="a gpt2 has no head"):
        check(dataclasses.replace(CONFIG, family="gpt2"))
    for family, head in LACKING:
        with pytest.raises(PlmjaxError, match=f"{family} has no .* for {head}"):
            check(dataclasses.replace(CONFIG, family=family), head)
