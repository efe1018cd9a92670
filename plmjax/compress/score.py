"""How good a form of a model is: its score on a held-out part, and its latency.

All forms get the same batches in our names, in float32 by jax, or by onnxruntime.

Legend: B rows, L tokens a row, K hidden pieces of a row, V vocabulary, C choices or
texts, H width.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from plmjax import PlmjaxError
from plmjax.data.task_batches import batches_in_order
from plmjax.evaluate.batches import make_batches
from plmjax.evaluate.model import Model, longest_row, open_models
from plmjax.evaluate.texts import Contender, make_plan, row_arrays
from plmjax.finetune.predict import Predictor, labelled_examples
from plmjax.models import EncoderConfig, Platform, heads
from plmjax.models.global_tokens import with_room
from plmjax.models.task_heads import OUT_OF_REACH, task_logits
from plmjax.tasks import KINDS
from plmjax.tasks.features import make_features
from plmjax.tasks.task import Task
from plmjax.workdir import Workdir

_BATCH = 16
_DOCUMENTS = 2000  # of a run's own text, at most
_WINDOWS = 400  # of text, in which words are hidden
# A batch -> its scores as task_logits gives them, or those of each token: of the
# vocabulary [B, L, V], whether it was replaced [B, L], its vector [B, L, H].
Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def run_by_jax(model: Model) -> Run:
    """Returns the model as a function of batches, compiled for each of their shapes."""
    platform = Platform.of(jax.devices())
    encoder = dataclasses.replace(model.encoder, dtype="float32", remat=False)
    params = jax.device_put(model.params)

    def run(batch):
        fitting = with_room(encoder, batch["tokens"], batch["segments"])
        names = ("tokens", "segments", "positions", "types")
        given = {name: batch[name] for name in names}
        with jax.default_matmul_precision("highest"):
            scores = _outputs(fitting, model.task, platform, params, given)
        return np.asarray(scores)

    return run


# Shared by models of one shape.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _outputs(encoder: EncoderConfig, task: Task | None, platform, params, batch) -> Any:
    if task is not None:
        return task_logits(encoder, task, params, batch, None, platform=platform)
    x_BLH = heads.encode(encoder, params, batch, None, platform)
    x_TH = x_BLH.reshape(-1, encoder.width)
    shape = batch["tokens"].shape
    if "detector" in params:
        logits = heads.detector_logits(encoder, params, x_TH, platform)
        return logits.reshape(shape)
    if "head" in params:
        logits = heads.vocabulary_logits(encoder, params, x_TH, platform)
        return logits.reshape(*shape, -1)
    return x_BLH


def run_by_onnx(file: Path, model: Model) -> Run:
    """Returns a graph of the model as a function of batches."""
    from onnxruntime import InferenceSession

    session = InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = {given.name for given in session.get_inputs()}
    outputs = [given.name for given in session.get_outputs()]
    task = model.task

    def run(batch):
        shape = batch["tokens"].shape
        rows = {
            "input_ids": batch["tokens"],
            "attention_mask": batch["segments"] > 0,
            "token_type_ids": batch["types"],
        }
        feeds = {k: v.astype(np.int64) for k, v in rows.items() if k in inputs}
        if task is None or task.head != "choices":
            feeds = {k: v.reshape(-1, shape[-1]) for k, v in feeds.items()}
        by_name = dict(zip(outputs, session.run(None, feeds), strict=True))
        if task is not None and task.head is None:
            return by_name["sentence_embedding"].reshape(*shape[:-1], -1)
        if task is not None and task.head == "answers":
            ends = [by_name["start_logits"], by_name["end_logits"]]
            scores, real = np.stack(ends, -1), (batch["segments"] > 0)[..., None]
            return np.where(real, scores, OUT_OF_REACH)
        logits = by_name.get("logits", by_name.get("last_hidden_state"))
        if task is not None and task.head == "choices":
            real = (batch["segments"] > 0).any(-1)
            return np.where(real, logits, OUT_OF_REACH)
        return logits

    return run


def own_documents(
    run: str, model: Model, split: Literal["train", "held_out"] = "held_out"
) -> Iterator[str]:
    """Yields documents of a run's own text, as its tokenizer spells them."""
    tokens = Workdir(run).store().split(split)
    ends = itertools.pairwise(tokens.offsets[: _DOCUMENTS + 1])
    for begin, end in ends:
        yield model.tokenizer.decode(tokens.read(np.arange(begin, end))[0])


class Part(abc.ABC):
    """A held-out part: `metric` names its score, `median` is its tokens a row."""

    metric: str
    median: int

    @abc.abstractmethod
    def score(self, run: Run) -> tuple[float | None, Any]:
        """Returns the score in points (None: there is none), and what was predicted."""

    @abc.abstractmethod
    def agreement(self, predicted: Any, first: Any) -> float:
        """Returns the share of predictions that are those of the first, in percent."""


class Labelled(Part):
    """Examples of the task of a fine-tuned model."""

    def __init__(self, folder: Path, model: str, data: str | None):
        """Reads labelled files, or the held-out part of a fine-tuning.

        Raises:
          PlmjaxError: as `finetune.predict.evaluate`.
        """
        predictor = Predictor([str(folder)], ["rows=single"])
        self.config, self.labels = predictor.config, predictor.labels
        self.kind = KINDS[self.config.kind]
        self.metric = self.kind.usual_metric(self.labels)
        self.examples = labelled_examples(predictor, model, data, ("held_out", "test"))
        tokenizer = next(iter(open_models(str(folder)).values())).tokenizer
        self.features = make_features(
            self.config, self.examples, tokenizer, self.labels
        )
        self.median = int(np.median(self.features.sizes()))

    def score(self, run):
        def scored():
            buckets = [2**n for n in range(4, 12) if 2**n < self.features.length]
            for rows, batch in batches_in_order(self.features, _BATCH, lengths=buckets):
                yield rows[rows >= 0], run(batch)[rows >= 0]

        predicted = self.kind.decode(
            self.config, self.features, self.examples, scored()
        )
        read = [
            self.kind.read(self.labels, example, prediction)
            for example, prediction in zip(self.examples, predicted, strict=True)
        ]
        truth = [example.label for example in self.examples]
        scores = self.kind.scores(truth, read, self.labels, self.config)
        return 100 * scores[self.metric], read

    def agreement(self, predicted, first):
        if isinstance(first[0], float):  # numbers differ by rounding
            return 100 * float(np.corrcoef(predicted, first)[0, 1])
        if self.kind.per_word:
            predicted, first = (sum(map(list, each), []) for each in (predicted, first))
        same = [a == b for a, b in zip(predicted, first, strict=True)]
        return 100 * float(np.mean(same))


class Text(Part):
    """Windows of text: words are hidden from a model that guesses words.

    Of a model that does not, only the agreement is known: of the verdicts of a
    detector, or the cosines of vectors.
    """

    def __init__(self, folder: Path, model: Model, documents):
        """Raises PlmjaxError if the text has no word to hide."""
        self.guesses = "head" in model.params and "detector" not in model.params
        self.metric = "words" if self.guesses else "-"
        contender = Contender(str(folder), model, longest_row(str(folder), model))
        if not self.guesses and model.tokenizer.mask_id is None:
            raise PlmjaxError("x")
        self.pad_id = model.tokenizer.pad_id
        self.rows = make_plan([contender], documents, _WINDOWS).rows[0]
        self.sizes = np.array([len(row.tokens) for row in self.rows])
        self.median = int(np.median(self.sizes))

    def score(self, run):
        best, right = [], []
        longest = self.sizes.max()
        for one in make_batches(self.sizes, longest, _BATCH * longest):
            some = [self.rows[index] for index in one.rows]
            batch, _, _ = row_arrays(some, self.pad_id, one.size, one.length, 1)
            for row, scores in zip(some, run(batch), strict=False):
                if self.guesses:
                    best.append(scores[row.at].argmax(-1))
                    right.append(best[-1] == row.labels)
                else:
                    best.append(scores[: len(row.tokens)])
        predicted = np.concatenate(best)
        score = 100 * float(np.concatenate(right).mean()) if right else None
        return score, predicted

    def agreement(self, predicted, first):
        if predicted.ndim == 2:
            norms = [np.linalg.norm(x, axis=-1) for x in (predicted, first)]
            cosines = (predicted * first).sum(-1) / np.prod(norms, axis=0)
            return 100 * float(cosines.mean())
        same = predicted == first if self.guesses else (predicted > 0) == (first > 0)
        return 100 * float(same.mean())
