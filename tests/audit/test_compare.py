"""The comparison table, against slow computations of each of its columns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.metrics import log_loss
from sklearn.preprocessing import FunctionTransformer

from sk_unlearn import CertifiedNeuralClassifier, UnlearningPipeline
from sk_unlearn.audit import UnlearningComparisonDisplay, compare
from sk_unlearn.audit.compare import calibration_error
from sk_unlearn.methods import Retrain
from sk_unlearn.modules import MLP, LinearHead

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
        *("weight_distance", "prediction_distance", "wall_seconds", "cpu_seconds"),
    }
    assert np.isfinite(frame.to_numpy(float)).all()
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
