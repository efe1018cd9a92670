"""Tiny models of every kind with an endpoint, exported to ONNX."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from finetune_common import one_device
from interop.cases import PATTERNS, draw
from tests_common import WORDS, sentences

from plmjax.interop.huggingface import export_folder
from plmjax.models import PRESETS, EncoderConfig
from plmjax.models.task_heads import init_head
from plmjax.onnx.export import export
from plmjax.tasks.task import Task
from plmjax.tokenizers import TokenizerConfig, train_tokenizer

# {kind: its task, and what differs from a TaskConfig's defaults}.
TASKS: dict[str, tuple[Task, dict[str, Any]]] = {
    "classes": (Task("classes", ("no", "yes", "may be")), {"columns": {"text": "a"}}),
    "multilabel": (Task("multilabel", ("the", "of")), {"columns": {"pair": "b"}}),
    "regression": (Task("regression"), {"long": "truncate"}),
    "tags": (Task("tags", ("O", "B-X", "I-X")), {"rows": "packed"}),
    "answers": (Task("answers"), {"unanswerable": True}),
    "choices": (Task("choices"), {}),
    "embeddings": (Task("embeddings", pooling="max"), {"long": "truncate"}),
}
HEADS = {"fill": ("head",), "detect": ("detector",), "encoder": ()}
LENGTH = 16
SIZES = {"layers": 1, "width": 16, "heads": 2, "ffn_width": 32, "max_positions": 32}
# Others than BERT: BigBird's rows of 15 tokens and more depend on their padding.
FAMILIES = {"bigbird": {"block": 2, "random_blocks": 1}, "gpt2": {}}


def make(name: str, to: Path) -> tuple[Path, Path]:
    """Returns the folders of a model of random weights: for transformers, and ONNX.

    `name` is its kind, or kind-family.
    """
    kind, _, family = name.partition("-")
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=160), sentences(100))
    pattern = PRESETS[PATTERNS[family]] if family else EncoderConfig()
    sizes = SIZES | {"vocab_size": tokenizer.vocab_size} | FAMILIES.get(family, {})
    config = dataclasses.replace(pattern, **sizes)
    task, settings = TASKS.get(kind, (None, {}))
    if config.attention == "blocks":
        settings = {**settings, "buckets": (8,)}
    params, files = draw(config, HEADS.get(kind, ())), {}
    if task is not None:
        if task.head is not None:
            head, outputs = task.head, task.outputs
            shapes = jax.eval_shape(
                lambda key: init_head(config, head, outputs, key), jax.random.key(0)
            )
            random = np.random.default_rng(1)
            params = params | {
                head: jax.tree.map(
                    lambda x: random.normal(0, 1, x.shape).astype(np.float32), shapes
                )
            }
        labels = task.labels or None
        settings = {"kind": kind, "labels": labels, "length": LENGTH, **settings}
        files = {"plmjax_task.json": json.dumps(settings)}
    more = {"card": "A card.", "length": LENGTH, "task": task, "files": files}
    export_folder(to / "hub", config, params, tokenizer, **more)
    with one_device(), contextlib.redirect_stdout(None):
        export(to / "hub", to / "onnx")
    return to / "hub", to / "onnx"


def texts(count: int, seed: int = 0, most: int = 30) -> list[str]:
    """Returns texts of one word to `most`."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, most, size=count)
    return [" ".join(random.choice(WORDS, size=size)) for size in sizes]
