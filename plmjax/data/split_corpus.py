"""Splits a corpus into train and test files, by document."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import DataError, PlmjaxError, counted
from plmjax.data.clean_corpus import REPORT, Writer, sign_all
from plmjax.data.corpus import Source
from plmjax.data.near_duplicates import near_duplicates, text_hash, words
from plmjax.files import (
    check_new,
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
    first_D, together = None, None
    if near:
        first_D = near_duplicates(sign_all(source.documents(), workers)[1])
        together = int(np.count_nonzero(first_D != np.arange(len(first_D))))
    in_test = bytearray()  # of each document
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
            first = number if first_D is None else first_D[number]
            alone = first == number
            in_test.append(is_tested(text, percent, seed) if alone else in_test[first])
            (test if in_test[number] else train).add(text)
        stack.close()
        report: dict[str, Any] = {
            "test_percent": percent,
            "seed": seed,
            "near_duplicates_together": together,
        }
        for side, writer in zip(SIDES, (train, test), strict=True):
            if not writer.documents:
                raise DataError(
                    f"the {side} side is empty: the text is "
                    f"{counted(len(in_test), 'document')}, and --test={percent:g}%.",
                    hint="Choose another share or --seed, or check what ends a "
                    "document: --config.data.source.document=line, blank or file.",
                )
            sizes = {"documents": writer.documents, "characters": writer.characters}
            report[side] = sizes
        report["source"] = source.description
        write_json(folder / REPORT, report)
    return report


def is_tested(text: str, percent: float, seed: int) -> bool:
    """Whether a document goes to the test side; case and punctuation do not matter."""
    key = text_hash(f"split {seed} {' '.join(words(text)) or text}")
    return key < percent / 100 * (1 << 64)
