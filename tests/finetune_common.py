"""A tiny pretrained folder, and labelled files whose labels can be learned."""

import json
from pathlib import Path

import numpy as np
from interop.cases import draw
from tests_common import WORDS, sentences
from tests_common import one_device as one_device

from plmjax import config as config_lib
from plmjax.finetune.config import FinetuneConfig
from plmjax.finetune.run import finetune
from plmjax.interop.huggingface import export_folder
from plmjax.models import EncoderConfig
from plmjax.tokenizers import TokenizerConfig, train_tokenizer
from plmjax.train import sharding

MESH = sharding.make_mesh
_SORTED = sorted(set(WORDS))[:40]
HALVES = _SORTED[:20], _SORTED[20:]


def make_folder(path: Path, **changes) -> Path:
    """Exports a BERT of one layer and random weights."""
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=160), sentences(100))
    sizes = {"layers": 1, "width": 16, "heads": 2, "ffn_width": 32}
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        max_positions=32,
        **sizes | {"dropout": 0.1} | changes,
    )
    export_folder(path, config, draw(config, ("head", "pair")), tokenizer, "A card.")
    return path


def records(kind: str, count: int, seed: int = 0) -> list[dict]:
    """Returns labelled examples of a kind, as lines of jsonl."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = random.choice(WORDS, size=6).tolist()
        found.append(_RECORDS[kind](words, random))
    return found


def _answer(words: list[str], random) -> dict:
    at = int(random.integers(len(words)))
    context = " ".join(words)
    start = len(" ".join(words[:at])) + (at > 0)
    answers = [{"text": words[at], "answer_start": start}] if at else []
    return {"question": words[at], "context": context, "answers": answers}


_RECORDS = {
    "classes": lambda words, random: {
        "text": " ".join(words),
        "label": "with" if "the" in words else "without",
    },
    "multilabel": lambda words, random: {
        "text": " ".join(words),
        "label": [name for name in ("the", "of") if name in words],
    },
    "regression": lambda words, random: {
        "text": " ".join(words),
        "label": len("".join(words)) / 10,
    },
    "tags": lambda words, random: {
        "tokens": words,
        "tags": ["B-LONG" if len(word) > 5 else "O" for word in words],
    },
    "answers": _answer,
    # Each word of the pair stands for one of the text, by a rule that can be learned.
    "embeddings": lambda words, random: {
        "text": " ".join(kept := random.permutation(HALVES[0])[:3].tolist()),
        "pair": " ".join(HALVES[1][HALVES[0].index(word)] for word in kept[::-1]),
    },
    "choices": lambda words, random: {
        "text": words[0],
        "choices": words[1 : 3 + int(random.integers(2))],
        "label": int(random.integers(2)),
    },
}


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config_of(folder: Path, data: Path, *overrides: str) -> FinetuneConfig:
    """Returns a small fine-tuning on data/train.jsonl and data/held_out.jsonl."""
    values = (
        f"model={folder}",
        f"task.train={data / 'train.jsonl'}",
        f"task.held_out={data / 'held_out.jsonl'}",
        "task.length=16",
        "train.batch=16",
        "train.steps=6",
        "train.evaluate_every_steps=2",
        "train.checkpoint_every_steps=2",
        "train.log_every_steps=1",
        "train.tensorboard=False",
        "train.optimizer.learning_rate=0.01",
        "baselines=False",
    )
    return config_lib.load(FinetuneConfig, None, [*values, *overrides])


def run(workdir: Path, folder: Path, data: Path, *overrides: str, said=None) -> dict:
    """Fine-tunes as `config_of` says; `said` gets the lines."""
    config = config_of(folder, data, *overrides)
    return finetune(config, workdir, (said if said is not None else []).append)
