"""The sensitivity theorems: exact rationals, algebra, and what they promise on real problems."""

from __future__ import annotations

from fractions import Fraction
from math import inf, nextafter, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

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


def test_the_distances_are_bounds_and_all_names_exist():
    assert set(bounds.__all__) > bounds.DISTANCES
    assert bounds.DISTANCES.isdisjoint({"residual_tolerance", "inexact_solve_error"})
    assert all(hasattr(bounds, name) for name in bounds.__all__)


@some
@given(sizes, sizes, sizes)
def test_simple_bounds_are_the_nearest_float_above(a, b, c):
    assert bounds.ball_diameter(a) == 2 * a
    distance = bounds.residual_distance(a, b)
    assert is_rounded_up(distance, 2 * Fraction(a) / Fraction(b))
    tolerance = bounds.residual_tolerance(a, b)
    assert is_rounded_up(-tolerance, -Fraction(a) * Fraction(b) / 2)
    assert bounds.residual_distance(tolerance, b) <= a
    assert bounds.residual_distance(nextafter(tolerance, inf), b) >= a
    assert is_rounded_up(
        bounds.inexact_solve_error(a, b, c), Fraction(a) / (Fraction(b) + Fraction(c))
    )
    assert bounds.certified_removal_budget(a, b) <= Fraction(a) * Fraction(b)


class Logistic:
    """Binary logistic regression on rows of norm at most 1, solved to rounding error."""

    def __init__(self, rng, n=60, d=3, lam=0.05):
        X = rng.standard_normal((n, d))
        self.X = X / np.linalg.norm(X, axis=1, keepdims=True) * rng.uniform(0.3, 1, (n, 1))
        self.y = np.where(rng.random(n) < expit(4 * self.X[:, 0]), 1.0, -1.0)
        self.lam = lam

    def gradient(self, w, rows):
        X, y = self.X[rows], self.y[rows]
        return -X.T @ (y * expit(-y * (X @ w))) / len(X) + self.lam * w

    def hessian(self, w, rows):
        X = self.X[rows]
        p = expit(X @ w)
        return X.T @ ((p * (1 - p))[:, None] * X) / len(X) + self.lam * np.eye(X.shape[1])

    def solve(self, rows):
        w = np.zeros(self.X.shape[1])
        for _ in range(50):
            w = w - np.linalg.solve(self.hessian(w, rows), self.gradient(w, rows))
        assert np.linalg.norm(self.gradient(w, rows)) < 1e-14
        return w


EVERY = slice(None)


@few
@given(seeds, st.integers(1, 20))
def test_deletion_from_a_convex_head(seed, n_deleted):
    rng = np.random.default_rng(seed)
    problem, kept = Logistic(rng), slice(n_deleted, None)
    counts = {"n_deleted": n_deleted, "n_retained": 60 - n_deleted}
    head = bounds.head_constants("ovr", 1)
    trained, retrained = problem.solve(EVERY), problem.solve(kept)
    moved = np.linalg.norm(trained - retrained)
    loose = bounds.optimum_shift(head.lipschitz, 0.05, **counts)
    sharp = bounds.optimum_shift(head.lipschitz, 0.05, **counts, reference_loss=head.reference_loss)
    assert moved <= sharp <= loose

    step = np.linalg.solve(problem.hessian(trained, kept), problem.gradient(trained, kept))
    stepped = np.linalg.norm(trained - step - retrained)
    moved_up = float(moved) * (1 + 1e-12)
    assert stepped <= bounds.one_newton_step(moved_up, head.hessian_lipschitz, 0.05) + 1e-13
    error = 1e-3 * rng.uniform()
    start = trained + error * np.array([0.6, 0.0, 0.8])
    two = start
    for _ in range(2):
        two = two - np.linalg.solve(problem.hessian(two, kept), problem.gradient(two, kept))
    arguments = head.lipschitz, head.hessian_lipschitz, 0.05
    for steps, point in ((0, start), (2, two)):
        distance = np.linalg.norm(point - retrained) + error
        assert distance <= bounds.newton_steps_distance(
            *arguments, **counts, steps=steps, training_error=error
        )

    beta = head.smoothness + 0.05
    here, there = start, retrained - error * np.array([0.8, 0.6, 0.0])
    for _ in range(7):
        here = here - 2 / (beta + 0.05) * problem.gradient(here, kept)
        there = there - 2 / (beta + 0.05) * problem.gradient(there, kept)
    assert np.linalg.norm(here - there) <= bounds.descent_distance(
        head.lipschitz, head.smoothness, 0.05, **counts, iterations=7, training_error=error
    )


@few
@given(seeds, st.integers(1, 20))
def test_certified_removal_residual(seed, n_deleted):
    rng = np.random.default_rng(seed)
    problem, kept = Logistic(rng), slice(n_deleted, None)
    trained, n = problem.solve(EVERY), 60 - n_deleted
    step = np.linalg.solve(problem.hessian(trained, kept), -problem.gradient(trained, kept))
    left = n * np.linalg.norm(problem.gradient(trained + step, kept))
    X = problem.X[kept]
    bound = bounds.certified_removal_residual(
        bounds.head_constants("ovr", 1).hessian_lipschitz,
        float(np.linalg.norm(X, 2)) * (1 + 1e-12),
        float(np.linalg.norm(step)) * (1 + 1e-12),
        float(np.linalg.norm(X @ step)) * (1 + 1e-12),
    )
    assert left <= bound + 1e-13


@some
@given(sizes, sizes, sizes, st.integers(0, 10**6), st.integers(1, 10**6), sizes)
def test_shift_is_the_formula_rounded_up(L, lam, loss, n_deleted, n_retained, M):
    share = Fraction(n_deleted, n_retained) / Fraction(lam)
    shift = bounds.optimum_shift(L, lam, n_deleted, n_retained)
    assert is_rounded_up(shift, 2 * Fraction(L) * share) or n_deleted == 0 == shift
    sharp = bounds.optimum_shift(L, lam, n_deleted, n_retained, loss)
    assert sharp <= shift
    assert sharp == pytest.approx(float(share) * (L + min(L, sqrt(lam * loss))), rel=1e-12)
    rest = Fraction(sharp) / share - Fraction(L) if n_deleted else Fraction(0)
    assert n_deleted == 0 or rest >= Fraction(L) or rest**2 >= Fraction(lam) * Fraction(loss)
    one = bounds.one_newton_step(L, M, lam)
    assert is_rounded_up(one, Fraction(M) * Fraction(L) ** 2 / (2 * Fraction(lam)))


@some
@given(sizes, sizes, powers_of_ten(-6, 0), st.integers(0, 10_000), st.floats(0, 1))
def test_descent_against_high_precision(L, smoothness, lam, iterations, error):
    mp = pytest.importorskip("mpmath")
    with mp.workdps(60):
        beta = mp.mpf(smoothness) + mp.mpf(lam)
        rate = (beta - mp.mpf(lam)) / (beta + mp.mpf(lam))
        start = 2 * mp.mpf(error) + 2 * mp.mpf(L) / (mp.mpf(lam) * 50)
        truth = rate**iterations * start
        got = bounds.descent_distance(L, smoothness, lam, 1, 50, iterations, error)
        assert got >= truth
        assert got <= truth * (1 + mp.mpf(10) ** -9) + mp.mpf(10) ** -300
    assert bounds.descent_distance(L, smoothness, lam, 1, 50, iterations + 1, error) <= got


@some
@given(
    sizes,
    sizes,
    powers_of_ten(-6, 0),
    st.integers(0, 200),
    st.integers(1, 30),
    st.floats(0, 1),
    st.floats(0, 1e-3),
)
def test_a_sequence_of_descents_against_high_precision(
    L, smoothness, lam, iterations, releases, error, lost
):
    mp = pytest.importorskip("mpmath")
    given_ = (L, smoothness, lam, 1, 50, iterations)
    with mp.workdps(60):
        beta = mp.mpf(smoothness) + mp.mpf(lam)
        contraction = ((beta - mp.mpf(lam)) / (beta + mp.mpf(lam))) ** iterations
        shift, errors = 2 * mp.mpf(L) / (mp.mpf(lam) * 50), [mp.mpf(error)]
        for _ in range(releases):
            errors.append(contraction * (errors[-1] + shift) + mp.mpf(lost))
        truth = 2 * max(errors[1:])
        got = bounds.descent_sequence_distance(*given_, releases, error, step_error=lost)
        assert truth <= got <= truth * (1 + mp.mpf(10) ** -9) + mp.mpf(10) ** -300
    assert got <= bounds.descent_sequence_distance(*given_, releases + 1, error, step_error=lost)
    assert got >= bounds.descent_distance(*given_, error)


def test_newton_steps_hurt_from_too_far():
    far = {
        "lipschitz": 1.0,
        "hessian_lipschitz": 0.1,
        "lam": 1e-3,
        "n_deleted": 1,
        "n_retained": 99,
    }
    by_steps = [bounds.newton_steps_distance(**far, steps=steps) for steps in range(3)]
    assert by_steps == sorted(by_steps)
    assert bounds.newton_steps_distance(**far, steps=10**6) == inf
    near = far | {"lam": 1.0}
    by_steps = [bounds.newton_steps_distance(**near, steps=steps) for steps in range(4)]
    assert by_steps == sorted(by_steps, reverse=True)
    assert by_steps[1] == bounds.one_newton_step(by_steps[0], 0.1, 1.0)


def log_loss_third(p, v):
    """Return the third derivative of the log-partition function along v."""
    centred = v - p @ v
    return abs(p @ centred**3)


def test_multinomial_constants_are_reached_and_never_passed():
    rng = np.random.default_rng(0)
    head = bounds.head_constants("multinomial", 6)
    assert head.hessian_lipschitz == pytest.approx(sqrt(2) / (3 * sqrt(3)), rel=1e-15)
    for _ in range(3000):
        p = rng.dirichlet(np.full(6, rng.choice([0.1, 1.0])))
        v = rng.standard_normal(6)
        v /= np.linalg.norm(v)
        assert log_loss_third(p, v) <= head.hessian_lipschitz
        assert p @ (v - p @ v) ** 2 <= head.smoothness
        assert np.linalg.norm(p - np.eye(6)[0]) <= head.lipschitz
    q = (3 - sqrt(3)) / 6
    worst = log_loss_third(np.array([q, 1 - q]), np.array([1, -1]) / sqrt(2))
    assert worst == pytest.approx(head.hessian_lipschitz, rel=1e-12)
    assert np.array([0.5, 0.5]) @ np.array([0.5, 0.5]) == head.smoothness


def test_binary_constants_are_reached():
    head = bounds.head_constants("ovr", 1)
    z = np.linspace(-8, 8, 100_001)
    p = expit(z)
    assert head.lipschitz == 1.0
    assert (p * (1 - p)).max() == pytest.approx(head.smoothness, rel=1e-9)
    assert np.abs(p * (1 - p) * (1 - 2 * p)).max() == pytest.approx(
        head.hessian_lipschitz, rel=1e-8
    )
    assert Fraction(head.hessian_lipschitz) ** 2 >= Fraction(1, 108)


@some
@given(st.sampled_from(["ovr", "multinomial"]), st.integers(2, 1000), st.integers(-20, 20))
def test_head_constants_scale_with_the_rows(multi_class, K, k):
    unit, one = 2.0**k, bounds.head_constants(multi_class, K)
    scaled = bounds.head_constants(multi_class, K, unit)
    assert scaled.lipschitz == one.lipschitz * unit
    assert scaled.smoothness == one.smoothness * unit**2
    assert scaled.hessian_lipschitz == one.hessian_lipschitz * unit**3
    assert scaled.reference_loss == one.reference_loss
    if multi_class == "ovr":
        assert Fraction(one.lipschitz) ** 2 >= K
        assert one.reference_loss == pytest.approx(K * np.log(2))
    else:
        assert one.reference_loss == pytest.approx(np.log(K))


@pytest.mark.parametrize(
    ("call", "quoted"),
    [
        (lambda: bounds.ball_diameter(-1.0), "C=-1.0"),
        (lambda: bounds.ball_diameter(inf), "C=inf"),
        (lambda: bounds.residual_distance(float("nan"), 1), "tol=nan"),
        (lambda: bounds.residual_distance(1, 0.0), "lam=0.0"),
        (lambda: bounds.residual_tolerance(1, -2.0), "lam=-2.0"),
        (lambda: bounds.optimum_shift(1, 1, 1, 0), "n_retained=0"),
        (lambda: bounds.optimum_shift(1, 1, 0.5, 1), "n_deleted=0.5"),
        (lambda: bounds.head_constants("ova", 3), "'ova'"),
        (lambda: bounds.head_constants("multinomial", 1), "n_classes=1"),
        (lambda: bounds.head_constants("ovr", 3, 0.0), "row_norm=0.0"),
        (lambda: bounds.computed_norm_bound(-1.0, 3), "norm=-1.0"),
        (lambda: bounds.certified_removal_residual(1, 1, 1, -1.0), "image_norm=-1.0"),
        (lambda: bounds.certified_removal_budget(-1.0, 1), "noise_std=-1.0"),
    ],
)
def test_bad_input_is_quoted(call, quoted):
    with pytest.raises(ValueError, match=quoted):
        call()


def test_what_is_no_number_is_refused():
    for value in ("1", None, 1j, True, [1.0]):
        with pytest.raises(TypeError, match="C="):
            bounds.ball_diameter(value)
    assert bounds.ball_diameter(np.float32(0.5)) == bounds.ball_diameter(np.float64(0.5)) == 1.0
    assert bounds.optimum_shift(1, 1, 2.0, np.int64(4)) == 1.0


def test_counts_that_nobody_means_do_not_keep_a_verifier_busy():
    """The constants of a certificate come from whoever wrote it."""
    many = {"lipschitz": 1.0, "lam": 0.5, "n_deleted": 1, "n_retained": 100}
    for M, limit in ((0.1, 5e-324), (1e6, inf)):
        assert bounds.newton_steps_distance(hessian_lipschitz=M, steps=10**15, **many) == limit
    sequence = many | {"loss_smoothness": 1e9, "iterations": 1}
    with pytest.raises(ValueError, match="at most 100000"):
        bounds.descent_sequence_distance(releases=10**15, **sequence)
    assert 0 < bounds.descent_sequence_distance(releases=10**5, **sequence) < inf
