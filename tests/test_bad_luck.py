"""Bad input and bad luck: a clear error with the remedy and nothing changed, or it simply works."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sk_unlearn import CertifiedNeuralClassifier, head_risk
from sk_unlearn.convex import minimise
from sk_unlearn.exceptions import (
    DeletionRequestError,
    NotApplicableError,
    ToleranceNotReachedError,
)
from sk_unlearn.head_factors import HeadFactors, HeadSketch
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.methods import Analytic, Residual
from sk_unlearn.modules import LinearHead, RidgeHead

PIXELS, LABELS = load_digits(n_class=5, return_X_y=True)
PIXELS = (PIXELS[:400] / 16).astype(np.float32)
LABELS = LABELS[:400]
WIDTH = PIXELS.shape[1] + 1
CONVEX = pytest.mark.parametrize(
    ("module", "method"), [(LinearHead, Residual), (RidgeHead, Analytic)], ids=["head", "ridge"]
)


def _net(module=LinearHead, method=Residual, **params):
    params = {"lam": 1e-3, "C": 1e4, "method": method()} | params
    return CertifiedNeuralClassifier(module, **params)


def _unchanged(net, error, match, **request):
    before, entries = pickle.dumps(net.module_.state_dict()), len(net.ledger_)
    rows, state, releases = net.rows_, net.method_state_, net.n_releases_
    with pytest.raises(error, match=match):
        net.unlearn(**request)
    assert pickle.dumps(net.module_.state_dict()) == before
    assert (net.rows_, net.method_state_, net.n_releases_) == (rows, state, releases)
    assert not hasattr(net, "certificate_")
    assert len(net.ledger_) == entries


@CONVEX
def test_no_penalty_is_refused_before_anything_is_fitted(module, method):
    net = _net(module, method, lam=0.0)
    with pytest.raises(NotApplicableError, match="use lam > 0"):
        net.fit(PIXELS, LABELS)
    assert not hasattr(net, "rows_")


@CONVEX
@pytest.mark.parametrize("kind", ["duplicated", "constant", "scales", "more than rows"])
def test_columns_that_leave_the_hessian_singular_are_no_trouble(module, method, kind):
    X = {
        "duplicated": np.repeat(PIXELS, 2, axis=1),
        "constant": np.hstack([PIXELS, np.zeros_like(PIXELS), np.ones_like(PIXELS)]),
        "scales": PIXELS * np.logspace(-9, 0, WIDTH - 1, dtype=np.float32),
        "more than rows": np.repeat(PIXELS[:40], 3, axis=1),
    }[kind]
    y = LABELS[: len(X)]
    net = _net(module, method, lam=1e-6).fit(X, y)
    net.unlearn(indices=range(4))
    assert net.certificate_.formal
    again = _net(module, method, lam=1e-6).fit(X[4:], y[4:])
    assert abs(net.score(X[4:], y[4:]) - again.score(X[4:], y[4:])) < 0.05


@CONVEX
def test_a_tolerance_below_what_float64_proves_says_so_and_changes_nothing(module, method):
    net = _net(module, lambda: method(noise_std=1e-13)).fit(PIXELS, LABELS)
    _unchanged(net, ToleranceNotReachedError, "raise noise_std or lam", indices=[0])
    _unchanged(net, ToleranceNotReachedError, "scale the features down", indices=[0])


def test_huge_features_need_a_larger_tolerance_and_it_says_so():
    net = _net(lam=1e-6).fit(1e6 * PIXELS, LABELS)
    _unchanged(net, ToleranceNotReachedError, "scale the features down", indices=[0])


@CONVEX
def test_the_last_rows_of_a_class_go_only_if_classes_are_declared(module, method):
    gone = np.flatnonzero(LABELS == 3)
    net = _net(module, method).fit(PIXELS, LABELS)
    _unchanged(net, DeletionRequestError, "declare classes=", indices=gone)
    net = _net(module, method, classes=range(5)).fit(PIXELS, LABELS).unlearn(indices=gone)
    assert net.certificate_.formal
    assert not (net.predict(PIXELS[LABELS != 3]) == 3).any()


# ------------------------------------------------------------------ memory


def _head():
    return HeadRisk(PIXELS, LABELS, 5, 1e-3, np.zeros((5, WIDTH)), "ovr")


BUDGETS = {
    "each class": (2**30, HeadFactors, True),
    "shared": (5 * WIDTH**2 * 8 - 1, HeadFactors, False),
    "sketch": (WIDTH**2 * 8 - 1, HeadSketch, None),
}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("state", [{}, {"state": "secret", "horizon": 3}], ids=["", "secret"])
def test_factors_beyond_the_budget_are_shared_and_then_sketched(monkeypatch, budget, state):
    allowed, kind, per_class = BUDGETS[budget]
    monkeypatch.setattr(head_risk, "_MAX_BYTES", allowed)
    net = _net(method=lambda: Residual(**state)).fit(PIXELS, LABELS)
    factors = net.method_state_.factors
    assert type(factors) is kind and getattr(factors, "per_class", None) is per_class
    for _ in range(3):
        net.unlearn(indices=range(4))
        tol = dict(net.certificate_.event.constants)["tol"]
        assert net.certificate_.diagnostics["gradient_norm_bound"] <= tol


@pytest.mark.parametrize("available", [2, 1, 0])
def test_memory_that_is_not_there_is_done_without(monkeypatch, available):
    """The machine gives room for so many matrices, whatever the budget allows."""
    room = available

    def gram(self, weights=None, whole=HeadRisk.gram):
        nonlocal room
        room -= 1
        if room < 0:
            raise MemoryError
        return whole(self, weights)

    net = _net().fit(PIXELS, LABELS)
    monkeypatch.setattr(HeadRisk, "gram", gram)
    factors = _head().factors(np.zeros((5, WIDTH)))
    assert isinstance(factors, HeadSketch)
    room = available
    assert net.unlearn(indices=range(4)).unlearn(indices=range(4)).certificate_.formal


def test_memory_that_runs_out_in_a_deletion_changes_nothing(monkeypatch):
    net = _net().fit(PIXELS, LABELS)

    def full(self, size=None):
        raise MemoryError("unable to allocate")

    with monkeypatch.context() as patch:
        patch.setattr(HeadRisk, "blocks", full)
        _unchanged(net, MemoryError, "unable", indices=[0])
    assert net.unlearn(indices=[0]).certificate_.formal


def test_a_sketch_of_full_rank_is_the_inverse_of_the_mean_block():
    risk, W = _head(), np.random.default_rng(0).standard_normal((5, WIDTH))
    block = risk.gram(risk.curvature(W).mean(axis=1)) + 1e-3 * np.eye(WIDTH)
    gradient = np.random.default_rng(1).standard_normal((5, WIDTH))
    exact = np.linalg.solve(block, gradient.T).T
    found = HeadSketch.of(risk, risk.curvature(W).mean(axis=1)).solve(gradient)
    scale = np.vdot(found, exact) / np.vdot(found, found)
    np.testing.assert_allclose(scale * found, exact, rtol=1e-2, atol=1e-2 * np.abs(exact).max())


def test_a_sketch_saves_passes_that_the_identity_would_cost():
    class Identity:
        def solve(self, gradient):
            return gradient

    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 60)) * np.logspace(1, -2, 60)
    risk = HeadRisk(X, rng.integers(0, 5, 300), 5, 1e-4, np.zeros((5, 61)), "ovr")
    near = minimise(risk, risk.reference).weights
    near = near + 0.01 * rng.standard_normal(near.shape)
    risk.factors = lambda W: None
    sketch = HeadSketch.of(risk, risk.curvature(near).mean(axis=1))
    with_it, without = (minimise(risk, near, 1e-8, factors=f) for f in (sketch, Identity()))
    assert with_it.bound <= 1e-8 and without.bound <= 1e-8
    assert 3 * with_it.n_passes < without.n_passes
