"""Writes the inputs of both sides: tokens, initial weights, masked held-out rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ours
from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.data.loader import held_out_batches
from plmjax.data.prepare import prepare
from plmjax.data.rows import Plan, gather, load_plan
from plmjax.data.sources import Source, open_source
from plmjax.data.store import Split, Store
from plmjax.evaluate.examples import masked
from plmjax.files import write_json
from plmjax.interop.huggingface import export_folder
from plmjax.models import EncoderConfig, heads
from plmjax.models.config import PRESETS, ModelConfig, resolve
from plmjax.pretrain.build import PretrainSetup
from plmjax.pretrain.start import fresh_state
from plmjax.tokenizers import Tokenizer, TokenizerConfig, get_tokenizer
from plmjax.workdir import RunConfig, Workdir
from sides import PeerConfig, Spec

BERT_VOCABULARY = 30522
_HELD_OUT_BATCHES = 8


def make_case(
    config: PeerConfig, folder: Path, log: Callable[[str], Any]
) -> dict[str, Any]:
    """Writes tokens, initial weights and masked held-out rows; returns their sizes."""
    source = {"kind": "docstrings"}
    if config.paths is not None:
        source = {"kind": "text", "paths": config.paths}
    wanted = config.vocab_size or (None if config.vocab else BERT_VOCABULARY)
    values: dict[str, Any] = {
        "name": "bench",
        "data": {"source": source, "length": config.length},
        "model": {"preset": config.name, "vocab_size": wanted},
        "train": {"batch": config.batch},
        "objective": {"kind": config.objective},
    }
    if config.objective == "distill":
        # peer.py measures speed; it is enough that both sides start with equal weights.
        values["objective"] |= {"teacher": str(folder / "teacher"), "start": "fresh"}
        values["model"] |= _student(PRESETS[config.name])
    built, workdir = config_lib.load(RunConfig, base=values), Workdir(folder)
    values = config_lib.to_dict(built)  # all keys, because both sides read them
    opened = open_source(built.data.source)
    tokenizer = _vocabulary(config, opened, wanted, log)
    tokenizer.save(folder / "tokenizer")
    percent = built.data.held_out_percent
    store = prepare(opened, tokenizer, folder / "data", percent, log=log)
    write_json(folder / "run.json", {"store": store.key})
    write_json(folder / "config.json", values)
    if config.objective == "distill":
        _write_teacher(config, built, tokenizer, folder)
    setup = ours.open_run(Spec(str(folder), "float32", config.batch, config.length, 1))
    with jax.set_mesh(setup.mesh):
        params = jax.device_get(fresh_state(setup, log).params)
    models, weights = setup.objective.models, folder / "weights"
    for name, model in models.items():
        to = weights if len(models) == 1 else weights / name
        _export(to, model.encoder, model.extract(params), tokenizer, config.length)
    # From here on, both sides read their weights from that folder.
    values["train"]["init_from"] = str(weights)
    write_json(workdir / "config.json", values)
    _write_held_out(setup, config, folder)
    fill = {"plmjax": round(setup.loader.phases[0].plan.fill, 4)}
    for padding in config.paddings:
        fill[padding] = round(_write_rows(store, tokenizer, config, padding, folder), 4)
    return {
        "source": "docstrings of the installed packages"
        if config.paths is None
        else config.paths,
        "documents": store.split("train").documents,
        "tokens": store.split("train").tokens,
        "pieces": tokenizer.vocab_size,
        "vocab_size": setup.encoder.vocab_size,
        "objective": config.objective,
        "preset": config.name,
        "models": _sizes(setup),
        "dropout": setup.encoder.dropout,
        "activation": "GELU by erf on both sides (ours within 1.5e-7 of it)",
        "length": config.length,
        "batch": config.batch,
        "full": fill,
    }


def _student(teacher: EncoderConfig) -> dict[str, Any]:
    """Returns the keys of a DistilBERT student: half the layers, no token types."""
    layers = max(1, teacher.layers // 2)
    return {"family": "distilbert", "layers": layers, "token_types": 0}


def _write_teacher(
    config: PeerConfig, built: RunConfig, tokenizer: Tokenizer, folder: Path
) -> None:
    """Writes a teacher with random weights."""
    block = ModelConfig(preset=config.name, vocab_size=built.model.vocab_size)
    encoder = resolve(block, tokenizer.vocab_size, tokenizer.pad_id)
    names = ("tokens", "segments", "positions", "types")
    batch = {name: jnp.zeros((1, config.length), jnp.int32) for name in names}
    params = heads.init_model(encoder, jax.random.key(1), batch, ("head",))
    _export(folder / "teacher", encoder, params, tokenizer, config.length)


def _export(
    to: Path, encoder: EncoderConfig, params: dict, tokenizer: Tokenizer, length: int
) -> None:
    card = "# Initial weights of a benchmark\n"
    export_folder(to, encoder, jax.device_get(params), tokenizer, card, length)


def _sizes(setup: PretrainSetup) -> dict[str, str]:
    """Returns the layers and width of each model as text."""
    encoders = {name: model.encoder for name, model in setup.objective.models.items()}
    if setup.teacher is not None:
        encoders = {"student": setup.encoder, "teacher": setup.teacher.encoder}
    return {
        name: f"{encoder.layers} layers x {encoder.width}"
        for name, encoder in encoders.items()
    }


def _vocabulary(
    config: PeerConfig, source: Source, wanted: int | None, log: Callable[[str], Any]
) -> Tokenizer:
    """Returns the tokenizer, with fewer pieces if the text does not yield `wanted`.

    The model's table keeps the wanted size, because its matmuls determine the speed.
    """
    if config.vocab is not None:
        return get_tokenizer(TokenizerConfig(path=config.vocab), ())
    texts, size = list(source.documents()), wanted or BERT_VOCABULARY
    while True:
        try:
            # For a benchmark, pieces that occur once are good enough.
            tokenizer = get_tokenizer(TokenizerConfig("wordpiece", size, 1), texts)
        except PlmjaxError as error:
            if error.code != Exit.DATA or size < 128:
                raise
            size = size * 3 // 4
            continue
        if tokenizer.vocab_size != wanted:
            log(
                f"The text does not yield {wanted:,} pieces; it is cut into "
                f"{tokenizer.vocab_size:,}. The model's table keeps {wanted:,} rows."
            )
        return tokenizer


def _write_held_out(setup: PretrainSetup, config: PeerConfig, folder: Path) -> None:
    """Writes a few masked batches of one document per row, for both sides."""
    split = setup.store.split("held_out")
    plan = load_plan(split, config.length, False, setup.store.directory)
    rows = min(plan.rows, _HELD_OUT_BATCHES * config.batch)
    batches = held_out_batches(split, plan, setup.tokenizer, config.batch, rows)
    done = [masked(setup.objective, batch) for batch in batches]
    names = done[0]
    stacked: Any = {name: np.stack([batch[name] for batch in done]) for name in names}
    if config.objective == "electra":
        # These replace the samples, which depend on each side's random generator.
        rng, shape = np.random.default_rng(0), stacked["labels"].shape
        drawn = rng.integers(setup.encoder.vocab_size, size=shape).astype(np.int32)
        right = rng.random(shape) < 0.2
        stacked["drawn"] = np.where(right, stacked["labels"], drawn)
    np.savez(folder / "held_out.npz", **stacked)


def _write_rows(
    store: Store, tokenizer: Tokenizer, config: PeerConfig, padding: str, folder: Path
) -> float:
    """Writes the peer's rows in the format of `datasets`; returns their fill rate.

    The columns are those of run_mlm.py. prepare.py proves that its pipeline and
    plmjax's give the same ids; here only the result is needed.
    """
    import datasets

    make = {"group_texts": _group_texts, "line_by_line": _line_by_line}[padding]
    tokens, real = make(store.split("train"), tokenizer, config.length)
    special = ~real | np.isin(tokens, [tokenizer.cls_id, tokenizer.sep_id])
    columns = {
        "input_ids": tokens.astype(np.int32),
        "token_type_ids": np.zeros(tokens.shape, np.int8),
        "attention_mask": real.astype(np.int8),
        "special_tokens_mask": special.astype(np.int8),
    }
    kinds = {
        name: datasets.List(datasets.Value(array.dtype.name))
        for name, array in columns.items()
    }
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    table.save_to_disk(str(folder / padding))
    np.save(folder / f"{padding}.npy", (~special).sum(axis=1))
    return float(real.mean())


def _group_texts(split: Split, tokenizer: Tokenizer, length: int):
    """Returns all documents joined, each with [CLS] and [SEP], cut into full rows."""
    offsets = np.asarray(split.offsets)
    documents = np.arange(len(offsets) - 1)
    stream = np.empty(offsets[-1] + 2 * len(documents), np.int32)
    shift = np.repeat(2 * documents + 1, np.diff(offsets))
    index = np.arange(offsets[-1])
    stream[index + shift] = split.read(index)[0]
    stream[offsets[:-1] + 2 * documents] = tokenizer.cls_id
    stream[offsets[1:] + 2 * documents + 1] = tokenizer.sep_id
    rows = stream[: len(stream) // length * length].reshape(-1, length)
    return rows, np.ones(rows.shape, bool)


def _line_by_line(split: Split, tokenizer: Tokenizer, length: int):
    """Returns one document per row, cut or padded to the length."""
    offsets = np.asarray(split.offsets)
    size = np.minimum(np.diff(offsets), length - 2).astype(np.int32)
    plan = Plan(length, np.arange(len(size) + 1), offsets[:-1], size)
    ids = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
    arrays = gather(split, plan, np.arange(plan.rows), *ids)
    return arrays["tokens"], arrays["segments"] > 0
