"""Published rules for text of the web: C4, and Gopher's of quality and repetition.

C4: Raffel et al. (2020), section 2.2, without its list of bad words. Gopher: Rae et al.
(2021), appendix A.1.1 and table A1. Words are what stands between blanks; each Chinese
or Japanese character is one, and texts that are mostly such have no rule of word length
or stop words.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from plmjax.data.near_duplicates import UNSPACED, hashes, ngrams
from plmjax.data.sentences import split_sentences

# What each rule measures in a document, with the least and the most that is kept.
LIMITS: dict[str, tuple[str, float, float]] = {
    "gopher-words": ("words", 50, 100_000),
    "gopher-word-length": ("mean characters of a word", 3, 10),
    "gopher-symbols": ("# or ... for each word", 0, 0.1),
    "gopher-bullets": ("share of lines that begin with a bullet", 0, 0.9),
    "gopher-ellipsis": ("share of lines that end with ...", 0, 0.3),
    "gopher-letters": ("share of words with a letter", 0.8, 1),
    "gopher-stop-words": ("of the be to of and that have with", 2, math.inf),
    "repeated-lines": ("share of lines that repeat another", 0, 0.3),
    "repeated-paragraphs": ("share of paragraphs that repeat another", 0, 0.3),
    "repeated-line-characters": ("their share of the characters", 0, 0.2),
    "repeated-paragraph-characters": ("their share of the characters", 0, 0.2),
    **{
        f"repeated-{n}-grams": (f"share of repeated {n} words in a row", 0, most)
        for n, most in enumerate((0.2, 0.18, 0.16, *np.arange(15, 9, -1) / 100), 2)
    },
    "c4-lorem": ("lorem ipsum", 0, 0),
    "c4-brace": ("{", 0, 0),
    "c4-sentences": ("sentences", 3, math.inf),
}
# Rules that remove lines, or parts of them.
LINES = {
    "c4-end": "lines that do not end a sentence",
    "c4-words": "lines of fewer than 5 words",
    "c4-javascript": "lines with the word JavaScript",
    "c4-policy": "lines on cookies, privacy or terms of use",
    "c4-citations": "marks such as [1] and [citation needed]",
}
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_END = tuple(".!?\"'”’»。！？｡」』")
_POLICY = re.compile(
    "terms of use|(privacy|cookie) policy|uses? (of )?cookies", re.IGNORECASE
)
_CITATION = re.compile(r"\[(\d*|edit|citation needed)\]")
_BULLETS = tuple("•‣⁃●○◦■▪*-–")
_DOTS = ("...", "…")
_STOP_WORDS = frozenset("the be to of and that have with".split())


def words_of(text: str) -> tuple[list[str], bool]:
    """Returns the words of a text, and whether most are Chinese or Japanese ones."""
    words = _WORD.findall(text)
    return words, 2 * len(re.findall(f"[{UNSPACED}]", text)) > len(words)


def c4(text: str, without: Collection[str] = ()) -> tuple[str | None, str]:
    """Removes lines that are no sentences, then documents of too few.

    Returns the text that is kept, or None, and the rules that acted.
    """
    acted, kept = {}, []
    if "c4-citations" not in without and _CITATION.search(text):
        text, acted = _CITATION.sub("", text), {"c4-citations": None}
    for line in text.split("\n"):
        broken = line.strip() and next(
            (r for r in _broken(line) if r not in without), None
        )
        if broken:
            acted[broken] = None
        else:
            kept.append(line.rstrip())
    text = re.sub("\n{3,}", "\n\n", "\n".join(kept)).strip()
    measured = {
        "c4-lorem": text.lower().count("lorem ipsum"),
        "c4-brace": text.count("{"),
        "c4-sentences": len(split_sentences(text, "punctuation")) if text else 0,
    }
    reason = _outside(measured, without)
    return (None, reason) if reason else (text or None, ", ".join(acted))


def _broken(line: str) -> Iterable[str]:
    if not line.rstrip().endswith(_END):
        yield "c4-end"
    if len(words_of(line)[0]) < 5:
        yield "c4-words"
    if "javascript" in line.lower():
        yield "c4-javascript"
    if _POLICY.search(line):
        yield "c4-policy"


def gopher(text: str, without: Collection[str] = ()) -> tuple[str | None, str]:
    """Drops documents whose words and lines are not those of prose.

    Returns the text, or None and the first broken rule, with its figure.
    """
    words, unspaced = words_of(text)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    count, rows = max(len(words), 1), max(len(lines), 1)
    dots = sum(map(text.count, _DOTS))
    measured = {
        "gopher-words": len(words),
        "gopher-word-length": sum(map(len, words)) / count,
        "gopher-symbols": max(text.count("#"), dots) / count,
        "gopher-bullets": sum(r.startswith(_BULLETS) for r in lines) / rows,
        "gopher-ellipsis": sum(r.endswith(_DOTS) for r in lines) / rows,
        "gopher-letters": sum(any(map(str.isalpha, w)) for w in words) / count,
        "gopher-stop-words": len(_STOP_WORDS & {*text.lower().split()}),
    }
    if unspaced:
        del measured["gopher-word-length"], measured["gopher-stop-words"]
    reason = _outside(measured, without)
    return (None, reason) if reason else (text, "")


def repetition(text: str, without: Collection[str] = ()) -> tuple[str | None, str]:
    """Drops documents that repeat themselves: lines, paragraphs, words in a row.

    What repeats an earlier one counts, the first does not; blanks count nowhere.
    Returns the text, or None and the first broken rule, with its figure.
    """
    measured = {}
    for what, separator in (("line", "\n+"), ("paragraph", "\n\\s*\n")):
        parts = [*filter(None, map(str.strip, re.split(separator, text)))]
        repeated = sum(map(len, parts)) - sum(map(len, {*parts}))
        copies = len(parts) - len({*parts})
        measured[f"repeated-{what}s"] = copies / max(len(parts), 1)
        share = repeated / max(sum(map(len, parts)), 1)
        measured[f"repeated-{what}-characters"] = share
    words = words_of(text)[0]
    hashes_W, ends_W = hashes(words), np.cumsum([0, *map(len, words)])
    for size in range(2, 11):
        share = _repeated_share(ngrams(hashes_W, size), ends_W, size)
        measured[f"repeated-{size}-grams"] = share
    reason = _outside(measured, without)
    return (None, reason) if reason else (text, "")


def _repeated_share(hashes_N: np.ndarray, ends_W: np.ndarray, size: int) -> float:
    """Returns the share of characters in repeated n-grams; `ends_W` has W + 1.

    Up to 4 words, those of the commonest n-gram; from 5, those that repeat another,
    each character once.
    """
    if not len(hashes_N):
        return 0.0
    _, first, counts = np.unique(hashes_N, return_index=True, return_counts=True)
    if size < 5:
        most = counts.argmax()
        width = ends_W[first[most] + size] - ends_W[first[most]]
        return float(counts[most] * width / ends_W[-1] if counts[most] > 1 else 0)
    repeats_N = np.ones(len(hashes_N), np.int64)
    repeats_N[first] = 0
    covers = np.zeros(len(ends_W), np.int64)  # +1 where an n-gram begins, -1 after
    covers[: len(repeats_N)] += repeats_N
    covers[size : size + len(repeats_N)] -= repeats_N
    return float(np.diff(ends_W)[np.cumsum(covers)[:-1] > 0].sum() / ends_W[-1])


def _outside(measured: Mapping[str, float], without: Collection[str]) -> str:
    """Returns the first rule whose figure is outside its limits, with it, or ""."""
    for rule, value in measured.items():
        what, least, most = LIMITS[rule]
        if rule not in without and not least <= value <= most:
            return f"{rule}: {value:,.4g} {what}"
    return ""
