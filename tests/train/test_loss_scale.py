"""float16: the loss is scaled, an overflow skips its update and halves the scale."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rollback import final, records, train
from test_step import ENCODER, make_batch, pieces
from tests_common import campaign

from plmjax import PlmjaxError, processes
from plmjax import config as config_lib
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.models import platform
from plmjax.objectives import MLM, MLMConfig, altered
from plmjax.pretrain.build import check
from plmjax.train import sharding
from plmjax.train.config import MeshConfig, OptimizerConfig, TrainConfig
from plmjax.train.job import initialise, step_for
from plmjax.train.step import LossScale
from plmjax.workdir import RunConfig

SMALL = dataclasses.replace(ENCODER, width=8, heads=2, ffn_width=16, dropout=0.0)


def run(factors, dtype="float16", mesh=(1, 1, 1), accumulation=1, **keys):
    """Trains a step a factor, by which its loss is multiplied.

    Returns the states after each step, and the metrics.
    """
    keys |= {"optimizer": OptimizerConfig(learning_rate=0.01, clip_norm=None)}
    config = TrainConfig(batch=32, accumulation=accumulation, **keys)
    devices = jax.devices()[: int(np.prod(mesh))]
    made = sharding.make_mesh(MeshConfig(*mesh), devices)
    inner = MLM(MLMConfig(), dataclasses.replace(SMALL, dtype=dtype), pieces(96))

    def loss(params, frozen, batch, key, train):
        value, metrics = inner.loss(params, frozen, batch, key, train)
        return value * frozen["factors"][key.step.astype(jnp.int32)], metrics

    objective = altered(inner, loss=loss)
    frozen = inner.tables() | {"factors": np.array(factors, np.float32)}
    step = step_for(objective, config, made, False, 100)
    states, figures = [], []
    with jax.set_mesh(made):
        make = initialise(objective, config)
        places = sharding.shardings(made, jax.eval_shape(make, make_batch()))
        state = jax.jit(make, out_shardings=places)(make_batch())
        frozen = jax.device_put(frozen, sharding.shardings(made, frozen))
        for i in range(len(factors)):
            rows = sharding.put_rows(made, make_batch(step=i))
            state, metrics = step(state, frozen, rows)
            states.append(processes.gather_to_host(state))
            figures.append({n: float(a) for n, (a, b) in metrics.items() if b})
    return states, figures


def test_the_scale_doubles_after_good_steps_and_halves_at_an_overflow():
    yes, no = jnp.array(True), jnp.array(False)
    scale, seen = LossScale(jnp.float32(4), jnp.int32(0)), []
    for good, overflows in [(1, 0), (1, 0), (1, 0), (0, 1), (1, 0), (0, 0), (1, 0)]:
        scale = scale.after(yes if good else no, yes if overflows else no, 2)
        seen.append((float(scale.value), int(scale.steps)))
    assert seen == [(4, 1), (8, 0), (8, 1), (4, 0), (4, 1), (4, 0), (4, 1)]
    least = LossScale(jnp.float32(1), jnp.int32(0)).after(no, yes, 2)
    most = LossScale(jnp.float32(2**24), jnp.int32(1)).after(yes, no, 2)
    assert (least.value, most.value) == (1, 2**24)


def test_losses_and_gradients_are_those_of_float32():
    """Without the scale, the gradients of a small loss vanish."""
    tiny = [1e-6] * 4
    exact, half = run(tiny, "float32")[1], run(tiny, loss_scale=2.0**20)[1]
    vanished = run(tiny, loss_scale=1.0)[1]
    for a, b, c in zip(exact, half, vanished, strict=True):
        assert abs(a["objective"] / b["objective"] - 1) < 2e-4
        assert abs(a["gradient_norm"] / b["gradient_norm"] - 1) < 2e-3
        assert c["gradient_norm"] < 0.5 * a["gradient_norm"]


MESHES = [((1, 1, 1), 1), ((4, 2, 1), 2), ((2, 1, 2), 1)]


@pytest.mark.parametrize("mesh, accumulation", campaign(MESHES, *MESHES[:2]), ids=str)
def test_an_overflow_skips_its_update_on_every_mesh(mesh, accumulation):
    """In step 1 alone; the loss of step 3 itself is not a number."""
    keys = {"loss_scale": 2.0**12, "loss_scale_steps": 2, "ema_decay": 0.5}
    states, figures = run(
        [1, 1e6, 1, np.nan, 1, 1], mesh=mesh, accumulation=accumulation, **keys
    )
    scales = [(float(s.loss_scale.value), int(s.loss_scale.steps)) for s in states]
    wanted = [(4096, 1), (2048, 0), (2048, 1), (2048, 0), (2048, 1), (4096, 0)]
    assert scales == wanted
    assert [f["loss_scale"] for f in figures] == [4096, 4096, *[2048] * 4]
    for before, after in ((0, 1), (2, 3)):
        for name in ("params", "moments", "average"):
            a, b = (jax.tree.leaves(getattr(states[i], name)) for i in (before, after))
            for x, y in zip(a, b, strict=True):
                np.testing.assert_array_equal(x, y)
    # An overflow is no bad step, and its infinite norm is in no mean.
    assert [int(s.skipped) for s in states] == [0, 0, 0, 1, 1, 1]
    assert [int(s.bad_steps) for s in states] == [0, 0, 0, 1, 0, 0]
    assert "gradient_norm" not in figures[1] and np.isfinite(figures[1]["objective"])
    token = [s.params["encoder"]["embeddings"]["token"] for s in states]
    assert all((token[i] != token[i + 1]).any() for i in (1, 3, 4))


HALF = ("--config.model.dtype=float16", "--config.train.loss_scale=1024")
HALF += ("--config.train.loss_scale_steps=4", "--config.train.optimizer.clip_norm=none")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info:UserWarning")
def test_a_resumed_run_is_equal_to_the_bit(corpus, tmp_path, on_one_device):
    """The scale of step 5 is not that of the config."""
    train(corpus, tmp_path / "a", *HALF)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    checkpoints = Checkpoints(tmp_path / "b" / "checkpoints")
    shutil.rmtree(str(checkpoints.path(10)))
    assert checkpoints.steps() == [5]
    train(corpus, tmp_path / "b", *HALF)
    for one, other in zip(final(tmp_path / "a"), final(tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(one, other)
    scales = [r["loss_scale"] for r in records(tmp_path / "a", "train")]
    assert scales[4:6] == [2048, 2048]  # four good steps have doubled it


def test_what_cannot_be_is_refused():
    load = lambda *keys: config_lib.load(RunConfig, None, ["train.steps=9", *keys])  # noqa: E731
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    check(load("model.dtype=float16", "train.loss_scale=8"), mesh)
    with pytest.raises(PlmjaxError, match="no effect with model.dtype=float32"):
        check(load("train.loss_scale=8"), mesh)
    half = dataclasses.replace(SMALL, dtype="float16")

    class Device:
        platform = "tpu"

    said = []
    with pytest.raises(PlmjaxError, match="float16 is for GPUs without bfloat16"):
        platform.training_platform([Device()], "xla", [half], said.append)
    Device.platform = "gpu"
    with pytest.raises(PlmjaxError, match="model.dtype to be 'float32' or 'bfloat16'"):
        wide = dataclasses.replace(half, width=32)
        platform.training_platform([Device()], "pallas", [wide], said.append)
    platform.training_platform(mesh.devices.flat, "xla", [half], said.append)
    assert "float32 is faster" in said[-1]
