"""Rates by layer and by rule, frozen parameters, and layers that learn later."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax import PlmjaxError, tree
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.models import EncoderConfig
from plmjax.objectives import MLM, MLMConfig, Pieces, altered
from plmjax.train import groups
from plmjax.train.config import OptimizerConfig
from plmjax.train.optimizer import make_optimizer
from plmjax.train.step import State

DENSE = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}


def params(layers=3):
    """Random leaves under the names of a fine-tuned encoder."""
    names = {
        "encoder": {
            "embeddings": {"token": jnp.ones((4, 2)), "projection": DENSE},
            "relative": {"table": jnp.ones((4, 2))},
            "convolution": {"kernel": jnp.ones((3, 2, 2))},
            **{f"layer_{i}": {"ffn": {"up": DENSE}} for i in range(layers)},
            "final_norm": {"scale": jnp.ones(2)},
        },
        "sequence": {"pooler": {"dense": DENSE}, "classifier": DENSE},
    }
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape)), names)


def steps(config, count, start=None, gradients=None):
    """The parameters after each of some steps at a rate of 1, and the moments."""
    optimizer = make_optimizer(config)

    @jax.jit
    def step(params, moments, grads):
        direction, moments = optimizer.update(grads, moments, params)
        return jax.tree.map(lambda p, d: p - d, params, direction), moments

    now = start or params()
    grads = gradients or jax.tree.map(lambda p: p * 0.1, params())
    moments, found = optimizer.init(now), []
    for _ in range(count):
        now, moments = step(now, moments, grads)
        found.append(tree.flatten(jax.device_get(now)))
    return found, moments


def moved(before, after):
    """The leaves that are not bit-equal."""
    return {name for name in before if not np.array_equal(before[name], after[name])}


def test_layer_decay_gives_each_parameter_its_factor():
    """Embeddings are lowest, heads have the whole rate, the last layer one share of it:
    in ELECTRA's own code it has two."""
    found = tree.flatten(groups.factors(OptimizerConfig(layer_decay=0.5), params()))
    wanted = {
        "encoder/embeddings/token": 0.5**4,
        "encoder/embeddings/projection/kernel": 0.5**4,
        "encoder/embeddings/projection/bias": 0.5**4,
        "encoder/relative/table": 0.5**4,
        "encoder/convolution/kernel": 0.5**3,
        "encoder/layer_0/ffn/up/kernel": 0.5**3,
        "encoder/layer_0/ffn/up/bias": 0.5**3,
        "encoder/layer_1/ffn/up/kernel": 0.5**2,
        "encoder/layer_1/ffn/up/bias": 0.5**2,
        "encoder/layer_2/ffn/up/kernel": 0.5,
        "encoder/layer_2/ffn/up/bias": 0.5,
        "encoder/final_norm/scale": 1.0,
        "sequence/pooler/dense/kernel": 1.0,
        "sequence/pooler/dense/bias": 1.0,
        "sequence/classifier/kernel": 1.0,
        "sequence/classifier/bias": 1.0,
    }
    assert found == wanted


def test_layers_are_counted_by_number_not_by_their_spelling():
    found = tree.flatten(groups.factors(OptimizerConfig(layer_decay=0.9), params(12)))
    assert found["encoder/layer_11/ffn/up/bias"] == pytest.approx(0.9)
    assert found["encoder/layer_9/ffn/up/bias"] == pytest.approx(0.9**3)
    assert found["encoder/embeddings/token"] == pytest.approx(0.9**13)


def test_the_first_rule_that_matches_scales_the_rate():
    rates = ((r"encoder/layer_2/.*", 0.25), (r"encoder/.*", 0.5), (r".*", 2.0))
    config = OptimizerConfig(rates=rates, layer_decay=0.5)
    found = tree.flatten(groups.factors(config, params()))
    assert found["encoder/layer_2/ffn/up/bias"] == 0.25 * 0.5
    assert found["encoder/embeddings/token"] == 0.5 * 0.5**4
    assert found["sequence/classifier/bias"] == 2.0


def test_a_leaf_without_a_rule_is_an_error():
    config = OptimizerConfig(rates=((r"encoder/.*", 0.1),))
    with pytest.raises(PlmjaxError, match="no rule covers the parameter 'sequence/"):
        groups.factors(config, params())


@pytest.mark.parametrize(
    "freeze, learns",
    [
        ("encoder", ("sequence/",)),
        (0, ("encoder/layer_", "encoder/conv", "encoder/final_norm", "sequence/")),
        (2, ("encoder/layer_2/", "encoder/final_norm", "sequence/")),
    ],
)
def test_what_is_frozen_stays_bit_equal_without_moments(freeze, learns):
    config = OptimizerConfig(freeze=freeze, weight_decay=0.1)
    before = tree.flatten(jax.device_get(params()))
    found, moments = steps(config, 3)
    wanted = {name for name in before if name.startswith(learns)}
    assert moved(before, found[-1]) == wanted
    held = [leaf for leaf in jax.tree.leaves(moments) if leaf.ndim]
    # Two moments of what learns, and nothing else.
    assert sum(leaf.size for leaf in held) == 2 * sum(before[n].size for n in wanted)


def test_more_frozen_layers_than_there_are():
    with pytest.raises(PlmjaxError, match="more than the 3 layers"):
        make_optimizer(OptimizerConfig(freeze=4)).init(params())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"rates": (("[", 1.0),)}, "not a valid regex"),
        ({"no_decay": "(a"}, "no_decay: .* is not a valid regex"),
        ({"rates": (("a", "b"),)}, "each must be"),
        ({"rates": ("a",)}, "each must be"),
        ({"freeze": -1}, "freeze is -1"),
        ({"unfreeze_every_steps": 0}, "at least 1"),
        ({"unfreeze_every_steps": 5, "freeze": 1}, "cannot be combined"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(PlmjaxError, match=message):
        OptimizerConfig(**values)


def test_the_usual_optimizer_has_the_state_it_had():
    """Checkpoints of before must still be read."""
    state = make_optimizer(OptimizerConfig()).init(params())
    assert [type(s).__name__ for s in state] == [
        "EmptyState",
        "ScaleByAdamState",
        "MaskedState",
    ]


def test_frozen_parameters_get_no_gradient():
    def loss(params, frozen, batch, key, train):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params)), {}

    objective: Any = MLM(MLMConfig(), EncoderConfig(), Pieces(4, (0,), (1,)))
    stopped = groups.without_frozen(
        OptimizerConfig(freeze=1), altered(objective, loss=loss)
    )
    grads = jax.grad(lambda p: stopped.loss(p, {}, {}, None, True)[0])(params())
    learns = {n for n, g in tree.flatten(grads).items() if np.abs(g).max() > 0}
    still = ("embeddings/", "relative/", "convolution/", "layer_0/")
    assert learns == {
        name
        for name in tree.flatten(params())
        if not name.startswith(tuple(f"encoder/{part}" for part in still))
    }


@pytest.mark.parametrize("values", [{"freeze": 1}, {"unfreeze_every_steps": 3}])
def test_a_checkpoint_holds_the_state_of_groups(tmp_path, values):
    optimizer = make_optimizer(OptimizerConfig(**values))
    count = jnp.array(0, jnp.int32)
    now = params()
    state = State(count, now, optimizer.init(now), None, count, count)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    found = checkpoints.load(1, abstract)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
