"""Guesses words: `plmjax fill`, and the examples that pretraining shows."""

from typing import NamedTuple

import jax
import numpy as np

from plmjax import PlmjaxError
from plmjax.evaluate.model import Model
from plmjax.models import EncoderConfig, Platform, heads
from plmjax.models.global_tokens import with_room


class Guess(NamedTuple):
    """One piece of the vocabulary, its probability and its id."""

    text: str
    probability: float
    piece: int


def fill(model: Model, text: str, top: int = 5) -> list[list[Guess]]:
    """Returns the top guesses for each mask of a text, in order.

    A causal model guesses the next token after the text.

    Raises:
      PlmjaxError: no mask in the text (a mask, for a causal model), or more tokens than
        the model has positions.
    """
    tokenizer = model.tokenizer
    inner = encode_text(model, text)
    if model.encoder.causal:
        ids = np.asarray([tokenizer.cls_id, *inner], np.int32)
        positions = np.asarray([len(ids) - 1])
        if tokenizer.mask_id in inner:
            raise PlmjaxError(
                "the text has a mask, but the model reads one side only and guesses "
                "what comes next.",
                hint="Give the text up to the word to guess.",
            )
    else:
        ids = np.asarray([tokenizer.cls_id, *inner, tokenizer.sep_id], np.int32)
        positions = np.flatnonzero(ids == tokenizer.mask_id)
    if not len(positions):
        spelling = tokenizer.specials.mask
        also = "" if spelling == "[MASK]" else f" or {spelling}, which is this model's"
        raise PlmjaxError(
            f"the text {text!r} has no [MASK]{also}.",
            hint='Write for example: plmjax fill "The [MASK] of a matrix" --model=DIR',
        )
    batch = one_row(model, ids)
    batch["mask_positions"] = positions[None].astype(np.int32)
    return guesses(model, model.params, batch, top)[0]


def encode_text(model: Model, text: str) -> list[int]:
    """Returns the ids of a text from the command line, with [MASK] as the mask token.

    Raises:
      PlmjaxError: the text is not UTF-8.
    """
    if not text.isascii() and text.encode(errors="replace").decode() != text:
        raise PlmjaxError(
            "the text is not UTF-8.", hint="Check the encoding of your terminal."
        )
    return model.tokenizer.encode_prompt(text)


def one_row(
    model: Model,
    ids: np.ndarray,
    types: np.ndarray | None = None,
    what: str = "the text has",
) -> dict:
    """Returns a batch of one row [1, L] that holds one document.

    Raises:
      PlmjaxError: the row is longer than the model's positions.
    """
    if len(ids) > model.encoder.max_length:
        raise PlmjaxError(
            f"{what} {len(ids)} tokens; the model has positions for "
            f"{model.encoder.max_length}.",
            hint="Shorten it.",
        )
    types = np.zeros_like(ids) if types is None else types
    return {
        "tokens": ids[None],
        "segments": np.ones_like(ids)[None],
        "positions": np.arange(len(ids), dtype=np.int32)[None],
        "types": types[None],
    }


def outputs(encoder: EncoderConfig, params: dict, batch: dict) -> dict:
    """Returns the float32 outputs of each head of a model for a batch."""
    encoder = with_room(encoder, batch["tokens"], batch["segments"])
    return _outputs(encoder, params, batch, Platform.of(jax.devices()))


_outputs = jax.jit(heads.outputs, static_argnums=(0, 3))


def guesses(model: Model, params, batch, top: int) -> list[list[list[Guess]]]:
    """Returns the top guesses for each masked position of each row of a batch."""
    logits_BKV = outputs(model.encoder, params, batch)["head"]
    logits_BKV = logits_BKV[..., : model.tokenizer.vocab_size]
    probability_BKV = jax.nn.softmax(logits_BKV, axis=-1)
    top = min(top, model.tokenizer.vocab_size)
    best, pieces = jax.device_get(jax.lax.top_k(probability_BKV, top))
    return [
        [
            [
                Guess(model.tokenizer.decode([piece]).strip(), float(p), int(piece))
                for piece, p in zip(ids, values, strict=True)
            ]
            for ids, values in zip(row_ids, row_values, strict=True)
        ]
        for row_ids, row_values in zip(pieces, best, strict=True)
    ]
