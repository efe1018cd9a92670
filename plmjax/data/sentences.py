"""Rules that cut a text into sentences; joined, they are the text again.

A sentence keeps the white space before it, so that it has the same pieces as inside
the full text: always for WordPiece; for byte-level BPE and unigram if white space
follows the cut. Chinese sentences have none between them: unigram begins each with an
extra "▁", and byte-level BPE cannot join 。「 to one piece across the cut.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator

from plmjax import PlmjaxError

VERSION = 1  # increase it when a rule changes: it is part of a store's key

_CLOSERS = "\"'”’“»)\\]}」』）】》〉"
# Marks that end a sentence before white space; a run of them ends one sentence.
_SPACED = ".!?…؟۔।॥"
# Marks that end it without white space, which is not customary after them.
_UNSPACED = "。！？｡"
# The lookbehinds keep the search linear in long runs of marks or blanks.
_END = re.compile(
    f"(?<![{_SPACED}])(?P<spaced>[{_SPACED}]+)[{_CLOSERS}]*"
    # Nested closing quotes may have a thin blank between them.
    "(?:[ \xa0\u2009\u202f][”’»]+)*(?=\\s+(?P<next>\\S))"
    # (Chinese text with blanks between words has one before a closing quote.)
    f"|(?:[{_UNSPACED}][{_UNSPACED}!?…]*[{_CLOSERS}]*(?: [”’」』）】》〉]+)*"
    "|(?<!…)…+[」』]+"
    # Chinese and Japanese with half-width marks.
    "|(?<![!?])[!?]+(?=[\u3040-\u30ff\u3400-\u9fff]))(?=\\s*(?P<glued>\\S))"
    # A blank line.
    "|(?<=\\S)(?=[^\\S\n]*\n[^\\S\n]*\n\\s*\\S)"
)
_CONTINUES = "，、；：,;:"
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # J, e.g, U.S
_OPENERS = "\"'“‘«([{—–"
# A full stop after these never ends a sentence: they introduce what follows.
_TITLES = frozenset(
    "mr mrs ms mx messrs mme mlle dr prof rev hon gen col capt cpt lt maj sgt st "
    "cf vs viz al approx".split()
)
# A full stop after these does not end a sentence if a number follows.
_COUNTED = frozenset(
    "no nos nr fig figs eq eqs vol p pp ch chap sec art tab bk "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)


_LONGEST = 40  # characters: no abbreviation is longer


def _by_punctuation(text: str) -> Iterator[int]:
    begin = 0
    for match in _END.finditer(text):
        end = match.end()
        if end == begin or not _ends(text, begin, match):
            continue
        yield end
        begin = end


def _ends(text: str, begin: int, match: re.Match) -> bool:
    """Whether `match` really ends the sentence that starts at `begin`."""
    follows = match["next"] or match["glued"]
    if follows is None:  # a blank line
        return True
    # A combining mark belongs to the character before it.
    if follows in _CONTINUES or unicodedata.category(follows)[0] == "M":
        return False
    mark = match["spaced"]
    if mark is None:
        return True
    if follows.islower():
        return False
    if mark != ".":
        return True
    stop = match.start("spaced")
    # Look back only _LONGEST characters: a sentence may have a million.
    return not _abbreviates(text[max(begin, stop - _LONGEST) : stop], follows)


def _abbreviates(before: str, follows: str) -> bool:
    """Whether a single full stop after `before` marks an abbreviation."""
    words = before.split()
    if not words:
        return True  # no word is before it
    word = words[-1].lstrip(_OPENERS)
    if len(words) == 1 and word.isdecimal() and len(before) < _LONGEST:
        return True  # "1. The first of a list"
    if _INITIALS.fullmatch(word):
        return word != "I"  # more often the pronoun than an initial
    name = word.casefold()
    return name in _TITLES or (name in _COUNTED and follows.isdecimal())


def _by_lines(text: str) -> Iterator[int]:
    for match in re.finditer(r"(?<=\S)[^\S\n]*\n\s*(?=\S)", text):
        yield match.start()


RULES: dict[str, Callable[[str], Iterator[int]]] = {
    "lines": _by_lines,
    "punctuation": _by_punctuation,
}


def check_rule(rule: str | None) -> None:
    """Raises PlmjaxError for an unknown rule."""
    if rule is not None and rule not in RULES:
        raise PlmjaxError(
            f"data.sentences={rule!r} is not known.",
            hint=f"Choose one of {', '.join(RULES)}.",
        )


def split_sentences(text: str, rule: str) -> list[str]:
    """Returns the sentences of a text; "".join of them is the text.

    lines: a newline ends a sentence. punctuation: a blank line does, and
      - 。！？｡ with any closing quotes or brackets, unless a comma follows;
        half-width ! and ? before a Chinese or Japanese character;
      - . ! ? … ؟ ۔ । ॥ with any closing quotes or brackets before white space, unless
        a lower-case letter follows. A single full stop does not end a sentence after
        initials (J. S.; e.g.; but I.), a title (Mr.), a number that opens it, or,
        before a number, an abbreviation like No. and Fig.
    """
    ends = [0, *RULES[rule](text), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(ends)]
