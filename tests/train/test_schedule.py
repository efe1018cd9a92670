"""Learning rates and optimizers where tests/test_keys.py does not hold them."""

import jax.numpy as jnp
import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.train.config import OptimizerConfig, ScheduleConfig
from plmjax.train.optimizer import decayed, make_optimizer
from plmjax.train.schedule import make_schedule


def test_a_warm_up_longer_than_training_is_refused():
    with pytest.raises(PlmjaxError, match="warmup_steps=50 does not fit into 50"):
        make_schedule(ScheduleConfig(warmup_steps=50), 2.0, 50)


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
