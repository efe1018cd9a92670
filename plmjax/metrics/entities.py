"""Entities in tags, and how many of them were found.

Two rules. The usual one reads what is there, as the CoNLL 2000 shared task's script
did (and seqeval does): an entity begins at B- or S-, at I- or E- after O, after an
entity that S- or E- has closed, and wherever the kind changes. The strict one knows
IOB2 alone: an entity is B- and the I- of its kind that follow; an I- without a B-
before it is none.
"""

import re
from collections.abc import Iterable, Sequence

Entity = tuple[str, int, int]  # kind, first word, the word after the last

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


def entity_scores(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """entity_precision, entity_recall and entity_f1 by the usual rule, micro-averaged
    over all entities, and entity_f1_strict by the strict one.

    An entity is found if kind, first and last word are right. Each is 0 where it would
    be 0 / 0.
    """
    precision, recall, f1 = _score(truth, predicted, strict=False)
    return {
        "entity_precision": precision,
        "entity_recall": recall,
        "entity_f1": f1,
        "entity_f1_strict": _score(truth, predicted, strict=True)[2],
    }


def _score(truth, predicted, *, strict: bool) -> tuple[float, float, float]:
    wanted = found = both = 0
    for true_tags, tags in zip(truth, predicted, strict=True):
        true, mine = entities(true_tags, strict=strict), entities(tags, strict=strict)
        wanted, found = wanted + len(true), found + len(mine)
        both += len(true & mine)
    return (
        both / max(found, 1),
        both / max(wanted, 1),
        2 * both / max(wanted + found, 1),
    )
