"""The steps that clean one document after another; each can be pickled.

A step gets a text and returns it, changed or not, or None for a document that is
dropped, and the reason: the rules that acted, the first with its figure.
"""

import dataclasses
import functools
import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from plmjax import PlmjaxError
from plmjax.config import nearest
from plmjax.data.annotated import Notes, read_conll, read_conllu
from plmjax.data.blocks import ending
from plmjax.data.columns import ColumnsConfig
from plmjax.data.corpus import find_inputs
from plmjax.data.corpus_files import KINDS
from plmjax.data.inputs import READERS, lines_of
from plmjax.data.near_duplicates import hashes, ngrams, words
from plmjax.data.records import read_jsonl, read_text
from plmjax.data.rules import LIMITS, LINES, c4, gopher, repetition
from plmjax.machine import package

Step = Callable[[str], tuple[str | None, str]]

DOCUMENT_STEPS = {
    "unicode": "repair mojibake, HTML entities and broken Unicode (ftfy)",
    "language": "keep documents in --languages (py3langid)",
    "c4": "C4's rules: lines that are sentences, three sentences or more",
    "gopher": "Gopher's rules of quality: lengths, symbols, bullets, stop words",
    "repetition": "Gopher's rules of repetition: lines, paragraphs, words in a row",
    "against": "drop documents with 13 words in a row of --against",
    "mask": "e-mail addresses, IP addresses and phone numbers become <email>, ...",
}
CORPUS_STEPS = {
    "lines": "remove lines that stand in many documents, but for the first",
    "exact": "drop copies of an earlier document",
    "near": "drop near-duplicates of an earlier document (MinHash)",
}
STEPS = DOCUMENT_STEPS | CORPUS_STEPS
# They judge no text; ftfy is the only package they need.
DEFAULT = ("unicode", *CORPUS_STEPS)
LEAST_WORDS, MOST_WORDS = 8, 13  # of an n-gram against evaluation texts, as GPT-3's
_LANGUAGE_CHARACTERS = 5000  # enough to tell a language
SURE = 0.5  # a less likely language, as of a heading, drops no document


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """What is cleaned; `check` refuses what does not fit together.

    `without` are single rules of c4, gopher and repetition. A line in
    `line_documents` documents or more is boilerplate.
    """

    steps: tuple[str, ...] = DEFAULT
    without: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    line_documents: int = 10

    def check(self) -> None:
        """Raises PlmjaxError for unknown names and for options without effect."""
        rules = (*LIMITS, *LINES)
        for option, given, known in (
            ("steps", self.steps, STEPS),
            ("without", self.without, rules),
        ):
            for name in given:
                if name not in known:
                    message = f"--{option}={name} is not known."
                    raise PlmjaxError(message, hint=nearest(name, [*known]))
        for step, values in (("language", "languages"), ("against", "against")):
            if (step in self.steps) != bool(getattr(self, values)):
                raise PlmjaxError(
                    f"--{values} and the step {step} need each other.",
                    hint=f"Give --{values}=..., or leave the step out of --steps.",
                )
        if self.line_documents < 2:
            raise PlmjaxError(
                f"--line_documents={self.line_documents} must be at least 2."
            )
        if not self.steps:
            hint = f"Choose some of {', '.join(STEPS)}."
            raise PlmjaxError("--steps is empty.", hint=hint)
        if "unicode" in self.steps:
            package("ftfy")
        if "language" in self.steps:
            known = identifier().labels
            for name in self.languages:
                if name not in known:
                    raise PlmjaxError(
                        f"--languages={name} is not known to py3langid.",
                        hint="Give ISO 639 codes, such as --languages=en,zh.",
                    )


def steps(config: CleanConfig) -> list[tuple[str, Step]]:
    """Returns the steps of single documents by name, in the order of DOCUMENT_STEPS.

    It reads the files of `against`.
    """
    known = read_ngrams(config.against) if config.against else {}
    without = frozenset(config.without)
    all_steps: dict[str, Step] = {
        "unicode": repair,
        "language": functools.partial(in_languages, languages=config.languages),
        "c4": functools.partial(c4, without=without),
        "gopher": functools.partial(gopher, without=without),
        "repetition": functools.partial(repetition, without=without),
        "against": functools.partial(unlike, known=known),
        "mask": mask,
    }
    return [(name, all_steps[name]) for name in DOCUMENT_STEPS if name in config.steps]


@functools.cache
def identifier() -> Any:
    """Returns py3langid's identifier, with probabilities; loaded once a process."""
    langid = package("py3langid").langid
    model = langid.MODEL_FILE
    return langid.LanguageIdentifier.from_model_file(model, norm_probs=True)


def language_of(text: str) -> tuple[str, float]:
    """Returns the likeliest language of a text, ISO 639, and its probability."""
    language, probability = identifier().classify(text[:_LANGUAGE_CHARACTERS])
    return language, float(probability)


def repair(text: str) -> tuple[str | None, str]:
    """Repairs Unicode by ftfy; quotes and full-width characters stay as they are."""
    repaired = package("ftfy").fix_text(text, _ftfy_config()).strip()
    return repaired or None, "" if repaired == text else "unicode"


@functools.cache
def _ftfy_config() -> Any:
    return package("ftfy").TextFixerConfig(
        uncurl_quotes=False,
        # Chinese commas are full-width.
        fix_character_width=False,
        explain=False,
    )


def in_languages(text: str, languages: Sequence[str]) -> tuple[str | None, str]:
    """Drops documents that are surely in another language than these, and names it."""
    language, probability = language_of(text)
    if language in languages or probability < SURE:
        return text, ""
    return None, f"language-{language}: {probability:.2f}"


def unlike(text: str, known: Mapping[int, np.ndarray]) -> tuple[str | None, str]:
    """Drops documents that share an n-gram with evaluation texts (Brown et al., 2020).

    `known` has sorted hashes by n: 13 words; of texts with 8 to 12, all of them.
    Returns the text, or None and the first words that are evaluated on.
    """
    all_words = words(text)
    hashes_W = hashes(all_words)
    for size, known_N in known.items():
        hashes_N = ngrams(hashes_W, size)
        # np.isin would sort the hashes of each document.
        at = np.searchsorted(known_N[:-1], hashes_N)
        shared = np.flatnonzero(known_N[at] == hashes_N)
        if len(shared):
            begin = int(shared[0])
            return None, f"against: {' '.join(all_words[begin : begin + size])}"
    return text, ""


def read_ngrams(paths: Sequence[str]) -> dict[int, np.ndarray]:
    """Returns the hashes of the n-grams of all texts in evaluation files, by n, sorted.

    Texts are the strings of records at any depth, and the lines of other files.
    """
    found: dict[int, list[np.ndarray]] = {}
    for text in evaluation_texts(paths):
        all_words = words(text)
        if len(all_words) >= LEAST_WORDS:
            size = min(len(all_words), MOST_WORDS)
            found.setdefault(size, []).append(ngrams(hashes(all_words), size))
    if not found:
        raise PlmjaxError(
            f"--against={','.join(paths)} holds no text of {LEAST_WORDS} words.",
            hint="Give the files of your evaluation: csv, jsonl, parquet, CoNLL, text.",
        )
    return {n: np.unique(np.concatenate(rows)) for n, rows in sorted(found.items())}


def evaluation_texts(paths: Sequence[str]) -> Iterator[str]:
    """Yields the texts of evaluation files: strings of records, words of CoNLL, lines.

    Raises:
      PlmjaxError: no such file, or one that cannot be read, by file and line.
    """
    for path in find_inputs(tuple(paths), "--against"):
        kind = KINDS.get(ending(path), ending(path))
        if kind in ("conll", "conllu"):
            read = read_conll if kind == "conll" else read_conllu
            records = read(path, ColumnsConfig(), Notes(list))
            yield from (" ".join(record.values["tokens"]) for record in records)
        elif kind == "jsonl":
            try:  # SQuAD is one object
                yield from _strings(json.loads(read_text(path)))
            except (ValueError, RecursionError):
                for record in read_jsonl(path):
                    yield from _strings(record.values)
        elif kind in READERS:
            for record in READERS[kind](path):
                yield from _strings(record.values)
        else:
            yield from lines_of(path)


def _strings(value: Any) -> Iterator[str]:
    """Yields the strings of JSON at any depth; a list of words is one text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and all(
        isinstance(item, str) and " " not in item for item in value
    ):
        yield " ".join(value)
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)


_MAIL = re.compile(r"[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
_ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*)(?!\.?\w)"
)
# + or 0 before groups of digits, or the three groups of North America.
_PHONE = re.compile(
    r"(?<![\w.,-])(?:\+[1-9]\d{0,3}(?:[ ./-]?\(?\d{2,4}\)?){2,5}"
    r"|00?[1-9]\d{0,3}(?:[ /-]\(?\d{2,4}\)?){2,5}"
    r"|(?:\+?1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4})(?![\w-])"
)


def mask(text: str) -> tuple[str | None, str]:
    """Replaces e-mail and IP addresses and what looks like phone numbers by words.

    Returns the text, and what was replaced.
    """
    masked = _MAIL.sub("<email>", text)
    masked = _ADDRESS.sub(_mask_address, masked)
    masked = _PHONE.sub(_mask_phone, masked)
    kinds = ("email", "ip", "phone")
    new = (k for k in kinds if masked.count(f"<{k}>") > text.count(f"<{k}>"))
    return masked, ", ".join(f"mask-{kind}" for kind in new)


def _mask_address(match: re.Match) -> str:
    raw = match[0].rstrip(".:") if not match[0].endswith("::") else match[0]
    try:
        ipaddress.ip_address(raw)
    except ValueError:
        return match[0]
    # "1::" is rather C++.
    return match[0] if len(raw) < 6 else "<ip>" + match[0][len(raw) :]


def _mask_phone(match: re.Match) -> str:
    digits = sum(map(str.isdigit, match[0]))
    return "<phone>" if 8 <= digits <= 15 else match[0]
