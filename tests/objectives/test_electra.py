"""ELECTRA: what is shared, what is sampled, what is learnt, and where gradients go."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import learned, lowered_step
from tests_common import batch_of, campaign

from plmjax import PlmjaxError, tree
from plmjax.interop import weights
from plmjax.models import PRESETS, EncoderConfig, Noise, heads
from plmjax.models import noise as noise_lib
from plmjax.objectives import Electra, ElectraConfig, Key, Pieces
from plmjax.objectives.electra import VARIANTS, _copy_loss, _stream, substituted
from plmjax.objectives.generator import TIES, GeneratorConfig, generator_encoder, sample
from plmjax.train.step import make_evaluation

VOCABULARY, SPECIAL, MASK = 60, (0, 1, 2, 3, 4), 4
PIECES = Pieces(MASK, SPECIAL, (2,) * VOCABULARY)
ENCODER = EncoderConfig(
    family="electra",
    vocab_size=VOCABULARY,
    layers=1,
    width=16,
    heads=2,
    ffn_width=32,
    embedding_width=12,
    max_positions=32,
)
SMALL = GeneratorConfig(width_fraction=0.5)
WHOLE = GeneratorConfig(width_fraction=1.0)

pytestmark = pytest.mark.usefixtures("strict")


def config_of(variant="electra", tie="tokens", **more) -> ElectraConfig:
    generator = WHOLE if tie == "all" else SMALL
    values = {"generator": generator, "variant": variant, "tie": tie, **more}
    return ElectraConfig(**values)


def make_batch(rows: int = 8, length: int = 24, seed: int = 0) -> dict:
    """Rows of two documents, the last fifth padding."""
    random = np.random.default_rng(seed)
    tokens = random.integers(5, VOCABULARY, (rows, length)).astype(np.int32)
    half, end = length // 2, length * 4 // 5
    segments = np.zeros((rows, length), np.int32)
    segments[:, :half], segments[:, half:end] = 1, 2
    tokens[:, [0, half]], tokens[:, [half - 1, end - 1]] = 2, 3
    tokens[:, end:] = 0
    starts = random.random((rows, length)) < 0.6
    row = random.permutation(1000)[:rows].astype(np.int32)
    return batch_of(tokens, segments=segments, word_start=starts, row=row)


def key(step: int = 0, seed: int = 3) -> Key:
    return Key(jnp.uint32(seed), jnp.uint32(step))


def initialised(objective, seed: int = 0):
    """Parameters of which none is zero or one, without compiling anything for them."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), make_batch())
    return tree.map_named(
        lambda name, x: random.normal(name.endswith("scale"), 0.1, x.shape).astype(
            np.float32
        ),
        shapes,
    )


@functools.cache
def corrupted():
    """`make_batch` masked, which no variant or tie changes."""
    objective = Electra(config_of(), ENCODER, PIECES)
    given = objective.tables(), make_batch(), key(), jnp.float32(0)
    return jax.jit(objective.corrupt)(*given)


# --- sizes and sharing


@pytest.mark.parametrize(
    "generator, found",
    [
        (GeneratorConfig(), (12, 64, 1, 256, 128)),
        (GeneratorConfig(layers=3, width=256), (3, 256, 4, 1024, 128)),
        (GeneratorConfig(width_fraction=0.5, layers_fraction=0.25), (3, 128, 2, 512)),
        (GeneratorConfig(width=96, heads=2, ffn_width=100), (12, 96, 2, 100, 128)),
        (GeneratorConfig(ffn_width=77), (12, 64, 1, 77, 128)),
    ],
)
def test_generators_of_electra_small(generator, found):
    made = generator_encoder(generator, "tokens", PRESETS["electra-small"])
    sizes = (made.layers, made.width, made.heads, made.ffn_width, made.input_width)
    assert sizes[: len(found)] == found and made.input_width == 128
    assert made.family == "electra" and made.dropout == 0.1
    untied = generator_encoder(generator, "none", PRESETS["electra-small"])
    assert untied.input_width == untied.width


def test_a_third_need_not_be_written_to_the_last_digit():
    for fraction in (1 / 3, 0.33333, 0.333):
        block = GeneratorConfig(width_fraction=fraction)
        made = generator_encoder(block, "tokens", PRESETS["electra-base"])
        assert (made.width, made.heads, made.ffn_width) == (256, 4, 1024)


@pytest.mark.parametrize(
    "values, told",
    [
        (
            {"width_fraction": 0.3},
            r"width_fraction=0.3 of model.width=256 and model.heads=4.*"
            r"0.25 \(width 64, heads 1\) and 0.5 \(width 128, heads 2\)",
        ),
        ({"width_fraction": 0.1}, r"do: 0.25 \(width 64, heads 1\);"),
        ({"width": 100}, r"64 \(heads 1\) and 128 \(heads 2\)"),
        ({"width": 100, "heads": 3}, r"99 \(heads 3\) and 102 \(heads 3\)"),
        (
            {"layers_fraction": 0.3},
            r"of model.layers=12 does .*0.25 \(layers 3\) and 0.3333 \(layers 4\)",
        ),
        ({"width_fraction": 0.0}, "above 0 and at most 4"),
        ({"layers": 0}, "generator.layers is 0"),
    ],
)
def test_sizes_that_are_not_whole_name_those_that_are(values, told):
    with pytest.raises(PlmjaxError, match=told):
        generator_encoder(GeneratorConfig(**values), "tokens", PRESETS["electra-small"])


def test_named_fractions_work():
    """Whatever an error advises is taken."""
    encoder = dataclasses.replace(PRESETS["electra-base"], ffn_width=900)
    for k in range(1, 13):
        block = GeneratorConfig(width_fraction=float(f"{k / 12:.4g}"))
        made = generator_encoder(block, "tokens", encoder)
        assert (made.width, made.heads) == (64 * k, k)


def test_what_cannot_be_is_refused():
    with pytest.raises(PlmjaxError, match="width 64 and 256"):
        ElectraConfig(tie="all").generator_encoder(PRESETS["electra-small"])
    grouped = dataclasses.replace(PRESETS["albert-base-v2"], groups=6)
    with pytest.raises(PlmjaxError, match="model.groups=6 .* 3 layers"):
        config_of(generator=GeneratorConfig(layers=3)).generator_encoder(grouped)
    with pytest.raises(PlmjaxError, match="temperature"):
        ElectraConfig(temperature=0.0)
    with pytest.raises(PlmjaxError, match="generator_weight"):
        ElectraConfig(generator_weight=-1.0)
    for variant in VARIANTS:
        name = VARIANTS[variant].weight
        with pytest.raises(PlmjaxError, match=name):
            ElectraConfig(variant=variant, **{name: 0.0})
    with pytest.raises(PlmjaxError, match="model.causal"):
        Electra(config_of(), dataclasses.replace(ENCODER, causal=True), PIECES)
    with pytest.raises(PlmjaxError, match="no mask token"):
        Electra(config_of(), ENCODER, dataclasses.replace(PIECES, mask_id=None))


@pytest.mark.slow
def test_electra_small_has_the_parameters_it_should():
    encoder = PRESETS["electra-small"]
    pieces = Pieces(103, (0, 100, 101, 102, 103), (1,) * encoder.vocab_size)

    def counts(tie, **generator):
        config = ElectraConfig(tie=tie, generator=GeneratorConfig(**generator))
        objective = Electra(config, encoder, pieces)
        shapes = jax.eval_shape(objective.init, jax.random.key(0), make_batch())
        each = {
            name: tree.count(jax.eval_shape(part.extract, shapes))
            for name, part in objective.models.items()
        }
        return each, tree.count(shapes)

    table, body = 30522 * 128, 13_483_008
    detector = 256 * 256 + 256 + 256 + 1
    # 12 layers of width 64: four products and their norms, the feed-forward layer.
    layer = 4 * (64 * 64 + 64) + 2 * 64 * 256 + 256 + 64 + 4 * 64
    more = 512 * 128 + 2 * 128 + 2 * 128
    theirs = table + more + 128 * 64 + 64 + 12 * layer
    head = 64 * 128 + 128 + 2 * 128 + 30522
    for tie, shared in {
        "tokens": table,
        "embeddings": table + more,
        "disentangled": 0,
    }.items():
        each, whole = counts(tie)
        assert each == {"discriminator": body + detector, "generator": theirs + head}
        assert whole == body + detector + theirs + head - shared
    each, whole = counts("all", width_fraction=1.0)
    head = 256 * 128 + 128 + 2 * 128 + 30522
    assert each == {"discriminator": body + detector, "generator": body + head}
    assert whole == body + detector + head
    each, whole = counts("none", width=64)
    assert whole == sum(each.values())
    assert each["generator"] < theirs  # its table is narrower


ALL = [
    case
    for case in itertools.product(VARIANTS, TIES, ["trained", "uniform"])
    if case[::2] != ("electra_15", "uniform")  # refused: nothing to tell apart
]


# At every change a third: each variant with either kind, and each tie.
@pytest.mark.parametrize("variant, tie, kind", campaign(ALL, *ALL[::3]))
def test_shapes_of_every_variant_and_tie(variant, tie, kind):
    config = config_of(variant, tie)
    config = dataclasses.replace(
        config, generator=dataclasses.replace(config.generator, kind=kind)
    )
    objective, batch = Electra(config, ENCODER, PIECES), make_batch()
    names = ["discriminator", "generator"] if kind == "trained" else ["discriminator"]
    assert list(objective.models) == names
    assert objective.models["discriminator"].encoder == ENCODER
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    assert list(params) == names
    for part in objective.models.values():
        model = jax.eval_shape(part.extract, params)
        whole = jax.eval_shape(
            lambda b, part=part: heads.init_model(
                part.encoder, jax.random.key(0), b, part.heads
            ),
            batch,
        )
        assert not tree.differences(whole, model)

    tables = objective.tables()

    def run(params, batch):
        batch = objective.corrupt(tables, batch, key(), jnp.float32(0))
        return objective.loss(params, tables, batch, key(), True)

    loss, metrics = jax.eval_shape(run, params, batch)
    assert loss.shape == () and loss.dtype == jnp.float32
    for name, pair in metrics.items():
        assert [(x.shape, x.dtype) for x in pair] == [((), jnp.float32)] * 2, name
    scores = objective.scores({name: 1.0 for name in metrics})
    assert list(scores)[0] == "loss"
    assert objective.token_loss in (*scores, None)
    assert (objective.token_loss is None) == (
        kind == "uniform" and variant.startswith("electra")
    )
    assert objective.slots(24) == (24 if variant == "all_tokens_mlm" else 4)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("tie", TIES)
def test_parts_are_taken_and_placed(tie, order):
    """Start weights: whichever part is placed first, both are what they were."""
    objective = Electra(config_of(tie=tie), ENCODER, PIECES)
    source, target = initialised(objective), initialised(objective, seed=1)
    taken = {name: part.extract(source) for name, part in objective.models.items()}
    placed = jax.device_get(target)
    for name in list(taken)[::order]:
        placed = objective.models[name].insert(placed, jax.device_get(taken[name]))
    assert not tree.differences(target, placed)
    for name, part in objective.models.items():
        for leaf, wanted in zip(
            jax.tree.leaves(part.extract(placed)),
            jax.tree.leaves(taken[name]),
            strict=True,
        ):
            np.testing.assert_allclose(leaf, wanted, atol=1e-6)


@pytest.mark.slow
def test_a_fresh_discriminator_follows_a_placed_generator():
    objective = Electra(config_of(tie="disentangled"), ENCODER, PIECES)
    params = jax.jit(objective.init)(jax.random.key(0), make_batch())
    params = jax.device_get(params)
    delta = params["discriminator"]["encoder"]["embeddings"]["token_delta"]
    assert delta.shape == (VOCABULARY, 12) and not delta.any()
    own = jax.device_get(objective.models["generator"].extract(initialised(objective)))
    params = objective.models["generator"].insert(params, own)
    found = heads.token_table(objective.models["discriminator"].extract(params))
    np.testing.assert_array_equal(found, heads.token_table(own))


# --- samples


@pytest.mark.slow
def test_samples_follow_the_softmax():
    """Over blocks and within them, at more than one temperature."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 300).astype(np.float32)
    logits[[0, 127, 128, 255, 256, 299]] = 4
    logits[5:9] = -np.inf
    draws = 200_000
    u = (np.arange(draws, dtype=np.float32) + 0.5) / np.float32(draws)
    drawing = jax.jit(
        lambda x, u, t: sample(jnp.broadcast_to(x, (1000, 300)), u, t), static_argnums=2
    )
    for temperature in (1.0, 0.5):
        found = np.concatenate(
            [drawing(logits, part, temperature) for part in np.split(u, draws // 1000)]
        )
        assert found.dtype == np.int32
        weights = np.exp(logits.astype(np.float64) / temperature)
        expected = draws * weights / weights.sum()
        # Of evenly spaced u, each piece gets its share to one or two.
        assert np.abs(np.bincount(found, minlength=300) - expected).max() < 2


def test_the_ends_of_the_distribution():
    drawn = jax.jit(sample, static_argnums=2)
    logits = np.full((4, 131), -np.inf, np.float32)
    logits[:, 130] = logits[1, 0] = 0
    u = np.float32([0, 0, 1 - 2**-24, 1 - 2**-24])
    assert drawn(logits, u, 1.0).tolist() == [130, 0, 130, 130]
    # All the mass in the first block, padding after it.
    logits = np.full((4, 131), -1e30, np.float32)
    logits[:, 3] = 0
    assert drawn(logits, u, 1.0).tolist() == [3, 3, 3, 3]


@pytest.mark.slow
def test_hashed_numbers_sample_every_slot_on_its_own():
    rows, slots = 4000, 5
    noise = Noise(jnp.uint32(1), jnp.uint32(2), jnp.arange(rows, dtype=jnp.int32))
    u = noise_lib.uniform(noise, "generator/sample", slots).reshape(-1)
    p = np.float32([0.5, 0.3, 0.15, 0.05])
    logits = jnp.broadcast_to(jnp.log(p), (rows * slots, 4))
    found = np.asarray(sample(logits, u, 1.0)).reshape(rows, slots)
    for slot in range(slots):
        counts = np.bincount(found[:, slot], minlength=4)
        # Chi-squared with 3 degrees of freedom: 31 has a probability below 1e-6.
        assert ((counts - rows * p) ** 2 / (rows * p)).sum() < 31
    pairs = np.bincount(found[:, 0] * 4 + found[:, 1], minlength=16)
    expected = rows * np.outer(p, p).ravel()
    assert ((pairs - expected) ** 2 / expected).sum() < 60


def test_only_used_slots_are_replaced_and_right_guesses_are_originals():
    batch, out = make_batch(), corrupted()
    used = np.asarray(out["weights"]) > 0
    at, rows = np.asarray(out["mask_positions"]), np.arange(8)[:, None]
    assert used.any() and not used.all()
    drawn = np.where(np.arange(at.shape[1]) % 2, out["labels"], 7)
    seen = jax.device_get(substituted(out, jnp.asarray(drawn)))
    np.testing.assert_array_equal(seen["originals"], batch["tokens"])
    expected = batch["tokens"].copy()
    for row in range(8):
        expected[row, at[row][used[row]]] = drawn[row][used[row]]
    np.testing.assert_array_equal(seen["tokens"], expected)
    np.testing.assert_array_equal(seen["replaced"], expected != batch["tokens"])
    assert not seen["replaced"][rows, at][:, 1::2].any()
    assert not (seen["tokens"] == MASK).any() and (out["tokens"] == MASK).any()


def test_a_uniform_generator_is_random_pieces():
    uniform = config_of(generator=GeneratorConfig(kind="uniform"))
    objective = Electra(uniform, ENCODER, PIECES)
    given = objective.tables(), make_batch(512), key(), jnp.float32(0)
    out = jax.jit(objective.corrupt)(*given)
    seen = jax.device_get(substituted(out, None))
    used = np.asarray(out["weights"]) > 0
    new = seen["tokens"][np.arange(512)[:, None], out["mask_positions"]][used]
    counts = np.bincount(new, minlength=VOCABULARY)
    assert counts[:5].sum() == 0
    expected = used.sum() / (VOCABULARY - 5)
    # Chi-squared with 54 degrees of freedom: 115 has a probability below 1e-5.
    assert ((counts[5:] - expected) ** 2 / expected).sum() < 115
    chosen = np.zeros(seen["replaced"].shape, bool)
    rows = np.broadcast_to(np.arange(512)[:, None], used.shape)
    chosen[rows[used], np.asarray(out["mask_positions"])[used]] = True
    assert not (seen["replaced"] & ~chosen).any()
    assert abs(seen["replaced"].sum() / used.sum() - 54 / 55) < 0.02


def test_generator_and_discriminator_drop_different_units():
    noise = key().noise(make_batch(64))
    other = _stream(noise, "generator")
    bits = [noise_lib.keep(n, "layer_0/ffn", 64, 0.5) for n in (noise, other)]
    agree = np.mean(np.asarray(bits[0]) == np.asarray(bits[1]))
    assert abs(agree - 0.5) < 0.03


# --- the loss


def test_scores_of_nothing_are_no_figures():
    names = ("loss", "accuracy", "precision", "recall", "on_replaced", "on_originals")
    nothing = {f"detector_{name}": math.nan for name in names}
    nothing |= {f"generator_{n}": math.nan for n in ("loss", "accuracy")}
    nothing |= {"generator_nats_per_byte": math.nan, "replaced_share": math.nan}
    objective = Electra(config_of(), ENCODER, PIECES)
    assert all(map(math.isnan, objective.scores(nothing).values()))
    # A discriminator that calls nothing replaced was measured: its precision is 0.
    calm = nothing | {"detector_loss": 0.4, "detector_accuracy": 0.9}
    assert objective.scores(calm)["detector_precision"] == 0
    # A term of weight 0 is no part of the loss, measured or not.
    alone = Electra(config_of(generator_weight=0.0, tie="none"), ENCODER, PIECES)
    assert alone.scores(calm)["loss"] == 50 * 0.4


def test_the_copy_mechanism():
    """D times the input's piece, 1 - D times the softmax; summed by brute force."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (400, 9)).astype(np.float32)
    gate = random.normal(0, 2, 400).astype(np.float32)
    seen, labels = random.integers(0, 9, (2, 400)).astype(np.int32)
    seen[::2] = labels[::2]
    copied = 1 / (1 + np.exp(np.float64(gate)))[:, None]
    softmax = np.exp(np.float64(logits))
    softmax /= softmax.sum(1, keepdims=True)
    mixture = copied * np.eye(9)[seen] + (1 - copied) * softmax
    np.testing.assert_allclose(mixture.sum(1), 1)
    nll, hit = jax.jit(_copy_loss)(logits, gate, seen, labels)
    np.testing.assert_allclose(
        nll, -np.log(mixture[np.arange(400), labels]), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(hit, mixture.argmax(1) == labels)

    def mean(logits, gate):
        return jnp.mean(_copy_loss(logits, gate, seen, labels)[0])

    # Far from zero nothing overflows.
    grads = jax.jit(jax.grad(mean, (0, 1)))(logits * 50, gate * 50)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.campaign
def test_evaluation_depends_on_the_rows_alone():
    objective = Electra(config_of(), ENCODER, PIECES)
    params, batch = initialised(objective), make_batch(16)
    evaluation, tables = make_evaluation(objective), objective.tables()
    whole = evaluation(params, tables, batch)
    order = np.random.default_rng(0).permutation(16)
    for rows in (order, np.arange(16)):
        parts = [
            evaluation(
                params, tables, {k: v[rows[i : i + 8]] for k, v in batch.items()}
            )
            for i in (0, 8)
        ]
        for name, (total, count) in whole.items():
            assert count == sum(part[name][1] for part in parts)
            sums = sum(float(part[name][0]) for part in parts)
            np.testing.assert_allclose(sums, total, rtol=1e-5)
    assert whole["replaced_share"][0] > 10
    empty = {k: v[:8] for k, v in batch.items()}
    empty["segments"] = np.zeros_like(empty["segments"])
    metrics = evaluation(params, tables, empty)
    assert all(total == count == 0 for total, count in metrics.values())


def learn(config, steps: int = 150):
    """Trains on one batch with one key; returns the scores before and after."""
    encoder = dataclasses.replace(ENCODER, dropout=0.0, attention_dropout=0.0)
    objective, batch = Electra(config, encoder, PIECES), make_batch()
    params = initialised(objective)
    _, means = learned(objective, batch, key(), 5e-3, steps, params=params)
    return [
        objective.scores({name: float(x[i]) for name, x in means.items()})
        for i in (0, -1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("variant", campaign(VARIANTS, "all_tokens_mlm"))
def test_overfits_one_batch(variant):
    """With the generator its samples stay, which the discriminator learns by heart."""
    first, last = learn(config_of(variant, "none", generator_weight=0.0), 300)
    assert last["generator_loss"] == first["generator_loss"] > 3
    if "detector" in VARIANTS[variant].heads:
        assert first["detector_separation"] < 0.6 < 0.9 < last["detector_separation"]
        assert min(last["detector_recall"], last["detector_precision"]) > 0.95
    if "head" in VARIANTS[variant].heads:
        assert first["discriminator_loss"] > 2
        assert last["discriminator_loss"] < 0.2
        assert last["discriminator_accuracy"] > 0.95
    if variant == "all_tokens_mlm":
        assert first["all_tokens_loss"] > 0.5 and last["all_tokens_loss"] < 0.05
        assert last["all_tokens_accuracy"] > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("tie", campaign(TIES, "tokens"))
def test_generator_and_discriminator_overfit_one_batch(tie):
    first, last = learn(config_of(tie=tie), 250)
    assert first["generator_loss"] > 3 and last["generator_loss"] < 0.3
    # What it guesses right is not replaced.
    assert first["replaced_share"] > 0.1 and last["replaced_share"] < 0.03
    assert last["loss"] < 5 < 30 < first["loss"]


@pytest.mark.slow
def test_a_uniform_generator_is_told_by_heart():
    config = config_of(generator=GeneratorConfig(kind="uniform"))
    first, last = learn(config)
    assert "generator_loss" not in first
    assert first["detector_loss"] > 0.3 and last["detector_loss"] < 0.05
    assert last["loss"] == 50 * last["detector_loss"]


def test_flops_grow_with_what_is_run():
    def cost(**more):
        return Electra(config_of(**more), ENCODER, PIECES).flops(32)

    alone = cost(generator=GeneratorConfig(kind="uniform"))
    frozen = cost(tie="disentangled", generator_weight=0.0)
    assert alone < frozen < cost() < cost(tie="all")
    generator = cost(tie="disentangled") - alone
    np.testing.assert_allclose(frozen - alone, generator / 3)
    assert cost(variant="electra_15") < cost() < cost(variant="all_tokens_mlm")
    assert cost(variant="replace_mlm") < cost(variant="all_tokens_mlm")


# --- the step


@pytest.mark.campaign
@pytest.mark.parametrize(
    "variant, tie", [("electra", "tokens"), ("all_tokens_mlm", "disentangled")]
)
def test_no_row_leaves_its_device(variant, tie):
    objective = Electra(config_of(variant, tie), ENCODER, PIECES)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        program = lowered_step(objective, make_batch(16), (8, 1, 1), accumulation=2)
        text = program.compile().as_text()
    assert "num_partitions=8" in text and " all-reduce(" in text
    for name in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert f" {name}(" not in text


# --- transformers


def theirs_of(encoder: EncoderConfig, model: dict, name: str):
    """A class of transformers with the parameters of one of our models."""
    import torch
    import transformers

    config = transformers.ElectraConfig(
        vocab_size=encoder.vocab_size,
        embedding_size=encoder.input_width,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.layers,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.ffn_width,
        max_position_embeddings=encoder.max_positions,
        layer_norm_eps=encoder.norm_eps,
    )
    theirs = getattr(transformers, name)(config).eval()
    tensors, more = weights.to_tensors(encoder, jax.device_get(model))
    assert not more
    tensors = {n: torch.from_numpy(np.array(x)) for n, x in tensors.items()}
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {
        "generator_lm_head.weight",
        "electra.embeddings.position_ids",
    }
    theirs.tie_weights()
    return theirs


def gradients_of(encoder: EncoderConfig, theirs, names) -> dict:
    """Their gradients under our names."""
    found = {n: p.grad.numpy() for n, p in theirs.named_parameters()}
    wanted = weights.model_entries(encoder, names)
    return tree.flatten(weights.from_tensors(wanted, names, found.__getitem__))


@pytest.mark.peer
@pytest.mark.parametrize("tie", ["tokens", "none", "disentangled"])
def test_joint_loss_of_transformers(tie):
    """ElectraForMaskedLM and ElectraForPreTraining by hand, on the samples we drew."""
    import torch

    encoder = dataclasses.replace(ENCODER, layers=3)
    config = config_of(tie=tie, generator=GeneratorConfig(layers=2, width=24, heads=3))
    objective = Electra(config, encoder, PIECES)
    params, out = initialised(objective), corrupted()
    tables = objective.tables()
    f = jax.jit(
        jax.value_and_grad(lambda p: objective.loss(p, tables, out, key(), False)[0])
    )
    loss, grads = f(params)
    models = {name: part.extract(params) for name, part in objective.models.items()}
    other = objective.models["generator"].encoder
    generator = theirs_of(other, models["generator"], "ElectraForMaskedLM")
    discriminator = theirs_of(encoder, models["discriminator"], "ElectraForPreTraining")

    def call(model, tokens):
        # Two documents in a row: a mask [B, 1, L, L] of who sees whom.
        same = out["segments"][:, None, :, None] == out["segments"][:, None, None, :]
        return model(
            input_ids=torch.tensor(np.asarray(tokens), dtype=torch.long),
            attention_mask=torch.tensor(np.asarray(same)),
            token_type_ids=torch.tensor(np.asarray(out["types"]), dtype=torch.long),
        ).logits

    chosen, at = np.asarray(out["weights"]) > 0, np.asarray(out["mask_positions"])
    rows = np.broadcast_to(np.arange(len(at))[:, None], at.shape)[chosen]
    at, labels = at[chosen], np.asarray(out["labels"])[chosen]
    logits = call(generator, out["tokens"])[rows, at]
    mlm = torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long())
    slots = out["labels"].shape[1]
    u = noise_lib.uniform(key().noise(out), "generator/sample", slots)
    drawn = sample(logits.detach().numpy(), np.asarray(u)[chosen], 1.0)
    truth = make_batch()["tokens"]
    seen = truth.copy()
    seen[rows, at] = drawn
    real = torch.tensor(np.asarray(out["segments"]) > 0)
    judged = torch.nn.functional.binary_cross_entropy_with_logits(
        call(discriminator, seen)[real], torch.tensor(seen != truth).float()[real]
    )
    assert (seen != truth).sum() > 5
    total = mlm + 50 * judged
    total.backward()
    np.testing.assert_allclose(loss, total.item(), rtol=1e-5)
    of_d = gradients_of(encoder, discriminator, ["detector"])
    of_g = gradients_of(other, generator, ["head"])
    table = "encoder/embeddings/token"
    if tie == "tokens":
        of_d[table] = of_d[table] + of_g.pop(table)
    if tie == "disentangled":
        of_d[f"{table}_delta"] = of_d.pop(table)
    for name, wanted in (("discriminator", of_d), ("generator", of_g)):
        found = tree.flatten(grads[name])
        assert found.keys() == wanted.keys()
        scale = max(np.abs(x).max() for x in wanted.values())
        for leaf in wanted:
            np.testing.assert_allclose(
                found[leaf], wanted[leaf], rtol=1e-4, atol=1e-5 * scale, err_msg=leaf
            )


def test_an_untied_generator_may_have_a_table_of_its_own_width():
    settings = GeneratorConfig(width_fraction=0.5, embedding_width=6)
    found = generator_encoder(settings, "none", ENCODER)
    assert (found.input_width, found.width) == (6, ENCODER.width // 2)
    with pytest.raises(PlmjaxError, match="as objective.tie=tokens needs"):
        generator_encoder(settings, "tokens", ENCODER)


@pytest.mark.parametrize("tie", ["tokens", "embeddings", "all"])
def test_a_generator_that_shall_stay_is_not_tied(tie):
    with pytest.raises(PlmjaxError, match="Set --config.objective.tie=none"):
        config_of(tie=tie, generator_weight=0.0)
