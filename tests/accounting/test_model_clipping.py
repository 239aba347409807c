"""Noisy projected steps: the contraction recursion, its jumps, and its calibration."""

from __future__ import annotations

from math import inf

import mpmath as mp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import erf, ndtr

from sk_unlearn.accounting import (
    gaussian_delta,
    gaussian_sigma,
    model_clipping_delta,
    model_clipping_sigma,
)

some = settings(max_examples=60, deadline=None)
few = settings(max_examples=20, deadline=None)


def powers_of_ten(low, high):
    return st.floats(low, high).map(lambda x: 10.0**x)


lengths = powers_of_ten(-3, 3)
epsilons = powers_of_ten(-4, 2)


def recursion(ratio, epsilon, steps, digits=60):
    """Return (T5) after each step, as it is written, with digits to spare."""
    deltas, delta = [], mp.mpf(1)
    with mp.workdps(digits):
        r, growth = mp.mpf(ratio), mp.expm1(mp.mpf(epsilon))
        for _ in range(steps):
            e = mp.log1p(growth / delta)
            low, high = (e / r - r / 2) / mp.sqrt(2), (e / r + r / 2) / mp.sqrt(2)
            delta *= (mp.erfc(low) - mp.exp(e) * mp.erfc(high)) / 2
            deltas.append(delta)
            if delta < mp.mpf(10) ** -320:
                break
    return deltas


def test_recursion_oracle_keeps_its_digits():
    coarse, fine = recursion(0.3, 0.01, 4), recursion(0.3, 0.01, 4, digits=300)
    assert all(abs(a / b - 1) < mp.mpf(10) ** -20 for a, b in zip(coarse, fine, strict=True))


@some
@given(powers_of_ten(-1, 1), epsilons, st.integers(1, 25))
def test_against_the_recursion(ratio, epsilon, steps):
    for T, truth in enumerate(recursion(ratio, epsilon, steps), start=1):
        got = model_clipping_delta(0.5, 1 / ratio, T, epsilon)
        assert got >= truth * (1 - mp.mpf(10) ** -15)  # 1 / ratio is rounded
        if truth > mp.mpf(10) ** -300:
            assert got <= truth * (1 + mp.mpf(10) ** -8)


@pytest.mark.parametrize(("ratio", "steps"), [(0.5, 2), (1, 3), (2, 6), (4, 40)])
def test_steps_that_are_needed(ratio, steps):
    assert model_clipping_delta(ratio / 2, 1.0, steps, 1.0) <= 1e-5
    assert model_clipping_delta(ratio / 2, 1.0, steps - 1, 1.0) > 1e-5


@some
@given(lengths, lengths, epsilons)
def test_one_step_is_the_gaussian_mechanism(radius, sigma, epsilon):
    once = model_clipping_delta(radius, sigma, 1, epsilon)
    assert once == pytest.approx(gaussian_delta(2 * radius / sigma, epsilon), rel=1e-9, abs=5e-324)


@some
@given(lengths, epsilons, powers_of_ten(-30, -1))
def test_one_step_calibrates_as_the_gaussian_mechanism(radius, epsilon, delta):
    assert model_clipping_sigma(radius, epsilon, delta, 1) == pytest.approx(
        gaussian_sigma(2 * radius, epsilon, delta), rel=1e-12
    )


def test_pure_contraction_at_epsilon_zero():
    ratio, steps = 1.5, 1000
    truth = erf(ratio / 2**1.5) ** np.arange(1, steps)
    got = [model_clipping_delta(0.75, 1.0, T, 0.0) for T in (1, 2, 50, 120)]
    assert got == pytest.approx(truth[[0, 1, 49, 119]], rel=1e-10)


@few
@given(powers_of_ten(0, 1.3), epsilons)
def test_delta_never_rises_with_steps(ratio, epsilon):
    steps = [1, 2, 5, 20, 100, 127, 128, 129, 130, 140, 200, 1000, 1001, 10_000, 10**6, 10**9]
    deltas = [model_clipping_delta(0.5, 1 / ratio, T, epsilon) for T in steps]
    assert deltas == sorted(deltas, reverse=True)
    assert 0 < deltas[-1] <= deltas[0] <= 1


@pytest.mark.parametrize(
    ("ratio", "epsilon", "steps"), [(6.0, 1.0, 620), (6.5, 0.01, 1200), (12.0, 40.0, 1500)]
)
def test_jumps_are_safe_and_miss_few_steps(ratio, epsilon, steps):
    truth = recursion(ratio, epsilon, steps, digits=30)
    seen = 0
    for T in range(129, len(truth), 37):
        got = model_clipping_delta(ratio / 2, 1.0, T, epsilon)
        assert got >= truth[T - 1] * (1 - mp.mpf(10) ** -12)
        assert got <= truth[int(T * 0.995) - 3]
        seen += got > (1 + 1e-8) * truth[T - 1]
    assert seen > 0  # or nothing was jumped over


@few
@given(lengths, epsilons, powers_of_ten(-30, -1), st.sampled_from([2, 10, 100, 10_000]))
def test_calibration_is_safe_tight_and_agrees_with_the_accountant(radius, epsilon, delta, steps):
    sigma = model_clipping_sigma(radius, epsilon, delta, steps)
    assert model_clipping_delta(radius, sigma, steps, epsilon) <= delta
    less = sigma * (1 - (1e-9 if steps <= 128 else 1e-4))
    assert model_clipping_delta(radius, less, steps, epsilon) > delta


@settings(max_examples=8, deadline=None)
@given(lengths, epsilons, powers_of_ten(-30, -2), st.sampled_from([1, 3, 300]))
def test_sigma_scales_with_the_radius_and_falls(radius, epsilon, delta, steps):
    sigma = model_clipping_sigma(radius, epsilon, delta, steps)
    assert model_clipping_sigma(8 * radius, epsilon, delta, steps) == pytest.approx(
        8 * sigma, rel=1e-5 if steps > 128 else 1e-12
    )
    slack = 1 + 1e-5
    assert model_clipping_sigma(radius, epsilon * 1.1, delta, steps) <= sigma * slack
    assert model_clipping_sigma(radius, epsilon, delta * 2, steps) <= sigma * slack
    assert model_clipping_sigma(radius, epsilon, delta, 2 * steps) <= sigma * slack


@some
@given(powers_of_ten(-1, 1), epsilons, st.integers(1, 200), powers_of_ten(-6, 0))
def test_delta_rises_with_the_radius_and_falls_with_epsilon(ratio, epsilon, steps, more):
    base = model_clipping_delta(ratio, 2.0, steps, epsilon)
    assume(base > 1e-300)
    assert model_clipping_delta(ratio * (1 + more), 2.0, steps, epsilon) >= base * (1 - 1e-2)
    assert model_clipping_delta(ratio, 2.0, steps, epsilon * (1 + more)) <= base * (1 + 1e-2)
    if steps <= 128:
        assert model_clipping_delta(ratio * (1 + more), 2.0, steps, epsilon) >= base * (1 - 1e-8)


def test_the_ceiling_of_the_total_variation():
    for T in (1, 5, 50):
        ceiling = (2 * ndtr(0.9) - 1) ** T
        assert model_clipping_delta(0.9, 1.0, T, 0.0) == pytest.approx(ceiling, rel=1e-10)


def test_stable_at_the_ends():
    epsilons, deltas = np.array([1e-4, 1.0, 100.0]), np.array([[1e-30], [1e-5]])
    for steps in (1, 1000, 10**6):
        sigma = model_clipping_sigma(1.0, epsilons, deltas, steps)
        assert sigma.shape == (2, 3)
        assert np.all(np.isfinite(sigma) & (sigma > 0))
        assert np.all(np.diff(sigma, axis=0) < 0)
        assert np.all(np.diff(sigma, axis=1) < 0)
        assert np.all(model_clipping_delta(1.0, sigma, steps, epsilons) <= deltas)


def test_limits():
    assert model_clipping_delta(0, 1, 5, 1.0) == model_clipping_delta(0, 0, 5, 1.0) == 0.0
    assert model_clipping_delta(1, 0, 5, 1.0) == 1.0
    assert model_clipping_delta(1, 1e-3, 10**6, 1.0) == 1.0
    assert model_clipping_delta(1, 1e9, 10**6, 1.0) == 5e-324
    assert model_clipping_delta(1, inf, 3, 1.0) == 5e-324
    assert model_clipping_sigma(0, 1.0, 1e-5, 5) == 0.0
    assert model_clipping_delta(1, 1, 10, 1e3) == 5e-324


def test_arrays_give_what_scalars_give():
    radii, epsilons = np.array([0.5, 1.0, 2.0]), np.array([[0.5], [2.0]])
    table = model_clipping_delta(radii, 0.7, 300, epsilons)
    sigmas = model_clipping_sigma(radii, epsilons, 1e-6, 10)
    for (i, j), delta in np.ndenumerate(table):
        assert delta == model_clipping_delta(radii[j], 0.7, 300, epsilons[i, 0])
        alone = model_clipping_sigma(radii[j], epsilons[i, 0], 1e-6, 10)
        assert sigmas[i, j] == pytest.approx(alone, rel=1e-12)
    assert isinstance(model_clipping_delta(1, 1, 3, 1), float)
    assert isinstance(model_clipping_sigma(1, 1, 0.1, 3), float)


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: model_clipping_delta(-1.0, 1, 3, 1), "radius=-1.0"),
        (lambda: model_clipping_delta(1, float("nan"), 3, 1), "sigma=nan"),
        (lambda: model_clipping_delta(1, 1, 0, 1), "steps=0"),
        (lambda: model_clipping_delta(1, 1, 3, inf), "epsilon=inf"),
        (lambda: model_clipping_sigma(1, 1, 0.0, 3), "delta=0.0"),
        (lambda: model_clipping_sigma(1, -1.0, 0.5, 3), "epsilon=-1.0"),
        (lambda: model_clipping_sigma(1, 1.0, 0.5, 1.5), "steps=1.5"),
    ],
)
def test_bad_input_is_quoted(call, quoted):
    with pytest.raises(ValueError, match=quoted):
        call()
