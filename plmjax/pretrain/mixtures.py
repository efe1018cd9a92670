"""The sources of a run, one or several of a mixture, and their shares of its rows."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from plmjax import PlmjaxError
from plmjax.console import as_lines, as_table
from plmjax.data.config import DataConfig
from plmjax.data.loader import Phase
from plmjax.data.mixture import (
    JoinedStore,
    limited,
    make_mix,
    phase_weights,
    sampled_documents,
)
from plmjax.data.sources import Source, open_source

# Up to about four epochs a text teaches nearly as much as new text (Muennighoff et al.
# 2023, arXiv:2305.16264); a source that is read more often is pointed out.
OFTEN = 4


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Names the source of a mixture in the messages of errors; "" is no mixture."""
    try:
        yield
    except PlmjaxError as error:
        begin = f"data.mixture, source {name!r}: "
        if name and not error.message.startswith(begin):
            error.message = begin + error.message
        raise


def prefixed(name: str, log: Callable[[str], Any]) -> Callable[[str], Any]:
    """Returns a log function whose lines begin with the name of a mixture's source."""
    return (lambda line: log(f"{name}: {line}")) if name else log


def open_sources(data: DataConfig) -> dict[str, Source]:
    """Returns {name: source} of a mixture, or {"": source} of data.source."""
    entries = {source.name: source for source in data.sources} or {"": data.source}
    sources = {}
    for name, entry in entries.items():
        with naming(name):
            source = open_source(
                entry, data.errors, data.encoding, unchecked=data.accept_warnings
            )
        texts = functools.partial(_documents, name, source)
        sources[name] = dataclasses.replace(source, documents=texts)
    return sources


def _documents(name: str, source: Source) -> Iterator[str]:
    with naming(name):
        yield from source.documents()


def fingerprint(data: DataConfig, sources: dict[str, Source]) -> Any:
    """Returns a JSON value of all that determines the vocabulary's documents."""
    if "" in sources:
        return sources[""].fingerprint
    weights = [[source.name, source.weight] for source in data.sources]
    prints = [source.fingerprint for source in sources.values()]
    return [prints, weights, data.mixture_temperature]


def documents(data: DataConfig, sources: dict[str, Source]) -> Iterable[str]:
    """Yields the documents of which a vocabulary is made."""
    if "" in sources:
        return sources[""].documents()
    some, phases = [*sources.values()], len(data.shapes)
    return sampled_documents(some, data.sources, data.mixture_temperature, phases)


def mix(
    data: DataConfig, store: JoinedStore, phases: Sequence[Phase]
) -> tuple[list[Phase], list[dict[str, Any]]]:
    """Returns the phases with the sources of their rows, and facts of each source.

    The facts are its name, documents and tokens to train on, weight, limit of epochs,
    share of the rows of each phase, and epochs: how often its rows are read in all.

    Raises:
      PlmjaxError: the sources are limited to too few rows, or a share is too small.
    """
    sources, parts = data.sources, store.split("train").parts
    tokens = [part.tokens for part in parts]
    count = len(data.shapes)
    weights = phase_weights(sources, data.mixture_temperature, tokens, count)
    most_S = np.array([source.max_epochs or np.inf for source in sources])
    epochs_S, shares, mixed = np.zeros(len(sources)), np.zeros_like(weights), []
    read: dict[int, np.ndarray] = {}  # rows by their length
    stretches: list[list[Phase]] = []
    for phase in phases:  # a batch that grows divides a phase into several
        stretches += [] if phase.before else [[]]
        stretches[-1].append(phase)
    for number, stages in enumerate(stretches):
        plan, rows = stages[0].plan, sum(phase.steps * phase.batch for phase in stages)
        rows_S = np.diff(plan.bounds)
        left_S = np.maximum(most_S - epochs_S, 0) * rows_S
        shares[number] = limited(weights[number], rows, left_S)
        before_S = read.get(plan.length, np.zeros(len(sources), np.int64))
        current = make_mix(shares[number], before_S)
        unread_S = (current.count_S == 0) & (weights[number] > 0) & (left_S > rows)
        if unread_S.any():
            raise PlmjaxError(
                f"data.mixture: the share of {sources[int(np.argmax(unread_S))].name!r}"
                f" is too small to be read: {weights[number][unread_S][0]:.2g}.",
                hint="Raise its weight or data.mixture_temperature, or leave it out.",
            )
        more_S = current.read(rows)
        read[plan.length] = before_S + more_S
        epochs_S += more_S / rows_S
        mixed += [dataclasses.replace(phase, mix=current) for phase in stages]
    facts = [
        {
            "name": source.name,
            "documents": part.documents,
            "tokens": part.tokens,
            "weight": source.weight,
            "max_epochs": source.max_epochs,
            "share": shares[:, index].tolist(),
            "epochs": float(epochs_S[index]),
        }
        for index, (source, part) in enumerate(zip(sources, parts, strict=True))
    ]
    return mixed, facts


def lines(facts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields a table of the sources, and what is read often."""
    head = ("source", "documents", "tokens", "weight", "share of rows", "epochs")
    rows = [
        (
            fact["name"],
            f"{fact['documents']:,}",
            f"{fact['tokens']:,}",
            "by size" if (weight := fact["weight"]) is None else _join(weight, "g"),
            _join(fact["share"], ".2%"),
            f"{fact['epochs']:,.2f}",
        )
        for fact in facts
    ]
    yield from as_lines(as_table("Mixture", head, rows)).split("\n")
    for fact in facts:
        if fact["epochs"] > OFTEN and fact["max_epochs"] is None:
            yield (
                f"WARNING: the source {fact['name']} is read {fact['epochs']:,.1f} "
                f"times; 'max_epochs': {OFTEN} in data.mixture limits it."
            )


def _join(values: float | Sequence[float], form: str) -> str:
    """Returns a figure, or those of all phases, as text."""
    return ", ".join(format(value, form) for value in np.atleast_1d(values).tolist())


def digest(phases: Sequence[Phase]) -> dict[str, str]:
    """Returns the digest of a mixture's shares, that binds a checkpoint; {} without."""
    if phases[0].mix is None:
        return {}
    counts = [phase.mix.count_S.tolist() for phase in phases if phase.mix]
    return {"mixture": hashlib.sha256(json.dumps(counts).encode()).hexdigest()}
