"""Learning rates and optimizers by their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.train.config import OptimizerConfig, ScheduleConfig
from plmjax.train.optimizer import decayed, make_optimizer
from plmjax.train.schedule import make_schedule


def rates(steps: int = 100, peak: float = 2.0, **values) -> np.ndarray:
    schedule = make_schedule(ScheduleConfig(**values), peak, steps)
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)))


def test_linear_rises_and_falls():
    found = rates(warmup_percent=10)
    np.testing.assert_allclose(found[:10], 2 * np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(found[10:], 2 * (1 - np.arange(90) / 90), rtol=1e-5)


def test_cosine_ends_at_its_final_share():
    found = rates(1000, kind="cosine", warmup_percent=0, final_percent=10)
    np.testing.assert_allclose(found[0], 2)
    np.testing.assert_allclose(found[500], 2 * (0.1 + 0.9 / 2), rtol=1e-5)
    np.testing.assert_allclose(found[-1], 0.2, rtol=1e-3)


def test_constant_and_wsd():
    assert (rates(kind="constant", warmup_steps=7)[7:] == 2).all()
    found = rates(kind="wsd", warmup_steps=5, decay_percent=20)
    assert (found[5:80] == 2).all()
    np.testing.assert_allclose(found[80:], 2 * (1 - np.arange(20) / 20), rtol=1e-5)


def test_wsd_can_fall_by_the_square_root():
    found = rates(kind="wsd", warmup_steps=5, decay_percent=20, decay_shape="sqrt")
    np.testing.assert_allclose(
        found[80:], 2 * (1 - np.sqrt(np.arange(20) / 20)), rtol=1e-5
    )


def test_a_warm_up_longer_than_training_is_refused():
    with pytest.raises(PlmjaxError, match="warmup_steps=50 does not fit into 50"):
        rates(50, warmup_steps=50)


PARAMS = {
    "encoder": {
        "layer_0": {
            "ffn": {"up": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}},
            "ffn_norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        },
        "embeddings": {"token": jnp.ones((5, 3))},
    }
}


def test_biases_and_norms_are_not_decayed():
    found = decayed(OptimizerConfig(), PARAMS)["encoder"]
    assert found["layer_0"]["ffn"]["up"] == {"kernel": True, "bias": False}
    assert found["layer_0"]["ffn_norm"] == {"scale": False, "bias": False}
    assert found["embeddings"]["token"]


def test_lamb_scales_each_kernel_to_its_own_length():
    """Without decay, a kernel's step is as long as the kernel (You et al. 2019)."""
    optimizer = make_optimizer(
        OptimizerConfig(kind="lamb", weight_decay=0.0, clip_norm=None)
    )
    grads = jax.tree.map(
        lambda x: 0.1 * jnp.cos(jnp.arange(x.size * 1.0)).reshape(x.shape), PARAMS
    )
    direction, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    kernel = direction["encoder"]["layer_0"]["ffn"]["up"]["kernel"]
    np.testing.assert_allclose(jnp.linalg.norm(kernel), np.sqrt(12), rtol=1e-5)
    # What is not decayed is not rescaled either: Adam's first step is of size 1.
    bias = direction["encoder"]["layer_0"]["ffn"]["up"]["bias"]
    np.testing.assert_allclose(jnp.abs(bias), 1, rtol=1e-3)


def test_stable_adamw_shrinks_what_outgrew_its_moments():
    """Two steps of algorithm 2 of arXiv:2304.13013 in numpy; the second spikes."""
    config = OptimizerConfig(
        kind="stable_adamw", b1=0.9, b2=0.99, eps=1e-6, weight_decay=0.1, clip_norm=None
    )
    optimizer = make_optimizer(config)
    param = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    params = {"kernel": jnp.asarray(param)}
    state = optimizer.init(params)
    mean = square = np.zeros_like(param)
    shrunk = []
    for step, size in enumerate((0.1, 5.0), 1):
        gradient = size * np.cos(np.arange(6, dtype=np.float32)).reshape(2, 3)
        direction, state = optimizer.update({"kernel": gradient}, state, params)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        moment = square / (1 - 0.99**step)
        adam = mean / (1 - 0.9**step) / (np.sqrt(moment) + 1e-6) + 0.1 * param
        ratio = np.sqrt((gradient**2 / np.maximum(moment, 1e-12)).mean())
        shrunk.append(ratio)
        np.testing.assert_allclose(
            direction["kernel"], adam / max(1, ratio), rtol=2e-5, atol=1e-6
        )
    assert shrunk[0] == pytest.approx(1, abs=1e-4) and shrunk[1] > 1.3


def test_clipping_bounds_the_gradient():
    """Adam forgets the scale, so look at its first moment."""
    optimizer = make_optimizer(OptimizerConfig(clip_norm=0.5))
    grads = jax.tree.map(lambda x: 100 * jnp.ones_like(x), PARAMS)
    _, state = optimizer.update(grads, optimizer.init(PARAMS), PARAMS)
    moments = jax.tree.leaves(state[1].mu)
    norm = np.sqrt(sum(float(jnp.sum(m**2)) for m in moments))
    np.testing.assert_allclose(norm, 0.5 * 0.1, rtol=1e-5)
