"""Entities in tags, and how many of them were found.

Two rules. The usual one reads what is there, as the CoNLL 2000 shared task's script
did (and seqeval does): an entity begins at B- or S-, at I- or E- after O, after an
entity that S- or E- has closed, and wherever the kind changes. The strict one knows
IOB2 alone: an entity is B- and the I- of its kind that follow; an I- without a B-
before it is none.
"""

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

Entity = tuple[str, int, int]  # kind, first word, the word after the last
STRICT = "entity_f1_strict"  # the score by the strict rule

_TAG = re.compile("[BIES]-.+")


def has_entities(tags: Iterable[str]) -> bool:
    """Whether all tags are O or B-, I-, E-, S- with a kind, and not all are O."""
    found = set(tags) - {"O"}
    return bool(found) and all(map(_TAG.fullmatch, found))


def entities(tags: Sequence[str], *, strict: bool = False) -> set[Entity]:
    """The entities of one sentence, by the usual or the strict rule.

    A tag that is neither O nor of the form X-kind belongs to no entity.
    """
    found: set[Entity] = set()
    inner = "I" if strict else "IE"
    kind, begin, closed = "", 0, True
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-") if _TAG.fullmatch(tag) else ("O", "", "")
        goes_on = not closed and mark in inner and name == kind
        if kind and not goes_on:
            found.add((kind, begin, place))
            kind, closed = "", True
        opens = mark == "B" if strict else mark != "O"
        if opens and not goes_on:
            kind, begin, closed = name, place, False
        # What ends an entity by itself is part of it.
        if not strict and mark in "SE" and kind:
            closed = True
    return found


def _f1(counts: np.ndarray) -> float:
    return float(2 * counts[0] / max(counts[1] + counts[2], 1))


# Name of a score -> counts [3] of entities found, predicted, true -> the score.
ENTITY_SCORES: dict[str, Callable[[np.ndarray], float]] = {
    "entity_precision": lambda counts: float(counts[0] / max(counts[1], 1)),
    "entity_recall": lambda counts: float(counts[0] / max(counts[2], 1)),
    "entity_f1": _f1,
    STRICT: _f1,
}


def entity_scores(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """entity_precision, entity_recall and entity_f1 by the usual rule, micro-averaged
    over all entities, and entity_f1_strict by the strict one.

    An entity is found if kind, first and last word are right. Each is 0 where it would
    be 0 / 0.
    """
    usual, strict = (
        entity_counts(truth, predicted, strict=strict).sum(0)
        for strict in (False, True)
    )
    return {
        name: score(strict if name == STRICT else usual)
        for name, score in ENTITY_SCORES.items()
    }


def entity_counts(
    truth: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    strict: bool = False,
) -> np.ndarray:
    """Returns [n, 3]: entities found, predicted, true in each sentence."""
    counts = []
    for true_tags, tags in zip(truth, predicted, strict=True):
        true, mine = entities(true_tags, strict=strict), entities(tags, strict=strict)
        counts.append((len(true & mine), len(mine), len(true)))
    return np.array(counts, int).reshape(-1, 3)
