"""Students: initialised from their teachers' layers, and compared with them.

Legend: B rows, K slots a row, T = B * K, V vocabulary of the student.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plmjax import tree
from plmjax.evaluate.model import Model
from plmjax.models import EncoderConfig, Platform, heads
from plmjax.models.layers import cross_entropy
from plmjax.objectives import DistillConfig, Objective
from plmjax.objectives.distill import aligned, chosen_layers
from plmjax.train.metrics import Sums, added, fetch
from plmjax.train.step import evaluation_key

# DistilBERT compared with BERT-base, as reported by Sanh et al. (2019).
_PUBLISHED = {"smaller": 0.40, "kept": 0.97, "faster": 0.60}


def start(
    config: DistillConfig,
    encoder: EncoderConfig,
    params: dict,
    teacher: EncoderConfig,
    frozen: dict,
) -> dict:
    """Returns the student's parameters, initialised from its teacher.

    `params` are fresh ones, `frozen` the further inputs of the loss. Embeddings, head
    and the chosen layers are the teacher's; a table of token types that the student
    lacks is left out, as in DistilBERT. Pieces that the teacher does not know stay
    fresh, and so do parameters that are not the model's.
    """
    layers = chosen_layers(config, encoder, teacher)
    pieces = frozen["pieces"] if config.align == "strings" else None
    theirs = tree.flatten(jax.device_get(frozen["teacher"]))
    initial = {}
    for name, leaf in tree.flatten(jax.device_get(params)).items():
        if name.startswith("projection/"):
            initial[name] = leaf
            continue
        source = _source(name, layers, teacher)
        if source not in theirs:  # a Longformer's, of a teacher that has no such tokens
            source = source.replace("/global_", "/")
        value = theirs[source]
        if name in ("encoder/embeddings/token", "head/bias"):
            value = _rows(leaf, value, pieces)
        assert value.shape == leaf.shape, (name, value.shape, leaf.shape)
        initial[name] = value
    return tree.unflatten(initial)


def _source(name: str, layers: tuple[int, ...], teacher: EncoderConfig) -> str:
    """Returns the teacher's name of the student's parameter `name`."""
    top, block, *leaf = name.split("/")
    if not block.startswith("layer_"):
        return name
    number = layers[int(block.removeprefix("layer_"))]
    sublayer = "ffn" if leaf[0].startswith("ffn") else "attention"
    if teacher.sharing in (sublayer, "all"):
        number = number * teacher.groups // teacher.layers
    return "/".join((top, f"layer_{number}", *leaf))


def _rows(ours: np.ndarray, theirs: np.ndarray, pieces: dict | None) -> np.ndarray:
    """Returns the teacher's row of each piece, ours if it has none."""
    if pieces is None:
        # The vocabularies are the same, but one table may have more padding.
        size = min(len(ours), len(theirs))
        return np.concatenate([theirs[:size], ours[size:]])
    known_V = pieces["known"].reshape(-1, *[1] * (ours.ndim - 1))
    return np.where(known_V, theirs[pieces["ids"]], ours)


def compare(
    teacher: Model,
    student: Model,
    batches: Iterable[dict],
    objective: Objective,
    pieces: dict | None = None,
) -> dict[str, float]:
    """Returns sizes, held-out scores at the same masks, and the ratio of speeds.

    `batches` are held-out rows; `pieces` those of an aligned teacher: then only the
    pieces that both have count. Speed is that of the encoder's forward pass on the
    first batch, on one device, both in the student's dtype, in alternation. "kept" is
    the student's accuracy as a share of the teacher's, 1 if that is 0.
    """
    key = evaluation_key()
    corrupt = functools.partial(jax.jit(objective.corrupt), objective.tables())
    models = teacher, student
    params = [jax.device_put(m.params, jax.devices()[0]) for m in models]
    platform = Platform.of(jax.devices())
    score = functools.partial(_score, platform, teacher.encoder, student.encoder)
    score = jax.jit(score)
    sums: Sums | None = None
    ratio = None
    for batch in batches:
        batch = jax.device_get(corrupt(batch, key, jnp.float32(1)))
        if ratio is None:
            ratio = _speed_ratio(models, params, batch)
        more = fetch(score(*params, batch, pieces))
        sums = more if sums is None else added(sums, more)
    assert sums is not None and ratio is not None, "no batch to compare on"
    means = {name: total / max(count, 1.0) for name, (total, count) in sums.items()}
    sizes = [tree.count(m.params) for m in models]
    right = means["teacher_accuracy"]
    return means | {
        "teacher_parameters": sizes[0],
        "student_parameters": sizes[1],
        "smaller": 1 - sizes[1] / sizes[0],
        "kept": means["student_accuracy"] / right if right else 1.0,
        "faster": ratio - 1,
    }


def _score(
    platform: Platform,
    teacher: EncoderConfig,
    student: EncoderConfig,
    theirs: dict,
    ours: dict,
    batch: dict,
    pieces: dict | None,
) -> dict:
    """Returns (sum, count) of loss and accuracy at the masks, of both models."""
    labels_T = batch["labels"].reshape(-1)
    used_T = (batch["weights"].reshape(-1) > 0).astype(jnp.float32)
    teacher_batch = batch
    if pieces is not None:
        used_T = used_T * jnp.asarray(pieces["known"])[labels_T]
        ids_V = jnp.asarray(pieces["ids"])
        teacher_batch = batch | {"tokens": jnp.take(ids_V, batch["tokens"])}
        pieces = {name: jnp.asarray(array) for name, array in pieces.items()}

    def logits(config, params, batch):
        x_TH = heads.gather_positions(
            heads.encode(config, params, batch, None, platform),
            batch["mask_positions"],
        )
        return heads.vocabulary_logits(config, params, x_TH, platform)

    both = aligned(
        logits(student, ours, batch),
        logits(teacher, theirs, teacher_batch),
        pieces,
    )
    sums = {}
    for name, logits_TV in zip(("student", "teacher"), both, strict=True):
        scored: Any = cross_entropy(logits_TV, labels_T)
        for what, values_T in zip(("loss", "accuracy"), scored, strict=True):
            sums[f"{name}_{what}"] = (jnp.sum(values_T * used_T), jnp.sum(used_T))
    return sums


def _speed_ratio(models, params: list, batch: dict, repeats: int = 9) -> float:
    """Returns the first model's time divided by the second's, from medians."""
    dtype, passes = models[1].encoder.dtype, []
    platform = Platform.of(jax.devices())
    for model, model_params in zip(models, params, strict=True):
        config = dataclasses.replace(model.encoder, dtype=dtype)
        run = functools.partial(heads.encode, config, noise=None, platform=platform)
        run = jax.jit(run)
        model_params, batch = jax.device_put((model_params, batch), jax.devices()[0])
        passes.append(functools.partial(run, model_params, batch=batch))
        jax.block_until_ready(passes[-1]())
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):
        for spent, run in zip(seconds, passes, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(run())
            spent.append(time.perf_counter() - begin)
    slow, fast = map(statistics.median, seconds)
    return slow / fast


def lines(comparison: dict[str, float]) -> list[str]:
    """Returns a comparison as lines of text, with DistilBERT's published figures."""
    published = {name: f"DistilBERT: {share:.0%}" for name, share in _PUBLISHED.items()}
    return [
        f"Size: {comparison['student_parameters']:,} parameters of the teacher's "
        f"{comparison['teacher_parameters']:,}, {comparison['smaller']:.1%} fewer "
        f"({published['smaller']}).",
        f"Score: {comparison['student_accuracy']:.1%} of the masked words, the teacher "
        f"{comparison['teacher_accuracy']:.1%}: {comparison['kept']:.1%} kept "
        f"({published['kept']} of GLUE); loss {comparison['student_loss']:.3f}, the "
        f"teacher's {comparison['teacher_loss']:.3f}.",
        f"Speed: a forward pass is {comparison['faster']:.0%} faster "
        f"({published['faster']}).",
    ]
