"""The noise is normal to the last bit of its tail, fresh, symmetric, and released on a grid."""

from __future__ import annotations

import os
from fractions import Fraction
from math import frexp, nextafter

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sk_unlearn._validation import LARGEST_EPSILON, SMALLEST_DELTA
from sk_unlearn.accounting import gaussian_mu
from sk_unlearn.noise import NoiseSource, grid_step

SIGNIFICANCE = 1e-4  # of each test on a seeded stream: passes or fails for ever
N = 200_000
HALF = 2**63


def fed(*words, then=()):
    """Return what a source makes of given 64-bit words, and further ones where it asks for more."""
    source, answers = NoiseSource(), iter([words, *then])
    source._bytes = lambda n: np.array(next(answers, [HALF] * (n // 8)), dtype=np.uint64).tobytes()
    return source.gaussian(len(words), 1.0)


def quantile(tail):
    """Return the inverse of the normal distribution function, to 30 digits."""
    with mpmath.workdps(50):
        p = mpmath.mpf(tail.numerator) / tail.denominator
        return -mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * p)


words64 = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**12),
    st.integers(2**64 - 2**12, 2**64 - 1),
    st.integers(0, 63).map(lambda k: 2**k),
)


# ------------------------------------------------------------------ the map from bits to normals


@settings(max_examples=200)
@given(words64)
def test_a_word_becomes_the_normal_quantile_of_its_tail(word):
    (got,) = fed(word)
    tail = (Fraction(word >> 1) + Fraction(1, 2)) / 2**64
    true = quantile(tail) * (-1 if word & 1 else 1)
    # to 53 bits of the tail, whatever its size
    slack = abs(quantile(tail) - quantile(min(tail * (1 + Fraction(1, 2**53)), Fraction(1, 2))))
    assert abs(got - true) <= 1e-12 * abs(true) + 2 * slack


@settings(max_examples=100)
@given(st.integers(0, 2**52).map(lambda k: 2 * k), words64, words64)
def test_a_short_tail_goes_on_with_the_next_words(word, second, third):
    (got,) = fed(word, then=[[second], [third]])
    fraction = (Fraction(third) + Fraction(1, 2)) / 2**64 if second < 2**53 else Fraction(1, 2)
    tail = (Fraction(word >> 1) + (second + fraction) / 2**64) / 2**64
    with mpmath.workdps(50):
        reached = mpmath.ncdf(mpmath.mpf(got)) * tail.denominator / tail.numerator
        assert abs(reached - 1) <= 2**-51 + 1e-14 * got**2


def broken_by(last, epsilon):
    """Return what noise that ends at `last` adds to delta: its end is an impossible event."""
    with mpmath.workdps(50):
        return 2 * mpmath.exp(epsilon) * mpmath.ncdf(-mpmath.mpf(last))


def test_the_noise_reaches_as_far_as_any_promise_that_can_be_asked_for():
    source = NoiseSource()
    source._bytes = bytes
    (last,) = source.gaussian(1, 1.0)
    assert broken_by(-last, LARGEST_EPSILON) <= 1e-12 * SMALLEST_DELTA
    # where one word ended, a promise of (40, 1e-5) was broken twenty times over
    one_word = float(quantile(Fraction(1, 2**65)))
    mu = gaussian_mu(40.0, 1e-5)
    assert broken_by(-one_word, 40.0) > 1e-5 and stats.norm.cdf(one_word + mu) > 20 * 1e-5


@given(words64)
def test_the_lowest_bit_is_the_sign_and_nothing_else(word):
    plus, minus = fed(word & ~1, word | 1)
    assert plus == -minus <= 0 or plus == minus == 0


def test_draws_go_beyond_what_float32_normals_reach():
    smallest = fed(0, 1)
    assert smallest[0] == pytest.approx(float(quantile(Fraction(1, 2**65))), rel=1e-9)
    assert smallest[1] == -smallest[0] > 9.1
    beyond = [k for k in range(64) if abs(fed(1 << k)[0]) > 5.77]
    assert len(beyond) > 20


@given(words64, words64)
def test_a_smaller_tail_is_further_out(one, other):
    near, far = sorted([one & ~1, other & ~1], reverse=True)
    assert abs(fed(near)[0]) <= abs(fed(far)[0])


@pytest.mark.parametrize("size", [0, 1, 7, 2**20 - 1, 2**20, 2**20 + 3])
def test_every_entry_has_its_own_eight_bytes_and_the_far_ones_more(size):
    asked = []

    def counted(n):
        asked.append(n)
        return os.urandom(n)

    source = NoiseSource()
    source._bytes = counted
    draws = source.gaussian(size, 1.0)
    assert draws.shape == (size,) and draws.dtype == np.float64
    more = sum(asked) - 8 * size
    assert more % 8 == 0 and (more == 0 if size < 10 else more < 8 * size / 500)
    assert len(np.unique(draws)) >= size - 1
    assert np.all(np.isfinite(draws))


# ------------------------------------------------------------------ the distribution


@pytest.fixture(scope="module")
def sample():
    return NoiseSource(20240721).gaussian(N, 1.0)


def test_the_distribution_is_normal(sample):
    assert stats.kstest(sample, "norm").pvalue > SIGNIFICANCE
    assert stats.cramervonmises(sample, "norm").pvalue > SIGNIFICANCE
    cells = np.bincount((stats.norm.cdf(sample) * 1000).astype(int), minlength=1000)
    assert stats.chisquare(cells).pvalue > SIGNIFICANCE


def test_these_tests_see_what_a_bad_sampler_does(sample):
    """Two parts in a hundred too narrow, or off centre, and they fail."""
    assert stats.kstest(sample * 0.98, "norm").pvalue < SIGNIFICANCE
    assert stats.kstest(sample + 0.02, "norm").pvalue < SIGNIFICANCE


def test_the_tails_are_normal(sample):
    for threshold in (2.0, 3.0, 4.0):
        for side in (sample, -sample):
            count = int(np.sum(side > threshold))
            test = stats.binomtest(count, N, stats.norm.sf(threshold))
            assert test.pvalue > SIGNIFICANCE


def test_the_moments(sample):
    z = stats.norm.isf(SIGNIFICANCE / 2)
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(sample**power) - mean) < z * np.sqrt(variance / N)


def test_neighbours_are_independent(sample):
    z = stats.norm.isf(SIGNIFICANCE / 2) / np.sqrt(N)
    for lag in (1, 2, 64):
        assert abs(np.mean(sample[lag:] * sample[:-lag])) < 1.01 * z
        assert abs(np.mean(np.sign(sample[lag:]) * np.abs(sample[:-lag]))) < 1.01 * z


def test_the_scale_is_exact(sample):
    assert np.array_equal(NoiseSource(20240721).gaussian(N, 0.3), sample * 0.3)


# ------------------------------------------------------------------ where it comes from


def test_without_a_seed_it_comes_from_the_operating_system(monkeypatch):
    asked = []

    def urandom(n):
        asked.append(n)
        return bytes(n)

    monkeypatch.setattr(os, "urandom", urandom)
    draws = NoiseSource().gaussian(3, 1.0)
    assert asked[0] == 24 and sum(asked) == 15 * 24
    assert np.all(draws == draws[0]) and draws[0] < -36


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_process_draws_its_own():
    source = NoiseSource()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, source.gaussian(4, 1.0).tobytes())
        os._exit(0)
    own = source.gaussian(4, 1.0)
    other = np.frombuffer(os.read(reading, 32))
    assert os.waitpid(child, 0)[1] == 0 and len(other) == 4
    assert not np.any(own == other)
    os.close(reading), os.close(writing)


def test_without_a_seed_no_two_draws_are_equal():
    source = NoiseSource()
    drawn = np.concatenate([source.gaussian(500, 1.0) for _ in range(4)])
    drawn = np.concatenate([drawn, NoiseSource().gaussian(500, 1.0)])
    assert len(np.unique(drawn)) == len(drawn)
    assert source.secret


def test_numpy_s_and_torch_s_seeds_do_not_reach_it():
    import torch

    drawn = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        drawn.append(NoiseSource().gaussian(5, 1.0))
    assert not np.any(drawn[0] == drawn[1])


def test_a_seed_makes_the_stream_reproducible_and_not_secret():
    one, other = NoiseSource(7, 2), NoiseSource(7, 2)
    assert not one.secret
    assert np.array_equal(one.gaussian(5, 1.0), other.gaussian(5, 1.0))
    assert not np.any(one.gaussian(5, 1.0) == NoiseSource(7, 2).gaussian(5, 1.0))


def test_all_bits_of_seed_and_stream_count():
    """A 32-bit seed can be searched; a stream number must not be read as bits of the seed."""
    pairs = [(1 + (k << shift), 0) for k in range(3) for shift in (0, 31, 32, 33, 63, 64, 96)]
    pairs += [(1, stream) for stream in (*range(1, 6), 2**32, 2**33)]
    pairs += [(1 + (5 << 32), stream) for stream in range(4)]
    first = {pair: NoiseSource(*pair).gaussian(1, 1.0)[0] for pair in set(pairs)}
    assert len(set(first.values())) == len(first)
    assert NoiseSource(1).gaussian(1, 1.0) != NoiseSource(1 + 2**32).gaussian(1, 1.0)


# ------------------------------------------------------------------ the grid

scales = st.floats(-30, 30).map(lambda x: 10.0**x)


@given(scales)
def test_the_grid_lies_between_2_to_the_minus_13_and_2_to_the_minus_12_of_the_noise(std):
    for value in (std, 2.0 ** frexp(std)[1], nextafter(2.0 ** frexp(std)[1], 0)):
        ratio = Fraction(grid_step(value)) / Fraction(value)
        assert Fraction(1, 2**13) < ratio <= Fraction(1, 2**12)
        assert frexp(grid_step(value))[0] == 0.5


@settings(max_examples=30)
@given(scales, st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_released_values_are_multiples_of_the_public_step(std, values):
    values = np.array(values) * std
    released = NoiseSource().release(values, std)
    step = Fraction(grid_step(std))
    assert all((Fraction(v) / step).denominator == 1 for v in released.tolist())


@pytest.mark.parametrize("std", [1e-3, 0.01, 1.0, 37.0])
def test_a_release_is_the_nearest_grid_point_of_the_noisy_sum(std):
    values = np.linspace(-5, 5, 101) * std
    noisy = values + NoiseSource(3).gaussian(101, std)
    released = NoiseSource(3).release(values, std)
    assert np.all(np.abs(released - noisy) <= 0.5 * grid_step(std))


def test_a_release_is_normal_around_its_value_up_to_the_grid():
    released = NoiseSource(5).release(np.full(N, 3.25), 0.01)
    centred = (released - 3.25) / 0.01
    step = grid_step(0.01) / 0.01
    spread = NoiseSource(6).gaussian(N, 1.0)  # undo the rounding with uniform noise
    smooth = centred + (stats.norm.cdf(spread) - 0.5) * step
    assert stats.kstest(smooth, "norm").pvalue > SIGNIFICANCE


def test_a_release_does_not_modify_what_it_is_given():
    values = np.zeros(5)
    NoiseSource().release(values, 1.0)
    assert not values.any()


@pytest.mark.parametrize("std", [0.0, -1.0, 1e-310, float("nan"), float("inf")])
def test_a_grid_needs_positive_noise(std):
    with pytest.raises(ValueError, match="std"):
        grid_step(std)
