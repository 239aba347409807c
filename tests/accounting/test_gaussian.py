"""The Gaussian accountant against 60-digit arithmetic, and the algebra of guarantees."""

from __future__ import annotations

from fractions import Fraction
from math import inf, nextafter, pi, sqrt

import mpmath as mp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sk_unlearn.accounting import (
    compose,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    gaussian_sigma,
    group_delta,
    sensitivity_mu,
)

many = settings(max_examples=200, deadline=None)
some = settings(max_examples=100, deadline=None)


def powers_of_ten(low, high):
    return st.floats(low, high).map(lambda x: 10.0**x)


mus = powers_of_ten(-8, 3)
epsilons = powers_of_ten(-6, 3) | st.just(0.0)
deltas = powers_of_ten(-300, -0.001) | st.floats(0.5, 1 - 1e-12)


@pytest.fixture(autouse=True, scope="module")
def _sixty_digits():
    with mp.workdps(60):
        yield


def tail(x):
    return mp.erfc(x / mp.sqrt(2)) / 2


def true_delta(mu, epsilon):
    """(T1) as it stands; the digits that cancel, about those of 1/mu, are added."""
    with mp.workdps(70 + max(0, -int(mp.floor(mp.log10(mu))))):
        mu, epsilon = mp.mpf(mu), mp.mpf(epsilon)
        shift = epsilon / mu
        return tail(shift - mu / 2) - mp.exp(epsilon) * tail(shift + mu / 2)


def true_rest(mu, epsilon):
    mu, epsilon = mp.mpf(mu), mp.mpf(epsilon)
    shift = epsilon / mu
    return tail(mu / 2 - shift) + mp.exp(epsilon) * tail(shift + mu / 2)


@many
@given(mus, epsilons)
def test_delta_is_never_below_the_truth_and_close_to_it(mu, epsilon):
    truth, got = true_delta(mu, epsilon), gaussian_delta(mu, epsilon)
    assert got >= truth
    if truth > mp.mpf(10) ** -300:
        assert got <= truth * (1 + mp.mpf(10) ** -10)


@many
@given(st.floats(-8, 37), epsilons)
def test_delta_where_it_is_neither_0_nor_1(a, epsilon):
    mu = -a + sqrt(a * a + 2 * epsilon)
    assume(mu > 1e-8)
    truth, got = true_delta(mu, epsilon), gaussian_delta(mu, epsilon)
    assert truth <= got <= truth * (1 + mp.mpf(10) ** -10)
    assert 1 - mp.mpf(got) >= true_rest(mu, epsilon) * (1 - mp.mpf(10) ** -10) - 2.0**-52


@many
@given(epsilons, deltas)
def test_mu_is_the_largest_that_is_allowed(epsilon, delta):
    mu = gaussian_mu(epsilon, delta)
    assert true_delta(mu, epsilon) <= delta
    assert gaussian_delta(mu, epsilon) <= delta
    if delta < 0.999:
        assert true_delta(mu * (1 + 1e-9), epsilon) > delta


@many
@given(mus, deltas)
def test_epsilon_is_the_smallest_that_holds(mu, delta):
    epsilon = gaussian_epsilon(mu, delta)
    assert true_delta(mu, epsilon) <= delta
    assert gaussian_delta(mu, epsilon) <= delta
    if epsilon == 0:
        return
    if delta <= 0.999:
        m, e = mp.mpf(mu), mp.mpf(epsilon)
        less = e - mp.mpf(10) ** -9 * (e + m * (1 + m))
        assert less < 0 or true_delta(mu, less) > delta


@many
@given(powers_of_ten(-6, 6), epsilons, deltas)
def test_sigma_is_never_below_the_truth_and_agrees_with_the_accountant(distance, epsilon, delta):
    sigma = gaussian_sigma(distance, epsilon, delta)
    assert true_delta(mp.mpf(distance) / mp.mpf(sigma), epsilon) <= delta
    assert gaussian_delta(sensitivity_mu(distance, sigma), epsilon) <= delta
    if delta < 0.999:
        assert true_delta(mp.mpf(distance) / (mp.mpf(sigma) * (1 - 1e-9)), epsilon) > delta


def test_sigma_to_six_digits():
    truth = 1 / mp.findroot(lambda mu: true_delta(mu, 1) - mp.mpf(1e-5), 0.268)
    sigma = gaussian_sigma(1, 1, 1e-5)
    assert f"{sigma:.6f}" == "3.730632"
    assert truth <= sigma <= truth * (1 + mp.mpf(10) ** -12)


@pytest.mark.parametrize(
    ("epsilon", "delta", "sigma"),
    [  # dp-accounting 0.6.0, get_sigma_gaussian
        (0.1, 1e-5, 30.74956613197769),
        (1, 1e-5, 3.7306316348159374),
        (8, 1e-5, 0.6002290721989517),
        (1, 1e-12, 6.557822067458816),
        (1e-3, 1e-6, 2436.552493748138),
        (50, 1e-9, 0.17478362493932859),
    ],
)
def test_sigma_of_another_library(epsilon, delta, sigma):
    assert gaussian_sigma(1, epsilon, delta) == pytest.approx(sigma, rel=1e-10)


@pytest.mark.parametrize(
    ("sigma", "delta", "epsilon"),
    [  # dp-accounting 0.6.0, get_epsilon_gaussian
        (0.5, 1e-5, 9.997256146434315),
        (1, 1e-5, 4.377178095681137),
        (10, 1e-3, 0.19753397323969582),
        (0.1, 1e-12, 119.58840871231337),
        (3, 1e-8, 1.7542805047169392),
    ],
)
def test_epsilon_of_another_library(sigma, delta, epsilon):
    assert gaussian_epsilon(1 / sigma, delta) == pytest.approx(epsilon, rel=1e-10)


@pytest.mark.parametrize(
    ("epsilon", "sigma"),
    [(0.1, 30.74957), (1, 3.730632), (2, 1.993812), (4, 1.081162), (8, 0.600229)],
)
def test_reference_values(epsilon, sigma):
    assert gaussian_sigma(1, epsilon, 1e-5) == pytest.approx(sigma, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(mus, epsilons), min_size=1, max_size=4))
def test_arrays_give_what_scalars_give(pairs):
    m, e = np.array(pairs).T
    assert gaussian_delta(m, e).tolist() == [gaussian_delta(*pair) for pair in pairs]
    table = gaussian_delta(m[:, None], e)
    assert table.shape == (len(pairs), len(pairs))
    assert np.diag(table).tolist() == gaussian_delta(m, e).tolist()
    sigmas = gaussian_sigma(m, e, 1e-5)
    for pair, sigma in zip(pairs, sigmas.tolist(), strict=True):
        assert sigma == pytest.approx(gaussian_sigma(*pair, 1e-5), rel=1e-12)
    assert isinstance(gaussian_delta(1, 1), float)
    assert isinstance(gaussian_epsilon(1, 0.1), float)
    assert isinstance(gaussian_mu(1, 0.1), float)
    assert isinstance(gaussian_sigma(1, 1, 0.1), float)


@some
@given(mus, epsilons, powers_of_ten(-9, 0))
def test_delta_rises_with_mu_and_falls_with_epsilon(mu, epsilon, step):
    base = gaussian_delta(mu, epsilon)
    assert gaussian_delta(mu * (1 + step), epsilon) >= base * (1 - 1e-10)
    assert gaussian_delta(mu, epsilon * (1 + step)) <= base * (1 + 1e-10)


@some
@given(epsilons, deltas, powers_of_ten(-6, 0))
def test_sigma_falls_with_epsilon_and_with_delta(epsilon, delta, step):
    base = gaussian_sigma(1, epsilon, delta)
    assert gaussian_sigma(1, epsilon * (1 + step), delta) <= base * (1 + 1e-10)
    assert gaussian_sigma(1, epsilon, min(delta * (1 + step), 1 - 1e-15)) <= base * (1 + 1e-10)


@some
@given(powers_of_ten(-3, 3), powers_of_ten(-300, -2))
def test_round_trips(epsilon, delta):
    mu = gaussian_mu(epsilon, delta)
    assert gaussian_epsilon(mu, delta) == pytest.approx(epsilon, rel=1e-9)
    assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-9)
    assert gaussian_mu(gaussian_epsilon(mu, delta), delta) == pytest.approx(mu, rel=1e-9)


@some
@given(powers_of_ten(-5, 5), st.integers(-30, 30), epsilons, deltas)
def test_sigma_scales_with_the_sensitivity(distance, k, epsilon, delta):
    sigma = gaussian_sigma(distance, epsilon, delta)
    scaled = gaussian_sigma(distance * 2.0**k, epsilon, delta)
    assert scaled == pytest.approx(sigma * 2.0**k, rel=1e-13)


def test_edges():
    assert gaussian_delta(0, 0) == gaussian_delta(0, 1) == 0.0
    assert gaussian_delta(inf, 0) == gaussian_delta(inf, 1000) == gaussian_delta(inf, inf) == 1.0
    assert gaussian_delta(1, inf) == 0.0
    assert gaussian_delta(1e-5, 1.0) == 5e-324
    assert gaussian_delta(1e300, 1.0) == 1.0
    assert gaussian_delta(5e-324, 1e300) == 5e-324
    assert gaussian_epsilon(0, 0) == gaussian_epsilon(inf, 1) == 0.0
    assert gaussian_epsilon(inf, 0.5) == gaussian_epsilon(1, 0) == inf
    assert gaussian_epsilon(1e200, 0.5) == inf
    assert gaussian_epsilon(1e-12, 1e-5) == 0.0
    assert gaussian_sigma(0, 1, 1e-5) == 0.0
    assert gaussian_mu(0, 1e-300) == pytest.approx(sqrt(2 * pi) * 1e-300, rel=1e-12)
    assert gaussian_delta([], 1.0).shape == gaussian_sigma([], 1.0, 0.1).shape == (0,)


@many
@given(
    st.sampled_from([0.0, 5e-324, 1e-300, 1e-12, 1.0, 1e12, 1e160, 1e308, inf]),
    st.sampled_from([0.0, 5e-324, 1e-300, 1e-12, 1.0, 1e12, 1e160, 1e308, inf]),
    st.sampled_from([5e-324, 1e-300, 1e-12, 0.5, 1 - 2.0**-53]),
)
def test_never_nan(mu, epsilon, delta):
    assert 0 <= gaussian_delta(mu, epsilon) <= 1
    assert gaussian_epsilon(mu, delta) >= 0
    if epsilon < inf:
        assert gaussian_mu(epsilon, delta) >= 0
        if mu < inf:
            assert gaussian_sigma(mu, epsilon, delta) >= 0


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: gaussian_delta(-1.5, 1), "mu=-1.5"),
        (lambda: gaussian_delta(float("nan"), 1), "mu=nan"),
        (lambda: gaussian_delta(1, [1.0, -2.5]), "epsilon=-2.5"),
        (lambda: gaussian_epsilon(1, 1.25), "delta=1.25"),
        (lambda: gaussian_mu(1, 0.0), "delta=0.0"),
        (lambda: gaussian_mu(1, 1.0), "delta=1.0"),
        (lambda: gaussian_mu(inf, 0.5), "epsilon=inf"),
        (lambda: gaussian_sigma(inf, 1, 0.5), "sensitivity=inf"),
        (lambda: gaussian_sigma(1, 1, 0.5, calibration="exact"), "'exact'"),
        (lambda: gaussian_sigma(1, 1.0, 1e-5, calibration="classical"), "epsilon=1.0"),
        (lambda: sensitivity_mu(1, -3.0), "sigma=-3.0"),
        (lambda: compose([1.0, -0.5]), "mus=-0.5"),
        (lambda: group_delta(1, 1.5, 2), "delta=1.5"),
        (lambda: group_delta(1, 0.5, 0), "k=0"),
        (lambda: group_delta(1, 0.5, 1.5), "k=1.5"),
    ],
)
def test_bad_input_is_quoted(call, quoted):
    with pytest.raises(ValueError, match=quoted):
        call()


def test_what_is_no_number_is_refused():
    for value in ("1", None, 1j, True):
        with pytest.raises(TypeError):
            gaussian_delta(value, 1.0)


@some
@given(st.floats(1e-6, nextafter(1.0, 0)), powers_of_ten(-300, -0.001))
def test_classical_noise_suffices_where_it_is_offered(epsilon, delta):
    sigma = gaussian_sigma(1, epsilon, delta, calibration="classical")
    formula = mp.sqrt(2 * mp.log(mp.mpf(1.25) / mp.mpf(delta))) / mp.mpf(epsilon)
    assert formula <= sigma <= formula * (1 + mp.mpf(10) ** -14)
    assert true_delta(1 / mp.mpf(sigma), epsilon) <= delta


def test_classical_noise_is_wasteful_and_false_for_a_large_epsilon():
    formula = sqrt(2 * np.log(1.25e5))
    assert formula == pytest.approx(4.8448, abs=1e-4)
    assert gaussian_sigma(1, 0.99, 1e-5, calibration="classical") > 1.29 * gaussian_sigma(
        1, 0.99, 1e-5
    )
    assert true_delta(8.41 / formula, 8.41) < 1e-5 < true_delta(8.43 / formula, 8.43)


def test_mu_of_a_ratio():
    assert sensitivity_mu(0, 0) == 0.0
    assert sensitivity_mu(1, 0) == sensitivity_mu(inf, 1) == sensitivity_mu(inf, inf) == inf
    assert 0 < sensitivity_mu(5e-324, 1e300) < 1e-323


@some
@given(powers_of_ten(-30, 30), powers_of_ten(-30, 30))
def test_mu_of_a_ratio_is_rounded_up(distance, sigma):
    mu = Fraction(sensitivity_mu(distance, sigma))
    ratio = Fraction(distance) / Fraction(sigma)
    assert ratio <= mu <= ratio * (1 + Fraction(1, 2**51))


@some
@given(st.lists(st.floats(0, 1e300), max_size=6), st.randoms())
def test_composition_is_exact_and_free_of_order(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    total = compose(values)
    assert total == compose(shuffled)
    squares = sum((Fraction(v) ** 2 for v in values), Fraction(0))
    assert Fraction(total) ** 2 >= squares
    if total > 1e-300:
        assert Fraction(nextafter(total, 0)) ** 2 <= squares * (1 + Fraction(1, 2**50))


@some
@given(st.floats(0, 1e300))
def test_one_release_composes_to_itself(mu):
    assert compose([mu]) == compose(mu) == compose([0.0, mu, 0.0]) == mu


def test_composition_of_extremes():
    assert compose([]) == 0.0
    assert compose([1.0, inf]) == inf
    assert compose([5e-324, 5e-324]) == 1e-323
    assert compose([1e308] * 9) == inf
    assert compose([2.0**1000] * 9) == 3 * 2.0**1000
    assert compose([1.0] * 10_000) == 100.0


@some
@given(
    powers_of_ten(-6, 2) | st.just(0.0),
    powers_of_ten(-300, 0) | st.just(0.0),
    st.integers(1, 1000),
)
def test_group_against_mpmath(epsilon, delta, k):
    whole, grown = group_delta(epsilon, delta, k)
    assert Fraction(whole) >= k * Fraction(epsilon)
    assert whole <= k * epsilon * (1 + 1e-15)
    e = mp.mpf(epsilon)
    factor = mp.mpf(k) if epsilon == 0 else mp.expm1(k * e) / mp.expm1(e)
    truth = min(mp.mpf(1), mp.mpf(delta) * factor)
    assert truth <= grown
    if truth > mp.mpf(10) ** -300:
        assert grown <= truth * (1 + mp.mpf(10) ** -10)


@some
@given(powers_of_ten(-4, 1), powers_of_ten(-12, -1), st.integers(1, 9), st.integers(1, 9))
def test_groups_of_groups(epsilon, delta, a, b):
    assert group_delta(*group_delta(epsilon, delta, a), b) == pytest.approx(
        group_delta(epsilon, delta, a * b), rel=1e-12
    )
    assert group_delta(epsilon, delta, 1) == (epsilon, delta)


@some
@given(powers_of_ten(-2, 0.5), powers_of_ten(-2, 1), st.integers(1, 6))
def test_groups_cover_the_gaussian_mechanism_at_k_times_the_distance(mu, epsilon, k):
    whole, grown = group_delta(epsilon, gaussian_delta(mu, epsilon), k)
    assert true_delta(k * mp.mpf(mu), whole) <= grown
