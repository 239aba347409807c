"""The classics for convex heads: their bounds against the distance to the retrained optimum."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from sk_unlearn import CertifiedNeuralClassifier, bounds
from sk_unlearn.exceptions import (
    BudgetExceededError,
    DeletionRequestError,
    NotApplicableError,
    ToleranceNotReachedError,
)
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.methods import DescentToDelete, SekhariNewton, Setting, _heads
from sk_unlearn.modules import LinearHead
from sk_unlearn.preprocessing import ClipToBall

METHODS = [SekhariNewton, DescentToDelete]
KINDS = ["ovr", "multinomial"]


def _rows(seed, n=60, d=3, n_classes=3):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % n_classes)
    X = rng.normal(size=(n, d)) + np.eye(max(n_classes, d))[y, :d] * rng.uniform(0, 3)
    return ClipToBall().fit_transform(X).astype(np.float32), y


def _net(method, lam, kind="ovr"):
    return CertifiedNeuralClassifier(
        LinearHead, method=method, lam=lam, C=1e3, module__multi_class=kind, classes=[0, 1, 2]
    )


def _center(net, indices):
    retained, deleted = net._split(*net._find_rows(None, None, indices, None))
    problem = net._problem(retained, deleted, None, None)
    return net.method_.center(problem, net.method_.event(net._setting()))


def _dense(W, X, y, lam, kind):
    """Gradient and Hessian in the weights of all heads, from their definition."""
    n, n_classes = len(X), len(W)
    rows = np.column_stack([X, np.ones(n)]).astype(float)
    logits = rows @ W.T
    P = expit(logits) if kind == "ovr" else softmax(logits, axis=1)
    gradient = (P - np.eye(n_classes)[y]).T @ rows / n + lam * W
    curvature = np.einsum("ik,kl->ikl", P, np.eye(n_classes))
    curvature -= (
        np.einsum("ik,ik,kl->ikl", P, P, np.eye(n_classes))
        if kind == "ovr"
        else np.einsum("ik,il->ikl", P, P)
    )
    H = np.einsum("ikl,ia,ib->kalb", curvature, rows, rows).reshape(W.size, W.size) / n
    return gradient, H + lam * np.eye(W.size)


def _newton_step(W, X, y, lam, kind):
    gradient, H = _dense(W, X, y, lam, kind)
    return W - np.linalg.solve(H, gradient.ravel()).reshape(W.shape)


def _optimum(X, y, lam, kind, n_classes=3):
    W = np.zeros((n_classes, X.shape[1] + 1))
    for _ in range(60):
        gradient, H = _dense(W, X, y, lam, kind)
        step = np.linalg.solve(H, gradient.ravel()).reshape(W.shape)
        W = W - step / max(1.0, 2 * np.linalg.norm(step))
    assert np.linalg.norm(_dense(W, X, y, lam, kind)[0]) < 1e-13
    return W


def _distance(outcome, W):
    return np.linalg.norm(outcome.parameters - _heads.to_vector(W))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    lam=st.sampled_from([1e-3, 0.03, 0.3, 1.0, 3.0]),
    n_deleted=st.integers(1, 10),
    effort=st.integers(0, 30),
)
def test_the_bound_covers_the_distance_to_the_retrained_model(
    method, seed, kind, lam, n_deleted, effort
):
    X, y = _rows(seed)
    own = {} if method is SekhariNewton else {"iterations": effort}
    chosen = method(multi_class=kind, max_fraction=n_deleted / (60 - n_deleted), tol=1e-9, **own)
    outcome = _center(_net(chosen, lam, kind).fit(X, y), range(n_deleted))
    sensitivity = outcome.event.sensitivity
    retrained = _center(_net(chosen, lam, kind).fit(X[n_deleted:], y[n_deleted:]), [])
    assert np.linalg.norm(outcome.parameters - retrained.parameters) <= sensitivity
    assert _distance(outcome, _optimum(X[n_deleted:], y[n_deleted:], lam, kind)) <= sensitivity
    written = getattr(bounds, outcome.event.bound)(**dict(outcome.event.constants))
    assert written <= sensitivity <= written * 1.001 + 20e-9 / lam


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_are_exact_newton_steps_from_the_trained_optimum(kind):
    X, y = _rows(1)
    net = _net(SekhariNewton(multi_class=kind, max_fraction=0.05, tol=1e-11), 2.0, kind).fit(X, y)
    outcome = _center(net, [0, 1])
    steps = outcome.diagnostics["n_steps"]
    assert steps == dict(outcome.event.constants)["steps"] >= 2
    W = _optimum(X, y, 2.0, kind)
    for _ in range(steps):
        W = _newton_step(W, X[2:], y[2:], 2.0, kind)
    assert _distance(outcome, W) < 1e-10


@pytest.mark.parametrize("lam", [1e-4, 0.02, 0.1, 0.2, 0.5, 2.0])
def test_the_number_of_steps_has_the_smallest_bound(lam):
    setting = Setting(lam, 1.0, 12, 3)
    event = SekhariNewton(max_fraction=0.01, tol=1e-9).event(setting)
    constants = dict(event.constants)
    every = [bounds.newton_steps_distance(**constants | {"steps": float(k)}) for k in range(12)]
    assert event.sensitivity <= min(every) * 1.001 + 20e-9 / lam
    assert (constants["steps"] == 0) == (every[1] >= every[0])


def test_where_a_step_hurts_none_is_taken():
    X, y = _rows(2)
    net = _net(SekhariNewton(), 1e-3).fit(X, y)
    outcome = _center(net, [0])
    assert outcome.diagnostics == {"n_steps": 0, "residual_norm": 0.0, "passes": 0.0}
    np.testing.assert_array_equal(outcome.parameters, _heads.to_vector(net.method_state_.weights))


@pytest.mark.parametrize("kind", KINDS)
def test_the_descent_is_gradient_descent(kind):
    X, y = _rows(3)
    method = DescentToDelete(iterations=7, multi_class=kind, tol=1e-9)
    for indices in ([], [0, 1, 2]):
        outcome = _center(_net(method, 0.1, kind).fit(X, y), indices)
        W, keep = _optimum(X, y, 0.1, kind), np.delete(np.arange(60), indices)
        smoothness = bounds.head_constants(kind, 3, 1.4143).smoothness
        for _ in range(7):
            W = W - 2 / (smoothness + 0.2) * _dense(W, X[keep], y[keep], 0.1, kind)[0]
        assert _distance(outcome, W) < 1e-7
    assert dict(outcome.event.constants)["iterations"] == 7


def _released(net, indices, event):
    """Return what a release would publish but for the noise, and the net after it."""
    retained, deleted = net._split(*net._find_rows(None, None, indices, None))
    outcome = net.method_.center(net._problem(retained, deleted, None, None), event)
    net.rows_, net.method_state_ = retained, outcome.state
    return outcome.parameters


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    lam=st.sampled_from([0.01, 0.1, 1.0]),
    iterations=st.integers(0, 8),
    when=st.integers(1, 4),
)
def test_secret_state_covers_every_release_of_a_sequence(seed, lam, iterations, when):
    """A row leaves at one of four releases, or was never there; the others go alike."""
    X, y = _rows(seed)
    method = DescentToDelete(iterations, max_fraction=3 / 48, tol=1e-9, state="secret", horizon=4)
    here, there = (_net(method, lam).fit(X[i:], y[i:]) for i in (0, 1))
    event = method.event(here._setting())
    gone = 0
    for release in range(1, 5):
        others = [0, 1]
        first = [0] if release == when else []
        kept = int(release < when)
        rows = [*first, *(i + kept + len(first) for i in others)]
        gap = _released(here, rows, event) - _released(there, others, event)
        gone += len(first)
        if gone:
            np.testing.assert_array_equal(here.rows_.X, there.rows_.X)
            assert np.linalg.norm(gap) <= event.sensitivity
    written = getattr(bounds, event.bound)(**dict(event.constants))
    assert written == event.sensitivity


def test_secret_state_goes_on_from_the_un_noised_iterate_without_training():
    X, y = _rows(3)
    method = DescentToDelete(5, max_fraction=0.1, state="secret", horizon=3)
    net = _net(method, 0.1).fit(X, y)
    beta, W = dict(method.event(net._setting()).constants)["loss_smoothness"] + 0.1, None
    W = net.method_state_.weights
    for left in (59, 58):
        net.unlearn(indices=[0])
        for _ in range(5):
            W = W - 2 / (beta + 0.1) * _dense(W, X[-left:], y[-left:], 0.1, "ovr")[0]
        np.testing.assert_allclose(net.method_state_.weights, W, atol=1e-12)
    certificate = net.certificate_
    assert not certificate.formal and len(certificate.earlier_mu) == 1
    assert certificate.composed[0] <= 1.0
    (covered,) = [a for a in certificate.assumptions if a.name == "what is covered"]
    assert "the released models alone" in covered.statement
    net.unlearn(indices=[0])
    with pytest.raises(BudgetExceededError):
        net.unlearn(indices=[0])


def test_the_guarantee_of_the_internal_state_keeps_no_iterate():
    X, y = _rows(4)
    net = _net(DescentToDelete(5, max_fraction=0.1), 0.1).fit(X, y).unlearn(indices=[0])
    assert net.method_state_ is None and net.certificate_.formal
    (covered,) = [a for a in net.certificate_.assumptions if a.name == "what is covered"]
    assert "the full internal state" in covered.statement


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"state": "secret"}, "horizon=None"),
        ({"horizon": 3}, "no horizon is needed"),
        ({"state": "public"}, "state='public'"),
    ],
)
def test_a_state_that_means_nothing_is_refused(parameters, message):
    with pytest.raises(NotApplicableError, match=message):
        _net(DescentToDelete(**parameters), 0.1).fit(*_rows(0))


def test_more_steps_need_less_noise():
    setting = Setting(0.1, 1.0, 12, 3)
    noise = [DescentToDelete(k).event(setting).sensitivity for k in (0, 1, 10, 100)]
    assert noise == sorted(noise, reverse=True)
    assert noise[-1] < 1e-5 < noise[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_noise_grows_with_what_may_be_deleted_and_falls_with_lam(method):
    def sensitivity(fraction, lam):
        return method(max_fraction=fraction).event(Setting(lam, 1.0, 12, 3)).sensitivity

    assert sensitivity(0.2, 0.1) >= sensitivity(0.1, 0.1) >= sensitivity(1e-9, 0.1)
    assert sensitivity(0.1, 0.1) >= sensitivity(0.1, 1.0)
    assert sensitivity(1e-9, 1.0) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_later_deletion_starts_from_the_rows_that_are_left(method):
    X, y = _rows(4)
    net = _net(method(tol=1e-10), 0.5).fit(X, y).unlearn(indices=[0])
    assert net.method_state_ is None
    again = _center(net, [0])
    fresh = _center(_net(method(tol=1e-10), 0.5).fit(X[1:], y[1:]), [0])
    np.testing.assert_allclose(again.parameters, fresh.parameters, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_outside_the_ball_says_how_to_clip(method):
    X, y = _rows(5)
    X[7] *= 10 / np.linalg.norm(X[7])
    with pytest.raises(NotApplicableError, match=r"1 of 60 rows .* 10\.04.*ClipToBall") as error:
        _net(method(row_norm=3.0), 0.1).fit(X, y)
    radius = float(str(error.value).split("radius=")[1].split(")")[0])
    assert radius == pytest.approx(sqrt(8), rel=1e-5)
    clipped = ClipToBall(radius).fit_transform(X.astype(np.float64))
    _net(method(row_norm=3.0), 0.1).fit(clipped, y)


@pytest.mark.parametrize("method", METHODS)
def test_more_than_declared_is_an_error_and_changes_nothing(method):
    X, y = _rows(6)
    net = _net(method(max_fraction=0.05), 0.5).fit(X, y)
    before = net.method_state_
    with pytest.raises(DeletionRequestError, match=r"3 rows to delete for 57 .*max_fraction=0\.05"):
        net.unlearn(indices=[0, 1, 2])
    assert len(net.rows_) == 60
    assert net.method_state_ is before
    assert net.unlearn(indices=[0, 1]).certificate_.n_deleted == 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"row_norm": 1.0}, "bias alone has norm 1"),
        ({"row_norm": inf}, "row_norm=inf"),
        ({"tol": 0.0}, r"tol=0\.0"),
        ({"max_fraction": -0.1}, r"max_fraction=-0\.1"),
        ({"multi_class": "multinomial"}, "the head's loss is 'ovr'"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(method, parameters, message):
    X, y = _rows(7)
    with pytest.raises(NotApplicableError, match=message):
        _net(method(**parameters), 0.1).fit(X, y)


@pytest.mark.parametrize("method", METHODS)
def test_other_modules_no_penalty_and_another_anchor_are_refused(method):
    X, y = _rows(8)
    with pytest.raises(NotApplicableError, match="MLP is not known to be affine"):
        CertifiedNeuralClassifier(method=method()).fit(X, y)
    with pytest.raises(NotApplicableError, match="use lam > 0"):
        _net(method(), 0.0).fit(X, y)
    head = LinearHead(3, 3)
    torch.nn.init.ones_(head.linear.bias)
    with pytest.raises(NotApplicableError, match=r"anchor has norm 1\.732; use anchor='zero'"):
        CertifiedNeuralClassifier(head, anchor="init", method=method()).fit(X, y)


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_below_the_floor_is_an_error(method):
    X, y = _rows(9)
    with pytest.raises(ToleranceNotReachedError, match="is rounding"):
        _net(method(tol=1e-18), 0.1).fit(X, y)


def test_a_descent_whose_rounding_outgrows_its_share_is_an_error():
    X, y = _rows(10)
    net = _net(DescentToDelete(tol=1e-13), 1.0).fit(X, y)
    with pytest.raises(ToleranceNotReachedError, match="gradient step"):
        net.unlearn(indices=[0])
    assert len(net.rows_) == 60


def test_a_newton_system_that_is_not_solved_is_an_error(monkeypatch):
    X, y = _rows(11)
    net = _net(SekhariNewton(), 2.0).fit(X, y)
    monkeypatch.setattr(_heads, "cg", lambda operator, b, **options: (0.5 * b, 1))
    with pytest.raises(ToleranceNotReachedError, match="residual of the Newton system"):
        net.unlearn(indices=[0])
    assert len(net.rows_) == 60


def _in_long_double(risk, W, V):
    X, n = risk.X.astype(np.longdouble), len(risk.y)
    logits = X @ W.astype(np.longdouble).T
    Z = X @ V.astype(np.longdouble).T
    if risk.multi_class == "ovr":
        P = 1 / (1 + np.exp(-logits))
        curved = P * (1 - P) * Z
    else:
        P = np.exp(logits - logits.max(axis=1, keepdims=True))
        P /= P.sum(axis=1, keepdims=True)
        curved = P * (Z - (P * Z).sum(axis=1, keepdims=True))
    return curved.T @ X / n + risk.lam * V.astype(np.longdouble)


@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_the_rounding_of_a_hessian_product_is_within_its_bound(seed, kind, scale):
    X, y = _rows(seed, n=200, d=5)
    rng = np.random.default_rng(seed)
    W, V = scale * rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    risk = HeadRisk(X, y, 3, 0.1, np.zeros((3, 6)), kind)
    error = np.linalg.norm(risk.hessian_product(W)(V) - _in_long_double(risk, W, V))
    bound = _heads.hessian_product_rounding(risk, 1.4143, W, V)
    assert error <= bound <= 1e-12 * (1 + scale) * np.linalg.norm(V)
