"""Answers: the stretch of a context that answers a question, or none."""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from plmjax.data.examples import Example
from plmjax.data.features import NONE
from plmjax.data.layout import Stream, encode_texts, lay_out, plan_rows
from plmjax.data.packing import count_up
from plmjax.data.records import bad_data, text_of
from plmjax.metrics.answers import answer_scores, answer_values
from plmjax.tasks import losses
from plmjax.tasks.base import RUN, TABLES, TaskKind, features_of, rounded, softmax
from plmjax.tasks.classes import Classes
from plmjax.tasks.fields import index_of, list_of
from plmjax.tokenizers import Tokenizer

_MISPLACED = -1  # the start of an answer that is not in the context at answer_start
_MOVED = "answers moved from answer_start to the nearest occurrence"
_NOWHERE = "answers that are nowhere in their context"
_UNITS = {"characters": "characters", "utf16": "UTF-16 units", "bytes": "bytes"}
_NO_ANSWER = (-1, -1)
_BEST = 20  # candidate answers, as usual for SQuAD


class Answers(TaskKind):
    """The texts are (question, context), a label is a tuple of (text, start).

    A start is the index of the answer's first character, -1 if it is misplaced; without
    an answer the tuple is empty. A prediction is {(first character, end): probability},
    and `read` returns the likeliest text, "" for none.
    """

    name = "answers"
    fields = ("question", "context", "answers")
    formats = ("squad", *TABLES)
    suffixes = {"json": "squad"}
    least_labels = 0
    labels_allowed = False
    unique_ids = True
    line_lacks = "its context"
    head = "answers"
    metric = "f1"
    baselines = "none"
    no_pseudo_labels = (
        "an answer's probability is one among the stretches of its context, and is not "
        "comparable between contexts"
    )
    card = Classes.card._replace(
        pipeline="question-answering",
        use="It finds the answer to a question in a text.",
        limit="It extracts a part of the text, which may be no answer.",
        code=RUN + 'question="Who sat?", context="The cat sat on the mat."))',
    )

    def texts(self, values, where, config):
        names = (config.columns.question, config.columns.context)
        question, context = (text_of(values[name], where, name) for name in names)
        if not context.strip():
            raise bad_data(where, "the context is empty.", "Remove the record.")
        return (question, context), context  # a context stays on one side of a split

    def label(self, values, where, config):
        return tuple(_pairs(values[config.columns.answers], where))

    def check_examples(self, examples, config, notes):
        checked, misplaced = [], False
        for example in examples:
            context, answers = example.texts[1], []
            for text, offset in example.label:
                start = _start(context, text, offset, config.offsets)
                misplaced |= start == _MISPLACED
                if start == _MISPLACED and config.misplaced_answers == "nearest":
                    start = _nearest(context, text, offset)
                    moved = start != _MISPLACED
                    notes[_MOVED if moved else _NOWHERE].append(example.where)
                answers.append((text, start))
            checked.append(dataclasses.replace(example, label=tuple(answers)))
        if misplaced and config.misplaced_answers == "error":
            raise _misplaced(examples, config.offsets)
        return checked

    def targets_of(self, train):
        return None

    def complete(self, config, train):
        """Allows "no answer" if train has questions without one, unless it is set."""
        if config.unanswerable is not None:
            return config
        unanswerable = any(not example.label for example in train)
        return dataclasses.replace(config, unanswerable=unanswerable)

    def rows(self, config, examples, tokenizer):
        questions = encode_texts(tokenizer, [example.texts[0] for example in examples])
        contexts, offsets = _contexts([e.texts[1] for e in examples], tokenizer)
        sizes = [questions.sizes, contexts.sizes]
        plan = plan_rows(
            sizes, tokenizer, config.length, config.window_stride, windowed=1
        )
        layout = lay_out([questions, contexts], plan, config.length, tokenizer)
        offsets = np.concatenate([offsets, np.full((1, 2), NONE, np.int32)])
        token = np.maximum(layout.source - layout.base[1], NONE)  # -1: the row of NONE
        return features_of(layout, tokenizer, spans=offsets[token])

    def label_array(self, features, examples, labels):
        """[N, 2] int32: first and last token of the first well-placed answer.

        (0, 0): not in this row, or no answer; (-1, -1): all are misplaced. Adds to
        `report` "answers_outside", answers that no row holds completely, and
        "answers_misplaced".
        """
        assert features.spans is not None
        wanted = np.zeros((len(examples), 2), np.int64)
        for index, example in enumerate(examples):
            good = [answer for answer in example.label if answer[1] != _MISPLACED]
            if example.label:
                wanted[index] = _visible(*good[0]) if good else NONE
        begin, end = wanted[features.example].T[..., None]
        spans = features.spans
        inside = (spans[..., 1] > begin) & (spans[..., 0] < end) & (spans[..., 0] >= 0)
        first = inside.argmax(1)
        last = inside.shape[1] - 1 - inside[:, ::-1].argmax(1)
        row = np.arange(len(inside))
        complete = inside.any(1) & (end > begin)[:, 0]
        complete &= spans[row, first, 0] <= begin[:, 0]
        complete &= spans[row, last, 1] >= end[:, 0]
        held = np.zeros(len(examples), bool)
        held[features.example[complete]] = True
        answered = wanted[:, 1] > wanted[:, 0]
        features.report["answers_outside"] = int((answered & ~held).sum())
        features.report["answers_misplaced"] = int((wanted[:, 0] == NONE).sum())
        elsewhere = np.where(begin == NONE, NONE, 0)
        tokens = np.where(complete[:, None], np.stack([first, last], 1), elsewhere)
        return tokens.astype(np.int32)

    def outputs(self, labels):
        return 2

    # An answer is two choices of a token, beginning and end; each counts half.

    def has(self, batch):
        """True for an answer or "no answer", False for misplaced ones (-1, -1)."""
        return losses.is_real(batch) & (batch["label"][:, 0] >= 0)

    def loss(self, scores, labels, smoothing):
        each = losses.cross_entropy(_by_end(scores), labels, smoothing)
        return each.mean(axis=-1)

    def score(self, scores, labels):
        return losses.is_best(_by_end(scores), labels).prod(axis=-1)

    def divergence(self, p, q):
        each = losses.symmetric_divergence(_by_end(p), _by_end(q))
        return each.mean(axis=-1)

    def soft_loss(self, scores, teacher, temperature):
        both = _by_end(scores), _by_end(teacher)
        each = losses.softened_cross_entropy(*both, temperature)
        return each.mean(axis=-1)

    def decode(self, config, features, examples, scored):
        """The best stretches of all windows; "no answer" has its lowest score."""
        assert features.spans is not None
        best: list[dict] = [{} for _ in examples]
        none = np.full(len(examples), np.inf)
        for rows, scores in scored:
            for row, ends in zip(rows, scores.astype(np.float64), strict=True):
                owner = features.example[row]
                none[owner] = min(none[owner], ends[0].sum())
                spans = features.spans[row, : len(ends)]
                for value, begin, end in _stretches(
                    ends, spans, config.max_answer_tokens
                ):
                    before = best[owner].get((begin, end), -np.inf)
                    best[owner][begin, end] = max(before, value)
        return [
            _probabilities(stretches, nothing, config.unanswerable)
            for stretches, nothing in zip(best, none, strict=True)
            if np.isfinite(nothing)  # else stopped before the windows of this example
        ]

    def mean(self, predictions):
        total: dict = collections.defaultdict(float)
        for prediction in predictions:
            for stretch, value in prediction.items():
                total[stretch] += value / len(predictions)
        return dict(total)

    def read(self, labels, example, prediction):
        return _likeliest(example, prediction)[0]

    def record(self, labels, example, label, prediction):
        text, value, start = _likeliest(example, prediction)
        return {"answer": text, "start": start, "probability": rounded(value)}

    def from_record(self, record):
        return None

    def scores(self, truth, predicted, labels, config=None):
        units = _by_characters(config)
        return answer_scores(predicted, _texts(truth), by_characters=units)

    def correct(self, label):
        return label[0][0] if label else ""

    def each(self, metric, labels, config=None):
        if metric not in ("exact_match", "f1"):
            return None
        column, units = ("exact_match", "f1").index(metric), _by_characters(config)

        def values(truth, predicted):
            both = answer_values(predicted, _texts(truth), by_characters=units)
            return both[column]

        return values

    def majority(self, labels, train):
        """Returns what predicts no answer."""
        return lambda examples: [""] * len(examples)

    def constants(self, truth):
        return [[""] * len(truth)]

    def describe_labels(self, labels):
        without = sum(not label for label in labels)
        return f"{len(labels) - without:,} answers, {without:,} without one"


# --- records


def _pairs(value: Any, where: str) -> list[tuple[str, int]]:
    """(text, start) from SQuAD's list of objects, or from datasets' dict of lists."""
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list):
            texts, starts = [None], [None]
    else:
        answers = [] if value is None else list_of(value, where, "answers")
        objects = [a if isinstance(a, dict) else {} for a in answers]
        texts = [answer.get("text") for answer in objects]
        starts = [answer.get("answer_start") for answer in objects]
    good = len(texts) == len(starts)
    good = good and all(isinstance(text, str) and text for text in texts)
    if not good or any(type(start) is not int for start in starts):
        raise bad_data(
            where,
            "the answers are not of SQuAD's form.",
            'Write [{"text": ..., "answer_start": ...}], or [] where there is none.',
        )
    return list(zip(texts, starts, strict=True))  # pyright: ignore


def _nearest(context: str, text: str, start: int) -> int:
    """Returns the start of the occurrence nearest to `start`, or _MISPLACED."""
    matches = re.finditer(f"(?={re.escape(text)})", context)
    starts = [match.start() for match in matches]
    return min(starts, key=lambda one: abs(one - start), default=_MISPLACED)


def _start(context: str, text: str, offset: int, unit: str) -> int:
    """Returns the index of an answer's first character; _MISPLACED if not there."""
    start = index_of(context, offset, unit)
    return start if start >= 0 and context.startswith(text, start) else _MISPLACED


def _misplaced(examples: Sequence[Example], unit: str) -> Exception:
    """Returns the error for answers that are not at their offset; one is named."""
    answers = [(e, text, offset) for e in examples for text, offset in e.label]
    right = {
        one: [_start(e.texts[1], t, offset, one) >= 0 for e, t, offset in answers]
        for one in _UNITS
    }
    fits, total = {one: sum(which) for one, which in right.items()}, len(answers)
    best = max(_UNITS, key=lambda one: (fits[one], one == unit))
    example, text, offset = next(
        answer
        for answer, ours, theirs in zip(answers, right[unit], right[best], strict=True)
        if not ours and (theirs or best == unit)
    )
    context = example.texts[1]
    start = index_of(context, offset, unit)
    actual = context[start : start + len(text)] if start >= 0 else ""
    closest = _nearest(context, text, offset)
    hint = f"It is at character {closest}."
    if closest == _MISPLACED:
        hint = "It is nowhere in the context."
        if _folded(text) in _folded(context):
            hint = "It is there with other Unicode forms, capitals or white space."
    if best != unit:
        hint += (
            f" answer_start counts {_UNITS[best]} in {fits[best]:,} of {total:,} "
            f"answers, and {_UNITS[unit]} in {fits[unit]:,}: set task.offsets={best}."
        )
    if fits[best] < total:
        hint += (
            " Correct it, or set task.misplaced_answers=nearest, which reads the "
            "nearest occurrence, or keep."
        )
    return bad_data(
        example.where,
        f"the answer {text[:60]!r} (id {example.id}) is not in the context at "
        f"answer_start={offset}, where {actual[:60]!r} is; answers that are not at "
        f"their answer_start: {total - fits[unit]:,} of {total:,}.",
        hint,
    )


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


# --- rows


def _contexts(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[Stream, np.ndarray]:
    """The tokens of each text, and their spans; a repeated text is encoded once."""
    number = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    encoded, offsets = tokenizer.encode_spans([*number])
    which = np.array([number[text] for text in texts])
    sizes = encoded.lengths[which]
    begin = (np.cumsum(encoded.lengths) - encoded.lengths)[which]
    token = np.repeat(begin, sizes) + count_up(sizes)
    stream = Stream(encoded.tokens[token], encoded.word_start[token], sizes)
    return stream, offsets[token]


def _visible(text: str, start: int) -> tuple[int, int]:
    """Characters (begin, end) of an answer without blanks, controls, marks at its edge.

    Vocabularies leave these out, so no token begins or ends with them.
    """
    begin, end = 0, len(text)
    while begin < end and unicodedata.category(text[begin])[0] in "ZCM":
        begin += 1
    while begin < end and unicodedata.category(text[end - 1])[0] in "ZCM":
        end -= 1
    return start + begin, start + end


# --- scores


def _by_end(scores):
    """[B, L, 2] -> [B, 2, L]."""
    return scores.transpose(0, 2, 1)


def _stretches(ends: np.ndarray, spans: np.ndarray, most: int) -> Iterator[tuple]:
    """Yields (score, first character, end) of the best stretches of a row."""
    context = np.flatnonzero(spans[:, 0] >= 0)
    if not len(context):
        return
    sums = ends[context, 0][:, None] + ends[context, 1][None, :]
    index = np.arange(len(context))
    tokens = index[None, :] - index[:, None]
    sums = np.where((tokens >= 0) & (tokens < most), sums, -np.inf)
    flat = sums.ravel()
    count = min(_BEST, len(flat))
    for best in np.argpartition(-flat, count - 1)[:count]:
        first, last = divmod(int(best), len(context))
        begin, end = spans[context[first], 0], spans[context[last], 1]
        if np.isfinite(flat[best]) and end > begin:
            yield flat[best], int(begin), int(end)


def _probabilities(
    stretches: dict, nothing: float, unanswerable: bool | None
) -> dict[tuple[int, int], float]:
    best = sorted(stretches, key=stretches.__getitem__, reverse=True)[:_BEST]
    # Without any stretch, as in an empty context, "no answer" is the only candidate.
    candidates = [*best, _NO_ANSWER] if unanswerable or not best else best
    values = np.array([stretches.get(one, nothing) for one in candidates])
    return dict(zip(candidates, softmax(values).tolist(), strict=True))


def _likeliest(example: Example, prediction: Mapping) -> tuple[str, float, int]:
    """Returns the likeliest answer, its probability and start; "" and -1 for none."""
    (begin, end), value = max(prediction.items(), key=lambda item: item[1])
    if (begin, end) == _NO_ANSWER:
        return "", value, -1
    return example.texts[1][begin:end], value, begin


def _by_characters(config) -> bool:
    return config is not None and config.compare_answers == "characters"


def _texts(truth: Sequence) -> list[list[str]]:
    return [[text for text, _ in answers] for answers in truth]
