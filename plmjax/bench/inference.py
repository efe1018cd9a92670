"""Latency and throughput of an encoder by backend, and what a collection costs.

All backends compute the last hidden states of the same rows; only files of ONNX that
are given as they are have their heads.
"""

import itertools
import logging
import multiprocessing
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import DataError, Exit, PlmjaxError, machine
from plmjax.bench.backends import ARRAYS, FILES, Subject, limit, open_subject, timed
from plmjax.console import as_lines, as_table
from plmjax.data.inputs import read_inputs
from plmjax.embed.rows import FRAME, arrays, make_rows
from plmjax.evaluate.batches import Batch, rounded
from plmjax.files import write_json
from plmjax.interop import config_json
from plmjax.report import figures
from plmjax.tokenizers import Tokenizer

_ONNX = (("onnxruntime", "onnx"), "pip install 'plmjax[onnx]'")
_TORCH = (("torch", "transformers"), "pip install 'plmjax[peer]'")
# {backend: (packages, how to get them)}; bf16 is jax in bfloat16.
BACKENDS: dict[str, tuple[tuple[str, ...], str]] = {"jax": ((), ""), "bf16": ((), "")}
BACKENDS |= {"torch": _TORCH} | dict.fromkeys(FILES, _ONNX)
# Measured unless others are asked for; fp16 and static also, if their files are there.
_USUAL = ("jax", "onnx", "int8", "torch")
_LENGTH = 128  # of a row, by default
# {preset: its model, batches and lengths}, and the figures of those shapes that are
# known: (device, batch, length, seconds a batch). They are of embedding papers.
SHAPES = {"scibert": ("bert-base", "1,16,32", "128,256,512")}
_PUBLISHED = {
    "scibert": (("RTX 2080 Ti", 256, 512, 2.116), ("i7 CPU", 32, 512, 12.271))
}


def bench_inference(
    options: Namespace, log: Callable[[str], Any] = print
) -> dict[str, Any]:
    """Times each backend on each shape, in processes of their own.

    `options` are those of the command, with numbers in `batch`, `length` (None: the
    model's longest; by default 128) and `threads`.

    Raises:
      PlmjaxError: no such model or backend, a length that the model does not have,
        input without text, or a backend that is asked for and fails.
    """
    most = machine.cores()
    if max(options.threads, default=1) > most:
        raise PlmjaxError(
            f"--threads={max(options.threads)}: this process may use {most} cores."
        )
    before, results, left_out = machine.load_average(), [], {}
    with tempfile.TemporaryDirectory() as name:
        folder, subject = Path(name), open_subject(options.model)
        encoder = subject.encoder
        cases = _cases(options, subject)
        ready = _prepare(options, subject, folder, left_out)
        del subject  # its memory is for the backends
        for backend, threads in itertools.product(ready, options.threads or (most,)):
            try:
                for row in _measure(options, backend, threads, folder, cases):
                    results.append(row)
                    log(f"{backend}, {row['batch']} x {row['length']}: measured")
            except PlmjaxError as error:
                if options.backends:
                    raise
                left_out[backend] = error.message
    result: dict[str, Any] = {"model": options.model, "layers": encoder.layers}
    result |= {"width": encoder.width, "machine": machine.facts()}
    result |= {"load": [before, machine.load_average()], "results": results}
    result |= {"left_out": left_out, "published": []}
    for device, batch, length, seconds in _PUBLISHED.get(options.preset, ()):
        row = {"backend": device, "batch": batch, "length": length}
        row |= {"median_ms": 1e3 * seconds, "documents_per_second": batch / seconds}
        row["tokens_per_second"] = batch * length / seconds
        result["published"].append(row)
    if options.documents:
        result["documents"] = options.documents
        result["estimates"] = _estimates(options, results)
    return result


# --- the rows


def _cases(options: Namespace, subject: Subject) -> list[tuple[dict, int, list[dict]]]:
    """Returns the shape, the number of documents and the batches of each case."""
    cases, texts, longest = [], [], subject.encoder.max_length
    if options.input is not None:
        if subject.tokenizer is None:
            raise PlmjaxError(
                f"--input needs a tokenizer, and the preset {options.model} has none.",
                hint="Give a run or a Hugging Face folder as --model.",
            )
        texts = read_inputs(options.input, options.column).texts
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise DataError(f"--input={options.input} has only empty texts.")
        # At even distances: files are often sorted.
        index = np.linspace(0, len(texts) - 1, min(options.texts, len(texts)))
        texts = [texts[round(i)] for i in index]
    lengths = options.length or (min(_LENGTH, longest),)
    for length, batch in itertools.product(lengths, options.batch):
        length = longest if length is None else length
        if not 8 <= length <= longest:
            raise PlmjaxError(
                f"--length={length} must be from 8 to {longest}, for which "
                f"{options.model} has positions."
            )
        batches = [_random(subject.encoder.vocab_size, batch, length)]
        if texts and subject.tokenizer:
            batches = _own(subject.tokenizer, texts, batch, length)
        cases.append(({"batch": batch, "length": length}, len(texts) or batch, batches))
    return cases


def _random(pieces: int, batch: int, length: int) -> dict[str, np.ndarray]:
    """Returns a batch of full rows."""
    ones = np.ones((batch, length), np.int32)
    # The first pieces are special, and some models have more to do for them.
    tokens = np.random.default_rng(0).integers(min(200, pieces - 1), pieces, ones.shape)
    values = tokens.astype(np.int32), ones, ones.cumsum(1, dtype=np.int32) - 1, 0 * ones
    return dict(zip(ARRAYS, values, strict=True))


def _own(
    tokenizer: Tokenizer, texts: list[str], batch: int, length: int
) -> list[dict[str, np.ndarray]]:
    """Returns batches of the texts' chunks, the longest first."""
    rows = make_rows(tokenizer, texts, length, "window", length - FRAME)
    order = np.argsort(-rows.sizes, kind="stable")
    batches = []
    for some in np.split(order, range(batch, len(order), batch)):
        longest = rounded(int(rows.sizes[some[0]]), length)
        batches.append(arrays(rows, Batch(longest, len(some), some), tokenizer, 1))
    return batches


# --- the backends


def _prepare(
    options: Namespace, subject: Subject, folder: Path, left_out: dict[str, str]
) -> list[str]:
    """Writes the files of all backends; returns the backends that can run.

    Raises:
      PlmjaxError: one that is asked for cannot.
    """
    body = config_json.to_any_json(subject.encoder, (), 0, 2, 3)
    write_json(folder / "config.json", body)
    files, ready = folder / "onnx", []
    if subject.params is None:
        files.symlink_to((Path(options.model) / "onnx").absolute())
    else:
        files.mkdir()
    more = [b for b, f in FILES.items() if b not in _USUAL and (files / f).exists()]
    for backend in options.backends or (*_USUAL, *more):
        if backend not in BACKENDS:
            hint = f"Known: {', '.join(BACKENDS)}."
            raise PlmjaxError(f"--backends: there is no {backend!r}.", hint=hint)
        packages, how = BACKENDS[backend]
        reason = None
        if missing := [name for name in packages if find_spec(name) is None]:
            reason = f"{' and '.join(missing)} not installed: {how}"
        elif backend in FILES:
            reason = _write_onnx(subject, files, backend)
        elif subject.params is None:
            reason = "the folder has files of ONNX, but no model.safetensors"
        elif backend == "torch" and "only_plmjax" in body:
            reason = f"transformers has no such model: {body['only_plmjax']}"
        if reason is None:
            ready.append(backend)
        elif options.backends:
            raise PlmjaxError(f"--backends={backend}: {reason}")
        else:
            left_out[backend] = reason
    return ready


def _write_onnx(subject: Subject, files: Path, backend: str) -> str | None:
    """Writes the file of a backend, unless it is there; returns why it cannot be."""
    path, whole = files / FILES[backend], files / FILES["onnx"]
    if path.exists():
        return None
    if subject.params is None or backend not in _USUAL:
        return f"there is no onnx/{path.name}, which `plmjax compress` writes"
    from plmjax.onnx import graph
    from plmjax.onnx.export import save, write_int8

    if not whole.exists():
        try:
            made = graph.build(subject.encoder, {"encoder": subject.params["encoder"]})
        except PlmjaxError as error:
            return error.message
        save(made, whole)
    if backend == "int8":
        logging.disable()  # it advises to prepare the model, which changes nothing
        write_int8(whole, path)
        logging.disable(logging.NOTSET)
    return None


def _measure(
    options: Namespace, backend: str, threads: int, folder: Path, cases: Sequence
) -> Iterator[dict[str, Any]]:
    """Yields the figures of each case, as a backend's process measures them.

    Raises:
      PlmjaxError: the backend failed, or its process died.
    """
    what = backend, threads, options.model, folder
    how: dict = {"mp_context": multiprocessing.get_context("spawn")}
    how |= {"initializer": limit, "initargs": (threads, os.getpid())}
    with ProcessPoolExecutor(1, **how) as pool:
        for shape, documents, batches in cases:
            try:
                row = pool.submit(timed, what, batches, options.seconds).result()
            except Exception as error:  # each runtime has its own
                raise PlmjaxError(
                    f"the backend {backend} failed: {error}",
                    hint="Leave it out of --backends, or give a smaller --batch.",
                    code=Exit.MODEL,
                ) from error
            row["documents_per_second"] = row.pop("per_second") * documents
            yield {"backend": backend, "threads": threads} | shape | row


# --- what it costs, and how it is shown


def _estimates(options: Namespace, results: Sequence[dict]) -> list[dict]:
    """Returns the hours of all documents, and their price, by backend and length."""
    fastest = {}
    for row in sorted(results, key=lambda row: row["documents_per_second"]):
        shown = {key: row[key] for key in ("backend", "threads", "batch", "length")}
        shown["hours"] = options.documents / row["documents_per_second"] / 3600
        if options.price_per_hour is not None:
            shown["price"] = shown["hours"] * options.price_per_hour
        fastest[row["backend"], row["length"]] = shown
    return sorted(fastest.values(), key=lambda row: (row["length"], row["hours"]))


# {figure: its title and its format}.
_COLUMNS = {name: (name, "") for name in ("backend", "threads", "batch", "length")}
_COLUMNS |= {"median_ms": ("ms", ""), "p95_ms": ("95 % ms", "")}
_COLUMNS |= {"cpu_ms": ("CPU ms", ""), "documents_per_second": ("docs/s", "")}
_COLUMNS |= {"tokens_per_second": ("tokens/s", ",.0f"), "fill": ("full", ".0%")}
_COLUMNS |= {name: (name, "") for name in ("hours", "price")}
_COLUMNS |= {"spread": ("±", ".0%")}


def _cell(value: Any, how: str) -> str:
    if isinstance(value, float) and not how:  # three digits, or all whole ones
        how = ",.0f" if value >= 100 else ".3g"
    return format(value, how)


def _table(title: str, rows: Sequence[dict[str, Any]]):
    shown = {k: v for k, v in _COLUMNS.items() if any(k in row for row in rows)}
    cells = [
        [_cell(row[k], how) if k in row else "" for k, (_, how) in shown.items()]
        for row in rows
    ]
    return as_table(title, [title for title, _ in shown.values()], cells)


def as_text(result: dict[str, Any]) -> str:
    """Returns the result as tables."""
    before, after = result["load"]
    devices = {row["backend"]: row["device"] for row in result["results"]}
    on = ", ".join(f"{name} on {device}" for name, device in devices.items())
    title = f"{result['model']}: {result['layers']} layers x {result['width']}"
    parts = [
        machine.as_text(result["machine"]),
        f"{on}; load average {before} before, {after} after",
        _table(title, result["results"]),
        *(f"{name} is left out: {why}" for name, why in result["left_out"].items()),
    ]
    if result["published"]:
        parts.append(_table("Published by others", result["published"]))
    if "estimates" in result:
        title = f"{result['documents']:,} documents on one such machine"
        parts.append(_table(title, result["estimates"]))
    return as_lines(*parts)


def plot(result: dict[str, Any], path: Path) -> None:
    """Writes tokens a second by batch, a panel a length, as a PNG."""
    panels: dict[str, figures.Figure] = {}
    curves: dict[tuple, list] = {}
    for row in result["results"]:
        name = f"{row['backend']}, {row['threads']} threads"
        point = row["batch"], row["tokens_per_second"]
        curves.setdefault((row["length"], name), []).append(point)
    names = [*dict.fromkeys(name for _, name in curves)]
    for (length, name), curve in curves.items():
        title = f"{length:,} tokens a row"
        if title not in panels:
            panels[title] = figures.new("rows a batch", "tokens/s")
        colour = figures.COLOURS[names.index(name) % len(figures.COLOURS)]
        figures.add_curve(panels[title], curve, name, name, color=colour)
    figures.write_png(path, panels)
