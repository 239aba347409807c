"""The comparison table, against slow computations of each of its columns."""

from __future__ import annotations

import sys
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris
from sklearn.metrics import log_loss
from sklearn.preprocessing import FunctionTransformer
from torch.nn.functional import cross_entropy

from sk_unlearn import CertifiedNeuralClassifier, UnlearningPipeline
from sk_unlearn.audit import UnlearningComparisonDisplay, compare
from sk_unlearn.audit._costs import measured
from sk_unlearn.audit.compare import calibration_error
from sk_unlearn.methods import Analytic, OutputPerturbation, Retrain
from sk_unlearn.modules import MLP, LinearHead, RidgeHead

IRIS = load_iris(return_X_y=True)
TRAIN, TEST = [part[::2] for part in IRIS], [part[1::2] for part in IRIS]
FORGET = [3, 0, 3, 40]
KEEP = np.delete(np.arange(75), [0, 3, 40])


@pytest.fixture(scope="module")
def comparison():
    clf = CertifiedNeuralClassifier(LinearHead, lam=1e-2, random_state=0)
    return compare(clf, *TRAIN, FORGET, *TEST)


def row(comparison, start):
    (found,) = [row for row in comparison.rows if row["method"].startswith(start)]
    return found


def test_the_table_has_every_way_to_answer(comparison):
    names = [row["method"] for row in comparison.rows]
    assert names[:3] == ["do nothing", "retrain (same init)", "retrain (other init)"]
    assert names[3].startswith("unlearn, Residual(")
    assert comparison.certificate.n_deleted == 3
    frame = comparison.to_frame()
    assert list(frame.index) == names
    assert set(frame.columns) == {
        *(f"{m}_{s}" for m in ("accuracy", "log_loss", "calibration_error") for s in SETS),
        *("weight_distance", "prediction_distance", "relearn_epochs", "relearn_seconds"),
        *("wall_seconds", "cpu_seconds", "passes", "memory_mib"),
    }
    solved = frame.drop(columns="passes")  # which a solver does not count in epochs
    assert np.isfinite(solved.to_numpy(float)).all()
    assert all(name in repr(comparison) for name in names)
    assert UnlearningComparisonDisplay.from_table(comparison.rows).methods == names


SETS = ("retained", "deleted", "test")


def test_each_figure_is_that_of_a_slow_computation(comparison):
    clf = CertifiedNeuralClassifier(LinearHead, lam=1e-2, random_state=0)
    X, y = TRAIN
    fitted, retrained = clf.fit(X, y), None
    found = row(comparison, "do nothing")
    parts = {"retained": (X[KEEP], y[KEEP]), "deleted": (X[[0, 3, 40]], y[[0, 3, 40]])}
    parts["test"] = tuple(TEST)
    proba = {name: fitted.predict_proba(part[0]).astype(float) for name, part in parts.items()}
    before = [p.detach().numpy().copy() for p in fitted.module_.parameters()]
    for name, (X_part, y_part) in parts.items():
        assert found[f"accuracy_{name}"] == pytest.approx(fitted.score(X_part, y_part))
        p = proba[name] / proba[name].sum(axis=1, keepdims=True)
        expected = log_loss(y_part, p, labels=[0, 1, 2])
        assert found[f"log_loss_{name}"] == pytest.approx(expected)
    retrained = clf.fit(X[KEEP], y[KEEP])
    after = [p.detach().numpy() for p in retrained.module_.parameters()]
    distance = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(before, after, strict=True)))
    assert found["weight_distance"] == pytest.approx(distance, rel=1e-4)
    q = retrained.predict_proba(TEST[0]).astype(float)
    slow = []
    for a, b in zip(proba["test"], q, strict=True):
        a, b = a / a.sum(), b / b.sum()
        m = (a + b) / 2
        divergence = (a * np.log2(a / m)).sum() / 2 + (b * np.log2(b / m)).sum() / 2
        slow.append(np.sqrt(max(divergence, 0)))
    assert found["prediction_distance"] == pytest.approx(np.mean(slow), abs=1e-6)


def test_retraining_is_at_no_distance_from_itself(comparison):
    same = row(comparison, "retrain (same")
    assert same["weight_distance"] == 0 and same["prediction_distance"] == 0
    assert row(comparison, "do nothing")["wall_seconds"] == 0 < same["wall_seconds"]


def relearnt_by_hand(net, X, y, target):
    """Adam from a fresh state, one step on all the deleted rows per epoch."""
    module = deepcopy(net.module_)
    optimizer = torch.optim.Adam(module.parameters(), lr=net.lr)
    rows, labels = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
    for epoch in range(201):
        loss = cross_entropy(module(rows), labels)
        if loss.item() <= target:
            return epoch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return np.inf


def test_relearning_is_training_on_the_deleted_rows_until_they_are_known_as_before():
    net = CertifiedNeuralClassifier(MLP, method=Retrain(), max_epochs=60, random_state=0)
    # whole class 2, so that retraining forgets it
    net.set_params(classes=[0, 1, 2])
    X, y = TRAIN
    gone = np.flatnonzero(y == 2)
    table = compare(net, X, y, gone, *TEST)
    fitted, keep = net.fit(X, y), np.flatnonzero(y != 2)
    before = deepcopy(fitted.module_.state_dict())
    target = 1.05 * log_loss(y[gone], fitted.predict_proba(X[gone]), labels=[0, 1, 2])
    retrained = clone(net).fit(X[keep], y[keep])
    slow = relearnt_by_hand(retrained, X[gone], y[gone], target)
    assert row(table, "retrain (same")["relearn_epochs"] == slow > 5
    assert row(table, "retrain (same")["relearn_seconds"] > 0
    assert row(table, "do nothing")["relearn_epochs"] == 0
    assert all(torch.equal(v, before[k]) for k, v in fitted.module_.state_dict().items())


def test_passes_are_those_that_training_or_the_release_made():
    net = CertifiedNeuralClassifier(MLP, max_epochs=3, random_state=0)
    steps = OutputPerturbation(finetune_epochs=2)
    table = compare(net.set_params(method=steps), *TRAIN, [0], *TEST)
    passes = {r["method"].split("(")[0]: r["passes"] for r in table.rows}
    assert passes == {
        "do nothing": 0,
        "retrain ": 3,
        "unlearn, OutputPerturbation": 2,
        "control ": 2,
    }
    ridge = CertifiedNeuralClassifier(RidgeHead, method=Analytic(), lam=1e-2, random_state=0)
    assert row(compare(ridge, *TRAIN, [0], *TEST), "unlearn")["passes"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counter is Linux's")
@pytest.mark.parametrize("allocate", [np.ones, torch.ones], ids=["numpy", "torch"])
def test_memory_is_what_an_action_adds_at_its_peak(allocate):
    def action():
        held = allocate(3 << 20)  # float64: 24 MiB; float32: 12
        return held.nbytes / 2**20

    for _ in range(2):  # also when the process has been larger before
        size, cost = measured(action)
        assert size - 1 < cost.memory_mib < size + 4
    _, cost = measured(lambda: None)
    assert -1 < cost.memory_mib < 4


def test_an_open_random_state_is_drawn_once():
    clf = CertifiedNeuralClassifier(MLP, method=Retrain(), max_epochs=2)
    table = compare(clf, *TRAIN, [0], *TEST)
    assert row(table, "unlearn")["weight_distance"] == 0  # the same initialisation
    assert row(table, "retrain (other")["weight_distance"] > 0
    assert clf.random_state is None and not hasattr(clf, "module_")


def test_the_initialisation_of_a_net_in_a_pipeline_is_found():
    net = CertifiedNeuralClassifier(MLP, method=Retrain(), max_epochs=2)
    steps = [("half", FunctionTransformer(lambda X: X / 2)), ("net", net)]
    table = compare(UnlearningPipeline(steps), *TRAIN, [0], *TEST)
    assert row(table, "unlearn")["weight_distance"] == 0
    assert row(table, "retrain (other")["weight_distance"] > 0


def test_the_control_is_there_where_the_estimator_has_one():
    class WithControl(CertifiedNeuralClassifier):
        def control(self, *args, **kwargs):
            return self.unlearn(*args, **kwargs)

    table = compare(WithControl(LinearHead, random_state=0), *TRAIN, [0], *TEST)
    assert table.rows[-1]["method"] == "control (no model)"


class Prior(ClassifierMixin, BaseEstimator):
    """Predicts the class frequencies: nothing to initialise, no weights to see."""

    def fit(self, X, y):
        self.classes_, counts = np.unique(y, return_counts=True)
        self.proba_, self.y_ = counts / counts.sum(), y
        return self

    def unlearn(self, indices, epsilon, delta):
        self.certificate_ = SimpleNamespace(method="Prior()")
        return self.fit(None, np.delete(self.y_, indices))

    def predict_proba(self, X):
        return np.tile(self.proba_, (len(X), 1))


def test_any_classifier_that_can_unlearn_is_compared():
    table = compare(Prior(), *TRAIN, [0], *TEST)
    assert [r["method"] for r in table.rows] == [
        "do nothing",
        "retrain (same init)",
        "unlearn, Prior()",
    ]
    assert all(np.isnan(r["weight_distance"]) for r in table.rows)
    assert all(np.isnan(r["relearn_epochs"]) for r in table.rows)
    assert np.isnan([r["passes"] for r in table.rows[1:]]).all()
    assert table.rows[2]["prediction_distance"] == 0 < table.rows[0]["prediction_distance"]


def test_forgetting_nothing_is_refused():
    with pytest.raises(ValueError, match="names no rows"):
        compare(Prior(), *TRAIN, [], *TEST)


def test_calibration_error_against_a_loop_over_bins():
    rng = np.random.default_rng(0)
    proba = rng.dirichlet([0.5] * 4, size=500)
    y = rng.integers(4, size=500)
    confidence, right = proba.max(axis=1), proba.argmax(axis=1) == y
    slow = 0.0
    for b in range(15):
        upper = confidence < (b + 1) / 15 if b < 14 else confidence <= 1
        inside = (confidence >= b / 15) & upper
        if inside.any():
            slow += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(y, proba, range(4)) == pytest.approx(slow)
    assert calibration_error([0, 1], np.eye(2), [0, 1]) == 0
    assert calibration_error([1, 0], np.eye(2), [0, 1]) == 1
