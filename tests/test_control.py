"""The no-model control and the plan."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn._net import to_vector
from sk_unlearn.events import NoisyIterations
from sk_unlearn.exceptions import CalibrationError, DeletionRequestError, NotApplicableError
from sk_unlearn.methods import (
    GradientClipping,
    ModelClipping,
    OutputPerturbation,
    Residual,
    Retrain,
    _noisy,
)
from sk_unlearn.modules import LinearHead

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 3)).astype(np.float32)
y = (X[:, 0] > 0).astype(int)

METHODS = [
    GradientClipping(0.5, 0.2, 0.1, 5, 16, 1),
    GradientClipping(0.5, 0.2, 0.1, 5, 16, 1, blocks="layer"),
    ModelClipping(0.5, 0.1, 5, 16, 1),
    OutputPerturbation(1),
]


def fitted(method, **params):
    defaults = {"max_epochs": 3, "C": 5.0, "random_state": 0, "module__hidden": (4,)}
    return CertifiedNeuralClassifier(method=method, **(defaults | params)).fit(X, y)


@pytest.mark.parametrize("anchor", ["zero", "init"])
@pytest.mark.parametrize("method", METHODS)
def test_the_control_is_the_same_release_from_the_anchor(method, anchor, monkeypatch):
    """With the noise taken away, it is what the method gives from weights at the anchor."""
    net = fitted(method, anchor=anchor)
    before = pickle.dumps(net)
    monkeypatch.setattr(
        "sk_unlearn.noise.NoiseSource.gaussian", lambda self, size, std: np.full(size, 0.01 * std)
    )
    control = net.control(X[:3], y[:3], epsilon=2.0, delta=1e-6)
    assert pickle.dumps(net) == before
    by_hand = fitted(method, anchor=anchor)
    by_hand._set_weights(by_hand._reference_vector())
    by_hand.unlearn(X[:3], y[:3], epsilon=2.0, delta=1e-6)
    np.testing.assert_array_equal(to_vector(control._trainable()), to_vector(by_hand._trainable()))
    net.unlearn(X[:3], y[:3], epsilon=2.0, delta=1e-6)
    assert control.certificate_.event == net.certificate_.event
    assert control.certificate_.verify().formal
    assert not np.array_equal(to_vector(control._trainable()), to_vector(net._trainable()))
    assert control.score(X, y) >= 0


def test_it_draws_its_own_noise_whatever_the_seed():
    net = fitted(METHODS[0], noise_seed=3)
    one, two = (to_vector(net.control(indices=[0])._trainable()) for _ in range(2))
    assert not np.array_equal(one, two)
    assert net.noise_seed == 3


@pytest.mark.parametrize("method, module", [(Residual(), LinearHead), (Retrain(), None)])
def test_methods_that_do_not_start_from_the_model_give_another_release(method, module):
    net = CertifiedNeuralClassifier(module, method=method, max_epochs=2, random_state=0).fit(X, y)
    control = net.control(indices=[0])
    net.unlearn(indices=[0])
    same = to_vector(control._trainable()) - to_vector(net._trainable())
    assert np.abs(same).max() < 0.2


def test_it_refuses_what_unlearn_refuses_and_needs_a_fit():
    with pytest.raises(NotFittedError):
        CertifiedNeuralClassifier(method=METHODS[0]).control(indices=[0])
    net = fitted(METHODS[0])
    with pytest.raises(DeletionRequestError):
        net.control(indices=[0], epsilon=-1.0)
    with pytest.raises(DeletionRequestError):
        net.control()


# --- plan


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_runs_nothing_and_is_what_runs(method, monkeypatch):
    net = fitted(method)
    before = pickle.dumps(net)
    with monkeypatch.context() as context:
        context.setattr(_noisy, "run", lambda *a: pytest.fail("it ran"))
        context.setattr("sk_unlearn.noise.os.urandom", lambda n: pytest.fail("it drew noise"))
        plan = net.plan(2.0, 1e-6)
        text = repr(plan)
    assert pickle.dumps(net) == before
    certificate = net.unlearn(indices=[1], epsilon=2.0, delta=1e-6).certificate_
    assert (plan.event, plan.sigma, plan.mu) == (
        certificate.event,
        certificate.sigma,
        certificate.mu,
    )
    assert f"{plan.sigma:.6g}" in text
    assert f"{plan.noise_over_radius:.4g}" in text


def test_the_figures_of_a_plan():
    net = fitted(GradientClipping(0.5, 0.2, 0.1, 12, 16, 3), lam=0.5)
    plan = net.plan(1.0, 1e-5)
    p = plan.n_parameters
    left = sum(0.95 ** (2 * k) for k in range(12)) ** 0.5
    assert plan.steps == 12
    assert plan.passes == pytest.approx(12 * 16 / 60 + 3)
    assert plan.noise_norm == pytest.approx(plan.sigma * left * p**0.5, rel=1e-12)
    assert plan.radius == 0.5
    assert plan.noise_over_radius == pytest.approx(plan.noise_norm / 0.5)
    blocks = fitted(GradientClipping((0.3, 0.4), 0.2, 0.1, 12, 16, 3, blocks="layer")).plan()
    assert blocks.steps == 24
    assert blocks.radius == pytest.approx(0.5)
    assert blocks.passes == pytest.approx(24 * 16 / 60 + 3)
    ball = fitted(OutputPerturbation(2)).plan()
    assert (ball.radius, ball.steps, ball.passes) == (5.0, 1, 2.0)
    assert ball.noise_over_radius == pytest.approx(2 * 3.730632 * p**0.5, rel=1e-6)
    model = fitted(ModelClipping(0.5, 0.1, 12, 600, 0)).plan()
    assert model.mu is None
    assert (model.radius, model.steps, model.passes) == (0.5, 12, 12.0)


def test_the_noise_norm_of_a_plan_is_that_of_the_noise_that_is_drawn():
    method = GradientClipping(0.5, 1e-9, 0.1, 12, 16, 0, noise_schedule=np.linspace(0.2, 1, 12))
    net = fitted(method, lam=2.0, module__hidden=(300,), anchor="init")
    plan, anchor = net.plan(1.0, 1e-5), net._reference_vector()
    noise = to_vector(net.unlearn(indices=[])._trainable())
    assert plan.noise_norm == pytest.approx(np.linalg.norm(noise - anchor), rel=0.1)


def test_a_plan_for_noise_by_hand():
    net = fitted(GradientClipping(0.5, 0.2, 0.1, 5, noise_std=3.0))
    plan = net.plan(epsilon=None)
    assert plan.event == NoisyIterations(0.5, 0.2, 0.1, 1e-3, 5, 3.0)
    assert net.unlearn(indices=[0], epsilon=None).certificate_.epsilon == plan.epsilon
    with pytest.raises(CalibrationError):
        net.plan(epsilon=plan.epsilon / 2)
    with pytest.raises(CalibrationError, match="leaves the noise"):
        fitted(METHODS[0]).plan(epsilon=None)
    with pytest.raises(NotFittedError):
        CertifiedNeuralClassifier().plan()
    with pytest.raises(NotApplicableError):
        fitted(GradientClipping(50.0))


def test_methods_without_noise_have_a_plan_too():
    plan = fitted(Retrain()).plan()
    assert (plan.sigma, plan.noise_norm, plan.noise_over_radius, plan.passes) == (None,) * 4
    assert "Retrain" in repr(plan)
