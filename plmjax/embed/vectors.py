"""Computes vectors of rows on the device, and combines them to one a text.

Legend: B rows, L tokens a row, H width, N texts or words, R rows of texts, T = B * L.
"""

import contextlib
import dataclasses
import functools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plmjax import PlmjaxError
from plmjax.embed.rows import (
    FRAME,
    Rows,
    Words,
    arrays,
    make_rows,
)
from plmjax.evaluate.batches import Batch, make_batches
from plmjax.evaluate.model import Model
from plmjax.models import EncoderConfig, Platform, heads
from plmjax.models.global_tokens import with_room
from plmjax.train import sharding
from plmjax.train.config import MeshConfig

_BLOCK = 4096  # vectors that are finished at once, and a row group of parquet


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """How texts are embedded; `resolved` replaces None."""

    # Over all tokens of a text, [CLS] and [SEP] too, as sentence-transformers does.
    # None: the pooling that a model of embeddings was trained with, else mean.
    pooling: Literal["mean", "cls", "max"] | None = None
    # A vector for each word instead of each text: the mean of its pieces.
    words: bool = False
    # 0: the embeddings; -1: the last layer, as in a list of layers + 1.
    layer: int = -1
    normalize: bool = False  # to length 1
    length: int | None = None  # tokens a row, [CLS] and [SEP] included
    # A text longer than a row becomes several windows, or is cut to its beginning.
    long: Literal["window", "truncate"] = "window"
    stride: int | None = None  # tokens from a window's beginning to the next's
    # At once, padding included. None: 1,024 on CPUs, which fit into their caches, and
    # 16,384 elsewhere.
    batch_tokens: int | None = None
    # bfloat16 has 8 significant bits, and accelerators compute it fast.
    dtype: Literal["float32", "bfloat16"] = "float32"

    def resolved(self, model: Model, longest: int) -> "EmbedConfig":
        """Returns the config for a model whose rows are at most `longest` by default.

        The default stride is the window's tokens, so that each token counts once; for
        words half of it, so that each has context.

        Raises:
          PlmjaxError: the model does not support a value.
        """
        encoder = model.encoder
        length = longest if self.length is None else self.length
        if not 8 <= length <= encoder.max_length:
            raise PlmjaxError(
                f"--length={length} must be from 8 to {encoder.max_length}, for which "
                "the model has positions.",
                hint=f"Leave it out for {longest}.",
            )
        if not -encoder.layers - 1 <= self.layer <= encoder.layers:
            raise PlmjaxError(
                f"--layer={self.layer}: {model.name} has layers 1 to {encoder.layers}.",
                hint="0 is the embeddings; -1 is the last layer, -2 that before it.",
            )
        room = length - FRAME
        usual = max(room // 2, 1) if self.words else room
        stride = usual if self.stride is None else self.stride
        if not 1 <= stride <= room:
            raise PlmjaxError(
                f"--stride={stride} must be from 1 to {room}, the tokens of a window, "
                "or some would be left out.",
                hint=f"Leave it out for {usual}.",
            )
        on_cpu = jax.default_backend() == "cpu"
        trained = model.task.pooling if model.task is not None else "mean"
        pooling = self.pooling or trained
        if encoder.causal and pooling == "cls" and not self.words:
            raise PlmjaxError(
                "--pooling=cls: the model reads one side only, so the first token "
                "knows nothing of the text.",
                hint="Give mean or max.",
            )
        layer = self.layer % (encoder.layers + 1)
        return dataclasses.replace(
            self,
            length=length,
            stride=stride,
            layer=layer,
            pooling=pooling,
            batch_tokens=self.batch_tokens or (1024 if on_cpu else 16384),
        )


@dataclasses.dataclass(frozen=True)
class Work:
    """Rows and their batches; `shape` [N, H] is that of all vectors from the batches.

    N counts words, or rows.
    """

    rows: Rows
    batches: list[Batch]
    shape: tuple[int, int]

    @property
    def final_shape(self) -> tuple[int, int]:
        """The shape of the final vectors, [N, H]: N counts words, or texts."""
        count = self.shape[0] if self.rows.words is not None else self.rows.texts
        return count, self.shape[1]

    @property
    def windowed(self) -> bool:
        """True if texts have several rows, whose vectors are combined to one."""
        return self.rows.words is None and len(self.rows) > self.rows.texts


def plan_work(model: Model, texts: Sequence[str], config: EmbedConfig) -> Work:
    """Splits texts into rows and batches; `config` must be resolved."""
    assert config.length and config.stride and config.batch_tokens
    long = (config.length, config.long, config.stride)
    rows = make_rows(model.tokenizer, texts, *long, config.words)
    batches = make_batches(rows.sizes, config.length, config.batch_tokens)
    count = len(rows) if rows.words is None else len(rows.words)
    return Work(rows, batches, (count, model.encoder.width))


class Step(NamedTuple):
    """A batch's vectors [n, H] and their indices; `done` batches are finished."""

    done: int
    batch: Batch
    indices: np.ndarray
    vectors: np.ndarray
    compile_seconds: float


def compute(
    model: Model, config: EmbedConfig, work: Work, begin: int = 0
) -> Iterator[Step]:
    """Yields the vectors of each batch, in order, while later ones are computed."""
    encoder = dataclasses.replace(model.encoder, dtype=config.dtype, remat=False)
    mesh = sharding.make_mesh(MeshConfig())
    platform = Platform.of(mesh.devices.flat)
    params = {"encoder": model.params["encoder"]}
    params = jax.device_put(params, sharding.replicated(mesh))
    pooling = None if config.words else config.pooling
    finish = functools.partial(_of_rows, config.normalize and not work.windowed)
    if work.rows.words is not None:
        by_row = _ByRow.of(work.rows.words)
        finish = functools.partial(_of_words, config.normalize, by_row)

    def start(batch: Batch) -> jax.Array:
        """Returns the vectors, which the device still computes."""
        host_batch = arrays(work.rows, batch, model.tokenizer, mesh.size)
        fitting = with_room(encoder, host_batch["tokens"], host_batch["segments"])
        # By default, GPUs and TPUs round float32 to ten bits or fewer.
        exact = "highest" if config.dtype == "float32" else None
        with _memory(batch), jax.default_matmul_precision(exact):
            return _states(
                fitting,
                platform,
                config.layer,
                pooling,
                params=params,
                batch=sharding.put_rows(mesh, host_batch),
            )

    # XLA:CPU computes the programs of a thread in turn, and leaves an eighth of two
    # cores idle. Several devices must get their programs in the same order.
    workers = 2 if platform.kind == "cpu" and platform.one_device else 1
    shapes: set[tuple[int, int]] = set()
    pending: deque[tuple[int, Batch, Future[jax.Array], float]] = deque()

    def oldest() -> Step:
        number, batch, states, took = pending.popleft()
        return finish(number, batch, states.result(), took)

    with ThreadPoolExecutor(workers) as pool:
        for number, batch in enumerate(work.batches[begin:], begin + 1):
            began = time.monotonic()
            states = pool.submit(start, batch)
            new = (batch.size, batch.length) not in shapes
            shapes.add((batch.size, batch.length))
            if new:  # a second thread would compile it again
                wait([states])
            took = time.monotonic() - began if new else 0.0
            pending.append((number, batch, states, took))
            if len(pending) > workers:
                yield oldest()
        while pending:
            yield oldest()


@contextlib.contextmanager
def _memory(batch: Batch) -> Iterator[None]:
    """Raises PlmjaxError if the batch does not fit into the device's memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise PlmjaxError(
            f"the device has no memory for {batch.size:,} rows of {batch.length:,} "
            "tokens.",
            hint="Give a smaller --batch_tokens.",
        ) from error


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _states(
    encoder: EncoderConfig,
    platform: Platform,
    layer: int,
    pooling: str | None,
    params,
    batch,
) -> jax.Array:
    """Returns float32 vectors of rows [B, H]; without pooling, of tokens [B, L, H]."""
    x_BLH = heads.encode_to(encoder, params, batch, layer, platform)
    if pooling is None:
        return x_BLH.astype(jnp.float32)
    return heads.pooled(x_BLH, batch["segments"], pooling)


def _of_rows(
    normalize: bool, number: int, batch: Batch, states: jax.Array, took: float
) -> Step:
    with _memory(batch):
        vectors_BH = np.asarray(states)[: len(batch.rows)]
    vectors_BH = _unit(vectors_BH) if normalize else vectors_BH
    return Step(number, batch, batch.rows, vectors_BH, took)


class _ByRow(NamedTuple):
    """Words sorted by row: the permutation `order` [N], and the sorted `row` [N]."""

    words: Words
    order: np.ndarray
    row: np.ndarray

    @classmethod
    def of(cls, words: Words) -> "_ByRow":
        order = np.argsort(words.row, kind="stable")
        return cls(words, order, words.row[order])


def _of_words(
    normalize: bool,
    by_row: _ByRow,
    number: int,
    batch: Batch,
    states: jax.Array,
    took: float,
) -> Step:
    """Returns the means of each word's pieces."""
    begin, end = (np.searchsorted(by_row.row, batch.rows, s) for s in ("left", "right"))
    indices = np.concatenate(
        [np.empty(0, int)]
        + [by_row.order[b:e] for b, e in zip(begin, end, strict=True)]
    )
    length, words = batch.length, by_row.words
    row = np.searchsorted(batch.rows, words.row[indices])
    first, count = row * length + words.first[indices], words.count[indices]
    with _memory(batch):
        x_TH = np.asarray(states).reshape(-1, states.shape[-1])
    sums_NH = x_TH[first]
    for piece in range(1, int(count.max(initial=1))):
        more = np.flatnonzero(count > piece)
        sums_NH[more] += x_TH[first[more] + piece]
    vectors_NH = sums_NH / count[:, None].astype(np.float32)
    order = np.argsort(indices)
    vectors_NH = _unit(vectors_NH) if normalize else vectors_NH
    return Step(number, batch, indices[order], vectors_NH[order], took)


def _unit(vectors_NH: np.ndarray) -> np.ndarray:
    norm_N1 = np.linalg.norm(vectors_NH, axis=1, keepdims=True)
    return vectors_NH / np.maximum(norm_N1, np.float32(1e-12))


# --- from vectors of rows to vectors of texts, and their columns


def columns_of(
    vectors_RH: np.ndarray, work: Work, config: EmbedConfig, texts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields blocks of columns of texts or words, in order."""
    words = work.rows.words
    count = work.rows.texts if words is None else len(words)
    for begin in range(0, count, _BLOCK):
        some = np.arange(begin, min(begin + _BLOCK, count))
        if words is not None:
            text, first, last = (x[some] for x in (words.text, words.begin, words.end))
            spans = zip(text, first, last, strict=True)
            yield {
                "row": text,
                "word": [texts[t][b:e] for t, b, e in spans],
                "begin": first,
                "end": last,
                "vector": vectors_RH[some],
            }
        else:
            vectors = vectors_RH[some]
            if work.windowed:
                vectors = _combine_windows(vectors_RH, work.rows, some, config)
            yield {"row": some, "vector": vectors}


def _combine_windows(
    vectors_RH: np.ndarray, rows: Rows, texts: np.ndarray, config: EmbedConfig
) -> np.ndarray:
    """Returns a vector for each of some neighbouring texts from those of its windows.

    It is the windows' mean, weighted by their tokens; for pooling=max, the maximum.
    """
    begin = np.searchsorted(rows.plan.example, texts)
    end = np.searchsorted(rows.plan.example, texts[-1], "right")
    vectors, at = vectors_RH[begin[0] : end], begin - begin[0]
    if config.pooling == "max":
        combined = np.maximum.reduceat(vectors, at)
    else:
        weight = rows.sizes[begin[0] : end, None].astype(np.float64)
        sums = np.add.reduceat(vectors * weight, at)
        combined = (sums / np.add.reduceat(weight, at)).astype(np.float32)
    return _unit(combined) if config.normalize else combined
