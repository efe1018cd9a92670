"""Random words as a pure function of key and counter: Philox4x32-10, vectorised.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". numpy's Philox needs
a generator for each counter; here one call takes a batch of counters.
"""

import functools

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


@functools.lru_cache(maxsize=256)
def make_key(*entropy: int) -> tuple[int, int]:
    """Returns two words from numpy's SeedSequence of these numbers."""
    low, high = np.random.SeedSequence(entropy).generate_state(2, np.uint32)
    return int(low), int(high)


def philox(key: tuple[int, int], *counter: np.ndarray | int) -> list[np.ndarray]:
    """Returns four uint64 arrays < 2**32 for four counters < 2**32 that broadcast."""
    x0, x1, x2, x3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], x0)
        high1, low1 = _multiply(_MULTIPLIERS[1], x2)
        x0, x1, x2, x3 = (
            high1 ^ x1 ^ np.uint64(k0),
            low1,
            high0 ^ x3 ^ np.uint64(k1),
            low0,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return [x0, x1, x2, x3]


def _multiply(one: np.uint64, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    product = one * other  # both are below 2**32, so nothing overflows
    return product >> _SHIFT, product & _LOW


def below(word: np.ndarray, limit: np.ndarray | int) -> np.ndarray:
    """Maps random words to int64 integers >= 0 and below the limits (< 2**32)."""
    return ((word * np.asarray(limit, np.uint64)) >> _SHIFT).astype(np.int64)


def unit(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Maps two random words to float64 in [0, 1) with 53 random bits."""
    bits = (high << np.uint64(21)) ^ (low >> np.uint64(11))
    return bits.astype(np.float64) * 2.0**-53
