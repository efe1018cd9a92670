"""Chinese word segmentation, by jieba or by the spaces in the text.

The vocabulary still determines the tokens (characters for BERT). A segmenter only
marks where words start, for whole-word masking (Cui et al. 2019, "Pre-Training with
Whole Word Masking for Chinese BERT").
"""

import dataclasses
import functools
import importlib.util
import io
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from plmjax import DataError, Exit, PlmjaxError
from plmjax.tokenizers.words import Encoded, word_starts

if TYPE_CHECKING:
    import tokenizers

SIGN, BLANK = 1, 2  # kinds of pieces; 0: the piece has letters
FILE = "plmjax_segmenter.json"  # beside tokenizer.json

_IDEOGRAPHS = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHINESE = re.compile(f"[{_IDEOGRAPHS}]")
# Characters written without spaces: ideographs, kana and wide punctuation.
_WIDE = re.compile(f"[{_IDEOGRAPHS}\u3000-\u30ff\uff00-\uffef]")
_BLANKS = re.compile(r"(\s+)")
_ENTRY = re.compile(r"\S+( [0-9]+)?( [a-z]+)?")


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """Cuts texts into words; `dictionary` is the text of jieba's user dictionary."""

    kind: Literal["jieba", "spaces"]
    dictionary: str = ""

    def cut(self, text: str) -> list[str]:
        """Returns the words and the text between them; joined, the plain text."""
        if self.kind == "spaces":
            return _cut_at_spaces(text)
        words = list(_jieba(self.dictionary).cut(text))
        assert "".join(words) == text
        return words

    def plain(self, text: str) -> str:
        """The text as it is tokenised, without the blanks that only separate words."""
        return "".join(self.cut(text)) if self.kind == "spaces" else text

    def encode(
        self,
        backend: "tokenizers.Tokenizer",
        texts: Sequence[str],
        sign_V: np.ndarray | None,
    ) -> Encoded:
        """Returns the texts' ids, with this segmenter's word starts in Chinese text.

        Other words start as without a segmenter; `sign_V` as in `split_signs`.
        """
        tokens, starts, lengths = [np.empty(0, np.int32)], [np.empty(0, bool)], []
        for begin in range(0, len(texts), 256):
            cuts = [self.cut(text) for text in texts[begin : begin + 256]]
            plain = ["".join(words) for words in cuts]
            encodings = backend.encode_batch(plain, add_special_tokens=False)
            for words, text, encoding in zip(cuts, plain, encodings, strict=True):
                ids = np.array(encoding.ids, np.int32)
                begins = split_signs(ids, np.array(word_starts(encoding), bool), sign_V)
                offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
                tokens.append(ids)
                starts.append(_mark(words, text, offsets, begins))
                lengths.append(len(ids))
        return Encoded(
            np.concatenate(tokens), np.concatenate(starts), np.array(lengths, np.int64)
        )


def split_signs(
    tokens: np.ndarray, word_start: np.ndarray, sign_V: np.ndarray | None
) -> np.ndarray:
    """Word starts [n], where each piece that `sign_V` [V] marks SIGN is one word.

    A piece marked BLANK, which is "▁" alone, belongs to the sign after it.
    """
    if sign_V is None or not len(tokens):
        return word_start
    kind = sign_V[tokens]
    before = np.concatenate([[0], kind[:-1]])
    return word_start | ((kind == SIGN) & (before != BLANK)) | (before == SIGN)


def _mark(
    words: list[str], text: str, offsets: np.ndarray, word_start: np.ndarray
) -> np.ndarray:
    """Word starts [n] of tokens with offsets [n, 2], removed inside Chinese words.

    If several tokens share a character (the bytes of byte-level BPE), only the first
    can start a word. A token that begins before the previous one ends starts none.
    """
    inside, opens = np.zeros(len(text) + 1, bool), np.zeros(len(text) + 1, bool)
    begin = 0
    for word in words:
        end = begin + len(word)
        if _CHINESE.search(word):
            inside[begin + 1 : end] = True
            opens[[begin, end]] = True
        begin = end
    # A token may begin with a blank (" word"); its word begins after the blank.
    solid = next_solid(text)[offsets[:, 0]]
    only_blank = solid >= offsets[:, 1]
    at = np.where(only_blank, offsets[:, 0], solid)
    before = np.concatenate([[0], offsets[:-1, 1]])
    # A previous token of only that blank has already begun the word.
    begun = np.concatenate([[False], only_blank[:-1]]) & ~word_start
    return (word_start & ~inside[at]) | (opens[at] & (before <= at) & ~begun)


def next_solid(text: str) -> np.ndarray:
    """[len(text) + 1]: index of the next character that is not a blank, or the end."""
    blank = np.fromiter(map(str.isspace, text), bool, len(text))
    next_index = np.append(np.where(blank, len(text), np.arange(len(text))), len(text))
    return np.minimum.accumulate(next_index[::-1])[::-1]


def spans_in_text(text: str, plain: str, offsets: np.ndarray) -> np.ndarray:
    """[n, 2]: the tokens' offsets in the text, from `offsets` in `Segmenter.plain`.

    Blanks before a token's first letter do not count as part of it.
    """
    index = _indices(text, plain)
    begin, last = index[offsets[:, 0]], index[np.maximum(offsets[:, 1] - 1, 0)]
    end = np.where(offsets[:, 1] > offsets[:, 0], last + 1, begin)
    return np.stack([np.minimum(next_solid(text)[begin], end), end], 1)


def _indices(text: str, plain: str) -> np.ndarray:
    """[len(plain) + 1]: the index in the text of each character of the plain text."""
    if plain == text:
        return np.arange(len(text) + 1)
    indices, at = [], 0
    for character in plain:
        while text[at] != character:  # a blank that only separates words
            at += 1
        indices.append(at)
        at += 1
    return np.array([*indices, len(text)])


def _cut_at_spaces(text: str) -> list[str]:
    """Keeps a blank if it has a newline or no wide character on either side."""
    split = _BLANKS.split(text)  # word, blank, word, blank, ..., word
    kept = split[:1]
    for before, blank, after in zip(split[::2], split[1::2], split[2::2], strict=False):
        wide = _WIDE.match(before[-1:]) or _WIDE.match(after[:1])
        if "\n" in blank or not wide:
            kept.append(blank)
        kept.append(after)
    return kept


@functools.cache
def _jieba(dictionary: str):
    """A private jieba tokenizer, without log output or a shared cache file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba (2020): pkg_resources, invalid "\."
        try:
            import jieba  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise _missing() from None
        jieba.setLogLevel(logging.WARNING)
        tokenizer = jieba.Tokenizer()
        # By default jieba caches its dictionary in the shared temporary folder.
        with tempfile.TemporaryDirectory(prefix="plmjax-jieba-") as folder:
            tokenizer.tmp_dir = folder  # pyright: ignore
            tokenizer.initialize()
        tokenizer.load_userdict(io.StringIO(dictionary))
    return tokenizer


def make_segmenter(kind: str, dictionary: str | None) -> Segmenter | None:
    """Returns the segmenter that a config names, or None; `dictionary` is a path.

    Raises:
      PlmjaxError: jieba is not installed, or the user dictionary cannot be used.
    """
    if kind not in ("none", "jieba", "spaces"):
        raise PlmjaxError(
            f"tokenizer.segmenter={kind!r} is not known.",
            hint="Known ones: none, jieba, spaces.",
        )
    if dictionary is not None and kind != "jieba":
        raise PlmjaxError(
            f"tokenizer.user_dictionary is jieba's, but tokenizer.segmenter={kind!r}.",
            hint="Set --config.tokenizer.segmenter=jieba, or leave the dictionary out.",
        )
    if kind == "none":
        return None
    if kind == "spaces":
        return Segmenter("spaces")
    if importlib.util.find_spec("jieba") is None:
        raise _missing()
    return Segmenter("jieba", "" if dictionary is None else _read(Path(dictionary)))


def _read(path: Path) -> str:
    """Reads a user dictionary: a word a line, with an optional count and tag."""
    hint = "Give a UTF-8 text file: a word a line, with a count and a tag if you like."
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8.", hint=hint
        ) from None
    except OSError as error:
        raise PlmjaxError(
            f"tokenizer.user_dictionary={str(path)!r} cannot be read: "
            f"{error.strerror} (in {Path.cwd()}).",
            hint=hint,
        ) from None
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, 1):
        if line and not _ENTRY.fullmatch(line):
            raise DataError(
                f"{path}:{number}: {line!r} is not a word with an optional count and "
                "an optional tag of small letters.",
                hint=hint,
            )
    return "".join(f"{line}\n" for line in lines if line)


def write(segmenter: Segmenter | None, directory: Path) -> None:
    """Writes the segmenter beside its tokenizer; None removes an existing file."""
    if segmenter is None:
        (directory / FILE).unlink(missing_ok=True)
    else:
        (directory / FILE).write_text(as_json(segmenter), encoding="utf-8")


def read(directory: Path) -> Segmenter | None:
    """Reads the segmenter that `write` saved in a folder; None if there is none.

    Raises:
      PlmjaxError: the file cannot be read or is not valid (code 4).
    """
    if not (directory / FILE).is_file():
        return None
    try:
        settings = json.loads((directory / FILE).read_text(encoding="utf-8"))
        if settings["segmenter"] not in ("jieba", "spaces"):
            raise ValueError(f"{settings['segmenter']!r} is not known")
        return Segmenter(settings["segmenter"], str(settings["user_dictionary"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PlmjaxError(
            f"{directory / FILE} is not a segmenter of plmjax: {error}.",
            hint="Remove the file, and set --config.tokenizer.segmenter again.",
            code=Exit.MODEL,
        ) from None


def as_json(segmenter: Segmenter) -> str:
    """The content of the segmenter's file, which the tokenizer's digest covers."""
    settings = {"segmenter": segmenter.kind, "user_dictionary": segmenter.dictionary}
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def plain_documents(
    segmenter: Segmenter | None, documents: Iterable[str]
) -> Iterable[str]:
    """The documents as they are tokenised, see `Segmenter.plain`."""
    return documents if segmenter is None else map(segmenter.plain, documents)


def _missing() -> PlmjaxError:
    return PlmjaxError(
        "tokenizer.segmenter='jieba' needs the package jieba, which is not installed.",
        hint="pip install 'plmjax[chinese]', or set --config.tokenizer.segmenter=none.",
    )
