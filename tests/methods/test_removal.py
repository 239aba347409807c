"""Certified removal: its residuals against dense algebra, its budget, and what it cannot prove."""

from __future__ import annotations

from math import exp, inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, ndtr, softmax

from sk_unlearn import Certificate, CertifiedNeuralClassifier, Status
from sk_unlearn.accounting import gaussian_delta, gaussian_mu
from sk_unlearn.exceptions import (
    BudgetExceededError,
    NotApplicableError,
    ToleranceNotReachedError,
)
from sk_unlearn.methods import CertifiedRemoval, _heads
from sk_unlearn.methods.removal import spectral_norm_bound
from sk_unlearn.modules import LinearHead, LinearRegressor
from sk_unlearn.preprocessing import ClipToBall

KINDS = ["ovr", "multinomial"]
LAM = 0.05


def rows(seed, n=80, d=3):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 3)
    X = rng.normal(size=(n, d)) + 2 * np.eye(3)[y, :d]
    return ClipToBall().fit_transform(X).astype(np.float32), y


def net(method=None, kind="ovr", lam=LAM, **parameters):
    return CertifiedNeuralClassifier(
        LinearHead,
        method=method or CertifiedRemoval(multi_class=kind),
        lam=lam,
        C=1e6,
        classes=[0, 1, 2],
        module__multi_class=kind,
        **parameters,
    )


def gradient_sum(W, X, y, lam, kind):
    """Gradient of the sum over rows and of n times the penalty, from its definition."""
    features = np.column_stack([X, np.ones(len(X))]).astype(float)
    logits = features @ W.T
    P = expit(logits) if kind == "ovr" else softmax(logits, axis=1)
    return (P - np.eye(3)[y]).T @ features + len(X) * lam * W


def hessian_sum(W, X, lam, kind):
    features = np.column_stack([X, np.ones(len(X))]).astype(float)
    logits = features @ W.T
    P = expit(logits) if kind == "ovr" else softmax(logits, axis=1)
    C = np.einsum("ik,kl->ikl", P * (1 - P) if kind == "ovr" else P, np.eye(3))
    if kind == "multinomial":
        C -= np.einsum("ik,il->ikl", P, P)
    H = np.einsum("ikl,ia,ib->kalb", C, features, features).reshape(W.size, W.size)
    return H + len(X) * lam * np.eye(W.size)


def removed(fitted, indices):
    """State before and after, and the diagnostics of one release."""
    before = fitted.method_state_
    fitted.unlearn(indices=list(indices), epsilon=1.0, delta=1e-5)
    return before, fitted.method_state_, fitted.certificate_.diagnostics


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    lam=st.sampled_from([3e-3, 0.05, 0.5]),
    n_u=st.integers(1, 12),
)
def test_a_removal_is_a_newton_step_and_leaves_no_more_gradient_than_its_bound(
    seed, kind, lam, n_u
):
    X, y = rows(seed)
    fitted = net(CertifiedRemoval(5.0, multi_class=kind), kind, lam).fit(X, y)
    b = -gradient_sum(fitted.method_state_.weights, X, y, lam, kind)  # up to the training error
    split = fitted._split(fitted.rows_, np.arange(n_u))
    before = fitted.method_state_
    after = fitted.method_._remove(fitted._problem(*split, None, None), before)
    W, keep = before.weights, slice(n_u, None)
    pull = gradient_sum(W, X[:n_u], y[:n_u], lam, kind)
    step = np.linalg.solve(hessian_sum(W, X[keep], lam, kind), pull.ravel()).reshape(W.shape)
    np.testing.assert_allclose(after.weights, W + step, rtol=1e-7, atol=1e-8 / lam)
    left = np.linalg.norm(gradient_sum(after.weights, X[keep], y[keep], lam, kind) + b)
    spent = after.residual - before.residual
    assert left <= after.residual
    assert left <= spent * (1 + 1e-6) + 1e-10 and after.n_removed == n_u


def test_the_noise_in_the_objective_is_gaussian_and_new_for_every_fit():
    X, y = rows(0, n=30)
    fits = [net(CertifiedRemoval(2.0), noise_seed=1, random_state=0).fit(X, y) for _ in range(40)]
    drawn = [gradient_sum(fit.method_state_.weights, X, y, LAM, "ovr") for fit in fits]
    b = np.array(drawn).ravel() / 2.0
    assert len(np.unique(b)) == len(b) == 40 * 12
    assert abs(b.mean()) < 5 / np.sqrt(len(b))
    assert abs((b**2).mean() - 1) < 5 * np.sqrt(2 / len(b))


def test_residuals_add_up_until_the_budget_is_spent_and_then_it_trains_again():
    X, y = rows(1)
    fitted = net(CertifiedRemoval(0.3)).fit(X, y)
    budget = 0.3 * gaussian_mu(1.0, 1e-5)
    retrained, spent = [], fitted.method_state_.residual
    for _ in range(40):
        before, after, found = removed(fitted, [0])
        assert found["residual_budget"] <= budget
        assert found["residual_spent"] == after.residual <= budget
        retrained.append(found["retrained"])
        if found["retrained"]:
            assert after.n_removed == 0 and after.residual <= 2.01 * len(fitted.rows_) * 1e-8
            assert found["deletions_left"] is None
        else:
            assert after.residual >= before.residual + found["residual_of_this_release"] * 0.999
            assert after.residual > spent and after.n_removed == before.n_removed + 1
        spent = after.residual
        fitted.certificate_.verify()
    assert 1 <= sum(retrained) < 20 and not retrained[0]


def test_it_tells_how_many_deletions_are_left():
    X, y = rows(2)
    fitted = net(CertifiedRemoval(0.5, on_spent="raise")).fit(X, y)
    assert fitted.plan().deletions_left is None
    removed(fitted, [0, 1])
    removed(fitted, [0])
    plan, diagnostics = fitted.plan(), fitted.certificate_.diagnostics
    spent, budget = diagnostics["residual_spent"], diagnostics["residual_budget"]
    assert plan.deletions_left == diagnostics["deletions_left"] > 0
    assert plan.deletions_left == int((budget - spent) / (spent / 3))
    assert f"about {plan.deletions_left} rows" in str(plan)
    assert "deletions_left" not in fitted.certificate_.to_json("public")


def test_beyond_the_budget_it_raises_where_it_should_and_changes_nothing():
    X, y = rows(3)
    fitted = net(CertifiedRemoval(0.02, on_spent="raise")).fit(X, y)
    with pytest.raises(BudgetExceededError, match=r"refresh\(\)") as error:
        for _ in range(60):
            before = fitted.method_state_, len(fitted.rows_), fitted.predict_proba(X)
            fitted.unlearn(indices=[0, 1])
    assert "0.02" in str(error.value)
    assert fitted.method_state_ is before[0] and len(fitted.rows_) == before[1]
    np.testing.assert_array_equal(fitted.predict_proba(X), before[2])
    fitted.refresh()
    assert fitted.method_state_.n_removed == 0
    np.testing.assert_array_equal(fitted.predict_proba(X), before[2])


def test_a_budget_below_the_training_error_is_an_error():
    X, y = rows(4)
    fitted = net(CertifiedRemoval(1e-6, tol=1e-6)).fit(X, y)
    with pytest.raises(ToleranceNotReachedError, match="training error of both worlds"):
        fitted.unlearn(indices=[0])
    assert len(fitted.rows_) == 80


def test_the_release_is_the_projected_step_and_the_next_goes_on_from_the_step():
    X, y = rows(5)
    fitted = net().set_params(C=0.5)
    with pytest.warns(UserWarning, match="outside the ball"):
        fitted.fit(X, y).unlearn(indices=[0])
    assert np.linalg.norm(fitted.method_state_.weights) > 0.5
    assert fitted.certificate_.weights_norm == pytest.approx(0.5)
    released = _heads.to_matrix(
        fitted._problem(*fitted._split(fitted.rows_, [0]), None, None).parameters, 3
    )
    W = fitted.method_state_.weights
    np.testing.assert_allclose(released, W * 0.5 / np.linalg.norm(W), rtol=1e-5)


def test_no_row_and_no_step():
    X, y = rows(6)
    fitted = net().fit(X, y)
    before, after, found = removed(fitted, [])
    assert after.weights is before.weights and after.residual == before.residual
    assert found["residual_of_this_release"] == 0 and found["passes"] == 0


def test_the_certificate_is_not_formal_and_says_why():
    X, y = rows(7)
    certificate = net().fit(X, y).unlearn(indices=[0, 1]).certificate_
    assert not certificate.formal and certificate.epsilon == 1.0 and certificate.sigma is None
    (laws,) = [a for a in certificate.assumptions if a.status is Status.ASSUMED]
    assert "false in general" in laws.statement and "Jacobian" in laws.statement
    for audience in ("operator", "public"):
        text = certificate.to_json(audience)
        assert Certificate.from_json(text).verify().mu == certificate.mu
    assert "residual_spent" not in certificate.to_json("public")
    assert certificate.event.residual <= certificate.event.noise_std * gaussian_mu(1.0, 1e-5)
    assert any("residual bounds" in text for text in certificate.scope)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"noise_std": 0.0}, r"noise_std=0\.0"),
        ({"noise_std": inf}, "noise_std=inf"),
        ({"on_spent": "hope"}, "on_spent='hope'"),
        ({"row_norm": 1.0}, "bias alone has norm 1"),
        ({"tol": -1.0}, r"tol=-1\.0"),
        ({"multi_class": "multinomial"}, "the head's loss is 'ovr'"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(parameters, message):
    X, y = rows(8)
    with pytest.raises(NotApplicableError, match=message):
        net(CertifiedRemoval(**parameters)).fit(X, y)


def test_rows_outside_the_ball_and_other_heads_are_refused():
    X, y = rows(9)
    with pytest.raises(NotApplicableError, match="80 of 80 rows"):
        net().fit(X * 100, y)
    with pytest.raises(NotApplicableError, match="use lam > 0"):
        net(lam=0.0).fit(X, y)
    with pytest.raises(NotApplicableError, match="not known to be affine"):
        CertifiedNeuralClassifier(method=CertifiedRemoval()).fit(X, y)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), d=st.integers(1, 8))
def test_the_spectral_norm_is_bounded_from_above_and_tightly(seed, n, d):
    X = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32).astype(float)
    exact = np.linalg.norm(X, 2)
    assert exact <= spectral_norm_bound(X) <= exact * (1 + 1e-5)


def counterexample(n_points=20_001):
    """Four rows x = 1 with labels +, -, +, -; the first goes; lam = 0.01, s = 10 (T15).

    Returns b, the noise b - u(b) that explains the released weight in the world without the
    row, and the largest |u| where |b| < 8 s.
    """
    y, lam, s = np.array([1.0, -1.0, 1.0, -1.0]), 0.01, 10.0

    def gradient(w, y):
        return -(expit(-np.outer(w, y)) * y).sum(axis=1) + len(y) * lam * w

    w = np.sinh(np.linspace(-1, 1, n_points) * np.arcsinh(3e5)) / 100
    slope = 3 * (expit(w) * expit(-w) + lam)
    released = w + (gradient(w, y) - gradient(w, y[1:])) / slope
    b, explained = -gradient(w, y), -gradient(released, y[1:])
    within = np.abs(b) < 8 * s
    return b, explained, float(np.abs(b - explained)[within].max()), s


def test_a_residual_bound_alone_does_not_make_the_laws_close():
    b, explained, largest, s = counterexample()
    assert (np.diff(b) < 0).all() and (np.diff(explained) < 0).all()  # monotone: laws are masses
    assert np.abs(b).max() > 8 * s
    removed_law, retrained_law = -np.diff(ndtr(b / s)), -np.diff(ndtr(explained / s))
    mu = largest / s
    assert mu < 0.07
    claimed = float(gaussian_delta(mu, 0.5))
    true = np.maximum(retrained_law - exp(0.5) * removed_law, 0).sum()
    assert claimed < 1e-12 and true > 0.016
    finer_b, finer, *_ = counterexample(80_001)
    laws = [-np.diff(ndtr(part / s)) for part in (finer_b, finer)]
    assert np.maximum(laws[1] - exp(0.5) * laws[0], 0).sum() == pytest.approx(true, rel=1e-3)


def test_the_counterexample_by_simulation():
    """An event that the retrained weight is in far more often than the released one."""
    b, explained, _, s = counterexample()
    removed_law, retrained_law = -np.diff(ndtr(b / s)), -np.diff(ndtr(explained / s))
    inside = retrained_law > exp(0.5) * removed_law
    drawn = np.random.default_rng(0).standard_normal(400_000) * s
    # where the noise b falls, the released weight falls in the same cell
    seen_removed = inside[np.clip(len(b) - 1 - np.searchsorted(b[::-1], drawn), 0, len(inside) - 1)]
    cell = np.clip(len(b) - 1 - np.searchsorted(explained[::-1], drawn), 0, len(inside) - 1)
    seen_retrained = inside[cell]
    gap = seen_retrained.mean() - exp(0.5) * seen_removed.mean()
    assert gap == pytest.approx(0.017, abs=0.003)


def test_regression_is_refused_with_the_reason():
    from sk_unlearn import CertifiedNeuralRegressor

    X, y = rows(10)
    with pytest.raises(NotApplicableError):
        CertifiedNeuralRegressor(LinearRegressor, method=CertifiedRemoval()).fit(X, y.astype(float))
