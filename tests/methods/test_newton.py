"""The Newton step: exact on quadratics, honest about what its bounds give."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.datasets import load_iris
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier, Status
from sk_unlearn._net import to_vector
from sk_unlearn.curvature import CG, Exact, LiSSA
from sk_unlearn.exceptions import NotApplicableError, ToleranceNotReachedError, UnlearningWarning
from sk_unlearn.methods import Newton
from sk_unlearn.modules import LinearHead

X, y = load_iris(return_X_y=True)
X = (X / 8).astype(np.float32)
FORGET = [3, 60, 61, 140]
DECLARED = {"bound": "newton", "gradient_bound": 50.0, "residual_tol": 1.0}


class SquaredError(nn.Module):
    """Squared distance of the logits from the one-hot label: a quadratic objective."""

    def forward(self, logits, y):
        return (logits - nn.functional.one_hot(y, logits.shape[1])).square().sum(1).mean()


class DoublePrecisionHead(LinearHead):
    """A head in float64, so that "equal" can be asked to many digits."""

    def __init__(self, n_features_in, n_classes):
        super().__init__(n_features_in, n_classes)
        self.double()

    def forward(self, X):
        return super().forward(X.double())


def _quadratic(method, **params):
    return CertifiedNeuralClassifier(
        DoublePrecisionHead,
        criterion=SquaredError,
        method=method,
        lam=0.05,
        C=1e3,
        max_epochs=3,
        random_state=0,
        **params,
    ).fit(X, y)


def _ridge(rows, labels, lam):
    """The minimiser by scipy, as (weight, bias) in the module's order."""
    inputs = np.column_stack([rows, np.ones(len(rows))]).astype(float)
    targets = np.eye(3)[labels]
    gram = 2 * inputs.T @ inputs / len(rows) + lam * np.eye(inputs.shape[1])
    W = np.linalg.solve(gram, 2 * inputs.T @ targets / len(rows)).T
    return np.concatenate([W[:, :-1].ravel(), W[:, -1]])


@pytest.mark.parametrize("solver", [CG(tol=1e-12), Exact(tol=1e-9)])
def test_on_a_quadratic_one_step_is_retraining(solver):
    net = _quadratic(Newton(solver=solver, damping=1e-12, noise_std=1e-9))
    net.unlearn(indices=FORGET)
    keep = np.delete(np.arange(150), FORGET)
    np.testing.assert_allclose(
        to_vector(net._trainable()), _ridge(X[keep], y[keep], 0.05), atol=1e-7
    )


def test_the_penalty_in_the_step_is_the_squared_norm():
    """With the norm itself as penalty the step would end somewhere else (a published fault)."""
    keep = np.delete(np.arange(150), FORGET)
    inputs = np.column_stack([X[keep], np.ones(len(keep))]).astype(float)
    targets = np.eye(3)[y[keep]]

    def with_the_norm(w):
        W = w.reshape(3, -1)
        return np.sum((inputs @ W.T - targets) ** 2) / len(keep) + 0.025 * np.linalg.norm(w)

    wrong = minimize(with_the_norm, np.full(15, 0.1)).x.reshape(3, -1)
    wrong = np.concatenate([wrong[:, :-1].ravel(), wrong[:, -1]])
    net = _quadratic(Newton(solver=CG(tol=1e-12), damping=1e-12, noise_std=1e-9))
    net.unlearn(indices=FORGET)
    assert np.linalg.norm(to_vector(net._trainable()) - wrong) > 1e-2


def test_the_influence_form_equals_the_retained_form_at_an_exact_optimum():
    steps = []
    for gradient in ("retained", "deleted"):
        method = Newton(solver=CG(tol=1e-12), damping=1e-12, noise_std=1e-9, gradient=gradient)
        net = _quadratic(method)
        net._set_weights(_ridge(X, y, 0.05))
        steps.append(to_vector(net.unlearn(indices=FORGET)._trainable()))
    np.testing.assert_allclose(*steps, atol=1e-7)


def test_noise_by_hand_promises_nothing_and_says_why():
    net = CertifiedNeuralClassifier(method=Newton(noise_std=0.001), random_state=0).fit(X, y)
    before = net.score(X, y)
    certificate = net.unlearn(indices=FORGET).certificate_
    assert certificate.epsilon == np.inf
    assert not certificate.formal
    assert certificate.sigma == 0.001
    assert "set by hand" in repr(certificate)
    assert net.score(X, y) > before - 0.05
    certificate.verify()


def test_the_ball_bound_is_formal_and_costs_twice_the_radius():
    net = CertifiedNeuralClassifier(method=Newton(), C=3.0, max_epochs=2).fit(X, y)
    certificate = net.unlearn(indices=FORGET).certificate_
    assert certificate.formal
    assert certificate.sensitivity == 6.0


@pytest.mark.parametrize("gradient", ["retained", "deleted"])
def test_the_newton_bound_is_the_theorem_and_never_formal(gradient):
    method = Newton(gradient=gradient, hessian_lipschitz=50.0, lambda_min=-0.9, **DECLARED)
    net = CertifiedNeuralClassifier(method=method, C=20.0, random_state=0).fit(X, y)
    certificate = net.unlearn(indices=FORGET).certificate_
    expected = (2 * 20 * (50 * 20 + 1.0) + 50 + 1.0 + (100 if gradient == "deleted" else 0)) / 0.1
    assert certificate.sensitivity == pytest.approx(expected, rel=1e-12)
    assert certificate.sensitivity > 2 * 20
    assert np.isfinite(certificate.epsilon)
    assert not certificate.formal
    assumed = {a.name for a in certificate.assumptions if a.status is Status.ASSUMED}
    assert assumed == {"hessian_lipschitz", "lambda_min"}


@pytest.mark.parametrize(
    ("constants", "name"),
    [
        ({"hessian_lipschitz": 1e-6, "lambda_min": -0.9}, "hessian_lipschitz contradicted"),
        ({"hessian_lipschitz": 50.0, "lambda_min": 3.0}, "lambda_min contradicted"),
    ],
)
def test_a_measurement_that_contradicts_a_constant_refutes_the_certificate(constants, name):
    method = Newton(**constants, **DECLARED)
    net = CertifiedNeuralClassifier(method=method, random_state=0).fit(X, y)
    certificate = net.unlearn(indices=FORGET).certificate_
    assert {a.name: a.status for a in certificate.assumptions}[name] is Status.REFUTED
    assert certificate.epsilon == np.inf


def test_the_gradient_bound_is_a_postcondition_of_fit():
    net = CertifiedNeuralClassifier(method=Newton(gradient_bound=1e-6), max_epochs=1)
    with pytest.raises(NotApplicableError, match="above the declared gradient_bound=1e-06"):
        net.fit(X, y)
    assert not hasattr(net, "n_rows_")


def test_a_missed_residual_is_an_error_and_changes_nothing():
    declared = DECLARED | {"residual_tol": 1e-12}
    method = Newton(hessian_lipschitz=50.0, lambda_min=-0.9, **declared)
    net = CertifiedNeuralClassifier(method=method, random_state=0).fit(X, y)
    before = to_vector(net._trainable())
    with pytest.raises(ToleranceNotReachedError, match="above the declared residual_tol=1e-12"):
        net.unlearn(indices=FORGET)
    np.testing.assert_array_equal(to_vector(net._trainable()), before)


def test_the_influence_form_checks_what_it_adds_to_the_bound():
    declared = DECLARED | {"gradient_bound": 0.5}
    method = Newton(gradient="deleted", hessian_lipschitz=50.0, lambda_min=-0.9, **declared)
    net = CertifiedNeuralClassifier(method=method, random_state=0).fit(X, y)
    with pytest.raises(NotApplicableError, match="at most half of the rows"):
        net.unlearn(indices=np.r_[0:40, 50:90])
    net.unlearn(indices=FORGET)
    with pytest.raises(ToleranceNotReachedError, match="noise of an earlier release counts"):
        net.unlearn(indices=[0])


def test_an_unsolved_system_warns_with_the_cure():
    method = Newton(solver=CG(tol=1e-9, max_iter=1), damping=1e-6, noise_std=0.001)
    net = CertifiedNeuralClassifier(method=method, random_state=0).fit(X, y)
    with pytest.warns(UnlearningWarning, match="not solved to tolerance"):
        net.unlearn(indices=FORGET)


def test_lissa_and_exact_serve_too():
    steps = {}
    for solver in (CG(tol=1e-6), Exact(), LiSSA(steps=400, batch_size=50, random_state=0)):
        net = CertifiedNeuralClassifier(
            method=Newton(solver=solver, noise_std=1e-9), module__hidden=(5,), random_state=0
        ).fit(X, y)
        start = to_vector(net._trainable())
        steps[type(solver)] = to_vector(net.unlearn(indices=FORGET)._trainable()) - start
    scale = np.linalg.norm(steps[Exact])
    assert np.linalg.norm(steps[CG] - steps[Exact]) < 1e-3 * scale
    assert np.linalg.norm(steps[LiSSA] - steps[Exact]) < 0.3 * scale


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"damping": 0.0}, "damping=0.0"),
        ({"damping": None}, "damping=None"),
        ({"gradient": "both"}, "gradient='both'"),
        ({"bound": "best"}, "bound='best'"),
        ({"noise_std": -1.0}, "noise_std=-1.0"),
        ({"bound": "newton"}, "needs hessian_lipschitz, lambda_min, gradient_bound, residual_tol"),
        (
            {"hessian_lipschitz": 1.0, "lambda_min": -2.0, **DECLARED},
            "take damping > 2.0",
        ),
    ],
)
def test_bad_parameters_are_quoted_at_fit(params, message):
    with pytest.raises(NotApplicableError, match=message):
        CertifiedNeuralClassifier(method=Newton(**params)).fit(X, y)


def test_the_step_leaves_the_callers_module_alone():
    net = CertifiedNeuralClassifier(method=Newton(noise_std=0.001), random_state=0).fit(X, y)
    module, weights = net.module_, to_vector(net._trainable())
    net.unlearn(indices=FORGET)
    assert module is not net.module_
    old = np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])
    np.testing.assert_array_equal(old, weights)
