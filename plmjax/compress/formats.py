"""The formats of `plmjax compress`, by name."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import DataError, Exit, PlmjaxError, machine
from plmjax.data.layout import encode_texts, lay_out, plan_rows
from plmjax.data.sources import SourceConfig, open_source
from plmjax.evaluate.model import Model, longest_row

_ROWS = 200  # of calibration; more change no score by more than its noise
_LEAST_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Given:
    """What a format may read beside the model's folder.

    `name` is what the user calls the model, a run's workdir or a folder; `options` are
    those of the command by name: data, calibrate and those that belong to a format.
    """

    name: str
    model: Model
    options: Mapping[str, Any]


# (what is given, a Hugging Face folder in float32, a new folder): writes the folder, or
# a file into its onnx/, beside the graph in float32 that is there before.
Write = Callable[[Given, Path, Path], Any]


def _float16(given: Given, source: Path, to: Path) -> None:
    """Weights and sums in float16; inputs and outputs keep their types."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    del given, source
    graph = onnx.load(to / "onnx/model.onnx")
    half = convert_float_to_float16(graph, keep_io_types=True)
    onnx.save(half, to / "onnx/model_fp16.onnx")


def _int8(given: Given, source: Path, to: Path) -> None:
    """Weights in int8; what enters a product is rounded by the range of its row."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    del given, source
    quantize_dynamic(
        to / "onnx/model.onnx",
        to / "onnx/model_quantized.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gather"],
    )


def _int8_static(given: Given, source: Path, to: Path) -> None:
    """Weights in int8; ranges of what enters a product are those of the user's text."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantType,
        quantize_static,
    )

    del source
    rows = calibration_rows(given)

    class Reader(CalibrationDataReader):
        def get_next(self):
            return next(rows, None)

    quantize_static(
        to / "onnx/model.onnx",
        to / "onnx/model_static.onnx",
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gather"],
        extra_options={"MatMulConstBOnly": True},
    )


def calibration_rows(given: Given) -> Iterator[dict[str, np.ndarray]]:
    """Yields rows [1, L] of the texts of --calibrate, as inputs of a graph.

    Raises:
      PlmjaxError: no texts, or too few for ranges that hold.
    """
    texts = given.options["calibrate"]
    if not texts:
        raise PlmjaxError(
            "int8-static needs texts like those that the model will read.",
            hint="Give --calibrate=TEXTS, or take int8, which needs none.",
        )
    documents = [*open_source(SourceConfig(paths=(texts,))).documents()]
    tokenizer = given.model.tokenizer
    length = longest_row(given.name, given.model)
    stream = encode_texts(tokenizer, documents)
    plan = plan_rows([stream.sizes], tokenizer, length, length)
    arrays = lay_out([stream], plan, length, tokenizer).arrays
    if len(plan.size) < _LEAST_ROWS:
        raise DataError(
            f"--calibrate={texts} fills {len(plan.size)} rows; ranges need at least "
            f"{_LEAST_ROWS}.",
            hint="Give more text, some 200 sentences.",
        )
    chosen = np.random.default_rng(0).permutation(len(plan.size))[:_ROWS]
    several = given.model.encoder.token_types > 1

    def rows():
        for index in chosen:
            size = int((arrays["segments"][index] > 0).sum())
            tokens = arrays["tokens"][index, None, :size].astype(np.int64)
            more = {"token_type_ids": np.zeros_like(tokens)} if several else {}
            yield {
                "input_ids": tokens,
                "attention_mask": np.ones_like(tokens),
            } | more

    return rows()


def _folder_in(kind: str) -> Write:
    """Returns what writes a Hugging Face folder with weights of 16 bits."""

    def write(given: Given, source: Path, to: Path) -> None:
        from ml_dtypes import bfloat16
        from safetensors.numpy import load_file, save_file

        del given
        dtype = np.dtype({"bfloat16": bfloat16, "float16": np.float16}[kind])
        shutil.copytree(source, to, dirs_exist_ok=True)
        for file in to.glob("*.safetensors"):
            tensors = {
                name: x.astype(dtype) if x.dtype == np.float32 else x
                for name, x in load_file(file).items()
            }
            if not all(
                np.isfinite(x.astype(np.float32)).all() for x in tensors.values()
            ):
                raise PlmjaxError(
                    "a weight is too large for float16.",
                    hint="Take hf-bfloat16.",
                    code=Exit.NUMERIC,
                )
            save_file(tensors, file, metadata={"format": "pt"})
        config = to / "config.json"
        body = json.loads(config.read_text()) | {"dtype": kind, "torch_dtype": kind}
        config.write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")

    return write


# Those with a file in onnx/, in the order in which a target tries them.
GRAPHS: dict[str, tuple[str, Write]] = {
    "onnx": ("model.onnx", lambda given, source, to: None),
    "float16": ("model_fp16.onnx", _float16),
    "int8": ("model_quantized.onnx", _int8),
    "int8-static": ("model_static.onnx", _int8_static),
}
# What a target tries, in this order.
TRIED = ["onnx", "float16", "int8", "int8-static"]
# Those that are a Hugging Face folder; a graph can be made of what they write.
FOLDERS: dict[str, Write] = {
    "hf-float16": _folder_in("float16"),
    "hf-bfloat16": _folder_in("bfloat16"),
}


def parse_formats(names: str) -> list[tuple[str, ...]]:
    """Returns the formats of --format, such as "onnx,prune+int8", each with its parts.

    Raises:
      PlmjaxError: one is not known, nothing can be made of a graph, or a package of
        the extra `onnx` is missing.
    """
    several = [tuple(name.strip().split("+")) for name in names.split(",")]
    for parts in several:
        for index, part in enumerate(parts):
            if part not in GRAPHS | FOLDERS:
                raise PlmjaxError(
                    f"--format: there is no format {part!r}.",
                    hint=f"The formats: {', '.join([*GRAPHS, *FOLDERS])}.",
                )
            if part in GRAPHS and parts[index + 1 :]:
                raise PlmjaxError(
                    f"--format={'+'.join(parts)}: {part} writes a graph, of which "
                    "nothing else can be made.",
                    hint=f"Let {part} be the last.",
                )
        if parts[-1] in GRAPHS:
            check_packages()
    return several


def check_packages() -> None:
    """Raises PlmjaxError if a package of the extra `onnx` is missing."""
    for name in ("onnx", "onnxruntime"):
        machine.package(name, "onnx")
