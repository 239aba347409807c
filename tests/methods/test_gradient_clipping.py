"""Noisy steps with a clipped gradient: what runs is what the certificate says."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from itertools import pairwise, permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.base import clone
from skorch.callbacks import Callback
from torch import nn

from sk_unlearn import Certificate, CertifiedNeuralClassifier
from sk_unlearn._net import to_vector
from sk_unlearn.accounting import (
    calibrate,
    event_delta,
    event_epsilon,
    event_mu,
    gaussian_sigma,
    noisy_iterations_sigma,
)
from sk_unlearn.events import NoisyBlocks, NoisyIterations, event_from_dict
from sk_unlearn.exceptions import CalibrationError, CertificateError, NotApplicableError
from sk_unlearn.methods import GradientClipping, OutputPerturbation, _noisy, gradient_clipping
from sk_unlearn.methods.base import Rows
from sk_unlearn.noise import NoiseSource

rng = np.random.default_rng(0)
X = rng.normal(size=(90, 4)).astype(np.float32)
y = (X[:, 0] + 0.3 * rng.normal(size=90) > 0).astype(int) + (X[:, 1] > 1)


def clipping(**changes):
    basic = {"radius": 0.5, "clip_norm": 0.2, "learning_rate": 0.1, "steps": 7}
    return GradientClipping(**(basic | {"batch_size": 16, "finetune_epochs": 0} | changes))


def fitted(method=None, **params):
    defaults = {"max_epochs": 3, "C": 5.0, "random_state": 0, "module__hidden": (5,)}
    method = clipping() if method is None else method
    return CertifiedNeuralClassifier(method=method, **(defaults | params)).fit(X, y)


def weights(net):
    return to_vector(net._trainable())


class Still(nn.Module):
    """Two linear layers whose gradient is zero."""

    def __init__(self, n_features_in=4, n_classes=3):
        super().__init__()
        self.one, self.two = nn.Linear(n_features_in, 40), nn.Linear(40, n_classes)

    def forward(self, X):
        return 0.0 * self.two(self.one(X))


# --- accounting of the events


def test_one_step_is_the_gaussian_mechanism():
    event = calibrate(NoisyIterations(0.7, 0.3, 0.2, 0.5, 1, None), 1.0, 1e-5)
    distance = 0.9 * 2 * 0.7 + 2 * 0.2 * 0.3
    assert event.sigma == pytest.approx(gaussian_sigma(distance, 1.0, 1e-5), rel=1e-9)


@pytest.mark.parametrize("lam", [0.0, 0.4])
@pytest.mark.parametrize("steps", [1, 9, 400])
def test_calibration_is_that_of_the_iteration_accountant_and_never_below(lam, steps):
    event = calibrate(NoisyIterations(0.7, 0.3, 0.2, lam, steps, None), 2.0, 1e-6)
    sigma = noisy_iterations_sigma(0.7, 0.3, 0.2, lam, 2.0, 1e-6, steps)
    assert sigma <= event.sigma <= sigma * (1 + 1e-9)
    assert event_delta(event, 2.0) <= 1e-6
    assert event_epsilon(event, 1e-6) <= 2.0


def test_the_reported_mu_is_the_minimum_over_the_steps_that_ran():
    def mu(steps):
        return event_mu(NoisyIterations(0.1, 1.0, 0.1, 0.0, steps, 1.0))

    mus = [mu(t) for t in range(1, 200)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(mus))
    formula = (0.2 + 0.2 * 199) / np.sqrt(199)
    assert mus[-1] < formula / 2


def test_a_schedule_is_scaled_as_a_whole():
    schedule = (3.0, 2.0, 1.0)
    event = calibrate(NoisyIterations(0.7, 0.3, 0.2, 0.1, 3, None, schedule), 1.0, 1e-5)
    assert (
        event_delta(event, 1.0) <= 1e-5 < event_delta(replace(event, sigma=event.sigma * 0.999), 1)
    )
    flat = calibrate(NoisyIterations(0.7, 0.3, 0.2, 0.1, 3, None), 1.0, 1e-5)
    assert event.sigma < flat.sigma < 3 * event.sigma


def test_the_order_of_the_blocks_does_not_matter_and_they_compose():
    blocks = [NoisyBlocks(r, 0.3, 0.2, 0.1, 20, 4.0) for r in permutations((0.1, 0.5, 0.9))]
    assert len({event_mu(block) for block in blocks}) == 1
    each = [event_mu(NoisyBlocks((r,), 0.3, 0.2, 0.1, 20, 4.0)) for r in (0.1, 0.5, 0.9)]
    assert event_mu(blocks[0]) == pytest.approx(np.linalg.norm(each), rel=1e-12)


def test_a_block_gets_no_minimum_over_the_steps():
    turning = {"clip_norm": 1.0, "learning_rate": 0.1, "lam": 0.0, "steps": 200, "sigma": 1.0}
    assert event_mu(NoisyBlocks((0.1,), **turning)) > 2 * event_mu(NoisyIterations(0.1, **turning))


@pytest.mark.parametrize("kind", [NoisyIterations, NoisyBlocks])
def test_the_counterexample_is_refused_for_blocks_alone(kind):
    start = 0.0 if kind is NoisyIterations else (0.0, 0.0)
    event = kind(start, 1.0, 1.0, 0.0, 2, 0.1, (1000.0, 1.0))
    if kind is NoisyIterations:
        assert event_mu(event) > 0
    else:
        with pytest.raises(ValueError, match="non-decreasing"):
            event_mu(event)


@pytest.mark.parametrize(
    "event",
    [
        NoisyIterations(0.5, 0.1, 0.1, 1e-3, 3, 2.0, (1.0, 2.0, 3.0)),
        NoisyBlocks((0.5, 0.2), 0.1, 0.1, 1e-3, 3, None),
    ],
)
def test_events_survive_json(event):
    assert event_from_dict(json.loads(json.dumps(event.to_dict()))) == event


# --- what runs


def test_the_release_depends_on_the_deleted_rows_through_the_start_alone():
    """T0: the same start, noise and batches give the same weights in both worlds, bit by bit."""
    gone = [3, 8, 50]
    for blocks in (None, "layer"):
        net = fitted(clipping(finetune_epochs=2, blocks=blocks), noise_seed=1)
        other = clone(net).fit(np.delete(X, gone, axis=0), np.delete(y, gone))
        assert not np.array_equal(weights(net), weights(other))
        other._set_weights(weights(net))
        np.testing.assert_array_equal(
            weights(net.unlearn(indices=gone)), weights(other.unlearn(indices=[]))
        )
        assert net.certificate_.event == other.certificate_.event


def test_the_noise_of_two_steps_is_independent():
    steps = 25
    method = GradientClipping(0.1, 1e-9, 1e-3, steps, 16, 0, noise_std=1.0)
    net = CertifiedNeuralClassifier(Still, method=method, lam=0.0, max_epochs=0).fit(X, y)
    centre = weights(net) * min(1, 0.1 / np.linalg.norm(weights(net)))
    noise = weights(net.unlearn(indices=[], epsilon=None)) - centre
    assert len(noise) == 323
    spread = np.std(noise)
    assert 0.85 * np.sqrt(steps) < spread < 1.15 * np.sqrt(steps)  # the same noise: 25, not 5


def test_unit_noise_is_fresh_at_each_step_and_ends_after_the_last(monkeypatch):
    monkeypatch.setattr(_noisy, "_DRAWS_AT_ONCE", 300)
    drawn = np.array(list(_noisy.unit_noise(NoiseSource(), 100, 41)))
    assert drawn.shape == (41, 100)
    correlation = np.corrcoef(drawn)
    assert np.abs(correlation - np.eye(41)).max() < 0.6
    assert 0.9 < drawn.std() < 1.1


class Recorder:
    """Wraps the step of a run and keeps what went in and came out."""

    def __init__(self, monkeypatch):
        self.calls = []
        original = _noisy.clipped_step

        def wrapped(reference, clip_norm, learning_rate, lam):
            step = original(reference, clip_norm, learning_rate, lam)

            def centre(x, g):
                before, gradient = x.copy(), g.copy()
                after = step(x, g)
                self.calls.append((before, gradient, after.copy()))
                return after

            return centre

        monkeypatch.setattr(gradient_clipping, "clipped_step", wrapped)


def test_every_step_is_the_declared_one(monkeypatch):
    seen = Recorder(monkeypatch)
    net = fitted(clipping(radius=0.1), lam=0.3, C=2.0, anchor="init")
    anchor, start = net._reference_vector(), weights(net)
    net.unlearn(indices=[0])
    event = net.certificate_.event
    assert len(seen.calls) == event.steps == 7
    first = seen.calls[0][0] - anchor
    assert np.linalg.norm(first) <= 0.1
    np.testing.assert_allclose(first, (start - anchor) * 0.1 / np.linalg.norm(start - anchor))
    clipped = 0
    for before, gradient, after in seen.calls:
        norm = np.linalg.norm(gradient)
        clipped += norm > 0.2
        expected = before - 0.1 * (min(1, 0.2 / norm) * gradient + 0.3 * (before - anchor))
        np.testing.assert_allclose(after, expected, rtol=1e-7, atol=1e-9)
        moved = after - before + 0.1 * 0.3 * (before - anchor)
        assert np.linalg.norm(moved) <= 0.1 * 0.2 * (1 + 1e-12)
    assert clipped >= 1
    steps = [later[0] - earlier[2] for earlier, later in pairwise(seen.calls)]
    assert 0.7 < np.std(np.concatenate(steps)) / event.sigma < 1.3


def test_the_gradient_is_that_of_the_batch_mean_over_all_tensors():
    net = fitted()
    problem = net._problem(net.rows_, net.rows_.take(np.arange(0)), None, NoiseSource())
    point = weights(net) + 0.1
    everything = np.ones(len(point), dtype=bool)
    gradient = _noisy.BatchGradient(problem, np.zeros_like(point), everything)
    for _ in range(2):  # no gradient is added to an earlier one
        got = gradient(point, torch.as_tensor(X[:10]), torch.as_tensor(problem.retained.y[:10]))
    net._set_weights(point)
    net.module_.zero_grad()
    nn.functional.cross_entropy(
        net.module_(torch.as_tensor(X[:10])), torch.as_tensor(problem.retained.y[:10])
    ).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in net._trainable()])
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-7)
    half = everything.copy()
    half[:25] = False
    part = _noisy.BatchGradient(problem, point, half)
    again = part(point[half], torch.as_tensor(X[:10]), torch.as_tensor(problem.retained.y[:10]))
    np.testing.assert_allclose(again, expected.numpy()[half], rtol=1e-5, atol=1e-7)


def test_batches_are_the_retained_rows_exactly_as_often_as_declared():
    rows = Rows(np.arange(10, dtype=np.float32)[:, None], np.arange(10))
    cpu = torch.device("cpu")
    for size, steps in ((4, 7), (10, 2), (64, 3), (1, 13)):
        seen = list(_noisy.batches(rows, size, steps, [0], cpu))
        assert len(seen) == steps
        assert {len(b) for _, b in seen} == {min(size, 10)}
        per_epoch = 10 // min(size, 10)
        for start in range(0, steps - per_epoch, per_epoch):
            epoch = torch.cat([b for _, b in seen[start : start + per_epoch]])
            assert len(epoch.unique()) == len(epoch)
        assert all(torch.equal(a[:, 0].long(), b) for a, b in seen)
    one, two, three = (
        torch.cat([b for _, b in _noisy.batches(rows, 4, 20, [seed], cpu)]) for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_batches_do_not_depend_on_how_far_training_has_come():
    seeds = []
    for epochs in (1, 4):
        net = fitted(max_epochs=epochs)
        seeds.append(net._problem(net.rows_, net.rows_, None, NoiseSource()).seed)
    assert seeds[0] == seeds[1]
    net.unlearn(indices=[0])
    assert net._problem(net.rows_, net.rows_, None, NoiseSource()).seed != seeds[0]


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


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("at", [0, 3, 6])
def test_an_interruption_at_any_step_changes_nothing(monkeypatch, error, at):
    net = fitted()
    before = pickle.dumps(net)
    calls, original = [], _noisy.BatchGradient.__call__

    def failing(self, *args):
        calls.append(1)
        if len(calls) == at + 1:
            raise error
        return original(self, *args)

    monkeypatch.setattr(_noisy.BatchGradient, "__call__", failing)
    with pytest.raises(error):
        net.unlearn(indices=[0])
    assert pickle.dumps(net) == before


def test_a_gradient_that_is_not_finite_counts_as_zero(monkeypatch):
    net = fitted()
    original = _noisy.BatchGradient.__call__

    def broken(self, *args):
        gradient = original(self, *args)
        gradient[3] = np.nan
        gradient[4] = np.inf
        return gradient

    seen = Recorder(monkeypatch)
    monkeypatch.setattr(_noisy.BatchGradient, "__call__", broken)
    net.unlearn(indices=[0])
    assert all(not gradient.any() for _, gradient, _ in seen.calls)
    assert net.certificate_.diagnostics["noisy_steps"][0]["gradients_not_finite"] == 7


def test_the_last_noise_puts_the_weights_on_the_public_grid():
    net = fitted().unlearn(indices=[0])
    step = 2.0 ** (np.floor(np.log2(net.certificate_.sigma)) - 12)
    np.testing.assert_array_equal(weights(net) / step, np.rint(weights(net) / step))


def test_dropout_and_frozen_weights_are_served_and_the_callers_generator_is_left_alone():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    module[0].bias.requires_grad_(False)
    net = CertifiedNeuralClassifier(module, method=clipping(), max_epochs=2, random_state=0)
    net.fit(X, y)
    frozen = net.module_[0].bias.clone()
    state = torch.get_rng_state()
    net.unlearn(indices=[1])
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(net.module_[0].bias, frozen)
    assert net.certificate_.formal


# --- blocks


def test_blocks_run_one_after_the_other_from_their_own_projection(monkeypatch):
    seen = Recorder(monkeypatch)
    net = fitted(GradientClipping((0.5, 0.3), 0.2, 0.1, 4, 16, 0, blocks=["layers.2", "layers.0"]))
    net.unlearn(indices=[0])
    sizes = [len(before) for before, _, _ in seen.calls]
    assert sizes == [18] * 4 + [25] * 4
    for number, radius in ((0, 0.5), (4, 0.3)):
        assert np.linalg.norm(seen.calls[number][0]) <= radius
    assert net.certificate_.event.radii == (0.5, 0.3)
    assert net.certificate_.formal


def test_every_weight_is_noised_by_layer():
    net = fitted(GradientClipping(0.1, 1e-6, 1e-6, 3, 16, 0, blocks="layer", noise_std=1.0))
    moved = np.abs(weights(net)) * 0
    for _ in range(2):
        before = weights(net)
        moved += np.abs(weights(net.unlearn(indices=[], epsilon=None)) - before)
    assert moved.min() > 1e-3


@pytest.mark.parametrize(
    "blocks, message",
    [
        ("tensor", "blocks='tensor'"),
        (["layers.0"], "layers.2.weight, layers.2.bias"),
        (["layers.0", "layers", "layers.2"], "exactly one"),
        (["layers.0", "layers.2", "head"], "'head' names no"),
    ],
)
def test_blocks_must_cut_the_weights_into_parts(blocks, message):
    with pytest.raises(NotApplicableError, match=message):
        fitted(GradientClipping(0.1, 0.1, 0.1, 2, blocks=blocks))


# --- parameters


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"radius": 0.0}, "radius=0.0"),
        ({"radius": 6.0}, "within C=5"),
        ({"radius": (0.1, 0.2)}, "without blocks"),
        ({"radius": (0.1,), "blocks": "layer"}, "1 radii for 2 blocks"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"clip_norm": np.inf}, "clip_norm=inf"),
        ({"learning_rate": 2000.0}, "learning_rate=2000.0.*must contract"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"batch_size": True}, "batch_size=True"),
        ({"finetune_epochs": -1}, "finetune_epochs=-1"),
        ({"noise_std": 0.0}, "noise_std=0.0"),
        ({"noise_schedule": (1.0, 2.0)}, "2 factors for steps=7"),
        ({"noise_schedule": (1.0,) * 6 + (0.0,)}, "noise_schedule=0.0"),
        ({"noise_schedule": (1000.0,) + (1.0,) * 6, "blocks": "layer"}, "must not decrease"),
    ],
)
def test_what_the_theorem_does_not_cover_is_refused_before_training(changed, message, monkeypatch):
    monkeypatch.setattr(
        CertifiedNeuralClassifier, "_gradient_steps", lambda *a: pytest.fail("training began")
    )
    with pytest.raises(NotApplicableError, match=message):
        fitted(clipping(**changed))


def test_noise_by_hand_buys_what_the_accountant_says():
    net = fitted(clipping(noise_std=2.0))
    expected = event_epsilon(NoisyIterations(0.5, 0.2, 0.1, 1e-3, 7, 2.0), 1e-5)
    with pytest.raises(CalibrationError, match=f"buys epsilon = {expected:.6g}"):
        net.unlearn(indices=[0], epsilon=expected * 0.99)
    net.unlearn(indices=[0], epsilon=None)
    assert net.certificate_.epsilon == pytest.approx(expected, rel=1e-6)
    assert net.certificate_.sigma == 2.0
    with pytest.raises(CalibrationError, match="leaves the noise to be calibrated"):
        fitted().unlearn(indices=[0], epsilon=None)


# --- fine-tuning (T7)


@pytest.mark.parametrize("method", [clipping(finetune_epochs=2), OutputPerturbation(2)])
def test_fine_tuning_starts_from_the_release_with_nothing_from_before(method, monkeypatch):
    given = []
    original = CertifiedNeuralClassifier._fine_tune

    def spy(self, released, epochs, retained):
        tuned = original(self, released, epochs, retained)
        given.append((released, epochs, retained, tuned))
        return tuned

    monkeypatch.setattr(CertifiedNeuralClassifier, "_fine_tune", spy)
    net = fitted(method).unlearn(indices=[0, 1])
    ((released, epochs, retained, tuned),) = given
    assert (epochs, len(retained)) == (2, len(X) - 2)
    np.testing.assert_array_equal(weights(net), tuned)
    assert not np.allclose(released, tuned)
    other = fitted(method, max_epochs=1)  # another past, the same release: the same weights
    np.testing.assert_array_equal(original(other, released, 2, retained), tuned)
    assert not net.optimizer_.state
    assert len(net.history_) == 0


def test_fine_tuning_runs_no_callback_that_could_bring_old_weights_back():
    class Restore(Callback):
        """Keeps the first weights it sees and puts them back at the end of training."""

        def on_train_end(self, net, **kwargs):
            if not hasattr(self, "kept"):
                self.kept = weights(net)
            net._set_weights(self.kept)

    net = fitted(clipping(finetune_epochs=1), callbacks=[("restore", Restore())])
    before = weights(net)
    assert np.abs(weights(net.unlearn(indices=[0])) - before).max() > 1e-3
    assert len(net.callbacks) == 1


def test_fine_tuning_that_diverges_changes_nothing(monkeypatch):
    net = fitted(clipping(finetune_epochs=1))
    before = pickle.dumps(net)

    def diverge(self, *args, **kwargs):
        self._set_weights(np.full(len(weights(self)), np.nan))

    monkeypatch.setattr(CertifiedNeuralClassifier, "_gradient_steps", diverge)
    with pytest.raises(ValueError, match="fine-tuning diverged"):
        net.unlearn(indices=[0])
    assert pickle.dumps(net) == before


# --- certificates


def test_a_certificate_that_claims_other_steps_does_not_verify():
    certificate = fitted().unlearn(indices=[0]).certificate_
    assert certificate.verify() is certificate
    for change in ({"radius": 0.9}, {"clip_norm": 0.5}, {"steps": 2}, {"sigma": 1e-3}):
        event = replace(certificate.event, **change)
        forged = replace(certificate, event=event, sigma=event.sigma)
        with pytest.raises(CertificateError):
            forged.verify()
    for audience in ("operator", "public"):
        Certificate.from_json(certificate.to_json(audience)).verify()


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    radius=st.floats(1e-3, 5.0),
    clip_norm=st.floats(1e-3, 10.0),
    learning_rate=st.floats(1e-4, 2.0),
    lam=st.sampled_from([0.0, 1e-3, 0.5]),
    steps=st.integers(1, 30),
    batch_size=st.integers(1, 200),
    finetune_epochs=st.integers(0, 1),
    blocks=st.sampled_from([None, "layer", ["layers.2", "layers.0"]]),
    rising=st.booleans(),
    anchor=st.sampled_from(["zero", "init"]),
    epsilon=st.floats(0.01, 20.0),
    delta=st.floats(1e-12, 0.1),
)
def test_plan_run_verify(lam, anchor, rising, epsilon, delta, **method):
    schedule = tuple(np.linspace(0.5, 1.0, method["steps"])) if rising else None
    method = GradientClipping(noise_schedule=schedule, **method)
    net = fitted(method, lam=lam, anchor=anchor, max_epochs=1)
    plan = net.plan(epsilon, delta)
    net.unlearn(indices=[0, 7], epsilon=epsilon, delta=delta)
    certificate = net.certificate_.verify()
    assert certificate.formal
    assert certificate.event == plan.event
    assert (certificate.epsilon, certificate.delta) == (epsilon, delta)
    assert certificate.sigma == plan.sigma
    ran = certificate.diagnostics["noisy_steps"]
    assert plan.steps == method.steps * len(ran)
    Certificate.from_json(certificate.to_json()).verify()


# --- simulation: two worlds, adversarial gradients


class Adversary:
    """Stands in for the gradient of a net: any function of the point."""

    weights = torch.zeros(1)

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, x, X, y):
        if self.kind == "repelling":
            return -1e6 * np.sign(x)
        return 1e6 * np.array([-x[1], x[0]]) - 2e6 * x


def simulate(kind, sigma, steps, runs):
    """Return where the two worlds end, along the line that joins them without noise."""
    dimension = 1 if kind == "repelling" else 2
    rows = Rows(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))
    problem = SimpleNamespace(retained=rows, noise=NoiseSource(), verbose=0)
    step = _noisy.clipped_step(np.zeros(dimension), 0.5, 0.4, 0.5)
    start = np.eye(dimension)[0]
    axis = start.copy()
    for _ in range(steps):
        axis = step(axis, Adversary(kind)(axis, None, None))
    ends = np.empty((2, runs))
    for world, sign in enumerate((1.0, -1.0)):
        for k in range(runs):
            x, trace = _noisy.run(
                problem, Adversary(kind), sign * start, step, np.full(steps, sigma), 1, (k,)
            )
            assert trace.steps == steps
            ends[world, k] = x @ axis
    return ends / np.linalg.norm(axis)


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
@pytest.mark.parametrize("steps", [1, 4])
def test_simulated_worlds_respect_the_guarantee_and_a_third_of_the_noise_breaks_it(kind, steps):
    epsilon, delta, runs = 0.5, 0.05, 2000
    sigma = noisy_iterations_sigma(1.0, 0.5, 0.4, 0.5, epsilon, delta, steps)
    honest = simulate(kind, sigma, steps, runs)
    assert not violated(honest, epsilon, delta)
    assert violated(simulate(kind, sigma / 3, steps, runs), epsilon, delta)
