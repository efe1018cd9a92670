"""Reads safetensors files of unknown origin: each header entry is checked before use.

The library rejects overlaps, holes and overflow, but accepts duplicate names, names
like "../x" and very long blank headers; those are rejected here. Nothing is allocated
before the header is checked against the size of the file.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from plmjax import Exit, PlmjaxError, counted

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Our file for a detector head that no class of transformers holds.
DETECTOR = "detector_head.safetensors"

# 391 tensors of a bert-large take 45 kB; the library would accept 100 MB.
_MAX_HEADER_BYTES = 10_000_000
_NAME = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")
_FLOATS = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
_INTEGERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_ITEM_BYTES = _FLOATS | _INTEGERS
_PICKLES = (".bin", ".pkl", ".pt", ".pth", ".ckpt")
# Weights of other programs, and safetensors files that are no complete model.
_OTHER_WEIGHTS = (".safetensors", ".h5", ".msgpack", ".gguf", ".onnx")
_DAMAGED = "Copy or download the file again."


class Tensor(NamedTuple):
    """A tensor that is not read yet: its file, its type in the file, and its shape.

    `array` is its content if the file was read as a whole (flax_file.py).
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    array: np.ndarray | None = None


def refusal(message: str, hint: str) -> PlmjaxError:
    """Returns the error for a model file that cannot be used."""
    return PlmjaxError(message, hint=hint, code=Exit.MODEL)


def load_json(path: Path, data: bytes) -> dict:
    """Returns the JSON object in `data`, the content of the file `path`.

    Raises:
      PlmjaxError: not UTF-8, not JSON, nested too deeply, a key twice, or no object.
    """

    def once(pairs):
        keys = dict(pairs)
        if len(keys) < len(pairs):
            names = [key for key, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"it holds the name {twice[:80]!r} twice")
        return keys

    def no_constant(text):
        raise ValueError(f"{text} is not a JSON number")

    try:
        body = json.loads(data, object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise refusal(f"{path}: broken JSON ({error}).", _DAMAGED) from error
    if not isinstance(body, dict):
        raise refusal(f"{path}: the JSON is not an object.", _DAMAGED)
    return body


def read_header(path: Path) -> dict[str, Tensor]:
    """Returns the tensors that a safetensors file holds, without reading them.

    Raises:
      PlmjaxError: not a safetensors file, a truncated one, or one with a bad header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if size >= 8 and length > _MAX_HEADER_BYTES:
            if head[:2] == b"PK" or head[:1] == b"\x80":
                raise refusal(
                    f"{path} is a renamed pickle, which can run code when it is read.",
                    "Ask its author for a safetensors file.",
                )
            raise refusal(
                f"{path}: its first bytes announce a header of {length:,} bytes; a "
                f"model's has at most {_MAX_HEADER_BYTES:,}.",
                _DAMAGED,
            )
        if size < 8 + length:
            raise _truncated(path, 8 + length, size)
        header = load_json(path, file.read(length))
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry) for name, entry in header.items()}
    in_order = sorted(tensors, key=lambda name: header[name]["data_offsets"])
    end = 0
    for name in in_order:
        start, stop = header[name]["data_offsets"]
        _, dtype, shape, _ = tensors[name]
        if start != end or stop - start != math.prod(shape) * _ITEM_BYTES[dtype]:
            raise refusal(
                f"{path}: the header is wrong about {name}: {list(shape)} of {dtype} "
                f"must start at byte {end:,}, but the header gives bytes {start:,} to "
                f"{stop:,}.",
                _DAMAGED,
            )
        end = stop
    if size < 8 + length + end:
        raise _truncated(path, 8 + length + end, size)
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise refusal(f"{path}: {error}.", _DAMAGED) from error
    return {name: tensors[name] for name in in_order}


def _truncated(path: Path, promised: int, size: int) -> PlmjaxError:
    return refusal(
        f"{path} is truncated: its header says {promised:,} bytes, the file has "
        f"{size:,}.",
        _DAMAGED,
    )


def _tensor(path: Path, name: str, entry: Any) -> Tensor:
    """Returns a header's entry after checks of its name, form and type."""
    if len(name) > 200 or not _NAME.fullmatch(name):
        raise refusal(
            f"{path} holds a tensor named {name[:80]!r}; no parameter has such a name.",
            "Do not use this file.",
        )

    def are_sizes(value):
        return isinstance(value, list) and all(
            type(n) is int and 0 <= n < 2**63 for n in value
        )

    fits = (
        isinstance(entry, dict)
        and set(entry) == {"dtype", "shape", "data_offsets"}
        and are_sizes(entry["shape"])
        and len(entry["shape"]) <= 8
        and are_sizes(entry["data_offsets"])
        and len(entry["data_offsets"]) == 2
    )
    if not fits:
        raise refusal(f"{path}: the header's entry of {name} is broken.", _DAMAGED)
    dtype = str(entry["dtype"])
    if dtype not in _ITEM_BYTES:
        raise refusal(
            f"{path}: {name} has the type {dtype[:20]!r}; weights are "
            f"{', '.join(_FLOATS)}.",
            "Save the model without quantisation.",
        )
    return Tensor(path, dtype, tuple(entry["shape"]))


def find_tensors(folder: Path, kind: str) -> dict[str, Tensor]:
    """Returns the tensors of a folder, from one model.safetensors or its shards.

    Those of our detector_head.safetensors are included. `kind` is transformers' class,
    which an error names.

    Raises:
      PlmjaxError: no tensors, only pickles, or files that contradict each other.
    """
    tensors = _model_tensors(folder, kind)
    if (folder / DETECTOR).is_file():
        detector = read_header(folder / DETECTOR)
        if both := sorted(tensors.keys() & detector.keys()):
            raise refusal(
                f"{folder / DETECTOR} holds {both[0]}, which the model's own file "
                "holds, too.",
                "Remove one of the two.",
            )
        tensors |= detector
    return tensors


def _model_tensors(folder: Path, kind: str) -> dict[str, Tensor]:
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _sharded(folder, folder / INDEX)
    names = sorted(path.name for path in folder.iterdir())
    # Not optimizer.pt or training_args.bin, which may be beside the weights.
    names.sort(key=lambda name: "model" not in name)
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise refusal(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run any "
            "code when it is read.",
            "If you trust its author, convert it where transformers and torch are "
            f'installed: python -c "from transformers import {kind} as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}')\"",
        )
    others = ", ".join(name for name in names if name.endswith(_OTHER_WEIGHTS))
    hint = "Give a folder that holds one."
    if "onnx" in names:
        hint = "`plmjax serve` reads its onnx/; else give the model it was made of."
    raise refusal(
        f"{folder} has no {WEIGHTS}{f', only {others}' if others else ''}.",
        hint,
    )


def _sharded(folder: Path, index: Path) -> dict[str, Tensor]:
    shard_of = load_json(index, index.read_bytes()).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise refusal(f"{index} has no weight_map.", _DAMAGED)
    for shard in shard_of.values():
        safe = isinstance(shard, str) and re.fullmatch(
            r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*\.safetensors", shard
        )
        if not safe:
            raise refusal(
                f"{index} names the shard {str(shard)[:80]!r}, which is not a "
                "safetensors file of this folder.",
                "Do not use this folder.",
            )
    tensors = {}
    for shard in sorted(set(shard_of.values())):
        if not (folder / shard).is_file():
            raise refusal(f"{folder} lacks the shard {shard}.", "Download it, too.")
        held = read_header(folder / shard)
        listed = {name for name, file in shard_of.items() if file == shard}
        if odd := sorted(listed ^ held.keys()):
            raise refusal(
                f"{folder / shard} and {index.name} disagree about {odd[0][:80]} "
                f"({counted(len(odd), 'tensor')} in all).",
                "Download the folder again.",
            )
        tensors |= held
    return tensors


def read_tensor(name: str, tensor: Tensor) -> np.ndarray:
    """Returns the tensor as float32.

    Raises:
      PlmjaxError: it holds integers, or a value that is not finite.
      SafetensorError: the file has changed since its header was read.
    """
    if tensor.dtype in _INTEGERS:
        raise refusal(
            f"{tensor.file}: {name} holds {tensor.dtype}, not floating-point weights.",
            "Save the model without quantisation.",
        )
    stored = tensor.array
    if stored is None:
        # A memory map would kill the process if the file shrank during the read.
        with safe_open(tensor.file, framework="numpy", backend="pread") as file:
            stored = file.get_tensor(name)  # numpy knows bfloat16 through jax
    with np.errstate(over="ignore"):
        array = stored.astype(np.float32)
    if not np.isfinite(array).all():
        bad = int(np.argmin(np.isfinite(array).ravel()))
        raise refusal(
            f"{tensor.file}: {name} holds {array.ravel()[bad]} at index {bad:,} of "
            f"{array.size:,}.",
            "Use an earlier checkpoint; this training had diverged.",
        )
    return array
