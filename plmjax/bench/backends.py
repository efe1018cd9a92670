"""The backends of `plmjax bench inference`, each measured in a process of its own.

Thread pools of two runtimes in one process would compete, and their sizes are fixed at
the start.

Legend: B rows, L tokens a row, H width.
"""

import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import default_rng

from plmjax import PlmjaxError, children
from plmjax.config import nearest
from plmjax.evaluate.latency import measure
from plmjax.tokenizers import Tokenizer

# Files of ONNX, as `plmjax compress` writes them.
FILES = {
    "onnx": "model.onnx",
    "fp16": "model_fp16.onnx",
    "int8": "model_quantized.onnx",
    "static": "model_static.onnx",
}
ARRAYS = ("tokens", "segments", "positions", "types")
Batch = Mapping[str, np.ndarray]
# (a batch) -> a call that computes its states, from ids to numbers on the host.
Prepare = Callable[[Batch], Callable[[], Any]]


class Subject(NamedTuple):
    """The model: an EncoderConfig; `params` None: a folder of ONNX files alone."""

    encoder: Any
    params: dict | None
    tokenizer: Tokenizer | None


def open_subject(name: str) -> Subject:
    """Opens a run, a folder, or a preset with random weights.

    Raises:
      PlmjaxError: it is none of them.
    """
    import jax

    from plmjax.evaluate.model import open_models
    from plmjax.interop import config_json
    from plmjax.interop.safetensors_file import load_json
    from plmjax.models import PRESETS, heads

    path = Path(name)
    if (path / "onnx").is_dir() and not (path / "model.safetensors").exists():
        file = path / "config.json"
        encoder, _, _ = config_json.from_json(load_json(file, file.read_bytes()), name)
        return Subject(encoder, None, Tokenizer.load(path))
    if path.exists() or len(path.parts) > 1:
        model = next(iter(open_models(name).values()))
        return Subject(model.encoder, model.params, model.tokenizer)
    if name not in PRESETS:
        raise PlmjaxError(
            f"--model={name} is neither a folder nor a preset.",
            hint=nearest(name, [*PRESETS]),
        )
    batch = dict.fromkeys(ARRAYS, jax.ShapeDtypeStruct((1, 8), "int32"))
    make = functools.partial(heads.init_model, PRESETS[name], heads=())
    shapes, random = jax.eval_shape(make, jax.random.key(0), batch), default_rng(0)
    draw = functools.partial(random.standard_normal, dtype=np.float32)
    params = jax.tree.map(lambda x: 0.02 * draw(x.shape), shapes)
    return Subject(PRESETS[name], params, None)


def _jax(name: str, dtype: str) -> tuple[Prepare, str]:
    import jax

    from plmjax.models import Platform, heads
    from plmjax.models.global_tokens import with_room

    subject, device = open_subject(name), jax.local_devices()[0]
    encoder = dataclasses.replace(subject.encoder, dtype=dtype, remat=False)
    params, platform = jax.device_put(subject.params, device), Platform.of([device])
    # By default, GPUs and TPUs round float32 to ten bits or fewer.
    jax.config.update("jax_default_matmul_precision", "highest")

    @functools.partial(jax.jit, static_argnums=0)
    def encode(encoder, params, batch) -> jax.Array:
        return heads.encode(encoder, params, batch, None, platform).astype("float32")

    def prepare(batch: Batch) -> Callable[[], Any]:
        fitting = with_room(encoder, batch["tokens"], batch["segments"])
        return lambda: np.asarray(encode(fitting, params, batch))

    return prepare, device.device_kind


def _onnx(path: Path, threads: int) -> tuple[Prepare, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    cpu = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, cpu)

    def prepare(batch: Batch) -> Callable[[], Any]:
        given = _ids(batch)
        feed = {each.name: given[each.name] for each in session.get_inputs()}
        return lambda: session.run(None, feed)

    return prepare, "cpu"


def _torch(folder: Path, threads: int) -> tuple[Prepare, str]:
    import torch
    from transformers import AutoConfig, AutoModel

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Fresh weights: the time does not depend on their values.
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder)).eval().to(device)

    def prepare(batch: Batch) -> Callable[[], Any]:
        ids, mask, types = map(torch.from_numpy, _ids(batch).values())
        given = {"input_ids": ids, "attention_mask": mask}
        given |= (
            {"token_type_ids": types}
            if hasattr(model.config, "type_vocab_size")
            else {}
        )

        @torch.inference_mode()
        def call() -> np.ndarray:
            found = model(**{name: x.to(device) for name, x in given.items()})
            return found.last_hidden_state.cpu().numpy()

        return call

    return prepare, device


def _ids(batch: Batch) -> dict[str, np.ndarray]:
    """Returns the inputs of transformers [B, L], without needless padding."""
    longest = int((batch["segments"] > 0).sum(1).max())
    names = {"input_ids": "tokens", "attention_mask": "segments"}
    names |= {"token_type_ids": "types"}
    return {k: batch[v][:, :longest].astype(np.int64) for k, v in names.items()}


def limit(threads: int, parent: int) -> None:
    """Begins the process of a backend, before any runtime counts the cores."""
    children.die_with(parent, signal.SIGKILL)
    os.dup2(2, 1)  # libraries print to stdout, which is for the result
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    names = "NPROC", "OMP_NUM_THREADS"
    os.environ |= dict.fromkeys(names, str(threads)) | {"JAX_NUM_CPU_DEVICES": "1"}


@functools.cache
def open_backend(
    backend: str, threads: int, model: str, folder: Path
) -> tuple[Prepare, str]:
    """Returns what prepares batches, and the device."""
    if backend in FILES:
        return _onnx(folder / "onnx" / FILES[backend], threads)
    if backend == "torch":
        return _torch(folder, threads)
    return _jax(model, "bfloat16" if backend == "bf16" else "float32")


def timed(backend: tuple, batches: Sequence[Batch], seconds: float) -> dict[str, Any]:
    """Returns the figures of some batches, by the arguments of `open_backend`."""
    prepare, device = open_backend(*backend)
    latency = measure([*map(prepare, batches)], seconds=seconds)
    tokens = sum(int((batch["segments"] > 0).sum()) for batch in batches)
    pads = backend[0] in ("jax", "bf16")
    read = [b["tokens"] if pads else _ids(b)["input_ids"] for b in batches]
    fill = tokens / sum(ids.size for ids in read)
    return dataclasses.asdict(latency) | {
        "tokens_per_second": latency.per_second * tokens,
        "fill": fill,
        "device": device,
    }
