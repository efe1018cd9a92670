"""The states of a frozen encoder, as features of a linear probe.

Legend: B rows of a batch, L tokens a row, C choices, H width; N texts, or words, or
choices.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from plmjax import PlmjaxError
from plmjax.baselines.linear import Featurise, row_counts
from plmjax.baselines.watch import Watch
from plmjax.data.examples import Example
from plmjax.data.features import Features
from plmjax.data.task_batches import batch_of
from plmjax.evaluate.model import Model
from plmjax.models import EncoderConfig, Platform, heads
from plmjax.models.heads import Batch
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.features import make_features

_BATCH = 32  # rows at once
_SHORTEST = 16  # tokens: rows are padded to a power of two, as each length is compiled


def probe_features(
    config: TaskConfig, model: Model, watch: Watch | None = None
) -> Featurise:
    """Returns what computes the last states of a frozen encoder, float32 [N, H].

    A text or pair: the mean over all tokens of all its windows, special ones included.
    Of texts side by side in a row: the mean over each. A word: the state of its first
    piece, 0 if it was cut.

    Raises:
      PlmjaxError: rows of the task are longer than the model's positions.
    """
    if config.length > model.encoder.max_length:
        raise PlmjaxError(
            f"task.length is {config.length}; the model has positions for "
            f"{model.encoder.max_length} tokens.",
            hint=f"Set --config.task.length={model.encoder.max_length}.",
        )
    params = jax.device_put({"encoder": model.params["encoder"]})
    platform = Platform.of(jax.devices())
    watch = watch or Watch()

    def featurise(examples: Sequence[Example]) -> np.ndarray:
        bare = [dataclasses.replace(example, label=None) for example in examples]
        features = make_features(config, bare, model.tokenizer)
        counts = row_counts(KINDS[config.kind], examples)
        begin = np.cumsum(counts) - counts
        sums = np.zeros((counts.sum(), model.encoder.width))
        tokens = np.zeros((counts.sum(), 1))
        sizes, done = features.sizes(), 0
        for rows, batch in _batches(features):
            watch.progress("states of the texts", done, int(sizes.sum()))
            done += int(sizes[rows].sum())
            if features.word is not None:  # a row a word
                states_BLH = np.asarray(_states(model.encoder, platform, params, batch))
                word_BL = features.word[rows, : batch["tokens"].shape[1]]
                row, column = np.nonzero(word_BL >= 0)
                which = begin[features.example[rows[row]]] + word_BL[row, column]
                sums[which], tokens[which] = states_BLH[row, column], 1
                continue
            sums_BCH = np.asarray(_sums(model.encoder, platform, params, batch))
            sums_BCH = sums_BCH[: len(rows)]
            count_BC = (batch["segments"][: len(rows)] > 0).sum(-1)
            if count_BC.ndim == 1:
                sums_BCH, count_BC = sums_BCH[:, None], count_BC[:, None]
            row, text = np.nonzero(count_BC)  # padding in place of a text has none
            which = begin[features.example[rows[row]]] + text
            np.add.at(sums, which, sums_BCH[row, text])
            np.add.at(tokens, which, count_BC[row, text][:, None])
        return (sums / np.maximum(tokens, 1)).astype(np.float32)

    return featurise


def _batches(features: Features) -> Iterator[tuple[np.ndarray, dict]]:
    """Yields rows of similar length and their batch, the last filled with padding."""
    sizes = features.sizes()
    order = np.argsort(sizes, kind="stable")
    # A single text, which a user waits for, needs no batch of padding.
    size = min(1 << (len(order) - 1).bit_length(), _BATCH)
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        longest = max(int(sizes[rows[-1]]), _SHORTEST)
        length = min(1 << (longest - 1).bit_length(), features.length)
        filled = np.concatenate([rows, np.full(size - len(rows), -1)])
        yield rows, _cut(batch_of(features, filled), length)


def _cut(batch: dict, length: int) -> dict:
    return {
        name: batch[name][..., :length]
        for name in ("tokens", "segments", "positions", "types")
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def _states(
    encoder: EncoderConfig, platform: Platform, params: dict, batch: Batch
) -> jax.Array:
    """[B, L] -> [B, L, H] float32."""
    if encoder.token_types < 2:
        # A table of one type has no row for sentence B; only [SEP] separates them.
        batch = batch | {"types": jnp.zeros_like(batch["types"])}
    x_BLH = heads.encode(encoder, params, batch, None, platform)
    return x_BLH.astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(
    encoder: EncoderConfig, platform: Platform, params: dict, batch: Batch
) -> jax.Array:
    """Sums states over real tokens: [B, L] -> [B, H], [B, C, L] -> [B, C, H]."""
    flat = {k: x.reshape(-1, x.shape[-1]) for k, x in batch.items()}
    states_BLH = _states(encoder, platform, params, flat)
    real_BL1 = (flat["segments"] > 0)[:, :, None]
    # The states of rows of padding do not count, and may be nan.
    sums_BH = jnp.where(real_BL1, states_BLH, 0).sum(1)
    return sums_BH.reshape(*batch["tokens"].shape[:-1], -1)
