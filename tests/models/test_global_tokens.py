"""Global tokens: each rule and each way of computing is the mask written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.test_attention import SEGMENTS, seen, way  # noqa: F401

from plmjax import PlmjaxError
from plmjax.interop.card import limits
from plmjax.models import Encoder, EncoderConfig, Noise, attention
from plmjax.models.attention import View
from plmjax.models.config import with_global_ids
from plmjax.models.encoder import Attention
from plmjax.models.global_tokens import find, most, with_room
from plmjax.models.positions import reach

CONFIG = EncoderConfig(
    family="longformer",
    vocab_size=9,
    layers=2,
    width=8,
    heads=2,
    ffn_width=12,
    max_positions=24,
    token_types=1,
    layer_kinds=("local",),
    window=4,
    global_tokens="listed",
    global_ids=(3, 4),
    global_limit=8,
    attention_dropout=0.3,
)
SHAPE = SEGMENTS.shape
TOKENS = np.random.default_rng(2).integers(0, 9, SHAPE).astype(np.int32)
TOKENS[0, :5] = 1, 1, 3, 4, 1  # two separators in a row
PROJECTIONS = ("query", "key", "value")


def written_out(rule: str, ids, tokens, segments) -> np.ndarray:
    """Returns which tokens are global, document by document."""
    mask = np.zeros(SHAPE, bool)
    for row, number in {(row, segments[row, i]) for row, i in np.argwhere(segments)}:
        (at,) = np.nonzero(segments[row] == number)
        ends = [i for i in at if tokens[row, i] in ids]
        end = ends[0] if ends else at[-1] + 1
        then = end + 1 + (end + 1 in ends)
        starts = [
            at[0],
            *(i + 1 for i in ends if i + 1 in at[:-1] and i + 1 not in ends),
        ]
        chosen = {
            "first": at[:1],
            "listed": ends,
            "question": at[at < end],
            "second": at[at >= then],
            "sentences": starts,
        }[rule]
        mask[row, chosen] = True
    return mask


@pytest.mark.parametrize("rule", ["first", "listed", "question", "second", "sentences"])
def test_a_rule_is_written_out(rule):
    config = dataclasses.replace(CONFIG, global_tokens=rule, global_limit=21)
    wanted = written_out(rule, config.global_ids, TOKENS, SEGMENTS)
    found = find(config, TOKENS, SEGMENTS)
    assert (np.asarray(found.slot_BL >= 0) == wanted).all() and wanted.any()
    for row in range(len(wanted)):
        index = np.asarray(found.index_BG)[row][np.asarray(found.real_BG)[row]]
        np.testing.assert_array_equal(index, np.flatnonzero(wanted[row]))
    assert most(config, TOKENS, SEGMENTS) == wanted.sum(1).max()
    assert with_room(CONFIG, TOKENS, SEGMENTS).global_limit == 8
    narrow = dataclasses.replace(config, global_limit=1)
    assert with_room(narrow, TOKENS, SEGMENTS).global_limit >= wanted.sum(1).max()
    # A row of fewer places holds the first ones.
    few = find(dataclasses.replace(config, global_limit=2), TOKENS, SEGMENTS)
    held = wanted & (np.cumsum(wanted, 1) <= 2)
    assert (np.asarray(few.slot_BL >= 0) == held).all()


def by_the_mask(xp, params, x_BLH, is_global):
    """Attention by one mask of all pairs of tokens, without dropout, [B, L, H]."""

    def heads(name):
        y = x_BLH @ params[name]["kernel"] + params[name]["bias"]
        return y.reshape(*SHAPE, 2, 4).transpose(0, 2, 1, 3)

    def attend(query, key, value, mask):
        scores = xp.einsum("bnqd,bnkd->bnqk", query, key) / 2
        weights = xp.where(mask[:, None], xp.exp(scores), 0)
        weights = weights / weights.sum(-1, keepdims=True)
        return xp.einsum("bnqk,bnkd->bnqd", weights, value)

    same = seen(SEGMENTS, False, 0)
    local = seen(SEGMENTS, False, 4) | same & is_global[:, None, :]
    ours = attend(*(heads(name) for name in PROJECTIONS), local)
    theirs = attend(*(heads(f"global_{name}") for name in PROJECTIONS), same)
    mixed = xp.where(is_global[:, None, :, None], theirs, ours)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(x_BLH.shape)
    return mixed @ params["output"]["kernel"] + params["output"]["bias"]


def layer():
    """Returns the layer as a function of parameters, states and noise, and both."""
    view = View(
        *reach(jnp.asarray(SEGMENTS), False, 4),
        global_tokens=find(CONFIG, TOKENS, SEGMENTS),
    )
    module, random = Attention(CONFIG, window=4), np.random.default_rng(0)
    x_BLH = random.normal(size=(*SHAPE, 8)).astype(np.float32)

    def apply(params, x_BLH, noise=None):
        x_TH = x_BLH.reshape(-1, 8)
        return module.apply({"params": params}, x_TH, view, noise, "s").reshape(
            *SHAPE, 8
        )

    shapes = jax.eval_shape(
        lambda key: module.init(key, x_BLH.reshape(-1, 8), view, None, "s"),
        jax.random.key(0),
    )
    params = jax.tree.map(
        lambda s: random.normal(0, 0.5, s.shape).astype(np.float32), shapes["params"]
    )
    return apply, params, x_BLH


def test_every_way_is_the_mask_with_its_gradients(way):  # noqa: F811
    """A global token in the window counts once, and its own projections ask for it."""
    apply, params, x_BLH = layer()
    is_global = written_out("listed", CONFIG.global_ids, TOKENS, SEGMENTS)
    double = jax.tree.map(lambda x: x.astype(np.float64), (params, x_BLH))
    wanted = by_the_mask(np, *double, is_global)
    np.testing.assert_allclose(apply(params, x_BLH), wanted, atol=3e-6)
    weights = np.random.default_rng(1).normal(size=x_BLH.shape).astype(np.float32)

    def gradients(function):
        loss = jax.jit(
            jax.grad(lambda *given: (function(*given) * weights).sum(), (0, 1))
        )
        return loss(params, x_BLH)

    ours = gradients(apply)
    theirs = gradients(lambda *given: by_the_mask(jnp, *given, is_global))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5),
        ours,
        theirs,
    )


def test_every_way_draws_the_same_dropout(monkeypatch):
    apply, *given = layer()
    rows = jnp.array([5, 9, 2], jnp.int32)
    noise = Noise(jnp.uint32(1), jnp.uint32(2), rows)
    wanted = apply(*given, noise)
    assert not np.allclose(wanted, apply(*given), atol=1e-2)
    for name, size in (("BLOCK", 8), ("LEAST_BLOCK", 4)):
        monkeypatch.setattr(attention, name, size)
        np.testing.assert_allclose(apply(*given, noise), wanted, atol=3e-6)


def test_a_packed_row_is_its_documents_alone(monkeypatch):
    monkeypatch.setattr(attention, "LEAST_BLOCK", 4)
    random = np.random.default_rng(0)
    inputs = [TOKENS, SEGMENTS, 0 * TOKENS, 0 * TOKENS]
    encoder = Encoder(CONFIG)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), *inputs)
    params = jax.tree.map(
        lambda s: random.normal(0, 0.3, s.shape).astype(np.float32), shapes
    )
    apply = jax.jit(encoder.apply)
    packed = np.asarray(apply(params, *inputs))
    for row, number in ((0, 1), (0, 3), (1, 4)):
        at = np.flatnonzero(SEGMENTS[row] == number)
        alone = [np.zeros_like(x) for x in inputs]
        for array, whole in zip(alone, inputs, strict=True):
            array[0, : len(at)] = whole[row, at]
        wanted = np.asarray(apply(params, *alone))[0, : len(at)]
        np.testing.assert_allclose(packed[row, at], wanted, atol=3e-6)


def test_ids_that_the_tokenizer_has_not_are_refused():
    sentences = dataclasses.replace(CONFIG, global_tokens="sentences", global_ids=())
    with pytest.raises(PlmjaxError, match="has no piece that is a full stop"):
        with_global_ids(sentences, {"sentences": ()})
    assert with_global_ids(sentences, {"sentences": (5,)}).global_ids == (5,)
    with pytest.raises(PlmjaxError, match="has 9, but the ids end at 8"):
        with_global_ids(dataclasses.replace(CONFIG, global_ids=(3, 9)), {})


def test_the_card_says_what_transformers_must_be_given():
    (line,) = limits(CONFIG)
    assert "the tokens with the ids 3, 4. transformers must be given that as" in line
    first = dataclasses.replace(CONFIG, global_tokens="first")
    assert limits(first, "sequence") == []
    (line,) = limits(dataclasses.replace(CONFIG, global_tokens="none"), "sequence")
    assert "by default it takes the first token of a text" in line


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer_kinds": ()}, "cannot be with model.layer_kinds="),
        ({"causal": True}, "cannot be with model.causal=True"),
        ({"positions": "alibi"}, "cannot be with model.positions='alibi'"),
        ({"global_limit": 0}, "model.global_limit is 0; it must be at least 1"),
        ({"global_ids": ()}, "needs the numbers of tokens in model.global_ids"),
        ({"global_ids": ("a",)}, "needs the numbers of tokens in model.global_ids"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(PlmjaxError, match=message):
        dataclasses.replace(CONFIG, **changes)
