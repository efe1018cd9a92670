"""Vectors of texts, or of words in them, by a trained encoder: `plmjax embed`."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plmjax import Exit, PlmjaxError, tree
from plmjax.data.inputs import Inputs, given_texts, read_inputs
from plmjax.embed.file import (
    VectorFile,
    check_output,
    write_npy,
    write_parquet,
)
from plmjax.embed.vectors import (
    EmbedConfig,
    Work,
    columns_of,
    compute,
    plan_work,
)
from plmjax.evaluate.model import Model, longest_row, open_models
from plmjax.stop import Stop

_FORMAT = 3  # increase it if the same job would be split into other batches
_SAVE_SECONDS = 5.0  # most work that a kill can lose


class Seen(NamedTuple):
    """The progress: tokens with padding, and texts whose first row is done."""

    tokens: int
    all_tokens: int
    texts: int


class Embedded(NamedTuple):
    """The outcome of a job: `vectors` of `width` numbers, in all.

    `report` counts texts, rows, tokens and cut texts of the job; `before` texts
    were done by an earlier start. `texts` and `tokens` (without padding) are of this
    start, in `seconds`; its rates do not count `compile_seconds`. `stopped` names the
    signal; `finished` is True if nothing was left to do.
    """

    vectors: int
    width: int
    report: dict[str, int]
    before: int = 0
    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    stopped: str | None = None
    finished: bool = False

    @property
    def texts_per_second(self) -> float:
        """Texts a second, without the time of compiling."""
        return self.texts / max(self.seconds - self.compile_seconds, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second without padding, without the time of compiling."""
        return self.tokens / max(self.seconds - self.compile_seconds, 1e-9)

    def figures(self) -> dict[str, Any]:
        """Returns all figures in a form for JSON."""
        return {
            **self.report,
            "vectors": self.vectors,
            "width": self.width,
            "texts_before": self.before,
            "texts_now": self.texts,
            "tokens_now": self.tokens,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "texts_per_second": self.texts_per_second,
            "tokens_per_second": self.tokens_per_second,
            "stopped": self.stopped,
            "finished_before": self.finished,
        }


def open_encoder(path: str, checkpoint: str = "newest") -> tuple[Model, int]:
    """Opens the first model of a workdir or folder; returns it and its row length.

    Raises:
      PlmjaxError: as `open_models`.
    """
    model = next(iter(open_models(path, checkpoint).values()))
    return model, longest_row(path, model)


def embed_texts(
    model: Model, texts: Sequence[str], config: EmbedConfig, longest: int | None = None
) -> np.ndarray:
    """Returns a float32 vector a text [N, H], or a word, in order.

    Raises:
      PlmjaxError: as `EmbedConfig.resolved`.
    """
    config = config.resolved(model, longest or model.encoder.max_length)
    work = plan_work(model, texts, config)
    vectors = np.empty(work.shape, np.float32)
    for step in compute(model, config, work):
        vectors[step.indices] = step.vectors
    blocks = [block["vector"] for block in columns_of(vectors, work, config, texts)]
    return np.concatenate([np.empty((0, work.shape[1]), np.float32), *blocks])


def embed_file(
    model: Model,
    longest: int,
    source: str | list[str],
    output: Path,
    config: EmbedConfig,
    *,
    column: str = "text",
    log: Callable[[str], Any] = print,
    seen: Callable[[Seen], Any] = lambda seen: None,
    save_seconds: float = _SAVE_SECONDS,
) -> Embedded:
    """Writes the vectors of files' texts, or of a list, to an .npy or .parquet file.

    After Ctrl-C, SIGTERM or a kill the same call resumes and gives the same bytes.

    Raises:
      PlmjaxError: bad input (code 3), a request that the model does not support, an
        output of another job (2), or a disk that refuses (5).
    """
    check_output(output, config.words)
    config = config.resolved(model, longest)
    inputs, work = _read_and_plan(model, source, config, column, log)
    job = {
        "format": _FORMAT,
        "input": inputs.digest,
        "column": column,
        "model": _digest(model),
        **dataclasses.asdict(config),
    }
    about = {"model": model.name, "part": model.part, "step": model.step}
    with VectorFile(output, job, about, work.shape, len(work.batches)) as file:
        if file.finished:
            return Embedded(*work.final_shape, work.rows.report, finished=True)
        if file.done:
            log(f"Resumes after batch {file.done:,} of {len(work.batches):,}.")
        result = _fill(
            model, config, work, file=file, seen=seen, save_seconds=save_seconds
        )
        if not result.stopped:
            write = None
            blocks = columns_of(file.vectors(), work, config, inputs.texts)
            if output.suffix == ".parquet":
                write = functools.partial(write_parquet, blocks=blocks)
            elif work.windowed:
                vectors = (block["vector"] for block in blocks)
                write = functools.partial(
                    write_npy, blocks=vectors, shape=work.final_shape
                )
            file.finish(write)
    return result


def embed_records(
    model: Model,
    longest: int,
    source: str | list[str],
    config: EmbedConfig,
    *,
    column: str = "text",
    log: Callable[[str], Any] = print,
) -> Iterator[dict[str, Any]]:
    """Yields what a file would hold, a record a text or word: its row and its vector.

    Raises:
      PlmjaxError: bad input (code 3), or a request that the model does not support.
    """
    config = config.resolved(model, longest)
    inputs, work = _read_and_plan(model, source, config, column, log)
    vectors = np.empty(work.shape, np.float32)
    for step in compute(model, config, work):
        vectors[step.indices] = step.vectors
    for block in columns_of(vectors, work, config, inputs.texts):
        # The shortest decimals that give the same float32.
        numbers = block["vector"].astype(str).astype(float)
        columns = [
            np.asarray(x).tolist() for x in (block | {"vector": numbers}).values()
        ]
        for row in zip(*columns, strict=True):
            yield dict(zip(block, row, strict=True))


def _read_and_plan(
    model: Model,
    source: str | list[str],
    config: EmbedConfig,
    column: str,
    log: Callable[[str], Any],
) -> tuple[Inputs, Work]:
    files = isinstance(source, str)
    inputs = read_inputs(source, column) if files else given_texts(source)
    work = plan_work(model, inputs.texts, config)
    if not work.shape[0]:
        raise PlmjaxError(
            f"--input={source if files else '-'} holds no words.",
            hint="Give texts with at least one.",
            code=Exit.DATA,
        )
    _log_report(work, config, log)
    return inputs, work


def _log_report(work: Work, config: EmbedConfig, log: Callable[[str], Any]) -> None:
    """Logs how many texts are empty, long or cut."""
    count = work.rows.report
    if empty := count["empty_texts"]:
        what = "have no word" if config.words else "get the vector of [CLS] [SEP]"
        log(f"WARNING: {empty:,} empty texts {what}.")
    if windowed := count["windowed_texts"]:
        log(
            f"{windowed:,} of {count['texts']:,} texts are longer than "
            f"{config.length} tokens: {count['rows']:,} rows in windows."
        )
    if cut := count["cut_texts"]:
        log(
            f"WARNING: {cut:,} of {count['texts']:,} texts are cut to {config.length} "
            f"tokens, {count['cut_tokens']:,} tokens are left out."
        )
    if lost := count.get("lost_words"):
        log(f"WARNING: {lost:,} words are left out with them.")


def _digest(model: Model) -> str:
    """Returns the SHA-256 of weights, config and vocabulary, which shape vectors."""
    digest = hashlib.sha256(model.tokenizer.digest.encode())
    config = dataclasses.asdict(model.encoder)
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name, leaf in sorted(tree.flatten(model.params["encoder"]).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _fill(
    model: Model,
    config: EmbedConfig,
    work: Work,
    file: VectorFile,
    seen: Callable[[Seen], Any],
    save_seconds: float,
) -> Embedded:
    """Writes the remaining batches, until all are done or a signal comes."""
    first = work.rows.plan.start[:, 0] == 0
    padded = np.cumsum([0, *(batch.size * batch.length for batch in work.batches)])
    texts = np.cumsum([0, *(first[batch.rows].sum() for batch in work.batches)])
    begin = file.done
    total = int(padded[-1])
    seen(Seen(int(padded[begin]), total, int(texts[begin])))
    start = saved = time.monotonic()
    done, tokens, compiled = begin, 0, 0.0
    with Stop() as stop:
        for step in compute(model, config, work, begin):
            file.write(step.indices, step.vectors)
            done = step.done
            tokens += int(work.rows.sizes[step.batch.rows].sum())
            compiled += step.compile_seconds
            seen(Seen(int(padded[done]), total, int(texts[done])))
            if stop.due(done) and done < len(work.batches):
                break
            if time.monotonic() - saved >= save_seconds:
                file.save(done)
                saved = time.monotonic()
        file.save(done)
    return Embedded(
        *work.final_shape,
        work.rows.report,
        before=int(texts[begin]),
        texts=int(texts[done] - texts[begin]),
        tokens=tokens,
        seconds=time.monotonic() - start,
        compile_seconds=compiled,
        stopped=stop.received if done < len(work.batches) else None,
    )
