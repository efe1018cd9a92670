"""Pruning while a model trains: how much is 0 when, and that it stays so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_averages import BAD_GRADIENT, STEPS, Regression, make_batch
from tests_common import campaign

from plmjax import PlmjaxError
from plmjax.finetune.config import FinetuneConfig
from plmjax.train import pruning, sharding
from plmjax.train.config import MeshConfig, PruneConfig, TrainConfig
from plmjax.train.step import init_state, make_step
from plmjax.tree import flatten

KERNEL = "encoder/layer_0/ffn/up/kernel"
PLAN = PruneConfig(sparsity=0.75, begin_percent=25, end_percent=75, stages=2)
# After each of 8 steps, by the paper's cubic: 2 stages, after steps 4 and 6.
ZEROS = (0, 0, 0, round(0.75 * 7 / 8 * 16), round(0.75 * 7 / 8 * 16), 12, 12, 12)


def train(plan: PruneConfig, sizes: MeshConfig, first=None, begin: int = 0) -> list:
    """Returns the state after each of the steps, of which some are skipped."""
    devices = None if sizes.fsdp != 1 else jax.devices()[:1]
    mesh = sharding.make_mesh(sizes, devices)
    objective, optimizer = Regression(), optax.scale_by_adam()
    init = functools.partial(init_state, objective, optimizer, 0, ema=False)
    if first is None:
        shapes = jax.eval_shape(init, {})
        first = jax.jit(init, out_shardings=sharding.shardings(mesh, shapes))({})
    prune = pruning.make_pruning(plan, STEPS)
    options = {"seed": 0, "steps": STEPS, "prune": prune}
    step = make_step(objective, optimizer, lambda step: 0.05, mesh, **options)
    states, state = [], first
    with jax.set_mesh(mesh):
        for number in range(begin, STEPS):
            state = step(state, {}, make_batch(number))[0]
            states.append(jax.device_get(state))
    return states


def kernels(states: list) -> list[np.ndarray]:
    return [flatten(state.params)[KERNEL] for state in states]


@pytest.mark.parametrize("fsdp", campaign([1, 2], 1))
def test_the_smallest_weights_become_zero_by_the_cubic_schedule(fsdp):
    data = 1 if fsdp == 1 else 4
    states = train(PLAN, MeshConfig(data=data, fsdp=fsdp))
    found = kernels(states)
    assert tuple(np.count_nonzero(x == 0) for x in found) == ZEROS
    for old, new in zip(found[:-1], found[1:], strict=True):
        assert (new[old == 0] == 0).all()
    # A stage takes the smallest of the weights that the step would have left.
    loose = kernels(train(PruneConfig(keep_zeros=True), MeshConfig(data=1)))[3]
    smallest = np.sort(np.abs(loose).ravel())[ZEROS[3] - 1]
    np.testing.assert_array_equal(found[3] == 0, np.abs(loose) <= smallest)
    assert (flatten(states[-1].params)["encoder/embeddings/token"] != 0).all()
    # The update of the fourth step is skipped, but not its stage.
    assert 3 in BAD_GRADIENT and states[3].skipped == 2
    # Nothing but the weights says what is pruned: a resumed run is the same.
    resumed = train(PLAN, MeshConfig(data=data, fsdp=fsdp), states[4], 5)
    jax.tree.map(np.testing.assert_array_equal, resumed[-1], states[-1])


def test_zeros_of_a_pruned_model_are_kept_without_a_schedule():
    first = train(PLAN, MeshConfig(data=1))[-1]._replace(step=np.int32(0))
    *_, kept = train(PruneConfig(keep_zeros=True), MeshConfig(data=1), first)
    *_, free = train(PruneConfig(), MeshConfig(data=1), first)
    before, after = kernels([first, kept])
    np.testing.assert_array_equal(after == 0, before == 0)
    assert (after != before).any() and (kernels([free])[0] != 0).all()


def test_two_of_four_weights_in_a_row_are_kept():
    kernel = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    kernel[0, 0] = kernel[1, 0]  # of equals, the first
    pruned = np.asarray(pruning.two_of_four(jnp.asarray(kernel)))
    fours = np.abs(kernel).reshape(2, 4, 3)
    order = np.argsort(-fours, axis=1, kind="stable")
    expected = np.zeros(fours.shape, bool)
    np.put_along_axis(expected, order[:, :2], True, axis=1)
    expected = np.where(expected.reshape(8, 3), kernel, 0)
    np.testing.assert_array_equal(pruned, expected)


def test_what_would_fill_the_zeros_again_is_refused():
    with pytest.raises(PlmjaxError, match="average"):
        TrainConfig(prune=PLAN, ema_decay=0.9)
    with pytest.raises(PlmjaxError, match=r"mixout=0\.1"):
        FinetuneConfig(mixout=0.1, train=TrainConfig(steps=1, prune=PLAN))
    with pytest.raises(PlmjaxError, match="after"):
        TrainConfig(prune=PruneConfig(begin_percent=60))
