"""Disentangled attention: transformers' numbers, documents apart, shared draws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax.interop import config_json
from plmjax.interop.weights import to_tensors
from plmjax.models import Encoder, EncoderConfig, Noise
from plmjax.models.disentangled import bucket, position_heads, position_scores, skew

TINY = EncoderConfig(
    family="deberta-v2",
    vocab_size=50,
    layers=2,
    width=15,
    heads=3,
    ffn_width=21,
    max_positions=24,
    token_types=0,
    norm_eps=1e-7,
    attention="disentangled",
    positions="none",
    position_buckets=6,
)
# What the published sizes have, and what they do not.
VARIANTS = {
    "v3": {},
    "v2-xlarge": {"convolution_width": 3},
    "own projections": {"share_position_projections": False},
    "bare table": {"position_norm": False},
    "all at once": {
        "share_position_projections": False,
        "position_norm": False,
        "convolution_width": 5,
        "positions": "learned",
        "token_types": 2,
        "position_buckets": 7,
    },
}


def noise(rows) -> Noise:
    return Noise(jnp.uint32(1), jnp.uint32(2), jnp.asarray(rows, jnp.int32))


def inputs(length: int, rows: int = 2, seed: int = 0):
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 50, (rows, length)).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return tokens, np.ones_like(tokens), positions, np.zeros_like(tokens)


def initialised(config: EncoderConfig):
    """Returns parameters of which none is zero or one."""
    shapes = jax.eval_shape(Encoder(config).init, jax.random.key(0), *inputs(4))
    leaves, structure = jax.tree.flatten(shapes["params"])
    random = np.random.default_rng(1)
    return jax.tree.unflatten(
        structure,
        [random.normal(0, 0.3, leaf.shape).astype(np.float32) for leaf in leaves],
    )


@functools.partial(jax.jit, static_argnums=0)
def apply(config, params, *args):
    return Encoder(config).apply({"params": params}, *args)


def test_near_distances_have_rows_of_their_own_and_far_ones_share():
    distances = np.arange(-511, 512)
    rows = bucket(distances, 256, 512)
    np.testing.assert_array_equal(
        rows[np.abs(distances) <= 128] - 256, np.arange(-128, 129)
    )
    assert (np.diff(rows) >= 0).all() and (np.diff(rows) <= 1).all()
    np.testing.assert_array_equal(rows - 256, -(rows[::-1] - 256))
    assert rows[-1] == 256 + 255
    # Past max_positions there are no further rows.
    np.testing.assert_array_equal(bucket(np.array([-9999, 9999]), 256, 512), [0, 511])


def test_skew_reads_each_distance_at_its_place():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 10)).astype(np.float32)
    found = skew(jnp.asarray(x))
    for i in range(5):
        np.testing.assert_array_equal(found[:, :, i], x[:, :, i, 4 - i : 9 - i])


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    "variant, dtype", [("v2-xlarge", "bfloat16"), ("all at once", "float32")]
)
def test_a_packed_row_is_its_documents_apart(variant, dtype):
    config = dataclasses.replace(TINY, **VARIANTS[variant], dtype=dtype)
    tokens, segments, positions, types = inputs(18, 4)
    documents = (slice(0, 9), slice(9, 10), slice(10, 16))
    # Row 0 packs what begins the rows after it, each with padding behind.
    segments[:] = 0
    for number, part in enumerate(documents, 1):
        length = part.stop - part.start
        tokens[number, :length] = tokens[0, part]
        segments[0, part] = segments[number, :length] = number
        positions[0, part] = np.arange(length)
    found = apply(config, initialised(config), tokens, segments, positions, types)
    found = np.asarray(found, np.float32)
    for number, part in enumerate(documents, 1):
        np.testing.assert_allclose(
            found[0, part],
            found[number, : part.stop - part.start],
            atol=5e-6 if dtype == "float32" else 0.1,
        )


def test_scores_are_those_of_their_definition():
    random = np.random.default_rng(0)
    length, config = 9, TINY
    query, key = random.normal(size=(2, 2, 3, length, 5)).astype(np.float32)
    tables = random.normal(size=(2, 1, 3, 12, 5)).astype(np.float32)
    places = np.arange(length)
    rows = bucket(places[:, None] - places[None, :], 6, config.max_positions)
    at_query, at_key = tables[:, 0][:, :, rows]  # [N, Q, K, D]
    expected = np.einsum("bnqd,nqkd->bnqk", query, at_key)
    expected += np.einsum("bnkd,nqkd->bnqk", key, at_query)
    found = jax.jit(position_scores, static_argnums=0)(config, query, key, *tables)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_bf16_gradients_are_those_of_float32():
    """XLA:CPU has bf16 products that it compiles and then refuses to run."""
    random = np.random.default_rng(0)
    args = [random.normal(size=(3, 2, 32, 8)) for _ in range(2)]
    args += [random.normal(size=(1, 2, 12, 8)) for _ in range(2)]
    cotangent = jnp.asarray(random.normal(size=(3, 2, 32, 32)), jnp.float32)

    def gradient(dtype):
        def loss(args):
            return jnp.sum(position_scores(TINY, *args) * cotangent)

        narrow = [jnp.asarray(x, jnp.bfloat16).astype(dtype) for x in args]
        return jax.jit(jax.grad(loss))(narrow)

    for a, b in zip(gradient("bfloat16"), gradient("float32"), strict=True):
        assert a.dtype == jnp.bfloat16
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * scale)


def test_micro_batches_agree_on_dropout_of_the_table():
    """A row has the same states wherever it stands."""
    config = dataclasses.replace(TINY, layers=1, dropout=0.3, convolution_width=3)
    params = initialised(config)
    # Two rows each time, so that one program serves both.
    whole = apply(config, params, *inputs(9), noise([4, 7]))
    turned = apply(config, params, *(x[::-1] for x in inputs(9)), noise([7, 4]))
    np.testing.assert_allclose(whole, turned[::-1], atol=5e-6)


def test_the_table_has_dropout_of_its_own_in_each_layer():
    random = np.random.default_rng(0)
    table = random.normal(size=(12, 15)).astype(np.float32)

    def heads(name, x_SH, shape):
        del name, shape
        return x_SH

    dropped = [
        position_heads(TINY, heads, table, noise([4, 7]), f"layer_{i}")[0]
        for i in (0, 1)
    ]
    assert np.isclose((np.asarray(dropped[0]) == 0).mean(), TINY.dropout, atol=0.07)
    assert not np.array_equal(*dropped)
    np.testing.assert_array_equal(
        position_heads(TINY, heads, table, None, "layer_0")[0], table
    )


def peer(config: EncoderConfig, params: dict):
    """Returns transformers' model of a config, with our parameters."""
    import torch
    import transformers

    body = config_json.to_json(config, (), 0, 1, 2)
    model = transformers.DebertaV2Model(transformers.DebertaV2Config(**body))
    tensors, _ = to_tensors(config, {"encoder": params})
    model.load_state_dict(
        {n.removeprefix("deberta."): torch.from_numpy(x) for n, x in tensors.items()},
        strict=True,
    )
    return model.eval()


@pytest.mark.peer
@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_states_are_those_of_transformers(variant):
    import torch

    config = dataclasses.replace(TINY, **VARIANTS[variant])
    params = initialised(config)
    model = peer(config, params)
    tokens, segments, positions, types = inputs(19)
    segments[1, 13:] = 0
    with torch.no_grad():
        expected = model(
            torch.from_numpy(tokens).long(), torch.from_numpy(segments).long()
        ).last_hidden_state.numpy()
    found = apply(config, params, tokens, segments, positions, types)
    real = segments > 0
    np.testing.assert_allclose(found[real], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.peer
@pytest.mark.parametrize("buckets", [2, 5, 6, 10, 32, 256])
@pytest.mark.parametrize("max_positions", [16, 21, 65, 512, 1024])
def test_buckets_are_those_of_transformers(buckets, max_positions):
    import torch
    from transformers.models.deberta_v2 import modeling_deberta_v2

    distances = np.arange(1 - max_positions, max_positions)
    expected = modeling_deberta_v2.make_log_bucket_position(
        torch.from_numpy(distances), buckets, max_positions
    ).long()
    expected = (expected + buckets).clamp(0, 2 * buckets - 1).numpy()
    np.testing.assert_array_equal(bucket(distances, buckets, max_positions), expected)
