"""The encoder family: exact sizes, all switch values, isolation of documents."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax import PlmjaxError, tree
from plmjax.models import PRESETS, Encoder, EncoderConfig, Noise
from plmjax.models.config import ModelConfig, resolve
from plmjax.models.heads import Pooler

# Parameters of the encoder with its pooler, as published and as transformers counts.
COUNTS = {
    "bert-tiny": 4_385_920,
    "bert-mini": 11_170_560,
    "bert-small": 28_763_648,
    "bert-medium": 41_373_184,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
}

SMALL = EncoderConfig(
    vocab_size=50, layers=2, width=16, heads=2, ffn_width=24, max_positions=24
)


def noise(rows: int = 2) -> Noise:
    return Noise(jnp.uint32(1), jnp.uint32(2), jnp.arange(rows, dtype=jnp.int32))


def shapes(config: EncoderConfig):
    ids = jax.ShapeDtypeStruct((2, 8), np.int32)
    encoder = Encoder(config)
    return jax.eval_shape(encoder.init, jax.random.key(0), ids, ids, ids, ids)


def test_every_preset_has_its_published_size():
    assert COUNTS.keys() == PRESETS.keys()
    for name, config in PRESETS.items():
        states = jax.ShapeDtypeStruct((1, config.width), np.float32)
        pooler = jax.eval_shape(Pooler(config).init, jax.random.key(0), states)
        found = tree.count(shapes(config)) + tree.count(pooler)
        assert found == COUNTS[name], name


# The default first.
SWITCHES = {
    "embedding_width": (None, 8),
    "token_types": (2, 0),
    "activation": ("gelu", "gelu_tanh"),
    "gated": (False, True),
    "bias": (True, False),
    "norm_place": ("post", "pre"),
    "sharing": ("none", "attention", "ffn", "all"),
    "causal": (False, True),
    "dtype": ("float32", "bfloat16"),
    "remat": (False, True),
    "position_offset": (0, 2),
}


def test_all_pairs_of_switches_build():
    """The hidden states keep their shape and dtype whatever the switches say."""
    ids, key = jax.ShapeDtypeStruct((2, 8), np.int32), jax.random.key(0)
    for (a, values_a), (b, values_b) in itertools.combinations(SWITCHES.items(), 2):
        for value_a, value_b in itertools.product(values_a[1:], values_b[1:]):
            # One layer traces faster; sharing says something from the second on.
            layers = 2 if "sharing" in (a, b) else 1
            switches = {a: value_a, b: value_b, "layers": layers}
            encoder = Encoder(dataclasses.replace(SMALL, **switches))
            found, _ = jax.eval_shape(
                encoder.init_with_output, key, ids, ids, ids, ids, noise()
            )
            assert found.shape == (2, 8, 16) and found.dtype == encoder.config.dtype


def inputs(length: int = 12, rows: int = 2, seed: int = 0):
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 50, (rows, length)).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return tokens, np.ones_like(tokens), positions, np.zeros_like(tokens)


def initialised(config: EncoderConfig):
    return Encoder(config).init(jax.random.key(0), *inputs())


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_row_is_its_documents_apart(dtype):
    config = dataclasses.replace(SMALL, dtype=dtype)
    params = initialised(config)
    apply = jax.jit(Encoder(config).apply)
    tokens, _, positions, types = inputs(12, 1)
    packed = np.array([[1] * 5 + [2] * 4 + [0] * 3], np.int32)
    places = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]], np.int32)
    both = apply(params, tokens, packed, places, types)
    for begin, end in ((0, 5), (5, 9)):
        alone = apply(
            params,
            tokens[:, begin:end],
            np.ones((1, end - begin), np.int32),
            positions[:, : end - begin],
            types[:, begin:end],
        )
        np.testing.assert_allclose(
            np.asarray(both[:, begin:end], np.float32),
            np.asarray(alone, np.float32),
            atol=2e-6 if dtype == "float32" else 0.03,
        )


def test_causal_tokens_do_not_see_what_follows():
    config = dataclasses.replace(SMALL, causal=True)
    params = initialised(config)
    tokens, segments, positions, types = inputs()
    changed = tokens.copy()
    changed[:, 7:] = 9
    a = Encoder(config).apply(params, tokens, segments, positions, types)
    b = Encoder(config).apply(params, changed, segments, positions, types)
    np.testing.assert_array_equal(a[:, :7], b[:, :7])
    assert not np.allclose(a[:, 7:], b[:, 7:])


def test_recomputing_layers_changes_no_gradient():
    def gradient(config):
        def loss(params):
            out = Encoder(config).apply(params, *inputs(), noise())
            return jnp.sum(out * jnp.cos(jnp.arange(16.0)))

        return jax.jit(jax.grad(loss))(initialised(config))

    one = dataclasses.replace(SMALL, layers=1)
    plain = gradient(one)
    again = gradient(dataclasses.replace(one, remat=True))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6),
        plain,
        again,
    )


def test_sharing_keeps_one_set_of_weights():
    one = tree.count(shapes(dataclasses.replace(SMALL, sharing="all", layers=1)))
    twelve = tree.count(shapes(dataclasses.replace(SMALL, sharing="all", layers=12)))
    assert one == twelve


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(PlmjaxError, match="nearest number of heads that does is 4"):
        dataclasses.replace(SMALL, heads=5)
    with pytest.raises(PlmjaxError, match="Known: bert-tiny, .*roberta-base"):
        resolve(ModelConfig(preset="bert-bass"), 100, 0)
    with pytest.raises(PlmjaxError, match="smaller than the tokenizer's"):
        resolve(ModelConfig(vocab_size=50), 100, 0)


def test_roberta_counts_positions_from_the_padding_id():
    assert resolve(ModelConfig(preset="roberta-base"), 100, 1).position_offset == 2
    config = resolve(ModelConfig(preset="roberta-base"), 100, 0)
    assert config.position_offset == 1 and config.max_length == 513
