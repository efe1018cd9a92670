"""Bounds of values, alone and beside others; what is no number, and what is no row.

A value is refused by a PlmjaxError that names its key.
"""

import collections
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_ranges import PLACES, limits_of, numbers
from tests_common import batch_of

from plmjax import Exit, PlmjaxError, tree
from plmjax import config as config_lib
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.evaluate import fill
from plmjax.evaluate.model import Model
from plmjax.finetune.config import FinetuneConfig
from plmjax.models import EncoderConfig
from plmjax.models.config import resolve
from plmjax.objectives import MLM, Electra, ElectraConfig, Key, MLMConfig, Pieces
from plmjax.objectives.generator import GeneratorConfig
from plmjax.objectives.masked import bytes_of
from plmjax.workdir import RunConfig

TINY = 1e-9
# The keys of both configs by their range, which test_ranges.py tries at its ends.
RANGES = {
    "at least 1": """
    train.steps train.batch train.accumulation train.optimizer.unfreeze_every_steps
    train.prune.stages train.loss_scale_steps train.log_every_steps
    train.evaluate_every_steps train.checkpoint_every_steps train.patience_evaluations
    train.max_bad_steps train.rollback_batches train.max_rollbacks mesh.data mesh.fsdp
    mesh.tensor data.source.column data.source.max_documents data.workers
    tokenizer.vocab_size tokenizer.min_frequency tokenizer.alphabet
    tokenizer.longest_word tokenizer.stride model.vocab_size model.layers model.width
    model.heads model.kv_heads model.global_limit model.block model.rope_factor
    model.ffn_width model.embedding_width model.max_positions model.groups
    model.landmarks objective.copies objective.generator.layers
    objective.generator.width objective.generator.heads objective.generator.ffn_width
    objective.generator.embedding_width task.stride task.max_answer_tokens start.layers
    """,
    "at least 0": """
    train.optimizer.eps train.optimizer.weight_decay train.optimizer.freeze
    train.schedule.warmup_steps model.random_blocks model.position_offset
    model.token_types model.norm_eps model.convolution_width model.value_convolution
    model.init_std objective.mlm_weight objective.pair_weight
    objective.generator_weight objective.detector_weight objective.soft_weight
    objective.cosine_weight objective.hidden_weight objective.attention_weight
    start.reinit_layers objective.rdrop_weight lora.rank folds.fold
    """,
    "above 0": """
    train.epochs train.optimizer.learning_rate train.optimizer.clip_norm
    train.spike_sigmas train.hang_after_seconds model.rope_theta model.rope_local_theta
    objective.temperature baselines_seconds task.temperature
    objective.teacher_temperature
    """,
    "at least 0 and below 1": """
    train.optimizer.b1 train.optimizer.b2 train.prune.sparsity model.dropout
    model.attention_dropout start.dropout start.classifier_dropout
    objective.label_smoothing mixout
    """,
    "above 0 and below 1": """
    train.ema_decay objective.probability objective.final_probability
    """,
    "above 0 and at most 1": "train.optimizer.layer_decay",
    "0 to 1": """
    objective.mask_share objective.random_share objective.short_share
    objective.teacher_share
    """,
    "0 to 100": """
    train.schedule.warmup_percent train.schedule.decay_percent
    train.schedule.final_percent train.prune.begin_percent train.prune.end_percent
    """,
    "at least 0 and below 100": "train.average_from_percent",
    "above 0 and below 100": "data.held_out_percent task.held_out_percent",
    "above 0 and at most 4": """
    objective.generator.layers_fraction objective.generator.width_fraction
    """,
    "at least 2": """
    train.keep_checkpoints model.window model.position_buckets folds.count
    """,
    "at least 4": "data.source.max_document_bytes",
    "at least 8": "data.length task.length",
    "1 to 16": "tokenizer.k",
    f"1 to {2**24}": "train.loss_scale",
    f"0 to {2**32 - 1}": "train.seed seeds.data seeds.init seeds.dropout folds.seed",
    "None": "lora.alpha",
}
# {key: (accepted, refused beside the values of other keys)}.
BESIDE_OTHERS = {
    "train.accumulation": (16, 17),
    "train.prune.begin_percent": (50.0, 50.1),
    "model.vocab_size": (40, 39),
    "model.convolution_width": (3, 2),
    "objective.mask_share": (0.9, 0.9 + 1e-6),
    "objective.random_share": (0.2 - TINY, 0.2 + 1e-6),
    "objective.mlm_weight": (TINY, 0.0),
    "objective.detector_weight": (TINY, 0.0),
    "folds.fold": (2, 3),
}
BESIDE = {"folds.fold": {"folds.count": 3}}
DISTILLED = "temperature soft_weight cosine_weight hidden_weight attention_weight"
SCHEMAS = {"pretraining": RunConfig, "fine-tuning": FinetuneConfig}


def load(schema: str, key: str, value) -> None:
    """Builds all that checks a config by its values alone."""
    values = BESIDE.get(key, {}) | {key: value}
    block, _, name = key.partition(".")
    if name.startswith(("generator", "detector")):
        values["objective.kind"] = "electra"
    elif block == "objective" and name in DISTILLED.split():
        values["objective.kind"] = "distill"
    nested = tree.unflatten({k.replace(".", "/"): v for k, v in values.items()})
    config = config_lib.load(SCHEMAS[schema], None, (), nested)
    if schema == "pretraining":
        resolve(config.model, 40, 0)


def numeric(kind) -> dict[str, set]:
    """Returns which of int and float each key may be, of those that may."""
    named = {
        k: set(config_lib.describe(t).split(" | ")) for k, t in config_lib.fields(kind)
    }
    return {k: t & {"int", "float"} for k, t in named.items() if t & {"int", "float"}}


NUMBERS = [
    (schema, key, kinds)
    for schema, config in SCHEMAS.items()
    for key, kinds in numeric(config).items()
    # It may be a tuple, and is checked in tests/data/.
    if key != "data.mixture_temperature"
]


def test_each_number_of_a_config_has_its_range():
    found = collections.defaultdict(set)
    for block, prefix in PLACES:
        for name in numbers(block):
            found[str(limits_of(block, name))].add(f"{prefix}{name}")
    assert found == {limits: {*keys.split()} for limits, keys in RANGES.items()}
    assert {key for _, key, _ in NUMBERS} == set.union(*found.values())


@pytest.mark.parametrize("key", BESIDE_OTHERS)
def test_a_bound_beside_other_values_is_accepted_and_what_is_beyond_is_refused(key):
    schema = "fine-tuning" if key.startswith("folds.") else "pretraining"
    accepted, refused = BESIDE_OTHERS[key]
    load(schema, key, accepted)
    with pytest.raises(PlmjaxError, match=rf"\b{key.rpartition('.')[2]}\b"):
        load(schema, key, refused)


@pytest.mark.parametrize(("schema", "key", "kinds"), NUMBERS)
def test_what_is_no_number_is_refused(schema, key, kinds):
    odd = [math.nan, math.inf, -math.inf, True, "1", [1]]
    if "float" in kinds:
        odd += [10**400, -(10**400)]
    for value in odd:
        with pytest.raises(PlmjaxError, match=re.escape(key)):
            load(schema, key, value)


@pytest.mark.parametrize("factor", [math.nan, math.inf, -1.0, True])
def test_factors_of_rates_are_finite(factor):
    with pytest.raises(PlmjaxError, match="rates"):
        load("pretraining", "train.optimizer.rates", ((".*", factor),))
    load("pretraining", "train.optimizer.rates", ((".*", 0.0),))


@pytest.mark.parametrize(
    "phase", [(0, 16, 4), (1, 0, 4), (1, 16, -1), (1, 16), 3, (1, 16, 4, 0.0)]
)
def test_phases_are_three_numbers_from_one_on_or_four(phase):
    load("pretraining", "data.phases", ((1, 16, 1), (1, 16, 1, 0.5)))
    with pytest.raises(PlmjaxError, match=r"data\.phases"):
        load("pretraining", "data.phases", (phase,))


@pytest.mark.parametrize("ramp", [(5,), (0, 2), (5, 1.5), (5, 2, 1)])
def test_a_ramp_is_tokens_and_rows(ramp):
    load("pretraining", "data.batch_ramp", (1, 1))
    with pytest.raises(PlmjaxError, match=r"data\.batch_ramp"):
        load("pretraining", "data.batch_ramp", ramp)


# --- a table of more rows than pieces

PIECES, TABLE, SPECIAL = 24, 40, (0, 1, 2, 3, 4)
ENCODER = EncoderConfig(
    vocab_size=TABLE, layers=1, width=8, heads=1, ffn_width=8, max_positions=16
)
OF_TOKENIZER = Pieces(4, SPECIAL, tuple(range(1, PIECES + 1)))


def rows_of_text() -> dict:
    random = np.random.default_rng(0)
    return batch_of(random.integers(5, PIECES, (64, 16)))


def test_random_pieces_are_those_of_the_tokenizer():
    """All of them, and neither special pieces nor rows past the last."""
    generator = GeneratorConfig(kind="uniform")
    objectives = (
        MLM(
            MLMConfig(mask_share=0.0, random_share=1.0, probability=0.5),
            ENCODER,
            OF_TOKENIZER,
        ),
        Electra(
            ElectraConfig(generator=generator, probability=0.5), ENCODER, OF_TOKENIZER
        ),
    )
    for objective in objectives:
        key = Key(jnp.uint32(1), jnp.uint32(2))
        batch = objective.corrupt(objective.tables(), rows_of_text(), key, 0.0)
        now = np.take_along_axis(
            np.asarray(batch["tokens"]), batch["mask_positions"], 1
        )
        drawn = now[np.asarray(batch["weights"]) > 0]
        assert set(drawn.tolist()) == set(range(5, PIECES))
        # Each as often as another: 448 draws of 19.
        assert np.bincount(drawn)[5:].min() > 8


def test_rows_past_the_last_piece_have_no_bytes():
    found = bytes_of(OF_TOKENIZER, TABLE)
    np.testing.assert_array_equal(
        found, [*range(1, PIECES + 1), *[0] * (TABLE - PIECES)]
    )


class Tokenizer:
    """Stands for one of PIECES pieces, which cannot name a row past them."""

    vocab_size = PIECES

    def decode(self, ids):
        assert all(0 <= i < PIECES for i in ids), ids
        return f"piece {ids[0]}"


def test_guesses_name_no_row_past_the_pieces(monkeypatch):
    """Even where all of its weight is there; probabilities are those among pieces."""
    logits = np.full((1, 1, TABLE), 0.0, np.float32)
    logits[..., PIECES:], logits[..., 7] = 99.0, 1.0
    monkeypatch.setattr(fill, "outputs", lambda *_: {"head": jnp.asarray(logits)})
    model = Model(ENCODER, {}, Tokenizer(), "a")
    for top in (1, 3, PIECES, PIECES + 1, TABLE):
        ((found,),) = fill.guesses(model, {}, {}, top)
        assert len(found) == min(top, PIECES)
        assert found[0].text == "piece 7"
        expected = math.e / (math.e + PIECES - 1)
        np.testing.assert_allclose(found[0].probability, expected, rtol=1e-5)


# --- masks and slots


@pytest.mark.parametrize(
    ("probability", "length", "count"),
    [(1e-6, 8, 1), (0.15, 128, 19), (0.5, 10, 4), (0.5, 11, 5), (1 - 1e-9, 12, 10)],
)
def test_slots_are_enough_for_a_whole_row(probability, length, count):
    """At least one; never more than the text between [CLS] and [SEP]."""
    assert MLMConfig(probability=probability).slots(length) == count


def test_rows_with_nothing_to_mask_have_no_weight_and_others_one_token():
    objective = MLM(MLMConfig(probability=1e-6), ENCODER, OF_TOKENIZER)
    batch = rows_of_text()
    batch["segments"][0] = 0
    batch["tokens"][1] = 2
    batch["tokens"][2, 1:] = 3
    key = Key(jnp.uint32(0), jnp.uint32(0))
    found = jax.device_get(objective.corrupt(objective.tables(), batch, key, 0.0))
    used = (found["weights"] > 0).sum(1)
    np.testing.assert_array_equal(used, [0, 0, *[1] * 62])
    np.testing.assert_allclose(found["weights"].sum(), 1, rtol=1e-6)
    np.testing.assert_array_equal(found["tokens"][:2], batch["tokens"][:2])
    assert found["mask_positions"][2, 0] == 0


# --- checkpoints of another state


def state() -> dict:
    return {
        "params": {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(4)},
        "step": jnp.int32(7),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    checkpoints = Checkpoints(tmp_path_factory.mktemp("saved"), 2, lambda _: None)
    checkpoints.save(7, state(), {"loss": 1.0})
    checkpoints.wait()
    return checkpoints


def shape(*size: int, dtype="float32"):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(size, dtype, sharding=here)


ASKED = {"params": {"a": shape(2, 3), "b": shape(4)}, "step": shape(dtype="int32")}


@pytest.mark.parametrize(
    ("leaf", "other", "words"),
    [
        ("params/b", None, "params/b is float32[4], not known"),
        ("params/c", shape(4), "params/c is missing, not float32[4]"),
        ("params/a", shape(3, 2), "params/a is float32[2, 3], not float32[3, 2]"),
        ("params/a", shape(2, 2), "params/a is float32[2, 3], not float32[2, 2]"),
        ("params/b", shape(4, 1), "params/b is float32[4], not float32[4, 1]"),
        ("params/b", shape(5), "params/b is float32[4], not float32[5]"),
        ("params/b", shape(4, dtype="bfloat16"), "float32[4], not bfloat16[4]"),
        ("params/b", shape(4, dtype="int32"), "float32[4], not int32[4]"),
        ("step", shape(dtype="float32"), "step is int32[], not float32[]"),
        ("step", shape(1, dtype="int32"), "step is int32[], not int32[1]"),
        ("step", None, "step is int32[], not known"),
    ],
)
@pytest.mark.parametrize("only", [None, "params"])
def test_a_checkpoint_of_another_state_is_refused(saved, leaf, other, words, only):
    asked = tree.flatten(ASKED) | {leaf: other}
    asked = tree.unflatten({n: x for n, x in asked.items() if x is not None})
    with pytest.raises(PlmjaxError, match="1 leaves differ") as caught:
        saved.load(7, asked, only)
    assert words in caught.value.message
    assert caught.value.code == Exit.MODEL


def test_the_checkpoint_of_the_same_state_is_loaded(saved):
    found = saved.load(7, ASKED)
    jax.tree.map(np.testing.assert_array_equal, found, state())
