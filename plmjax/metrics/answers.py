"""Extracted answers against the true ones: exact match and F1, as SQuAD defines them.

Rajpurkar et al. 2016 and 2018: before comparing, letters become small, ASCII
punctuation and the articles a, an, the go, and white space becomes single blanks. F1
is over words as a bag. Of several true answers the best counts. A question without an
answer is right only if nothing is answered.

By characters, for Chinese, as CMRC (Cui et al. 2019) has it: punctuation and white
space go; each character counts, a run of ASCII letters and digits as one; F1 is over
the longest stretch that both have.
"""

import collections
import difflib
import re
import string
import unicodedata
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UNITS = re.compile("[0-9a-z]+|.", re.DOTALL)


def words_of(text: str) -> list[str]:
    """The words that SQuAD compares."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def characters_of(text: str) -> list[str]:
    """The characters that CMRC compares."""
    kept = [
        letter
        for letter in text.lower()
        if unicodedata.category(letter)[0] not in "PSZC"
    ]
    return _UNITS.findall("".join(kept))


def answer_values(
    predicted: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    by_characters: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Exact match and F1 [n] float64 of each question; no true answers: unanswerable.

    One array of each is what `comparison.compare` needs of two models.
    """
    units = characters_of if by_characters else words_of
    overlap = _longest if by_characters else _bag
    exact, f1 = np.zeros(len(predicted)), np.zeros(len(predicted))
    for place, (text, known) in enumerate(zip(predicted, answers, strict=True)):
        mine = units(text)
        # An answer of punctuation alone compares with nothing.
        true = [found for answer in known if (found := units(answer))] or [[]]
        exact[place] = max(mine == one for one in true)
        f1[place] = max(_f1(mine, one, overlap) for one in true)
    return exact, f1


def answer_scores(
    predicted: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    by_characters: bool = False,
) -> dict[str, float]:
    """exact_match and f1, means over questions; the same of those with an answer and
    without (has_answer_..., no_answer_...) where both are there.
    """
    exact, f1 = answer_values(predicted, answers, by_characters=by_characters)
    scores = {"exact_match": float(exact.mean()), "f1": float(f1.mean())}
    has = np.array([bool(known) for known in answers])
    if has.any() and not has.all():
        for name, which in (("has_answer", has), ("no_answer", ~has)):
            scores[f"{name}_exact_match"] = float(exact[which].mean())
            scores[f"{name}_f1"] = float(f1[which].mean())
    return scores


def _f1(mine: list[str], true: list[str], overlap) -> float:
    if not mine or not true:
        return float(mine == true)
    same = overlap(mine, true)
    return 2 * same / (len(mine) + len(true))


def _bag(mine: list[str], true: list[str]) -> int:
    return (collections.Counter(mine) & collections.Counter(true)).total()


def _longest(mine: list[str], true: list[str]) -> int:
    matcher = difflib.SequenceMatcher(None, mine, true, autojunk=False)
    return matcher.find_longest_match().size
