"""Precision, recall and F1 of the entities that tags mark.

Tags of other schemes (BILOU, BMES, ...) are read as those of the same meaning.

Two rules. The usual one is that of the CoNLL 2000 shared task's script (and of
seqeval): an entity begins at B- or S-, at I- or E- after O, after an entity that S- or
E- has closed, and wherever the kind changes. The strict one accepts only IOB2: an
entity is B- and the I- of its kind that follow; an I- without a B- before it is none.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

Entity = tuple[str, int, int]  # kind, first word, the word after the last
STRICT = "entity_f1_strict"  # the score by the strict rule

_TAG = re.compile("[BIES]-.+")
# The marks of all schemes, and those of CoNLL's script that mean the same.
_MARKS = dict(zip("BIMELSUW", "BIIEESSS", strict=True))
# B-PER or B_PER; PER-B; without a kind.
_FORMS = (
    re.compile("(?P<mark>[BIMELSUW])[-_](?P<kind>.+)", re.IGNORECASE),
    re.compile("(?P<kind>.+)[-_](?P<mark>[BIMELSUW])", re.IGNORECASE),
    re.compile("(?P<mark>[BIMELSUW])(?P<kind>)", re.IGNORECASE),
)

# Marks that no later scheme has.
_NAMES = {"BILOU": "LU", "BMEWO": "W", "BMES": "M", "IOBES": "ES", "IOB": "B"}


class Scheme(NamedTuple):
    """A way to mark entities by tags, and the CoNLL tag (B-, I-, E-, S-) of each tag.

    `kinds` of entities are sorted; "" is the kind of tags that name none.
    """

    name: str
    tags: dict[str, str]
    kinds: list[str]

    def conll(self, sentences: Iterable[Sequence[str]]) -> list[list[str]]:
        """Returns the sentences' tags as CoNLL's script writes them."""
        return [[self.tags[tag] for tag in tags] for tags in sentences]


def find_scheme(tags: Iterable[str]) -> Scheme | None:
    """Returns the scheme of a set of tags; None if they do not all follow one.

    IO, IOB, IOE, IOBES, BILOU (L = E, U = S), BMES and BMEWO (M = I, W = S); the kind
    is after or before the mark, or missing (B, I); marks may be small letters.
    """
    tags = set(tags)
    marked = tags - {"O", "o"}
    for form in _FORMS:
        matches = {tag: form.fullmatch(tag) for tag in marked}
        if not marked or not all(matches.values()):
            continue
        split = {tag: (m["mark"].upper(), m["kind"]) for tag, m in matches.items() if m}
        marks = {mark for mark, _ in split.values()}
        # Parts of speech and other labels can look like rarer forms.
        usual = all(map(_TAG.fullmatch, marked))
        usual |= form is _FORMS[0] and marks <= {*"BILU"} and len(marked) < len(tags)
        ambiguous = len({_MARKS[mark] for mark in marks}) < len(marks)
        if ambiguous or not (usual or ("B" in marks and marks & {*"IMEL"})):
            continue
        names = (n for n, letters in _NAMES.items() if marks & {*letters})
        name = next(names) if marks - {*"IE"} else "IOE" if "E" in marks else "IO"
        conll = dict.fromkeys(tags, "O")
        for tag, (mark, kind) in split.items():
            conll[tag] = f"{_MARKS[mark]}-{kind or '_'}"
        return Scheme(name, conll, sorted({kind for _, kind in split.values()}))
    return None


def broken_tags(sentences: Iterable[Sequence[str]], scheme: Scheme) -> int:
    """Returns how many tags cannot follow the tag before them.

    I or E that continues no entity of its kind; where entities end with E, also what
    follows an entity that has not ended.
    """
    ends = any(tag.startswith("E-") for tag in scheme.tags.values())
    broken = 0
    for tags in scheme.conll(sentences):
        for before, tag in itertools.pairwise(["O", *tags, "O"]):
            is_open = before[0] in "BI"
            if tag[0] in "IE":
                broken += not is_open or before[2:] != tag[2:]
            else:
                broken += ends and is_open
    return broken


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
