"""The score of a form of a model on a held-out part.

All forms get the same batches, in float32 by jax, or by onnxruntime.

Legend: B rows, L tokens a row, V vocabulary, H width, T rows times tokens.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from plmjax import Exit, PlmjaxError, counted
from plmjax.console import ignore_line
from plmjax.data.task_batches import batches_in_order
from plmjax.evaluate import predictions
from plmjax.evaluate.batches import make_batches
from plmjax.evaluate.model import Model, longest_row
from plmjax.evaluate.texts import Contender, make_plan, row_arrays
from plmjax.finetune.predict import Predictor, labelled_examples
from plmjax.metrics.comparison import compare_by
from plmjax.models import EncoderConfig, Platform, heads
from plmjax.models.global_tokens import with_room
from plmjax.models.task_heads import task_logits
from plmjax.tasks import KINDS
from plmjax.tasks.base import softmax
from plmjax.tasks.features import make_features
from plmjax.tasks.scores import gain
from plmjax.tasks.task import Task
from plmjax.workdir import Workdir

_BATCH = 16
_LENGTHS = (16, 32, 64, 128, 256)  # of batches of rows that fit
_DOCUMENTS = 2000  # of a run's own text, at most
_WINDOWS = 400  # of text, in which words are hidden
# A batch -> scores as task_logits gives them, or those of each token: of the vocabulary
# [B, L, V], whether it was replaced [B, L], or its vector [B, L, H].
Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def run_by_jax(model: Model) -> Run:
    """Returns the model as a function of batches, compiled for each of their shapes."""
    platform = Platform.of(jax.devices())
    params = jax.device_put(model.params)

    def run(batch):
        encoder = with_room(model.encoder, batch["tokens"], batch["segments"])
        names = ("tokens", "segments", "positions", "types")
        given = {name: batch[name] for name in names}
        with jax.default_matmul_precision("highest"):
            scores = _outputs(encoder, model.task, platform, params, given)
        return _finite(np.asarray(scores))

    return run


# Shared by models of one shape.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _outputs(encoder: EncoderConfig, task: Task | None, platform, params, batch) -> Any:
    if task is not None:
        return task_logits(encoder, task, params, batch, None, platform=platform)
    x_BLH = heads.encode(encoder, params, batch, None, platform)
    x_TH, shape = x_BLH.reshape(-1, encoder.width), batch["tokens"].shape
    if "detector" in params:
        return heads.detector_logits(encoder, params, x_TH, platform).reshape(shape)
    if "head" in params:
        logits_TV = heads.vocabulary_logits(encoder, params, x_TH, platform)
        return logits_TV.reshape(*shape, -1)
    return x_BLH


def _finite(scores: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise PlmjaxError(
            "an output of the compressed model is not finite.",
            hint="Leave this format out.",
            code=Exit.NUMERIC,
        )
    return scores


def run_by_onnx(file: Path) -> Run:
    """Returns FOLDER/onnx/FILE as a function of batches."""
    from plmjax.onnx.session import Session, scores_of

    session = Session(file.parents[1], file.name)

    def run(batch):
        shape, vectors = batch["tokens"].shape, session.kind == "embed"
        if vectors:  # [B, texts, L]
            batch = {
                k: x.reshape(-1, shape[-1]) for k, x in batch.items() if x.ndim > 1
            }
        scores = _finite(scores_of(session.score(batch)))
        return scores.reshape(*shape[:-1], *scores.shape[1:]) if vectors else scores

    return run


def own_documents(
    run: str, model: Model, split: Literal["train", "held_out"] = "held_out"
) -> Iterator[str]:
    """Yields documents of a run's own text, as its tokenizer spells them."""
    tokens = Workdir(run).store().split(split)
    for begin, end in itertools.pairwise(tokens.offsets[: _DOCUMENTS + 1]):
        yield model.tokenizer.decode(tokens.read(np.arange(begin, end))[0])


class Scored(NamedTuple):
    """A score in points, None if there is none, and what is predicted.

    `bits` a byte are those of `plmjax evaluate --text`, for models that guess words.
    """

    score: float | None
    predicted: Any
    bits: float | None = None


class Labelled:
    """Examples of the task of a fine-tuned model, in `folder`.

    `metric` names the score, `median` is the tokens of a row, `size` says how many
    examples there are.
    """

    def __init__(self, folder: Path, model: Model, name: str, data: str | None):
        """Reads labelled files, or the held-out part of the fine-tuning `name`.

        Raises:
          PlmjaxError: as `labelled_examples`.
        """
        predictor = Predictor([str(folder)], ["rows=single"])
        self.config, self.labels = predictor.config, predictor.labels
        self.kind = KINDS[self.config.kind]
        self.metric = self.kind.usual_metric(self.labels)
        parts = ("held_out", "test")
        self.examples = labelled_examples(predictor, name, data, parts, option="--data")
        given = (self.config, self.examples, model.tokenizer, self.labels)
        self.features = make_features(*given)
        self.median = int(np.median(self.features.sizes()))
        self.size = counted(len(self.examples), "example")
        self._truth = [example.label for example in self.examples]

    def score(self, run: Run) -> Scored:
        """Returns the score of predictions."""
        scored = (
            (rows[rows >= 0], run(batch)[rows >= 0])
            for rows, batch in batches_in_order(self.features, _BATCH, lengths=_LENGTHS)
        )
        decoded = self.kind.decode(self.config, self.features, self.examples, scored)
        read = predictions.read(self.config, self.labels, self.examples, decoded)
        scores = self.kind.scores(self._truth, read, self.labels, self.config)
        return Scored(100 * scores[self.metric], read)

    def interval(self, predicted: Any, first: Any) -> list[float] | None:
        """Returns the 95 % interval of the points that are lost; None of one text."""
        if len(self._truth) < 2:
            return None
        both = self._truth, first, predicted
        lost = gain(self.kind.name, self.metric, *both, self.labels, self.config)
        return [100 * lost.low, 100 * lost.high]

    def agreement(self, predicted: Any, first: Any) -> float:
        """Returns the share of predictions, or tags, that are those of the first."""
        if isinstance(first[0], float):  # no two numbers are equal: their correlation
            return 100 * float(np.corrcoef(predicted, first)[0, 1])
        if self.kind.per_word:
            predicted, first = (sum(map(list, each), []) for each in (predicted, first))
        return 100 * float(
            np.mean([a == b for a, b in zip(predicted, first, strict=True)])
        )


class Text:
    """Windows of text, with hidden words if the model guesses words.

    Other models have no score here; their predictions are the verdicts of a detector,
    or vectors.
    """

    def __init__(self, folder: Path, model: Model, documents: Iterable[str]):
        """Raises PlmjaxError if the text has no word to hide."""
        self.guesses = "head" in model.params and "detector" not in model.params
        self.metric = "next tokens" if model.encoder.causal else "hidden words"
        self.metric = self.metric if self.guesses else "score"
        self.pad_id = model.tokenizer.pad_id
        contender = Contender(str(folder), model, longest_row(str(folder), model))
        plan = make_plan([contender], documents, _WINDOWS)
        self.rows = plan.rows[0]
        self.size = counted(len(self.rows), "window")
        self._bytes = sum(plan.units(contender).bytes)
        self._spelled_bits = 8 * sum(plan.spelled[0])
        for row in self.rows if not self.guesses else ():
            row.tokens[row.at] = row.labels  # nothing is hidden
        self.sizes = np.array([len(row.tokens) for row in self.rows])
        self.median = int(np.median(self.sizes))

    def score(self, run: Run) -> Scored:
        """Returns the share of hidden pieces that are right."""
        predicted: list[np.ndarray] = [np.empty(0)] * len(self.rows)
        nats, longest = 0.0, int(self.sizes.max())
        for one in make_batches(self.sizes, longest, _BATCH * longest):
            some = [self.rows[index] for index in one.rows]
            shape = (one.size, one.length, one.length)
            batch, _, _ = row_arrays(some, self.pad_id, *shape)
            for index, scores in zip(one.rows, run(batch), strict=False):
                row = self.rows[index]
                if self.guesses:
                    scores_KV = scores[row.at].astype(np.float64)
                    predicted[index] = scores_KV.argmax(-1)
                    p_KV = softmax(scores_KV)
                    nats -= np.log(p_KV[np.arange(len(row.at)), row.labels]).sum()
                else:
                    scores = scores[: len(row.tokens)]
                    predicted[index] = scores if scores.ndim > 1 else scores > 0
        flat = np.concatenate(predicted)
        if not self.guesses:
            return Scored(None, flat)
        score = 100 * self._hits(flat).sum() / len(flat)
        bits = (nats / math.log(2) + self._spelled_bits) / self._bytes
        return Scored(float(score), flat, float(bits))

    def _hits(self, predicted: np.ndarray) -> np.ndarray:
        """Returns how many pieces of each window are right."""
        labels = [row.labels for row in self.rows]
        begins = np.cumsum([0, *map(len, labels)])[:-1]
        return np.add.reduceat(predicted == np.concatenate(labels), begins)

    def interval(self, predicted: Any, first: Any) -> list[float] | None:
        """Returns the 95 % interval of the points that are lost, over windows."""
        if not self.guesses or len(self.rows) < 2:
            return None
        sizes = [len(row.labels) for row in self.rows]
        both = (self._hits(x).tolist() for x in (first, predicted))
        lost = compare_by(lambda sizes, hits: sum(hits) / sum(sizes), sizes, *both)
        return [100 * lost.low, 100 * lost.high]

    def agreement(self, predicted: np.ndarray, first: np.ndarray) -> float:
        """Returns the share of equal predictions, or the mean cosine of vectors."""
        if predicted.ndim == 1:
            return 100 * float((predicted == first).mean())
        unit = [
            x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (predicted, first)
        ]
        return 100 * float((unit[0] * unit[1]).sum(-1).mean())


Part = Labelled | Text


@dataclasses.dataclass(frozen=True)
class Given:
    """What a format may read beside the model's folder.

    `name` is what the user calls the model, a run's workdir or a folder; `options` are
    those of the command by name: data, calibrate and those that belong to a format;
    `part` is what forms are scored on.
    """

    name: str
    model: Model
    options: Mapping[str, Any]
    part: Part | None = None
    log: Callable[[str], Any] = ignore_line
