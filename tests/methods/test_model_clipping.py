"""Noisy steps with clipped weights: what runs is what the certificate says."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.base import clone

from sk_unlearn import Certificate, CertifiedNeuralClassifier
from sk_unlearn._net import to_vector
from sk_unlearn.accounting import (
    calibrate,
    event_delta,
    event_epsilon,
    event_mu,
    gaussian_sigma,
    model_clipping_delta,
    model_clipping_sigma,
)
from sk_unlearn.constraint import project
from sk_unlearn.events import ModelClippingIterations, event_from_dict
from sk_unlearn.exceptions import CalibrationError, CertificateError, NotApplicableError
from sk_unlearn.methods import ModelClipping, _noisy
from sk_unlearn.methods.base import Rows, Setting
from sk_unlearn.noise import NoiseSource

rng = np.random.default_rng(0)
X = rng.normal(size=(90, 4)).astype(np.float32)
y = (X[:, 0] + 0.3 * rng.normal(size=90) > 0).astype(int) + (X[:, 1] > 1)


def clipping(**changes):
    basic = {"radius": 0.5, "learning_rate": 0.1, "steps": 7, "batch_size": 16}
    return ModelClipping(**(basic | {"finetune_epochs": 0} | changes))


def fitted(method=None, **params):
    defaults = {"max_epochs": 3, "C": 5.0, "random_state": 0, "module__hidden": (5,)}
    method = clipping() if method is None else method
    return CertifiedNeuralClassifier(method=method, **(defaults | params)).fit(X, y)


def weights(net):
    return to_vector(net._trainable())


# --- accounting of the event


def test_one_step_is_the_gaussian_mechanism():
    event = calibrate(ModelClippingIterations(0.7, 1, None), 1.0, 1e-5)
    assert event.sigma == pytest.approx(gaussian_sigma(1.4, 1.0, 1e-5), rel=1e-9)
    assert event_mu(event) is None


@pytest.mark.parametrize("steps", [1, 6, 40, 1000])
@pytest.mark.parametrize("epsilon", [0.05, 1.0, 8.0])
def test_calibration_is_that_of_the_accountant_and_never_below(steps, epsilon):
    event = calibrate(ModelClippingIterations(0.7, steps, None), epsilon, 1e-5)
    sigma = model_clipping_sigma(0.7, epsilon, 1e-5, steps)
    assert sigma * (1 - 1e-12) <= event.sigma <= sigma * (1 + 1e-6)
    assert event_delta(event, epsilon) == model_clipping_delta(0.7, event.sigma, steps, epsilon)
    assert event_delta(event, epsilon) <= 1e-5
    bought = event_epsilon(event, 1e-5)
    assert event_delta(event, bought) <= 1e-5
    assert bought <= epsilon * (1 + 1e-9)
    assert event_delta(event, bought * 0.999) > 1e-5 or bought <= 1e-6


def test_delta_never_rises_with_the_steps():
    deltas = [event_delta(ModelClippingIterations(0.5, t, 0.4), 1.0) for t in range(1, 60)]
    assert all(b <= a for a, b in pairwise(deltas))
    assert event_delta(ModelClippingIterations(0.5, 5, 0.4), np.inf) == 0.0


def test_the_event_survives_json():
    event = ModelClippingIterations(0.5, 3, 2.0)
    assert event_from_dict(json.loads(json.dumps(event.to_dict()))) == event


# --- what runs


def test_the_release_depends_on_the_deleted_rows_through_the_start_alone():
    """T0: the same start, noise and batches give the same weights in both worlds, bit by bit."""
    gone = [3, 8, 50]
    net = fitted(clipping(finetune_epochs=2), noise_seed=1)
    other = clone(net).fit(np.delete(X, gone, axis=0), np.delete(y, gone))
    assert not np.array_equal(weights(net), weights(other))
    other._set_weights(weights(net))
    np.testing.assert_array_equal(
        weights(net.unlearn(indices=gone)), weights(other.unlearn(indices=[]))
    )


def test_every_step_is_projected_before_its_noise(monkeypatch):
    calls = []
    original = ModelClipping._step

    def wrapped(self, problem, event):
        step = original(self, problem, event)

        def centre(x, g):
            before, gradient = x.copy(), g.copy()
            after = step(x, g)
            calls.append((before, gradient, after.copy()))
            return after

        return centre

    monkeypatch.setattr(ModelClipping, "_step", wrapped)
    net = fitted(lam=0.3, anchor="init")
    anchor, start = net._reference_vector(), weights(net)
    net.unlearn(indices=[0])
    event = net.certificate_.event
    assert len(calls) == event.steps == 7
    np.testing.assert_array_equal(calls[0][0], start)
    projected = 0
    for before, gradient, after in calls:
        moved = before - 0.1 * (gradient + 0.3 * (before - anchor))
        np.testing.assert_allclose(after, project(moved, anchor, 0.5), rtol=1e-9, atol=1e-12)
        assert np.linalg.norm(after - anchor) <= 0.5
        projected += np.linalg.norm(moved - anchor) > 0.5
    assert projected >= 1
    noise = [later[0] - earlier[2] for earlier, later in pairwise(calls)]
    assert 0.7 < np.std(np.concatenate(noise)) / event.sigma < 1.3
    assert np.abs(np.corrcoef(noise) - np.eye(6)).max() < 0.7


def test_gradients_that_are_not_finite_leave_the_step_finite(monkeypatch):
    original = _noisy.BatchGradient.__call__
    monkeypatch.setattr(_noisy.BatchGradient, "__call__", lambda *a: original(*a) * np.nan)
    net = fitted().unlearn(indices=[0])
    assert np.isfinite(weights(net)).all()
    assert net.certificate_.diagnostics["noisy_steps"][0]["gradients_not_finite"] == 7


def test_fewer_steps_than_certified_are_an_error_and_change_nothing(monkeypatch):
    net = fitted()
    before = pickle.dumps(net)
    original = _noisy.batches
    monkeypatch.setattr(
        _noisy, "batches", lambda rows, size, steps, *rest: original(rows, size, steps - 1, *rest)
    )
    with pytest.raises(CertificateError, match="6 noisy steps ran, but .* computed for 7"):
        net.unlearn(indices=[0])
    assert pickle.dumps(net) == before


@pytest.mark.parametrize("at", [0, 3, 6])
def test_an_interruption_at_any_step_changes_nothing(monkeypatch, at):
    net = fitted()
    before = pickle.dumps(net)
    calls, original = [], _noisy.BatchGradient.__call__

    def failing(self, *args):
        calls.append(1)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(_noisy.BatchGradient, "__call__", failing)
    with pytest.raises(KeyboardInterrupt):
        net.unlearn(indices=[0])
    assert pickle.dumps(net) == before


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"radius": -1.0}, "radius=-1.0"),
        ({"learning_rate": np.nan}, "learning_rate=nan"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"finetune_epochs": 0.5}, "finetune_epochs=0.5"),
        ({"noise_std": -2}, "noise_std=-2"),
    ],
)
def test_parameters_out_of_range_are_refused(changed, message):
    with pytest.raises(NotApplicableError, match=message):
        fitted(clipping(**changed))


def test_noise_by_hand_buys_what_the_accountant_says():
    method = clipping(noise_std=2.0)
    expected = event_epsilon(method.event(Setting(1e-3, 5.0, 43, 3)), 1e-5)
    net = fitted(method)
    with pytest.raises(CalibrationError, match="fixed by hand"):
        net.unlearn(indices=[0], epsilon=expected * 0.99)
    certificate = net.unlearn(indices=[0], epsilon=None).certificate_
    assert certificate.epsilon == pytest.approx(expected, rel=1e-6)
    assert certificate.mu is None
    assert certificate.formal


def test_a_certificate_that_claims_other_steps_does_not_verify():
    certificate = fitted().unlearn(indices=[0]).certificate_
    for change in ({"radius": 0.9}, {"steps": 2}, {"sigma": 1e-3}):
        event = replace(certificate.event, **change)
        with pytest.raises(CertificateError):
            replace(certificate, event=event, sigma=event.sigma).verify()
    for audience in ("operator", "public"):
        Certificate.from_json(certificate.to_json(audience)).verify()


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    radius=st.floats(1e-3, 5.0),
    learning_rate=st.floats(1e-4, 2.0),
    lam=st.sampled_from([0.0, 1e-3, 0.5]),
    steps=st.integers(1, 30),
    batch_size=st.integers(1, 200),
    finetune_epochs=st.integers(0, 1),
    anchor=st.sampled_from(["zero", "init"]),
    epsilon=st.floats(0.01, 20.0),
    delta=st.floats(1e-12, 0.1),
)
def test_plan_run_verify(lam, anchor, epsilon, delta, **method):
    net = fitted(ModelClipping(**method), lam=lam, anchor=anchor, max_epochs=1)
    plan = net.plan(epsilon, delta)
    net.unlearn(indices=[0, 7], epsilon=epsilon, delta=delta)
    certificate = net.certificate_.verify()
    assert certificate.formal
    assert certificate.event == plan.event
    assert (certificate.epsilon, certificate.delta) == (epsilon, delta)
    Certificate.from_json(certificate.to_json()).verify()


# --- simulation: two worlds, adversarial gradients


class Adversary:
    weights = torch.zeros(1)

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, x, X, y):
        if self.kind == "repelling":
            return -1e6 * np.sign(x)
        return -1e6 * x + 1e5 * np.array([-x[1], x[0]])


def simulate(kind, sigma, steps, runs):
    """Return the distance-keeping statistic of the two worlds' releases."""
    dimension = 1 if kind == "repelling" else 2
    rows = Rows(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))
    problem = SimpleNamespace(
        retained=rows,
        noise=NoiseSource(),
        verbose=0,
        reference=np.zeros(dimension),
        setting=SimpleNamespace(lam=0.0),
    )
    event = ModelClippingIterations(1.0, steps, sigma)
    step = ModelClipping(radius=1.0, learning_rate=1.0, steps=steps)._step(problem, event)
    start = np.eye(dimension)[0]
    axis = start.copy()
    for _ in range(steps):
        axis = step(axis, Adversary(kind)(axis, None, None))
    ends = np.empty((2, runs))
    for world, sign in enumerate((1.0, -1.0)):
        for k in range(runs):
            x, _ = _noisy.run(
                problem, Adversary(kind), sign * start, step, np.full(steps, sigma), 1, (k,)
            )
            ends[world, k] = x @ axis
    return ends


def violated(ends, epsilon, delta, alpha=1e-3):
    """Whether some half-line shows, with confidence 1 - alpha, that (epsilon, delta) is false."""
    runs = ends.shape[1]
    thresholds = np.linspace(-2, 2, 9) * ends.std()
    level = alpha / (2 * 4 * len(thresholds))
    for one, other in (ends, ends[::-1], -ends, -ends[::-1]):
        for t in thresholds:
            hits, misses = np.sum(one > t), np.sum(other > t)
            low = beta.ppf(level, hits, runs - hits + 1) if hits else 0.0
            high = beta.ppf(1 - level, misses + 1, runs - misses) if misses < runs else 1.0
            if low > np.exp(epsilon) * high + delta:
                return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["repelling", "rotating"])
@pytest.mark.parametrize("steps", [1, 3])
def test_simulated_worlds_respect_the_guarantee_and_a_third_of_the_noise_breaks_it(kind, steps):
    epsilon, delta, runs = 0.5, 0.05, 2000
    sigma = model_clipping_sigma(1.0, epsilon, delta, steps)
    assert not violated(simulate(kind, sigma, steps, runs), epsilon, delta)
    assert violated(simulate(kind, sigma / 3, steps, runs), epsilon, delta)
