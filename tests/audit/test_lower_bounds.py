from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.utils import check_random_state

from sk_unlearn.accounting import gaussian_epsilon, gaussian_mu
from sk_unlearn.audit import lower_bounds
from sk_unlearn.audit.lower_bounds import (
    epsilon_lower_bound,
    held_out_error_rates,
    mu_lower_bound,
)

DELTA = 1e-5


def worlds(mu, n, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(mu, 1, n), rng.normal(0, 1, n)


def slow_upper(count, n, level):
    interval = binomtest(int(count), n).proportion_ci(1 - 2 * level, method="exact")
    return interval.high


def slow_strength(fpr, fnr, delta):
    """The lower bounds of both kinds, in plain Python."""
    if delta is None:
        return norm.isf(fpr) + norm.isf(fnr)
    ratios = [(1 - delta - fnr) / fpr, (1 - delta - fpr) / fnr]
    return max(math.log(r) if r > 0 else -math.inf for r in ratios)


def slow_bound(present, absent, delta, confidence=0.95, seed=0):
    """Every candidate test counted one by one, with scipy's own exact intervals."""
    rng = check_random_state(seed)
    present, absent = rng.permutation(present), rng.permutation(absent)
    a, b = len(present) // 2, len(absent) // 2
    level = (1 - confidence) / 4
    results = []
    for p1, a1, p2, a2 in [
        (present[:a], absent[:b], present[a:], absent[b:]),
        (present[a:], absent[b:], present[:a], absent[:b]),
    ]:

        def value(sign, t, p, q, level):
            fpr = slow_upper(sum(sign * s >= t for s in q), len(q), level)
            fnr = slow_upper(sum(sign * s < t for s in p), len(p), level)
            return slow_strength(fpr, fnr, delta)

        candidates = set()
        for scores in (p1, a1):
            ordered = sorted(scores)
            for r in np.geomspace(1, len(scores), 50).astype(int):
                candidates |= {ordered[r - 1], ordered[-r]}
        shared = level / (2 * len(candidates))
        tests = [(sign, sign * t) for sign in (1, -1) for t in sorted(candidates)]
        best = max(tests, key=lambda test: value(*test, p1, a1, shared))
        results.append(value(*best, p2, a2, level))
    return max(0.0, *results)


@pytest.mark.parametrize("count", [0, 1, 7, 50, 99, 100])
@pytest.mark.parametrize("level", [0.0125, 1e-5])
def test_upper_bound_is_that_of_clopper_and_pearson(count, level):
    computed = lower_bounds._upper_bound(count, 100, level)
    assert computed == pytest.approx(slow_upper(count, 100, level), rel=1e-9)
    if count < 100:  # by definition, without any inverse function
        tail = math.fsum(
            math.comb(100, k) * computed**k * (1 - computed) ** (100 - k) for k in range(count + 1)
        )
        assert tail == pytest.approx(level, rel=1e-9)


@pytest.mark.parametrize("mu", [-3.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("digits", [1, 9])
def test_bounds_agree_with_counting_by_hand(mu, digits):
    present, absent = (np.round(s, digits) for s in worlds(mu, 61, 3))
    absent = absent[:-7]
    for seed in (0, 1):
        computed = epsilon_lower_bound(present, absent, DELTA, random_state=seed)
        assert computed == pytest.approx(slow_bound(present, absent, DELTA, seed=seed), abs=1e-9)
        computed = mu_lower_bound(present, absent, 0.8, random_state=seed)
        assert computed == pytest.approx(slow_bound(present, absent, None, 0.8, seed), abs=1e-9)


def test_certain_separation_gives_what_the_number_of_runs_allows():
    fpr = 1 - 0.0125 ** (1 / 500)
    present, absent = np.full(1000, -1.0), np.full(1000, np.inf)
    assert epsilon_lower_bound(present, absent, 0.1) == pytest.approx(math.log((0.9 - fpr) / fpr))
    assert mu_lower_bound(present, absent) == pytest.approx(2 * norm.isf(fpr))


def test_a_one_sided_event_counts_although_neither_threshold_separates():
    # An event of probability 0.2 that never happens in the other world.
    present = np.repeat([0.0, 9.0], [8000, 2000])
    absent = np.zeros(10_000)
    for a, b in [(present, absent), (absent, present), (-present, absent), (absent, -present)]:
        assert epsilon_lower_bound(a, b, DELTA) > 5


@pytest.mark.parametrize("bound", [lambda p, a: epsilon_lower_bound(p, a, DELTA), mu_lower_bound])
def test_worlds_that_give_the_same_scores_give_zero(bound):
    assert bound(np.zeros(50), np.zeros(70)) == 0.0
    assert type(bound(np.zeros(50), np.zeros(70))) is float
    scores = np.arange(200.0)
    assert bound(scores, scores) == 0.0


@given(
    st.integers(0, 2**32 - 1),
    st.floats(-4, 4),
    st.sampled_from([1.0, -1.0]),
    st.integers(-8, 8),
    st.integers(14, 120),
)
def test_only_the_order_of_scores_matters(seed, mu, sign, exponent, n):
    present, absent = (np.round(s, 2) for s in worlds(mu, n, seed))
    absent = np.concatenate([absent, absent[: n // 3]])
    moved = [sign * 2.0**exponent * s for s in (present, absent)]
    cubed = [sign * s**3 for s in (present, absent)]
    for other in (moved, cubed):
        assert mu_lower_bound(*other) == mu_lower_bound(present, absent)
        assert epsilon_lower_bound(*other, DELTA) == epsilon_lower_bound(present, absent, DELTA)


@given(st.integers(0, 2**32 - 1), st.floats(0, 6), st.integers(14, 200))
def test_bounds_never_exceed_what_the_number_of_runs_allows(seed, mu, n):
    present, absent = worlds(mu, n, seed)
    fpr = lower_bounds._upper_bound(0, (n + 1) // 2, 0.0125)
    assert 0 <= epsilon_lower_bound(present, absent, DELTA) <= -math.log(fpr)
    assert 0 <= mu_lower_bound(present, absent) <= -2 * norm.ppf(fpr) * (1 + 1e-12)
    rates = held_out_error_rates(present, absent)
    assert 0 < rates.fpr_upper <= 1 and 0 < rates.fnr_upper <= 1
    assert rates.threshold in rates.sign * np.concatenate([present, absent])


def test_the_rates_bound_the_chosen_test_with_the_stated_confidence():
    failures = 0
    for seed in range(400):
        rates = held_out_error_rates(*worlds(1.0, 200, seed))
        mean = 1.0 if rates.sign == 1 else -1.0
        fnr, fpr = norm.cdf(rates.threshold, mean), norm.sf(rates.threshold)
        failures += rates.fpr_upper < fpr or rates.fnr_upper < fnr
    assert failures <= 20


def test_the_split_is_reproducible_and_leaves_the_input_and_global_state_alone():
    present, absent = worlds(1.0, 500, 0)
    before, state = present.copy(), np.random.get_state()[1].copy()  # noqa: NPY002
    results = [mu_lower_bound(present, absent, random_state=s) for s in (0, 0, 1)]
    assert results[0] == results[1] != results[2]
    assert np.array_equal(before, present)
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 2.0, math.nan])
def test_delta_out_of_range_is_quoted(delta):
    with pytest.raises(ValueError, match=rf"delta={delta}"):
        epsilon_lower_bound(np.zeros(50), np.zeros(50), delta)


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_confidence_out_of_range_is_quoted(confidence):
    with pytest.raises(ValueError, match=rf"confidence={confidence}"):
        mu_lower_bound(np.zeros(50), np.zeros(50), confidence)


def test_scores_that_are_none_are_quoted():
    scores = np.zeros(50)
    scores[17] = np.nan
    with pytest.raises(ValueError, match=r"scores_absent\[17\] is nan"):
        mu_lower_bound(np.zeros(50), scores)
    with pytest.raises(ValueError, match=r"scores_present has shape \(10, 5\)"):
        mu_lower_bound(scores.reshape(10, 5), np.zeros(50))
    with pytest.raises(ValueError, match="many"):
        mu_lower_bound(["many"] * 50, np.zeros(50))


@pytest.mark.parametrize(("n", "m"), [(0, 50), (1, 50), (5, 50), (13, 13)])
def test_runs_that_can_never_say_anything_are_refused(n, m):
    with pytest.raises(ValueError, match=f"{n} present and {m} absent runs are too few"):
        mu_lower_bound(np.ones(n), np.zeros(m))
    with pytest.raises(ValueError, match="make more runs"):
        epsilon_lower_bound(np.ones(n), np.zeros(m), DELTA)


def test_the_fewest_runs_that_are_accepted_can_say_something():
    assert mu_lower_bound(np.ones(14), np.zeros(14)) > 0
    assert epsilon_lower_bound(np.ones(14), np.zeros(14), DELTA) > 0


def randomised_response(epsilon, n, rng):
    keep = math.exp(epsilon) / (1 + math.exp(epsilon))
    return (rng.random(n) < keep).astype(float), (rng.random(n) >= keep).astype(float)


def exceeds(count, repetitions=2000):
    """Whether more than 5% is what the count says, at one in a thousand."""
    return binomtest(count, repetitions, 0.05, alternative="greater").pvalue < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("n", [60, 1000])
@pytest.mark.parametrize("mu", [0.0, 0.268, 1.0, 3.0])
@pytest.mark.parametrize("grid", [None, 0.5])
def test_coverage_for_gaussian_mechanisms(mu, n, grid):
    rng = np.random.default_rng(7)
    epsilon = gaussian_epsilon(mu, DELTA)
    too_high = np.zeros(2)
    for _ in range(2000):
        present, absent = rng.normal(mu, 1, n), rng.normal(0, 1, n)
        if grid:  # rounding is post-processing: the truth can only fall
            present, absent = np.round(present / grid), np.round(absent / grid)
        too_high += [
            mu_lower_bound(present, absent) > mu,
            epsilon_lower_bound(present, absent, DELTA) > epsilon,
        ]
    assert too_high.max() <= 100, too_high
    assert not any(exceeds(int(k)) for k in too_high)


@pytest.mark.slow
def test_coverage_for_a_mechanism_whose_epsilon_is_attained():
    # The worst case: two outcomes, and the event of the bound is the one that attains epsilon.
    rng = np.random.default_rng(8)
    bounds = np.array(
        [epsilon_lower_bound(*randomised_response(1.0, 500, rng), 1e-9) for _ in range(2000)]
    )
    assert 0 < (bounds > 1.0).sum() <= 100
    assert np.median(bounds) > 0.5


@pytest.mark.slow
def test_choosing_and_evaluating_on_the_same_runs_would_not_cover():
    rng = np.random.default_rng(9)
    too_high = 0
    for _ in range(2000):
        present, absent = rng.normal(0.268, 1, 1000), rng.normal(0, 1, 1000)
        thresholds = np.unique(np.concatenate([present, absent]))
        rates = lower_bounds._upper_rates(1, thresholds, present, absent, 0.025)
        too_high += lower_bounds._gaussian_strength(*rates).max() > 0.268
    assert exceeds(too_high)


@pytest.mark.slow
def test_power_with_twenty_thousand_runs_at_epsilon_one():
    mu = gaussian_mu(1.0, DELTA)
    shares = []
    for seed in range(60):
        present, absent = worlds(mu, 20_000, seed)
        converted = gaussian_epsilon(mu_lower_bound(present, absent), DELTA)
        shares.append((converted, epsilon_lower_bound(present, absent, DELTA)))
    through_mu, direct = np.transpose(shares)
    assert np.median(through_mu) >= 0.75 and np.mean(through_mu >= 0.7) >= 0.8
    assert np.median(direct) >= 0.33 and np.mean(direct >= 0.3) >= 0.75
