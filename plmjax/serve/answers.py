"""What a model answers: requests as rows of tokens, and scores of rows as answers.

Legend: N rows, K of their tokens that are read, L tokens a row, H width, V pieces of
the vocabulary, C choices.
"""

import abc
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plmjax import DataError, Exit, PlmjaxError, with_article
from plmjax.config import nearest
from plmjax.data.columns import ColumnsConfig
from plmjax.data.examples import Example
from plmjax.data.layout import encode_texts, lay_out, plan_rows
from plmjax.data.records import bad_data, text_of
from plmjax.evaluate import prompts
from plmjax.onnx.session import Session, scores_of
from plmjax.tasks import KINDS
from plmjax.tasks.base import softmax
from plmjax.tasks.config import TaskConfig, read_task
from plmjax.tasks.features import make_features

_MOST_GUESSES = 100
# With padding, at once: more save nothing on a CPU, where padding costs more.
_TOKENS = 512
_LOGITS = 1 << 26  # of a vocabulary head at once: 256 MB
# The endpoint of each head of a task, and what a request may hold.
_PATHS = dict(sequence="classify", choices="classify", tags="tag", answers="answer")
_EXAMPLES = {
    "tokens": ["The", "words", "."],
    "question": "Who sat?",
    "context": "The cat sat on the mat.",
    "choices": ["It is wet.", "It is dry."],
}


class Asked(NamedTuple):
    """A request: rows, what reads their scores, and counts of what was cut, if any.

    `arrays` are tokens, segments and types [N, L], or [N, 1, L] for choices.
    """

    arrays: dict[str, np.ndarray]
    state: Any
    report: dict[str, int]


class Endpoint(abc.ABC):
    """What answers requests at /`path`; `example` is one, `optional` further keys."""

    path: str
    example: Mapping[str, Any] = {"text": "A text."}
    optional: tuple[str, ...] = ()
    per_token = True  # whether scores are of tokens
    batch_tokens = _TOKENS
    # To which rows are padded, in models whose states depend on it; (): not at all.
    lengths: tuple[int, ...] = ()

    def __init__(self, session: Session):
        self.session, self.tokenizer = session, session.tokenizer

    def read(self, value: Any, where: str) -> Any:
        """Returns an input of a request: an object, or a string if a text suffices.

        `where` is its place in the request.

        Raises:
          PlmjaxError: it lacks something, or the model cannot read it.
        """
        known = [*self.example, *self.optional]
        if isinstance(value, str) and "text" in known:
            value = {"text": value}
        if not isinstance(value, dict):
            kind = with_article(type(value).__name__)
            what = f"there is {kind} where an object was expected."
            raise bad_data(where, what, self.hint)
        for key in value.keys() - set(known):
            meant = nearest(key, [*known, "inputs"])
            raise bad_data(where, f"unknown key {key!r}.", meant)
        for key in self.example.keys() - value.keys():
            raise bad_data(where, f"it has no {key!r}.", self.hint)
        try:
            return self.checked(value, where)
        except PlmjaxError as error:
            what = error.message.removeprefix(f"{where}: ")
            # Errors of data have hints on files.
            hint = self.hint if isinstance(error, DataError) else error.hint
            raise bad_data(where, what.replace("the column", "the key"), hint) from None

    @property
    def hint(self) -> str:
        """How to mend a request."""
        return f"Send for example {json.dumps(self.example)}."

    def checked(self, values: Mapping[str, Any], where: str) -> Any:
        """Returns an input from its values by key."""
        text = text_of(values["text"], where, "text")
        if not text.strip():
            raise bad_data(where, "the text is empty.", "")
        return text

    @abc.abstractmethod
    def ask(self, inputs: Sequence[Any]) -> Asked:
        """Returns the rows of a request, all of the same L for all requests."""

    @abc.abstractmethod
    def answers(self, asked: Asked, scores: list[np.ndarray]) -> list[dict[str, Any]]:
        """Returns an answer an input from the scores of all rows, in order."""

    def score(self, several: Sequence[Asked]) -> list[np.ndarray]:
        """Returns the scores of all rows: [K, ...] of their tokens, or [...]."""
        arrays = {
            name: np.concatenate([asked.arrays[name] for asked in several])
            for name in several[0].arrays
        }
        found: list[Any] = [None] * len(arrays["tokens"])
        read_NL = arrays.get("read", arrays["segments"]) > 0
        how = self.batch_tokens, self.lengths
        for rows, outputs in self.session.batches(arrays, *how):
            for row, value in zip(rows, scores_of(outputs), strict=True):
                # A copy, so that the scores of other tokens need no memory.
                kept = read_NL[row, : len(value)] if self.per_token else ...
                found[row] = value[kept]
        return found

    def _one_row_each(self, several: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the arrays of rows of ids, without types."""
        length = self.session.facts["max_length"]
        tokens_NL = np.full((len(several), length), self.tokenizer.pad_id, np.int64)
        for row, ids in enumerate(several):
            tokens_NL[row, : len(ids)] = ids
        segments_NL = np.arange(length) < np.array([[len(ids)] for ids in several])
        types_NL = np.zeros_like(tokens_NL)
        return {"tokens": tokens_NL, "segments": segments_NL, "types": types_NL}


class Fill(Endpoint):
    """Guesses for each mask of a text, as `plmjax fill` has them."""

    path, example, optional = "fill", {"text": "The [MASK] of a matrix."}, ("top",)

    def __init__(self, session):
        super().__init__(session)
        logits = max(_LOGITS // self.tokenizer.vocab_size, 1)
        self.batch_tokens = min(logits, _TOKENS)
        if session.facts["causal"]:
            self.example = {"text": "The rows of a"}

    def checked(self, values, where):
        top = values.get("top", 5)
        if type(top) is not int or not 1 <= top <= _MOST_GUESSES:
            what = f"'top' is {top!r}, not a number from 1 to {_MOST_GUESSES}."
            raise PlmjaxError(what, hint="5 is usual.")
        text, facts = super().checked(values, where), self.session.facts
        ids, masks = prompts.masked_row(self.tokenizer, text, facts["causal"])
        prompts.check_size(len(ids), facts["max_length"])
        return text, top, ids, masks

    def ask(self, inputs):
        arrays = self._one_row_each([ids for *_, ids, _ in inputs])
        arrays["read"] = np.zeros_like(arrays["segments"])
        for row, (*_, masks) in enumerate(inputs):
            arrays["read"][row, masks] = True
        return Asked(arrays, inputs, {})

    def answers(self, asked, scores):
        answers = []
        for (text, top, *_), scores_KV in zip(asked.state, scores, strict=True):
            masks = []
            for p_V in softmax(scores_KV[:, : self.tokenizer.vocab_size].astype(float)):
                best = np.argsort(-p_V, kind="stable")[:top]
                guesses = prompts.read_guesses(self.tokenizer, best, p_V[best])
                masks.append([guess._asdict() for guess in guesses])
            answers.append({"text": text, "masks": masks})
        return answers


class Detect(Endpoint):
    """How likely each piece of a text was replaced, as `plmjax detect` has it."""

    path = "detect"

    def checked(self, values, where):
        text = super().checked(values, where)
        ids, encoded = prompts.plain_row(self.tokenizer, text)
        prompts.check_size(len(ids), self.session.facts["max_length"])
        return text, ids, encoded

    def ask(self, inputs):
        return Asked(self._one_row_each([ids for _, ids, _ in inputs]), inputs, {})

    def answers(self, asked, scores):
        answers = []
        for (text, _, encoded), scores_L in zip(asked.state, scores, strict=True):
            share_L = 1 / (1 + np.exp(-scores_L.astype(float)))
            pieces = prompts.read_suspects(self.tokenizer, encoded, share_L)
            answers.append({"text": text, "pieces": [one._asdict() for one in pieces]})
        return answers


class Embed(Endpoint):
    """The vector of a text, as `plmjax embed` has it: the mean of its windows'."""

    path = "embed"

    def __init__(self, session):
        super().__init__(session)
        self.per_token = "sentence_embedding" not in session.outputs

    def ask(self, inputs):
        length = self.session.length
        stream = encode_texts(self.tokenizer, inputs)
        plan = plan_rows([stream.sizes], self.tokenizer, length, length - 2)
        layout = lay_out([stream], plan, length, self.tokenizer)
        return Asked(_rows(layout.arrays), plan.example, {})

    def answers(self, asked, scores):
        begin = np.flatnonzero(np.diff(asked.state, prepend=-1))
        vectors_NH = np.stack([x.mean(0) if self.per_token else x for x in scores])
        if self.session.facts["pooling"] == "max":
            vectors_NH = np.maximum.reduceat(vectors_NH, begin)
        else:
            size_N1 = asked.arrays["segments"].sum(-1, keepdims=True).astype(float)
            sums = np.add.reduceat(vectors_NH * size_N1, begin)
            vectors_NH = (sums / np.add.reduceat(size_N1, begin)).astype(np.float32)
        # The shortest decimals that give the same float32.
        numbers = vectors_NH.astype(str).astype(float).tolist()
        return [{"vector": vector} for vector in numbers]


class Predict(Endpoint):
    """Predictions of a fine-tuned model, as `plmjax predict` has them."""

    def __init__(self, session, config: TaskConfig):
        super().__init__(session)
        self._kind = kind = KINDS[config.kind]
        # Keys of an input are the roles, whatever the columns of the training data.
        pair = "pair" if config.columns.pair is not None else None
        columns = ColumnsConfig(pair=pair, entities=config.columns.entities)
        self._config = dataclasses.replace(config, columns=columns)
        self.path = _PATHS[str(kind.head)]
        self.per_token = kind.head in ("tags", "answers")
        self.lengths = (*config.buckets, config.length)  # as `plmjax predict`
        fields = [*kind.fields[:-1], *([pair] if pair else [])]
        entities = columns.names("entities") if columns.entities else []
        self.example = {name: _EXAMPLES.get(name, "A text.") for name in fields}
        self.example |= dict(zip(entities, (0, 1, 2, 6), strict=False))

    def read(self, value, where):
        if self._kind.per_word:  # a text will do
            text = value.get("text") if isinstance(value, dict) else value
            if isinstance(text, str):
                value = {"tokens": text_of(text, where, "text").split()}
        return super().read(value, where)

    def checked(self, values, where):
        texts, unit = self._kind.texts(values, where, self._config)
        return Example("0", where, texts, None, unit)

    def ask(self, inputs):
        labels, keys = self.session.labels, ("cut_tokens", "lost_words")
        features = make_features(self._config, inputs, self.tokenizer, labels)
        arrays = _rows(features.arrays)
        if self._kind.head == "choices":  # each as the only one of its row
            real_NC = arrays["segments"].any(-1)
            arrays = {name: x_NCL[real_NC][:, None] for name, x_NCL in arrays.items()}
        report = {key: n for key in keys if (n := features.report.get(key))}
        return Asked(arrays, (features, inputs), report)

    def answers(self, asked, scores):
        features, examples = asked.state
        kind, labels = self._kind, self.session.labels
        if kind.head == "choices":
            real_NC = features.arrays["segments"].any(-1)
            joined_NC = np.full(real_NC.shape, -np.inf)
            joined_NC[real_NC] = np.concatenate(scores)
            scores = list(joined_NC)
        scored = ((np.array([row]), one[None]) for row, one in enumerate(scores))
        predicted = kind.decode(self._config, features, examples, scored)
        return [
            kind.record(labels, example, kind.read(labels, example, value), value)
            for example, value in zip(examples, predicted, strict=True)
        ]


def _rows(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: arrays[name] for name in ("tokens", "segments", "types")}


def open_endpoint(folder: Path, session: Session) -> Endpoint:
    """Returns what a session answers.

    Raises:
      PlmjaxError: nothing, or the file of its task cannot be read.
    """
    plain = {"fill": Fill, "next": Fill, "detect": Detect, "embed": Embed}
    if session.kind in plain:
        return plain[session.kind](session)
    if session.kind in KINDS:
        return Predict(session, read_task(folder, session.kind, session.labels))
    raise PlmjaxError(
        f"{folder} is a model of kind {session.kind}, which has no endpoint.",
        hint="Serve one that fills masks, detects words, embeds, or was fine-tuned.",
        code=Exit.MODEL,
    )
