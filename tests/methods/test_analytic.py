"""Ridge heads in closed form, against exact rationals and scikit-learn (T17)."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.linear_model import Ridge

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.exceptions import NotApplicableError, ToleranceNotReachedError
from sk_unlearn.methods import Analytic, Residual, Rows, Setting, analytic
from sk_unlearn.methods.analytic import RidgeSums
from sk_unlearn.modules import LinearHead, RidgeHead

X, y = load_iris(return_X_y=True)
X = X.astype(np.float32)


def _net(method=None, **params):
    method = Analytic() if method is None else method
    return CertifiedNeuralClassifier(RidgeHead, method=method, C=100.0, **params)


def _problem(net, indices):
    retained, deleted = net._split(*net._find_rows(None, None, indices, None))
    return net._problem(retained, deleted, None, None)


def _center(net, indices, tol=1e-6):
    event = Analytic(tol=tol).event(net._setting())
    return Analytic(tol=tol).center(_problem(net, indices), event)


def _by_sklearn(X, y, lam, anchor=0.0):
    T = np.where(y[:, None] == np.arange(3), 1.0, -1.0)
    ones = np.column_stack([X.astype(float), np.ones(len(X))])
    ridge = Ridge(alpha=lam * len(X), fit_intercept=False, solver="svd", tol=0)
    W = ridge.fit(ones, T - ones @ np.full((ones.shape[1], 3), anchor)).coef_ + anchor
    return np.concatenate([W[:, :-1].ravel(), W[:, -1]])


def _exact(array):
    return np.vectorize(Fraction, otypes=[object])(array)


def _exact_sums(X, y, n_classes):
    rows = np.column_stack([_exact(X.astype(float)), _exact(np.ones(len(X)))])
    targets = _exact(np.where(y[:, None] == np.arange(n_classes), 1.0, -1.0))
    return rows.T @ rows, targets.T @ rows


def _square_norm(array):
    return sum(value * value for value in array.ravel())


problems = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(2, 20),
    st.integers(1, 4),
    st.integers(2, 3),
    st.sampled_from([1e-3, 1.0, 3e2]),
)


@given(problems, st.integers(1, 5), st.floats(1e-6, 10.0), st.floats(0.0, 0.9))
def test_the_proved_errors_are_errors_and_so_is_the_gradient_norm(problem, block, lam, share):
    seed, n, d, n_classes, scale = problem
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(n, d)) * scale).astype(np.float32)
    y = rng.integers(0, n_classes, n)
    gone = int(share * n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analytic, "_BLOCK", block)
        sums = RidgeSums.of(Rows(X, y), n_classes)
        if gone:
            sums = sums.without(RidgeSums.of(Rows(X[:gone], y[:gone]), n_classes))
    gram, cross = _exact_sums(X[gone:], y[gone:], n_classes)
    assert sums.n_rows == n - gone
    assert _square_norm(_exact(sums.gram) - gram) <= Fraction(sums.gram_error) ** 2
    assert _square_norm(_exact(sums.cross) - cross) <= Fraction(sums.cross_error) ** 2
    reference = rng.normal(size=(n_classes, d + 1))
    weights, bound = sums.solve(lam, reference)
    exact_weights = _exact(weights)
    gradient = (exact_weights @ gram - cross) / (n - gone)
    gradient = gradient + Fraction(lam) * (exact_weights - _exact(reference))
    assert _square_norm(gradient) <= Fraction(bound) ** 2
    assert bound <= 1e-9 * (1 + scale**2) * (1 + np.linalg.norm(weights))


def test_errors_of_a_difference_add_up():
    whole, part = RidgeSums.of(Rows(X, y), 3), RidgeSums.of(Rows(X[:50], y[:50]), 3)
    assert part.gram_error > 0 < part.cross_error
    left = whole.without(part)
    assert left.gram_error > whole.gram_error + part.gram_error
    assert left.cross_error > whole.cross_error + part.cross_error
    assert left.without(part).gram_error > left.gram_error + part.gram_error


def test_the_loss_of_the_module_is_what_the_closed_form_minimises():
    head = RidgeHead(4, 3).double()
    solution = RidgeSums.of(Rows(X, y), 3).solve(0.1, np.zeros((3, 5)))[0]
    with torch.no_grad():
        head.linear.weight.copy_(torch.as_tensor(solution[:, :-1]))
        head.linear.bias.copy_(torch.as_tensor(solution[:, -1]))
    loss = head.criterion()(head(torch.as_tensor(X).double()), torch.as_tensor(y))
    loss = loss + 0.05 * sum(p.square().sum() for p in head.parameters())
    gradients = torch.autograd.grad(loss, list(head.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-12


def test_the_gradient_bound_holds_away_from_the_optimum():
    sums = RidgeSums.of(Rows(X, y), 3)
    W = np.random.default_rng(0).normal(size=(3, 5))
    bound, _ = sums._gradient_norm_bound(W, 0.1, np.zeros((3, 5)))
    gram, cross = _exact_sums(X, y, 3)
    gradient = (_exact(W) @ gram - cross) / len(X) + Fraction(0.1) * _exact(W)
    norm = float(_square_norm(gradient)) ** 0.5
    assert norm <= bound <= norm * (1 + 1e-5)


@pytest.mark.parametrize("lam", [1e-3, 1.0])
@pytest.mark.parametrize("indices", [[], [0], list(range(0, 150, 2)), list(range(145))])
def test_it_is_scikit_learns_ridge_on_the_retained_rows(lam, indices):
    net = _net(lam=lam, classes=[0, 1, 2]).fit(X, y)
    outcome = _center(net, indices)
    kept = np.delete(np.arange(150), indices)
    np.testing.assert_allclose(outcome.parameters, _by_sklearn(X[kept], y[kept], lam), atol=1e-9)
    assert outcome.diagnostics["passes"] == 0


def test_the_anchor_is_the_centre_of_the_penalty():
    class Raised(RidgeHead):
        pass

    head = RidgeHead(4, 3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(0.5)
    net = CertifiedNeuralClassifier(head, method=Analytic(), anchor="init", lam=0.3, C=100.0)
    outcome = _center(net.fit(X, y), [3])
    expected = _by_sklearn(np.delete(X, 3, 0), np.delete(y, 3), 0.3, anchor=0.5)
    np.testing.assert_allclose(outcome.parameters, expected, atol=1e-9)
    with pytest.raises(NotApplicableError, match="Raised"):
        CertifiedNeuralClassifier(Raised, method=Analytic()).fit(X, y)


class _Untouchable:
    """Rows whose number may be asked for, and nothing else."""

    def __len__(self):
        return 140

    def __getattr__(self, name):
        raise AssertionError(f"the retained rows' {name} was read")


def test_a_deletion_makes_no_pass_over_the_retained_rows():
    net = _net().fit(X, y)
    problem = replace(_problem(net, range(10)), retained=_Untouchable())
    method = Analytic(tol=1e-6)
    outcome = method.center(problem, method.event(net._setting()))
    assert outcome.diagnostics["passes"] == 0
    with pytest.raises(AssertionError, match="was read"):
        method.center(replace(problem, state=None), method.event(net._setting()))


def test_sums_that_lost_too_much_are_summed_afresh():
    net = _net(lam=0.1).fit(X, y)
    problem = _problem(net, [0])
    method = Analytic(tol=1e-6)
    for worn in (replace(problem.state, gram_error=1.0), replace(problem.state, cross_error=1.0)):
        outcome = method.center(replace(problem, state=worn), method.event(net._setting()))
        assert outcome.diagnostics["passes"] == 1
        fresh = method.center(problem, method.event(net._setting()))
        np.testing.assert_allclose(outcome.parameters, fresh.parameters, atol=1e-12)


def test_both_worlds_are_as_close_as_the_certificate_says():
    net, other = _net(lam=0.05).fit(X, y), _net(lam=0.05).fit(X[20:], y[20:])
    deleted, retrained = _center(net, range(20), tol=1e-10), _center(other, [], tol=1e-10)
    distance = np.linalg.norm(deleted.parameters - retrained.parameters)
    assert distance <= deleted.event.sensitivity == retrained.event.sensitivity


def test_the_sums_are_dropped_and_refresh_brings_them_back():
    net = _net().fit(X, y).unlearn(indices=[0, 60])
    assert net.certificate_.diagnostics["passes"] == 0
    assert net.method_state_ is None
    assert net.unlearn(indices=[0]).certificate_.diagnostics["passes"] == 1
    assert net.refresh().unlearn(indices=[0]).certificate_.diagnostics["passes"] == 0
    again = RidgeSums.of(Rows(net.rows_.X, net.rows_.y), 3)
    np.testing.assert_array_equal(net.refresh().method_state_.gram, again.gram)


def test_accuracy_survives():
    net = _net(Analytic(noise_std=1e-3), lam=1e-3).fit(X, y)
    before = net.score(X, y)
    assert before > 0.8
    assert abs(net.unlearn(indices=range(15)).score(X, y) - before) < 0.03
    np.testing.assert_allclose(net.predict_proba(X).sum(axis=1), 1.0, rtol=1e-5)


def test_a_tolerance_below_the_floor_changes_nothing():
    net = _net(Analytic(tol=1e-18)).fit(X, y)
    before = [p.clone() for p in net.module_.parameters()]
    with pytest.raises(ToleranceNotReachedError, match=r"raise noise_std or lam"):
        net.unlearn(indices=[0])
    assert len(net.rows_) == 150
    assert all(torch.equal(*pair) for pair in zip(before, net.module_.parameters(), strict=True))


def test_a_system_that_rounding_makes_singular_is_refused():
    rows = np.repeat(np.float32([[1e8, 1e8, 3e7]]), 40, axis=0)
    with pytest.raises(ToleranceNotReachedError, match="not positive definite"):
        _net(lam=1e-12).fit(rows, np.arange(40) % 2)


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        (Analytic(noise_std=0.1, tol=1e-6), {}, "give one of them"),
        (Analytic(noise_std=-1.0), {}, "noise_std=-1"),
        (Analytic(tol=np.inf), {}, "tol=inf"),
        (Analytic(noise_std=None), {}, "noise_std=None"),
        (Analytic(), {"lam": 0.0}, "use lam > 0"),
        (Analytic(), {"criterion": torch.nn.CrossEntropyLoss}, "leave criterion=None"),
        (Residual(), {}, "RidgeHead"),
    ],
)
def test_what_it_refuses(method, params, message):
    with pytest.raises(NotApplicableError, match=message):
        _net(method, **params).fit(X, y)


def test_it_refuses_other_modules_frozen_weights_and_huge_systems():
    head = RidgeHead(4, 3)
    setting = Setting(1e-3, 1.0, 3 * 100_000, 3)
    with pytest.raises(NotApplicableError, match="use sk_unlearn.modules.RidgeHead"):
        Analytic().check(LinearHead(4, 3), head.criterion(), setting)
    with pytest.raises(NotApplicableError, match=r"74\.5 GiB"):
        Analytic().check(head, head.criterion(), setting)
    head.linear.bias.requires_grad_(False)
    with pytest.raises(NotApplicableError, match="frozen"):
        Analytic().check(head, head.criterion(), setting)
