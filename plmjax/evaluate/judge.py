"""Judges whether B follows A (`plmjax next`), and which words are odd (`detect`)."""

import jax
import numpy as np

from plmjax import PlmjaxError
from plmjax.evaluate.fill import one_row, outputs
from plmjax.evaluate.model import Model
from plmjax.evaluate.prompts import Suspect, encode_text, plain_row, read_suspects


def follows(model: Model, first: str, second: str) -> float:
    """Returns the pair head's probability that `second` follows `first`.

    Raises:
      PlmjaxError: an empty text, or more tokens than the model has positions.
    """
    tokenizer = model.tokenizer
    a, b = encode_text(tokenizer, first), encode_text(tokenizer, second)
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
    ids, encoded = plain_row(model.tokenizer, text)
    logits_L = outputs(model.encoder, model.params, one_row(model, ids))["detector"][0]
    share_L = np.asarray(jax.nn.sigmoid(logits_L))
    return read_suspects(model.tokenizer, encoded, share_L)
