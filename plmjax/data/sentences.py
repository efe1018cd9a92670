"""Rules that cut a text into sentences; joined, they are the text again.

A sentence keeps the white space before it, so that its pieces are those it has inside
the whole text: WordPiece's always; byte-level BPE's and unigram's wherever white space
follows the cut. Between Chinese sentences there is none: unigram begins each with a
"▁" of its own, and byte-level BPE cannot join 。「 to one piece across the cut.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator

from plmjax import PlmjaxError

VERSION = 1  # raise it when a rule changes: it is part of a store's key

_CLOSERS = "\"'”’“»)\\]}」』）】》〉"
# What ends a sentence before white space; a run of them ends one sentence.
_SPACED = ".!?…؟۔।॥"
# What ends it even without; white space is not customary after these.
_UNSPACED = "。！？｡"
# The looks back keep it linear in long runs of marks or blanks.
_END = re.compile(
    f"(?<![{_SPACED}])(?P<spaced>[{_SPACED}]+)[{_CLOSERS}]*"
    # Quotes that stand one in another have a thin blank between them.
    "(?:[ \xa0\u2009\u202f][”’»]+)*(?=\\s+(?P<next>\\S))"
    # (Text whose words are parted by blanks has one before a quote that closes.)
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
# Never the end of a sentence: something is called by what follows.
_TITLES = frozenset(
    "mr mrs ms mx messrs mme mlle dr prof rev hon gen col capt cpt lt maj sgt st "
    "cf vs viz al approx".split()
)
# No end before a number.
_COUNTED = frozenset(
    "no nos nr fig figs eq eqs vol p pp ch chap sec art tab bk "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)


_LONGEST = 40  # characters: no abbreviation is longer


def _by_punctuation(text: str) -> Iterator[int]:
    begin = 0
    for found in _END.finditer(text):
        place = found.end()
        if place == begin or not _ends(text, begin, found):
            continue
        yield place
        begin = place


def _ends(text: str, begin: int, found: re.Match) -> bool:
    """Whether what looks like the end of the sentence from `begin` on is one."""
    follows = found["next"] or found["glued"]
    if follows is None:  # a blank line
        return True
    # A combining mark belongs to the character before it.
    if follows in _CONTINUES or unicodedata.category(follows)[0] == "M":
        return False
    mark = found["spaced"]
    if mark is None:
        return True
    if follows.islower():
        return False
    if mark != ".":
        return True
    stop = found.start("spaced")
    # Only so far back: a sentence may be a million characters long.
    return not _abbreviates(text[max(begin, stop - _LONGEST) : stop], follows)


def _abbreviates(before: str, follows: str) -> bool:
    """Whether a single full stop after `before` shortens a word."""
    words = before.split()
    if not words:
        return True  # nothing stands before it
    word = words[-1].lstrip(_OPENERS)
    if len(words) == 1 and word.isdecimal() and len(before) < _LONGEST:
        return True  # "1. The first of a list"
    if _INITIALS.fullmatch(word):
        return word != "I"  # more often the person than somebody's initial
    name = word.casefold()
    return name in _TITLES or (name in _COUNTED and follows.isdecimal())


def _by_lines(text: str) -> Iterator[int]:
    for found in re.finditer(r"(?<=\S)[^\S\n]*\n\s*(?=\S)", text):
        yield found.start()


RULES: dict[str, Callable[[str], Iterator[int]]] = {
    "lines": _by_lines,
    "punctuation": _by_punctuation,
}


def check_rule(rule: str | None) -> None:
    """Raises PlmjaxError for a rule that there is not."""
    if rule is not None and rule not in RULES:
        raise PlmjaxError(
            f"data.sentences={rule!r} is not known.",
            hint=f"Choose one of {', '.join(RULES)}.",
        )


def split_sentences(text: str, rule: str) -> list[str]:
    """The sentences of a text; "".join of them is the text.

    lines: a newline ends a sentence. punctuation: these do, and a blank line:
      - 。！？｡ and the quotes or brackets that close after them, unless a comma
        follows; half-width ! and ? before a Chinese or Japanese character;
      - . ! ? … ؟ ۔ । ॥ (and what closes after them) before white space, unless a
        lower-case letter follows. A single full stop does not end a sentence after
        initials (J. S.; e.g.; but I.), a title (Mr.), a number that opens it, or,
        before a number, an abbreviation like No. and Fig.
    """
    places = [0, *RULES[rule](text), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(places)]
