"""Plans which pieces of documents share a row of L tokens, once for each length.

A document is split into pieces if it is longer than L - 2 tokens, or if a part of it
fills the rest of a row. A packed row holds several pieces, each between a [CLS] and a
[SEP]; attention never crosses from one to another.
Rows of sentence pairs are planned in data/pairs.py; their plans are also saved here.
"""

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import DataError, PlmjaxError
from plmjax.data.packing import Plan, Spans, count_up, lay, pack, pieces_of
from plmjax.data.pairs import PairPlan, PairsConfig, check_negatives, make_pair_plan
from plmjax.data.store import Split
from plmjax.files import replacing

__all__ = ["Plan", "gather", "load_plan", "make_plan"]

# Part of the name of a saved plan: increase it when the packing changes.
_VERSION = 2
_PAIRS_VERSION = 1


def split_documents(offsets: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents into pieces of at most `room` tokens; (start, size), in order."""
    lengths = np.diff(offsets)
    pieces = -(-lengths // room)
    document = np.repeat(np.arange(len(lengths)), pieces)
    start = offsets[:-1][document] + count_up(pieces) * room
    size = np.minimum(room, offsets[1:][document] - start)
    return start, size.astype(np.int32)


def make_plan(
    split: Split, length: int, packed: bool = True, pairs: PairsConfig | None = None
) -> Plan:
    """Plans the rows of `length` tokens of a split, of documents or sentence pairs.

    Raises:
      PlmjaxError: rows too short to hold a token; pairs of a store without sentences.
    """
    if length < 8:
        raise PlmjaxError(
            f"data.length is {length}; a row needs at least 8 tokens.",
            hint="128 and 512 are usual.",
        )
    if pairs is not None:
        plan = make_pair_plan(split, length, packed, pairs)
        check_negatives(split, plan)
        return plan
    start, size = split_documents(np.asarray(split.offsets), length - 2)
    if packed:
        start, size, first = pack(start, size, length)
    else:
        first = np.arange(len(start) + 1)
    return Plan(length, first, start, size)


def load_plan(
    split: Split,
    length: int,
    packed: bool,
    directory: Path,
    pairs: PairsConfig | None = None,
) -> Plan:
    """Loads the plan from `directory`; the first call makes it and saves it there.

    Raises:
      PlmjaxError: the saved plan cannot be read (code 3), or as make_plan.
    """
    shape = f"{split.name}-{length}-{'packed' if packed else 'single'}"
    name = f"rows-v{_VERSION}-{shape}"
    if pairs is not None:  # kind and negatives do not affect the saved arrays
        name = f"pairs-v{_PAIRS_VERSION}-{shape}-{pairs.short_share!r}"
    path = directory / f"{name}.npz"
    fixed: dict[str, Any] = {"length": length}
    if pairs is not None:
        fixed["pairs"] = pairs
    kind = Plan if pairs is None else PairPlan
    names = [f.name for f in dataclasses.fields(kind) if f.name not in fixed]
    if path.exists():
        plan = kind(**fixed | _read(path, names))
        if isinstance(plan, PairPlan):  # may be saved by a run of another kind
            check_negatives(split, plan)
    else:
        plan = make_plan(split, length, packed, pairs)
        with replacing(path) as file:
            np.savez(file, **{name: getattr(plan, name) for name in names})
    return plan


def _read(path: Path, names: list[str]) -> dict[str, Any]:
    try:
        # We open the file because np.load does not close a file that it cannot read.
        with open(path, "rb") as file, np.load(file) as saved:
            return {name: saved[name] for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path.name} in the token store cannot be read ({error}).",
            hint="Delete it; it is computed again from the store.",
        ) from error


def gather(split: Split, plan: Plan, rows: np.ndarray, cls: int, sep: int, pad: int):
    """Returns the arrays of the given rows of a plan, each [len(rows), L], as a dict.

    A row of -1 is empty: all padding, segment 0. "cut" bool marks each [SEP] at which
    the document does not end but continues in another piece.
    """
    piece, row = pieces_of(plan, rows)
    start, size = plan.start[piece], plan.size[piece].astype(np.int64)
    spans = Spans(row, start, size, np.ones_like(size))
    shape = (len(rows), plan.length)
    arrays, at = lay(split, spans, shape, (cls, sep, pad))
    end, offsets = start + size, np.asarray(split.offsets)
    cut = np.zeros(shape, bool)
    continued = offsets[np.searchsorted(offsets, end)] != end
    cut.reshape(-1)[at + size + 1] = continued
    return arrays | {"cut": cut}
