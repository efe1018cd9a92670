"""Labelled examples as rows of tokens: a row is an example or a window of one.

`Features.report` counts everything that is left out, with long=window or truncate.
"""

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from plmjax import PlmjaxError
from plmjax.data.labelled import Example
from plmjax.data.labels import NO_PLACE
from plmjax.data.layout import (
    Layout,
    Stream,
    encode_texts,
    encode_words,
    lay_out,
    plan_rows,
)
from plmjax.data.packing import count_up
from plmjax.data.tasks import TaskConfig
from plmjax.tokenizers import Tokenizer

NONE = -1  # the label where there is none


@dataclasses.dataclass(frozen=True)
class Features:
    """Rows of a task: the first axis of all `arrays` is the row.

    [N, L] int32 (choices: [N, C, L] with C the most choices of an example; embeddings:
    C the texts of an example): tokens, segments (1 real, 0 padding), positions, types;
    word_start bool. [N]: row int32, its number; weight float32, 1 as made here. label:
    see LABELS. states: a frozen encoder's output (added by plmjax/finetune/cached.py).

    `example` [N] int32 is the example of each row. `spans` [N, L, 2] int32, for
    answers, are each token's characters in the context, -1 elsewhere. `word` [N, L]
    int32, for tags, is the index of the word that a token represents, else -1: each
    word of an example has one token in one of its rows. `report` has counts.
    """

    arrays: dict[str, np.ndarray]
    example: np.ndarray
    report: dict[str, int]
    pad_id: int
    spans: np.ndarray | None = None
    word: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return len(self.example)

    @property
    def length(self) -> int:
        return self.arrays["tokens"].shape[-1]

    def sizes(self) -> np.ndarray:
        """[N] tokens of each row without padding; for choices, of the longest one."""
        sizes = (self.arrays["segments"] > 0).sum(-1)
        return sizes if sizes.ndim == 1 else sizes.max(1)


def make_features(
    config: TaskConfig,
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    labels: Sequence[str] = (),
) -> Features:
    """Makes rows of config.length tokens of examples, and labels if they have any.

    Raises:
      PlmjaxError: a word has no piece in a vocabulary without [UNK], or a marker none.
    """
    make = {
        "tags": _tags,
        "answers": _answers,
        "choices": _choices,
        "embeddings": _belonging,
    }.get(config.kind, _texts)
    features = make(config, examples, tokenizer)
    rows = features.rows
    row = {"row": np.arange(rows, dtype=np.int32), "weight": np.ones(rows, np.float32)}
    features.arrays.update(row)
    if examples[0].label is not None:
        label = LABELS[config.kind](features, examples, labels)
        features.arrays["label"] = label
    return features


# --- rows


def _of(layout: Layout, tokenizer: Tokenizer, **more) -> Features:
    return Features(
        layout.arrays, layout.plan.example, layout.plan.report, tokenizer.pad_id, **more
    )


def _texts(config: TaskConfig, examples, tokenizer: Tokenizer) -> Features:
    if config.columns.entities is not None:
        _check_markers(config, tokenizer)
    streams = [
        encode_texts(tokenizer, texts)
        for texts in zip(*(example.texts for example in examples), strict=True)
    ]
    plan = plan_rows([s.sizes for s in streams], config, tokenizer)
    return _of(lay_out(streams, plan, config.length, tokenizer), tokenizer)


def _check_markers(config: TaskConfig, tokenizer: Tokenizer) -> None:
    """Raises PlmjaxError for a marker that the vocabulary has no piece for."""
    for mark in config.markers:
        found = tokenizer.encode_batch([mark]).tokens
        if not len(found) or tokenizer.unk_id in found:
            raise PlmjaxError(
                f"task.markers: the model's vocabulary has no piece for {mark!r}.",
                hint="Choose two signs that its texts have, for example ('*', '#').",
            )


def _tags(config: TaskConfig, examples, tokenizer: Tokenizer) -> Features:
    stream, first = encode_words(tokenizer, [example.texts for example in examples])
    plan = plan_rows([stream.sizes], config, tokenizer)
    layout = lay_out([stream], plan, config.length, tokenizer)
    row, column = np.nonzero(layout.source >= 0)
    token = layout.source[row, column]
    word = np.full(layout.source.shape, NONE, np.int32)
    # If several windows have a word, take the one with the most context around it.
    edge = np.minimum(column, plan.size[row, 0] + 1 - column)
    begins = np.flatnonzero(first[token] >= 0)
    order = begins[np.lexsort((-edge[begins], token[begins]))]
    _, once = np.unique(token[order], return_index=True)
    best = order[once]
    word[row[best], column[best]] = first[token[best]]
    plan.report["lost_words"] = int((first >= 0).sum() - len(best))
    return _of(layout, tokenizer, word=word)


def _answers(config: TaskConfig, examples, tokenizer: Tokenizer) -> Features:
    questions = encode_texts(tokenizer, [example.texts[0] for example in examples])
    contexts, offsets = _contexts([e.texts[1] for e in examples], tokenizer)
    sizes = [questions.sizes, contexts.sizes]
    plan = plan_rows(sizes, config, tokenizer, windowed=1)
    layout = lay_out([questions, contexts], plan, config.length, tokenizer)
    offsets = np.concatenate([offsets, np.full((1, 2), NONE, np.int32)])
    token = np.maximum(layout.source - layout.base[1], NONE)  # -1: the row of NONE
    return _of(layout, tokenizer, spans=offsets[token])


def _contexts(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[Stream, np.ndarray]:
    """The tokens of each text, and their spans; a repeated text is encoded once."""
    number = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    encoded, offsets = tokenizer.encode_spans([*number])
    which = np.array([number[text] for text in texts])
    sizes = encoded.lengths[which]
    begin = (np.cumsum(encoded.lengths) - encoded.lengths)[which]
    token = np.repeat(begin, sizes) + count_up(sizes)
    stream = Stream(encoded.tokens[token], encoded.word_start[token], sizes)
    return stream, offsets[token]


def _choices(config: TaskConfig, examples, tokenizer: Tokenizer) -> Features:
    counts = np.array([len(example.texts) - 1 for example in examples])
    most = int(counts.max())
    prompts = [e.texts[0] for e in examples for _ in e.texts[1:]]
    streams = [
        encode_texts(tokenizer, prompts),
        encode_texts(tokenizer, [text for e in examples for text in e.texts[1:]]),
    ]
    # The choices of an example share a row: windows would separate them.
    config = dataclasses.replace(config, long="truncate")
    plan = plan_rows([s.sizes for s in streams], config, tokenizer)
    layout = lay_out(streams, plan, config.length, tokenizer)
    number = np.concatenate([np.arange(count) for count in counts])
    owner = np.repeat(np.arange(len(examples)), counts)
    arrays = {}
    for name, flat in layout.arrays.items():
        empty = tokenizer.pad_id if name == "tokens" else 0
        whole = np.full((len(examples), most, config.length), empty, flat.dtype)
        whole[owner, number] = flat
        arrays[name] = whole
    example = np.arange(len(examples), dtype=np.int32)
    return Features(arrays, example, plan.report, tokenizer.pad_id)


def _belonging(config: TaskConfig, examples, tokenizer: Tokenizer) -> Features:
    """Rows of the texts of an example, each with its [CLS] and [SEP], side by side."""
    count = len(examples[0].texts)
    stream = encode_texts(tokenizer, [text for e in examples for text in e.texts])
    # Each text must have one vector: windows would give it several.
    config = dataclasses.replace(config, long="truncate")
    plan = plan_rows([stream.sizes], config, tokenizer)
    layout = lay_out([stream], plan, config.length, tokenizer)
    shape = (len(examples), count, config.length)
    arrays = {name: flat.reshape(shape) for name, flat in layout.arrays.items()}
    example = np.arange(len(examples), dtype=np.int32)
    report = plan.report | {"examples": len(examples)}
    return Features(arrays, example, report, tokenizer.pad_id)


# --- labels


def _class_labels(features: Features, examples, labels) -> np.ndarray:
    """[N] int32."""
    number = {name: place for place, name in enumerate(labels)}
    found = np.array([number[example.label] for example in examples], np.int32)
    return found[features.example]


def _label_sets(features: Features, examples, labels) -> np.ndarray:
    """[N, C] float32, 1 if the row has the label."""
    number = {name: place for place, name in enumerate(labels)}
    found = np.zeros((len(examples), len(labels)), np.float32)
    for place, example in enumerate(examples):
        found[place, [number[name] for name in example.label]] = 1
    return found[features.example]


def _numbers(features: Features, examples, labels) -> np.ndarray:
    """[N] float32."""
    found = np.array([example.label for example in examples], np.float32)
    return found[features.example]


def _word_tags(features: Features, examples, labels) -> np.ndarray:
    """[N, L] int32: the tag at the first piece of each word, -1 elsewhere."""
    assert features.word is not None
    number = {name: place for place, name in enumerate(labels)}
    tags = np.array([number[tag] for e in examples for tag in e.label], np.int32)
    begin = np.cumsum([0, *(len(example.label) for example in examples)])[:-1]
    place = begin[features.example][:, None] + features.word
    return np.where(features.word >= 0, tags[np.maximum(place, 0)], NONE)


def _answer_tokens(features: Features, examples, labels) -> np.ndarray:
    """[N, 2] int32: first and last token of the first answer with a correct position.

    (0, 0): not in this row, or no answer; (-1, -1): all are misplaced. Adds to `report`
    "answers_outside", answers that no row holds completely, and "answers_misplaced".
    """
    assert features.spans is not None
    wanted = np.zeros((len(examples), 2), np.int64)
    for place, example in enumerate(examples):
        good = [answer for answer in example.label if answer[1] != NO_PLACE]
        if example.label:
            wanted[place] = _visible(*good[0]) if good else NONE
    begin, end = wanted[features.example].T[..., None]
    spans = features.spans
    inside = (spans[..., 1] > begin) & (spans[..., 0] < end) & (spans[..., 0] >= 0)
    first = inside.argmax(1)
    last = inside.shape[1] - 1 - inside[:, ::-1].argmax(1)
    row = np.arange(len(inside))
    whole = inside.any(1) & (end > begin)[:, 0]
    whole &= (spans[row, first, 0] <= begin[:, 0]) & (spans[row, last, 1] >= end[:, 0])
    held = np.zeros(len(examples), bool)
    held[features.example[whole]] = True
    there = wanted[:, 1] > wanted[:, 0]
    features.report["answers_outside"] = int((there & ~held).sum())
    features.report["answers_misplaced"] = int((wanted[:, 0] == NONE).sum())
    elsewhere = np.where(begin == NONE, NONE, 0)
    tokens = np.where(whole[:, None], np.stack([first, last], 1), elsewhere)
    return tokens.astype(np.int32)


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


def words_of(
    features: Features, examples: Sequence[Example], values: np.ndarray
) -> list[np.ndarray]:
    """The `values` [N, L] of each example's words; -1 for words that were cut."""
    assert features.word is not None
    found = [np.full(len(example.texts), NONE) for example in examples]
    for row, column in zip(*np.nonzero(features.word >= 0), strict=True):
        word = features.word[row, column]
        found[features.example[row]][word] = values[row, column]
    return found


def answer_text(
    features: Features, examples: Sequence[Example], row: int, first: int, last: int
) -> str:
    """The text of the context from token `first` to `last` of a row; "" for (0, 0).

    Also "" if one is no token of the context, or `last` is before `first`.
    """
    assert features.spans is not None
    begin, end = features.spans[row, first, 0], features.spans[row, last, 1]
    if begin < 0 or end <= begin:
        return ""
    return examples[features.example[row]].texts[1][begin:end]


def _choice_numbers(features: Features, examples, labels) -> np.ndarray:
    """[N] int32."""
    return np.array([example.label for example in examples], np.int32)


def _text_numbers(features: Features, examples, labels) -> np.ndarray:
    """[N, C] int32: texts have the same number if they have the same tokens.

    The loss uses it to exclude equal texts of a batch from the negatives.
    """
    tokens = features.arrays["tokens"]
    number: dict[bytes, int] = {}
    flat = tokens.reshape(-1, tokens.shape[-1])
    found = [number.setdefault(row.tobytes(), len(number)) for row in flat]
    return np.array(found, np.int32).reshape(tokens.shape[:-1])


LABELS: dict[str, Callable[..., np.ndarray]] = {
    "classes": _class_labels,
    "multilabel": _label_sets,
    "regression": _numbers,
    "tags": _word_tags,
    "answers": _answer_tokens,
    "choices": _choice_numbers,
    "embeddings": _text_numbers,
}
