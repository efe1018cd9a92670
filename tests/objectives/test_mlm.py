"""Masking statistics, what they were, and learning one batch by heart."""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import learned
from tests_common import batch_of

from plmjax import PlmjaxError
from plmjax.models import EncoderConfig
from plmjax.objectives import MLM, Key, MLMConfig, Pieces, masking
from plmjax.objectives.masked import token_loss

SPECIAL = (0, 1, 2, 3, 4)
MASK = 4
ENCODER = EncoderConfig(
    vocab_size=1000, layers=1, width=32, heads=2, ffn_width=64, max_positions=128
)


def key(step: int = 0, seed: int = 0) -> Key:
    return Key(jnp.uint32(seed), jnp.uint32(step))


def make_batch(rows: int = 512, length: int = 128, seed: int = 0):
    """Rows of one or two documents, some padding, words of one to four pieces."""
    random = np.random.default_rng(seed)
    tokens = random.integers(5, 1000, (rows, length)).astype(np.int32)
    segments = np.ones((rows, length), np.int32)
    end = random.integers(length // 2, length + 1, rows)
    index = np.arange(length)
    segments[index[None] >= end[:, None]] = 0
    segments[(index[None] >= 40) & (segments > 0)] = 2
    tokens[:, 0], tokens[:, 39], tokens[:, 40] = 2, 3, 2
    tokens[np.arange(rows), end - 1] = 3
    tokens[segments == 0] = 0
    starts = random.random((rows, length)) < 0.5
    return batch_of(tokens, segments=segments, word_start=starts)


@functools.cache
def corruption(config: MLMConfig):
    objective = MLM(config, ENCODER, Pieces(MASK, SPECIAL, (1,) * 1000))
    return functools.partial(jax.jit(objective.corrupt), objective.tables())


def corrupted(config: MLMConfig, batch, at: Key):
    return jax.device_get(corruption(config)(batch, at, 0.0))


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("probability", [0.15, 0.3])
def test_masking_statistics(unit, probability):
    batch = make_batch()
    maskable = (batch["segments"] > 0) & ~np.isin(batch["tokens"], SPECIAL)
    config = MLMConfig(probability=probability, unit=unit)
    chosen = masks = random_pieces = kept = 0
    for step in range(20):
        out = corrupted(config, batch, key(step))
        used = out["weights"] > 0
        # Each chosen position weighs the same, whatever its row.
        np.testing.assert_allclose(out["weights"], used / used.sum(), rtol=1e-5)
        at = out["mask_positions"]
        rows = np.arange(len(at))[:, None]
        # Never a special piece or padding, never a position twice.
        assert maskable[rows, at][used].all()
        for row in range(0, len(at), 37):
            places = at[row][used[row]]
            assert len(set(places)) == len(places) <= at.shape[1]
        np.testing.assert_array_equal(out["labels"], batch["tokens"][rows, at])
        new, old = out["tokens"][rows, at][used], out["labels"][used]
        chosen += used.sum()
        masks += (new == MASK).sum()
        kept += (new == old).sum()
        random_pieces += ((new != MASK) & (new != old)).sum()
        assert not np.isin(new[new != MASK], SPECIAL).any()
        untouched = np.ones_like(maskable)
        untouched[np.broadcast_to(rows, at.shape)[used], at[used]] = False
        np.testing.assert_array_equal(
            out["tokens"][untouched], batch["tokens"][untouched]
        )
    share = chosen / (20 * maskable.sum())
    assert abs(share / probability - 1) < 0.01
    for found, expected in ((masks, 0.8), (random_pieces, 0.1), (kept, 0.1)):
        deviation = np.sqrt(expected * (1 - expected) / chosen)
        # A random piece is the old one once in 995 times.
        assert abs(found / chosen - expected) < 4 * deviation + 2e-4


def test_a_batch_without_predictions_moves_nothing_and_counts_nothing():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 7)), jnp.float32)
    nothing = {"labels": np.zeros(4, np.int32), "weights": np.zeros(4, np.float32)}
    (loss, metrics), gradient = jax.value_and_grad(token_loss, has_aux=True)(
        logits, nothing, np.ones(7, np.float32)
    )
    assert float(loss) == 0 and not np.any(gradient)
    assert {float(count) for _, count in metrics.values()} == {0.0}


def test_the_slots_suffice_for_every_row():
    for probability in (0.1, 0.15, 0.4):
        for length in (16, 33, 128):
            most = np.floor(probability * (length - 2) + np.nextafter(1, 0))
            assert masking.slots(probability, length) >= most


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    "unit", ["word", pytest.param("token", marks=pytest.mark.campaign)]
)
def test_overfits_one_batch(unit):
    """With the masks fixed, one batch is learnt by heart."""
    encoder = dataclasses.replace(ENCODER, dropout=0.0, attention_dropout=0.0)
    config = MLMConfig(masks="static", unit=unit)
    objective = MLM(config, encoder, Pieces(MASK, SPECIAL, (1,) * 1000))
    losses, means = learned(objective, make_batch(8, 64), key(), 3e-3, 300)
    assert losses[0] > 6.5 and losses[-1] < 0.1 and means["accuracy"][-1] > 0.98


def test_causal_models_and_odd_shares_are_refused():
    pieces = Pieces(MASK, SPECIAL, (1,) * 1000)
    with pytest.raises(PlmjaxError, match="model.causal"):
        MLM(MLMConfig(), dataclasses.replace(ENCODER, causal=True), pieces)
    with pytest.raises(PlmjaxError, match="sum to at most 1"):
        MLMConfig(mask_share=0.8, random_share=0.3)
    with pytest.raises(PlmjaxError, match="copies"):
        MLMConfig(masks="static", copies=0)


def test_masks_are_the_ones_they_were():
    """A golden digest: whoever changes the draws changes every run that is resumed."""
    out = corrupted(MLMConfig(), make_batch(16), key(3, seed=11))
    found = hashlib.sha256(out["tokens"].tobytes()).hexdigest()[:16]
    assert found == "969ca6616b7b6426"
