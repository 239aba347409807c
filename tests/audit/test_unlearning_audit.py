"""The audit refutes each lie on a worst case, and lets every honest method stand on it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from audit.worst_case import (
    FORGET,
    C,
    FifthOfTheNoise,
    HandSetNewton,
    KeepsTheOptimizer,
    LetsBuffersThrough,
    NormalisedHead,
    OneWeightBare,
    ReusedNoise,
    X,
    buffers_case,
    net,
    weights_of,
    y,
)
from scipy.special import ndtri
from sklearn.base import BaseEstimator
from sklearn.datasets import load_iris

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.accounting import gaussian_epsilon, gaussian_mu
from sk_unlearn.audit import audit_unlearning
from sk_unlearn.audit._views import score_runs
from sk_unlearn.events import PoissonSampledTraining
from sk_unlearn.methods import (
    GradientClipping,
    ModelClipping,
    Newton,
    OutputPerturbation,
    PrivateTraining,
    Residual,
    Retrain,
)
from sk_unlearn.modules import LinearHead

RUNS, MANY = 120, 400


class Toy(BaseEstimator):
    """A release of 0 or `distance`, with noise 1, and a certificate that says `mu`."""

    fits = 0

    def __init__(self, distance=1.0, mu=1.0, epsilon=None, noise_seed=0, event=None):
        self.distance = distance
        self.mu = mu
        self.epsilon = epsilon
        self.noise_seed = noise_seed
        self.event = event

    def fit(self, X, y):
        type(self).fits += 1
        self.center_ = self.distance * float(len(X) == 4)
        self.stated_ = gaussian_epsilon(self.mu, 1e-5) if self.epsilon is None else self.epsilon
        return self

    def unlearn(self, indices, epsilon, delta):
        rng = np.random.default_rng(self.noise_seed)
        noise = rng.normal(size=3)
        released = torch.tensor(np.array([self.center_, 0, 0]) + noise, requires_grad=True)
        self.module_ = SimpleNamespace(parameters=lambda: [released])
        self.certificate_ = SimpleNamespace(
            epsilon=self.stated_, delta=delta, mu=self.mu, method="Toy()", event=self.event
        )
        return self


ROWS = np.zeros((4, 1)), np.zeros(4)


def toy_audit(n_runs=2000, **parameters):
    return audit_unlearning(Toy(**parameters), *ROWS, [0], n_runs=n_runs)


def test_an_honest_gaussian_stands_and_the_bound_is_near_the_truth():
    result = toy_audit()
    assert not result.refuted
    assert 0.6 < result.mu_lower <= 1.0
    assert 0 < result.epsilon_lower <= result.certified_epsilon
    assert result.mu_epsilon_lower == gaussian_epsilon(result.mu_lower, 1e-5)


def test_a_larger_distance_is_refuted():
    result = toy_audit(distance=2.0)
    assert result.refuted and 1.0 < result.mu_lower <= 2.0
    assert "REFUTED" in repr(result) and "Toy()" in repr(result)


def test_without_a_mu_only_epsilon_can_refute():
    honest = gaussian_epsilon(2.0, 1e-5)
    result = toy_audit(distance=2.0, mu=None, epsilon=honest)
    assert result.mu_lower > 1 and not result.refuted and result.mu_epsilon_lower is None
    assert toy_audit(distance=8.0, mu=None, epsilon=1.0).refuted


def test_an_infinite_epsilon_promises_nothing_that_could_be_refuted():
    result = toy_audit(distance=8.0, epsilon=np.inf)
    assert result.mu_lower > 1 and not result.refuted


def test_exact_deletion_is_refuted_by_any_difference():
    assert toy_audit(distance=1.0, mu=0.0, epsilon=0.0).refuted
    result = toy_audit(distance=0.0, mu=0.0, epsilon=0.0)
    assert not result.refuted and result.mu_lower == 0


@pytest.mark.slow
def test_honest_releases_are_refuted_no_more_often_than_promised():
    """At exactly the certified distance: 100 audits at 80%, at most 20% refuted."""
    refuted = sum(
        audit_unlearning(Toy(), *ROWS, [0], n_runs=200, confidence=0.8, random_state=seed).refuted
        for seed in range(100)
    )
    assert refuted <= 0.2 * 100


def test_each_world_is_fitted_once_unless_the_noise_is_in_the_training():
    Toy.fits = 0
    toy_audit(n_runs=100)
    assert Toy.fits == 2
    event = PoissonSampledTraining(1.0, 0.1, 10, 1)
    toy_audit(n_runs=100, event=event)
    assert Toy.fits == 2 + 2 * 100


def test_the_direction_comes_from_runs_that_are_not_scored():
    rng = np.random.default_rng(0)
    present, absent = rng.normal(size=(2, 100, 500))
    scores = score_runs("weights", present, absent, None)
    assert [len(s) for s in scores] == [75, 75]
    # on their own direction these two equal laws would look 20 standard deviations apart
    gap = abs(scores[0].mean() - scores[1].mean()) / scores[0].std()
    assert gap < -ndtri(1e-4) * np.sqrt(2 / 75)
    known = score_runs("weights", present, absent, np.ones(500))
    np.testing.assert_allclose(known, [present.sum(axis=1), absent.sum(axis=1)], rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"forget": []}, "names no rows"),
        ({"forget": [0.5]}, "0.5"),
        ({"forget": [4]}, "row 4 of 4"),
        ({"forget": [-1]}, "row -1 of 4"),
        ({"forget": range(4)}, "all 4 rows"),
        ({"view": "soul"}, "'soul'"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"n_runs": 4}, "too few"),
        ({"confidence": 1.5}, "confidence"),
    ],
)
def test_bad_requests_are_quoted(change, match):
    request = {"forget": [0], "n_runs": 40} | change
    with pytest.raises(ValueError, match=match):
        audit_unlearning(Toy(), *ROWS, **request)


class OnlyPredicts(BaseEstimator):
    """Predicts what it remembers of the deleted row, with noise."""

    def __init__(self, noise_seed=0):
        self.noise_seed = noise_seed

    def fit(self, X, y):
        self.center_, self.classes_ = 5.0 * (len(X) == 4), np.array([0, 1])
        return self

    def unlearn(self, indices, epsilon, delta):
        self.logit_ = self.center_ + np.random.default_rng(self.noise_seed).normal()
        self.certificate_ = SimpleNamespace(
            epsilon=1.0,
            delta=delta,
            mu=gaussian_mu(1.0, delta),
            method="OnlyPredicts()",
            event=None,
        )
        return self

    def predict_proba(self, X):
        p = 1 / (1 + np.exp(-self.logit_))
        return np.tile([p, 1 - p], (len(X), 1))


def test_predictions_alone_can_refute():
    request = (np.arange(4.0).reshape(-1, 1), np.array([0, 1, 0, 1]), [0])
    assert audit_unlearning(OnlyPredicts(), *request, n_runs=200, view="predictions").refuted
    with pytest.raises(TypeError, match="no module_"):
        audit_unlearning(OnlyPredicts(), *request, n_runs=200)


class Counting(OutputPerturbation):
    centers = 0

    def center(self, problem, event):
        type(self).centers += 1
        return super().center(problem, event)


def test_the_unnoised_work_runs_once_in_each_world_and_the_estimator_is_not_changed():
    Counting.centers = 0
    estimator = net(Counting(), max_epochs=2)
    result = audit_unlearning(estimator, X, y, FORGET, n_runs=40)
    assert Counting.centers == 2
    assert not hasattr(estimator, "module_") and estimator.noise_seed == 0
    assert len(result.scores_present) == 40 and len(np.unique(result.scores_present)) == 40


@pytest.mark.slow
def test_processes_change_nothing():
    results = [
        audit_unlearning(net(OutputPerturbation()), X, y, FORGET, n_runs=40, n_jobs=n_jobs)
        for n_jobs in (None, 2)
    ]
    np.testing.assert_array_equal(*[result.scores_present for result in results])
    np.testing.assert_array_equal(*[result.scores_absent for result in results])


def test_the_worst_case_is_one():
    """Without noise the two worlds end at opposite poles of the ball."""
    with_rows = weights_of(net(OutputPerturbation()).fit(X, y))
    without = weights_of(net(OutputPerturbation()).fit(X[:10], y[:10]))
    np.testing.assert_allclose(np.linalg.norm(with_rows - without), 2 * C, rtol=1e-3)


def verdict(estimator, case=(X, y, FORGET), view="weights", n_runs=RUNS):
    result = audit_unlearning(estimator, *case, n_runs=n_runs, view=view)
    print(result)
    return result.refuted


@pytest.mark.slow
@pytest.mark.parametrize("view", ["weights", "predictions"])
def test_a_fifth_of_the_noise_is_refuted_and_all_of_it_is_not(view):
    assert verdict(net(FifthOfTheNoise()), view=view, n_runs=MANY)
    assert not verdict(net(OutputPerturbation()), view=view, n_runs=MANY)


@pytest.mark.slow
@pytest.mark.parametrize("view", ["weights", "predictions"])
@pytest.mark.parametrize("method", [ReusedNoise(), HandSetNewton(damping=1e6)], ids=repr)
def test_a_lie_about_the_noise_is_refuted(method, view):
    assert verdict(net(method), view=view)


@pytest.mark.slow
def test_buffers_that_were_let_through_are_refuted():
    liar = net(LetsBuffersThrough(), module=NormalisedHead)
    assert verdict(liar, buffers_case(), "state")
    assert not verdict(liar, buffers_case(), "weights")  # which do not show it


@pytest.mark.slow
def test_a_weight_without_noise_is_refuted_where_each_number_is_scaled_by_itself():
    assert verdict(net(OneWeightBare()), view="state")


@pytest.mark.slow
def test_a_kept_optimizer_is_refuted():
    assert verdict(net(OutputPerturbation(), KeepsTheOptimizer, lr=1.0), view="state")
    assert not verdict(net(OutputPerturbation(), lr=1.0), view="state")


@pytest.mark.slow
@pytest.mark.parametrize("view", ["weights", "predictions", "state"])
@pytest.mark.parametrize(
    "method",
    [
        OutputPerturbation(),
        Newton(damping=1e6),
        GradientClipping(radius=C, clip_norm=1e-3, steps=3, finetune_epochs=0),
        GradientClipping(radius=C, clip_norm=1.0, steps=3, finetune_epochs=2),
        ModelClipping(radius=C, steps=3, finetune_epochs=0),
        Retrain(),
    ],
    ids=repr,
)
def test_honest_methods_stand_on_the_worst_case(method, view):
    assert not verdict(net(method), view=view)


@pytest.mark.slow
def test_retraining_stands_with_buffers():
    assert not verdict(net(Retrain(), module=NormalisedHead), buffers_case(), "state")


@pytest.mark.slow
@pytest.mark.parametrize("view", ["weights", "predictions", "state"])
def test_residual_stands(view):
    X, y = load_iris(return_X_y=True)
    honest = CertifiedNeuralClassifier(
        LinearHead, lam=1e-2, method=Residual(), random_state=0, noise_seed=0
    )
    assert not verdict(honest, (X, y, np.arange(45, 55)), view)


@pytest.mark.slow
def test_private_training_stands():
    pytest.importorskip("opacus")
    method = PrivateTraining(200.0, steps=3, sample_rate=0.02, batch_size=2, max_deletions=90)
    assert not verdict(net(method), n_runs=60)
