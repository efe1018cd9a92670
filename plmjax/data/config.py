"""The data block of a config."""

import dataclasses
from typing import Literal

from plmjax import PlmjaxError
from plmjax.config import Block, number
from plmjax.data.corpus import SourceConfig


@dataclasses.dataclass(frozen=True)
class DataConfig(Block, prefix="data."):
    """Which text, cut into rows of which length."""

    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    # What happens at bytes that are no UTF-8: stop, or put U+FFFD there and count.
    errors: Literal["strict", "replace"] = "strict"
    # What ends a sentence, which pairs of sentences need: a newline, or marks like
    # . and 。 (data/sentences.py); none: the store knows no sentences.
    sentences: Literal["lines", "punctuation"] | None = None
    # Tokens a row, [CLS] and [SEP] included.
    length: int = number(128, at_least=8, hint="128 and 512 tokens are usual.")
    # packed: several documents a row, never attending across; single: one each.
    rows: Literal["packed", "single"] = "packed"
    # Share of the documents, chosen by a hash of their text, that is only evaluated.
    held_out_percent: float = number(
        2.0, above=0, below=100, hint="For example --config.data.held_out_percent=2."
    )
    # Processes that tokenise; none: one a core where the text is large.
    workers: int | None = number(None, at_least=1)
    # Several stretches of training, each (steps, length, batch), in the place of
    # train.steps, data.length and train.batch: BERT's 128, then 512.
    phases: tuple = ()

    def __post_init__(self):
        super().__post_init__()
        for phase in self.phases:
            whole = isinstance(phase, tuple) and len(phase) == 3
            if not whole or not all(type(n) is int and n > 0 for n in phase):
                raise PlmjaxError(
                    f"data.phases holds {phase!r}; each phase is (steps, length, "
                    "batch), three positive whole numbers."
                )
