"""What un-noised state that is kept buys, what it costs, and when it is spent (T18, T19)."""

from __future__ import annotations

import pickle
from math import sqrt

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sk_unlearn import CertifiedNeuralClassifier, Status, head_update
from sk_unlearn.accounting import gaussian_epsilon, gaussian_mu
from sk_unlearn.audit import audit_unlearning
from sk_unlearn.bounds import newton_distance
from sk_unlearn.exceptions import BudgetExceededError, DeletionRequestError, NotApplicableError
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.methods import Newton, Residual
from sk_unlearn.modules import LinearHead

X, y = load_digits(return_X_y=True)
X, y = (X[:400] / 16).astype(np.float32), y[:400]


def secret(horizon=5, noise_seed=None, **params):
    method = Residual(state="secret", horizon=horizon, **params)
    return CertifiedNeuralClassifier(LinearHead, method=method, C=100.0, noise_seed=noise_seed)


def newton(state="secret", **params):
    method = Newton(state=state, **params)
    return CertifiedNeuralClassifier(method=method, max_epochs=1, random_state=0, C=1.0)


def gradient_norm(net):
    """Of the kept weights, on the rows that are left."""
    W = net.method_state_.weights
    risk = HeadRisk(net.rows_.X, net.rows_.y, 10, net.lam_, np.zeros_like(W), "ovr")
    return float(np.linalg.norm(risk.gradient(W)))


def test_every_release_spends_its_share_and_all_of_them_hold_what_was_asked_for():
    net = secret(horizon=4).fit(X, y)
    share = gaussian_mu(1.0, 1e-5) / sqrt(4)
    for release in range(1, 5):
        net.unlearn(indices=[0, 1], epsilon=1.0, delta=1e-5)
        certificate = net.certificate_
        assert certificate.epsilon == 1.0
        assert certificate.mu == pytest.approx(share, rel=1e-10)
        assert certificate.earlier_mu == net.release_mus_[:-1]
        expected = gaussian_epsilon(share * sqrt(release), 1e-5)
        assert certificate.composed == (pytest.approx(expected, rel=1e-8), 1e-5)
        assert certificate.composed[0] <= 1.0
        assert gradient_norm(net) <= dict(certificate.event.constants)["tol"]


def test_the_tolerance_is_that_of_released_state_over_the_root_of_the_horizon():
    tols = []
    for method in (Residual(), Residual(state="secret", horizon=9)):
        net = CertifiedNeuralClassifier(LinearHead, method=method, C=100.0).fit(X, y)
        event = net.plan().event
        tols.append(event.sensitivity)
        assert event.sigma == 0.01
    assert tols[1] == pytest.approx(tols[0] / 3, rel=1e-10)


def test_optimum_and_factors_stay_and_the_factors_are_the_same_objects():
    net = secret().fit(X, y)
    fitted = net.method_state_
    net.unlearn(indices=[3])
    assert net.method_state_.factors is fitted.factors
    assert not np.array_equal(net.method_state_.weights, fitted.weights)
    kept = net.method_state_
    assert net.refresh().method_state_ is kept


def test_the_release_after_the_last_is_refused_and_nothing_changes():
    net = secret(horizon=2).fit(X, y)
    net.unlearn(indices=[0]).unlearn(indices=[])
    before = pickle.dumps(net)
    for attempt in (net.unlearn, net.control):
        with pytest.raises(BudgetExceededError, match="horizon=2 .* larger horizon"):
            attempt(indices=[0])
    with pytest.raises(BudgetExceededError):
        net.plan()
    assert pickle.dumps(net) == before
    net.fit(net.rows_.X, net.rows_.y).unlearn(indices=[0])
    assert len(net.release_mus_) == 1


def test_training_on_does_not_give_releases_back():
    net = secret(horizon=2).fit(X, y)
    net.unlearn(indices=[0]).partial_fit(X[:5], y[:5])
    net.unlearn(indices=[0])
    with pytest.raises(BudgetExceededError):
        net.unlearn(indices=[0])


def test_a_release_weaker_than_an_earlier_one_is_refused_and_a_stronger_one_is_not():
    net = secret().fit(X, y).unlearn(indices=[0], epsilon=1.0)
    before = pickle.dumps(net)
    with pytest.raises(BudgetExceededError, match=r"not.weaker"):
        net.unlearn(indices=[0], epsilon=1.001)
    assert pickle.dumps(net) == before
    net.unlearn(indices=[0], epsilon=0.5)
    with pytest.raises(BudgetExceededError, match=r"not.weaker"):
        net.unlearn(indices=[0], epsilon=1.0)
    assert net.certificate_.composed[0] < 1.0


@pytest.mark.parametrize("horizon", [None, 0, -1, 1.5, "3", True])
def test_secret_state_needs_a_horizon(horizon):
    with pytest.raises(NotApplicableError, match="horizon="):
        secret(horizon=horizon).fit(X, y)


def test_released_state_refuses_a_horizon_and_other_states_are_refused():
    for method, complaint in (
        (Residual(horizon=3), "no horizon is needed"),
        (Residual(state="public"), "state='public'"),
        (Newton(state="public"), "state='public'"),
    ):
        with pytest.raises(NotApplicableError, match=complaint):
            CertifiedNeuralClassifier(LinearHead, method=method).fit(X, y)


def test_an_impossible_request_spends_nothing():
    net = secret().fit(X, y)
    with pytest.raises(DeletionRequestError):
        net.unlearn(indices=[10**6])
    assert net.release_mus_ == ()


def test_the_certificate_rests_on_secrecy_and_is_not_formal():
    certificate = secret().fit(X, y).unlearn(indices=[0]).certificate_
    status = {a.name: a.status for a in certificate.assumptions}
    assert status["secrecy"] is Status.ASSUMED
    assert status["horizon"] is Status.BY_CONSTRUCTION
    assert not certificate.formal
    assert any("anything but the released model" in text for text in certificate.scope)


def test_released_state_says_that_later_releases_do_not_weaken_it():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X, y).unlearn(indices=[0])
    state = next(a for a in net.certificate_.assumptions if a.name == "state")
    assert "(T18)" in state.statement
    assert net.certificate_.formal
    assert net.certificate_.composed is None
    assert any("while the rows were present" in text for text in net.certificate_.scope)


def test_no_deleted_row_stays_in_the_pickle():
    marked = X.copy()
    marked[7] = np.random.default_rng(0).random(64).astype(np.float32)
    net = secret().fit(marked, y).unlearn(indices=[7])
    found = pickle.dumps(net)
    for numbers in (marked[7], marked[7].astype(float)):
        assert numbers.tobytes() not in found


def test_a_release_from_a_pickle_goes_on_counting():
    net = pickle.loads(pickle.dumps(secret(horizon=2).fit(X, y).unlearn(indices=[0])))
    net.unlearn(indices=[0])
    with pytest.raises(BudgetExceededError):
        net.unlearn(indices=[0])


def test_newton_goes_on_from_the_weights_without_noise():
    net = newton().fit(X, y)
    net.unlearn(indices=[0], epsilon=2.0)
    kept = net.method_state_
    assert np.linalg.norm(kept) <= 1.0 + 1e-12
    net.unlearn(indices=[])
    np.testing.assert_allclose(net.method_state_, kept, rtol=1e-14)
    released = newton("released").fit(X, y).unlearn(indices=[0], epsilon=2.0)
    assert released.method_state_ is None


def test_newtons_releases_have_what_was_asked_for_and_compose():
    net = newton().fit(X, y)
    mus = []
    for epsilon in (1.0, 3.0, 2.0):
        net.unlearn(indices=[0], epsilon=epsilon, delta=1e-5)
        mus.append(net.certificate_.mu)
        assert net.certificate_.epsilon == epsilon
        assert net.certificate_.mu == pytest.approx(gaussian_mu(epsilon, 1e-5), rel=1e-9)
    together = sqrt(sum(mu**2 for mu in mus))
    expected = gaussian_epsilon(together, 1e-5)
    assert net.certificate_.composed == (pytest.approx(expected, rel=1e-9), 1e-5)
    assert any("deleted earlier" in text for text in net.certificate_.scope)


def test_two_worlds_that_step_can_be_further_apart_than_a_step_is_from_retraining():
    """(T19) may not compose (T9): ``F = lam/2 |z|^2 + M/6 Re z^3``, with starts on a triangle."""
    M, lam, C = 0.01, 5.0, 1.0

    def newton_step(z):
        H = lam * np.eye(2) + M * np.array([[z.real, -z.imag], [-z.imag, -z.real]])
        gradient = lam * z + M / 2 * np.conj(z**2)
        step = np.linalg.solve(H, [gradient.real, gradient.imag])
        return z - complex(*step)

    # the optimum, 0, and both starts are on the circle of radius C around exp(i pi/6)
    one, other = (newton_step(sqrt(3.0) * C * np.exp(1j * angle)) for angle in (0.0, np.pi / 3))
    bound = newton_distance(C, M, damping=0.0, lambda_min=lam - 2 * M * C, gradient_bound=0.0)
    assert abs(one) < bound and abs(other) < bound
    assert abs(one - other) > 1.2 * bound
    constants = {"hessian_lipschitz": M, "lambda_min": lam, "gradient_bound": 1.0}
    net = newton(bound="newton", residual_tol=1e-3, **constants)
    with pytest.raises(NotApplicableError, match="both worlds step"):
        net.fit(X, y)


def test_noise_by_hand_composes_to_nothing():
    net = newton(noise_std=0.001).fit(X, y).unlearn(indices=[0])
    assert net.release_mus_ == (np.inf,)
    assert net.certificate_.composed == (np.inf, 1e-5)


def test_an_audit_of_the_released_model_stands_and_one_of_the_state_is_refused():
    net = secret(horizon=4, noise_seed=3)
    result = audit_unlearning(net, X[:100], y[:100], forget=[0, 1], n_runs=200)
    assert not result.refuted
    with pytest.raises(ValueError, match="view='weights'"):
        audit_unlearning(net, X[:100], y[:100], forget=[0, 1], n_runs=200, view="state")


def test_factors_that_have_grown_too_old_are_replaced(monkeypatch):
    net = secret(horizon=3).fit(X, y)
    old = net.method_state_.factors
    monkeypatch.setattr(head_update, "_MAX_PASSES", 1)
    net.unlearn(indices=range(20))
    assert net.certificate_.diagnostics["updated_in_passes"] is None
    assert net.method_state_.factors is not old
    monkeypatch.undo()
    fresh = net.method_state_.factors
    net.unlearn(indices=range(2))
    assert net.method_state_.factors is fresh
