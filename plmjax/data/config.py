"""The data block of a config."""

import dataclasses
from typing import Literal

from plmjax import PlmjaxError
from plmjax.config import Block, number
from plmjax.data.corpus import SourceConfig, check_encoding


@dataclasses.dataclass(frozen=True)
class DataConfig(Block, prefix="data."):
    """The text, and how it becomes rows of tokens."""

    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    # The files' encoding; UTF-16 with a byte order mark is recognised.
    encoding: str = "utf-8"
    # At invalid bytes: stop with an error, or replace it by U+FFFD and count it.
    errors: Literal["strict", "replace"] = "strict"
    # The end of a sentence, needed for sentence pairs: a newline, or marks like . and
    # 。 (data/sentences.py); None: the store does not record sentences.
    sentences: Literal["lines", "punctuation"] | None = None
    # Tokens in a row, with [CLS] and [SEP].
    length: int = number(128, at_least=8, hint="128 and 512 tokens are usual.")
    # packed: several documents in a row, without attention between them; single: one.
    rows: Literal["packed", "single"] = "packed"
    # Share of the documents, chosen by a hash of their text, kept for evaluation.
    held_out_percent: float = number(
        2.0, above=0, below=100, hint="For example --config.data.held_out_percent=2."
    )
    # Processes that tokenise; None: one per core if the text is large.
    workers: int | None = number(None, at_least=1)
    # Phases of training, each (steps, length, batch), instead of train.steps,
    # data.length and train.batch: BERT's 128, then 512.
    phases: tuple = ()
    # Train although the text looks wrong; the warnings are printed all the same.
    accept_warnings: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_encoding(self.encoding)
        for phase in self.phases:
            triple = isinstance(phase, tuple) and len(phase) == 3
            if not triple or not all(type(n) is int and n > 0 for n in phase):
                raise PlmjaxError(
                    f"data.phases holds {phase!r}; each phase is (steps, length, "
                    "batch), three positive whole numbers."
                )

    def shortened(self, steps: int) -> "DataConfig":
        """Returns the config with phases of `steps` steps in all, in their proportions.

        Phases without a step are left out.
        """
        total = sum(count for count, _, _ in self.phases)
        phases, done, before = [], 0, 0
        for count, length, batch in self.phases:
            done += count
            end = round(steps * done / total)
            if end > before:
                phases.append((end - before, length, batch))
            before = end
        return dataclasses.replace(self, phases=tuple(phases))
