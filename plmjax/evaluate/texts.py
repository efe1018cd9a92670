"""Scores of several models on the same words of a text: `plmjax evaluate --text`.

Legend: B rows, L tokens, K slots a row, H width, U units (the hidden words; windows of
text, for causal models), D documents.
"""

import dataclasses
import functools
import itertools
import math
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.data.prepare import is_held_out
from plmjax.data.sources import Source
from plmjax.evaluate.batches import make_batches
from plmjax.evaluate.model import (
    Model,
    is_finetuned,
    is_run,
    longest_row,
    open_model,
)
from plmjax.evaluate.words import cut_windows, free_borders, hidden_words, is_mark
from plmjax.metrics.comparison import compare_by
from plmjax.models import EncoderConfig, Platform, heads
from plmjax.models.global_tokens import with_room
from plmjax.models.layers import cross_entropy
from plmjax.tokenizers import Tokenizer
from plmjax.workdir import Workdir

_BLOCK = 256  # documents that are tokenised at once
_MOST_GROUPS = 1000  # of documents, which the bootstrap draws from
_FRAME = 2  # [CLS] and [SEP]


class Contender(NamedTuple):
    """A model by the user's name for it; its rows have up to `length` tokens."""

    name: str
    model: Model
    length: int

    @property
    def causal(self) -> bool:
        """Whether it guesses each token from those before it."""
        return self.model.encoder.causal


def open_contender(path: str, checkpoint: str = "newest") -> Contender:
    """Opens a model for `score_texts`.

    Raises:
      PlmjaxError: as `open_model`, or it is a fine-tuned model.
    """
    if is_finetuned(Path(path)):
        raise PlmjaxError(
            f"{path} is a fine-tuned model, which predicts labels and no words.",
            hint=f"`plmjax evaluate --workdir={path} --input=FILE` scores it on "
            "labelled data; for --text give the model that it was made from.",
        )
    model = open_model(path, checkpoint)
    name = path if model.part == "model" else f"{path} ({model.part})"
    return Contender(name, model, longest_row(path, model))


class Row(NamedTuple):
    """A model's tokens of a window, and the `labels` of the slots to guess.

    `at` [K] are the slots' positions, `unit` [K] the numbers of their units.
    """

    tokens: np.ndarray
    at: np.ndarray
    labels: np.ndarray
    unit: np.ndarray


@dataclasses.dataclass
class Units:
    """What is scored, in order of the text: each unit's document and UTF-8 bytes."""

    document: list[int] = dataclasses.field(default_factory=list)
    bytes: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Plan:
    """The rows of each model, and their units; `spelled` [models][U] are unknown bytes.

    They are the bytes of a unit for which a model has [UNK] or no piece at all.
    """

    words: Units
    windows: Units
    rows: list[list[Row]]
    spelled: list[list[int]]
    documents: int = 0
    left_out: int = 0  # characters in no window

    def units(self, contender: Contender) -> Units:
        """Returns the units that a model is scored on."""
        return self.windows if contender.causal else self.words


def make_plan(
    contenders: Sequence[Contender], documents: Iterable[str], most: int | None = None
) -> Plan:
    """Cuts documents into windows that fit into all models, and hides their words.

    `most`: the number of windows after which the text is not read on.

    Raises:
      PlmjaxError: the text has no word to hide.
    """
    plan = Plan(Units(), Units(), [[] for _ in contenders], [[] for _ in contenders])
    documents, most = iter(documents), sys.maxsize if most is None else most
    while some := list(itertools.islice(documents, _BLOCK)):
        encoded = [_encode(c.model.tokenizer, some) for c in contenders]
        for text, *pieces in zip(some, *encoded, strict=True):
            if left := most - len(plan.windows.bytes):
                _add_document(plan, contenders, text, pieces, left)
        if not left:
            break
    if not plan.words.bytes:
        raise PlmjaxError(
            f"--text: none of the {plan.documents:,} documents has a word to hide.",
            hint="Give more text.",
            code=Exit.DATA,
        )
    return plan


def _encode(
    tokenizer: Tokenizer, texts: list[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the tokens [P] of each text and their characters [P, 2]."""
    encoded, spans = tokenizer.encode_spans(texts)
    ends = np.cumsum(encoded.lengths)
    for end, size in zip(ends, encoded.lengths, strict=True):
        yield encoded.tokens[end - size : end], spans[end - size : end].astype(np.int64)


def _add_document(
    plan: Plan,
    contenders: Sequence[Contender],
    text: str,
    pieces: Sequence[tuple[np.ndarray, np.ndarray]],
    most: int,
) -> None:
    """Adds the first `most` windows of a document; `pieces` are those of each model."""
    free = free_borders(len(text), [spans for _, spans in pieces])
    begins = [np.maximum.accumulate(spans[:, 0]) for _, spans in pieces]
    rooms = [c.length - _FRAME for c in contenders]
    windows = cut_windows(text, free, begins, rooms)
    plan.left_out += len(text) - int((windows[:, 1] - windows[:, 0]).sum())
    windows = windows[:most]
    words = hidden_words(text, free, windows)
    code = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF)
    first_word, first_window = len(plan.words.bytes), len(plan.windows.bytes)
    for units, spans in ((plan.words, words), (plan.windows, windows)):
        units.bytes += _sums(sizes, spans)
        units.document += [plan.documents] * len(spans)
    for c, (tokens, spans), begin, rows, spelled in zip(
        contenders, pieces, begins, plan.rows, plan.spelled, strict=True
    ):
        tokenizer = c.model.tokenizer
        unknown = sizes * _unknown(text, spans[tokens != tokenizer.unk_id])
        spelled += _sums(unknown, windows if c.causal else words)
        edges = np.searchsorted(begin, windows)
        for number, (i, j) in enumerate(edges.tolist(), first_window):
            if c.causal:
                row = _causal_row(tokenizer, tokens[i:j], number)
            else:
                row = _masked_row(tokenizer, tokens[i:j], spans[i:j], words)
                row = row._replace(unit=row.unit + first_word)
            if len(row.at):
                rows.append(row)
    plan.documents += 1


def _sums(values_S: np.ndarray, spans: np.ndarray) -> list[int]:
    """Returns the sum of the values of each span."""
    total = np.concatenate([[0], np.cumsum(values_S)])
    return (total[spans[:, 1]] - total[spans[:, 0]]).tolist()


def _unknown(text: str, spans: np.ndarray) -> np.ndarray:
    """bool [S]: the characters without a piece, but for blanks and combining marks."""
    change = np.zeros(len(text) + 1, np.int64)
    np.add.at(change, spans[:, 0], 1)
    np.add.at(change, spans[:, 1], -1)
    unknown = np.cumsum(change[:-1]) == 0
    for index in np.flatnonzero(unknown).tolist():
        unknown[index] = not (text[index].isspace() or is_mark(text[index]))
    return unknown


def _causal_row(tokenizer: Tokenizer, tokens: np.ndarray, unit: int) -> Row:
    """Each token is guessed from those before it, the first from [CLS]."""
    at = np.arange(len(tokens))
    return Row(np.append(tokenizer.cls_id, tokens), at, tokens, np.full(len(at), unit))


def _masked_row(
    tokenizer: Tokenizer, tokens: np.ndarray, spans: np.ndarray, words: np.ndarray
) -> Row:
    """All pieces of the hidden words are masked."""
    begin, end = spans.T
    word = np.searchsorted(words[:, 0], begin, "right") - 1
    inside = (word >= 0) & (end > begin)
    inside &= begin < np.append(words[:, 1], 0)[word]
    hidden = np.flatnonzero(inside)
    masked = tokens.copy()
    masked[hidden] = tokenizer.require_mask()
    row = np.concatenate([[tokenizer.cls_id], masked, [tokenizer.sep_id]])
    return Row(row, hidden + 1, tokens[hidden], word[hidden])


# --- the model's guesses


class Guessed(NamedTuple):
    """Nats [U] of each unit, whether all its pieces are right [U], and sums of pieces.

    `nats` are without those of unknown bytes.
    """

    nats: np.ndarray
    right: np.ndarray
    pieces: int
    hits: int


def guess(
    contender: Contender,
    rows: Sequence[Row],
    units: int,
    batch: int,
    seen: Callable[[int], Any],
) -> Guessed:
    """Scores rows in float32, `batch` of the longest at once; `seen` counts them."""
    model = contender.model
    encoder = dataclasses.replace(model.encoder, dtype="float32", remat=False)
    platform, params = Platform.of(jax.devices()), jax.device_put(model.params)
    nats, right, hits, done = np.zeros(units), np.ones(units, bool), 0, 0
    if not rows:  # its vocabulary has no piece for any of the units
        return Guessed(nats, right, 0, 0)
    sizes = np.array([len(row.tokens) for row in rows])
    slots: dict[int, int] = {}
    batches = make_batches(sizes, sizes.max(), batch * sizes.max())
    for one in batches:
        most = max(len(rows[index].at) for index in one.rows)
        slots[one.length] = max(slots.get(one.length, 0), most)
    for one in batches:
        some = [rows[index] for index in one.rows]
        shape = (one.size, one.length, slots[one.length])
        arrays = row_arrays(some, model.tokenizer.pad_id, *shape)
        # By default, GPUs and TPUs round float32 to ten bits or fewer.
        with jax.default_matmul_precision("highest"):
            fitting = with_room(encoder, arrays[0]["tokens"], arrays[0]["segments"])
            scored = _guess(fitting, platform, params, *arrays)
        nll_BK, hit_BK = map(np.asarray, scored)
        for row, nll_K, hit_K in zip(some, nll_BK, hit_BK, strict=False):
            size = len(row.at)
            np.add.at(nats, row.unit, nll_K[:size].astype(np.float64))
            np.logical_and.at(right, row.unit, hit_K[:size] > 0)
            hits += int(hit_K[:size].sum())
        done += len(some)
        seen(done)
    return Guessed(nats, right, sum(len(row.at) for row in rows), hits)


def row_arrays(rows: Sequence[Row], pad_id: int, size: int, length: int, slots: int):
    """Returns rows as a batch, and positions and labels [B, K] of their slots."""
    tokens = np.full((size, length), pad_id, np.int32)
    segments, types = np.zeros_like(tokens), np.zeros_like(tokens)
    at, labels = np.zeros((2, size, slots), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row.tokens)] = row.tokens
        segments[number, : len(row.tokens)] = 1
        at[number, : len(row.at)], labels[number, : len(row.at)] = row.at, row.labels
    positions = np.where(segments > 0, np.arange(length, dtype=np.int32), 0)
    batch = {"tokens": tokens, "segments": segments, "types": types}
    return batch | {"positions": positions}, at, labels


@functools.partial(jax.jit, static_argnums=(0, 1))
def _guess(encoder: EncoderConfig, platform: Platform, params, batch, at_BK, labels_BK):
    """Returns the nats of the labels [B, K], and 1 where they have the top score."""
    x_BLH = heads.encode(encoder, params, batch, None, platform)

    def row(given):  # one row at a time: its logits are [K, V]
        x_LH, at_K, labels_K = given
        logits_KV = heads.vocabulary_logits(encoder, params, x_LH[at_K], platform)
        return cross_entropy(logits_KV, labels_K)

    return jax.lax.map(row, (x_BLH, at_BK, jnp.asarray(labels_BK)))


# --- the table


def score_texts(
    contenders: Sequence[Contender],
    plan: Plan,
    batch: int,
    seen: Callable[[str, int, int], Any] = lambda name, total, done: None,
) -> list[dict[str, Any]]:
    """Returns a record a model: its scores, and its difference from the first's.

    bits_per_byte counts the bits of the hidden words, those of all their pieces, over
    their UTF-8 bytes; a byte that the vocabulary cannot spell costs 8 bits more, as
    [UNK] tells nothing of it. accuracy is the share of words with all pieces right.
    For causal models both are of all the text, so their `kind` is "causal" and their
    differences are from the first causal model. loss is in nats a piece of the model.
    """
    records, costs = [], []
    for c, rows, spelled in zip(contenders, plan.rows, plan.spelled, strict=True):
        units = plan.units(c)
        show = functools.partial(seen, c.name, len(rows))
        guessed = guess(c, rows, len(units.bytes), batch, show)
        unknown = np.array(spelled)
        nats = guessed.nats + unknown * math.log(256)
        right = guessed.right & (unknown == 0)
        size = sum(units.bytes)
        accuracy = guessed.hits / max(guessed.pieces, 1) if c.causal else right.mean()
        costs.append(nats)
        records.append(
            {
                "model": c.name,
                "kind": "causal" if c.causal else "masked",
                "bits_per_byte": float(nats.sum() / math.log(2) / size),
                "accuracy": float(accuracy),
                "loss": float(guessed.nats.sum() / max(guessed.pieces, 1)),
                "pieces": guessed.pieces,
                "bytes": size,
                "unknown_share": float(unknown.sum() / size),
            }
        )
    for index, c in enumerate(contenders):
        first = [other.causal for other in contenders].index(c.causal)
        if first != index:
            records[index] |= _difference(plan.units(c), costs[index], costs[first])
    return records


def _difference(units: Units, ours: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    """Returns ours - first in bits a byte, with its interval over documents."""
    _, owner = np.unique(units.document, return_inverse=True)
    groups = int(owner.max()) + 1
    owner = owner * min(groups, _MOST_GROUPS) // groups
    size, a, b = (np.bincount(owner, x).tolist() for x in (units.bytes, ours, first))
    if len(size) < 2:
        return {"difference": (sum(a) - sum(b)) / math.log(2) / sum(size)}
    result = compare_by(
        lambda size, nats: sum(nats) / math.log(2) / sum(size), size, a, b
    )
    verdict = {"a is higher": "worse", "b is higher": "better"}
    return {
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
        "verdict": verdict.get(result.verdict, result.verdict),
    }


def notes(contenders: Sequence[Contender], plan: Plan) -> list[str]:
    """Returns what a reader of the figures must know, a sentence or two each."""
    lines = []
    lengths = {c.name: c.length for c in contenders}
    if len(set(lengths.values())) > 1:
        short = min(lengths, key=lambda name: lengths[name])
        lines.append(
            f"All models see the same windows of text, which fit into {short} "
            f"({lengths[short]} tokens)."
        )
    if plan.left_out:
        lines.append(f"{plan.left_out:,} characters are left out: no window fits them.")
    for what, letter in (("capitals", "A"), ("accents", "é")):
        lose = [c.name for c in contenders if not _keeps(c.model.tokenizer, letter)]
        if lose and len(lose) < len(contenders):
            lines.append(
                f"Without {what}: {', '.join(lose)}. They are spared guessing them, "
                "which makes their figures better than the others'."
            )
    return lines


def _keeps(tokenizer: Tokenizer, letter: str) -> bool:
    normalizer = tokenizer.backend.normalizer
    if normalizer is None:
        return True
    return letter in unicodedata.normalize("NFC", normalizer.normalize_str(letter))


def trained_on(path: str, source: Source) -> str | None:
    """Returns a warning if a run was trained on this very text."""
    if not is_run(Path(path)):
        return None
    workdir = Workdir(path)
    store = (workdir.read("run.json") or {}).get("store")
    manifest = workdir.read(f"data/{store}/manifest.json") or {}
    if manifest.get("source", {}).get("fingerprint") != source.fingerprint:
        return None
    percent = manifest["held_out_percent"]
    held_out = [is_held_out(text, percent) for text in source.documents()]
    return (
        f"WARNING: {path} was trained on this text: {held_out.count(False):,} of its "
        f"{len(held_out):,} documents. Its figures say little about other text."
    )
