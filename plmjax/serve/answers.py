"""What a model answers: requests as rows of tokens, and scores of rows as answers.

Legend: B rows of a batch, L tokens a row, H width, V pieces of the vocabulary.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.config import nearest
from plmjax.data.columns import ColumnsConfig
from plmjax.data.examples import Example
from plmjax.data.layout import encode_texts, lay_out, plan_rows
from plmjax.data.records import bad_data, text_of
from plmjax.evaluate.prompts import (
    check_size,
    masked_row,
    plain_row,
    read_guesses,
    read_suspects,
)
from plmjax.onnx.session import Session
from plmjax.tasks import KINDS
from plmjax.tasks.base import softmax
from plmjax.tasks.config import TaskConfig, read_task
from plmjax.tasks.features import make_features

Row = tuple[np.ndarray, np.ndarray]  # ids and types [L]
_MOST_GUESSES = 100
_TOKENS = 1 << 13  # with padding, at once
_LOGITS = 1 << 26  # of a vocabulary head at once: 256 MB


# The endpoint of each head.
PATHS = {
    "sequence": "classify",
    "choices": "classify",
    "tags": "tag",
    "answers": "answer",
}
_EXAMPLES = {
    "tokens": ["The", "words", "."],
    "question": "Who sat?",
    "context": "The cat sat on the mat.",
    "choices": ["It is wet.", "It is dry."],
}


class Asked(NamedTuple):
    """The rows of a request, and what reads their scores.

    `report` counts tokens or words that were cut, if any.
    """

    rows: list[Row]
    state: Any
    report: dict[str, int]


class Endpoint(abc.ABC):
    """What answers requests of one kind at /`path`; `example` is a body."""

    path: str
    example: Mapping[str, Any] = {"text": "A text."}
    optional: tuple[str, ...] = ()  # further keys of an input
    per_token = True  # whether scores are of tokens
    padded_to = 0  # tokens of the shortest row

    def __init__(self, session: Session):
        self.session, self.tokenizer = session, session.tokenizer
        # How many tokens, with padding, may run at once.
        self.most_tokens = _TOKENS

    def read(self, value: Any, where: str) -> Any:
        """Returns an input of a request: an object, or a string if a text suffices.

        Raises:
          PlmjaxError: it lacks something, or has something else.
        """
        known = (*self.example, *self.optional)
        if isinstance(value, str) and "text" in known:
            value = {"text": value}
        if not isinstance(value, dict):
            what = f"there is a {type(value).__name__} where an object was expected."
            raise bad_data(where, what, f"Send for example {self.example}.")
        for key in value.keys() - set(known):
            raise bad_data(where, f"{key!r} is unknown.", nearest(key, [*known]))
        return self.checked(value, where)

    def checked(self, values: Mapping[str, Any], where: str) -> Any:
        """Returns an input of its values by key."""
        text = text_of(_of(values, "text", where), where, "text")
        if not text.strip():
            raise bad_data(where, "the text is empty.", "Send a text.")
        return text

    @abc.abstractmethod
    def ask(self, inputs: Sequence[Any]) -> Asked:
        """Returns the rows of inputs.

        Raises:
          PlmjaxError: a text that the model cannot read.
        """

    @abc.abstractmethod
    def answers(self, asked: Asked, scores: list[np.ndarray]) -> list[dict[str, Any]]:
        """Returns an answer an input from the scores of all rows, in order."""

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Returns the scores of each row, padded to the longest: [its L, ...] or [...]."""
        sizes = np.array([len(ids) for ids, _ in rows])
        length = max(int(sizes.max()), self.padded_to)
        ids_BL = np.full((len(rows), length), self.tokenizer.pad_id, np.int64)
        types_BL = np.zeros_like(ids_BL)
        for row, (ids, types) in enumerate(rows):
            ids_BL[row, : len(ids)], types_BL[row, : len(ids)] = ids, types
        mask_BL = (np.arange(length) < sizes[:, None]).astype(np.int64)
        scores = self.run({"tokens": ids_BL, "segments": mask_BL, "types": types_BL})
        if not self.per_token:
            return list(scores)
        return [row[:size] for row, size in zip(scores, sizes, strict=True)]

    def run(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Returns the scores of a batch, [B, L, ...] or [B, ...]."""
        return self.session.score(arrays)["logits"]


def _of(values: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in values:
        raise bad_data(where, f"it has no {key!r}.", "Send it, too.")
    return values[key]


class Fill(Endpoint):
    """Guesses for each mask of a text, as `plmjax fill` has them."""

    path, example, optional = "fill", {"text": "The [MASK] of a matrix."}, ("top",)

    def __init__(self, session):
        super().__init__(session)
        logits = _LOGITS // self.tokenizer.vocab_size
        self.most_tokens = 1 if session.facts["pads"] else min(_TOKENS, logits)
        if causal := session.facts["causal"]:
            self.example = {"text": "The rows of a"}
        self._causal = causal

    def checked(self, values, where):
        top = values.get("top", 5)
        if type(top) is not int or not 1 <= top <= _MOST_GUESSES:
            what = f"'top' is {top!r}, not a number from 1 to {_MOST_GUESSES}."
            raise bad_data(where, what, "5 is usual.")
        return super().checked(values, where), top

    def ask(self, inputs):
        rows, positions = [], []
        for text, _ in inputs:
            ids, masks = masked_row(self.tokenizer, text, self._causal)
            check_size(len(ids), self.session.facts["max_length"])
            rows.append((ids, np.zeros_like(ids)))
            positions.append(masks)
        return Asked(rows, (inputs, positions), {})

    def answers(self, asked, scores):
        answers = []
        for (text, top), at, scores_LV in zip(*asked.state, scores, strict=True):
            p_KV = softmax(scores_LV[at, : self.tokenizer.vocab_size].astype(float))
            best_KT = np.argsort(-p_KV, axis=-1, kind="stable")[:, :top]
            masks = [
                [
                    guess._asdict()
                    for guess in read_guesses(self.tokenizer, best, p[best])
                ]
                for best, p in zip(best_KT, p_KV, strict=True)
            ]
            answers.append({"text": text, "masks": masks})
        return answers


class Detect(Endpoint):
    """How likely each piece of a text was replaced, as `plmjax detect` has it."""

    path = "detect"

    def __init__(self, session):
        super().__init__(session)
        self.most_tokens = 1 if session.facts["pads"] else _TOKENS

    def ask(self, inputs):
        several = [plain_row(self.tokenizer, text) for text in inputs]
        for ids, _ in several:
            check_size(len(ids), self.session.facts["max_length"])
        rows = [(ids, np.zeros_like(ids)) for ids, _ in several]
        return Asked(rows, (inputs, [encoded for _, encoded in several]), {})

    def answers(self, asked, scores):
        answers = []
        for text, encoded, scores_L in zip(*asked.state, scores, strict=True):
            share_L = 1 / (1 + np.exp(-scores_L.astype(float)))
            pieces = read_suspects(self.tokenizer, encoded, share_L)
            answers.append({"text": text, "pieces": [one._asdict() for one in pieces]})
        return answers


class Embed(Endpoint):
    """The vector of a text, as `plmjax embed` has it: long texts are windows' means."""

    path, per_token = "embed", False

    def __init__(self, session):
        super().__init__(session)
        self.padded_to = session.length if session.facts["pads"] else 0
        self._pooling = session.facts["pooling"]

    def ask(self, inputs):
        length = self.session.length
        stream = encode_texts(self.tokenizer, inputs)
        plan = plan_rows([stream.sizes], self.tokenizer, length, length - 2)
        layout = lay_out([stream], plan, length, self.tokenizer)
        return Asked(_rows(layout.arrays), plan.example, {})

    def run(self, arrays):
        outputs = self.session.score(arrays)
        if "sentence_embedding" in outputs:
            return outputs["sentence_embedding"]
        real_BL1 = arrays["segments"][..., None]
        return (outputs["last_hidden_state"] * real_BL1).sum(1) / real_BL1.sum(1)

    def answers(self, asked, scores):
        vectors_RH = np.stack(scores)
        begin = np.searchsorted(asked.state, np.unique(asked.state))
        if self._pooling == "max":
            vectors_NH = np.maximum.reduceat(vectors_RH, begin)
        else:
            weight_R1 = np.array([[len(ids)] for ids, _ in asked.rows], np.float64)
            sums_NH = np.add.reduceat(vectors_RH * weight_R1, begin)
            total_N1 = np.add.reduceat(weight_R1, begin)
            vectors_NH = (sums_NH / total_N1).astype(np.float32)
        # The shortest decimals that give the same float32.
        numbers = vectors_NH.astype(str).astype(float)
        return [{"vector": vector.tolist()} for vector in numbers]


class Predict(Endpoint):
    """Predictions of a fine-tuned model, as `plmjax predict` has them."""

    def __init__(self, session, config: TaskConfig):
        super().__init__(session)
        self._kind, self._labels = KINDS[config.kind], session.labels
        self.per_token = self._kind.head in ("tags", "answers")
        self.padded_to = config.length if session.facts["pads"] else 0
        # Keys of an input are the roles, whatever the columns of the training data.
        trained = config.columns
        pair = "pair" if trained.pair is not None else None
        columns = ColumnsConfig(pair=pair, entities=trained.entities)
        self._config = dataclasses.replace(config, columns=columns)
        self.path = PATHS[str(self._kind.head)]
        fields = [*self._kind.fields[:-1], *(["pair"] if pair else [])]
        entities = columns.names("entities") if columns.entities else []
        self.example = {name: _EXAMPLES.get(name, "A text.") for name in fields}
        self.example |= dict.fromkeys(entities, 0)
        self.optional = ("text",) if self._kind.per_word else ()

    def checked(self, values, where):
        if self._kind.per_word and "text" in values:
            text = text_of(values["text"], where, "text")
            values = {"tokens": text.split()}
        for key in self.example:
            _of(values, key, where)
        texts, unit = self._kind.texts(values, where, self._config)
        return Example("0", where, texts, None, unit)

    def ask(self, inputs):
        features = make_features(self._config, inputs, self.tokenizer, self._labels)
        report = {
            key: features.report.get(key, 0) for key in ("cut_tokens", "lost_words")
        }
        cut = {key: count for key, count in report.items() if count}
        return Asked(_rows(features.arrays), (features, inputs), cut)

    def run(self, arrays):
        if self._kind.head == "choices":  # each as the only one of its row
            arrays = {name: array[:, None] for name, array in arrays.items()}
        outputs = self.session.score(arrays)
        if "start_logits" in outputs:
            return np.stack([outputs["start_logits"], outputs["end_logits"]], -1)
        return outputs["logits"]

    def answers(self, asked, scores):
        features, examples = asked.state
        if self._kind.head == "choices":
            real_NC = features.arrays["segments"].any(-1)
            joined_NC = np.full(real_NC.shape, -np.inf, np.float32)
            joined_NC[real_NC] = np.concatenate(scores)
            scores = list(joined_NC)
        scored = ((np.array([row]), one[None]) for row, one in enumerate(scores))
        predicted = self._kind.decode(self._config, features, examples, scored)
        return [
            self._kind.record(
                self._labels, one, self._kind.read(self._labels, one, value), value
            )
            for one, value in zip(examples, predicted, strict=True)
        ]


def _rows(arrays: Mapping[str, np.ndarray]) -> list[Row]:
    """Returns the rows of arrays [..., L] that are not empty, in order."""
    tokens, types, real = (
        arrays[name].reshape(-1, arrays[name].shape[-1])
        for name in ("tokens", "types", "segments")
    )
    sizes = (real > 0).sum(-1)
    return [
        (ids[:size], kinds[:size])
        for ids, kinds, size in zip(tokens, types, sizes, strict=True)
        if size
    ]


def open_endpoint(folder: Path, session: Session) -> Endpoint:
    """Returns what a session answers.

    Raises:
      PlmjaxError: nothing, or the description of its task cannot be read.
    """
    if session.kind in (
        plain := {
            "fill": Fill,
            "next": Fill,
            "detect": Detect,
            "embed": Embed,
        }
    ):
        return plain[session.kind](session)
    if session.kind not in KINDS:
        raise PlmjaxError(
            f"{folder} is a model of kind {session.kind}, which has no endpoint.",
            hint="Serve a model that fills masks, detects replaced words, or was fine-"
            "tuned.",
            code=Exit.MODEL,
        )
    return Predict(session, read_task(folder, session.kind, session.labels))
