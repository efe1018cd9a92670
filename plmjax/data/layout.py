"""Lays out the tokens of one text or a pair in rows: windows, cuts, special tokens.

A row is [CLS] A [SEP] or [CLS] A [SEP] B [SEP]; with two [SEP] before B if the
vocabulary's rule for pairs has two, as RoBERTa's does.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from plmjax import DataError
from plmjax.data.packing import count_up
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
        blank + word if index else word
        for sentence in sentences
        for index, word in enumerate(sentence)
    ]
    encoded = tokenizer.encode_batch(words)
    sizes = np.maximum(encoded.lengths, 1)
    tokens = np.empty(sizes.sum(), np.int32)
    starts = np.zeros(sizes.sum(), bool)
    filled = np.repeat(encoded.lengths > 0, sizes)
    tokens[filled], starts[filled] = encoded.tokens, encoded.word_start
    if not filled.all():
        if tokenizer.unk_id is None:
            word = words[int(np.flatnonzero(encoded.lengths == 0)[0])]
            raise DataError(
                f"the vocabulary has no token for the word {word!r}, and no [UNK].",
                hint="Remove it from the data, or use another vocabulary.",
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
    tokenizer: Tokenizer,
    length: int,
    stride: int | None = None,
    windowed: int | None = None,
) -> RowPlan:
    """Plans the rows of examples of one or two texts with `sizes` [examples] tokens.

    A row has `length` tokens. Windows of a text begin `stride` tokens apart; None: a
    long text is cut, to one row. In a pair, the longer text is windowed, or always text
    `windowed`. The other keeps up to half of the room, or more if the windowed one
    leaves it. A cut gives the texts the same shares of the room as the first window.
    """
    size = np.stack(sizes, 1)
    count, texts = size.shape
    room = length - (2 if texts == 1 else 2 + _middle(tokenizer))
    every = np.arange(count)
    main = np.full(count, windowed) if windowed is not None else size.argmax(1)
    main_size = size[every, main]
    other = size.sum(1) - main_size
    long = main_size + other > room
    share = np.minimum(other, np.maximum(room // 2, room - main_size))
    kept = np.where(long, share, other)
    width = np.where(long, room - kept, main_size)
    windows = np.ones(count, np.int64)
    step = np.clip(stride or 1, 1, np.maximum(width, 1))
    if stride is not None:
        windows += -(-np.maximum(main_size - width, 0) // step)
    example = np.repeat(every, windows)
    row = np.arange(len(example))
    start = np.zeros((len(example), texts), np.int64)
    held = np.zeros_like(start)
    start[row, main[example]] = count_up(windows) * step[example]
    if texts == 2:
        held[row, 1 - main[example]] = kept[example]
    left = main_size[example] - start[row, main[example]]
    held[row, main[example]] = np.minimum(width[example], left)
    reached = np.minimum(width, main_size) if stride is None else main_size
    lost = size.sum(1) - kept - reached
    report = {
        "examples": count,
        "rows": len(example),
        "windowed_examples": int((windows > 1).sum()),
        "cut_examples": int((lost > 0).sum()),
        "cut_tokens": int(lost.sum()),
    }
    return RowPlan(example.astype(np.int32), start, held, report)


def lay_out(
    streams: Sequence[Stream], plan: RowPlan, length: int, tokenizer: Tokenizer
) -> Layout:
    """Lays a plan's tokens out in rows of `length`, with special tokens and padding."""
    rows = len(plan.example)
    source = np.full(rows * length, -1, np.int64)
    types = np.zeros((rows, length), np.int32)
    tokens = np.full((rows, length), tokenizer.pad_id, np.int32)
    row = np.arange(rows)
    tokens[:, 0] = tokenizer.cls_id
    at = np.ones(rows, np.int64)
    base = [0, *itertools.accumulate(len(stream.tokens) for stream in streams)]
    column = np.arange(length)
    for number, stream in enumerate(streams):
        begin = (np.cumsum(stream.sizes) - stream.sizes)[plan.example]
        size = plan.size[:, number]
        inner = count_up(size)
        here = np.repeat(base[number] + begin + plan.start[:, number], size) + inner
        source[np.repeat(row * length + at, size) + inner] = here
        before, at = at, at + size
        last = number + 1 == len(streams)
        for _ in range(1 if last else _middle(tokenizer)):
            tokens[row, at] = tokenizer.sep_id
            at = at + 1
        if number:
            inside = (column >= before[:, None]) & (column < at[:, None])
            types[inside] = number
    source = source.reshape(rows, length)
    real = column < at[:, None]
    filled = source >= 0
    every = np.concatenate([stream.tokens for stream in streams])
    starts = np.concatenate([stream.word_start for stream in streams])
    tokens[filled] = every[source[filled]]
    word_start = np.zeros((rows, length), bool)
    word_start[filled] = starts[source[filled]]
    arrays = {
        "tokens": tokens,
        "segments": real.astype(np.int32),
        "positions": np.where(real, column, 0).astype(np.int32),
        "types": types,
        "word_start": word_start,
    }
    return Layout(plan, arrays, source, base)
