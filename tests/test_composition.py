"""From events to (epsilon, delta) and back: safe side, tight, unit-free, and no event for free."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from math import inf, nan

import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sk_unlearn.accounting import (
    calibrate,
    calibrate_share,
    compose,
    event_delta,
    event_epsilon,
    event_mu,
    require,
)
from sk_unlearn.events import Event, ExactRelease, GaussianRelease, UncertifiedRelease
from sk_unlearn.exceptions import CalibrationError, UnknownEventError

epsilons = st.floats(-6, 3).map(lambda x: 10.0**x)
deltas = st.one_of(st.floats(-300, -2).map(lambda x: 10.0**x), st.floats(0.01, 0.99))
sizes = st.floats(-12, 12).map(lambda x: 10.0**x)


def exact_delta(sensitivity, sigma, epsilon):
    """(T1) with 60 digits beyond the cancellation."""
    with mpmath.workdps(400):
        mu = mpmath.mpf(sensitivity) / mpmath.mpf(sigma)
        a, b = epsilon / mu - mu / 2, epsilon / mu + mu / 2
        tail = lambda t: mpmath.erfc(t / mpmath.sqrt(2)) / 2  # noqa: E731
        return tail(a) - mpmath.exp(epsilon) * tail(b)


def open_event(which, size):
    if which == "sigma":
        return GaussianRelease(size, None, "ball_diameter", (("C", size / 2),))
    return GaussianRelease(None, size, "residual_distance")


@given(st.sampled_from(["sigma", "sensitivity"]), sizes, epsilons, deltas)
def test_calibrate_fills_in_exactly_what_is_open(which, size, epsilon, delta):
    event = open_event(which, size)
    done = calibrate(event, epsilon, delta)
    assert getattr(done, which) > 0
    assert replace(done, **{which: None}) == event


@given(st.sampled_from(["sigma", "sensitivity"]), sizes, epsilons, deltas)
def test_what_is_calibrated_buys_what_was_asked_for(which, size, epsilon, delta):
    event = calibrate(open_event(which, size), epsilon, delta)
    assert event_delta(event, epsilon) <= delta
    require(event, epsilon, delta)


@settings(max_examples=25)
@given(st.sampled_from(["sigma", "sensitivity"]), sizes, epsilons, deltas)
def test_what_is_calibrated_is_safe_and_tight_in_400_digits(which, size, epsilon, delta):
    event = calibrate(open_event(which, size), epsilon, delta)
    true = exact_delta(event.sensitivity, event.sigma, epsilon)
    assert true <= delta
    assert true >= delta * (1 - 1e-9)


@given(st.sampled_from(["sigma", "sensitivity"]), sizes, epsilons, deltas, st.integers(-30, 30))
def test_units_do_not_matter(which, size, epsilon, delta, power):
    unit = 2.0**power
    open_ = "sensitivity" if which == "sigma" else "sigma"
    one = calibrate(open_event(which, size), epsilon, delta)
    other = calibrate(open_event(which, size * unit), epsilon, delta)
    assert getattr(other, open_) == getattr(one, open_) * unit
    assert getattr(other, which) == pytest.approx(getattr(one, which) * unit, rel=1e-12)


@given(sizes, epsilons, deltas, st.floats(1.0, 10.0))
def test_more_noise_for_a_larger_distance_or_a_smaller_budget(size, epsilon, delta, factor):
    sigma = calibrate(open_event("sigma", size), epsilon, delta).sigma
    assert calibrate(open_event("sigma", size * factor), epsilon, delta).sigma >= sigma
    assert calibrate(open_event("sigma", size), epsilon * factor, delta).sigma <= sigma * (1 + 1e-9)
    assert calibrate(open_event("sigma", size), epsilon, delta / factor).sigma >= sigma * (1 - 1e-9)


@given(sizes, sizes, epsilons)
def test_event_mu_is_rounded_up_by_less_than_two_units(sensitivity, sigma, epsilon):
    event = GaussianRelease(sensitivity, sigma, "b")
    true = mpmath.mpf(sensitivity) / mpmath.mpf(sigma)
    assert true <= event_mu(event) <= true * (1 + mpmath.mpf(2) ** -51)
    assert event_delta(event, epsilon) >= exact_delta(sensitivity, sigma, epsilon)


@given(st.floats(-3, 3).map(lambda x: 10.0**x), deltas)
def test_epsilon_and_delta_are_inverse_and_safe(ratio, delta):
    event = GaussianRelease(ratio, 1.0, "b")
    epsilon = event_epsilon(event, delta)
    assert event_delta(event, epsilon) <= delta
    if epsilon > 0:
        assert event_delta(event, epsilon * (1 - 1e-6)) > delta


def test_the_reference_values():
    sigmas = {0.1: 30.74957, 1: 3.730632, 2: 1.993812, 4: 1.081162, 8: 0.600229}
    for epsilon, sigma in sigmas.items():
        found = calibrate(open_event("sigma", 1.0), epsilon, 1e-5).sigma
        assert found == pytest.approx(sigma, rel=5e-7)


# ------------------------------------------------------------------ fixed by hand


def test_noise_fixed_by_hand_is_kept_when_it_is_enough():
    event = GaussianRelease(1.0, 4.0, "b")
    assert calibrate(event, 1.0, 1e-5) is event


def test_noise_fixed_by_hand_that_is_too_small_is_refused_with_what_it_buys():
    event = GaussianRelease(1.0, 1.0, "b")
    with pytest.raises(CalibrationError, match=r"epsilon = 4\.37\d+ at delta = 1e-05, not the 1 "):
        calibrate(event, 1.0, 1e-5)
    bought = event_epsilon(event, 1e-5)
    assert calibrate(event, bought, 1e-5) is event
    with pytest.raises(CalibrationError):
        calibrate(event, bought * (1 - 1e-9), 1e-5)


def test_an_incomplete_event_buys_nothing_yet():
    for event in (
        GaussianRelease(None, None, "b"),
        GaussianRelease(1.0, None, "b"),
        GaussianRelease(None, 1.0, "b"),
    ):
        with pytest.raises(CalibrationError, match="incomplete"):
            event_mu(event)
        with pytest.raises(CalibrationError, match="incomplete"):
            event_delta(event, 1.0)
        with pytest.raises(CalibrationError, match="incomplete"):
            event_epsilon(event, 1e-5)
    with pytest.raises(CalibrationError, match="incomplete"):
        calibrate(GaussianRelease(None, None, "b"), 1.0, 1e-5)


@pytest.mark.parametrize("value", [nan, -1.0, -inf])
@pytest.mark.parametrize("name", ["sensitivity", "sigma"])
def test_impossible_noise_never_passes(name, value):
    event = replace(GaussianRelease(1.0, 4.0, "b"), **{name: value})
    for account in (event_mu, lambda e: event_delta(e, 1.0), lambda e: event_epsilon(e, 0.5)):
        with pytest.raises(ValueError, match=name):
            account(event)
    other = "sigma" if name == "sensitivity" else "sensitivity"
    for target in (event, replace(event, **{other: None})):
        with pytest.raises(ValueError):
            calibrate(target, 1.0, 1e-5)


def test_no_noise_at_all():
    assert event_mu(GaussianRelease(1.0, 0.0, "b")) == inf
    assert event_delta(GaussianRelease(1.0, 0.0, "b"), 1e3) == 1.0
    assert event_epsilon(GaussianRelease(1.0, 0.0, "b"), 0.5) == inf
    assert event_mu(GaussianRelease(0.0, 0.0, "b")) == 0.0
    assert event_delta(GaussianRelease(0.0, 1.0, "b"), 0.0) == 0.0


@pytest.mark.parametrize("epsilon", [-1.0, nan])
def test_a_bad_epsilon_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        calibrate(open_event("sigma", 1.0), epsilon, 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, nan])
def test_a_bad_delta_is_refused(delta):
    with pytest.raises(ValueError, match="delta"):
        calibrate(open_event("sigma", 1.0), 1.0, delta)


# ------------------------------------------------------------------ what is no Gaussian


def test_an_exact_release_costs_nothing():
    event = ExactRelease("retrained")
    assert event_mu(event) == event_delta(event, 0.0) == event_epsilon(event, 0.0) == 0.0
    assert calibrate(event, 1.0, 1e-5) is event


def test_an_uncertified_release_buys_nothing():
    event = UncertifiedRelease(0.001, "sigma was set by hand")
    assert event_mu(event) is None
    assert event_epsilon(event, 0.999) == inf
    assert event_delta(event, 1e300) == 1.0
    assert event_delta(event, inf) == 0.0
    assert calibrate(event, 1.0, 1e-5) is event
    with pytest.raises(CalibrationError):
        require(event, 1.0, 1e-5)


@dataclass(frozen=True)
class Novelty(Event):
    sigma: float = 1.0


@pytest.mark.parametrize("event", [Event(), Novelty(), None, 1.0, "ExactRelease", {}, ()])
@pytest.mark.parametrize(
    "account",
    [
        event_mu,
        lambda e: event_delta(e, 1.0),
        lambda e: event_epsilon(e, 1e-5),
        lambda e: calibrate(e, 1.0, 1e-5),
        lambda e: require(e, 1.0, 1e-5),
    ],
    ids=["mu", "delta", "epsilon", "calibrate", "require"],
)
def test_an_event_without_a_rule_never_passes(account, event):
    with pytest.raises(UnknownEventError, match="no accounting rule"):
        account(event)


# ------------------------------------------------------------------ sequences (T3)


@given(st.lists(sizes, max_size=4))
def test_composition_does_not_depend_on_the_order(mus):
    assert len({compose(order) for order in permutations(mus)}) == 1


@given(st.lists(sizes, min_size=1, max_size=8))
def test_composition_is_the_root_of_the_sum_of_squares_rounded_up(mus):
    with mpmath.workdps(60):
        true = mpmath.sqrt(sum(mpmath.mpf(mu) ** 2 for mu in mus))
        assert true <= compose(mus) <= true * (1 + mpmath.mpf(2) ** -51)


@given(sizes, epsilons, st.floats(1e-12, 0.5), st.integers(2, 20))
def test_a_composition_of_equal_releases_is_one_of_root_k(size, epsilon, delta, k):
    """K releases at Delta / sqrt(K) each cost what one costs at Delta (T19)."""
    whole = calibrate(open_event("sigma", size), epsilon, delta)
    part = GaussianRelease(size / np.sqrt(k), whole.sigma, "b")
    assume(event_mu(part) > 1e-150)
    together = compose([event_mu(part)] * k)
    assert together == pytest.approx(event_mu(whole), rel=1e-14)


horizons = st.integers(1, 10**6)


@settings(max_examples=40)
@given(st.sampled_from(["sigma", "sensitivity"]), sizes, epsilons, deltas, horizons)
def test_a_share_composes_to_what_was_asked_for_in_400_digits(which, size, epsilon, delta, k):
    event = calibrate_share(open_event(which, size), epsilon, delta, k)
    with mpmath.workdps(400):
        together = mpmath.mpf(event.sensitivity) * mpmath.sqrt(k)
        true = exact_delta(together, event.sigma, epsilon)
    assert true <= delta
    assert true >= delta * (1 - 1e-9)


@given(st.sampled_from(["sigma", "sensitivity"]), sizes, epsilons, deltas, st.integers(1, 50))
def test_the_accountant_of_sums_agrees_with_a_share(which, size, epsilon, delta, k):
    event = calibrate_share(open_event(which, size), epsilon, delta, k)
    together = GaussianRelease(compose([event_mu(event)] * k), 1.0, "ball_diameter")
    assert event_delta(together, epsilon) <= delta


def test_a_fixed_event_is_a_share_only_if_all_releases_together_are_enough():
    event = calibrate(open_event("sigma", 1.0), 1.0, 1e-5)
    with pytest.raises(CalibrationError, match="4 releases .* buy epsilon = 2"):
        calibrate_share(event, 1.0, 1e-5, 4)
    assert calibrate_share(event, 2.2, 1e-5, 4) == event


@pytest.mark.parametrize("event", [ExactRelease("retrained"), UncertifiedRelease(0.1, "by hand")])
def test_only_gaussian_releases_have_shares(event):
    with pytest.raises(UnknownEventError, match="not known to compose"):
        calibrate_share(event, 1.0, 1e-5, 2)


@pytest.mark.parametrize("k", [0, -1, 1.5])
def test_a_share_of_no_whole_number_of_releases_is_refused(k):
    with pytest.raises(ValueError, match="releases="):
        calibrate_share(open_event("sigma", 1.0), 1.0, 1e-5, k)
