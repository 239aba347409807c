"""Deleting rows from a solved head: the optimum of the retained rows, in few passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.convex import minimise
from sk_unlearn.exceptions import DeletionRequestError
from sk_unlearn.head_factors import HeadFactors
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.head_update import SolvedHead, are_exact, delete, settle
from sk_unlearn.modules import LinearHead

PIXELS, LABELS = load_digits(return_X_y=True)
PIXELS = (PIXELS / 16).astype(np.float32)


def _risk(X, y, lam, kind, n_classes):
    reference = np.zeros((n_classes, X.shape[1] + 1))
    return HeadRisk(X, y, n_classes, lam, reference, kind)


def _solved(X, y, lam, kind, n_classes, max_bytes=2**30):
    risk = _risk(X, y, lam, kind, n_classes)
    W = minimise(risk, risk.reference).weights
    return SolvedHead(W, HeadFactors.at(risk, W, max_bytes))


def _split(X, y, lam, kind, n_classes, forget):
    keep = np.setdiff1d(np.arange(len(y)), forget)
    return (_risk(X[rows], y[rows], lam, kind, n_classes) for rows in (keep, forget))


@pytest.mark.parametrize("kind", ["ovr", "multinomial"])
@pytest.mark.parametrize("share", [0.002, 0.01, 0.1])
def test_it_reaches_the_retrained_optimum(kind, share):
    lam, tol = 1e-3, 1e-9
    forget = np.random.default_rng(0).choice(len(LABELS), int(share * len(LABELS)), replace=False)
    solved = _solved(PIXELS, LABELS, lam, kind, 10)
    retained, deleted = _split(PIXELS, LABELS, lam, kind, 10, forget)
    updated, n_passes = delete(solved, retained, deleted, tol)
    exact = minimise(retained, retained.reference).weights
    if kind == "ovr":
        assert updated.bound <= tol
        assert n_passes <= (5 if share <= 0.01 else 10)
    assert np.linalg.norm(updated.weights - exact) <= (updated.bound + 1e-11) / lam


def test_the_first_step_needs_no_pass_and_removes_most_of_the_gradient():
    forget = np.arange(18)
    solved = _solved(PIXELS, LABELS, 1e-3, "ovr", 10)
    retained, deleted = _split(PIXELS, LABELS, 1e-3, "ovr", 10, forget)
    before = np.linalg.norm(retained.gradient(solved.weights))
    loose, n_passes = delete(solved, retained, deleted, 0.1 * before)
    assert n_passes == 1
    assert loose.bound < 0.1 * before


@pytest.mark.parametrize(("scale", "n_forget"), [(4, 500), (8, 180)])
def test_where_mixing_is_slow_the_hessian_is_factored_once_more(monkeypatch, scale, n_forget):
    X, lam, tol = scale * PIXELS, 1e-4, 1e-9
    forget = np.random.default_rng(0).choice(len(LABELS), n_forget, replace=False)
    solved = _solved(X, LABELS, lam, "ovr", 10)
    retained, deleted = _split(X, LABELS, lam, "ovr", 10, forget)
    updated, n_passes = delete(solved, retained, deleted, tol)
    assert updated.bound <= tol and n_passes == updated.n_passes <= 17
    assert isinstance(updated.factors, HeadFactors)
    exact = minimise(retained, retained.reference).weights
    assert np.linalg.norm(updated.weights - exact) <= (updated.bound + 1e-11) / lam
    monkeypatch.setattr(HeadRisk, "factor_cost", np.inf)
    stuck, _ = delete(solved, retained, deleted, tol)
    assert stuck.bound > tol and stuck.factors is None


def test_corrected_rows_are_in_the_first_step_too():
    rng, k, lam = np.random.default_rng(0), 20, 1e-3
    X = rng.normal(size=(2000, 10)).astype(np.float32)
    numbers = (X @ rng.normal(size=(10, 3))).astype(np.float32)
    for kind, y in (("squared", numbers), ("ovr", numbers.argmax(axis=1))):
        changed = y.copy()
        changed[:k] = y[:k] + 1 if kind == "squared" else (y[:k] + 1) % 3
        solved = _solved(X, y, lam, kind, 3)
        retained = _risk(X, changed, lam, kind, 3)
        old, new = (_risk(X[:k], labels[:k], lam, kind, 3) for labels in (y, changed))
        updated, n_passes = delete(solved, retained, old, 1e-6, new)
        _, blind = delete(solved, retained, old, 1e-6)
        assert updated.bound <= 1e-6 and n_passes <= blind - 3
        if kind == "squared":
            assert n_passes == 1  # other targets leave the Hessian as it is
        exact = minimise(retained, retained.reference).weights
        assert np.linalg.norm(updated.weights - exact) <= (updated.bound + 1e-11) / lam


@pytest.mark.parametrize("kind", ["ovr", "multinomial"])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_the_factors_invert_the_dense_hessian_blocks_but_for_rows_that_hardly_bend(kind, scale):
    rng, lam = np.random.default_rng(0), 1e-3
    risk = _risk(PIXELS[:200], LABELS[:200], lam, kind, 10)
    W = scale * rng.standard_normal(risk.shape)
    factors = HeadFactors.at(risk, W, 2**30)
    X, curvature = risk.X, risk.curvature(W)
    size = np.linalg.norm(X, 2) ** 2 / 200
    for c, weights in enumerate(curvature.T):
        block = (X.T * weights) @ X / 200 + lam * np.eye(65)
        columns = np.zeros((65, *risk.shape))
        columns[:, c] = block
        ratios = np.linalg.eigvals([factors.solve(column)[c] for column in columns]).real
        assert ratios.min() > 1 - 1e-9
        assert ratios.max() < 1 + 1e-9 + 1e-4 * weights.max() * size / lam


@pytest.mark.parametrize("max_bytes", [10 * 65 * 65 * 8 - 1, 65 * 65 * 8 - 1])
def test_less_memory_means_one_shared_factor_or_none(max_bytes):
    solved = _solved(PIXELS, LABELS, 1e-2, "ovr", 10, max_bytes)
    if max_bytes < 65 * 65 * 8:
        assert solved.factors is None
        return
    assert not solved.factors.per_class
    retained, deleted = _split(PIXELS, LABELS, 1e-2, "ovr", 10, np.arange(5))
    updated, _ = delete(solved, retained, deleted, 1e-7)
    exact = minimise(retained, retained.reference).weights
    assert np.linalg.norm(updated.weights - exact) <= (updated.bound + 1e-11) / 1e-2


@given(
    seed=st.integers(0, 10_000),
    n_classes=st.integers(2, 4),
    lam=st.sampled_from([1e-4, 1e-2, 1.0]),
    n_forget=st.integers(1, 15),
)
@settings(max_examples=40)
def test_whatever_it_returns_its_bound_is_a_bound(seed, n_classes, lam, n_forget):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 3)).astype(np.float32)
    y = rng.integers(0, n_classes, 40)
    solved = _solved(X, y, lam, "ovr", n_classes)
    retained, deleted = _split(X, y, lam, "ovr", n_classes, np.arange(n_forget))
    updated, _ = delete(solved, retained, deleted, 1e-10)
    exact = minimise(retained, retained.reference)
    distance = np.linalg.norm(updated.weights - exact.weights)
    assert distance <= (updated.bound + exact.bound) / lam


@pytest.mark.parametrize("tol", [1e-8, None])
def test_from_a_point_nearby_it_settles_in_half_the_passes_of_the_global_solver(tol):
    risk = _risk(PIXELS, LABELS, 1e-3, "ovr", 10)
    exact = minimise(risk, risk.reference)
    start = exact.weights + 0.01 * np.random.default_rng(0).standard_normal(risk.shape)
    factors, before = HeadFactors.at(risk, start, 2**30), risk.n_passes
    found = settle(risk, start, factors, tol)
    passes = risk.n_passes - before
    assert found.reaches(tol)
    distance = np.linalg.norm(found.weights - exact.weights)
    assert distance <= (found.bound + exact.bound) / 1e-3
    assert 2 * passes < minimise(risk, start, tol, factors=factors).n_passes
    again = settle(risk, found.weights, factors, tol)
    assert again.n_iter == 0 and again.weights is found.weights


@pytest.mark.parametrize(("kind", "matrices"), [("multinomial", 10), ("ovr", 1)])
def test_blocks_that_only_stand_for_the_hessian_are_left_to_the_global_solver(kind, matrices):
    risk = _risk(PIXELS, LABELS, 1e-3, kind, 10)
    assert not are_exact(HeadFactors.at(risk, risk.reference, matrices * 65**2 * 8), risk)


def test_a_release_drops_the_factors_and_refresh_rebuilds_them_from_what_remains():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(PIXELS, LABELS)
    net.unlearn(indices=range(10))
    assert net.certificate_.diagnostics["updated_in_passes"] is not None
    assert net.method_state_ is None
    released = net.predict_proba(PIXELS)
    assert net.refresh() is net
    np.testing.assert_array_equal(net.predict_proba(PIXELS), released)
    fresh = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(PIXELS[10:], LABELS[10:])
    np.testing.assert_allclose(net.method_state_.weights, fresh.method_state_.weights, atol=1e-7)
    net.unlearn(indices=range(10))
    assert net.certificate_.diagnostics["updated_in_passes"] <= 5
    assert net.certificate_.formal


def test_refresh_needs_rows():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0, store_data=False).fit(PIXELS, LABELS)
    with pytest.raises(DeletionRequestError, match="store_data=True"):
        net.refresh()


def test_twenty_deletions_in_a_row_do_not_drift():
    net = CertifiedNeuralClassifier(LinearHead, lam=1e-3, C=100.0).fit(PIXELS[:1400], LABELS[:1400])
    passes = []
    for _ in range(20):
        net.refresh().unlearn(indices=range(7))
        passes.append(net.certificate_.diagnostics["updated_in_passes"])
    retrained = CertifiedNeuralClassifier(LinearHead, lam=1e-3, C=100.0)
    retrained.fit(net.rows_.X, net.rows_.y)
    gap = retrained.score(PIXELS[1400:], LABELS[1400:]) - net.score(PIXELS[1400:], LABELS[1400:])
    assert abs(gap) < 0.02
    assert max(passes[10:]) <= max(passes[:10]) + 1


def test_without_a_refresh_the_next_release_factors_the_hessian_where_it_starts(monkeypatch):
    net = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(PIXELS, LABELS)
    net.unlearn(indices=range(5))

    def refused(self):
        raise AssertionError("a preconditioner that knows nothing of the released weights")

    monkeypatch.setattr(HeadRisk, "preconditioner", refused)
    net.unlearn(indices=range(5))
    assert net.certificate_.formal
    assert net.certificate_.diagnostics["passes"] <= 15
