"""Newton steps, inexact ones, and LiSSA: exact rationals, algebra, and real problems."""

from __future__ import annotations

from fractions import Fraction
from math import inf, nextafter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sk_unlearn import bounds

some = settings(max_examples=150, deadline=None)
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def powers_of_ten(low, high):
    return st.floats(low, high).map(lambda x: 10.0**x)


sizes = powers_of_ten(-12, 12)


def is_rounded_up(value, truth):
    """Whether `value` is the smallest float that is at least the rational `truth`."""
    return Fraction(value) >= truth and Fraction(nextafter(value, -inf)) < truth


def newton(C, M, damping, lambda_min, G):
    C, M, damping, lambda_min, G = map(Fraction, (C, M, damping, lambda_min, G))
    return (2 * C * (M * C + damping) + G) / (damping + lambda_min)


@some
@given(sizes, sizes, sizes, sizes, sizes | st.just(0.0))
def test_newton_error_is_the_formula_rounded_up(C, M, damping, lambda_min, G):
    error = bounds.newton_error(C, M, damping, lambda_min, G)
    assert is_rounded_up(error, newton(C, M, damping, lambda_min, G))


@some
@given(sizes, sizes, sizes, st.floats(-1, 3), sizes | st.just(0.0), st.integers(-3, 3))
def test_newton_error_is_useless_exactly_below_the_threshold(C, M, damping, factor, G, ulps):
    threshold = Fraction(M) * Fraction(C) + Fraction(G) / (2 * Fraction(C))
    lambda_min = float(threshold * Fraction(factor)) if abs(ulps) == 3 else float(threshold)
    for _ in range(abs(ulps)):
        lambda_min = nextafter(lambda_min, ulps * inf)
    if damping + lambda_min <= 0:
        return
    truth = newton(C, M, damping, lambda_min, G)
    assert (truth >= 2 * Fraction(C)) == (Fraction(lambda_min) <= threshold)
    error = bounds.newton_error(C, M, damping, lambda_min, G)
    if Fraction(lambda_min) <= threshold:
        assert error >= bounds.ball_diameter(C)
    elif truth <= Fraction(nextafter(2 * C, 0)):
        assert error < bounds.ball_diameter(C)
    else:
        assert error == bounds.ball_diameter(C)  # less by less than a rounding


@some
@given(sizes, sizes, sizes, sizes, sizes, powers_of_ten(-3, 3), st.integers(-20, 20))
def test_newton_error_is_monotone_and_scales(C, M, damping, lambda_min, G, more, k):
    base = bounds.newton_error(C, M, damping, lambda_min, G)
    grown = 1 + more
    assert bounds.newton_error(C * grown, M, damping, lambda_min, G) >= base
    assert bounds.newton_error(C, M * grown, damping, lambda_min, G) >= base
    assert bounds.newton_error(C, M, damping, lambda_min, G * grown) >= base
    assert bounds.newton_error(C, M, damping, lambda_min * grown, G) <= base
    unit = 2.0**k
    lengths = bounds.newton_error(C * unit, M / unit, damping, lambda_min, G * unit)
    assert lengths == base * unit
    losses = bounds.newton_error(C, M * unit, damping * unit, lambda_min * unit, G * unit)
    assert losses == base


def test_newton_error_limits():
    assert bounds.newton_error(1, 0, 1e300, 1) == pytest.approx(2)
    assert bounds.newton_error(1, 0, 0, 1) == 0.0
    assert bounds.newton_error(0, 1, 1, 1, 3) == 1.5
    assert bounds.newton_error(20, 1, 1, -0.1) > bounds.ball_diameter(20)
    assert bounds.newton_error(1e308, 1e308, 1, 1) == inf


def rough_objective(rng, d=4):
    """Return gradient, Hessian, and a Hessian-Lipschitz constant of a nonconvex function."""
    root = rng.standard_normal((d, d))
    A = root @ root.T / d
    amplitudes, waves = rng.uniform(-1, 1, 5), rng.standard_normal((5, d))

    def gradient(w):
        return A @ w - waves.T @ (amplitudes * np.sin(waves @ w))

    def hessian(w):
        return A - waves.T @ ((amplitudes * np.cos(waves @ w))[:, None] * waves)

    M = float(np.abs(amplitudes) @ np.linalg.norm(waves, axis=1) ** 3)
    return gradient, hessian, M


@few
@given(seeds)
def test_newton_steps_land_within_the_bounds(seed):
    rng = np.random.default_rng(seed)
    gradient, hessian, M = rough_objective(rng)
    C = rng.uniform(0.01, 1)
    w, other = (C * v / np.linalg.norm(v) * rng.uniform() for v in rng.standard_normal((2, 4)))
    H = hessian(w)
    lambda_min = float(np.linalg.eigvalsh(H)[0]) - 1e-12
    damping = max(0.0, -lambda_min) + rng.uniform(0.1, 2)
    damped = H + damping * np.eye(4)
    exact = w - np.linalg.solve(damped, gradient(w))
    G = float(np.linalg.norm(gradient(other))) * (1 + 1e-12)
    assert np.linalg.norm(exact - other) <= bounds.newton_error(C, M, damping, lambda_min, G)
    nearby = np.linalg.solve(damped, gradient(w)) + 1e-3 * rng.standard_normal(4)
    residual = float(np.linalg.norm(damped @ nearby - gradient(w))) * (1 + 1e-9)
    off = np.linalg.norm(w - nearby - exact)
    assert off <= bounds.inexact_solve_error(residual, damping, lambda_min) * (1 + 1e-9)
    assert np.linalg.norm(w - nearby - other) <= bounds.newton_distance(
        C, M, damping, lambda_min, G, residual
    )


@few
@given(seeds, st.integers(1, 30))
def test_influence_form_differs_by_no_more_than_its_term(seed, n_deleted):
    rng = np.random.default_rng(seed)
    X, y, w = rng.standard_normal((40, 3)), rng.standard_normal(40), rng.standard_normal(3)
    lam, damping = 0.1, 0.5

    def gradient(rows):
        return X[rows].T @ (X[rows] @ w - y[rows]) / len(X[rows]) + lam * w

    kept, gone, every = slice(n_deleted, None), slice(0, n_deleted), slice(None)
    n_kept = 40 - n_deleted
    H = X[kept].T @ X[kept] / n_kept + (lam + damping) * np.eye(3)
    newton_step = -np.linalg.solve(H, gradient(kept))
    influence = n_deleted / n_kept * np.linalg.solve(H, gradient(gone))
    norm = float(np.linalg.norm(gradient(every))) * (1 + 1e-12)
    lambda_min = float(np.linalg.eigvalsh(H)[0]) - damping - 1e-9
    bound = bounds.newton_influence_error(norm, 40, n_kept, damping, lambda_min)
    assert np.linalg.norm(newton_step - influence) <= bound
    assert bound == pytest.approx(40 / n_kept * norm / (damping + lambda_min))


@some
@given(sizes, sizes, sizes, sizes, sizes, sizes, sizes)
def test_newton_distance_is_the_sum_rounded_once(C, M, damping, lambda_min, G, residual, norm):
    total = bounds.newton_distance(C, M, damping, lambda_min, G, residual, norm, 30, 20)
    curvature = Fraction(damping) + Fraction(lambda_min)
    extra = (Fraction(residual) + Fraction(3, 2) * Fraction(norm)) / curvature
    assert is_rounded_up(total, newton(C, M, damping, lambda_min, G) + extra)
    assert bounds.newton_distance(C, M, damping, lambda_min, G) == bounds.newton_error(
        C, M, damping, lambda_min, G
    )


@few
@given(seeds, st.floats(0.01, 1), st.floats(0.6, 3), st.integers(0, 200))
def test_lissa_bias_covers_the_recursion(seed, smallest, ratio, steps):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    values = np.r_[smallest, rng.uniform(smallest, 2, 3), 2.0]
    B, scale = basis * values @ basis.T, 2.0 * ratio
    for g in (rng.standard_normal(5), basis[:, 0], basis[:, -1]):
        h = g
        for _ in range(steps):
            h = g + h - B @ h / scale
        bias = np.linalg.norm(h / scale - np.linalg.solve(B, g))
        norm = float(np.linalg.norm(g))
        bound = bounds.lissa_bias(norm, smallest, 2.0, scale, steps)
        assert bias <= bound * (1 + 1e-9) + 1e-13 / smallest
    at_ends = max(abs(1 - x / scale) ** (steps + 1) / x for x in (smallest, 2.0))
    assert bounds.lissa_bias(1.0, smallest, 2.0, scale, steps) == pytest.approx(at_ends, rel=1e-9)


@some
@given(sizes, powers_of_ten(-6, 0), st.floats(1, 100), st.floats(0.51, 1e6), powers_of_ten(-12, 3))
def test_lissa_steps_is_the_smallest_number_that_suffices(norm, smallest, spread, over, tolerance):
    largest = smallest * spread
    arguments = norm, smallest, largest, largest * over
    steps = bounds.lissa_steps(*arguments, tolerance)
    assert bounds.lissa_bias(*arguments, steps) <= tolerance
    assert steps == 0 or bounds.lissa_bias(*arguments, steps - 1) > tolerance


def test_lissa_limits():
    assert bounds.lissa_bias(0.0, 1, 2, 2, 0) == 0.0
    assert bounds.lissa_bias(1.0, 2, 2, 2, 0) == 0.0  # one step is the inverse
    assert bounds.lissa_bias(1.0, 1, 9, 3, 3000) == inf  # diverges
    assert bounds.lissa_bias(1.0, 1e-9, 1, 1, 10**12) == pytest.approx(0.0, abs=1e-300)
    assert bounds.lissa_bias(1.0, 1e-9, 1, 1, 10**12) > 0
    assert bounds.lissa_steps(0.0, 1, 2, 2, 1e-9) == 0
    with pytest.raises(ValueError, match="diverges"):
        bounds.lissa_steps(1.0, 1, 4, 2, 1e-9)


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: bounds.newton_error(1, 1, 0.5, -0.75), "damping=0.5.*lambda_min=-0.75.*> 0.75"),
        (lambda: bounds.newton_error(1, -1.0, 0.5, 1), "hessian_lipschitz=-1.0"),
        (lambda: bounds.inexact_solve_error(-1.0, 1, 1), "residual=-1.0"),
        (lambda: bounds.newton_influence_error(1, 10, 11, 1, 1), "n_retained=11.*n_total=10"),
        (lambda: bounds.lissa_bias(1, 2.0, 1.0, 1, 1), "largest=1.0"),
        (lambda: bounds.lissa_bias(1, 0.0, 1.0, 1, 1), "smallest=0.0"),
        (lambda: bounds.lissa_bias(1, 1, 1, 1, -1), "steps=-1"),
        (lambda: bounds.lissa_steps(1, 1, 1, 1, 0.0), "tolerance=0.0"),
    ],
)
def test_bad_input_is_quoted(call, quoted):
    with pytest.raises(ValueError, match=quoted):
        call()
