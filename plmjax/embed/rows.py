"""Texts as rows, rows of similar length as batches, and the words in the rows."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from plmjax.data.layout import RowPlan, Stream, encode_texts, lay_out, plan_rows
from plmjax.data.packing import count_up
from plmjax.evaluate.batches import Batch
from plmjax.tokenizers import Tokenizer

FRAME = 2  # [CLS] and [SEP]


@dataclasses.dataclass(frozen=True)
class Words:
    """Words of texts, in order; all [words] int64.

    `text` is the index of a word's text, `begin` and `end` its characters there. Its
    pieces are `count` tokens of the row `row`, from index `first` on.
    """

    text: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    row: np.ndarray
    first: np.ndarray
    count: np.ndarray

    def __len__(self) -> int:
        return len(self.text)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows, each of one text or a window of one, and their tokens.

    `sizes` [rows] are tokens with [CLS] and [SEP]; `report` counts long, cut, empty and
    lost texts and words. `words` is None if they are not needed.
    """

    stream: Stream
    plan: RowPlan
    begin: np.ndarray  # [rows] index of the first token in the stream
    sizes: np.ndarray
    report: dict[str, int]
    words: Words | None = None

    @property
    def texts(self) -> int:
        return len(self.stream.sizes)

    def __len__(self) -> int:
        return len(self.sizes)


def make_rows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    length: int,
    long: str,
    stride: int,
    words: bool = False,
) -> Rows:
    """Plans rows of at most `length` tokens; `long` and `stride` as in TaskConfig."""
    spans = None
    if words:
        encoded, spans = tokenizer.encode_spans(texts)
        stream = Stream(*encoded)
    else:
        stream = encode_texts(tokenizer, texts)
    step = stride if long == "window" else None
    plan = plan_rows([stream.sizes], tokenizer, length, step)
    offset = np.cumsum(stream.sizes) - stream.sizes
    begin = offset[plan.example] + plan.start[:, 0]
    report = {
        "texts": len(texts),
        "rows": len(begin),
        "tokens": int(plan.size.sum()) + FRAME * len(begin),
        "windowed_texts": plan.report["windowed_examples"],
        "cut_texts": plan.report["cut_examples"],
        "cut_tokens": plan.report["cut_tokens"],
        "empty_texts": int((stream.sizes == 0).sum()),
    }
    rows = Rows(stream, plan, begin, plan.size[:, 0] + FRAME, report)
    if spans is None:
        return rows
    kept, total = _find_words(rows, spans)
    report |= {"words": len(kept), "lost_words": total - len(kept)}
    return dataclasses.replace(rows, words=kept)


def _find_words(rows: Rows, spans: np.ndarray) -> tuple[Words, int]:
    """Returns the words in the rows, and the number of all words.

    A word is taken from the row with most of its pieces; among several, from the one
    with most context around it.
    """
    sizes = rows.plan.size[:, 0]
    starts = rows.stream.word_start.copy()
    filled = rows.stream.sizes > 0
    offset = np.cumsum(rows.stream.sizes) - rows.stream.sizes
    starts[offset[filled]] = True
    opens = np.flatnonzero(starts)
    number = np.cumsum(starts) - 1  # index of each token's word
    owner = np.repeat(np.arange(rows.texts), rows.stream.sizes)[opens]
    begin = spans[opens, 0].astype(np.int64)
    end = begin
    if len(opens):
        end = np.maximum.reduceat(spans[:, 1], opens).astype(np.int64)
    visible = end > begin  # blanks alone are no word

    row = np.repeat(np.arange(len(rows)), sizes)
    index = count_up(sizes)
    word = number[rows.begin[row] + index]
    new = np.ones(len(word), bool)
    new[1:] = (word[1:] != word[:-1]) | (row[1:] != row[:-1])
    first = np.flatnonzero(new)
    count = np.diff(np.append(first, len(word)))
    row, index, word = row[first], index[first], word[first]
    around = np.minimum(index, sizes[row] - index - count)
    order = np.lexsort((-around, -count, word))
    present, once = np.unique(word[order], return_index=True)
    best, present = order[once][visible[present]], present[visible[present]]
    words = Words(
        text=owner[present],
        begin=begin[present],
        end=end[present],
        row=row[best],
        first=index[best] + 1,  # after [CLS]
        count=count[best],
    )
    return words, int(visible.sum())


def arrays(
    rows: Rows, batch: Batch, tokenizer: Tokenizer, shards: int
) -> dict[str, np.ndarray]:
    """Returns tokens, segments, positions and types of a batch, each [B, L] int32.

    Padding rows make its size a multiple of `shards`.
    """
    sizes = rows.plan.size[batch.rows, 0]
    token = np.repeat(rows.begin[batch.rows], sizes) + count_up(sizes)
    stream = Stream(rows.stream.tokens[token], rows.stream.word_start[token], sizes)
    count = len(batch.rows)
    plan = RowPlan(np.arange(count), np.zeros((count, 1), int), sizes[:, None], {})
    layout = lay_out([stream], plan, batch.length, tokenizer).arrays
    size = -(-batch.size // shards) * shards
    padded = {}
    for name in ("tokens", "segments", "positions", "types"):
        padded[name] = np.zeros((size, batch.length), np.int32)
        padded[name][:count] = layout[name]
    padded["tokens"][count:] = tokenizer.pad_id
    return padded
