"""Exact match and F1 of extracted answers, as SQuAD and CMRC define them.

SQuAD (Rajpurkar et al. 2016 and 2018): before comparing, text is lower-cased, ASCII
punctuation and the articles a, an, the are removed, and white space becomes single
blanks. F1 is over words as a bag. Of several true answers the best counts. A question
without an answer is right only if nothing is answered.

CMRC (Cui et al. 2019), by characters, for Chinese: punctuation and white space are
removed; each character counts, a run of ASCII letters and digits as one; F1 is over the
longest stretch that both have.
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
    """Returns the words that SQuAD compares."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def characters_of(text: str) -> list[str]:
    """Returns the characters that CMRC compares."""
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
    """Returns exact match and F1, each [n] float64, of n questions.

    A question without true answers is unanswerable. `comparison.compare` compares these
    arrays of two models.
    """
    units = characters_of if by_characters else words_of
    overlap = _longest if by_characters else _bag
    exact, f1 = np.zeros(len(predicted)), np.zeros(len(predicted))
    for index, (text, known) in enumerate(zip(predicted, answers, strict=True)):
        ours = units(text)
        # An answer of punctuation alone compares with nothing.
        true = [words for answer in known if (words := units(answer))] or [[]]
        exact[index] = max(ours == one for one in true)
        f1[index] = max(_f1(ours, one, overlap) for one in true)
    return exact, f1


def answer_scores(
    predicted: Sequence[str],
    answers: Sequence[Sequence[str]],
    *,
    by_characters: bool = False,
) -> dict[str, float]:
    """Returns exact_match and f1, means over questions.

    If there are questions with and without an answer, also the means of each
    (has_answer_..., no_answer_...).
    """
    exact, f1 = answer_values(predicted, answers, by_characters=by_characters)
    scores = {"exact_match": float(exact.mean()), "f1": float(f1.mean())}
    has = np.array([bool(known) for known in answers])
    if has.any() and not has.all():
        for name, which in (("has_answer", has), ("no_answer", ~has)):
            scores[f"{name}_exact_match"] = float(exact[which].mean())
            scores[f"{name}_f1"] = float(f1[which].mean())
    return scores


def _f1(ours: list[str], true: list[str], overlap) -> float:
    if not ours or not true:
        return float(ours == true)
    same = overlap(ours, true)
    return 2 * same / (len(ours) + len(true))


def _bag(ours: list[str], true: list[str]) -> int:
    """Returns how many words two answers share, as bags."""
    return (collections.Counter(ours) & collections.Counter(true)).total()


def _longest(ours: list[str], true: list[str]) -> int:
    """Returns the length of the longest stretch that two answers share."""
    matcher = difflib.SequenceMatcher(None, ours, true, autojunk=False)
    return matcher.find_longest_match().size
