"""Guesses words: `plmjax fill`, and the examples that pretraining shows."""

import jax
import numpy as np

from plmjax.evaluate.model import Model
from plmjax.evaluate.prompts import Guess, check_size, masked_row, read_guesses
from plmjax.models import EncoderConfig, Platform, heads
from plmjax.models.global_tokens import with_room


def fill(model: Model, text: str, top: int = 5) -> list[list[Guess]]:
    """Returns the top guesses for each mask of a text, in order.

    A causal model guesses the next token after the text.

    Raises:
      PlmjaxError: no mask in the text (a mask, for a causal model), or more tokens than
        the model has positions.
    """
    ids, positions = masked_row(model.tokenizer, text, model.encoder.causal)
    batch = one_row(model, ids)
    batch["mask_positions"] = positions[None].astype(np.int32)
    return guesses(model, model.params, batch, top)[0]


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
    check_size(len(ids), model.encoder.max_length, what)
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
            read_guesses(model.tokenizer, ids, values)
            for ids, values in zip(row_ids, row_values, strict=True)
        ]
        for row_ids, row_values in zip(pieces, best, strict=True)
    ]
