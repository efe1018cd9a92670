"""Lays out the tokens of one text or a pair in rows: windows, cuts, special tokens.

A row is [CLS] A [SEP] or [CLS] A [SEP] B [SEP]; with two [SEP] before B if the
vocabulary's rule for pairs has two, as RoBERTa's does.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.data.packing import count_up
from plmjax.data.tasks import TaskConfig
from plmjax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Stream:
    """Texts end to end: tokens [T] int32, word_start [T] bool, sizes [texts]."""

    tokens: np.ndarray
    word_start: np.ndarray
    sizes: np.ndarray


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """Row r has `size[r, j]` tokens of text j of its example, from `start[r, j]`.

    `example` [N] int32, start and size [N, 1 or 2] int64; `report` has counts.
    """

    example: np.ndarray
    start: np.ndarray
    size: np.ndarray
    report: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Rows: `arrays` of the batch [N, L], and the source of each token.

    `source` [N, L] int64 is the token's index in all streams joined end to end, -1 for
    special tokens and padding; stream j begins at base[j].
    """

    plan: RowPlan
    arrays: dict[str, np.ndarray]
    source: np.ndarray
    base: list[int]


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> Stream:
    """Encodes texts without special tokens."""
    return Stream(*tokenizer.encode_batch(texts))


def encode_words(
    tokenizer: Tokenizer, sentences: Sequence[Sequence[str]]
) -> tuple[Stream, np.ndarray]:
    """Encodes sentences given as words; returns also [T] the word each token begins.

    Words are numbered within the sentence; -1 inside a word. A word without any piece
    (a control character) becomes one [UNK], so that its tag has a token.

    Raises:
      PlmjaxError: the vocabulary has no [UNK] for such a word.
    """
    blank = " " if tokenizer.kind == "bpe" else ""  # GPT-2's words begin with one
    words = [
        blank + word if place else word
        for sentence in sentences
        for place, word in enumerate(sentence)
    ]
    found = tokenizer.encode_batch(words)
    sizes = np.maximum(found.lengths, 1)
    tokens = np.empty(sizes.sum(), np.int32)
    starts = np.zeros(sizes.sum(), bool)
    filled = np.repeat(found.lengths > 0, sizes)
    tokens[filled], starts[filled] = found.tokens, found.word_start
    if not filled.all():
        if tokenizer.unk_id is None:
            word = words[int(np.flatnonzero(found.lengths == 0)[0])]
            raise PlmjaxError(
                f"the vocabulary has no token for the word {word!r}, and no [UNK].",
                hint="Remove it from the data, or use another vocabulary.",
                code=Exit.DATA,
            )
        tokens[~filled] = tokenizer.unk_id
    begin = np.cumsum(sizes) - sizes
    counts = np.array([len(sentence) for sentence in sentences])
    first = np.full(len(tokens), -1, np.int32)
    first[begin] = count_up(counts)
    starts[begin] = True
    ends = np.concatenate([[0], np.cumsum(sizes)])[np.cumsum([0, *counts])]
    return Stream(tokens, starts, np.diff(ends)), first


def _middle(tokenizer: Tokenizer) -> int:
    """The number of [SEP] between the two texts of a pair."""
    return max(tokenizer.backend.num_special_tokens_to_add(True) - 2, 1)


def plan_rows(
    sizes: Sequence[np.ndarray],
    config: TaskConfig,
    tokenizer: Tokenizer,
    windowed: int | None = None,
) -> RowPlan:
    """Plans the rows of examples of one or two texts with `sizes` [examples] tokens.

    In a pair, the longer text is windowed, or always text `windowed`. The other keeps
    up to half of the room, or more if the windowed one leaves it. Truncation gives the
    texts the same shares of the room as the first window.
    """
    size = np.stack(sizes, 1)
    count, texts = size.shape
    room = config.length - (2 if texts == 1 else 2 + _middle(tokenizer))
    every = np.arange(count)
    main = np.full(count, windowed) if windowed is not None else size.argmax(1)
    rest = size.sum(1) - size[every, main]
    own = size[every, main]
    long = own + rest > room
    kept = np.where(long, np.minimum(rest, np.maximum(room // 2, room - own)), rest)
    width = np.where(long, room - kept, own)
    windows = np.ones(count, np.int64)
    stride = np.clip(config.stride, 1, np.maximum(width, 1))
    if config.long == "window":
        windows += -(-np.maximum(own - width, 0) // stride)
    example = np.repeat(every, windows)
    row = np.arange(len(example))
    start = np.zeros((len(example), texts), np.int64)
    taken = np.zeros_like(start)
    start[row, main[example]] = count_up(windows) * stride[example]
    if texts == 2:
        taken[row, 1 - main[example]] = kept[example]
    left = own[example] - start[row, main[example]]
    taken[row, main[example]] = np.minimum(width[example], left)
    reached = own if config.long == "window" else np.minimum(width, own)
    lost = size.sum(1) - kept - reached
    report = {
        "examples": count,
        "rows": len(example),
        "windowed_examples": int((windows > 1).sum()),
        "cut_examples": int((lost > 0).sum()),
        "cut_tokens": int(lost.sum()),
    }
    return RowPlan(example.astype(np.int32), start, taken, report)


def lay_out(
    streams: Sequence[Stream], plan: RowPlan, length: int, tokenizer: Tokenizer
) -> Layout:
    """Puts a plan's tokens into rows of `length`, with special tokens and padding."""
    rows = len(plan.example)
    source = np.full(rows * length, -1, np.int64)
    types = np.zeros((rows, length), np.int32)
    tokens = np.full((rows, length), tokenizer.pad_id, np.int32)
    row = np.arange(rows)
    tokens[:, 0] = tokenizer.cls_id
    at = np.ones(rows, np.int64)
    base = [0, *itertools.accumulate(len(stream.tokens) for stream in streams)]
    place = np.arange(length)
    for number, stream in enumerate(streams):
        begin = (np.cumsum(stream.sizes) - stream.sizes)[plan.example]
        size = plan.size[:, number]
        inner = count_up(size)
        here = np.repeat(base[number] + begin + plan.start[:, number], size) + inner
        source[np.repeat(row * length + at, size) + inner] = here
        before, at = at, at + size
        more = number + 1 < len(streams)
        for _ in range(_middle(tokenizer) if more else 1):
            tokens[row, at] = tokenizer.sep_id
            at = at + 1
        if number:
            inside = (place >= before[:, None]) & (place < at[:, None])
            types[inside] = number
    source = source.reshape(rows, length)
    real = place < at[:, None]
    filled = source >= 0
    every = np.concatenate([stream.tokens for stream in streams])
    starts = np.concatenate([stream.word_start for stream in streams])
    tokens[filled] = every[source[filled]]
    word_start = np.zeros((rows, length), bool)
    word_start[filled] = starts[source[filled]]
    arrays = {
        "tokens": tokens,
        "segments": real.astype(np.int32),
        "positions": np.where(real, place, 0).astype(np.int32),
        "types": types,
        "word_start": word_start,
    }
    return Layout(plan, arrays, source, base)
