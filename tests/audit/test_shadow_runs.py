"""Shadow models: which rows each was trained on and deleted, and what an attack makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.neighbors import KNeighborsClassifier

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.audit.membership import likelihood_ratio_attack, shadow_runs
from sk_unlearn.modules import LinearHead

ROWS = np.arange(40.0).reshape(-1, 1), np.arange(40) % 2
TARGETS = [30, 3, 17, 3]
SURE = np.log(9)


class Remembers(ClassifierMixin, BaseEstimator):
    """Is right with 90% about rows that it holds, and with 10% about others."""

    log: list = []  # noqa: RUF012  (of all clones)

    def __init__(self, honest=True, noise_seed=None):
        self.honest = honest
        self.noise_seed = noise_seed

    def fit(self, X, y):
        self.classes_ = np.array([0, 1])
        self.rows_, self.seen_ = X[:, 0], X[:, 0].copy()
        self.gone_ = np.empty(0)
        Remembers.log.append(self)
        return self

    def unlearn(self, indices, epsilon, delta):
        self.gone_, self.asked_ = self.rows_[indices], (epsilon, delta)
        if self.honest:
            self.rows_ = np.delete(self.rows_, indices)
        return self

    def predict_proba(self, X):
        held = np.isin(X[:, 0], self.rows_)
        right = X[:, 0].astype(int) % 2
        first = np.where(held == (right == 0), 0.9, 0.1)
        return np.column_stack([first, 1 - first])


@pytest.fixture(autouse=True)
def empty_log():
    Remembers.log = []


def test_each_target_is_in_half_of_the_models_and_they_delete_it():
    present, absent = shadow_runs(Remembers(), *ROWS, TARGETS, n_runs=10, epsilon=2.0, delta=1e-4)
    assert present.shape == absent.shape == (10, 3)
    targets = np.array([3, 17, 30])
    assert len(Remembers.log) == 20
    inside = np.array([np.isin(targets, model.seen_) for model in Remembers.log])
    assert (inside[::2] == ~inside[1::2]).all()  # the two models of a pair
    assert 0 < inside[::2].sum() < 30  # not all targets together
    others = [frozenset(np.setdiff1d(model.seen_, targets)) for model in Remembers.log]
    assert {len(rows) for rows in others} == {round(37 / 2)} and len(set(others)) == 20
    for model in Remembers.log:
        assert set(model.gone_) == set(model.seen_) & set(targets)
        assert model.asked_ == (2.0, 1e-4)


def test_confidences_are_those_of_the_right_world_and_order():
    for delete, honest, expected in ((False, True, SURE), (True, False, SURE), (True, True, -SURE)):
        present, absent = shadow_runs(Remembers(honest), *ROWS, TARGETS, n_runs=6, delete=delete)
        np.testing.assert_allclose(present, expected)
        np.testing.assert_allclose(absent, -SURE)


def test_processes_and_seeds():
    with parallel_config(backend="threading"):
        runs = [
            shadow_runs(Remembers(), *ROWS, TARGETS, n_runs=4, n_jobs=n_jobs, delete=False)
            for n_jobs in (None, 2)
        ]
    np.testing.assert_array_equal(*runs)
    shadow_runs(Remembers(noise_seed=1), *ROWS, TARGETS, n_runs=5)
    assert len({model.noise_seed for model in Remembers.log[-10:]}) == 10


class Neighbours(KNeighborsClassifier):
    """Memorises; deletes by fitting again, or says that it did."""

    def __init__(self, n_neighbors=3, honest=True):
        super().__init__(n_neighbors, weights="distance")
        self.honest = honest

    def fit(self, X, y):
        self.data_ = X, y
        return super().fit(X, y)

    def unlearn(self, indices, epsilon, delta):
        if self.honest:
            self.fit(*(np.delete(part, indices, axis=0) for part in self.data_))
        return self


def test_a_deletion_that_did_not_happen_is_seen_and_one_that_did_is_not():
    X, y = load_iris(return_X_y=True)
    y = np.random.default_rng(0).permutation(y)  # nothing but memory says the label
    targets = np.arange(0, 150, 8)
    lie, truth = (
        likelihood_ratio_attack(*shadow_runs(Neighbours(honest=honest), X, y, targets, n_runs=40))
        for honest in (False, True)
    )
    assert lie.auc > 0.95 and lie.tpr_at_fpr(0.01) > 0.5
    assert truth.auc_interval[0] < 0.5 < truth.auc_interval[1]


def test_a_certified_net_is_attacked_as_any_other():
    X, y = load_iris(return_X_y=True)
    net = CertifiedNeuralClassifier(LinearHead, lam=1e-2, noise_seed=0, random_state=0)
    present, absent = shadow_runs(net, X, y, [5, 60, 110], n_runs=6)
    assert np.isfinite(present).all() and np.isfinite(absent).all()
    assert not hasattr(net, "module_") and net.noise_seed == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"targets": []}, "targets=.*names no rows"),
        ({"targets": [40]}, "row 40 of 40"),
        ({"n_runs": 3}, "n_runs=3"),
    ],
)
def test_bad_requests_are_quoted(change, match):
    request = {"targets": TARGETS, "n_runs": 4} | change
    with pytest.raises(ValueError, match=match):
        shadow_runs(Remembers(), *ROWS, **request)
