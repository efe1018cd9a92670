"""Labels, loss, gradient and every figure of each objective, by brute force.

A step on rows of unequal numbers of masks is held against NumPy in float64. In the
place of the encoder stand sums of vectors, which both can compute: what is tested is
all that an objective makes of a model's logits.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plmjax.models import EncoderConfig, heads
from plmjax.models import noise as noise_lib
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
    distances,
)
from plmjax.objectives.generator import GeneratorConfig
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.metrics import fetch, means
from plmjax.train.step import State, gradients, make_step
from plmjax.tree import flatten, unflatten

# The table has two rows more than the tokenizer has pieces.
VOCABULARY, ORDINARY, WIDTH, LENGTH, SEED = 24, range(5, 22), 8, 12, 5
CLS, SEP, MASK = 2, 3, 4
KEY = Key(np.uint32(SEED), np.uint32(0))
BYTES = tuple(1 + i % 5 for i in range(22))
PIECES = Pieces(MASK, (0, 1, CLS, SEP, MASK), BYTES)
ENCODER = EncoderConfig(
    vocab_size=VOCABULARY,
    layers=1,
    width=WIDTH,
    heads=2,
    ffn_width=16,
    max_positions=LENGTH,
)
# The lengths of the documents of each row: one row has no words, one is padding alone.
DOCUMENTS = [(12,), (6, 6), (5,), (2,), (), (7, 3), (10,), (3,)]
ROWS = len(DOCUMENTS)


def make_batch() -> dict:
    random = np.random.default_rng(1)
    tokens, segments, positions = np.zeros((3, ROWS, LENGTH), np.int32)
    cut, cls = np.zeros((ROWS, LENGTH), bool), np.zeros((ROWS, 2), np.int32)
    for row, sizes in enumerate(DOCUMENTS):
        begin = 0
        for number, size in enumerate(sizes):
            here = slice(begin, begin + size)
            words = random.choice(ORDINARY, size - 2)
            tokens[row, here] = [CLS, *words, SEP]
            segments[row, here], positions[row, here] = number + 1, np.arange(size)
            cls[row, number] = begin
            # The first document of each row goes on elsewhere.
            cut[row, begin + size - 1] = number == 0
            begin += size
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": positions,
        "types": ((positions > 3) & (segments > 0)).astype(np.int32),
        "word_start": np.ones((ROWS, LENGTH), bool),
        "cut": cut,
        "cls": cls,
        "pair_label": np.int32(
            [[1, -1], [0, 1], [1, -1], [-1, -1], [-1, -1], [0, 0], [1, -1], [-1, -1]]
        ),
        "row": np.arange(40, 40 + ROWS, dtype=np.int32),
        "copy": np.zeros(ROWS, np.int32),
    }


# --- the model: sums of vectors, of NumPy's and of jax's arrays alike


def draw(names, vocabulary=VOCABULARY, width=WIDTH, seed=1) -> dict:
    random = np.random.default_rng(seed)
    shapes = {
        "encoder/embeddings/token": (vocabulary, width),
        "encoder/embeddings/position": (LENGTH, width),
        "encoder/embeddings/type": (2, width),
        "encoder/scale": (width,),
        "head/bias": (vocabulary,),
        "pair/kernel": (width, 2),
        "detector/kernel": (width,),
    }
    leaves = {
        name: random.normal(0, 0.6, shape).astype(np.float32)
        for name, shape in shapes.items()
        if name.split("/")[0] in ("encoder", *names)
    }
    return unflatten(leaves)


def encode(config, params, batch, noise=None, platform=None):
    found = params["encoder"]["embeddings"]
    x = found["token"][batch["tokens"]] + found["position"][batch["positions"]]
    x = (x + found["type"][batch["types"]]) * (1 + params["encoder"]["scale"])
    return x * (1 + batch["segments"] / 2)[..., None]


def layers_of(config, params, batch, noise=None, platform=None):
    x = encode(config, params, batch)
    states = tuple(
        (x * (i + 1) / 2 + i).reshape(-1, config.width) for i in range(config.layers)
    )
    split = (*x.shape[:2], config.heads, config.width // config.heads)
    a = x.reshape(split).transpose(0, 2, 1, 3)
    return x, distances.Kept(states, a, a[..., ::-1], a * a)


def vocabulary_logits(config, params, x, platform=None):
    return x @ params["encoder"]["embeddings"]["token"].T + params["head"]["bias"]


def pair_logits(config, params, x, platform=None):
    return x @ params["pair"]["kernel"]


def detector_logits(config, params, x, platform=None):
    return x @ params["detector"]["kernel"]


@pytest.fixture(autouse=True)
def sums_of_vectors(monkeypatch):
    for f in (encode, vocabulary_logits, pair_logits, detector_logits):
        monkeypatch.setattr(heads, f.__name__, f)
    monkeypatch.setattr(distances, "encode", layers_of)


# --- the reference


def log_softmax(x):
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Found(NamedTuple):
    """The loss, each metric as (sum, count), and each score."""

    loss: float
    metrics: dict
    scores: dict


def summed(**values) -> dict:
    """Returns (sum, count) of each array."""
    return {name: (np.sum(x), np.size(x)) for name, x in values.items()}


def mean_of(pair):
    return pair[0] / max(pair[1], 1)


def of_tokens(logits, labels, prefix="") -> tuple[dict, dict]:
    """Returns the metrics and scores of predicted tokens."""
    nll = -log_softmax(logits)[np.arange(len(labels)), labels]
    hit = logits.argmax(-1) == labels
    size = sum(BYTES[label] for label in labels)
    mean = nll.mean()
    found = summed(loss=nll, accuracy=hit) | {"nats_per_byte": (nll.sum(), size)}
    told = {
        "loss": mean,
        "accuracy": hit.mean(),
        "perplexity": math.exp(mean),
        "bits_per_byte": nll.sum() / size / math.log(2),
    }
    return tuple(
        {f"{prefix}{name}": x for name, x in one.items()} for one in (found, told)
    )


def chosen(plain, out):
    """Returns row, place and original token of what is masked."""
    rows, slots = np.nonzero(out["weights"])
    at = out["mask_positions"][rows, slots]
    return rows, at, plain["tokens"][rows, at]


def masked_reference(config, types=True):
    def reference(params, fixed, plain, out) -> Found:
        rows, at, labels = chosen(plain, out)
        seen = encode(None, params, out | {"types": types * out["types"]})
        logits = vocabulary_logits(None, params, seen[rows, at])
        metrics, scores = of_tokens(logits, labels)
        if config.pairs == "none":
            return Found(config.mlm_weight * scores["loss"], metrics, scores)
        asked = [(b, p) for b in range(ROWS) for p in (0, 1)]
        asked = [(b, p) for b, p in asked if plain["pair_label"][b, p] >= 0]
        states = np.array([seen[b, plain["cls"][b, p]] for b, p in asked])
        truth = np.array([plain["pair_label"][one] for one in asked])
        logits = pair_logits(None, params, states)
        nll = -log_softmax(logits)[np.arange(len(truth)), truth]
        hit = logits.argmax(1) == truth
        metrics |= summed(pair_loss=nll, pair_accuracy=hit)
        loss = config.mlm_weight * scores["loss"] + config.pair_weight * nll.mean()
        scores |= {"pair_loss": nll.mean(), "pair_accuracy": hit.mean()}
        return Found(loss, metrics, scores | {"mlm_loss": scores["loss"], "loss": loss})

    return reference


def following(plain):
    """Returns row, place and the token after it, of what a causal model predicts."""
    segments, found = plain["segments"], []
    for row in range(ROWS):
        for at in range(LENGTH - 1):
            same = segments[row, at] == segments[row, at + 1] > 0
            if same and not plain["cut"][row, at + 1]:
                found.append((row, at, plain["tokens"][row, at + 1]))
    return np.array(found).T


def causal_reference(params, fixed, plain, out) -> Found:
    rows, at, labels = following(plain)
    logits = vocabulary_logits(None, params, encode(None, params, plain)[rows, at])
    metrics, scores = of_tokens(logits, labels)
    return Found(scores["loss"], metrics, scores)


# Which parameters of its encoder the generator has of the discriminator.
SHARED = {
    "tokens": ["token"],
    "embeddings": ["token", "position", "type"],
    "all": ["token", "position", "type", "scale"],
    "none": [],
    "disentangled": [],
}


def pair_of_models(tie: str, names) -> dict:
    """Returns a discriminator and a generator without what it has of the other."""
    discriminator, generator = draw(names), draw(("head",), seed=2)
    for name in SHARED[tie]:
        where = generator["encoder"]
        del (where if name == "scale" else where["embeddings"])[name]
    if tie == "disentangled":
        table = discriminator["encoder"]["embeddings"]
        table["token_delta"] = table.pop("token")
    return {"discriminator": discriminator, "generator": generator}


def taken(tie, params, fixed):
    """Returns the two models; what the discriminator may not move is of `fixed`."""
    discriminator = flatten(params["discriminator"])
    generator = flatten(params.get("generator", {}))
    for name in SHARED[tie]:
        name = "encoder/" + ("" if name == "scale" else "embeddings/") + name
        generator[name] = discriminator[name]
    if tie == "disentangled":
        table, delta = "encoder/embeddings/token", "encoder/embeddings/token_delta"
        theirs = flatten(fixed["generator"])[table]
        discriminator[table] = theirs + discriminator.pop(delta)
    return unflatten(discriminator), unflatten(generator)


def samples(logits, u, temperature):
    """Returns the first piece at which the distribution function is beyond u."""
    ends = np.cumsum(np.exp(log_softmax(logits / temperature)), axis=1)
    return (ends <= u[:, None]).sum(1)


def of_detector(logits, replaced) -> tuple[dict, dict]:
    p, called = sigmoid(logits), logits > 0
    nll = -np.where(replaced, np.log(p), np.log(1 - p))
    values = {
        "detector_loss": nll,
        "detector_accuracy": called == replaced,
        "detector_precision": replaced[called],
        "detector_recall": called[replaced],
        "detector_on_replaced": p[replaced],
        "detector_on_originals": p[~replaced],
    }
    told = {name: np.mean(x) for name, x in values.items()}
    apart = told.pop("detector_on_replaced") - told.pop("detector_on_originals")
    return summed(**values), told | {"detector_separation": apart}


def electra_reference(config):
    uniform = config.generator.kind == "uniform"

    def reference(params, fixed, plain, out) -> Found:
        rows, at, labels = chosen(plain, out)
        discriminator, generator = taken(config.tie, params, fixed)
        metrics, scores, total = {}, {}, 0.0
        if uniform:
            seen = out["tokens"]
        else:
            drawn = _drawn(fixed, plain, out)
            seen = plain["tokens"].copy()
            seen[rows, at] = drawn
            x = encode(None, generator, out)[rows, at]
            logits = vocabulary_logits(None, generator, x)
            metrics, scores = of_tokens(logits, labels, "generator_")
            total = config.generator_weight * scores["generator_loss"]
        real, replaced = plain["segments"] > 0, seen != plain["tokens"]
        x = encode(None, discriminator, plain | {"tokens": seen})
        share = replaced[real]
        assert uniform or 0 < replaced[rows, at].mean() < 1, "no guess is right"
        judged = VARIANTS[config.variant](
            discriminator, x, seen, plain["tokens"], real, (rows, at)
        )
        value, more, told, weight = judged
        total += getattr(config, weight) * value
        metrics |= more | summed(replaced_share=share)
        scores |= told | {"replaced_share": share.mean(), "loss": total}
        return Found(total, metrics, scores)

    def _drawn(fixed, plain, out):
        rows, slots = np.nonzero(out["weights"])
        _, generator = taken(config.tie, fixed, fixed)
        x = encode(None, generator, out)[rows, out["mask_positions"][rows, slots]]
        u = noise_lib.uniform(
            KEY.noise(plain), "generator/sample", out["weights"].shape[1]
        )
        logits = vocabulary_logits(None, generator, x)
        return samples(logits, np.asarray(u)[rows, slots], config.temperature)

    return reference


def judge_all(model, x, seen, truth, real, at):
    metrics, told = of_detector(
        detector_logits(None, model, x)[real], (seen != truth)[real]
    )
    return told["detector_loss"], metrics, told, "detector_weight"


def judge_chosen(model, x, seen, truth, real, at):
    logits = detector_logits(None, model, x)
    metrics, told = of_detector(logits[at], (seen != truth)[at])
    return told["detector_loss"], metrics, told, "detector_weight"


def predict_chosen(model, x, seen, truth, real, at):
    logits = vocabulary_logits(None, model, x[at])
    metrics, told = of_tokens(logits, truth[at], "discriminator_")
    return told["discriminator_loss"], metrics, told, "mlm_weight"


def predict_all(model, x, seen, truth, real, at):
    """The mixture of a copy of the input and of the softmax, of every token."""
    replaced = sigmoid(detector_logits(None, model, x))[..., None]
    written = np.exp(log_softmax(vocabulary_logits(None, model, x)))
    mixture = np.log((1 - replaced) * np.eye(VOCABULARY)[seen] + replaced * written)
    _, metrics, told, _ = judge_all(model, x, seen, truth, real, at)
    own, ours = of_tokens(mixture[at], truth[at], "discriminator_")
    everywhere, means = of_tokens(mixture[real], truth[real], "all_tokens_")
    names = ("all_tokens_loss", "all_tokens_accuracy")
    metrics |= own | {name: everywhere[name] for name in names}
    told |= ours | {name: means[name] for name in names}
    return told["all_tokens_loss"], metrics, told, "mlm_weight"


VARIANTS = {
    "electra": judge_all,
    "electra_15": judge_chosen,
    "replace_mlm": predict_chosen,
    "all_tokens_mlm": predict_all,
}

TEACHER = dataclasses.replace(ENCODER, layers=3, width=12, vocab_size=26)
# What each of the student's pieces is called by the teacher; some it does not know.
ALIGNED = {
    "ids": np.random.default_rng(2).permutation(26)[:VOCABULARY].astype(np.int32),
    "known": np.arange(VOCABULARY) % 4 != 1,
}


def distill_reference(config):
    t, layer = config.temperature, config.layers[0]

    def relation(a, b, segments):
        scores = a @ b.swapaxes(-1, -2) / math.sqrt(a.shape[-1])
        same = segments[:, None, :, None] == segments[:, None, None, :]
        return log_softmax(np.where(same, scores, -np.inf)), same

    def relation_kl(ours, theirs, segments):
        (q, same), (p, _) = (relation(*pair, segments) for pair in (ours, theirs))
        apart = np.exp(p) * np.subtract(p, q, where=same, out=np.zeros_like(p))
        return apart.sum(-1).mean(1)

    def reference(params, fixed, plain, out) -> Found:
        rows, at, labels = chosen(plain, out)
        real, segments = plain["segments"] > 0, plain["segments"]
        teacher = jax.tree.map(np.float64, FROZEN["teacher"])
        x, kept = layers_of(ENCODER, params, out)
        asked = out
        if config.align == "strings":
            asked = out | {"tokens": ALIGNED["ids"][out["tokens"]]}
        y, held = layers_of(TEACHER, teacher, asked)
        logits = vocabulary_logits(None, params, x)
        theirs = vocabulary_logits(None, teacher, y)
        metrics, scores = of_tokens(logits[rows, at], labels)
        p, q = theirs[..., :VOCABULARY], logits
        if config.align == "strings":
            known = ALIGNED["known"]
            p, q = theirs[..., ALIGNED["ids"][known]], logits[..., known]
        p, q = log_softmax(p / t), log_softmax(q / t)
        soft = t**2 * (np.exp(p) * (p - q)).sum(-1)
        soft = soft[real] if config.soft_positions == "all" else soft[rows, at]
        projected = x @ params["projection"]["kernel"]
        norms = np.linalg.norm(projected, axis=-1) * np.linalg.norm(y, axis=-1)
        values = {"soft": soft, "cosine": (1 - (projected * y).sum(-1) / norms)[real]}
        if config.hidden_weight:
            ours = kept.states[0] @ params["projection"]["kernel"]
            error = np.square(ours - held.states[layer]).mean(-1)
            values["hidden"] = error.reshape(real.shape)[real]
        if config.attention_weight:
            apart = relation_kl(
                (kept.query, kept.key), (held.query, held.key), segments
            ) + relation_kl((kept.value,) * 2, (held.value,) * 2, segments)
            values["attention"] = apart[real]
        scores["mlm_loss"] = scores["loss"]
        metrics |= summed(**{f"{name}_loss": x for name, x in values.items()})
        scores |= {f"{name}_loss": x.mean() for name, x in values.items()}
        names = ("mlm", *values)
        total = sum(getattr(config, f"{n}_weight") * scores[f"{n}_loss"] for n in names)
        return Found(total, metrics, scores | {"loss": total})

    return reference


FROZEN: dict[str, Any] = {"teacher": draw(("head",), 26, 12, seed=8), "pieces": ALIGNED}


class Case(NamedTuple):
    objective: Objective
    params: dict
    reference: Callable[..., Found]
    token_loss: str | None
    frozen: dict = {}
    probability: float = 0.4


SHARES = {"probability": 0.4, "mask_share": 0.5, "random_share": 0.2}


def mlm_case(token_types=2, **settings) -> Case:
    config = MLMConfig(**SHARES, mlm_weight=1.3, pair_weight=0.6, **settings)
    names = ("head",) if config.pairs == "none" else ("head", "pair")
    token_loss = "loss" if config.pairs == "none" else "mlm_loss"
    encoder = dataclasses.replace(ENCODER, token_types=token_types)
    objective = MLM(config, encoder, PIECES)
    # Where one type is all there is, the second sentence has no other.
    reference = masked_reference(config, token_types > 1)
    return Case(objective, draw(names), reference, token_loss)


def clm_case() -> Case:
    encoder = dataclasses.replace(ENCODER, causal=True)
    objective = CLM(CLMConfig(), encoder, PIECES)
    return Case(objective, draw(("head",)), causal_reference, "loss")


def electra_case(names=("detector",), kind="trained", **settings) -> Case:
    given = {"detector_weight": 4.0, "mlm_weight": 1.7, "generator_weight": 0.7}
    generator = GeneratorConfig(kind=kind, width_fraction=1.0)
    config = ElectraConfig(
        **given | SHARES | settings, temperature=0.6, generator=generator
    )
    params = pair_of_models(config.tie, names)
    token_loss = "discriminator_loss" if "head" in names else "generator_loss"
    if kind == "uniform":
        del params["generator"]
        token_loss = None
    objective = Electra(config, ENCODER, PIECES)
    return Case(objective, params, electra_reference(config), token_loss)


def distill_case(**settings) -> Case:
    config = DistillConfig(
        **SHARES,
        teacher="a",
        start="fresh",
        temperature=1.7,
        soft_weight=3.0,
        mlm_weight=1.3,
        cosine_weight=0.7,
        layers=(1,),
        **settings,
    )
    params = draw(("head",))
    kernel = np.random.default_rng(3).normal(0, 0.5, (WIDTH, 12)).astype(np.float32)
    params["projection"] = {"kernel": kernel}
    objective = Distill(config, ENCODER, PIECES, TEACHER)
    reference = distill_reference(config)
    return Case(objective, params, reference, "mlm_loss", FROZEN)


LAYERS = {"hidden_weight": 0.5, "attention_weight": 0.8}
CASES: dict[str, Callable[[], Case]] = {
    "mlm": mlm_case,
    "nsp": functools.partial(mlm_case, pairs="nsp"),
    "sop": functools.partial(mlm_case, pairs="sop", token_types=1),
    "clm": clm_case,
    "electra": electra_case,
    "electra_15": functools.partial(electra_case, variant="electra_15", tie="none"),
    "replace_mlm": functools.partial(
        electra_case, ("head",), variant="replace_mlm", tie="embeddings"
    ),
    "all_tokens_mlm": functools.partial(
        electra_case, ("head", "detector"), variant="all_tokens_mlm", tie="all"
    ),
    "deberta_v3": functools.partial(electra_case, tie="disentangled"),
    "uniform": functools.partial(electra_case, kind="uniform"),
    "distill": functools.partial(distill_case, **LAYERS),
    "distill_masked": functools.partial(
        distill_case, soft_positions="masked", align="strings"
    ),
}
# By a whole step on four devices, whose rows are divided over two axes.
SHARDED = ("nsp", "distill")
# What a step says beside the figures of the objective.
OF_THE_STEP = {
    *("objective", "gradient_norm", "learning_rate", "tokens"),
    *("bad_steps", "skipped"),
}


def in_parts(case, out):
    """Returns loss, figures and gradient: sums of those of the odd and even rows."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    frozen = case.objective.tables() | case.frozen
    run = jax.jit(gradients(case.objective, mesh, case.params, frozen))
    found = []
    for here in (np.arange(ROWS) % 2 == i for i in range(2)):
        # Of one shape, which is compiled once; what weighs nothing counts nothing.
        left = {
            name: x * here.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
            for name, x in out.items()
            if name.endswith("weights") or name == "segments"
        }
        found.append(run(case.params, frozen, out | left, KEY, None))
    loss, metrics, gradient = jax.tree.map(np.add, *jax.device_get(found))
    assert metrics.pop("tokens") == ((out["segments"] > 0).sum(), 2)
    return loss, fetch(metrics), gradient


def one_step(case, batch):
    """Returns a step's loss, figures and gradient: four devices, two micro-batches."""
    mesh = sharding.make_mesh(MeshConfig(2, 2, 1), jax.devices()[:4])
    descent = optax.identity()
    step = make_step(
        case.objective,
        descent,
        lambda step: 1.0,
        mesh,
        seed=SEED,
        steps=10,
        accumulation=2,
    )
    nothing = [np.int32(0)] * 3
    state = State(
        nothing[0], case.params, descent.init(case.params), None, *nothing[1:]
    )
    with jax.set_mesh(mesh):
        state = jax.device_put(state, sharding.shardings(mesh, state))
        frozen = case.objective.tables() | case.frozen
        frozen = jax.device_put(frozen, sharding.shardings(mesh, frozen))
        state, metrics = step(state, frozen, sharding.put_rows(mesh, batch))
    gradient = jax.tree.map(np.subtract, case.params, jax.device_get(state.params))
    sums = fetch(metrics)
    loss = sums["objective"][0]
    assert OF_THE_STEP < set(sums)
    sums = {name: pair for name, pair in sums.items() if name not in OF_THE_STEP}
    return loss, sums, gradient


def close(found, wanted, name=""):
    np.testing.assert_allclose(found, wanted, rtol=3e-5, atol=1e-6, err_msg=name)


def check_gradient(gradient, loss, params):
    """Holds each leaf against the slope of the loss in a direction drawn at random."""
    random, wide = np.random.default_rng(0), jax.tree.map(np.float64, params)
    flat = flatten(wide)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    for name, leaf in flatten(gradient).items():
        way = random.normal(size=leaf.shape)
        ends = [
            loss(unflatten(flat | {name: flat[name] + h * way}), wide)
            for h in (1e-5, -1e-5)
        ]
        slope = (ends[0] - ends[1]) / 2e-5
        far = 1e-5 * largest * math.sqrt(leaf.size)
        np.testing.assert_allclose(
            (leaf * way).sum(), slope, rtol=2e-4, atol=far, err_msg=name
        )


def check_figures(found: dict, wanted: dict):
    assert set(found) == set(wanted)
    for name, pair in found.items():
        close(pair, wanted[name], name)


def check_masks(plain, out, uniform: bool):
    """Masks are of words alone, each once, and weigh one of so many in all rows.

    With a uniform generator, ordinary pieces stand in the place of all of them.
    """
    maskable = (plain["segments"] > 0) & (plain["tokens"] > MASK)
    rows, at, labels = chosen(plain, out)
    place = np.nonzero(out["weights"])
    assert maskable[rows, at].all() and len({*zip(rows, at, strict=True)}) == len(rows)
    sizes, counts = maskable.sum(1), np.bincount(rows, minlength=ROWS)
    least = np.floor(SHARES["probability"] * sizes)
    assert (counts >= np.maximum(least, sizes > 0)).all()
    assert (counts <= np.maximum(least + 1, sizes > 0) * (sizes > 0)).all()
    # The rows that the test is about.
    assert len(set(counts)) > 3 and (counts == 0).sum() == 2
    np.testing.assert_array_equal(out["labels"][place], labels)
    close(out["weights"][place], np.full(len(rows), 1 / len(rows)))
    put, kept = out["tokens"][rows, at], out["tokens"].copy()
    kept[rows, at] = labels
    np.testing.assert_array_equal(kept, plain["tokens"])
    ordinary = np.isin(put, ORDINARY)
    assert (ordinary | ((put == MASK) & (not uniform))).all()
    assert (put == labels).mean() < 0.25 or not uniform


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_that_of_the_definition(name):
    """Labels, loss, gradient and figures; and the scores made of them."""
    case, plain = CASES[name](), make_batch()
    given = case.objective.tables(), plain, KEY, jnp.float32(0)
    out = jax.device_get(jax.jit(case.objective.corrupt)(*given))
    if name == "clm":
        rows, at, labels = following(plain)
        weights = np.zeros((ROWS, LENGTH - 1))
        weights[rows, at] = 1 / len(rows)
        close(out["weights"], weights)
        np.testing.assert_array_equal(out["labels"][rows, at], labels)
        places = np.broadcast_to(np.arange(LENGTH - 1), weights.shape)
        np.testing.assert_array_equal(out["mask_positions"], places)
    else:
        check_masks(plain, out, name == "uniform")
    wide = jax.tree.map(np.float64, case.params)
    made = {x: out[x] for x in ("tokens", "mask_positions", "weights")}
    wanted = case.reference(wide, wide, plain, plain | made)
    for figure, (total, count) in wanted.metrics.items():
        if figure.endswith(("accuracy", "precision", "recall")):
            assert 0 < total < count, "all or nothing is no test"
    found = one_step(case, plain) if name in SHARDED else in_parts(case, out)
    loss, sums, gradient = found
    close(loss, wanted.loss)
    check_figures(sums, wanted.metrics)
    scores = case.objective.scores(means(sums))
    assert set(scores) == set(wanted.scores)
    for figure, value in scores.items():
        close(value, wanted.scores[figure], figure)
    assert case.objective.token_loss == case.token_loss
    assert case.token_loss in (None, *scores)
    check_gradient(
        gradient,
        lambda params, fixed: case.reference(params, fixed, plain, plain | made).loss,
        case.params,
    )
