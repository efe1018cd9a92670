"""Precision, recall and F1 of the entities that tags mark.

Two rules. The usual one is that of the CoNLL 2000 shared task's script (and of
seqeval): an entity begins at B- or S-, at I- or E- after O, after an entity that S- or
E- has closed, and wherever the kind changes. The strict one accepts only IOB2: an
entity is B- and the I- of its kind that follow; an I- without a B- before it is none.
"""

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

Entity = tuple[str, int, int]  # kind, first word, the word after the last
STRICT = "entity_f1_strict"  # the score by the strict rule

_TAG = re.compile("[BIES]-.+")


def has_entities(tags: Iterable[str]) -> bool:
    """Whether all tags are O or B-, I-, E-, S- with a kind, and not all are O."""
    marked = set(tags) - {"O"}
    return bool(marked) and all(map(_TAG.fullmatch, marked))


def entities(tags: Sequence[str], *, strict: bool = False) -> set[Entity]:
    """Returns the entities of one sentence, by the usual or the strict rule.

    A tag that is neither O nor of the form X-kind belongs to no entity.
    """
    spans: set[Entity] = set()
    inner = "I" if strict else "IE"
    kind, begin, closed = "", 0, True
    for index, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-") if _TAG.fullmatch(tag) else ("O", "", "")
        continues = not closed and mark in inner and name == kind
        if kind and not continues:
            spans.add((kind, begin, index))
            kind, closed = "", True
        opens = mark == "B" if strict else mark != "O"
        if opens and not continues:
            kind, begin, closed = name, index, False
        # A tag that ends an entity is part of it.
        if not strict and mark in "SE" and kind:
            closed = True
    return spans


def _f1(counts: np.ndarray) -> float:
    return float(2 * counts[0] / max(counts[1] + counts[2], 1))


# {score: counts [3] of right, predicted and true entities -> its value}.
ENTITY_SCORES: dict[str, Callable[[np.ndarray], float]] = {
    "entity_precision": lambda counts: float(counts[0] / max(counts[1], 1)),
    "entity_recall": lambda counts: float(counts[0] / max(counts[2], 1)),
    "entity_f1": _f1,
    STRICT: _f1,
}


def entity_scores(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Returns entity_precision, entity_recall, entity_f1 and entity_f1_strict.

    The last is by the strict rule, the others by the usual one; all are micro-averaged
    over entities. An entity is right if kind, first and last word are. A score is 0
    where it would be 0 / 0.
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
    """Returns [n, 3]: right, predicted and true entities in each sentence."""
    counts = []
    for true_tags, tags in zip(truth, predicted, strict=True):
        true, ours = entities(true_tags, strict=strict), entities(tags, strict=strict)
        counts.append((len(true & ours), len(ours), len(true)))
    return np.array(counts, int).reshape(-1, 3)
