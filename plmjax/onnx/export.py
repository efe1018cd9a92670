"""Writes models as folders with ONNX graphs, each checked against our own outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import onnxruntime

from plmjax import Exit, PlmjaxError, files
from plmjax.evaluate.model import (
    Model,
    finished,
    is_finetuned,
    longest_row,
    model_folders,
    open_models,
)
from plmjax.interop.folder import CARD, TASK
from plmjax.interop.huggingface import describe_model, save_tokenizer, write_texts
from plmjax.models import EncoderConfig, heads, task_heads
from plmjax.models.global_tokens import with_room
from plmjax.onnx.graph import build, check
from plmjax.onnx.ops import OPSET
from plmjax.onnx.session import FACTS, FOLDER, MODEL

_TOLERANCE = 1e-4  # of an output, or of its largest value where that is above 1
_FILE_BYTES = 2_000_000_000  # protobuf's files end at 2^31
# Heads of pretraining in the order of their outputs, and what a model with one is for.
_KINDS = {"head": "fill", "detector": "detect", "pair": "pair"}


def export(
    source: Path,
    to: Path,
    *,
    checkpoint: str = "newest",
    part: str | None = None,
    log: Callable[[str], Any] = print,
) -> Path:
    """Writes a run, fine-tuning or Hugging Face folder as a folder with an ONNX graph.

    `to` gets onnx/model.onnx beside config and tokenizer, as optimum and
    transformers.js read them; several models (ELECTRA's) get a folder each inside.

    Raises:
      PlmjaxError: `source` is no model, `to` is not empty, the attention has no form in
        ONNX, or the outputs differ from ours; then nothing is left behind.
    """
    files.check_new(to)
    models = open_models(str(source), checkpoint)
    if part is not None and part not in models:
        raise PlmjaxError(
            f"{source} has no model {part!r}.", hint=f"It has: {', '.join(models)}."
        )
    chosen = models if part is None else {part: models[part]}
    for model in chosen.values():
        check(model.encoder)
    with files.disk_errors(to), files.removed_unless_done(to):
        for name, model in chosen.items():
            folder = to / name if len(chosen) > 1 else to
            length = longest_row(str(source), model)
            largest = _write(model, length, folder, _texts(source, model))
            log(
                f"Exported to {folder / FOLDER}, opset {OPSET}; the outputs differ from "
                f"ours by {largest:.1g} at most."
            )
    return to


def _texts(source: Path, model: Model) -> dict[str, str]:
    """Returns the model card, and how a fine-tuned model reads its input."""
    texts = {CARD: f"# {model.name}\n\nExported by plmjax to ONNX.\n"}
    directory = finished(source) if is_finetuned(source) else source
    folder = model_folders(directory).get(model.part)
    for name in (CARD, TASK) if folder is not None else ():
        if (folder / name).is_file():
            texts[name] = (folder / name).read_text(encoding="utf-8")
    return texts


def _write(model: Model, length: int, folder: Path, texts: dict[str, str]) -> float:
    """Writes and checks one model; returns the largest difference to ours."""
    config, task = model.encoder, model.task
    kind = "embed" if task is None else task.kind.replace("embeddings", "embed")
    if task is None:
        kind = next((k for h, k in _KINDS.items() if h in model.params), kind)
    facts = {
        "kind": "next" if kind == "fill" and config.causal else kind,
        "labels": task.labels if task else (),
        "pooling": task.pooling if task else "mean",
        "causal": config.causal,
        "token_types": config.token_types,
        "max_length": config.max_length,
        "length": length,
        # BigBird's blocks are counted in the row, with its padding.
        "pads": config.attention == "blocks",
    }
    built = build(config, model.params, task, {FACTS: json.dumps(facts)})
    used = [name for name in model.params if name != "encoder"]
    _, about = describe_model(config, used, model.tokenizer, length, task)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    write_texts(folder, {**about, **texts})
    save_tokenizer(folder, config, model.tokenizer, length)
    path = folder / FOLDER / MODEL
    large = sum(len(array.raw_data) for array in built.graph.initializer) > _FILE_BYTES
    data = f"{MODEL}_data" if large else None
    onnx.save_model(built, path, save_as_external_data=large, location=data)
    return max(_differences(model, path))


def _differences(model: Model, path: Path):
    """Yields the largest difference of each output of rows of several lengths to ours.

    Raises:
      PlmjaxError: it is not within the tolerance.
    """
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    wide = min(_interesting(model.encoder), model.encoder.max_length)
    for sizes in ([wide, wide // 2 + 1, 3], [min(9, wide)]):
        batch = _batch(model, sizes)
        feed = {
            "input_ids": batch["tokens"],
            "attention_mask": batch["segments"],
            "token_type_ids": batch["types"],
        }
        feed = {i.name: feed[i.name].astype(np.int64) for i in session.get_inputs()}
        real = batch["segments"] > 0
        ours = _outputs(model, batch)
        for name, theirs in zip(names, session.run(None, feed), strict=True):
            wanted = np.asarray(ours[name])
            apart = np.abs(np.asarray(theirs) - wanted)
            if apart.shape[: real.ndim] == real.shape:
                apart, wanted = apart[real], wanted[real]
            largest = float(apart.max(initial=0))
            limit = _TOLERANCE * max(1.0, float(np.abs(wanted).max(initial=0)))
            if not (apart.shape and largest <= limit):
                raise PlmjaxError(
                    f"{name} of the ONNX graph differs from ours by {largest:.2g} in "
                    f"rows of {', '.join(map(str, sizes))} tokens.",
                    hint="Nothing was written. This should not happen: please report "
                    "the model's config.",
                    code=Exit.NUMERIC,
                )
            yield largest


def _interesting(config: EncoderConfig) -> int:
    """The tokens of a row in which all of the attention is at work."""
    return {
        "full": 2 * config.window + 8 if "local" in config.layer_kinds else 48,
        "disentangled": config.position_buckets + 8,
        "blocks": config.shortest_sparse + config.block,
        "nystrom": 2 * config.landmarks + 8,
    }[config.attention]


def _batch(model: Model, sizes: list[int]) -> dict[str, np.ndarray]:
    """Returns rows of random tokens, int32 [B, L]; of choices [B, 2, L], one empty."""
    config, tokenizer = model.encoder, model.tokenizer
    random = np.random.default_rng(0)
    choices = model.task is not None and model.task.head == "choices"
    sizes = [*sizes, 0] if choices and len(sizes) % 2 else sizes
    shape = (len(sizes), max(sizes))
    real = np.arange(shape[1]) < np.array(sizes)[:, None]
    tokens = random.integers(config.vocab_size, size=shape)
    tokens[:, 0] = tokenizer.cls_id
    for row, size in enumerate(sizes):
        tokens[row, [size // 2, size - 1]] = tokenizer.sep_id
    index = np.broadcast_to(np.arange(shape[1]), shape)
    second = (index > np.array(sizes)[:, None] // 2) & (config.token_types > 1)
    arrays = {
        "tokens": np.where(real, tokens, tokenizer.pad_id),
        "segments": real,
        "positions": np.where(real, index, 0),
        "types": second & real,
    }
    if choices:
        arrays = {k: x.reshape(-1, 2, shape[1]) for k, x in arrays.items()}
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def _outputs(model: Model, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns our own outputs, by the names of the graph's."""
    config, params, task = model.encoder, model.params, model.task
    with jax.default_matmul_precision("highest"):
        if task is not None and task.head is not None:
            config = with_room(config, batch["tokens"], batch["segments"])
            scores = _scores(config, task, params, batch)
            if task.head == "answers":
                return {"start_logits": scores[..., 0], "end_logits": scores[..., 1]}
            return {"logits": scores}
        config = with_room(config, batch["tokens"], batch["segments"])
        if used := [head for head in _KINDS if head in params]:
            rows, length = batch["tokens"].shape
            every = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
            more = {"mask_positions": every, "cls": np.zeros((rows, 1), np.int32)}
            found = _heads(config, params, batch | more)
            found = {k: x[:, 0] if k == "pair" else x for k, x in found.items()}
            names = {"detector": "detector_logits", "pair": "seq_relationship_logits"}
            return {
                "logits" if head == used[0] else names[head]: found[head]
                for head in used
            }
        states = _encode(config, params, batch, None)
        pooling = task.pooling if task else "mean"
        vectors = heads.pooled(states, batch["segments"], pooling)
        return {"last_hidden_state": states, "sentence_embedding": vectors}


_encode = jax.jit(heads.encode, static_argnums=0)
_heads = jax.jit(heads.outputs, static_argnums=0)


def _scores(config, task, params, batch):
    return task_heads.task_logits(config, task, params, batch, None)


_scores = jax.jit(_scores, static_argnums=(0, 1))
