"""What `fill` and `detect` ask of a text, and how they read the scores; without jax.

Legend: L tokens of a row.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from plmjax import PlmjaxError
from plmjax.tasks.base import rounded
from plmjax.tokenizers import Tokenizer
from plmjax.tokenizers.words import Encoded


class Guess(NamedTuple):
    """One piece of the vocabulary, its probability and its id."""

    text: str
    probability: float
    piece: int


class Suspect(NamedTuple):
    """A piece of a text, with the detector's probability that it was replaced."""

    text: str
    begins_word: bool
    probability: float


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of a text from the command line, with [MASK] as the mask token.

    Raises:
      PlmjaxError: the text is not UTF-8.
    """
    if not text.isascii() and text.encode(errors="replace").decode() != text:
        raise PlmjaxError(
            "the text is not UTF-8.", hint="Check the encoding of your terminal."
        )
    return tokenizer.encode_prompt(text)


def check_size(size: int, longest: int, what: str = "the text has") -> None:
    """Raises PlmjaxError for a row of more tokens than the model has positions."""
    if size > longest:
        raise PlmjaxError(
            f"{what} {size} tokens; the model has positions for {longest}.",
            hint="Shorten it.",
        )


def masked_row(
    tokenizer: Tokenizer, text: str, causal: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids [L] int32 of a text, and the positions that are guessed.

    A causal model guesses the next token after the text.

    Raises:
      PlmjaxError: no mask in the text (a mask, for a causal model).
    """
    inner = encode_text(tokenizer, text)
    if causal:
        if tokenizer.mask_id in inner:
            raise PlmjaxError(
                "the text has a mask, but the model reads one side only and guesses "
                "what comes next.",
                hint="Give the text up to the word to guess.",
            )
        return np.asarray([tokenizer.cls_id, *inner], np.int32), np.array([len(inner)])
    ids = np.asarray([tokenizer.cls_id, *inner, tokenizer.sep_id], np.int32)
    positions = np.flatnonzero(ids == tokenizer.mask_id)
    if not len(positions):
        spelling = tokenizer.specials.mask
        also = "" if spelling == "[MASK]" else f" or {spelling}, which is this model's"
        raise PlmjaxError(
            f"the text {text!r} has no [MASK]{also}.",
            hint='Write for example "The [MASK] of a matrix".',
        )
    return ids, positions


def read_guesses(
    tokenizer: Tokenizer, pieces: Iterable[int], probabilities: Iterable[float]
) -> list[Guess]:
    """Returns pieces of the vocabulary as guesses."""
    return [
        Guess(tokenizer.decode([piece]).strip(), rounded(p), int(piece))
        for piece, p in zip(pieces, probabilities, strict=True)
    ]


def plain_row(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, Encoded]:
    """Returns the ids [L] int32 of a text, and the text's own tokens.

    Raises:
      PlmjaxError: the text is empty.
    """
    encoded = tokenizer.encode_batch([text])
    if not len(encoded.tokens):
        raise PlmjaxError("the text is empty.", hint="Give a sentence.")
    ids = [tokenizer.cls_id, *encoded.tokens.tolist(), tokenizer.sep_id]
    return np.asarray(ids, np.int32), encoded


def read_suspects(
    tokenizer: Tokenizer, encoded: Encoded, share_L: np.ndarray
) -> list[Suspect]:
    """Returns each token of a text with its probability; `share_L` is of a row."""
    return [
        Suspect(tokenizer.decode([piece]).strip(), bool(starts), rounded(p))
        for piece, starts, p in zip(
            encoded.tokens, encoded.word_start, share_L[1:-1], strict=True
        )
    ]
