"""What every objective must pass: one row an objective, the same tests for all."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from processes_common import succeed
from test_step import ENCODER, learned, make_batch, pieces, run
from tests_common import campaign

from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.models import attention, heads
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
)
from plmjax.objectives.generator import GeneratorConfig
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.step import init_state, make_evaluation, make_step

PIECES = pieces(96)
STEPS = 4
# Windows, and tokens that all of the document sees.
GLOBAL = {
    "layers": 2,
    "layer_kinds": ("local",),
    "window": 4,
    "global_tokens": "listed",
    "global_ids": (2, 10),
}
# Rotations, a local layer, GeGLU, pre-norm and no bias.
MODERN = dataclasses.replace(
    ENCODER,
    family="modernbert",
    layers=2,
    ffn_width=32,
    token_types=0,
    gated=True,
    bias=False,
    norm_place="pre",
    norm_embeddings=True,
    layer_kinds=("global", "local"),
    window=8,
    positions="rope",
    rope_local_theta=100.0,
)


def make_pairs(rows: int = 32, length: int = 32, step: int = 0) -> dict:
    """Returns rows of two documents, the first a pair of sentences with a label."""
    batch = make_batch(rows, length, step)
    random = np.random.default_rng(step + 99)
    batch["cls"] = np.tile(np.array([[0, length // 2]], np.int32), (rows, 1))
    batch["pair_label"] = random.integers(0, 2, (rows, 2)).astype(np.int32)
    batch["pair_label"][:, 1] = -1
    index = np.arange(length)
    second = (index >= length // 4) & (index < length // 2)
    batch["types"] = np.tile(second.astype(np.int32), (rows, 1))
    return batch


def make_documents(rows: int = 32, length: int = 32, step: int = 0) -> dict:
    """Returns rows of two documents, of which the first goes on elsewhere."""
    batch = make_batch(rows, length, step)
    batch["cut"] = np.zeros((rows, length), bool)
    batch["cut"][:, length // 2 - 1] = True
    return batch


def make_single(rows: int = 32, length: int = 32, step: int = 0) -> dict:
    """Returns rows of one document, most of them padded."""
    batch = make_batch(rows, length, step)
    size = np.random.default_rng(step).integers(3, length + 1, (rows, 1))
    batch["segments"] = (np.arange(length) < size).astype(np.int32)
    batch["positions"] = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return batch


@dataclasses.dataclass(frozen=True)
class Case:
    """An objective by its encoder's settings, its batches and frozen arrays."""

    make: Callable[..., Objective]
    batches: Callable = make_batch
    frozen: Callable[[], dict] = dict

    def without_dropout(self) -> Objective:
        return self.make(dropout=0.0, attention_dropout=0.0)


def _mlm(config, base=ENCODER, **encoder):
    return MLM(config, dataclasses.replace(base, **encoder), PIECES)


# Seven blocks of two tokens of a row, at most.
SPARSE = {"attention": "blocks", "block": 2, "random_blocks": 1}
CASES = {
    "blocks": Case(lambda **e: _mlm(MLMConfig(masks="static"), **SPARSE, **e)),
    "mlm": Case(lambda **e: _mlm(MLMConfig(masks="static"), **e)),
    "span": Case(lambda **e: _mlm(MLMConfig(unit="span", masks="static"), MODERN, **e)),
    "pairs": Case(
        lambda **e: _mlm(MLMConfig(pairs="nsp", masks="static"), **e), make_pairs
    ),
    "clm": Case(
        lambda **e: CLM(
            CLMConfig(), dataclasses.replace(MODERN, causal=True, **e), PIECES
        ),
        make_documents,
    ),
}


def _electra(deberta: bool = False, size: float = 0.5, attention="full", **settings):
    def make(**e):
        encoder = MODERN
        if attention == "nystrom":
            encoder = dataclasses.replace(
                ENCODER, attention=attention, landmarks=4, value_convolution=5
            )
        if deberta:
            encoder = dataclasses.replace(
                ENCODER, attention="disentangled", positions="none", token_types=0
            )
        elif settings.get("variant"):
            encoder = dataclasses.replace(ENCODER, family="electra", embedding_width=16)
        settings.setdefault("generator", GeneratorConfig(width_fraction=size))
        config = ElectraConfig(masks="static", **settings)
        return Electra(config, dataclasses.replace(encoder, **e), PIECES)

    return make


TEACHER = dataclasses.replace(ENCODER, layers=2, width=48)


def _distill(**encoder):
    config = DistillConfig(
        masks="static", teacher="a", start="fresh", hidden_weight=1, attention_weight=1
    )
    student = dataclasses.replace(MODERN, layers=1, layer_kinds=("local",), **encoder)
    return Distill(config, student, PIECES, TEACHER)


@functools.cache
def _teacher() -> dict:
    key = jax.random.key(7)
    return {"teacher": heads.init_model(TEACHER, key, make_batch(2), ("head",))}


CASES |= {
    "electra": Case(_electra()),
    "electra_15": Case(_electra(variant="electra_15", tie="none")),
    "replace_mlm": Case(_electra(variant="replace_mlm", tie="embeddings", size=1.0)),
    "all_tokens_mlm": Case(_electra(variant="all_tokens_mlm")),
    "uniform": Case(_electra(generator=GeneratorConfig(kind="uniform"))),
    "whole": Case(_electra(tie="all", size=1.0)),
    "deberta": Case(_electra(deberta=True, tie="disentangled")),
    "nystrom": Case(_electra(attention="nystrom"), make_single),
    "distill": Case(_distill, frozen=_teacher),
    "global": Case(lambda **e: _mlm(MLMConfig(masks="static"), **(GLOBAL | e))),
}


@pytest.fixture(autouse=True, scope="module")
def windows():
    """Blocks so small that the local layers' rows of 32 tokens have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "LEAST_BLOCK", 8)
        yield


# One of each kind: variants differ from these in the loss alone.
KINDS = ["pairs", "clm", "electra", "deberta", "distill"]


# ELECTRA's variants and ties learn theirs in test_electra.py.
@pytest.mark.slow
@pytest.mark.parametrize("name", campaign(["span", "blocks", *KINDS], "pairs", "clm"))
def test_it_learns_one_batch_by_heart(name):
    case = CASES[name]
    objective = case.without_dropout()
    batch = {name: array[:8] for name, array in case.batches().items()}
    key = Key(jnp.uint32(0), jnp.uint32(0))
    losses, _ = learned(objective, batch, key, 1e-2, 200, frozen=case.frozen())
    assert np.isfinite(losses).all() and losses[-1] < 0.1 * losses[0], losses[[0, -1]]


def train(name: str, mesh=(1, 1, 1), accumulation: int = 1, **more):
    case = CASES[name]
    given = {"batches": case.batches, "frozen": case.frozen()}
    return run(mesh, accumulation, objective=case.make(), **given, **more)


@functools.cache
def reference(name: str):
    """Returns losses, norms and state of a training on one device."""
    return train(name, steps=STEPS)


# Data alone, all three axes, layers divided alone.
LAYOUTS = (((8, 1, 1), 4), ((2, 2, 2), 2), ((1, 8, 1), 1))


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "name, mesh, accumulation",
    campaign(
        [(name, *layout) for name in CASES for layout in LAYOUTS],
        # Each kind once, and each layout; "mlm" has its own in tests/train.
        *((name, *LAYOUTS[n % len(LAYOUTS)]) for n, name in enumerate(KINDS)),
    ),
)
def test_meshes_and_accumulation_train_alike(name, mesh, accumulation):
    """Dropout and draws are on; devices and micro-batches change nothing."""
    losses, norms, _ = reference(name)
    others = train(name, mesh, accumulation, steps=2)
    np.testing.assert_allclose(others[0], losses[:2], rtol=1e-5)
    np.testing.assert_allclose(others[1], norms[:2], rtol=1e-5)


@pytest.mark.campaign
@pytest.mark.timeout(1500)
def test_two_processes_of_four_devices_train_alike():
    worker = Path(__file__).parents[1] / "train" / "objectives_worker.py"
    names = ["mlm", *KINDS]
    first, _ = succeed(2, 4, worker, *names, timeout=1200)
    (line,) = [line for line in first.splitlines() if line.startswith("FOUND ")]
    for name, (losses, norms) in json.loads(line.removeprefix("FOUND ")).items():
        expected = reference(name)
        np.testing.assert_allclose(losses, expected[0][:2], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(norms, expected[1][:2], rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", campaign(KINDS, "electra"))
def test_a_checkpoint_goes_on_bit_for_bit(name, tmp_path):
    def restart(state):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(2, state, {})
            checkpoints.wait()
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                state,
            )
            return checkpoints.load(2, shapes)

    losses, _, whole = reference(name)
    again, _, resumed = train(name, steps=STEPS, restart_at=2, restart=restart)
    np.testing.assert_array_equal(losses, again)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


@pytest.mark.parametrize("name", CASES)
def test_its_parts_are_whole_models(name):
    """What a part takes it also places, and each head has an answer."""
    case = CASES[name]
    objective = case.make()
    batch = {key: array[:2] for key, array in case.batches().items()}
    shapes = jax.eval_shape(objective.init, jax.random.key(0), batch)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    batch["mask_positions"] = np.zeros((2, 3), np.int32)
    for part in objective.models.values():
        own = part.extract(params)
        assert set(own) == {"encoder", *part.heads}
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), params)
        placed = part.insert(params, own)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), placed) == shapes
        said = jax.eval_shape(
            lambda own, part=part: heads.outputs(part.encoder, own, batch), own
        )
        assert set(said) == set(part.heads)


def constants(program) -> list:
    """The arrays that a traced program holds, those of the programs in it included."""
    found = list(getattr(program, "consts", ()))
    for equation in program.eqns:
        inner = jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns"))
        found += [c for x in inner if hasattr(x, "eqns") for c in constants(x)]
    return found


@pytest.mark.parametrize("name", campaign([*CASES], "mlm", "electra", "distill"))
def test_no_table_of_the_vocabulary_is_a_constant_of_a_program(name):
    case, vocabulary = CASES[name], 101  # no other size
    objective, optimizer = case.make(vocab_size=vocabulary), optax.identity()
    tables, batch = objective.tables(), case.batches()
    assert vocabulary in map(len, tables.values())
    frozen = tables | case.frozen()
    state = jax.eval_shape(
        lambda batch: init_state(objective, optimizer, 0, batch, False), batch
    )
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    step = make_step(objective, optimizer, lambda _: 1.0, mesh, seed=0, steps=9)
    evaluation = make_evaluation(objective)
    with jax.set_mesh(mesh):
        programs = [
            jax.make_jaxpr(step)(state, frozen, batch),
            jax.make_jaxpr(evaluation)(state.params, frozen, batch),
        ]
    for program in programs:
        for constant in constants(program):
            assert not {vocabulary, *map(len, tables.values())} & {*constant.shape}


@pytest.mark.slow
def test_weights_of_each_term_sum_to_one():
    for name, case in CASES.items():
        objective, batch = case.make(), case.batches()
        key = Key(jnp.uint32(0), jnp.uint32(0))
        given = objective.tables(), batch, key, jnp.float32(0)
        out = jax.device_get(objective.corrupt(*given))
        weights = [key for key in out if key.endswith("weights")]
        assert weights, name
        for term in weights:
            np.testing.assert_allclose(out[term].sum(), 1, rtol=1e-5, err_msg=term)


def test_a_causal_model_does_not_learn_where_rows_end():
    objective, batch = CASES["clm"].make(), make_documents()
    key = Key(jnp.uint32(0), jnp.uint32(0))
    out = objective.corrupt({}, batch, key, jnp.float32(0))
    half, end = 16, 24
    # Each position predicts the token after it.
    np.testing.assert_array_equal(out["labels"], make_documents()["tokens"][:, 1:])
    weighs = np.asarray(out["weights"] > 0)
    # The first document goes on elsewhere, the second ends; [CLS] is not predicted.
    expected = [True] * (half - 2) + [False, False] + [True] * (end - half - 1)
    np.testing.assert_array_equal(weighs[:, : end - 1], [expected] * len(weighs))
    assert not weighs[:, end - 1 :].any()
