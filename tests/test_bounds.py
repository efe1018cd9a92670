"""Bounds and odd values: each bound at itself and one beyond, nan, and what is no row.

A value is refused by a PlmjaxError that names its key.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

TINY, HUGE = 1e-9, 1e9
SEED = [0, 2**32 - 1], [-1, 2**32]
COUNT = [1], [0, -1]
SIZE = [1], [0]
SHARE = [0.0, 1.0], [-TINY, 1 + TINY]
# None means no such thing; above 0, and below 1 or not.
RATE = [0.0, 1 - TINY], [-TINY, 1.0]
ABOVE, NOT_NEGATIVE = [TINY, HUGE], [0.0, HUGE]
PERCENT = [0.0, 100.0], [-TINY, 100 + 1e-6]
INSIDE_PERCENT = [TINY, 100 - 1e-6], [0.0, 100.0, -1.0]

# {key: (values that are accepted, values that are refused)}; what else a value needs
# stands in BESIDE.
TRAIN = {
    "train.steps": COUNT,
    "train.epochs": (ABOVE, [0.0, -1.0]),
    "train.batch": SIZE,
    "train.accumulation": ([1, 16], [0, 17]),
    "train.seed": SEED,
    "train.optimizer.learning_rate": (ABOVE, [0.0, -TINY]),
    "train.optimizer.b1": RATE,
    "train.optimizer.b2": RATE,
    "train.optimizer.eps": (NOT_NEGATIVE, [-TINY]),
    "train.optimizer.weight_decay": (NOT_NEGATIVE, [-TINY]),
    "train.optimizer.clip_norm": (ABOVE, [0.0, -TINY]),
    "train.optimizer.layer_decay": ([TINY, 1.0], [0.0, 1 + TINY]),
    "train.optimizer.freeze": ([0], [-1]),
    "train.optimizer.unfreeze_every_steps": COUNT,
    "train.schedule.warmup_percent": PERCENT,
    "train.schedule.warmup_steps": ([0], [-1]),
    "train.schedule.decay_percent": PERCENT,
    "train.schedule.final_percent": PERCENT,
    "train.prune.sparsity": RATE,
    "train.prune.begin_percent": ([0.0, 50.0], [-TINY, 50.1, 100 + 1e-6]),
    "train.prune.end_percent": PERCENT,
    "train.prune.stages": COUNT,
    "train.ema_decay": ([TINY, 1 - TINY], [0.0, 1.0]),
    "train.average_from_percent": ([0.0, 100 - 1e-6], [-TINY, 100.0]),
    "train.loss_scale": ([1.0, 2.0**24], [1 - TINY, 2.0**25]),
    "train.loss_scale_steps": COUNT,
    "train.log_every_steps": COUNT,
    "train.evaluate_every_steps": COUNT,
    "train.checkpoint_every_steps": COUNT,
    "train.patience_evaluations": COUNT,
    "train.keep_checkpoints": ([2], [1]),
    "train.max_bad_steps": COUNT,
    "train.spike_sigmas": (ABOVE, [0.0, -TINY]),
    "train.rollback_batches": COUNT,
    "train.max_rollbacks": COUNT,
    "train.hang_after_seconds": (ABOVE, [0.0, -TINY]),
    "mesh.data": SIZE,
    "mesh.fsdp": SIZE,
    "mesh.tensor": SIZE,
}
PRETRAINING = TRAIN | {
    "data.source.column": COUNT,
    "data.source.max_documents": COUNT,
    "data.length": ([8], [7]),
    "data.held_out_percent": INSIDE_PERCENT,
    "data.workers": COUNT,
    "tokenizer.vocab_size": COUNT,
    "tokenizer.min_frequency": COUNT,
    "tokenizer.alphabet": COUNT,
    "tokenizer.longest_word": COUNT,
    "tokenizer.k": ([1, 16], [0, 17]),
    "tokenizer.stride": COUNT,
    "model.vocab_size": ([40], [39]),
    "model.layers": SIZE,
    "model.width": SIZE,
    "model.heads": SIZE,
    "model.kv_heads": SIZE,
    "model.window": ([2], [0, 1]),
    "model.global_limit": COUNT,
    "model.block": SIZE,
    "model.random_blocks": ([0], [-1]),
    "model.rope_theta": (ABOVE, [0.0, -TINY]),
    "model.rope_local_theta": (ABOVE, [0.0, -TINY]),
    "model.rope_factor": ([1.0, HUGE], [1 - TINY, 0.0]),
    "model.ffn_width": SIZE,
    "model.embedding_width": SIZE,
    "model.max_positions": SIZE,
    "model.position_offset": ([0], [-1]),
    "model.token_types": ([0], [-1]),
    "model.norm_eps": (NOT_NEGATIVE, [-TINY]),
    "model.groups": SIZE,
    "model.position_buckets": ([2], [1]),
    "model.convolution_width": ([0, 1, 3], [-1, 2]),
    "model.landmarks": SIZE,
    "model.value_convolution": ([0, 3], [-1]),
    "model.dropout": RATE,
    "model.attention_dropout": RATE,
    "model.init_std": (NOT_NEGATIVE, [-TINY]),
    "objective.probability": ([TINY, 1 - TINY], [0.0, 1.0]),
    "objective.final_probability": ([TINY, 1 - TINY], [0.0, 1.0]),
    "objective.mask_share": ([0.0, 0.9], [-TINY, 0.9 + 1e-6]),
    "objective.random_share": ([0.0, 0.2 - TINY], [-TINY, 0.2 + 1e-6]),
    "objective.copies": COUNT,
    "objective.short_share": SHARE,
    "objective.mlm_weight": ([TINY, HUGE], [0.0, -TINY]),
    "objective.pair_weight": (NOT_NEGATIVE, [-TINY]),
    "objective.generator.layers": COUNT,
    "objective.generator.width": COUNT,
    "objective.generator.heads": COUNT,
    "objective.generator.ffn_width": COUNT,
    "objective.generator.embedding_width": COUNT,
    "objective.generator.layers_fraction": ([TINY, 4.0], [0.0, 4 + TINY]),
    "objective.generator.width_fraction": ([TINY, 4.0], [0.0, 4 + TINY]),
    "objective.generator_weight": ([TINY, HUGE], [-TINY]),
    "objective.detector_weight": (ABOVE, [0.0, -TINY]),
    "objective.temperature": (ABOVE, [0.0, -TINY]),
    "objective.soft_weight": (NOT_NEGATIVE, [-TINY]),
    "objective.cosine_weight": (NOT_NEGATIVE, [-TINY]),
    "objective.hidden_weight": (NOT_NEGATIVE, [-TINY]),
    "objective.attention_weight": (NOT_NEGATIVE, [-TINY]),
}
FINETUNING = TRAIN | {
    "baselines_seconds": (ABOVE, [0.0, -TINY]),
    "task.held_out_percent": INSIDE_PERCENT,
    "task.length": ([8], [7]),
    "task.stride": COUNT,
    "task.temperature": (ABOVE, [0.0, -TINY]),
    "task.max_answer_tokens": COUNT,
    "start.layers": COUNT,
    "start.reinit_layers": ([0], [-1]),
    "start.dropout": RATE,
    "start.classifier_dropout": RATE,
    "objective.label_smoothing": RATE,
    "objective.rdrop_weight": (NOT_NEGATIVE, [-TINY]),
    "objective.teacher_share": SHARE,
    "objective.teacher_temperature": (ABOVE, [0.0]),
    "mixout": RATE,
    "lora.rank": ([0, 1], [-1]),
    "lora.alpha": ([-1.0, 0.0, HUGE], []),
    "seeds.data": SEED,
    "seeds.init": SEED,
    "seeds.dropout": SEED,
    "folds.count": ([2], [1, 0, -1]),
    "folds.fold": ([0, 2], [-1, 3]),
    "folds.seed": SEED,
}
BESIDE = {
    "train.spike_sigmas": {"train.on_bad_step": "raise"},
    "train.epochs": {"train.steps": None},
    "train.steps": {"train.epochs": None},
    "model.position_buckets": {
        "model.attention": "disentangled",
        "model.positions": "none",
    },
    "model.groups": {"model.sharing": "all"},
    "model.width": {"model.heads": 1},
    "folds.fold": {"folds.count": 3},
}
SCHEMAS = {
    "pretraining": (RunConfig, PRETRAINING),
    "fine-tuning": (FinetuneConfig, FINETUNING),
}
BOUNDS = [(schema, key) for schema, (_, table) in SCHEMAS.items() for key in table]


def nested(values: dict) -> dict:
    return tree.unflatten({key.replace(".", "/"): v for key, v in values.items()})


def load(schema: str, key: str, value) -> None:
    """Builds all that checks a config by its values alone."""
    kind = SCHEMAS[schema][0]
    values = BESIDE.get(key, {}) | {key: value}
    block = key.split(".")[1] if "." in key else ""
    if block.startswith(("generator", "detector")):
        values["objective.kind"] = "electra"
    if (
        block == "temperature"
        and key.startswith("objective")
        or block in ("soft_weight cosine_weight hidden_weight attention_weight".split())
    ):
        values["objective.kind"] = "distill"
    config = config_lib.load(kind, None, (), nested(values))
    built = config
    if schema == "pretraining":
        resolve(built.model, 40, 0)


def numeric(kind) -> dict[str, set]:
    """Returns which of int and float each key may be, of those that may."""
    named = {
        k: set(config_lib.describe(t).split(" | ")) for k, t in config_lib.fields(kind)
    }
    return {k: t & {"int", "float"} for k, t in named.items() if t & {"int", "float"}}


def test_each_number_of_a_config_has_its_bounds_here():
    for kind, table in SCHEMAS.values():
        # These are checked in tests/data/: where documents are read, and as a number
        # or a tuple of them.
        elsewhere = {"data.source.max_document_bytes", "data.mixture_temperature"}
        assert set(numeric(kind)) - elsewhere == set(table)


@pytest.mark.parametrize(("schema", "key"), BOUNDS)
def test_a_bound_is_accepted_and_what_is_beyond_is_refused(schema, key):
    accepted, refused = SCHEMAS[schema][1][key]
    for value in accepted:
        load(schema, key, value)
    last = key.rsplit(".", 1)[-1]
    for value in refused:
        with pytest.raises(PlmjaxError, match=rf"\b{last}\b"):
            load(schema, key, value)


@pytest.mark.parametrize(("schema", "key"), BOUNDS)
def test_what_is_no_number_is_refused(schema, key):
    odd = [math.nan, math.inf, -math.inf, True, "1", [1]]
    if "float" in numeric(SCHEMAS[schema][0])[key]:
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
    tokens = random.integers(5, PIECES, (64, 16)).astype(np.int32)
    index = np.tile(np.arange(16, dtype=np.int32), (64, 1))
    return {
        "tokens": tokens,
        "segments": np.ones_like(tokens),
        "positions": index,
        "types": np.zeros_like(tokens),
        "word_start": np.ones(tokens.shape, bool),
        "row": np.arange(64, dtype=np.int32),
        "copy": np.zeros(64, np.int32),
    }


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
