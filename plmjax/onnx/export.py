"""Writes models as folders with ONNX graphs, each checked against our own outputs."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx

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
from plmjax.onnx.session import FACTS, FOLDER, MODEL, Session
from plmjax.tasks.task import Task

_TOLERANCE = 1e-4  # of an output, or of its largest value where that is above 1
_FILE_BYTES = 2_000_000_000  # protobuf's files end at 2^31
# Heads of pretraining in the order of their outputs, and what a model with one is for.
_KINDS = {"head": "fill", "detector": "detect", "pair": "pair"}
# Of a product one side is weights; those of two states, in attention, stay float. With
# the table of tokens the file is half as large, at no loss that was measured.
INT8: dict[str, Any] = {
    "op_types_to_quantize": ["MatMul", "Gather"],
    "per_channel": True,
}


def export(source: Path, to: Path, log: Callable[[str], Any] = print) -> Path:
    """Writes a run, fine-tuning or Hugging Face folder as a folder with an ONNX graph.

    `to` gets onnx/model.onnx beside config and tokenizer, as optimum and
    transformers.js read them; several models (ELECTRA's) get a folder each inside.

    Raises:
      PlmjaxError: `source` is no model, `to` is not empty, the attention has no form in
        ONNX, or the outputs differ from ours; then nothing is left behind.
    """
    files.check_new(to)
    models = open_models(str(source))
    for model in models.values():
        check(model.encoder)
    with files.disk_errors(to), files.replacing_folder(to) as new:
        for name, model in models.items():
            inner = name if len(models) > 1 else ""
            length, texts = longest_row(str(source), model), _texts(source, model)
            largest = write_model(model, length, new / inner, texts)
            log(f"{to / inner}: opset {OPSET}, outputs are ours within {largest:.1g}.")
    return to


def _texts(source: Path, model: Model) -> dict[str, str]:
    """Returns the model card, and how a fine-tuned model reads its input."""
    texts = {CARD: f"# {model.name}\n\nExported by plmjax to ONNX.\n"}
    directory = finished(source) if is_finetuned(source) else source
    folder = model_folders(directory).get(model.part, directory)
    for name in (CARD, TASK):
        if (folder / name).is_file():
            texts[name] = (folder / name).read_text(encoding="utf-8")
    return texts


def write_model(
    model: Model, length: int, folder: Path, texts: Mapping[str, str]
) -> float:
    """Writes and checks one model in float32; returns the largest difference to ours.

    `length` is that of the tokenizer's longest row, `texts` are further files.
    """
    # Whatever a run was trained in, its weights are float32.
    config = dataclasses.replace(model.encoder, dtype="float32", remat=False)
    model, task = dataclasses.replace(model, encoder=config), model.task
    kinds = [kind for head, kind in _KINDS.items() if head in model.params]
    kind = "detect" if "detect" in kinds else [*kinds, "embed"][0]
    kind = kind if task is None or task.head is None else task.kind
    facts = {
        "kind": "next" if kind == "fill" and config.causal else kind,
        "labels": task.labels if task else (),
        "pooling": task.pooling if task else "mean",
        "causal": config.causal,
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
    save(built, folder / FOLDER / MODEL)
    del built  # as large as the model, and so are the two that are compared
    return max(_differences(model, Session(folder)))


def save(built: onnx.ModelProto, path: Path) -> None:
    """Writes a graph; the weights of a large one are in a second file."""
    large = sum(len(array.raw_data) for array in built.graph.initializer) > _FILE_BYTES
    data = f"{path.name}_data" if large else None
    onnx.save_model(built, path, save_as_external_data=large, location=data)


def has_data(path: Path) -> bool:
    """Whether the weights of a graph are in a second file."""
    return path.with_name(f"{path.name}_data").exists()


def write_int8(path: Path, to: Path) -> None:
    """Writes a graph with weights in int8; states by the range that each one has."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    more = INT8 | {"use_external_data_format": has_data(path)}
    quantize_dynamic(path, to, weight_type=QuantType.QInt8, **more)


def _differences(model: Model, session: Session) -> Iterator[float]:
    """Yields the largest difference to ours of each output, in two batches of rows.

    Raises:
      PlmjaxError: it is not within the tolerance.
    """
    wide = min(_interesting(model.encoder), model.encoder.max_length)
    for sizes in ([wide, wide // 2 + 1, 3], [min(9, wide)]):
        batch = _batch(model, sizes)
        config = with_room(model.encoder, batch["tokens"], batch["segments"])
        with jax.default_matmul_precision("highest"):
            ours = _outputs(config, model.task, model.params, batch)
        real = batch["segments"] > 0
        theirs = session.score(batch)
        for name, wanted in zip(theirs, map(np.asarray, ours), strict=True):
            apart = np.abs(theirs[name] - wanted)
            if apart.shape[: real.ndim] == real.shape:  # padding may differ
                apart, wanted = apart[real], wanted[real]
            largest = float(apart.max())
            # Not the other way round: nan is in no limit.
            if not largest <= _TOLERANCE * max(1.0, np.abs(wanted).max()):
                raise PlmjaxError(
                    f"{name} of the ONNX graph differs from ours by {largest:.2g} in "
                    f"rows of {', '.join(map(str, sizes))} tokens; nothing is written.",
                    hint="This should not happen: please report the model's config.",
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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(config: EncoderConfig, task: Task | None, params, batch) -> list:
    """Returns our own outputs, in the order of the graph's."""
    if task is not None and task.head is not None:
        scores = task_heads.task_logits(config, task, params, batch, None)
        answers = task.head == "answers"
        return [scores[..., 0], scores[..., 1]] if answers else [scores]
    places = {"mask_positions": batch["positions"], "cls": batch["positions"][:, :1]}
    found = heads.outputs(config, params, batch | places)
    if found:
        by_head = [found[head] for head in _KINDS if head in found]
        return [x[:, 0] if x.shape[1:] == (1, 2) else x for x in by_head]
    states = heads.encode(config, params, batch, None)
    if task is None:
        return [states]
    return [states, heads.pooled(states, batch["segments"], task.pooling)]
