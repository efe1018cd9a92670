"""Counter-based noise: shares, independence, and no trace of the place in the batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from plmjax.models.layers import dropout
from plmjax.models.noise import Noise, bits, keep, uniform


def noise(step: int = 0, rows=None, seed: int = 0) -> Noise:
    rows = np.arange(64) if rows is None else rows
    return Noise(jnp.uint32(seed), jnp.uint32(step), jnp.asarray(rows, jnp.int32))


def test_uniform_is_uniform():
    draws = np.asarray(uniform(noise(), "a", 20_000))
    assert draws.min() >= 0 and draws.max() < 1
    counts, _ = np.histogram(draws, bins=100, range=(0, 1))
    expected = draws.size / 100
    # Chi-squared with 99 degrees of freedom: 180 has a probability below 1e-6.
    assert ((counts - expected) ** 2 / expected).sum() < 180


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    x = jnp.ones((64, 50, 100))
    out = np.asarray(dropout(x, rate, noise(), "site"))
    deviation = np.sqrt(rate * (1 - rate) / out.size)
    assert abs((out == 0).mean() - rate) < 5 * deviation
    np.testing.assert_allclose(out[out > 0], 1 / (1 - rate), rtol=1e-6)


def shifted_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest correlation of two 0/1 sequences over all cyclic shifts."""
    a, b = a - a.mean(), b - b.mean()
    product = np.fft.irfft(np.fft.rfft(a) * np.conj(np.fft.rfft(b)), len(a))
    return float(np.abs(product / (len(a) * a.std() * b.std())).max())


def test_masks_are_uncorrelated_at_all_shifts():
    size = 1 << 16
    masks = {
        name: np.asarray(keep(where, site, size, 0.1))[0].astype(np.float64)
        for name, where, site in (
            ("site a", noise(), "layer_0/attention"),
            ("site b", noise(), "layer_0/ffn"),
            ("site c", noise(), "layer_1/attention"),
            ("next step", noise(1), "layer_0/attention"),
            ("next seed", noise(seed=1), "layer_0/attention"),
            ("next row", noise(rows=[1]), "layer_0/attention"),
        )
    }
    names = list(masks)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            # The largest of 65,536 correlations of independent masks is about
            # 4.5 / sqrt(65,536) = 0.018; a shifted copy has 1.
            assert shifted_correlation(masks[one], masks[other]) < 0.025, (one, other)


def test_a_row_draws_the_same_wherever_it_stands():
    order = np.random.default_rng(0).permutation(64)
    whole = np.asarray(bits(noise(), "a", 33))
    np.testing.assert_array_equal(bits(noise(rows=order), "a", 33), whole[order])
    np.testing.assert_array_equal(bits(noise(rows=[5]), "a", 33), whole[5:6])
