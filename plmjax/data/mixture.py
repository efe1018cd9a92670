"""Several sources of one training: their shares of the rows, their stores as one.

Each source is prepared alone, and a row holds text of one source. The sources of the
rows follow a fixed pattern, so a batch stays a pure function of seed, step and stores.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.config import number
from plmjax.data.corpus import Source, SourceConfig
from plmjax.data.near_duplicates import text_hash
from plmjax.data.packing import Plan
from plmjax.data.store import SPLITS, Split, Store

# The pattern of sources has so many rows, and begins again: shares are exact to half a
# row of it.
PERIOD = 1 << 16


@dataclasses.dataclass(frozen=True)
class MixedSource(SourceConfig, prefix="data.mixture."):
    """A source of a mixture: the keys of data.source, and its part of the mixture."""

    name: str = ""
    # The source's share, beside the weights of the others; a tuple has one for each
    # phase of data.phases, 0 where the source is not read. None: by its size.
    weight: float | tuple | None = None
    # The source is read at most so often; the others get the rest of its share.
    max_epochs: float | None = number(None, above=0)


def mixed_sources(
    entries: Sequence[Mapping], defaults: SourceConfig
) -> tuple[MixedSource, ...]:
    """Returns the sources of data.mixture; missing keys are those of data.source.

    Raises:
      PlmjaxError: an entry is wrong, or two have one name or one text.
    """
    if defaults.paths or defaults.dataset:
        raise PlmjaxError(
            "data.source and data.mixture both name the text.",
            hint="Set --config.data.source.paths=none, or --config.data.mixture='()'; "
            "a source of the mixture has its own 'paths'.",
        )
    known = config_lib.to_dict(defaults).items()
    base, sources = {key: value for key, value in known if value is not None}, []
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise PlmjaxError(
                f"data.mixture holds {entry!r}; each source is a dict of keys.",
                hint="For example ({'name': 'en', 'paths': 'books/', 'weight': 2},).",
            )
        source = config_lib.build(MixedSource, base | dict(entry), "data.mixture.")
        _check_source(source)
        sources.append(source)
    names = [source.name for source in sources]
    if twice := {name for name in names if names.count(name) > 1}:
        raise PlmjaxError(
            f"data.mixture has two sources with the name {min(twice)!r}.",
            hint="Rename one of them; files of one source go into one 'paths'.",
        )
    own = {"name": "", "weight": None, "max_epochs": None}
    texts = [dataclasses.replace(source, **own) for source in sources]
    if twice := [
        n for n, text in zip(names, texts, strict=True) if texts.count(text) > 1
    ]:
        raise PlmjaxError(
            f"data.mixture: the sources {' and '.join(twice)} are the same text.",
            hint="Name it once, with the sum of their weights.",
        )
    return tuple(sources)


def _check_source(source: MixedSource) -> None:
    if not re.fullmatch(r"[\w.+-]+", source.name):
        raise PlmjaxError(
            f"data.mixture has a source with the name {source.name!r}.",
            hint="Give each a 'name' of letters, digits, '_', '.', '+' and '-'.",
        )
    if not (source.paths or source.dataset or source.kind == "docstrings"):
        raise PlmjaxError(
            f"data.mixture: the source {source.name!r} names no text.",
            hint="Give it 'paths', or the 'dataset' of kind hf.",
        )
    weight = source.weight
    several = isinstance(weight, tuple)
    for value in weight if several else () if weight is None else (weight,):
        if type(value) not in (int, float) or not (value > 0 or several and value == 0):
            raise PlmjaxError(
                f"data.mixture: the weight of {source.name!r} is {weight!r}; a weight "
                "is above 0, and in a tuple, one for each phase, 0 or above.",
                hint="To leave a source out, remove it from data.mixture.",
            )


def phase_weights(
    sources: Sequence[MixedSource],
    temperature: float | tuple | None,
    tokens: Sequence[int],
    phases: int,
) -> np.ndarray:
    """Returns the shares before any limit: [phases, sources] float64, rows sum to 1.

    A share is the weight times tokens ** (1 / temperature). Without a temperature it
    is the weight alone, or without weights in proportion to the tokens.

    Raises:
      PlmjaxError: some sources have no weight, or a phase has no source.
    """
    without = [source.name for source in sources if source.weight is None]
    if temperature is None and without and len(without) < len(sources):
        raise PlmjaxError(
            f"data.mixture: {', '.join(without)} have no weight, but others do.",
            hint="Give all of them one, none, or data.mixture_temperature.",
        )
    power = 1.0 if without else 0.0
    powers = np.full(phases, power)
    if temperature is not None:
        powers = 1 / np.array(_each(temperature, phases, "data.mixture_temperature"))
    shares = np.empty((phases, len(sources)))
    for column, source in enumerate(sources):
        weight = 1.0 if source.weight is None else source.weight
        shares[:, column] = _each(weight, phases, f"the weight of {source.name!r}")
    sizes = np.array(tokens, float) / max(tokens)
    shares *= sizes ** powers[:, None]
    for phase, sums in enumerate(shares.sum(1), 1):
        if not sums:
            raise PlmjaxError(
                f"data.mixture: no source has a weight in phase {phase}.",
                hint="A tuple of weights has one for each phase; some must be above 0.",
            )
    return shares / shares.sum(1, keepdims=True)


def _each(value: float | tuple, phases: int, name: str) -> Sequence[float]:
    """Returns a value for each phase; a number is that of all."""
    if not isinstance(value, tuple):
        return [value] * phases
    if len(value) != phases:
        raise PlmjaxError(
            f"{name} has {len(value)} values, but there are {phases} phases.",
            hint="Give one number, or one for each phase of data.phases.",
        )
    return value


def limited(share_S: np.ndarray, rows: int, most_S: np.ndarray) -> np.ndarray:
    """Returns shares [S] in which no source gives more than most_S of so many rows.

    What a limited source does not give, the others give in their proportions.

    Raises:
      PlmjaxError: all sources together have too few rows.
    """
    shares, fixed = share_S.copy(), np.zeros(len(share_S), bool)
    while (over := ~fixed & (shares * rows > most_S * (1 + 1e-9))).any():
        fixed |= over
        shares[fixed] = np.minimum(share_S > 0, most_S / rows)[fixed]
        others = share_S * ~fixed
        if not others.sum():
            most = int(most_S[share_S > 0].sum())
            raise PlmjaxError(
                f"data.mixture: max_epochs leaves {most:,} rows for a phase of "
                f"{rows:,} rows.",
                hint="Train for fewer steps, raise max_epochs, or give more text.",
            )
        shares[~fixed] = (others * (1 - shares[fixed].sum()) / others.sum())[~fixed]
    return shares


@dataclasses.dataclass(frozen=True)
class Mix:
    """The sources of a phase's rows: row n of the phase is of pattern_P[n % P].

    `rank_P` counts the rows of the same source before it in the pattern, `count_S` all
    in it. `before_S` are the rows of each source that earlier phases have read.
    """

    pattern_P: np.ndarray
    rank_P: np.ndarray
    count_S: np.ndarray
    before_S: np.ndarray

    def locate(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source of rows of a phase, and their number in the source."""
        period, slot = np.divmod(index, len(self.pattern_P))
        source = self.pattern_P[slot]
        place = period * self.count_S[source] + self.rank_P[slot]
        return source, self.before_S[source] + place

    def read(self, rows: int) -> np.ndarray:
        """Returns [S]: how many of the first rows of a phase are of each source."""
        periods, rest = divmod(rows, len(self.pattern_P))
        some = np.bincount(self.pattern_P[:rest], minlength=len(self.count_S))
        return periods * self.count_S + some


def make_mix(share_S: np.ndarray, before_S: np.ndarray) -> Mix:
    """Returns the pattern of shares: each source's rows stand at equal distances.

    So of any number of rows, from the first on, each source has its share to within a
    row or two.
    """
    exact = share_S * PERIOD
    count = np.floor(exact).astype(np.int64)
    rest = np.argsort(count - exact, kind="stable")[: PERIOD - count.sum()]
    count[rest] += 1
    source = np.repeat(np.arange(len(count)), count)
    rank = np.concatenate([np.arange(n) for n in count])
    order = np.argsort((rank + 0.5) / count[source], kind="stable")
    return Mix(source[order], rank[order], count, before_S)


@dataclasses.dataclass(frozen=True)
class JoinedPlan(Plan):
    """The rows of all sources: those of source s end at ends[s]."""

    ends: np.ndarray

    @property
    def bounds(self) -> np.ndarray:
        """The rows' ends, source by source, after 0."""
        return np.concatenate([[0], self.ends])


def join_plans(split: "JoinedSplit", plans: Sequence[Plan]) -> JoinedPlan:
    """Returns the plans of a split's parts as one."""
    pieces = np.cumsum([0, *(len(plan.start) for plan in plans)])
    firsts = [plan.first[:-1] + n for plan, n in zip(plans, pieces, strict=False)]
    starts = [plan.start + n for plan, n in zip(plans, split.begins, strict=False)]
    return JoinedPlan(
        length=plans[0].length,
        first=np.concatenate([*firsts, pieces[-1:]]),
        start=np.concatenate(starts),
        size=np.concatenate([plan.size for plan in plans]),
        ends=np.cumsum([plan.rows for plan in plans]),
    )


class JoinedSplit(Split):
    """The splits of several stores end to end, without their sentences."""

    def __init__(self, parts: Sequence[Split]):
        self.parts = list(parts)
        self.name, self.sentences = self.parts[0].name, None
        self.begins = np.cumsum([0, *(part.tokens for part in self.parts)])
        self.tokens = int(self.begins[-1])
        self.documents = sum(part.documents for part in self.parts)
        ends = zip(self.parts, self.begins, strict=False)
        offsets = [np.asarray(part.offsets[:-1]) + begin for part, begin in ends]
        self.offsets = np.concatenate([*offsets, self.begins[-1:]])

    def __reduce__(self):
        return JoinedSplit, (self.parts,)

    def read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32, word_start bool) at positions of the joined stream."""
        tokens = np.empty(np.shape(index), np.int32)
        starts = np.empty(np.shape(index), bool)
        of = np.searchsorted(self.begins, index, side="right") - 1
        for source, part in enumerate(self.parts):
            here = of == source
            if here.all():
                return part.read(index - self.begins[source])
            if here.any():
                values = part.read(index[here] - self.begins[source])
                tokens[here], starts[here] = values
        return tokens, starts


class JoinedStore(Store):
    """The stores of the sources of a mixture, by name, as one."""

    def __init__(self, parts: Mapping[str, Store]):
        self.parts = dict(parts)
        first = next(iter(self.parts.values()))
        self.directory = Path(first.directory).parent
        for name, part in self.parts.items():
            if part.manifest["tokenizer"] != first.manifest["tokenizer"]:
                raise PlmjaxError(
                    f"data.mixture: the token store of {name!r} was made with another "
                    "tokenizer than the first one's.",
                    hint=f"Delete {part.directory}; the next run prepares it again.",
                )
        keys = [[name, part.key] for name, part in self.parts.items()]
        self.key = hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:24]
        splits = [part.manifest["splits"] for part in self.parts.values()]
        self.manifest = {
            "splits": {
                name: {
                    what: sum(split[name][what] for split in splits)
                    for what in ("documents", "tokens")
                }
                for name in SPLITS
            },
            "source": {"kind": "mixture", "sources": self._facts()},
        }
        self._splits = {
            name: JoinedSplit([part.split(name) for part in self.parts.values()])
            for name in SPLITS
        }

    def __reduce__(self):
        return JoinedStore, (self.parts,)

    def _facts(self) -> list[dict]:
        """The facts of each source for the model card."""
        return [
            {
                "name": name,
                **part.manifest["source"],
                **{
                    what: sum(part.manifest["splits"][split][what] for split in SPLITS)
                    for what in ("documents", "tokens")
                },
            }
            for name, part in self.parts.items()
        ]

    @property
    def unigram(self) -> np.ndarray:
        """[V] int64: the count of each token in the train split."""
        return np.sum([part.unigram for part in self.parts.values()], axis=0)

    def split(self, name: str) -> JoinedSplit:
        """The split train or held_out."""
        return self._splits[name]


def sampled_documents(
    sources: Sequence[Source],
    entries: Sequence[MixedSource],
    temperature: float | tuple | None,
    phases: int,
) -> Iterator[str]:
    """Yields documents in about the shares of the mixture, all phases together.

    Of sources that training reads less often than another one, documents are left out
    by their hash, so that the vocabulary is not that of the largest source.
    """
    kept = np.ones(len(sources))
    if temperature is not None or any(entry.weight is not None for entry in entries):
        for source in sources:
            for _ in source.documents():  # counts its bytes
                pass
        sizes = [source.description["counts"]["bytes"] for source in sources]
        kept = phase_weights(entries, temperature, sizes, phases).mean(0) / sizes
        kept /= kept.max()
    for source, share in zip(sources, kept.tolist(), strict=True):
        for text in source.documents():
            # Neither the hash that holds out nor the one by which tokenizers sample.
            if text_hash(f"mixture {text}") < share * (1 << 64):
                yield text
