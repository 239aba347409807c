"""Half the squared error of a linear map, against exact rationals and dense algebra (T12, T17)."""

from __future__ import annotations

from fractions import Fraction
from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sk_unlearn import bounds
from sk_unlearn.convex import minimise
from sk_unlearn.head_factors import HeadFactors
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.head_update import SolvedHead, delete
from sk_unlearn.methods import Rows
from sk_unlearn.methods.analytic import RidgeSums
from sk_unlearn.modules import HalfSquaredLoss

exact = np.vectorize(lambda v: Fraction(float(v)), otypes=[object])


def square_norm(array):
    return sum(v * v for v in np.ravel(array))


def true_gradient(X, Y, W, lam, reference):
    rows = np.column_stack([exact(X), exact(np.ones(len(X)))])
    residuals = rows @ exact(W).T - exact(Y)
    return residuals.T @ rows / len(X) + Fraction(lam) * (exact(W) - exact(reference))


@st.composite
def cases(draw):
    """Targets from 1e-3 to 1e6, far from the outputs or within rounding of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, d, K = draw(st.integers(1, 12)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    X = rng.standard_normal((n, d)) * 10.0 ** draw(st.floats(-3, 3))
    X *= 10.0 ** -(draw(st.sampled_from([0.0, 3.0])) * rng.random((n, 1)))
    X = X.astype(np.float32)
    W = rng.standard_normal((K, d + 1)) * 10.0 ** draw(st.floats(-3, 3))
    Y = rng.standard_normal((n, K)) * 10.0 ** draw(st.floats(-3, 6))
    if draw(st.booleans()):
        Y = X @ W[:, :-1].T + W[:, -1]
    reference = rng.standard_normal((K, d + 1)) * draw(st.sampled_from([0.0, 1.0]))
    lam = 10.0 ** draw(st.floats(-9, 2))
    return X, Y.astype(np.float32), W, lam, reference


@settings(max_examples=150)
@given(cases())
def test_the_bound_is_above_the_true_gradient_norm(case):
    X, Y, W, lam, reference = case
    risk = HeadRisk(X, Y, len(W), lam, reference, "squared")
    bound, rounding, gradient = risk.gradient_norm_bound(W)
    truth = true_gradient(*case)
    assert square_norm(exact(gradient) - truth) <= Fraction(rounding) ** 2
    assert square_norm(truth) <= Fraction(bound) ** 2


@settings(max_examples=60)
@given(cases())
def test_at_the_optimum_the_bound_holds_where_the_gradient_is_all_rounding(case):
    X, Y, _, lam, reference = case
    risk = HeadRisk(X, Y, len(reference), lam, reference, "squared")
    solution = minimise(risk, reference)
    truth = true_gradient(X, Y, solution.weights, lam, reference)
    assert square_norm(truth) <= Fraction(solution.bound) ** 2


@settings(max_examples=100)
@given(cases(), st.floats(-12, 0), st.integers(0, 2**32 - 1))
def test_the_bound_covers_features_that_are_a_little_off(case, power, seed):
    X, Y, W, lam, reference = case
    moved = np.random.default_rng(seed).standard_normal(X.shape) * 10.0**power
    errors = np.linalg.norm(moved, axis=1) * (1 + 1e-12)
    risk = HeadRisk(X, Y, len(W), lam, reference, "squared", errors)
    bound, rounding, gradient = risk.gradient_norm_bound(W)
    rows = np.column_stack([exact(X) + exact(moved), exact(np.ones(len(X)))])
    truth = (rows @ exact(W).T - exact(Y)).T @ rows / len(X)
    truth = truth + Fraction(lam) * (exact(W) - exact(reference))
    assert square_norm(exact(gradient) - truth) <= Fraction(rounding) ** 2
    assert square_norm(truth) <= Fraction(bound) ** 2


def test_the_rounding_follows_the_residuals_not_a_bound_of_one():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((50, 3)).astype(np.float32), np.ones((50, 1), np.float32)
    W, reference = np.zeros((1, 4)), np.zeros((1, 4))
    small, large = (
        HeadRisk(X, Y * scale, 1, 0.1, reference, "squared").gradient_norm_bound(W)[1]
        for scale in (1e5, 1e9)
    )
    assert large == pytest.approx(1e4 * small, rel=1e-3)
    assert large > 1e9 * 2.0**-53


def test_a_float32_gradient_would_not_pass():
    rng = np.random.default_rng(0)
    X, Y = (rng.standard_normal((50, k)).astype(np.float32) for k in (10, 2))
    W, reference = rng.standard_normal((2, 11)), np.zeros((2, 11))
    risk = HeadRisk(X, Y, 2, 0.1, reference, "squared")
    _, rounding, gradient = risk.gradient_norm_bound(W)
    single = risk.X.astype(np.float32)
    wrong = (single @ W.astype(np.float32).T - Y).T @ single / len(Y) + 0.1 * W
    truth = true_gradient(X, Y, W, 0.1, reference)
    assert square_norm(exact(gradient) - truth) <= Fraction(rounding) ** 2
    assert square_norm(exact(wrong) - truth) > (1000 * Fraction(rounding)) ** 2


def test_value_gradient_and_hessian_are_those_of_the_criterion():
    rng = np.random.default_rng(1)
    X, Y = (rng.standard_normal((20, k)).astype(np.float32) for k in (4, 3))
    reference, W, V = rng.standard_normal((3, 3, 5))
    risk = HeadRisk(X, Y, 3, 0.3, reference, "squared")
    rows = torch.as_tensor(risk.X)

    def objective(at):
        loss = HalfSquaredLoss()(rows @ at.T, torch.as_tensor(Y).double())
        return loss + 0.15 * (at - torch.as_tensor(reference)).square().sum()

    at = torch.as_tensor(W)
    assert risk.value(W) == pytest.approx(float(objective(at)), rel=1e-14)
    gradient = torch.func.grad(objective)(at)
    np.testing.assert_allclose(risk.gradient(W), gradient, rtol=1e-12, atol=1e-14)
    dense = torch.func.hessian(objective)(at).reshape(15, 15).numpy()
    np.testing.assert_allclose(risk.hessian_product(W)(V).ravel(), dense @ V.ravel(), rtol=1e-11)


def test_the_constants_say_that_nothing_bounds_the_gradient():
    head = bounds.head_constants("squared", 3, 2.0)
    assert (head.lipschitz, head.reference_loss) == (inf, inf)
    assert (head.smoothness, head.hessian_lipschitz, head.row_norm) == (4.0, 0.0, 2.0)


def data(n=400, d=6, K=3):
    rng = np.random.default_rng(2)
    X = rng.standard_normal((n, d)).astype(np.float32)
    return X, (X @ rng.standard_normal((d, K)) + rng.standard_normal((n, K))).astype(np.float32)


def test_one_factor_serves_all_outputs_and_solves_exactly():
    X, Y = data()
    risk = HeadRisk(X, Y, 3, 0.01, np.zeros((3, 7)), "squared")
    factors = HeadFactors.at(risk, risk.reference, 2**30)
    assert len(factors.inverses) == 1
    step = factors.solve(risk.gradient(risk.reference))
    assert np.linalg.norm(risk.gradient(-step)) < 1e-12


@pytest.mark.parametrize("n_forget", [1, 40, 300])
def test_deleting_takes_few_passes_to_the_optimum_of_the_retained_rows(n_forget):
    X, Y = data()
    reference = np.zeros((3, 7))
    whole, deleted, retained = (
        HeadRisk(X[part], Y[part], 3, 0.01, reference, "squared")
        for part in (slice(None), slice(n_forget), slice(n_forget, None))
    )
    W = minimise(whole, reference).weights
    solved = SolvedHead(W, HeadFactors.at(whole, W, 2**30))
    updated, n_passes = delete(solved, retained, deleted, 1e-10)
    assert updated.bound <= 1e-10
    assert n_passes <= (3 if n_forget <= 40 else 10)
    rows = np.column_stack([X[n_forget:], np.ones(400 - n_forget)]).astype(float)
    system = rows.T @ rows / len(rows) + 0.01 * np.eye(7)
    closed = np.linalg.solve(system, rows.T @ Y[n_forget:] / len(rows)).T
    np.testing.assert_allclose(updated.weights, closed, atol=1e-8)


@settings(max_examples=60)
@given(cases(), st.floats(0.0, 0.9))
def test_the_errors_of_sums_with_targets_are_errors_and_so_is_the_gradient_norm(case, share):
    X, Y, _, lam, reference = case
    gone, (n, K) = int(share * len(X)), Y.shape
    sums = RidgeSums.of(Rows(X, Y), K)
    if gone:
        sums = sums.without(RidgeSums.of(Rows(X[:gone], Y[:gone]), K))
    rows = np.column_stack([exact(X), exact(np.ones(n))])[gone:]
    assert square_norm(exact(sums.gram) - rows.T @ rows) <= Fraction(sums.gram_error) ** 2
    cross = exact(Y[gone:]).T @ rows
    assert square_norm(exact(sums.cross) - cross) <= Fraction(sums.cross_error) ** 2
    weights, bound = sums.solve(lam, reference)
    if bound < inf:
        truth = true_gradient(X[gone:], Y[gone:], weights, lam, reference)
        assert square_norm(truth) <= Fraction(bound) ** 2
