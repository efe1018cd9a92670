"""Each key of a config changes the result that it is for: a table, one row a key.

Results are those of a use (a loss, a batch, an update after some steps), held against
numpy where that is short. Optimizer, schedule and step are those that a job makes.
"""

import dataclasses
import functools
import inspect
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finetune_common import config_of, make_folder, one_device, records, write
from interop.cases import draw
from tests_common import WORDS, batch_of, sentences

from plmjax import PlmjaxError, tree
from plmjax import config as config_lib
from plmjax.evaluate.model import open_model
from plmjax.finetune import mixout
from plmjax.finetune import run as finetuning
from plmjax.finetune import start as starting
from plmjax.finetune.build import build, make_task, read_data
from plmjax.finetune.config import (
    FinetuneConfig,
    FoldsConfig,
    SeedsConfig,
    SelectConfig,
)
from plmjax.finetune.lora import LoraConfig
from plmjax.finetune.start import StartConfig
from plmjax.finetune.teacher import with_teacher
from plmjax.interop.huggingface import export_folder
from plmjax.models import EncoderConfig, heads, platform, task_heads
from plmjax.models.layers import dropout
from plmjax.models.task_heads import task_logits
from plmjax.objectives import (
    CLM,
    MLM,
    CLMConfig,
    Distill,
    DistillConfig,
    Electra,
    ElectraConfig,
    Key,
    MLMConfig,
    Objective,
    Pieces,
    altered,
    distances,
)
from plmjax.objectives.generator import GeneratorConfig
from plmjax.objectives.supervised import SupervisedConfig
from plmjax.pretrain import build as pretrain_build
from plmjax.pretrain import students, teachers
from plmjax.pretrain.run import DEFAULT_CONFIG
from plmjax.pretrain.weights import start_weights
from plmjax.tasks.task import Task
from plmjax.train import sharding
from plmjax.train.config import (
    MeshConfig,
    OptimizerConfig,
    PruneConfig,
    ScheduleConfig,
    TrainConfig,
)
from plmjax.train.job import initialise, step_for
from plmjax.train.optimizer import make_optimizer
from plmjax.train.pruning import make_pruning
from plmjax.train.schedule import make_schedule, moved_share
from plmjax.workdir import RunConfig, Workdir

BLOCKS = {
    "mlm": MLMConfig,
    "clm": CLMConfig,
    "electra": ElectraConfig,
    "generator": GeneratorConfig,
    "distill": DistillConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "prune": PruneConfig,
    "train": TrainConfig,
    "start": StartConfig,
    "seeds": SeedsConfig,
    "supervised": SupervisedConfig,
    "lora": LoraConfig,
    "select": SelectConfig,
    "folds": FoldsConfig,
}
# When something happens in the loop: tests/train/ and tests/test_cli.py.
OF_THE_LOOP = """log_every_steps evaluate_every_steps checkpoint_every_steps checkpoints
patience_evaluations keep_checkpoints on_bad_step max_bad_steps spike_sigmas
rollback_batches max_rollbacks hang_after_seconds tensorboard trackers loss_scale
 loss_scale_steps""".split()
# What a training brings with it, a row each: the kinds of blocks, and blocks in blocks.
ROWS = {}


def row(*names: str):
    """Enters a test as the rows of keys."""

    def enter(check):
        for name in names:
            assert name not in ROWS, name
            ROWS[name] = functools.partial(check, name) if len(names) > 1 else check
        return check

    return enter


def test_each_key_has_a_row():
    keys = {f"{b}.{f.name}" for b, kind in BLOCKS.items() for f in fields(kind)}
    keys -= {f"train.{name}" for name in OF_THE_LOOP}
    keys -= {"electra.generator"}  # a block, of which each key has a row
    assert keys | {"mixout", "task.temperature"} == set(ROWS)


def fields(kind):
    return dataclasses.fields(kind)


# --- objectives: one encoder, one batch of rows of ten words between [CLS] and [SEP]

ENCODER = EncoderConfig(
    vocab_size=40,
    layers=1,
    width=8,
    heads=2,
    ffn_width=8,
    max_positions=12,
    dropout=0.0,
    attention_dropout=0.0,
)
NARROW = dataclasses.replace(ENCODER, embedding_width=4)
CAUSAL = dataclasses.replace(ENCODER, causal=True, token_types=0)
TEACHER = dataclasses.replace(ENCODER, layers=2)
# Four rows of the table have no piece.
PIECES = Pieces(4, (0, 1, 2, 3, 4), (3,) * 36)
ROWS_OF_BATCH, LENGTH, TEXT, SLOTS = 32, 12, 10, 4


@functools.cache
def a_batch(length: int = LENGTH) -> dict:
    random = np.random.default_rng(0)
    shape = (ROWS_OF_BATCH, length)
    tokens = random.integers(5, 36, shape).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = 2, 3
    batch = batch_of(tokens, cut=np.zeros(shape, bool))
    return batch | {
        "word_start": batch["positions"] % 2 == 1,
        "cls": np.zeros((ROWS_OF_BATCH, 1), np.int32),
        "pair_label": batch["row"][:, None] % 2,
    }


def a_key(seed: int = 3, step: int = 5) -> Key:
    return Key(jnp.uint32(seed), jnp.uint32(step))


def make(kind: str, encoder=None, **keys) -> Objective:
    """Returns an objective of a kind on the encoder above."""
    if kind != "clm":
        keys = {"probability": SLOTS / TEXT} | keys
    if kind == "mlm":
        return MLM(MLMConfig(**keys), encoder or ENCODER, PIECES)
    if kind == "clm":
        return CLM(CLMConfig(**keys), encoder or CAUSAL, PIECES)
    if kind == "electra":
        keys = {"generator": GeneratorConfig(width_fraction=1.0)} | keys
        return Electra(ElectraConfig(**keys), encoder or ENCODER, PIECES)
    config = DistillConfig(**{"teacher": "a", "start": "fresh"} | keys)
    return Distill(config, encoder or ENCODER, PIECES, TEACHER)


def weights(objective: Objective) -> dict:
    """Returns random parameters, without compiling what would draw them."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(objective.init, jax.random.key(0), a_batch())
    return jax.tree.map(
        lambda x: random.normal(0, 0.5, x.shape).astype(np.float32), shapes
    )


SEEN: list = []


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """Encoders and first weights that need little compiling; SEEN has their noise."""

    def encode(encoder, params, batch, noise, platform):
        SEEN.append((encoder, noise))
        tables = params["encoder"]["embeddings"]
        x_BLH = jnp.sin(jnp.asarray(tables["token"])[batch["tokens"]])
        x_BLH += x_BLH @ params["encoder"]["layer_0"]["attention"]["query"]["kernel"]
        if noise is not None and encoder.dropout:
            x_BLH = dropout(x_BLH, encoder.dropout, noise, "encoder")
        return x_BLH

    def keep(encoder, params, batch, noise, platform):
        x_BLH = encode(encoder, params, batch, noise, platform)
        x_TH = x_BLH.reshape(-1, encoder.width)
        states = tuple(x_TH * (1 + layer) for layer in range(encoder.layers))
        x_BNLD = x_BLH[:, None] * encoder.layers
        return x_BLH, distances.Kept(states, x_BNLD, x_BNLD, x_BNLD)

    init = task_heads.init_model

    def init_model(encoder, task, key, batch):
        shapes = jax.eval_shape(functools.partial(init, encoder, task), key, batch)
        drawn = jax.random.uniform(key)

        def spread(x):
            return jnp.sin(drawn * jnp.arange(1, 1 + x.size)).reshape(x.shape)

        return jax.tree.map(spread, shapes)

    SEEN.clear()
    monkeypatch.setattr(task_heads, "init_model", init_model)
    monkeypatch.setattr(heads, "encode", encode)
    monkeypatch.setattr(distances, "encode", keep)


def teacher() -> dict:
    return {"teacher": draw(TEACHER, ("head",))}


def corrupted(objective: Objective, progress=1.0, key=None, **arrays) -> dict:
    batch = a_batch() | arrays
    given = objective.tables(), batch, key or a_key(), progress
    return jax.device_get(objective.corrupt(*given))


@functools.cache
def a_masked_batch() -> dict:
    """One batch that all objectives can judge, so that its masks are drawn once."""
    batch = corrupted(make("mlm"))
    alike = np.full(batch["tokens"].shape, 1 / batch["tokens"].size, np.float32)
    pairs = np.full((ROWS_OF_BATCH, 1), 1 / ROWS_OF_BATCH, np.float32)
    more = {"token_weights": alike, "real_weights": alike, "pair_weights": pairs}
    return batch | more


def judged(objective: Objective, params=None, train=True, key=None, frozen=None):
    """Returns (loss, means, counts) of the corrupted batch."""
    found, batch = params or weights(objective), a_masked_batch()
    if objective.slots(LENGTH) == LENGTH - 1:  # causal
        batch = corrupted(objective)
    frozen = objective.tables() | (frozen or {})
    loss, metrics = objective.loss(found, frozen, batch, key or a_key(), train)
    means = {name: float(a / b) for name, (a, b) in metrics.items()}
    counts = {name: float(b) for name, (_, b) in metrics.items()}
    return float(loss), means, counts


def chosen(batch: dict) -> np.ndarray:
    """Says which tokens of a masked batch are chosen, [B, L]."""
    found = np.zeros(batch["tokens"].shape, bool)
    for where, at, weight in zip(
        found, batch["mask_positions"], batch["weights"], strict=True
    ):
        where[at[weight > 0]] = True
    return found


MASKED = ("mlm", "electra", "distill")


def masked_rows(field: str):
    return row(*(f"{kind}.{field}" for kind in MASKED))


def kind_of(name: str) -> str:
    return name.partition(".")[0]


@masked_rows("probability")
def _(name):
    for share in (0.31, 0.4):
        counts = chosen(corrupted(make(kind_of(name), probability=share))).sum(1)
        assert set(counts) <= {math.floor(share * TEXT), math.ceil(share * TEXT)}
        np.testing.assert_allclose(counts.mean(), share * TEXT, atol=0.25)


@masked_rows("final_probability")
def _(name):
    objective = make(kind_of(name), probability=0.1, final_probability=0.4)
    for progress, count in ((0.0, 1), (0.5, 2.5), (1.0, 4)):
        counts = chosen(corrupted(objective, jnp.float32(progress))).sum(1)
        np.testing.assert_allclose(counts.mean(), count, atol=0.3)


@masked_rows("probabilities")
def _(name):
    changes = ((25, 0.1), (75, 0.2))
    objective = make(kind_of(name), probability=0.4, probabilities=changes)
    assert objective.least_probability == 0.1
    for progress, count in ((0.0, 4), (0.24, 4), (0.25, 1), (0.7, 1), (1.0, 2)):
        counts = chosen(corrupted(objective, jnp.float32(progress))).sum(1)
        np.testing.assert_allclose(counts.mean(), count, atol=0.3)


def fates(kind: str, mask_share: float, random_share: float, **more) -> Counter:
    """Counts what became of the chosen tokens: mask, another, or the same."""
    keys = {"mask_share": mask_share, "random_share": random_share} | more
    batch = corrupted(make(kind, **keys))
    was, now = a_batch()["tokens"], batch["tokens"]
    np.testing.assert_array_equal(was[~chosen(batch)], now[~chosen(batch)])
    was, now = was[chosen(batch)], now[chosen(batch)]
    assert not np.isin(now, (0, 1, 2, 3)).any() and now.max() < 36
    return Counter(np.where(now == 4, "mask", np.where(now == was, "same", "other")))


@masked_rows("mask_share")
def _(name):
    kind, whole = kind_of(name), ROWS_OF_BATCH * SLOTS
    assert fates(kind, 1.0, 0.0) == {"mask": whole}
    assert fates(kind, 0.0, 0.0) == {"same": whole}
    some = fates(kind, 0.6, 0.0)
    assert abs(some["mask"] / whole - 0.6) < 0.17 and not some["other"]


@masked_rows("random_share")
def _(name):
    kind, whole = kind_of(name), ROWS_OF_BATCH * SLOTS
    found = fates(kind, 0.0, 1.0)
    assert found["other"] > 0.9 * whole and not found["mask"]
    # Of the pieces, one of 31 is the token itself.
    some = fates(kind, 0.2, 0.5)
    assert abs(some["mask"] / whole - 0.2) < 0.15
    assert abs(some["other"] / whole - 0.5 * 30 / 31) < 0.17


@masked_rows("unit")
def _(name):
    found, runs = {}, {}
    for unit in ("token", "word", "ngram", "span"):
        batch = corrupted(make(kind_of(name), unit=unit))
        found[unit] = chosen(batch)
        edges = np.diff(np.pad(found[unit], ((0, 0), (1, 1))).astype(int), axis=1)
        runs[unit] = found[unit].sum() / (edges == 1).sum()
    words = found["word"][:, 1:-1].reshape(ROWS_OF_BATCH, -1, 2)
    np.testing.assert_array_equal(words[..., 0], words[..., 1])
    assert runs["token"] < 2 <= runs["word"] < runs["span"]
    for other in ("word", "span"):
        assert not np.array_equal(found["ngram"], found[other])
    # Of a span all tokens have one fate, of an n-gram each its own.
    fate = {}
    for unit in ("span", "ngram"):
        keys = {"unit": unit, "mask_share": 0.5}
        batch = corrupted(make(kind_of(name), **keys, random_share=0.0))
        masks = [
            row[at] == 4 for row, at in zip(batch["tokens"], chosen(batch), strict=True)
        ]
        fate[unit] = np.mean([len(set(row.tolist())) for row in masks])
    assert fate["span"] < fate["ngram"]


@masked_rows("masks")
def _(name):
    for masks, same in (("static", True), ("dynamic", False)):
        objective = make(kind_of(name), masks=masks)
        one, two = (corrupted(objective, key=a_key(step=step)) for step in (1, 2))
        assert np.array_equal(one["tokens"], two["tokens"]) == same
        assert np.array_equal(one["mask_positions"], two["mask_positions"]) == same


@masked_rows("copies")
def _(name, made):
    kind = kind_of(name)
    objective = make(kind, masks="static")
    copies = [np.full(ROWS_OF_BATCH, copy, np.int32) for copy in (0, 1)]
    one, two = (corrupted(objective, copy=copy) for copy in copies)
    assert not np.array_equal(one["mask_positions"], two["mask_positions"])
    keys = ["objective.masks=static", "objective.copies=2", "train.steps=999"]
    loader = made.run(f"objective.kind={kind}", *keys).loader
    rows = loader.phases[0].plan.rows
    for epoch in range(4):
        assert epoch % 2 in loader.batch(-(-rows * epoch // 8))["copy"]


@row(*(f"{kind}.kind" for kind in ("mlm", "clm", "electra", "distill", "supervised")))
def _(name, made):
    kind = kind_of(name)
    if kind == "supervised":
        assert set(made.parts().objective.models) == {"model"}
        assert set(made.parts().params) == {"encoder", "sequence"}
        return
    objective = made.run(f"objective.kind={kind}").objective
    parts = {"electra": {"discriminator", "generator"}}.get(kind, {"model"})
    assert set(objective.models) == parts
    terms = {"electra": "generator_loss", "distill": "mlm_loss"}
    assert objective.token_loss == terms.get(kind, "loss")
    if kind == "clm":
        batch = corrupted(make("clm"))
        np.testing.assert_array_equal(batch["labels"], a_batch()["tokens"][:, 1:])


@row("mlm.pairs")
def _(made):
    assert "pair" not in weights(make("mlm"))
    found = {}
    for pairs in ("nsp", "sop"):
        assert "pair" in weights(make("mlm", pairs=pairs))
        loader = made.run(f"objective.pairs={pairs}", "train.steps=3").loader
        found[pairs] = [loader.batch(step) for step in range(3)]
        assert found[pairs][0]["types"].max() == 1
        assert {0, 1} <= set(found[pairs][0]["pair_label"].flat)
    assert "pair_label" not in made.run().loader.batch(0)
    tokens = [[batch["tokens"] for batch in found[pairs]] for pairs in found]
    assert not np.array_equal(*tokens)


@row("mlm.negatives")
def _(made):
    found = []
    for negatives in ("document", "corpus"):
        keys = ("objective.pairs=nsp", f"objective.negatives={negatives}")
        loader = made.run(*keys, "train.steps=150").loader
        found.append([loader.batch(step)["tokens"] for step in range(150)])
    assert not np.array_equal(*found)


@row("mlm.short_share")
def _(made):
    sizes = {}
    for share in (0.0, 1.0):
        run = made.run("objective.pairs=sop", f"objective.short_share={share}")
        sizes[share] = run.loader.phases[0].plan.size.mean()
    assert sizes[1.0] < sizes[0.0]


@row("mlm.mlm_weight", "mlm.pair_weight")
def _(name):
    for a, b in ((1.0, 1.0), (2.0, 0.25), (0.0, 3.0), (3.0, 0.0)):
        loss, means, _ = judged(make("mlm", pairs="nsp", mlm_weight=a, pair_weight=b))
        np.testing.assert_allclose(
            loss, a * means["loss"] + b * means["pair_loss"], rtol=1e-5
        )


@row("electra.variant")
def _():
    counts, heads_of = {}, {}
    for variant in ("electra", "electra_15", "replace_mlm", "all_tokens_mlm"):
        objective = make("electra", variant=variant)
        _, _, counts[variant] = judged(objective)
        heads_of[variant] = set(objective.models["discriminator"].heads)
    every, some = ROWS_OF_BATCH * LENGTH, ROWS_OF_BATCH * SLOTS
    assert counts["electra"]["detector_loss"] == every
    assert counts["electra_15"]["detector_loss"] == some
    assert counts["replace_mlm"]["discriminator_loss"] == some
    assert counts["all_tokens_mlm"]["all_tokens_loss"] == every
    assert heads_of["electra"] == heads_of["electra_15"] == {"detector"}
    assert heads_of["replace_mlm"] == {"head"}
    assert heads_of["all_tokens_mlm"] == {"head", "detector"}


@row("electra.tie")
def _():
    """Who has which table, and which gradient reaches whom."""
    table, place = "encoder/embeddings/token", "encoder/embeddings/position"
    own = {"tokens": (0, 1), "embeddings": (0, 0), "none": (1, 1), "all": (0, 0)}
    own["disentangled"] = (1, 1)
    for tie, expected in own.items():
        objective = make("electra", tie=tie)
        params = weights(objective)
        has = tree.flatten(params["generator"])
        assert (table in has, place in has) == expected, tie
        assert (f"{table}_delta" in tree.flatten(params["discriminator"])) == (
            tie == "disentangled"
        )
        assert any(n.startswith("encoder/layer_") for n in has) == (tie != "all")

        def whole(params, part):
            return jnp.sum(tree.flatten(part.extract(params))[table])

        for name, part in objective.models.items():
            slopes = jax.grad(whole)(params, part)
            reached = {
                f"{who}/{leaf.removeprefix('encoder/embeddings/')}"
                for who, theirs in slopes.items()
                for leaf, slope in tree.flatten(theirs).items()
                if np.any(slope)
            }
            owner = "generator" if name == "generator" and expected[0] else None
            owner = owner or "discriminator"
            delta = tie == "disentangled" and name == "discriminator"
            assert reached == {f"{owner}/token{'_delta' if delta else ''}"}, (tie, name)


@row("electra.generator_weight", "electra.detector_weight")
def _(name):
    for a, b in ((1.0, 50.0), (3.0, 2.0), (0.0, 5.0)):
        keys = {"generator_weight": a, "detector_weight": b, "tie": "none"}
        loss, means, _ = judged(make("electra", **keys))
        expected = a * means["generator_loss"] + b * means["detector_loss"]
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


@row("electra.mlm_weight")
def _():
    terms = {"replace_mlm": "discriminator_loss", "all_tokens_mlm": "all_tokens_loss"}
    for variant, term in terms.items():
        loss, means, _ = judged(make("electra", variant=variant, mlm_weight=7.0))
        expected = means["generator_loss"] + 7 * means[term]
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


@row("electra.temperature")
def _():
    """Very cold samples are the generator's likeliest pieces; very hot ones, any."""
    shares = {}
    for temperature in (1e-6, 1e6):
        objective = make("electra", temperature=temperature)
        params = weights(objective)
        _, means, _ = judged(objective, params)
        shares[temperature] = means["replaced_share"]
    batch, part = a_masked_batch(), objective.models["generator"]
    logits = heads.outputs(part.encoder, part.extract(params), batch)["head"]
    wrong = (np.argmax(logits, -1) != batch["labels"]) & (batch["weights"] > 0)
    np.testing.assert_allclose(
        shares[1e-6], wrong.sum() / (ROWS_OF_BATCH * LENGTH), rtol=1e-5
    )
    np.testing.assert_allclose(shares[1e6], SLOTS / LENGTH * 39 / 40, atol=0.03)


@pytest.mark.slow
def test_generator_and_discriminator_drop_different_units():
    """Each reads with a stream of its own in training, and with none otherwise."""
    objective = make("electra")
    judged(objective, train=False)
    assert [noise for _, noise in SEEN] == [None, None]
    SEEN.clear()
    for key in (a_key(3), a_key(4), a_key(3, 6)):
        judged(objective, key=key)
    streams = {(int(noise.seed), int(noise.step)) for _, noise in SEEN}
    assert len(streams) == len(SEEN) == 6
    for _, noise in SEEN:
        np.testing.assert_array_equal(noise.rows, a_batch()["row"])


@pytest.mark.parametrize("kind", ["mlm", "clm", "electra", "distill"])
def test_what_is_trained_drops_units_and_what_is_scored_does_not(kind):
    encoder = CAUSAL if kind == "clm" else ENCODER
    objective = make(kind, dataclasses.replace(encoder, dropout=0.5))
    silent, params = make(kind), weights(objective)
    given = {"params": params, "frozen": teacher() if kind == "distill" else {}}
    a, b = (judged(objective, key=a_key(step=s), **given)[0] for s in (1, 1))
    assert a == b
    assert a != judged(silent, key=a_key(step=1), **given)[0]
    scored = judged(objective, train=False, **given)[0]
    np.testing.assert_allclose(scored, judged(silent, train=False, **given)[0])


SIZES = {
    "layers": {"layers": 1},
    "width": {"width": 4, "heads": 1, "ffn_width": 4},
    "heads": {"heads": 1},
    "ffn_width": {"ffn_width": 6},
    "layers_fraction": {"layers": 1},
    "width_fraction": {"width": 4, "heads": 1, "ffn_width": 4},
    "embedding_width": {"embedding_width": 6},
}


@row(*(f"generator.{name}" for name in SIZES))
def _(name):
    field = name.partition(".")[2]
    expected = SIZES[field]
    value = {"layers_fraction": 0.5, "width_fraction": 0.5}.get(field)
    config = {"layers_fraction": 1.0, "width_fraction": 1.0}
    config[field] = value or expected[field]
    encoder = dataclasses.replace(ENCODER, layers=2)
    objective = make(
        "electra", encoder, generator=GeneratorConfig(**config), tie="none"
    )
    found = objective.models["generator"].encoder
    differ = {
        f.name: getattr(found, f.name)
        for f in fields(EncoderConfig)
        if getattr(found, f.name) != getattr(encoder, f.name)
    }
    assert differ == expected
    leaves = tree.flatten(weights(objective)["generator"])
    assert ("encoder/layer_1/ffn/up/kernel" in leaves) == (found.layers == 2)
    up = leaves["encoder/layer_0/ffn/up/kernel"].shape
    assert up == (found.width, found.ffn_width)
    assert leaves["encoder/embeddings/token"].shape == (40, found.input_width)


@row("generator.kind")
def _():
    objective = make("electra", generator=GeneratorConfig(kind="uniform"))
    assert set(weights(objective)) == {"discriminator"}
    assert set(weights(make("electra"))) == {"discriminator", "generator"}
    batch = corrupted(objective)
    now, was = batch["tokens"][chosen(batch)], a_batch()["tokens"][chosen(batch)]
    assert (now != was).mean() > 0.8 and now.min() >= 5 and now.max() < 36


def soft(ours, theirs, temperature):
    """Hinton's: T squared times KL(teacher || student) of softened probabilities."""

    def logs(x):
        x = np.asarray(x, np.float64) / temperature
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = logs(theirs), logs(ours)
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1)


@row("distill.temperature", "distill.soft_positions")
def _(name):
    for positions in ("all", "masked"):
        for temperature in (1.0, 4.0):
            keys = {"temperature": temperature, "soft_positions": positions}
            objective = make("distill", **keys)
            params, frozen, batch = weights(objective), teacher(), a_masked_batch()
            _, means, counts = judged(objective, params, frozen=frozen)
            at = {"mask_positions": np.tile(np.arange(LENGTH), (ROWS_OF_BATCH, 1))}
            batch = batch | (at if positions == "all" else {})
            both = [(ENCODER, params), (TEACHER, frozen["teacher"])]
            logits = [heads.outputs(*one, batch)["head"] for one in both]
            found = soft(*logits, temperature)
            used = np.ones_like(found, bool)
            if positions == "masked":
                used = batch["weights"] > 0
            np.testing.assert_allclose(
                means["soft_loss"], found[used].mean(), rtol=1e-4
            )
            assert counts["soft_loss"] == used.sum()


TERMS = ("soft", "mlm", "cosine", "hidden", "attention")


@row(*(f"distill.{term}_weight" for term in TERMS))
def _(name):
    field = name.partition(".")[2]
    keys = dict.fromkeys((f"{term}_weight" for term in TERMS), 0.5) | {field: 3.0}
    loss, means, _ = judged(make("distill", **keys), frozen=teacher())
    names = {term: "loss" if term == "mlm" else f"{term}_loss" for term in TERMS}
    expected = sum(keys[f"{term}_weight"] * means[names[term]] for term in TERMS)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@row("distill.layers")
def _():
    """A student that is its teacher up to a layer has no distance to that layer."""
    for layer in (0, 1):
        keys = {"soft_weight": 0.0, "cosine_weight": 0.0, "hidden_weight": 1.0}
        objective = make("distill", layers=(layer,), **keys)
        own = teacher()["teacher"]
        encoder = {k: v for k, v in own["encoder"].items() if k != "layer_1"}
        params = own | {"encoder": encoder}
        _, means, _ = judged(objective, params, frozen=teacher())
        assert (means["hidden_loss"] < 1e-9) == (layer == 0)
    config = DistillConfig(teacher="a", layers=(1,))
    fresh = weights(make("distill"))
    found = students.start(config, ENCODER, fresh, TEACHER, teacher())
    np.testing.assert_array_equal(
        found["encoder"]["layer_0"]["ffn"]["up"]["kernel"],
        own["encoder"]["layer_1"]["ffn"]["up"]["kernel"],
    )


@row("distill.teacher")
def _(made):
    run = made.run("objective.kind=distill")
    theirs = open_model(str(made.folder)).params["encoder"]["embeddings"]["token"]
    found = run.teacher.params["encoder"]["embeddings"]["token"]
    np.testing.assert_array_equal(found, theirs)


@row("distill.teacher_dtype")
def _(made):
    for dtype in ("float32", "bfloat16"):
        config = DistillConfig(teacher="a", teacher_dtype=dtype)
        assert teachers.open_teacher(config, made.folder).encoder.dtype == dtype


@row("distill.start")
def _(made):
    from plmjax.pretrain.start import fresh_state

    found = {}
    for start in ("teacher", "fresh"):
        run = made.run("objective.kind=distill", f"objective.start={start}")
        init = lambda key, batch, run=run: zeros(run)  # noqa: E731
        run = dataclasses.replace(run, objective=altered(run.objective, init=init))
        with jax.set_mesh(run.mesh):
            found[start] = fresh_state(run, lambda _: None).params
    theirs = open_model(str(made.folder)).params["encoder"]["layer_1"]["ffn"]["up"]
    ours = {k: p["encoder"]["layer_0"]["ffn"]["up"] for k, p in found.items()}
    np.testing.assert_array_equal(ours["teacher"]["kernel"], theirs["kernel"])
    assert not np.any(ours["fresh"]["kernel"])


def zeros(run) -> dict:
    """Returns parameters of a run, all 0."""
    batch = {k: np.zeros_like(v[:1]) for k, v in run.loader.batch(0).items()}
    shapes = jax.eval_shape(make_objective_init(run), jax.random.key(0), batch)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def make_objective_init(run):
    from plmjax.workdir import make_objective

    seen = None if run.teacher is None else run.teacher.encoder
    return make_objective(run.config, run.encoder, run.tokenizer, seen).init


@row("distill.align")
def _(made):
    """A student reads its teacher's ids, and what only one of them knows is nothing."""
    known = np.arange(40) < 30
    pieces = {"ids": np.arange(40, dtype=np.int32)[::-1].copy(), "known": known}
    plain, strings = make("distill"), make("distill", align="strings")
    params, frozen = weights(plain), teacher()
    _, a, _ = judged(plain, params, frozen=frozen)
    _, b, _ = judged(strings, params, frozen=frozen | {"pieces": pieces})
    batch = dict(a_masked_batch())
    batch["mask_positions"] = np.tile(np.arange(LENGTH), (ROWS_OF_BATCH, 1))
    asked = batch | {"tokens": pieces["ids"][batch["tokens"]]}
    ours = heads.outputs(ENCODER, params, batch)["head"]
    theirs = heads.outputs(TEACHER, frozen["teacher"], asked)["head"]
    theirs = np.asarray(theirs)[..., pieces["ids"]][..., known]
    expected = soft(np.asarray(ours)[..., known], theirs, 2.0).mean()
    np.testing.assert_allclose(b["soft_loss"], expected, rtol=1e-4)
    assert a["soft_loss"] != b["soft_loss"]
    keys = ("objective.kind=distill", "objective.align=strings")
    assert "pieces" in teachers.frozen(*parts_of(made.run(*keys)))


def parts_of(run):
    return run.config, run.encoder, run.tokenizer, run.teacher


# --- optimizer, schedule and step: toy parameters, and the recursion in numpy

NAMES = (
    "encoder/embeddings/token",
    "encoder/layer_0/ffn/up/kernel",
    "encoder/layer_0/ffn/up/bias",
    "encoder/layer_1/ffn/up/kernel",
    "head/dense/kernel",
)
DEPTH = dict(zip(NAMES, (0, 1, 1, 2, 3), strict=True))
STEPS, TOY_ROWS = 4, 4


def toy_start(key, batch=None) -> dict:
    drawn = jax.random.normal(key, (len(NAMES), 2, 2))
    return tree.unflatten(dict(zip(NAMES, drawn, strict=True)))


@dataclasses.dataclass(frozen=True)
class Toy(Objective):
    """Half the mean squared distance of all parameters to each row's number."""

    watched: list

    models = {}

    def init(self, key, batch):
        return toy_start(key, batch)

    def corrupt(self, frozen, batch, key, progress):
        x = batch["x"] + 0.3 * progress
        return batch | {"x": x, "weights": jnp.full(len(x), 1 / len(x))}

    def loss(self, params, frozen, batch, key, train):
        self.watched.append((len(batch["x"]), train))
        chance = (key.seed % 7).astype(jnp.float32) + 0.1 * key.step
        leaves = jnp.stack(jax.tree.leaves(params))[None]
        apart = 0.5 * jnp.square(leaves - batch["x"][:, None, None, None])
        each = jnp.sum(apart + chance * leaves, axis=(1, 2, 3))
        return jnp.sum(batch["weights"] * each), {}

    def scores(self, means):
        return means

    def slots(self, length):
        return length

    def flops(self, length):
        return length


def toy_batch(step: int) -> dict:
    x = np.float32([1, 2, 4, 5]) + step
    return {"x": x, "segments": np.ones((TOY_ROWS, 3), np.int32)}


def slopes(train: TrainConfig, params: dict, step: int) -> dict:
    """Returns the gradient by hand."""
    x = np.mean(toy_batch(step)["x"]) + 0.3 * step / STEPS
    return {n: p - x + train.seed % 7 + 0.1 * step for n, p in params.items()}


@functools.cache
def by_job(train: TrainConfig):
    """Trains as a job does; returns weights, average, rates, and what losses saw."""
    mesh, watched = sharding.make_mesh(MeshConfig(), jax.devices()[:1]), []
    objective = Toy(watched)
    with jax.set_mesh(mesh):
        state, rates = initialise(objective, train)(toy_batch(0)), []
        step = step_for(objective, train, mesh, False, STEPS)
        for i in range(STEPS):
            state, metrics = step(state, {}, toy_batch(i))
            rates.append(float(metrics["learning_rate"][0]))
    return tree.flatten(state.params), tree.flatten(state.average), rates, watched


def by_optimizer(train: TrainConfig) -> dict:
    """Trains with the optimizer alone, without compiling a step."""
    optimizer = make_optimizer(train.optimizer)
    params = jax.device_get(toy_start(jax.random.key(train.seed)))
    moments, update = optimizer.init(params), optimizer.update
    if train.optimizer.unfreeze_every_steps:  # a condition compiles at each call
        update = jax.jit(update)
    for i in range(STEPS):
        grads = slopes(train, tree.flatten(params), i)
        direction, moments = update(tree.unflatten(grads), moments, params)
        rate = rate_at(train.schedule, i, STEPS, train.optimizer.learning_rate)
        params = jax.tree.map(
            lambda p, d, rate=rate: np.float32(p - rate * d), params, direction
        )
    return tree.flatten(params)


def in_numpy(train: TrainConfig):
    """The same by the papers: AdamW, LAMB, and rules over names and depths."""
    o, top = train.optimizer, max(DEPTH.values())
    drawn = tree.flatten(toy_start(jax.random.key(train.seed)))
    p = {n: np.float64(x) for n, x in drawn.items()}
    m, v, age = ({n: 0.0 for n in p} for _ in range(3))
    average, rates, counted = dict(p), [], 0
    for step in range(STEPS):
        g, learns = slopes(train, p, step), {}
        for n, depth in DEPTH.items():
            still = o.freeze == "encoder" and n.startswith("encoder/")
            if isinstance(o.freeze, int):
                still = depth <= o.freeze
            begins = (top - depth) * (o.unfreeze_every_steps or 0)
            learns[n] = not still and step >= begins
        norm = math.sqrt(sum((g[n] ** 2).sum() for n in p if learns[n]))
        if o.clip_norm is not None and norm > o.clip_norm:
            g = {n: g[n] * o.clip_norm / norm for n in p}
        rate = rate_at(train.schedule, step, STEPS, o.learning_rate)
        rates.append(rate)
        for n in filter(learns.get, p):
            age[n] += 1
            m[n] = o.b1 * m[n] + (1 - o.b1) * g[n]
            v[n] = o.b2 * v[n] + (1 - o.b2) * g[n] ** 2
            direction = m[n] / (1 - o.b1 ** age[n])
            direction = direction / (np.sqrt(v[n] / (1 - o.b2 ** age[n])) + o.eps)
            if not re.fullmatch(o.no_decay, n):
                direction = direction + o.weight_decay * p[n]
                if o.kind == "lamb":
                    sizes = np.linalg.norm(p[n]), np.linalg.norm(direction)
                    direction = direction * sizes[0] / sizes[1]
            own = [factor for regex, factor in o.rates if re.fullmatch(regex, n)]
            factor = (own or [1.0])[0] * o.layer_decay ** (top - DEPTH[n])
            p[n] = p[n] - rate * factor * direction
        if train.ema_decay is not None:
            share = 1 - train.ema_decay
        else:  # the plain mean, of which the steps before the first are no part
            since = int(STEPS * (train.average_from_percent or 0) / 100)
            counted += step >= since
            share = 1 / max(counted, 1)
        average = {n: average[n] + share * (p[n] - average[n]) for n in p}
    return p, average, rates


def rate_at(config: ScheduleConfig, step: int, steps: int, peak: float) -> float:
    """The learning rate of a step by what docs/config.md says."""
    warm = config.warmup_steps
    if warm is None:
        warm = min(round(config.warmup_percent / 100 * steps), steps - 1)
    if step < warm:
        return peak * (step + 1) / warm
    begin, low = warm, config.final_percent / 100
    if config.kind == "wsd":
        begin = max(warm, steps - round(config.decay_percent / 100 * steps))
    done = max(0.0, (step - begin) / max(steps - begin, 1))
    if config.kind == "constant":
        return peak
    if config.kind == "cosine":
        return peak * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)
    if config.kind == "wsd" and config.decay_shape == "sqrt":
        done = math.sqrt(done)
    return peak * (low + (1 - low) * (1 - done))


def apart(a: dict, b: dict) -> float:
    return max(np.abs(a[name] - b[name]).max() for name in NAMES)


def assert_equal(a: dict, b: dict) -> None:
    for name in NAMES:
        np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=2e-6, err_msg=name)


BASE = TrainConfig(
    batch=TOY_ROWS,
    optimizer=OptimizerConfig(learning_rate=0.05, weight_decay=0.2, clip_norm=None),
    schedule=ScheduleConfig(kind="constant", warmup_steps=1),
)
OPTIMIZER = {
    "kind": [{"kind": "lamb"}],
    "learning_rate": [{"learning_rate": 0.01}],
    "b1": [{"b1": 0.5}, {"b1": 0.0}],
    "b2": [{"b2": 0.5}],
    "eps": [{"eps": 0.1}],
    "weight_decay": [{"weight_decay": 0.0}, {"weight_decay": 1.0}],
    "no_decay": [{"no_decay": r".*/kernel"}],
    # With a large eps, Adam's steps tell the size of a gradient. What does not learn
    # has no part in its length.
    "clip_norm": [
        {"eps": 1.0, "clip_norm": 0.5},
        {"eps": 1.0, "clip_norm": 0.5, "freeze": 1},
        {"eps": 1.0, "clip_norm": 0.5, "unfreeze_every_steps": 2},
    ],
    "layer_decay": [{"layer_decay": 0.5}],
    "rates": [{"rates": ((r"encoder/.*", 0.25), (r".*/kernel", 2.0), (r".*", 1.0))}],
    "freeze": [{"freeze": 0}, {"freeze": 1}, {"freeze": "encoder"}],
    "unfreeze_every_steps": [{"unfreeze_every_steps": 1}],
}


@row(*(f"optimizer.{name}" for name in OPTIMIZER))
def _(name):
    field = name.partition(".")[2]
    for change in OPTIMIZER[field]:
        optimizer = dataclasses.replace(BASE.optimizer, **change)
        default = {field: getattr(BASE.optimizer, field)}
        without = dataclasses.replace(optimizer, **default)
        train, plain = (
            dataclasses.replace(BASE, optimizer=one) for one in (optimizer, without)
        )
        expected = in_numpy(train)[0]
        assert_equal(by_optimizer(train), expected)
        assert apart(expected, in_numpy(plain)[0]) > 1e-3


SCHEDULES = {
    "kind": [{"kind": kind} for kind in ("linear", "cosine", "constant", "wsd")],
    "warmup_percent": [{"warmup_percent": 0.0}, {"warmup_percent": 50.0}],
    "warmup_steps": [{"warmup_steps": 0}, {"warmup_steps": 7}],
    "decay_percent": [{"kind": "wsd", "decay_percent": x} for x in (0.0, 50.0, 100.0)],
    "decay_shape": [{"kind": "wsd", "decay_shape": "sqrt"}],
    "final_percent": [
        {"kind": kind, "final_percent": 30.0} for kind in ("linear", "cosine", "wsd")
    ],
}


@row("schedule.ends")
def _():
    config = ScheduleConfig(warmup_steps=2, ends=((2, 10), (6, 8)))
    shares = [moved_share(config, config.ends, step) for step in range(9)]
    expected = [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.25, 0.0]
    np.testing.assert_allclose(shares, expected)


@row(*(f"schedule.{name}" for name in SCHEDULES))
def _(name):
    usual = {"kind": "linear", "warmup_percent": 10.0}
    for change in SCHEDULES[name.partition(".")[2]]:
        config, curves = ScheduleConfig(**usual | change), []
        for steps in (20, 3 + change.get("warmup_steps", 0)):
            rates = make_schedule(config, 0.5, steps)(jnp.arange(steps))
            expected = [rate_at(config, step, steps, 0.5) for step in range(steps)]
            np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-7)
            curves.append(expected)
        if change != {"kind": "linear"}:
            plain = ScheduleConfig(**usual | {"kind": change.get("kind", "linear")})
            if "kind" in change and len(change) == 1:
                plain = ScheduleConfig(**usual)
            assert curves[0] != [rate_at(plain, step, 20, 0.5) for step in range(20)]


# {key: (value, shares of zeros after each of four steps)}; what pruning holds at 0 in a
# step is in tests/train/test_pruning.py.
PRUNED = {
    "sparsity": (0.5, (0, 0.4375, 0.4375, 0.5)),
    "begin_percent": (50.0, (0, 0, 0.4375 / 0.5 * 0.8, 0.8)),
    "end_percent": (50.0, (0.7, 0.8, 0.8, 0.8)),
    "stages": (4, tuple(0.8 * (1 - (1 - i / 4) ** 3) for i in range(1, 5))),
    "keep_zeros": (True, (0, 0.7, 0.7, 0.8)),
}


@row("train.prune", *(f"prune.{name}" for name in PRUNED))
def _(name):
    usual = PruneConfig(sparsity=0.8, end_percent=100.0, stages=2)
    field = name.partition(".")[2]
    value, expected = PRUNED.get(field, (None, (0, 0.7, 0.7, 0.8)))
    config = dataclasses.replace(usual, **{field: value} if value is not None else {})
    kernel = np.random.default_rng(0).permutation(np.arange(1.0, 121)).reshape(12, 10)
    prune, shares = make_pruning(config, 4), []
    params = {"encoder": {"layer_0": {"ffn": {"up": {"kernel": jnp.asarray(kernel)}}}}}
    for step in range(4):
        params = jax.jit(prune)(params, step)
        left = params["encoder"]["layer_0"]["ffn"]["up"]["kernel"]
        shares.append(float((left == 0).mean()))
    np.testing.assert_allclose(shares, expected, atol=0.5 / 120)
    assert make_pruning(PruneConfig(), 4) is None
    assert make_pruning(PruneConfig(keep_zeros=True), 4) is not None


# Two jobs: what a step is told, and all of it otherwise.
JOBS = (
    dataclasses.replace(
        BASE,
        seed=2**32 - 1,
        accumulation=2,
        ema_decay=0.7,
        optimizer=OptimizerConfig(
            "lamb", 0.1, 0.6, 0.7, 1e-2, 0.3, ".*/kernel", 2.0, 0.5
        ),
        schedule=ScheduleConfig("wsd", 25.0, None, 50.0, 10.0),
    ),
    dataclasses.replace(BASE, seed=5, accumulation=4, average_from_percent=50.0),
)


@row(
    *(
        f"train.{name}"
        for name in "seed ema_decay average_from_percent optimizer schedule".split()
    )
)
def _(name):
    field = name.partition(".")[2]
    for train in JOBS:
        params, average, rates, _ = by_job(train)
        expected = in_numpy(train)
        assert_equal(params, expected[0])
        assert_equal(average, expected[1])
        np.testing.assert_allclose(rates, expected[2], rtol=1e-5)
        if getattr(train, field) != getattr(BASE, field):
            without = dataclasses.replace(train, **{field: getattr(BASE, field)})
            others = in_numpy(without)
            assert max(map(apart, expected[:2], others[:2])) > 1e-3


@row("train.accumulation")
def _():
    """A pass sees a micro-batch of the rows; their sum is that of the batch."""
    for train in JOBS:
        seen = by_job(train)[3]
        assert set(seen) == {(TOY_ROWS // train.accumulation, True)}


@row("train.attention")
def _(made):
    """What it takes on a GPU or TPU is in tests/models/test_kernels.py."""
    assert not made.run("train.attention=auto").objective.platform.kernels
    with pytest.raises(PlmjaxError, match="are for GPUs and TPUs"):
        made.run("train.attention=pallas")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(platform, "WIDTHS", {"cpu": (made.run().encoder.head_width,)})
        assert made.run("train.attention=pallas").objective.platform.kernels
        assert not made.run().objective.platform.kernels


@row("train.steps", "train.epochs", "train.batch")
def _(name, made):
    run = made.run("train.steps=7", "train.batch=3")
    assert (run.steps, len(run.loader.batch(0)["tokens"])) == (7, 3)
    rows = run.loader.phases[0].plan.rows
    run = made.run("train.epochs=1.5", "train.batch=4")
    assert (run.steps, len(run.loader.batch(0)["tokens"])) == (
        math.ceil(rows * 3 / 8),
        4,
    )


@row("train.init_from")
def _(made):
    run = made.run("model.layers=2", f"train.init_from={made.folder}")
    given = run.config, run.workdir, run.objective, run.tokenizer
    found = tree.flatten(start_weights(*given, fresh=zeros(run), log=lambda _: None))
    for name, leaf in theirs_of(made).items():
        np.testing.assert_array_equal(found[name], leaf)


# --- fine-tuning: the parts that a config makes, of a BERT of two layers


class Made:
    """A pretrained folder, text and labels; parts of runs and of fine-tunings on it."""

    def __init__(self, root):
        self.root, self.folder = root, make_folder(root / "bert", layers=2, dropout=0.0)
        self.data = root / "data"
        self.data.mkdir()
        for name, count, seed in (("train", 24, 0), ("held_out", 8, 1)):
            write(self.data / f"{name}.jsonl", records("classes", count, seed))
        text = [
            " ".join(map(str.capitalize, three))
            for three in zip(*[iter(sentences(240))] * 8, strict=True)
        ]
        (root / "corpus.txt").write_text("\n".join(text) + "\n")

    @functools.cache  # noqa: B019
    def run(self, *overrides: str):
        """Returns what `pretrain` makes before any parameter exists."""
        keys = [
            "data.source.kind=text",
            "data.source.document=line",
            f"data.source.paths={self.root / 'corpus.txt'}",
            "data.sentences=punctuation",
            "data.held_out_percent=10",
            "data.length=32",
            f"tokenizer.path={self.folder}",
            "model.layers=1",
            "model.width=16",
            "model.heads=2",
            "model.ffn_width=32",
            "model.max_positions=32",
            "train.batch=8",
        ]
        kinds = [one for one in overrides if one.startswith("objective.kind=")]
        if not any(one.startswith("train.epochs") for one in overrides):
            keys.append("train.steps=2")
        if kinds == ["objective.kind=electra"]:
            keys += [*kinds, "objective.generator.width_fraction=1.0"]
        if kinds == ["objective.kind=clm"]:
            keys.append("model.causal=True")
        if kinds == ["objective.kind=distill"]:
            keys += [*kinds, f"objective.teacher={self.folder}"]
        config = config_lib.load(RunConfig, None, [*keys, *overrides], DEFAULT_CONFIG)
        workdir = Workdir(self.root / "run")
        workdir.create()
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
        return pretrain_build.build(config, workdir, mesh, lambda _: None)

    def config(self, *overrides: str) -> FinetuneConfig:
        return config_of(self.folder, self.data, *overrides)

    @functools.cache  # noqa: B019
    def parts(self, *overrides: str):
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
        return build(self.config(*overrides), mesh, lambda _: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with one_device():
        yield Made(tmp_path_factory.mktemp("keys"))


def encoder_of(parts) -> dict:
    return tree.flatten({"encoder": parts.params["encoder"]})


def theirs_of(made) -> dict:
    return tree.flatten({"encoder": open_model(str(made.folder)).params["encoder"]})


def same(a: dict, b: dict) -> set[str]:
    """Returns the blocks of which all leaves are equal, by their names."""
    blocks: dict = {}
    for name in a.keys() & b.keys():
        block = "/".join(name.split("/")[:2])
        blocks.setdefault(block, []).append(np.array_equal(a[name], b[name]))
    return {block for block, equal in blocks.items() if all(equal)}


EMBEDDINGS, FIRST, SECOND = "encoder/embeddings", "encoder/layer_0", "encoder/layer_1"


@row("start.from_scratch", "start.layers", "start.reinit_layers")
def _(name, made):
    theirs = theirs_of(made)
    for override, layers, kept in (
        ((), 2, {EMBEDDINGS, FIRST, SECOND}),
        (("start.from_scratch=True",), 2, set()),
        (("start.layers=1",), 1, {EMBEDDINGS, FIRST}),
        (("start.reinit_layers=1",), 2, {EMBEDDINGS, FIRST}),
        (("start.reinit_layers=2",), 2, {EMBEDDINGS}),
    ):
        parts = made.parts(*override)
        found = encoder_of(parts)
        assert same(found, theirs) == kept, override
        assert parts.encoder.layers == layers
        assert len({n.split("/")[1] for n in found if "/layer_" in n}) == layers


@row("start.reinit_pooler")
def _(made):
    theirs = tree.flatten(open_model(str(made.folder), head="pair").params["pair"])
    for anew in (False, True):
        parts = made.parts(f"start.reinit_pooler={anew}")
        found = tree.flatten(parts.params["sequence"])
        poolers = [name for name in found if name.startswith("pooler/")]
        assert len(poolers) == 2
        for name in poolers:
            assert np.array_equal(found[name], theirs[name]) != anew


def loss_of(parts, params=None, train=True, seed=0, step=0):
    """Returns (loss, means) of the first batch, and that batch."""
    key = Key(jnp.uint32(seed), jnp.uint32(step))
    batch = parts.batches.batch(0)
    batch = parts.objective.corrupt(parts.frozen, batch, key, 0.0)
    loss, metrics = parts.objective.loss(
        params or parts.params, parts.frozen, batch, key, train
    )
    return float(loss), {n: float(a / b) for n, (a, b) in metrics.items()}, batch


@row("start.global_tokens")
def _(made):
    opened = open_model(str(made.folder))
    windows = {"layer_kinds": ("local",), "window": 4, "global_tokens": "listed"}
    encoder = dataclasses.replace(opened.encoder, **windows, global_ids=(7,))
    model, task = (
        dataclasses.replace(opened, encoder=encoder),
        Task("classes", tuple("ab")),
    )
    for rule, wanted, ids in (
        (None, "first", ()),  # as transformers' class of the task
        ("listed", "listed", (7,)),
        ("sentences", "sentences", opened.tokenizer.global_ids["sentences"]),
    ):
        found, _ = starting.start(model, task, StartConfig(global_tokens=rule), 0)
        assert (found.global_tokens, found.global_ids) == (wanted, ids)
    with pytest.raises(PlmjaxError, match="has no projections for global tokens"):
        starting.start(opened, task, StartConfig(global_tokens="first"), 0)


@row("start.dropout", "start.classifier_dropout")
def _(name, made):
    silent = ("start.dropout=0.0", "start.classifier_dropout=0.0")
    parts = made.parts(*silent)
    assert loss_of(parts)[0] == loss_of(parts, train=False)[0]
    override = f"{name}=0.5"
    keys = tuple(override if one.startswith(f"{name}=") else one for one in silent)
    loud = made.parts(*keys)
    assert loss_of(loud, train=False)[0] == loss_of(parts)[0]
    assert len({loss_of(loud)[0], loss_of(loud, step=1)[0], loss_of(parts)[0]}) == 3


@row("start.classifier_pooling")
def _(made):
    """None: that of the start model's own classifier, if it has one for such a task."""
    before, data = Task("classes", ("a", "b"), head_pooling="mean"), made.parts().data
    for keys, start, pooling in (
        ((), None, "cls"),
        ((), before, "mean"),
        (("start.classifier_pooling=late",), before, "late"),
    ):
        task = make_task(made.config(*keys), data, start)
        assert task.head_pooling == pooling
    with pytest.raises(PlmjaxError, match="pooling is late; a bert for sequence"):
        made.parts("start.classifier_pooling=late")


@row("seeds.data", "seeds.init", "seeds.dropout")
def _(name, made):
    """Each moves what it is for, and nothing else; train.seed moves all three."""

    def traits(*overrides):
        parts = made.parts(*overrides)
        head = parts.params["sequence"]["classifier"]["kernel"]
        return {
            "data": parts.batches.batch(0)["row"].tolist(),
            "init": np.asarray(head).tolist(),
            "dropout": parts.train.seed,
        }

    plain, moved = traits(), traits(f"{name}=9")
    field = name.partition(".")[2]
    assert {k for k in plain if plain[k] != moved[k]} == {field}
    whole = traits("train.seed=9")
    assert whole[field] == moved[field] != plain[field]
    held = traits("train.seed=9", f"{name}=0")
    assert held[field] == plain[field]


@row("supervised.label_smoothing")
def _(made):
    silent = ("start.dropout=0.0", "start.classifier_dropout=0.0")
    for smoothing in (0.0, 0.4):
        parts = made.parts(*silent, f"objective.label_smoothing={smoothing}")
        batch = dict(loss_of(parts)[2])
        # Of one class: where both are as many, what is spread evenly costs the same.
        batch["label"] = np.zeros_like(batch["label"])
        logits = task_logits(parts.encoder, parts.task, parts.params, batch, None)
        scores = np.float64(logits)
        logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        for train, spread in ((True, smoothing), (False, 0.0)):
            target = np.array([1 - spread / 2, spread / 2])
            loss, _ = parts.objective.loss(parts.params, {}, batch, a_key(), train)
            np.testing.assert_allclose(loss, -(target * logs).sum(-1).mean(), rtol=1e-5)


@row("supervised.rdrop_weight")
def _(made):
    keys = ("start.dropout=0.3", "start.classifier_dropout=0.5")
    for weight in (2000.0,):
        parts = made.parts(*keys, f"objective.rdrop_weight={weight}")
        loss, means, _ = loss_of(parts)
        assert means["rdrop"] > 1e-9
        np.testing.assert_allclose(
            loss, means["loss"] + weight * means["rdrop"], rtol=1e-5
        )
        assert "rdrop" not in loss_of(parts, train=False)[1]


@row("supervised.teacher", "supervised.teacher_share", "supervised.teacher_temperature")
def _(name, made):
    field, folder = name.partition(".")[2], made.root / "teacher"
    theirs = made.parts("start.from_scratch=True", "seeds.init=7")
    model = theirs.encoder, theirs.params, theirs.model.tokenizer
    export_folder(folder, *model, card="A card.", task=theirs.task)
    usual = {"teacher": str(folder), "teacher_share": 0.25}
    usual |= {"teacher_temperature": 2.0}
    changes = {"teacher_share": 1.0, "teacher_temperature": 5.0}
    usual |= {key: value for key, value in changes.items() if key == field}
    keys = [f"objective.{key}={value}" for key, value in usual.items()]
    silent = ("start.dropout=0.0", "start.classifier_dropout=0.0")
    parts = with_teacher(made.parts(*keys, *silent), lambda line: None)
    loss, means, batch = loss_of(parts)
    scores = task_logits(parts.encoder, parts.task, parts.params, batch, None)
    t = usual["teacher_temperature"]
    ours, theirs = np.float64(scores) / t, np.float64(batch["teacher"]) / t
    logs = ours - np.log(np.exp(ours).sum(-1, keepdims=True))
    targets = np.exp(theirs) / np.exp(theirs).sum(-1, keepdims=True)
    soft = -(targets * logs).sum(-1).mean() * t * t
    np.testing.assert_allclose(means["teacher_loss"], soft, rtol=1e-5)
    share = usual["teacher_share"]
    expected = share * soft + (1 - share) * means["loss"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert "teacher_loss" not in loss_of(parts, train=False)[1]


@row("task.temperature")
def _(made):
    lines = [
        {"text": WORDS[i % 3], "pair": f"{WORDS[i]} {WORDS[i + 1]}"} for i in range(16)
    ]
    write(made.data / "pairs.jsonl", lines)
    keys = ["task.kind=embeddings", f"task.train={made.data / 'pairs.jsonl'}"]
    keys.append(f"task.held_out={made.data / 'pairs.jsonl'}")
    for temperature in (0.05, 1.0):
        parts = made.parts(*keys, f"task.temperature={temperature}")
        loss, _, batch = loss_of(parts)
        x = np.float64(
            task_logits(parts.encoder, parts.task, parts.params, batch, None)
        )
        x = x / np.linalg.norm(x, axis=-1, keepdims=True)
        scores, number = x[:, 0] @ x[:, 1].T / temperature, np.asarray(batch["label"])
        losses = []
        for i, own in enumerate(scores):
            # The others' pairs: not those of an equal text, nor what equals the two.
            others = [
                j
                for j in range(len(own))
                if number[j, 0] != number[i, 0] and number[j, 1] not in number[i]
            ]
            losses.append(np.log(np.exp(own[[i, *others]]).sum()) - own[i])
        np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-4)


@row("mixout")
def _(made):
    """At the start there is nothing to mix; elsewhere a share returns to it."""
    keys = ("start.dropout=0.0", "start.classifier_dropout=0.0")
    parts = made.parts(*keys, "mixout=0.6")
    plain = made.parts(*keys)
    here = loss_of(plain)[0]
    np.testing.assert_allclose(loss_of(parts)[0], here, rtol=1e-6)
    moved = jax.tree.map(lambda x: x * 1.5, parts.params)
    there = loss_of(plain, moved)[0]
    assert loss_of(parts, moved, train=False)[0] == there
    steps = {loss_of(parts, moved, step=step)[0] for step in (0, 1)}
    assert len(steps | {there}) == 3
    # An entry is the start's, or so much further from it that the mean stays.
    echo = mixout.mixout(altered(plain.objective, loss=lambda p, *_: p), 0.6).loss
    mixed = tree.flatten(echo(moved, parts.frozen, {}, a_key(), True))
    name = "encoder/layer_1/ffn/up/kernel"
    start, now = tree.flatten(parts.params)[name], tree.flatten(moved)[name]
    far = start + (now - start) / 0.4
    returned = np.isclose(mixed[name], start, rtol=1e-5)
    assert np.all(returned | np.isclose(mixed[name], far, rtol=1e-4))
    assert 0.4 < returned.mean() < 0.8


@row("lora.rank", "lora.alpha", "lora.targets")
def _(name, made):
    query = r"encoder/layer_\d+/attention/(query|value)/kernel"
    for rank, alpha, targets, count in (
        (2, 16.0, query, 4),
        (3, 6.0, r"encoder/layer_1/ffn/up/kernel", 1),
    ):
        keys = (f"lora.rank={rank}", f"lora.alpha={alpha}", f"lora.targets={targets}")
        parts = made.parts(*keys)
        thin = tree.flatten(parts.params["lora"])
        assert len(thin) == 2 * count and "encoder" not in parts.params
        assert all(x.shape[n.endswith("/a")] == rank for n, x in thin.items())
        drawn = {
            n: np.random.default_rng(0).normal(size=x.shape) for n, x in thin.items()
        }
        params = parts.params | {"lora": tree.unflatten(drawn)}
        theirs = theirs_of(made)
        params = jax.tree.map(jnp.float32, params)
        merged = tree.flatten(parts.merge(params, parts.frozen))
        for leaf, x in theirs.items():
            if f"{leaf}/a" in thin:
                x = x + alpha / rank * drawn[f"{leaf}/a"] @ drawn[f"{leaf}/b"]
            np.testing.assert_allclose(merged[leaf], x, rtol=1e-4, atol=1e-4)


@row("select.metric", "select.keep")
def _(name, made):
    """What becomes the best step, and whether it is what comes out."""

    def training(*overrides):
        parts = made.parts(*overrides)
        return finetuning.training_of(parts, Workdir(made.root / "tuned"), None)

    good, bad = {"loss": 9.0, "accuracy": 0.9}, {"loss": 1.0, "accuracy": 0.1}
    assert training().rank(good) < training().rank(bad)
    by_loss = training("select.metric=loss")
    assert by_loss.rank(good) > by_loss.rank(bad)
    assert training().keep_best and not training("select.keep=last").keep_best
    assert training("seeds.dropout=9").config.seed == 9


@row("folds.count", "folds.fold", "folds.stratified", "folds.seed")
def _(name, made):
    def fold(*overrides):
        data, _ = read_data(made.config(*(f"folds.{one}" for one in overrides)))
        names = [
            {example.where for example in part} for part in (data.train, data.held_out)
        ]
        return *names, data

    whole, held_out, _ = fold()
    assert len(held_out) == 8
    four = [fold("count=4", f"fold={i}") for i in range(4)]
    sizes = [len(part) for _, part, _ in four]
    assert sum(sizes) == len(whole) and max(sizes) < len(held_out)
    assert set.union(*(part for _, part, _ in four)) == whole
    assert all(rest | part == whole and not rest & part for rest, part, _ in four)
    assert fold("count=4", "seed=1")[1] != four[0][1]
    shares = []
    for i in range(4):
        _, _, data = fold("count=4", f"fold={i}", "stratified=True")
        shares.append(sum(example.label == "with" for example in data.held_out))
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("name", sorted(ROWS))
def test_each_key_changes_its_result(name, made, monkeypatch):
    check = ROWS[name]
    given = {"made": made, "monkeypatch": monkeypatch}
    wanted = inspect.signature(check).parameters
    check(**{key: value for key, value in given.items() if key in wanted})
