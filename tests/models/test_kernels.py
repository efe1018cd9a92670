"""The kernels of GPUs and TPUs, interpreted here: what they are held to is attend's."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from models.test_attention import SEGMENTS, SMALL, draw, reference, seen

from compiled import compile_step, shapes
from plmjax import PlmjaxError
from plmjax.models import PRESETS, Encoder, Noise, Platform, kernels
from plmjax.models.attention import attend
from plmjax.models.platform import ANY, training_platform
from plmjax.models.positions import reach
from plmjax.models.tiles import Way
from plmjax.objectives import MLM, MLMConfig, Pieces
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.topologies import absent_devices

KERNELS = Platform(kernels=True)


@pytest.fixture(params=["gpu", "tpu"])
def device(request, monkeypatch):
    """Blocks so small that 21 tokens are three, the last of them not full."""
    monkeypatch.setattr(kernels, "SIZES", {"gpu": (8, 4), "tpu": (8, 8)})
    monkeypatch.setattr(kernels, "INTERPRETED", request.param)
    return request.param


def noise(rows: int = 3) -> Noise:
    return Noise(jnp.uint32(1), jnp.uint32(2), jnp.arange(7, 7 + rows, dtype=jnp.int32))


def attention(arrays, platform, bounds, window=0, rate=0.0):
    way = Way(platform, rate, "site", window)
    return attend(way, arrays[0], arrays[1:], bounds, noise(len(arrays[0])))


def loss_and_gradients(platform, arrays, bounds, *more):
    """Returns (result, gradients) of the sum of the result with random weights."""
    weights = np.random.default_rng(1).normal(size=arrays[0].shape)

    def loss(arrays):
        found = attention(arrays, platform, bounds, *more)
        return (found * weights.astype(np.float32)).sum(), found

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(arrays)
    return found, gradients


@pytest.mark.parametrize("window, causal, kv_heads", [(0, True, 2), (4, False, 4)])
def test_kernels_are_the_masked_softmax_with_its_dropout_and_gradients(
    device, window, causal, kv_heads
):
    arrays = draw(kv_heads=kv_heads)
    bounds = reach(jnp.asarray(SEGMENTS), causal, window)
    found = attention(arrays, KERNELS, bounds, window)
    wanted = reference(*arrays, seen(SEGMENTS, causal, window))
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    ours, theirs = (
        loss_and_gradients(platform, arrays, bounds, window, 0.3)
        for platform in (KERNELS, ANY)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
    assert np.abs(found - ours[0]).max() > 0.1


def test_bf16_with_one_huge_activation_stays_near_float32(device):
    arrays = draw()
    arrays[0][0, 0, 3, 2] = 1e4
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    exact = [np.asarray(x, np.float64) for x in half]
    found = attention(half, KERNELS, reach(jnp.asarray(SEGMENTS)))
    assert found.dtype == jnp.bfloat16
    wanted = reference(*exact, seen(SEGMENTS, False, 0))
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, atol=3 * 2**-7)


def test_what_no_query_of_a_block_sees_is_not_read(device):
    """NaN times a weight of 0 would be NaN."""
    arrays = [x[:1, :, :16] for x in draw()]
    for x in arrays:
        x[:, :, 8:] = np.nan
    bounds = reach(jnp.asarray([[1] * 8 + [2] * 8]))
    result = loss_and_gradients(KERNELS, arrays, bounds)
    for array in jax.tree.leaves(result):
        assert np.isfinite(array[:, :, :8]).all() and np.isnan(array[:, :, 8:]).all()


@pytest.mark.parametrize(
    "sizes, rows, local",
    [
        ((2, 2, 2), 4, "1x24x2x6"),
        # Neither of two devices divides three rows, nor do four two heads of keys.
        pytest.param((2, 1, 4), 3, "3x24x4x6", marks=pytest.mark.slow),
    ],
)
def test_each_device_of_a_mesh_has_its_rows_and_heads(monkeypatch, sizes, rows, local):
    monkeypatch.setattr(kernels, "SIZES", {"gpu": (8, 8)})
    mesh = sharding.make_mesh(MeshConfig(*sizes))
    arrays = [np.concatenate([x, x[:1]])[:rows] for x in draw(kv_heads=2)]
    bounds = reach(jnp.asarray(np.concatenate([SEGMENTS, SEGMENTS[:1]])[:rows]))
    wanted = loss_and_gradients(KERNELS, arrays, bounds, 0, 0.3)
    with jax.set_mesh(mesh):
        heads = NamedSharding(mesh, P(None, "tensor" if sizes[2] == 2 else None))
        split = jax.device_put(arrays, heads)
        found = loss_and_gradients(KERNELS, split, bounds, 0, 0.3)
        program = jax.jit(attention, static_argnums=1).lower(split, KERNELS, bounds)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert f"tensor<{local}xf32>" in program.as_text()


def test_a_model_of_the_modern_shape_with_rematerialisation():
    config = dataclasses.replace(SMALL, layers=2, remat=True, attention_dropout=0.2)
    index = np.broadcast_to(np.arange(21, dtype=np.int32), SEGMENTS.shape)
    inputs = (1 + index, SEGMENTS, index, np.zeros_like(index))
    params = jax.jit(Encoder(config).init)(jax.random.key(0), *inputs)

    def loss(params, platform):
        x_BLH = Encoder(config, platform).apply(params, *inputs, noise())
        return jnp.square(x_BLH[SEGMENTS > 0]).sum()

    step = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    ours, theirs = (jax.tree.leaves(step(params, p)) for p in (KERNELS, ANY))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.topology
@pytest.mark.optimised
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "topology, target", [("h100:4", "__gpu$xla.gpu.triton"), ("v5e:2x2", "tpu_custom")]
)
def test_their_compilers_take_the_kernels(topology, target):
    """A step of two layers: windows, grouped queries, dropout, heads on two devices."""
    devices = absent_devices(topology)
    config = dataclasses.replace(
        SMALL, width=256, dtype="bfloat16", max_positions=300, layers=2, window=64
    )
    found = training_platform(devices, "pallas", [config], lambda line: None)
    pieces = Pieces(4, (0, 1, 2, 3, 4), (1,) * config.vocab_size)
    objective = MLM(MLMConfig(), config, pieces, platform=found)
    mesh = sharding.make_mesh(MeshConfig(2, 1, 2), devices)
    text = compile_step(objective, mesh, shapes(4, 300)).as_text()
    assert len(re.findall(f'custom_call_target="{re.escape(target)}', text)) == 6
    # Of each device two rows and two of four heads, of 64, in rows filled to 384.
    assert re.search(r"bf16\[2,(384,2|2,384),64\]", text)
    assert not re.search(r"\[\d+,\d+,(1,)?(300|384),(300|384)\]", text)


def platform(kind: str, wanted: str, **values) -> tuple[bool, str]:
    """Returns whether the kernels are taken for a model, and the line that says so."""
    devices, lines = [types.SimpleNamespace(platform=kind)], []
    config = dataclasses.replace(PRESETS["bert-tiny"], **values)
    found = training_platform(
        devices, wanted, [PRESETS["bert-tiny"], config], lines.append
    )
    return found.kernels, " ".join(lines)


def test_the_kernels_are_taken_only_where_they_can():
    assert platform("gpu", "pallas") == platform(
        "gpu", "pallas", layer_kinds=("local",)
    )
    assert platform("tpu", "auto")[0] and "never run" in platform("gpu", "auto")[1]
    assert platform("cpu", "xla") == (False, "")
    assert platform("gpu", "xla") == (False, "Attention: XLA (train.attention=xla).")
    for kind, values, why in (
        ("cpu", {}, "for GPUs and TPUs"),
        ("gpu", {"width": 96}, "width / model.heads to be 16, 32, 64 or 128; it is 48"),
        ("tpu", {"positions": "alibi"}, "'learned', 'rope' or 'none'; it is 'alibi'"),
        ("gpu", {"attention": "nystrom"}, "model.attention to be 'full'"),
        (
            "gpu",
            {"layer_kinds": ("local",), "global_tokens": "first"},
            "model.global_tokens to be 'none'",
        ),
    ):
        with pytest.raises(PlmjaxError, match=why) as error:
            platform(kind, "pallas", **values)
        assert "train.attention=xla" in str(error.value.hint)
        taken, line = platform(kind, "auto", **values)
        assert not taken and line.startswith("Attention: XLA") and why in line
