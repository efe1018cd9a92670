"""Judges whether B follows A (`plmjax next`), and which words are odd (`detect`)."""

from typing import NamedTuple

import jax
import numpy as np

from plmjax import PlmjaxError
from plmjax.evaluate.fill import encode_text, one_row, outputs
from plmjax.evaluate.model import Model


class Suspect(NamedTuple):
    """A piece of a text, with the detector's probability that it was replaced."""

    text: str
    begins_word: bool
    probability: float


def follows(model: Model, first: str, second: str) -> float:
    """Returns the pair head's probability that `second` follows `first`.

    Raises:
      PlmjaxError: an empty text, or more tokens than the model has positions.
    """
    tokenizer = model.tokenizer
    a, b = encode_text(model, first), encode_text(model, second)
    if not a or not b:
        raise PlmjaxError("one of the two texts is empty.", hint="Give two sentences.")
    ids = [tokenizer.cls_id, *a, tokenizer.sep_id, *b, tokenizer.sep_id]
    types = np.array([0] * (len(a) + 2) + [1] * (len(b) + 1), np.int32)
    batch = one_row(model, np.asarray(ids, np.int32), types, "the two texts have")
    if model.encoder.token_types < 2:
        batch["types"] = np.zeros_like(batch["types"])
    batch |= {"cls": np.zeros((1, 1), np.int32)}
    logits_2 = outputs(model.encoder, model.params, batch)["pair"][0, 0]
    return float(jax.nn.softmax(logits_2)[0])


def detect(model: Model, text: str) -> list[Suspect]:
    """Returns each piece of a text with the detector's probability of a replacement.

    Raises:
      PlmjaxError: an empty text, or more tokens than the model has positions.
    """
    tokenizer = model.tokenizer
    encoded = tokenizer.encode_batch([text])
    if not len(encoded.tokens):
        raise PlmjaxError("the text is empty.", hint="Give a sentence.")
    ids = [tokenizer.cls_id, *encoded.tokens.tolist(), tokenizer.sep_id]
    batch = one_row(model, np.asarray(ids, np.int32))
    logits_L = outputs(model.encoder, model.params, batch)["detector"][0]
    share_L = np.asarray(jax.nn.sigmoid(logits_L))[1:-1]
    return [
        Suspect(tokenizer.decode([piece]).strip(), bool(starts), float(p))
        for piece, starts, p in zip(
            encoded.tokens, encoded.word_start, share_L, strict=True
        )
    ]
