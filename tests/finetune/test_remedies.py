"""Mixout and LoRA: what they compute, and that nothing else changes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax import PlmjaxError, tree
from plmjax.finetune.lora import LoraConfig, adapters, base, lora, merged
from plmjax.finetune.mixout import anchor, mixout
from plmjax.models import EncoderConfig
from plmjax.objectives import MLM, Key, MLMConfig, Pieces, altered

KEY = Key(jnp.uint32(1), jnp.uint32(2))


def params(seed, width=64):
    random = np.random.default_rng(seed)

    def dense():
        kernel, bias = random.normal(size=(width, width)), random.normal(size=width)
        return {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}

    layers = {
        f"layer_{i}": {"attention": {n: dense() for n in ("query", "key", "value")}}
        for i in range(2)
    }
    return {"encoder": layers, "sequence": {"classifier": dense()}}


def spy():
    """An objective whose loss is the sum of squares, and tells its parameters."""

    def loss(params, frozen, batch, key, train):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params)), params

    objective: Any = MLM(MLMConfig(), EncoderConfig(), Pieces(4, (0,), (1,)))
    return altered(objective, init=lambda key, batch: params(3), loss=loss)


def test_mixout_takes_a_share_of_the_start_and_keeps_the_mean():
    now, start = params(0), params(1)
    mixed: Any = mixout(spy(), 0.25).loss
    _, found = mixed(now, anchor(start), {}, KEY, True)
    ours, theirs, old = map(tree.flatten, (now, found, start))
    for name, array in theirs.items():
        if not name.startswith("encoder/") or name.endswith("bias"):
            np.testing.assert_array_equal(array, ours[name])
            continue
        same = np.asarray(array == old[name])
        assert same.mean() == pytest.approx(0.25, abs=0.03)
        moved = np.asarray(old[name] + (ours[name] - old[name]) / 0.75)
        np.testing.assert_allclose(array[~same], moved[~same], rtol=1e-5, atol=1e-5)
    # Sites are independent, and so are steps.
    taken = [
        np.asarray(theirs[n] == old[n]) for n in theirs if n.endswith("query/kernel")
    ]
    assert (taken[0] & taken[1]).mean() == pytest.approx(0.25**2, abs=0.02)
    _, later = mixed(now, anchor(start), {}, KEY._replace(step=jnp.uint32(3)), True)
    name = "encoder/layer_0/attention/key/kernel"
    assert not np.array_equal(tree.flatten(later)[name], theirs[name])


def test_mixout_at_the_start_and_in_evaluation_is_nothing():
    now, start = params(0), params(1)
    mixed: Any = mixout(spy(), 0.5).loss
    for given, frozen, train in ((start, start, True), (now, start, False)):
        _, found = mixed(given, anchor(frozen), {}, KEY, train)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(given), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(PlmjaxError, match="rate of mixout is 1"):
        mixout(spy(), 1.0)


def test_lora_begins_as_the_model_that_it_adapts():
    start, config = params(0), LoraConfig(rank=2)
    objective: Any = lora(spy(), config)
    own = objective.init(jax.random.key(0), {})
    assert own.keys() == {"lora", "sequence"}
    names = set(tree.flatten(own["lora"]))
    assert names == {
        f"encoder/layer_{i}/attention/{n}/kernel/{x}"
        for i in (0, 1)
        for n in ("query", "value")
        for x in "ab"
    }
    own["sequence"] = start["sequence"]
    _, found = objective.loss(own, base(start), {}, KEY, True)
    assert not tree.differences(start, found)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(start), strict=True):
        np.testing.assert_array_equal(a, b)


def test_lora_adds_the_product_of_its_matrices():
    start, config = params(0), LoraConfig(rank=2, alpha=6.0)
    thin = adapters(config, start["encoder"], jax.random.key(0))
    thin = jax.tree.map(lambda x: x + 0.1, thin)
    own = {"lora": thin, "sequence": start["sequence"]}
    found = tree.flatten(merged(config, own, base(start)))
    flat = tree.flatten(thin)
    for name, array in tree.flatten(start).items():
        wanted = np.asarray(array)
        if f"{name}/a" in flat:
            a, b = (np.asarray(flat[f"{name}/{x}"]) for x in "ab")
            wanted = wanted + 3 * a @ b
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5)
    # Gradients reach the adapters alone: the rest is no parameter.
    objective: Any = lora(spy(), config)
    grads = jax.grad(lambda p: objective.loss(p, base(start), {}, KEY, True)[0])(own)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_lora_that_adapts_nothing_is_refused():
    with pytest.raises(PlmjaxError, match="matches no kernel"):
        adapters(LoraConfig(targets="x"), params(0)["encoder"], jax.random.key(0))
    with pytest.raises(PlmjaxError, match=r"lora\.rank is -1"):
        LoraConfig(rank=-1)
