"""The data block of a config."""

import dataclasses
import itertools
from typing import Literal, NamedTuple

from plmjax import PlmjaxError
from plmjax.config import Block, number
from plmjax.data.corpus import SourceConfig, check_encoding
from plmjax.data.mixture import MixedSource, mixed_sources, phase_weights


class PhaseShape(NamedTuple):
    """A phase of the config; None: as the keys outside of data.phases say."""

    steps: int | None
    length: int
    batch: int | None
    # The base of the rotations, in place of model.rope_theta.
    rope_theta: float | None = None


@dataclasses.dataclass(frozen=True)
class DataConfig(Block, prefix="data."):
    """The text, and how it becomes rows of tokens."""

    source: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    # In place of texts: a store of `plmjax data prepare` or merge, or another run's
    # workdir; a folder, or gs://BUCKET/PATH or s3://BUCKET/PATH.
    store: str | None = None
    # Several sources in place of data.source: for each a dict of its keys (missing ones
    # are those of data.source) with a name, and perhaps a weight and max_epochs.
    mixture: tuple = ()
    # A source's share is its weight times tokens ** (1 / temperature): 1 is by size,
    # more is more even. A tuple has one for each phase. None: by the weights alone.
    mixture_temperature: float | tuple | None = None
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
    # data.length and train.batch: BERT's 128, then 512. A fourth number is the phase's
    # model.rope_theta: ModernBERT's rows of 1,024 have 10,000, those of 8,192 160,000.
    phases: tuple = ()
    # (tokens, rows): the batch grows from so many rows to that of the (first) phase,
    # in equal steps over the first so many tokens.
    batch_ramp: tuple = ()
    # Train although the text looks wrong; the warnings are printed all the same.
    accept_warnings: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_encoding(self.encoding)
        self._check_mixture()
        for phase in self.phases:
            right = isinstance(phase, tuple) and len(phase) in (3, 4)
            if not right or not (
                all(type(n) is int and n > 0 for n in phase[:3])
                and all(type(n) in (int, float) and n > 0 for n in phase[3:])
            ):
                raise PlmjaxError(
                    f"data.phases holds {phase!r}; each phase is (steps, length, "
                    "batch), three positive whole numbers, or these and a positive "
                    "model.rope_theta."
                )
        if self.batch_ramp and not (
            len(self.batch_ramp) == 2
            and all(type(n) is int and n > 0 for n in self.batch_ramp)
        ):
            raise PlmjaxError(
                f"data.batch_ramp is {self.batch_ramp!r}; it must be (tokens, rows), "
                "two positive whole numbers.",
                hint="ModernBERT has (50_000_000_000, 768) for a batch of 4608.",
            )

    def _check_mixture(self) -> None:
        given = self.mixture_temperature
        some = given if isinstance(given, tuple) else () if given is None else (given,)
        for value in some:
            if type(value) not in (int, float) or not value > 0:
                raise PlmjaxError(
                    f"data.mixture_temperature is {given!r}; it must be above 0, or a "
                    "tuple with one for each phase."
                )
        if given is not None and not self.mixture:
            raise PlmjaxError(
                "data.mixture_temperature is set, but there is no mixture.",
                hint="Name the sources by data.mixture.",
            )
        if sources := self.sources:
            # Their sizes are not known yet, but what is wrong without them is.
            phase_weights(sources, given, [1] * len(sources), len(self.shapes))

    @property
    def sources(self) -> tuple[MixedSource, ...]:
        """The sources of data.mixture; () without one."""
        return mixed_sources(self.mixture, self.source) if self.mixture else ()

    @property
    def shapes(self) -> list[PhaseShape]:
        """The phases; without any in the config, the one of the whole training."""
        shapes = [PhaseShape(*phase) for phase in self.phases]
        return shapes or [PhaseShape(None, self.length, None)]

    @property
    def longest(self) -> int:
        """The largest length of a row, in tokens."""
        return max(shape.length for shape in self.shapes)

    def phase_at(self, step: int) -> PhaseShape:
        """Returns the phase of a step, counted from 0."""
        ends = itertools.accumulate(steps for steps, *_ in self.phases)
        later = (n for n, end in enumerate(ends) if step < end)
        return self.shapes[next(later, -1)]

    def shortened(self, steps: int) -> "DataConfig":
        """Returns the config with phases of `steps` steps in all, in their proportions.

        Phases without a step are left out.
        """
        total = sum(count for count, *_ in self.phases)
        phases, kept, done, before = [], [], 0, 0
        for index, (count, *shape) in enumerate(self.phases):
            done += count
            end = round(steps * done / total)
            if end > before:
                phases.append((end - before, *shape))
                kept.append(index)
            before = end
        ramp = self.batch_ramp
        if ramp:
            ramp = (max(round(ramp[0] * steps / total), 1), ramp[1])

        def of_kept(value):
            several = isinstance(value, list | tuple)
            return tuple(value[index] for index in kept) if several else value

        return dataclasses.replace(
            self,
            phases=tuple(phases),
            batch_ramp=ramp,
            mixture=tuple(
                {**source, "weight": of_kept(source.get("weight"))}
                for source in self.mixture
            ),
            mixture_temperature=of_kept(self.mixture_temperature),
        )
