"""Guesses masked words: `plmjax fill`, and the examples that pretraining shows."""

from typing import NamedTuple

import jax
import numpy as np

from plmjax import PlmjaxError
from plmjax.evaluate.model import Model


class Guess(NamedTuple):
    """One piece of the vocabulary and its probability."""

    text: str
    probability: float


def fill(model: Model, text: str, top: int = 5) -> list[list[Guess]]:
    """Returns the top guesses for each mask of a text, in order.

    Raises:
      PlmjaxError: no mask in the text, or more tokens than the model has positions.
    """
    tokenizer = model.tokenizer
    if not text.isascii() and text.encode(errors="replace").decode() != text:
        raise PlmjaxError(
            "the text is not UTF-8.", hint="Check the encoding of your terminal."
        )
    inner = tokenizer.encode_prompt(text)
    ids = np.asarray([tokenizer.cls_id, *inner, tokenizer.sep_id], np.int32)
    masks = np.flatnonzero(ids == tokenizer.mask_id)
    if not len(masks):
        raise PlmjaxError(
            "the text has no [MASK].",
            hint='Write for example: plmjax fill "The [MASK] of a matrix" --model=DIR',
        )
    if len(ids) > model.encoder.max_length:
        raise PlmjaxError(
            f"the text has {len(ids)} tokens; the model has positions for "
            f"{model.encoder.max_length}.",
            hint="Shorten it.",
        )
    batch = {
        "tokens": ids[None],
        "segments": np.ones_like(ids)[None],
        "positions": np.arange(len(ids), dtype=np.int32)[None],
        "types": np.zeros_like(ids)[None],
        "mask_positions": masks[None].astype(np.int32),
    }
    return guesses(model, model.params, batch, top)[0]


def guesses(model: Model, params, batch, top: int) -> list[list[list[Guess]]]:
    """Returns the top guesses for each masked position of each row of a batch."""
    logits_BKV = jax.jit(model.objective.outputs)(params, batch)
    logits_BKV = logits_BKV[..., : model.tokenizer.vocab_size]
    probability_BKV = jax.nn.softmax(logits_BKV, axis=-1)
    top = min(top, model.tokenizer.vocab_size)  # there are no more guesses than that
    best, pieces = jax.device_get(jax.lax.top_k(probability_BKV, top))
    return [
        [
            [
                Guess(model.tokenizer.decode([piece]).strip(), float(p))
                for piece, p in zip(ids, values, strict=True)
            ]
            for ids, values in zip(row_ids, row_values, strict=True)
        ]
        for row_ids, row_values in zip(pieces, best, strict=True)
    ]
