"""The data block of a config."""

import dataclasses
from typing import Literal

from plmjax import PlmjaxError
from plmjax.data.corpus import ERRORS, SourceConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which text, cut into rows of which length."""

    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    # What happens at bytes that are no UTF-8: stop, or put U+FFFD there and count.
    errors: Literal["strict", "replace"] = "strict"
    # What ends a sentence, which pairs of sentences need: a newline, or marks like
    # . and 。 (data/sentences.py); none: the store knows no sentences.
    sentences: Literal["lines", "punctuation"] | None = None
    # Tokens a row, [CLS] and [SEP] included.
    length: int = 128
    # packed: several documents a row, never attending across; single: one each.
    rows: Literal["packed", "single"] = "packed"
    # Share of the documents, chosen by a hash of their text, that is only evaluated.
    held_out_percent: float = 2.0
    # Processes that tokenise; none: one a core where the text is large.
    workers: int | None = None
    # Several stretches of training, each (steps, length, batch), in the place of
    # train.steps, data.length and train.batch: BERT's 128, then 512.
    phases: tuple = ()

    def __post_init__(self):
        if not 0 < self.held_out_percent < 100:
            raise PlmjaxError(
                f"data.held_out_percent is {self.held_out_percent}; it must be above 0 "
                "and below 100.",
                hint="For example --config.data.held_out_percent=2.",
            )
        assert self.errors in ERRORS
        if self.length < 8:
            raise PlmjaxError(
                f"data.length is {self.length}; a row needs at least 8 tokens.",
                hint="128 and 512 are usual.",
            )
        if self.workers is not None and self.workers < 1:
            raise PlmjaxError(f"data.workers is {self.workers}; it must be 1 or more.")
        for phase in self.phases:
            whole = isinstance(phase, tuple) and len(phase) == 3
            if not whole or not all(type(n) is int and n > 0 for n in phase):
                raise PlmjaxError(
                    f"data.phases holds {phase!r}; each phase is (steps, length, "
                    "batch), three positive whole numbers."
                )
