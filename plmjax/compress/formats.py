"""The formats of `plmjax compress`, by name."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import DataError, Exit, PlmjaxError, machine
from plmjax.compress.pruned import write_pruned
from plmjax.compress.score import Given
from plmjax.data.layout import encode_texts, lay_out, plan_rows
from plmjax.data.sources import SourceConfig, open_source
from plmjax.evaluate.model import longest_row

_ROWS = 200  # of calibration
_LEAST_ROWS = 16


# (what is given, a Hugging Face folder in float32, a path): writes the path, a folder,
# or a graph beside model.onnx, which is in float32.
Write = Callable[[Given, Path, Path], Any]


def _float16(given: Given, source: Path, to: Path) -> None:
    """Weights and states in float16; inputs and outputs keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    from plmjax.onnx.export import save

    graph = str(to.with_name("model.onnx"))  # read by it, as it may be large
    save(convert_float_to_float16(graph, keep_io_types=True), to)


def _int8(given: Given, source: Path, to: Path) -> None:
    """Weights in int8, states by the range that each product finds."""
    from plmjax.onnx.export import write_int8

    write_int8(to.with_name("model.onnx"), to)


def _int8_static(given: Given, source: Path, to: Path) -> None:
    """Weights in int8, states by the ranges that they have in the user's text."""
    from onnxruntime import quantization

    from plmjax.onnx.export import INT8, has_data

    class Reader(quantization.CalibrationDataReader):
        rows = calibration_rows(given)

        def get_next(self) -> Any:
            return next(self.rows, None)

    graph = to.with_name("model.onnx")
    quantization.quantize_static(
        graph,
        to,
        Reader(),
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
        use_external_data_format=has_data(graph),
        **INT8,
    )


def calibration_rows(given: Given) -> Iterator[dict[str, np.ndarray]]:
    """Returns rows [1, L] of the texts of --calibrate, as inputs of a graph.

    Raises:
      PlmjaxError: no texts, or too few for ranges that hold.
    """
    texts = given.options["calibrate"]
    if not texts:
        raise PlmjaxError(
            "int8-static needs text like that which the model will read.",
            hint="Give --calibrate=TEXTS, or take int8, which needs none.",
        )
    tokenizer, encoder = given.model.tokenizer, given.model.encoder
    documents = [*open_source(SourceConfig(paths=(texts,))).documents()]
    stream = encode_texts(tokenizer, documents)
    length = longest_row(given.name, given.model)
    plan = plan_rows([stream.sizes], tokenizer, length, length)
    if (count := len(plan.size)) < _LEAST_ROWS:
        raise DataError(
            f"--calibrate={texts} fills {count} rows; ranges need {_LEAST_ROWS}.",
            hint=f"Give more text; {_ROWS} rows are used.",
        )
    arrays = lay_out([stream], plan, length, tokenizer).arrays
    task = given.model.task
    shape = (1, 1, -1) if task is not None and task.head == "choices" else (1, -1)

    def rows() -> Iterator[dict[str, np.ndarray]]:
        for index in np.random.default_rng(0).permutation(count)[:_ROWS]:
            real = arrays["segments"][index] > 0
            tokens = arrays["tokens"][index][real].reshape(shape).astype(np.int64)
            row = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
            if encoder.token_types > 1:
                row["token_type_ids"] = np.zeros_like(tokens)
            yield row

    return rows()


def _folder_in(kind: str) -> Write:
    """Returns what writes a Hugging Face folder with weights of 16 bits."""

    def write(given: Given, source: Path, to: Path) -> None:
        from ml_dtypes import bfloat16
        from safetensors.numpy import load_file, save_file

        dtype = np.dtype(bfloat16 if kind == "bfloat16" else kind)
        shutil.copytree(source, to)
        for file in to.glob("*.safetensors"):
            tensors = load_file(file)
            with np.errstate(over="ignore"):
                half = {
                    name: x.astype(dtype) if x.dtype == np.float32 else x
                    for name, x in tensors.items()
                }
            if not all(np.isfinite(x.astype(np.float32)).all() for x in half.values()):
                raise PlmjaxError(
                    f"a weight is too large for {kind}.",
                    hint="Take hf-bfloat16.",
                    code=Exit.NUMERIC,
                )
            save_file(half, file, metadata={"format": "pt"})
            shutil.copymode(to / "config.json", file)
        body = json.loads((to / "config.json").read_text()) | {"dtype": kind}
        (to / "config.json").write_text(json.dumps(body, indent=2, sort_keys=True))

    return write


# Those with a file in onnx/.
GRAPHS: dict[str, tuple[str, Write]] = {
    "onnx": ("model.onnx", lambda given, source, to: None),
    "float16": ("model_fp16.onnx", _float16),
    "int8": ("model_quantized.onnx", _int8),
    "int8-static": ("model_static.onnx", _int8_static),
}
# Those that are a Hugging Face folder; a graph can be made of what they write.
FOLDERS: dict[str, Write] = {
    "hf-float16": _folder_in("float16"),
    "hf-bfloat16": _folder_in("bfloat16"),
    "prune": write_pruned,
}


def parse_formats(names: str) -> list[tuple[str, ...]]:
    """Returns the formats of --format, such as "onnx,prune+int8", each with its parts.

    Raises:
      PlmjaxError: one is not known, or a package of the extra `onnx` is missing.
    """
    several = [tuple(name.strip().split("+")) for name in names.split(",")]
    for *before, last in several:
        for part, known in (*((b, FOLDERS) for b in before), (last, GRAPHS | FOLDERS)):
            if part not in known:
                raise PlmjaxError(
                    f"--format={names}: {part!r} is not a format"
                    + (", or not of a folder." if part in GRAPHS else "."),
                    hint=f"The formats: {', '.join(known)}.",
                )
        for package in ("onnx", "onnxruntime") if last in GRAPHS else ():
            machine.package(package, "onnx")
    return several
