"""The encoder family: exact sizes, all switch values, isolation of documents."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plmjax import PlmjaxError, tree
from plmjax.models import PRESETS, Encoder, EncoderConfig, Noise
from plmjax.models.config import ModelConfig, resolve
from plmjax.models.heads import Pooler

# Parameters of the encoder, as published and as transformers counts (a peer test here
# asks it), with the pooler in the families of POOLED.
COUNTS = {
    "bert-tiny": 4_385_920,
    "bert-mini": 11_170_560,
    "bert-small": 28_763_648,
    "bert-medium": 41_373_184,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "roberta-tiny": 16_225_024,
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
    "xlm-roberta-tiny": 67_357_696,
    "xlm-roberta-base": 278_043_648,
    "xlm-roberta-large": 559_890_432,
    "albert-tiny": 4_794_624,
    "albert-base-v1": 11_683_584,
    "albert-large-v1": 17_683_968,
    "albert-xlarge-v1": 58_724_864,
    "albert-xxlarge-v1": 222_595_584,
    "albert-base-v2": 11_683_584,
    "albert-large-v2": 17_683_968,
    "albert-xlarge-v2": 58_724_864,
    "albert-xxlarge-v2": 222_595_584,
    "distilbert-tiny": 9_524_736,
    "distilbert-base": 66_362_880,
    "electra-tiny": 7_164_928,
    "electra-small": 13_483_008,
    "electra-base": 108_891_648,
    "electra-large": 334_092_288,
    "deberta-v2-xlarge": 884_593_152,
    "deberta-v2-xxlarge": 1_564_549_632,
    "deberta-v3-tiny": 36_084_736,
    "deberta-v3-xsmall": 70_682_112,
    "deberta-v3-small": 141_304_320,
    "deberta-v3-base": 183_831_552,
    "deberta-v3-large": 434_012_160,
    "gpt2-tiny": 16_287_488,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "modernbert-tiny": 15_124_736,
    "modernbert-base": 149_014_272,
    "modernbert-large": 394_781_696,
    "ettin-encoder-17m": 16_797_440,
    "ettin-encoder-32m": 31_883_136,
    "ettin-encoder-68m": 68_144_640,
    "ettin-encoder-150m": 149_014_272,
    "ettin-encoder-400m": 394_781_696,
    "ettin-encoder-1b": 1_028_050_688,
    "ettin-decoder-17m": 16_797_440,
    "ettin-decoder-32m": 31_883_136,
    "ettin-decoder-68m": 68_144_640,
    "ettin-decoder-150m": 149_014_272,
    "ettin-decoder-400m": 394_781_696,
    "ettin-decoder-1b": 1_028_050_688,
    "eurobert-tiny": 36_768_000,
    "eurobert-210m": 211_766_016,
    "eurobert-610m": 607_874_688,
    "longformer-tiny": 17_932_032,
    "longformer-base-4096": 148_659_456,
    "longformer-large-4096": 434_600_960,
    "bigbird-tiny": 16_379_648,
    "bigbird-base": 127_468_800,
    "bigbird-large": 359_123_968,
    "nystromformer-tiny": 11_103_760,
    "nystromformer-512": 108_500_112,
    "nystromformer-1024": 108_894_864,
    "nystromformer-2048": 109_681_296,
    "nystromformer-4096": 111_254_160,
}
POOLED = ("bert", "roberta", "xlm-roberta", "albert", "longformer", "bigbird")

SMALL = EncoderConfig(
    vocab_size=50,
    layers=2,
    width=16,
    heads=2,
    ffn_width=24,
    max_positions=24,
    landmarks=4,
)
# Block sparse attention has several blocks in 8 tokens.
SWITCHED = dataclasses.replace(SMALL, block=1, random_blocks=1)


def noise(rows: int = 2) -> Noise:
    return Noise(jnp.uint32(1), jnp.uint32(2), jnp.arange(rows, dtype=jnp.int32))


def shapes(config: EncoderConfig):
    ids = jax.ShapeDtypeStruct((2, 8), np.int32)
    encoder = Encoder(config)
    return jax.eval_shape(encoder.init, jax.random.key(0), ids, ids, ids, ids)


@pytest.mark.slow
def test_every_preset_has_its_published_size():
    assert COUNTS.keys() == PRESETS.keys()
    for name, config in PRESETS.items():
        # All layers past the first are alike: gpt2-xl has 48 to trace.
        one, two = (
            tree.count(shapes(dataclasses.replace(config, layers=n))) for n in (1, 2)
        )
        found = one + (config.layers - 1) * (two - one)
        if config.family in POOLED:
            states = jax.ShapeDtypeStruct((1, config.width), np.float32)
            pooler = jax.eval_shape(Pooler(config).init, jax.random.key(0), states)
            found += tree.count(pooler)
        assert found == COUNTS[name], name


def peer(config: EncoderConfig):
    """Returns transformers' base model of a preset."""
    import transformers

    kind, more = {
        "bert": ("Bert", {}),
        "roberta": ("Roberta", {}),
        "xlm-roberta": ("XLMRoberta", {}),
        "albert": ("Albert", {"embedding_size": config.input_width}),
        "distilbert": ("DistilBert", {"hidden_dim": config.ffn_width}),
        "electra": ("Electra", {"embedding_size": config.input_width}),
        "longformer": ("Longformer", {"attention_window": config.window}),
        "gpt2": ("GPT2", {}),
        "modernbert": ("ModernBert", {}),
        "modernbert-decoder": ("ModernBertDecoder", {}),
        "eurobert": ("EuroBert", {"num_key_value_heads": config.kv_heads}),
        "bigbird": ("BigBird", {}),
        "nystromformer": (
            "Nystromformer",
            {"max_position_embeddings": config.max_positions - 2},
        ),
        "deberta-v2": (
            "DebertaV2",
            {
                "relative_attention": True,
                "position_buckets": config.position_buckets,
                "norm_rel_ebd": "layer_norm",
                "share_att_key": True,
                "pos_att_type": ["p2c", "c2p"],
                "position_biased_input": False,
                "conv_kernel_size": config.convolution_width,
            },
        ),
    }[config.family]
    size = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn_width,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.token_types,
    }
    made = getattr(transformers, f"{kind}Config")(**(size | more))
    return getattr(transformers, f"{kind}Model")(made)


@pytest.mark.peer
@pytest.mark.parametrize("name", PRESETS)
def test_transformers_counts_the_same(name):
    import torch

    with torch.device("meta"):
        model = peer(PRESETS[name])
    found = sum(parameter.numel() for parameter in model.parameters())
    # GPT2Config has no intermediate_size: it is four times the width, as ours.
    assert found == COUNTS[name]


# The default first. `head` is not the encoder's.
SWITCHES = {
    "embedding_width": (None, 8),
    "token_types": (2, 0),
    "kv_heads": (None, 1),
    "activation": ("gelu", "gelu_tanh", "silu"),
    "gated": (False, True),
    "bias": (True, False),
    "norm": ("layer", "rms"),
    "norm_place": ("post", "pre"),
    "norm_embeddings": (False, True),
    "sharing": ("none", "attention", "ffn", "all"),
    "groups": (1, 2),
    "attention": ("full", "disentangled", "blocks", "nystrom"),
    "layer_kinds": ((), ("local", "global")),
    "global_tokens": ("none", "first"),
    "positions": ("learned", "rope", "alibi", "none"),
    "rope_scaling": ("none", "ntk", "yarn"),
    "share_position_projections": (True, False),
    "position_norm": (True, False),
    "convolution_width": (0, 3),
    "causal": (False, True),
    "dtype": ("float32", "bfloat16"),
    "remat": (False, True, "dots"),
    "position_offset": (0, 2),
}


# The refused: what another switch makes impossible, or leaves without effect.
REFUSED = [
    {"kv_heads": 1, "attention": "disentangled"},
    {"kv_heads": 1, "attention": "blocks"},
    {"norm_place": "post", "norm_embeddings": True},
    {"norm_place": "pre", "convolution_width": 3},
    {"norm_embeddings": True, "sharing": "attention"},
    {"norm_embeddings": True, "sharing": "ffn"},
    {"norm_embeddings": True, "sharing": "all"},
    {"norm_embeddings": True, "groups": 2},
    {"norm_embeddings": True, "convolution_width": 3},
    {"sharing": "none", "groups": 2},
    {"sharing": "attention", "layer_kinds": ("local", "global")},
    {"sharing": "ffn", "layer_kinds": ("local", "global")},
    {"sharing": "all", "layer_kinds": ("local", "global")},
    {"groups": 2, "layer_kinds": ("local", "global")},
    {"attention": "disentangled", "layer_kinds": ("local", "global")},
    {"attention": "blocks", "layer_kinds": ("local", "global")},
    {"attention": "disentangled", "positions": "rope"},
    {"attention": "disentangled", "positions": "alibi"},
    {"attention": "blocks", "positions": "rope"},
    {"attention": "blocks", "positions": "alibi"},
    {"attention": "blocks", "positions": "none"},
    {"attention": "disentangled", "rope_scaling": "ntk"},
    {"attention": "disentangled", "rope_scaling": "yarn"},
    {"attention": "blocks", "rope_scaling": "ntk"},
    {"attention": "blocks", "rope_scaling": "yarn"},
    {"attention": "disentangled", "causal": True},
    {"attention": "blocks", "causal": True},
    *(
        {"global_tokens": "first"} | other
        for other in (
            *({"sharing": sharing} for sharing in ("attention", "ffn", "all")),
            *({"positions": positions} for positions in ("alibi", "none")),
            {"groups": 2},
            *({"attention": kind} for kind in ("disentangled", "blocks", "nystrom")),
            {"layer_kinds": ()},
            {"causal": True},
        )
    ),
    *(
        {"positions": positions, "rope_scaling": scaling}
        for positions in ("learned", "alibi", "none")
        for scaling in ("ntk", "yarn")
    ),
    {"kv_heads": 1, "attention": "nystrom"},
    {"attention": "nystrom", "layer_kinds": ("local", "global")},
    *({"attention": "nystrom", "positions": p} for p in ("rope", "alibi", "none")),
    *({"attention": "nystrom", "rope_scaling": kind} for kind in ("ntk", "yarn")),
    {"attention": "nystrom", "causal": True},
]


def is_legal(switches: dict) -> bool:
    try:
        dataclasses.replace(SMALL, **switches)
    except PlmjaxError:
        return False
    return True


def made_legal(switches: dict) -> dict | None:
    """Returns the switches with the fewest others (two at most) that they need."""
    others = [(a, x) for a in SWITCHES if a not in switches for x in SWITCHES[a]]
    for size in range(3):
        for more in itertools.combinations(others, size):
            if is_legal(switches | dict(more)):
                return switches | dict(more)
    return None


def covering() -> tuple[list[dict], list[dict]]:
    """Returns few configs that hold every pair of switch values, and refused pairs."""
    left = {
        ((a, x), (b, y)): None
        for a, b in itertools.combinations(SWITCHES, 2)
        for x, y in itertools.product(SWITCHES[a], SWITCHES[b])
    }
    rows, refused = [], []
    while left:
        pair = next(iter(left))
        row = made_legal(dict(pair))
        if row is None:
            refused.append(dict(pair))
            del left[pair]
            continue
        for name in [name for name in SWITCHES if name not in row]:
            choices = [row | {name: x} for x in SWITCHES[name]]
            row = max(
                filter(is_legal, choices),
                key=lambda row: len(left.keys() & pairs_of(row)),
            )
        rows.append(row)
        left = {pair: None for pair in left if pair not in pairs_of(row)}
    return rows, refused


def pairs_of(row: dict) -> set:
    known = [(name, row[name]) for name in SWITCHES if name in row]
    return set(itertools.combinations(known, 2))


@pytest.mark.slow
def test_all_pairs_of_switches_build():
    """The hidden states keep their shape and dtype whatever the switches say."""
    ids, key = jax.ShapeDtypeStruct((2, 8), np.int32), jax.random.key(0)
    rows, refused = covering()
    for row in rows:
        encoder = Encoder(dataclasses.replace(SWITCHED, **row))
        found, _ = jax.eval_shape(
            encoder.init_with_output, key, ids, ids, ids, ids, noise()
        )
        assert found.shape == (2, 8, 16) and found.dtype == row["dtype"], row
    assert all(pair in REFUSED for pair in refused) and len(refused) == len(REFUSED)


def inputs(length: int = 12, rows: int = 2, seed: int = 0):
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 50, (rows, length)).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return tokens, np.ones_like(tokens), positions, np.zeros_like(tokens)


def initialised(config: EncoderConfig):
    return jax.jit(Encoder(config).init)(jax.random.key(0), *inputs())


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
    apply = jax.jit(Encoder(config).apply)
    a = apply(params, tokens, segments, positions, types)
    b = apply(params, changed, segments, positions, types)
    np.testing.assert_array_equal(a[:, :7], b[:, :7])
    assert not np.allclose(a[:, 7:], b[:, 7:])


@pytest.mark.slow
def test_recomputing_layers_changes_no_gradient():
    def gradient(config):
        def loss(params):
            out = Encoder(config).apply(params, *inputs(), noise())
            return jnp.sum(out * jnp.cos(jnp.arange(16.0)))

        return jax.jit(jax.grad(loss))(initialised(config))

    one = dataclasses.replace(SMALL, layers=1)
    plain = gradient(one)
    for remat in (True, "dots"):
        again = gradient(dataclasses.replace(one, remat=remat))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6),
            plain,
            again,
        )


@pytest.mark.slow
def test_remat_computes_again_what_it_says():
    """Counts the products in the program: with "dots", attention's alone come again."""

    def products(remat) -> int:
        config = dataclasses.replace(SMALL, layers=1, remat=remat)
        gradient = jax.grad(
            lambda params: Encoder(config).apply(params, *inputs(), noise()).sum()
        )
        return (
            jax.jit(gradient).lower(initialised(config)).as_text().count("dot_general")
        )

    plain, dots, whole = map(products, (False, "dots", True))
    assert dots - plain == 2 < whole - plain, (plain, dots, whole)


def test_sharing_keeps_one_set_of_weights():
    one = tree.count(shapes(dataclasses.replace(SMALL, sharing="all", layers=1)))
    twelve = tree.count(shapes(dataclasses.replace(SMALL, sharing="all", layers=12)))
    assert one == twelve


@pytest.mark.parametrize("sharing", ["all", "attention", "ffn"])
def test_groups_of_layers_share_what_sharing_says(sharing):
    config = dataclasses.replace(SMALL, sharing=sharing, layers=4, groups=2)
    found = shapes(config)["params"]
    # Layers 0 and 1 use the first set, 2 and 3 the second.
    for part, wide in (
        ("attention", sharing == "ffn"),
        ("ffn", sharing == "attention"),
    ):
        held = [i for i in range(4) if part in found.get(f"layer_{i}", {})]
        assert held == (list(range(4)) if wide else [0, 1])


def test_a_group_of_its_own_for_each_layer_shares_nothing():
    alone = dataclasses.replace(SMALL, layers=3)
    grouped = dataclasses.replace(alone, sharing="all", groups=3)
    assert shapes(grouped) == shapes(alone)
    params = initialised(alone)
    np.testing.assert_array_equal(
        Encoder(alone).apply(params, *inputs()),
        Encoder(grouped).apply(params, *inputs()),
    )


def test_causal_alone_gives_order_without_positions():
    config = dataclasses.replace(SMALL, causal=True, positions="none")
    params = initialised(config)
    assert "position" not in params["params"]["embeddings"]
    tokens, *rest = inputs()
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    a = Encoder(config).apply(params, tokens, *rest)
    b = Encoder(config).apply(params, swapped, *rest)
    assert not np.allclose(a[:, 0], b[:, 1])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": 5}, "nearest number of heads that does is 4"),
        ({"layers": 0}, "model.layers is 0"),
        ({"groups": 0}, "model.groups is 0"),
        ({"groups": 2}, "has no effect with model.sharing='none'"),
        (
            {"groups": 4, "layers": 6, "sharing": "all"},
            "model.groups=4 does not divide model.layers=6.* does is 3",
        ),
        ({"embedding_width": 0}, "model.embedding_width is 0"),
        ({"dropout": 1.0}, "model.dropout is 1.0; it must be at least 0 and below 1"),
        (
            {"attention": "disentangled", "causal": True},
            "model.attention='disentangled' cannot have model.causal=True",
        ),
        ({"positions": "none"}, "model.positions='none' .* hides the order"),
        (
            {"attention": "disentangled", "position_buckets": 1},
            "model.position_buckets is 1",
        ),
        ({"convolution_width": 2}, "model.convolution_width is 2; it must be odd"),
        ({"convolution_width": -3}, "model.convolution_width is -3"),
        (
            {"convolution_width": 3, "norm_place": "pre"},
            "needs model.norm_place='post'",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(PlmjaxError) as error:
        dataclasses.replace(SMALL, **changes)
    assert re.search(message, f"{error.value}", re.DOTALL)


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(PlmjaxError, match="Did you mean bert-base"):
        resolve(ModelConfig(preset="bert-bass"), 100, 0)
    with pytest.raises(PlmjaxError, match="Known: bert-tiny, .*roberta-base"):
        resolve(ModelConfig(preset="xyz"), 100, 0)
    with pytest.raises(PlmjaxError, match="smaller than the tokenizer's"):
        resolve(ModelConfig(vocab_size=50), 100, 0)


def test_roberta_counts_positions_from_the_padding_id():
    assert resolve(ModelConfig(preset="roberta-base"), 100, 1).position_offset == 2
    config = resolve(ModelConfig(preset="roberta-base"), 100, 0)
    assert config.position_offset == 1 and config.max_length == 513
