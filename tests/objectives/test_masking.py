"""The units that are masked together: lengths, uniformity, whole words, sharding."""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from plmjax.models import Noise
from plmjax.objectives import masking

KINDS = tuple(masking.UNITS)
MASK = 4
ORDINARY = np.arange(5, 1000, dtype=np.int32)
# One shape for most tests, since compiling takes longer than running.
ROWS, LENGTH = 1024, 64

pytestmark = pytest.mark.usefixtures("strict")


def noise(rows: jax.Array, step: int = 0) -> Noise:
    return Noise(jnp.uint32(5), jnp.uint32(step), rows)


def corrupt(noise, probability, tokens_BL, maskable_BL, start_BL, *, unit):
    slots = masking.slots(0.4, tokens_BL.shape[1])
    chosen = masking.choose(noise, maskable_BL, start_BL, probability, slots, unit)
    return *chosen, *masking.corrupt_tokens(
        noise, tokens_BL, *chosen, MASK, jnp.asarray(ORDINARY), 0.8, 0.1, unit
    )


compiled = functools.partial(jax.jit, static_argnames="unit")(corrupt)


def make_rows(documents=(), word_share: float = 0.6, rows=ROWS, length=LENGTH):
    """(tokens, maskable, word_start): [SEP] [CLS] stand at the places `documents`."""
    maskable = np.ones((rows, length), bool)
    maskable[:, 0] = maskable[:, -1] = False
    for at in documents:
        maskable[:, at : at + 2] = False
    random = np.random.default_rng(1)
    start = random.random((rows, length)) < word_share
    return random.choice(ORDINARY, maskable.shape), maskable, start


def draw(arrays, unit, probability=0.15, step=0, rows=None):
    """(positions, used, units, tokens, labels) as `choose`, `corrupt_tokens`."""
    if rows is None:
        rows = np.arange(len(arrays[0]), dtype=np.int32)
    found = compiled(
        noise(jnp.asarray(rows), step), jnp.float32(probability), *arrays, unit=unit
    )
    return jax.device_get(found)


def draw_units(arrays, unit, probability=0.15, step=0):
    """[B, L]: the unit of each chosen token, elsewhere -1."""
    at, used, units, _, _ = draw(arrays, unit, probability, step)
    unit_of = np.full(arrays[0].shape, -1)
    rows = np.broadcast_to(np.arange(len(at))[:, None], at.shape)[used]
    unit_of[rows, at[used]] = units[used]
    assert (unit_of >= 0).sum() == used.sum()  # no position twice
    return unit_of


def starts(arrays):
    """The true starts of words."""
    _, maskable, start = arrays
    return maskable & (start | ~np.pad(maskable[:, :-1], ((0, 0), (1, 0))))


def count_lengths(arrays, unit_of) -> np.ndarray:
    """How many chosen units are of 1, 2, ... 10 words."""
    row, at = np.nonzero(starts(arrays) & (unit_of >= 0))
    names = row * unit_of.shape[1] + unit_of[row, at]
    return np.bincount(np.unique(names, return_counts=True)[1], minlength=11)[1:]


def stated(unit) -> np.ndarray:
    shares = masking.UNITS[unit]
    return np.array(shares + (0.0,) * (10 - len(shares)))


def test_the_lengths_are_those_of_the_papers():
    np.testing.assert_allclose(masking.UNITS["ngram"], [6 / 11, 3 / 11, 2 / 11])
    span = np.array(masking.UNITS["span"])
    np.testing.assert_allclose(span[1:] / span[:-1], 0.8)
    assert len(span) == 10 and abs(span.sum() - 1) < 1e-12
    assert abs(span @ np.arange(1, 11) - 3.8) < 0.01  # the mean that SpanBERT states
    for unit in ("span", "ngram"):
        drawn = masking._draw_lengths(noise(jnp.arange(512)), 128, masking.UNITS[unit])
        counts = np.bincount(np.ravel(drawn), minlength=11)[1:]
        expected = stated(unit) * 512 * 128
        some = expected > 0
        assert counts[~some].sum() == 0
        # Chi-squared with at most 9 degrees of freedom: 45 is 1e-6.
        assert (np.square(counts - expected)[some] / expected[some]).sum() < 45


@pytest.mark.parametrize(
    ("unit", "length", "mean", "distance"),
    [
        ("ngram", LENGTH, 1.51, 0.08),
        ("span", LENGTH, 2.83, 0.18),
        ("span", 1024, 3.73, 0.02),
    ],
)
def test_chosen_units_have_these_lengths(unit, length, mean, distance):
    """The mean in words, and the total variation from what is stated: 1.64, 3.80, 3.80.

    The budget cuts one unit a row, the ends of documents others: that matters where a
    row masks few units, 3 spans of 64 words and 41 of 1024.
    """
    arrays = make_rows((40,), 1, ROWS * LENGTH // length, length)
    draws = [draw_units(arrays, unit, step=step) for step in range(8)]
    counts = np.sum([count_lengths(arrays, unit_of) for unit_of in draws], axis=0)
    found = counts / counts.sum()
    assert abs(found @ np.arange(1, 11) - mean) < 0.05
    assert np.abs(found - stated(unit)).sum() / 2 < distance


@pytest.mark.parametrize("unit", KINDS)
@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_the_share_is_exact(unit, probability):
    arrays = make_rows((12,))
    units = [draw_units(arrays, unit, probability, step) for step in range(3)]
    share = np.mean(np.array(units) >= 0) / arrays[1].mean()
    assert abs(share / probability - 1) < 0.005


@pytest.mark.parametrize("unit", KINDS)
def test_every_word_is_chosen_equally_often(unit):
    """The first and last words of documents too.

    Neighbours are chosen together, so the squared deviations are weighed with the
    inverse of the covariance of the positions (Hotelling's T-squared), not summed.
    """
    arrays = make_rows((15, 24), word_share=1)
    places = arrays[1][0]
    chosen = np.concatenate(
        [draw_units(arrays, unit, step=step)[:, places] >= 0 for step in range(16)]
    ).astype(np.float64)
    # The row's sum hardly varies: leave it out.
    contrasts = chosen[:, 1:] - chosen[:, :1]
    mean, covariance = contrasts.mean(axis=0), np.cov(contrasts, rowvar=False)
    found = len(chosen) * mean @ np.linalg.solve(covariance, mean)
    assert contrasts.shape[1] == 57
    # Chi-squared with 57 degrees of freedom: 117 has a probability of 5e-6.
    assert found < 117


@pytest.mark.parametrize("unit", ["word", "span", "ngram"])
def test_units_are_of_whole_words(unit):
    arrays = make_rows((30, 50))
    maskable = arrays[1]
    maskable[::2, [0, -1]] = True  # the ring closes here, and no unit with it
    first = starts(arrays)
    unit_of = draw_units(arrays, unit, 0.3)
    chosen = unit_of >= 0
    assert not (chosen & ~maskable).any()
    # A token that continues a word is chosen with the one before it, in its unit.
    inside = maskable & ~first
    before = np.pad(unit_of[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    np.testing.assert_array_equal(unit_of[inside], before[inside])
    # A unit is named by its first token and has no hole.
    opens = chosen & (unit_of == np.arange(LENGTH))
    np.testing.assert_array_equal(chosen & (before != unit_of), opens)
    counts = count_lengths(arrays, unit_of)
    assert counts.sum() == opens.sum() > 2 * ROWS
    assert (counts > 0).sum() == len(masking.UNITS[unit])


@pytest.mark.parametrize("unit", KINDS)
def test_the_fate_is_drawn_for_each_slot_or_span(unit):
    arrays = make_rows()
    tokens = arrays[0]
    at, used, units, new, labels = draw(arrays, unit, 0.3)
    rows = np.arange(ROWS)[:, None]
    np.testing.assert_array_equal(labels, tokens[rows, at])
    untouched = np.ones_like(tokens, bool)
    untouched[np.broadcast_to(rows, at.shape)[used], at[used]] = False
    np.testing.assert_array_equal(new[untouched], tokens[untouched])
    masked, kept = new[rows, at] == MASK, new[rows, at] == labels
    # Slots of one unit stand side by side.
    pair = used[:, 1:] & used[:, :-1] & (units[:, 1:] == units[:, :-1])
    both = (masked[:, 1:] == masked[:, :-1])[pair]
    # A span's slots have one fate: as few draws as spans, unequally long.
    draws = used.sum() / (8 if unit == "span" else 1)
    for fate, expected in ((masked, 0.8), (kept, 0.1)):
        deviation = np.sqrt(expected * (1 - expected) / draws)
        # A random piece is the old one once in 995 times.
        assert abs(fate[used].mean() - expected) < 4 * deviation + 2e-4
    assert (len(both) > 5000) == (unit != "token")
    if unit == "span":
        assert both.all()
    elif unit != "token":
        assert abs(both.mean() - (0.8**2 + 0.2**2)) < 0.02


@pytest.mark.parametrize("unit", KINDS)
def test_draws_depend_on_the_row_alone(unit):
    arrays = make_rows((20,))
    arrays[1][3] = False
    whole = draw(arrays, unit)
    order = np.random.default_rng(3).permutation(ROWS).astype(np.int32)
    shuffled = draw([x[order] for x in arrays], unit, rows=order)
    for found, expected in zip(shuffled, whole, strict=True):
        np.testing.assert_array_equal(found, expected[order])
    assert (draw(arrays, unit, step=1)[0] != whole[0]).any()
    # A row without words uses no slot, and each other row does.
    np.testing.assert_array_equal(whole[1].any(axis=1), np.arange(ROWS) != 3)
    np.testing.assert_array_equal(whole[3][3], arrays[0][3])


@pytest.mark.parametrize("unit", ["span", "ngram"])
def test_no_row_leaves_its_device(unit):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    rows = jnp.arange(16, dtype=jnp.int32)
    arguments = jax.device_put((rows, *make_rows((20,), rows=16)), sharded)

    def hlo(function):
        lowered = jax.jit(function, out_shardings=sharded).lower(*arguments)
        return lowered.compile().as_text() or ""

    collectives = ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    text = hlo(lambda rows, *x: corrupt(noise(rows), 0.15, *x, unit=unit))
    assert "num_partitions=8" in text
    assert not [name for name in collectives if name in text]
    # The names are those that a collective has here.
    text = hlo(lambda *x: jnp.flip(x[0], axis=0))
    assert [name for name in collectives if name in text]


@pytest.mark.parametrize(
    ("unit", "digest"),
    [
        ("token", "daf8dc41241588f3"),
        ("word", "67002404d5275976"),
        ("span", "b2b38ca9f61127bd"),
        ("ngram", "09a44a5bf23bce98"),
    ],
)
def test_the_units_are_the_ones_they_were(unit, digest):
    """Golden digests: whoever changes the draws changes every run that is resumed."""
    found = draw(make_rows((20,)), unit)
    data = b"".join(x[:16].tobytes() for x in found)
    assert hashlib.sha256(data).hexdigest()[:16] == digest
