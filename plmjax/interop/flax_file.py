"""Reads flax_model.msgpack, the weights of transformers' Flax classes: data, no code.

Names and layouts become those of the PyTorch class, so that all later checks are the
same as for safetensors.
"""

import math
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from plmjax.interop.safetensors_file import Tensor, refusal

FLAX = "flax_model.msgpack"

_ARRAY = 1  # the code by which flax.serialization marks an array
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_WEIGHTS = ("kernel", "scale", "embedding")


def read_flax(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file by their PyTorch names.

    Raises:
      PlmjaxError: the file is truncated, or holds anything but named arrays.
    """
    try:
        # No list or text can be longer than the file.
        tree = msgpack.unpackb(
            path.read_bytes(), ext_hook=_array, object_pairs_hook=_block
        )
        if not isinstance(tree, dict):
            raise ValueError("it is no block of arrays")
        return _block([*_tensors(path, tree.get("params", tree), ())])
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        hint = "Copy or download the file again."
        raise refusal(f"{path} is damaged: {error}.", hint) from error


def _block(pairs: list) -> dict:
    block = dict(pairs)
    if len(block) < len(pairs) or not all(isinstance(name, str) for name in block):
        raise ValueError("it holds a name twice, or one that is no text")
    return block


def _array(code: int, data: bytes) -> np.ndarray:
    """Returns the array of an extension: its shape, its dtype's name and its bytes."""
    if code != _ARRAY:
        raise ValueError(f"it holds an extension {code}, which is no array")
    shape, dtype, values = msgpack.unpackb(data)
    if dtype not in _DTYPES:
        raise ValueError(f"it holds an array of {str(dtype)[:20]}; weights are floats")
    item = np.dtype(dtype)
    if math.prod(shape) * item.itemsize != len(values) or min(shape, default=0) < 0:
        raise ValueError(f"an array of {shape} has {len(values):,} bytes")
    return np.frombuffer(values, item).reshape(shape)


def _tensors(path: Path, tree: Any, scope: tuple[str, ...]):
    """Yields (PyTorch name, tensor) of the arrays in nested blocks."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _tensors(path, value, (*scope, name))
            continue
        where = "/".join((*scope, name))
        if not isinstance(value, np.ndarray):
            raise ValueError(f"{where[:80]} is no array")
        last = "weight" if name in _WEIGHTS else name
        value = value.T if name == "kernel" else value
        dtype = _DTYPES[value.dtype.name]
        yield ".".join((*scope, last)), Tensor(path, dtype, value.shape, value)
