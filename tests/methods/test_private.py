"""Private training: its accountant, its per-row sums, and how many rows it covers."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sk_unlearn import Certificate, CertifiedNeuralClassifier
from sk_unlearn._net import to_vector
from sk_unlearn.accounting import (
    calibrate,
    event_delta,
    event_epsilon,
    gaussian_delta,
    group_delta,
    sampled_gaussian_delta,
    sampled_gaussian_epsilon,
    sampled_gaussian_noise,
)
from sk_unlearn.accounting.sampled_gaussian import _divergence
from sk_unlearn.events import PoissonSampledTraining, event_from_dict
from sk_unlearn.exceptions import CalibrationError, DeletionRequestError, NotApplicableError
from sk_unlearn.methods import PrivateTraining, private
from sk_unlearn.methods.base import Rows
from sk_unlearn.noise import NoiseSource

rng = np.random.default_rng(0)
X = rng.normal(size=(90, 4)).astype(np.float32)
y = (X[:, 0] > 0).astype(int)

noises = st.floats(0.3, 50.0)
rates = st.floats(1e-4, 1.0)
counts = st.integers(1, 5000)


# --- the accountant


@pytest.mark.parametrize("order", [2, 3, 17, 256])
@pytest.mark.parametrize("noise", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("rate", [1e-3, 0.1, 1.0])
def test_the_divergence_is_the_moment_in_high_precision(order, noise, rate):
    with mpmath.workdps(400):
        q, s = mpmath.mpf(rate), mpmath.mpf(noise)
        moment = mpmath.fsum(
            mpmath.binomial(order, k)
            * (1 - q) ** (order - k)
            * q**k
            * mpmath.exp(k * (k - 1) / (2 * s**2))
            for k in range(order + 1)
        )
        truth = mpmath.log(moment) / (order - 1)
        got = _divergence(order, noise, rate)
        assert truth <= got <= truth * (1 + mpmath.mpf("1e-7")) + mpmath.mpf("1e-10")


@pytest.mark.parametrize("order", [2, 5])
def test_the_moment_is_the_renyi_divergence_of_the_sampled_gaussian(order):
    """Quadrature of both directions; the one that is used is the larger."""
    noise, rate = 1.3, 0.2

    def density(x, mean):
        return mpmath.npdf(x, mean, noise)

    def moment(p, q):
        return mpmath.quad(lambda x: p(x) ** order / q(x) ** (order - 1), [-60, -10, 0, 10, 60])

    def mixed(x):
        return (1 - rate) * density(x, 0) + rate * density(x, 1)

    def alone(x):
        return density(x, 0)

    forward = mpmath.log(moment(mixed, alone)) / (order - 1)
    backward = mpmath.log(moment(alone, mixed)) / (order - 1)
    assert backward <= forward
    assert _divergence(order, noise, rate) == pytest.approx(float(forward), rel=1e-7)


@pytest.mark.parametrize(
    "noise, rate, steps, delta",
    [(1.0, 0.01, 1000, 1e-5), (2.0, 0.05, 500, 1e-5), (0.7, 0.02, 300, 1e-6), (5.0, 1.0, 10, 1e-5)],
)
def test_it_agrees_with_the_accountant_of_opacus(noise, rate, steps, delta):
    rdp = pytest.importorskip("opacus.accountants.analysis.rdp")
    orders = [*range(2, 64), *(2**k for k in range(6, 14))]
    spent = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
    theirs, _ = rdp.get_privacy_spent(orders=orders, rdp=spent, delta=delta)
    ours = sampled_gaussian_epsilon(noise, rate, steps, delta)
    assert ours == pytest.approx(theirs, rel=5e-3)


@given(noise=noises, steps=counts, epsilon=st.floats(0.05, 20.0))
def test_without_sampling_it_is_never_below_the_exact_gaussian(noise, steps, epsilon):
    exact = gaussian_delta(steps**0.5 / noise, epsilon)
    assert sampled_gaussian_delta(noise, 1.0, steps, epsilon) >= exact


@given(noise=noises, rate=rates, steps=counts, epsilon=st.floats(0.05, 20.0))
def test_delta_is_monotone(noise, rate, steps, epsilon):
    base = sampled_gaussian_delta(noise, rate, steps, epsilon)
    slack = 1 + 1e-6
    assert sampled_gaussian_delta(noise * 1.3, rate, steps, epsilon) <= base * slack
    assert sampled_gaussian_delta(noise, rate * 0.7, steps, epsilon) <= base * slack
    assert sampled_gaussian_delta(noise, rate, steps, epsilon * 1.3) <= base * slack
    assert sampled_gaussian_delta(noise, rate, steps + 1, epsilon) >= base / slack
    assert sampled_gaussian_delta(noise, rate, steps, epsilon, group=2) >= base / slack


@given(noise=noises, rate=rates, steps=counts, epsilon=st.floats(0.05, 5.0), k=st.integers(1, 30))
def test_groups_are_those_of_the_accountant(noise, rate, steps, epsilon, k):
    row = sampled_gaussian_delta(noise, rate, steps, epsilon / k)
    whole = sampled_gaussian_delta(noise, rate, steps, epsilon, group=k)
    if row > 1e-200:
        assert whole == pytest.approx(group_delta(epsilon / k, row, k)[1], rel=1e-6)


@settings(max_examples=6)
@given(rate=rates, steps=counts, epsilon=st.floats(0.05, 20.0), delta=st.floats(1e-10, 0.1))
def test_noise_and_epsilon_are_inverse_and_on_the_safe_side(rate, steps, epsilon, delta):
    noise = sampled_gaussian_noise(rate, steps, epsilon, delta)
    assert sampled_gaussian_delta(noise, rate, steps, epsilon) <= delta
    if noise > 1e-3:
        assert sampled_gaussian_delta(noise * 0.999, rate, steps, epsilon) > delta
    bought = sampled_gaussian_epsilon(noise, rate, steps, delta)
    assert sampled_gaussian_delta(noise, rate, steps, bought) <= delta
    assert bought <= epsilon * (1 + 1e-9)


@pytest.mark.parametrize("epsilon", [0.0, -1.0])
def test_a_bad_epsilon_is_refused(epsilon):
    with pytest.raises(ValueError, match=f"epsilon={epsilon!r}"):
        sampled_gaussian_delta(1.0, 0.1, 10, epsilon)
    assert sampled_gaussian_delta(1.0, 0.1, 10, np.inf) == 0.0


def test_events_are_calibrated_and_survive_json():
    event = calibrate(PoissonSampledTraining(None, 0.02, 200, 3), 1.0, 1e-5)
    assert event_delta(event, 1.0) <= 1e-5
    assert event_epsilon(event, 1e-5) <= 1.0
    assert event_from_dict(json.loads(json.dumps(event.to_dict()))) == event
    with pytest.raises(CalibrationError, match="incomplete"):
        event_delta(PoissonSampledTraining(None, 0.02, 200, 3), 1.0)
    with pytest.raises(CalibrationError, match="cover fewer rows"):
        calibrate(PoissonSampledTraining(None, 1.0, 200, 10**8), 0.01, 1e-12)


# --- training


def covering(max_deletions=3, epsilon=4.0, **changes):
    noise = sampled_gaussian_noise(0.1, 20, epsilon, 1e-5, group=max_deletions)
    basic = {"learning_rate": 0.5, "steps": 20, "sample_rate": 0.1, "batch_size": 9}
    return PrivateTraining(noise, max_deletions=max_deletions, **(basic | changes))


def fitted(method, **params):
    pytest.importorskip("opacus")
    net = CertifiedNeuralClassifier(
        method=method, random_state=0, anchor="init", module__hidden=(5,), **params
    )
    return net.fit(X, y)


def weights(net):
    return to_vector(net._trainable())


@pytest.fixture
def problem():
    pytest.importorskip("opacus")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    return SimpleNamespace(
        module=module, criterion=nn.CrossEntropyLoss(), retained=Rows(X, y), noise=NoiseSource()
    )


def clipped_one_by_one(module, rows, clip_norm):
    """The oracle: a loop over rows."""
    total = 0.0
    for row in rows:
        module.zero_grad()
        loss = nn.functional.cross_entropy(
            module(torch.as_tensor(X[row : row + 1])), torch.as_tensor(y[row : row + 1])
        )
        loss.backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in module.parameters()]).double().numpy()
        total = total + gradient * min(1.0, clip_norm / np.linalg.norm(gradient))
    return total


@pytest.mark.parametrize("clip_norm", [0.05, 0.8, 100.0])
def test_the_sum_is_that_of_rows_clipped_one_by_one(problem, clip_norm):
    sums = private._ClippedSums(problem, clip_norm)
    point = np.concatenate([p.detach().numpy().ravel() for p in problem.module.parameters()])
    rows = np.array([0, 3, 17, 50])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = sums(point.astype(np.float64), rows)
        alone = sums(point.astype(np.float64), rows[:1])
    np.testing.assert_allclose(
        got, clipped_one_by_one(problem.module, rows, clip_norm), rtol=2e-4, atol=1e-6
    )
    assert np.linalg.norm(alone) <= clip_norm
    assert not sums(point.astype(np.float64), rows[:0]).any()


def test_a_row_without_a_finite_gradient_counts_as_zero_and_touches_no_other(problem):
    broken = X.copy()
    broken[3] = np.inf
    sums = private._ClippedSums(
        SimpleNamespace(**(vars(problem) | {"retained": Rows(broken, y)})), 0.5
    )
    point = np.concatenate([p.detach().numpy().ravel() for p in problem.module.parameters()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with_it = sums(point.astype(np.float64), np.array([0, 3, 17]))
        without = sums(point.astype(np.float64), np.array([0, 17]))
    np.testing.assert_allclose(with_it, without, rtol=1e-5, atol=1e-7)


def test_a_row_moves_the_sum_by_no_more_than_the_norm_it_is_clipped_to(problem):
    """Among rows that make a float32 sum round up where that row is, and not where it is not."""
    unit = 2.0**-14  # of float32 from 2^9 on, where each of 8 sums that are kept at once gets to
    ones, small = torch.ones(2**12), torch.full((8 * round(1 / (1.5 * unit)),), 1.5 * unit)
    rows = torch.cat([ones, small])[:, None]
    with_it, without = (private.clipped_sums([g.double()], 1.0)[0] for g in (rows, rows[1:]))
    assert with_it - without == 1.0
    # in float32 the difference was 1.333 with the routine that summed here before
    assert torch.ones(len(rows)) @ rows != with_it
    sums = private._ClippedSums(problem, 1.0)
    with pytest.raises(NotApplicableError, match="lower sample_rate"):
        sums(np.zeros(37), np.zeros(private._MOST_ROWS + 1, dtype=int))


def test_dropout_is_refused_since_a_row_changes_the_masks_of_the_others(problem):
    """With the masks of a stream that is public, one row more moves the whole sum."""
    module = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    masks = []
    for n_rows in (40, 41):
        torch.manual_seed(0)
        masks.append(module[1](torch.ones(n_rows, 5))[-40:])
    assert not torch.equal(*masks)
    sums = private._ClippedSums(SimpleNamespace(**(vars(problem) | {"module": module})), 1.0)
    size = sum(p.numel() for p in module.parameters())
    with pytest.raises(NotApplicableError, match="draws random numbers"):
        sums(np.zeros(size), np.arange(40))


def test_a_criterion_that_ignores_a_class_is_refused(problem):
    """It divides by the rows that count: one more of them, and the gradient of each changes."""
    ignoring = nn.CrossEntropyLoss(ignore_index=0)
    sums = private._ClippedSums(SimpleNamespace(**(vars(problem) | {"criterion": ignoring})), 1e6)
    point = np.concatenate([p.detach().numpy().ravel() for p in problem.module.parameters()])
    zero, one = (int(np.flatnonzero(y == label)[0]) for label in (0, 1))
    alone, beside = (sums(point.astype(float), np.array(rows)) for rows in ([one], [one, zero]))
    assert np.linalg.norm(beside - alone) > 0.9 * np.linalg.norm(alone)
    with pytest.raises(NotApplicableError, match="ignore_index=0"):
        fitted(covering(), criterion=nn.CrossEntropyLoss, criterion__ignore_index=0)


def test_rows_are_sampled_independently_at_the_declared_rate(problem):
    chosen = np.zeros((4000, len(X)))
    for step, rows in enumerate(private._poisson_samples(problem, 0.13, 4000)):
        chosen[step, rows] = 1
    assert abs(chosen.mean() - 0.13) < 0.003
    sizes = chosen.sum(axis=1)
    assert 0.85 < sizes.var() / (len(X) * 0.13 * 0.87) < 1.15
    assert abs(np.corrcoef(chosen[:-1, 0], chosen[1:, 0])[0, 1]) < 0.08


def test_each_step_is_a_noisy_sum_over_a_constant(problem, monkeypatch):
    """Empty samples leave the noise: its spread is learning_rate * noise * clip / batch_size."""
    monkeypatch.setattr(private, "_poisson_samples", lambda p, rate, steps: [np.arange(0)] * steps)
    method = PrivateTraining(2.0, clip_norm=3.0, learning_rate=0.5, steps=16, batch_size=10)
    net = fitted(method, lam=0.0, C=1e6)
    moved = weights(net) - net._reference_vector()
    expected = 0.5 * 2.0 * 3.0 / 10 * np.sqrt(16)
    assert 0.6 < np.std(moved) / expected < 1.5


def test_the_mechanism_does_not_depend_on_the_number_of_rows():
    net = fitted(covering())
    other = CertifiedNeuralClassifier(
        method=covering(), random_state=0, anchor="init", module__hidden=(5,)
    ).fit(X[:60], y[:60])
    assert net.method_.event(net._setting()) == other.method_.event(other._setting())


def test_deletions_are_counted_over_all_requests_and_leave_the_model_alone():
    net = fitted(covering(max_deletions=3))
    trained = weights(net)
    net.unlearn(indices=[0], epsilon=4.0)
    np.testing.assert_array_equal(weights(net), trained)
    certificate = net.certificate_
    assert certificate.formal
    assert certificate.event.max_deletions == 3
    net = pickle.loads(pickle.dumps(net))
    net.unlearn(indices=[0, 1], epsilon=4.0)
    before = pickle.dumps(net)
    with pytest.raises(DeletionRequestError, match="1 rows to delete after 3 .*max_deletions=3"):
        net.unlearn(indices=[0], epsilon=4.0)
    assert pickle.dumps(net) == before
    net.unlearn(indices=[], epsilon=4.0)
    for audience in ("operator", "public"):
        Certificate.from_json(certificate.to_json(audience)).verify()
    assert "until now" not in certificate.to_json("public")


def test_more_than_it_buys_is_refused_and_none_asks_what_it_buys():
    net = fitted(covering(max_deletions=3, epsilon=4.0))
    with pytest.raises(CalibrationError, match="buys epsilon = 4 "):
        net.unlearn(indices=[0], epsilon=3.9)
    net.unlearn(indices=[0], epsilon=None)
    assert net.certificate_.epsilon == pytest.approx(4.0, rel=1e-6)
    assert net.plan(4.0).passes == 0.0


def test_training_on_and_controls_are_refused():
    net = fitted(covering())
    with pytest.raises(NotApplicableError, match="spend the guarantee"):
        net.partial_fit(X[:3], y[:3])
    with pytest.raises(NotApplicableError, match="no control"):
        net.control(indices=[0], epsilon=4.0)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"sample_rate": 1.5}, "sample_rate=1.5"),
        ({"clip_norm": 0}, "clip_norm=0"),
        ({"max_deletions": 0}, "max_deletions=0"),
    ],
)
def test_parameters_out_of_range_are_refused(changed, message):
    pytest.importorskip("opacus")
    with pytest.raises(NotApplicableError, match=message):
        fitted(PrivateTraining(**changed))


def test_a_module_that_mixes_rows_is_refused():
    pytest.importorskip("opacus")
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    net = CertifiedNeuralClassifier(module, method=PrivateTraining())
    with pytest.raises(NotApplicableError, match="gradient of each row"):
        net.fit(X, (y + (X[:, 1] > 0)))


def test_without_opacus_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ImportError, match=r"sk_unlearn\[private\]"):
        CertifiedNeuralClassifier(method=PrivateTraining()).fit(X, y)


def test_it_learns():
    pytest.importorskip("opacus")
    method = PrivateTraining(0.5, learning_rate=1.0, steps=60, sample_rate=0.3, batch_size=27)
    assert fitted(method).score(X, y) > 0.8
