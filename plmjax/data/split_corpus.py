"""Splits a corpus into train and test files, by document."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import DataError, PlmjaxError, counted
from plmjax.data.clean_corpus import REPORT, Writer, check_new, sign_all
from plmjax.data.corpus import Source
from plmjax.data.near_duplicates import near_duplicates, text_hash, words
from plmjax.files import (
    disk_errors,
    missing,
    no_empty_directory,
    replacing_folder,
    write_json,
)

SIDES = ("train", "test")


def split_corpus(
    source: Source,
    to: Path,
    percent: float,
    *,
    seed: int = 0,
    near: bool = False,
    workers: int | None = None,
) -> dict[str, Any]:
    """Writes train/ and test/ to a new folder; returns the report, ready for JSON.

    A hash of a document's words and the seed decides, so that copies stay together and
    other documents have no effect; with `near`, near-duplicates go where the first of
    them goes. The hash is not that of data.held_out_percent: train/ has its share of
    documents that a run holds out.

    Raises:
      PlmjaxError: a side is empty (code 3); the folder is not empty (2); the disk (5).
    """
    if not 0 < percent < 100:
        raise PlmjaxError(f"--test={percent:g}% must be between 0 and 100.")
    check_new(to)
    firsts: dict[int, int] = {}
    if near:
        first_D = near_duplicates(sign_all(source.documents(), workers)[1])
        copies = np.flatnonzero(first_D != np.arange(len(first_D)))
        firsts = dict(zip(copies.tolist(), first_D[copies].tolist(), strict=True))
    chosen = {first: False for first in firsts.values()}
    with (
        disk_errors(to),
        no_empty_directory(missing(to.parent)),
        replacing_folder(to) as folder,
        contextlib.ExitStack() as stack,
    ):
        for side in SIDES:
            (folder / side).mkdir()
        train, test = (stack.enter_context(Writer(folder / s)) for s in SIDES)
        for number, text in enumerate(source.documents()):
            if number in firsts:
                in_test = chosen[firsts[number]]
            else:
                in_test = is_tested(text, percent, seed)
            if number in chosen:
                chosen[number] = in_test
            (test if in_test else train).add(text)
        stack.close()
        total = train.documents + test.documents
        for side, writer in zip(SIDES, (train, test), strict=True):
            if not writer.documents:
                raise DataError(
                    f"the {side} side is empty: the text is "
                    f"{counted(total, 'document')}, and --test={percent:g}%.",
                    hint="Choose another share or --seed, or check what ends a "
                    "document: --config.data.source.document=line, blank or file.",
                )
        report = {
            "test_percent": percent,
            "seed": seed,
            "near_duplicates_together": len(firsts) if near else None,
            **{
                side: {"documents": writer.documents, "characters": writer.characters}
                for side, writer in zip(SIDES, (train, test), strict=True)
            },
            "source": source.description,
        }
        write_json(folder / REPORT, report)
    return report


def is_tested(text: str, percent: float, seed: int) -> bool:
    """Whether a document goes to the test side; case and punctuation do not matter."""
    key = text_hash(f"split {seed} {' '.join(words(text)) or text}")
    return key < percent / 100 * (1 << 64)
