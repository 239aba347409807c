"""Corrections: the result is a fit on the corrected data, and nothing of the old rows stays."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reachable import buffers
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier, CertifiedNeuralRegressor, Status
from sk_unlearn._net import to_vector
from sk_unlearn.accounting import calibrate
from sk_unlearn.exceptions import (
    DeletionRequestError,
    NotApplicableError,
    ToleranceNotReachedError,
    UnknownRowError,
    UnlearningWarning,
)
from sk_unlearn.methods import (
    Analytic,
    CertifiedRemoval,
    DescentToDelete,
    GradientClipping,
    ModelClipping,
    Newton,
    OutputPerturbation,
    PrivateTraining,
    Residual,
    Retrain,
    SekhariNewton,
    UnlearningMethod,
)
from sk_unlearn.modules import MLP, FeatureHead, LinearHead, Linearized, LinearRegressor, RidgeHead
from sk_unlearn.pipeline import UnlearningPipeline
from sk_unlearn.preprocessing import PublicScaler

X, y = load_iris(return_X_y=True)
_, _first = np.unique(X, axis=0, return_index=True)
X, y = X[np.sort(_first)].astype(np.float32) / 10, y[np.sort(_first)]
AT = np.array([90, 3, 17, 60])
NEW_X = (X[AT] + np.float32(0.05)).astype(np.float32)
NEW_Y = np.array([1, 0, 0, 1])
FIXED_X, FIXED_Y = X.copy(), y.copy()
FIXED_X[AT], FIXED_Y[AT] = NEW_X, NEW_Y

SMALL = {"row_norm": 2.0, "max_fraction": 0.1}
CASES = {
    "residual": (Residual(tol=1e-10), LinearHead, {}),
    "residual-softmax": (Residual(tol=1e-10), LinearHead, {"module__multi_class": "multinomial"}),
    "analytic": (Analytic(tol=1e-10), RidgeHead, {}),
    "sekhari": (SekhariNewton(tol=1e-10, **SMALL), LinearHead, {"lam": 0.5}),
    "descent": (DescentToDelete(iterations=60, tol=1e-9, **SMALL), LinearHead, {"lam": 0.5}),
    "removal": (CertifiedRemoval(5.0, row_norm=2.0), LinearHead, {}),
    "output": (OutputPerturbation(), None, {}),
    "newton": (Newton(), None, {}),
    "gradient-clipping": (GradientClipping(steps=2, finetune_epochs=0), None, {}),
    "model-clipping": (ModelClipping(steps=2, finetune_epochs=0), None, {}),
    "retrain": (Retrain(), None, {}),
}
SOLVED = ["residual", "residual-softmax", "analytic", "sekhari", "descent"]


@pytest.fixture(autouse=True)
def _small_balls_are_not_the_subject():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*outside the ball")
        warnings.filterwarnings("ignore", message="method='auto'")
        yield


def net(name, **changes):
    method, module, parameters = CASES[name]
    own = {"lam": 1e-2, "C": 100.0, "max_epochs": 3, "random_state": 0} | parameters | changes
    return CertifiedNeuralClassifier(module, method=method, **own)


def before_noise(fitted, corrected=None, event=None):
    """The weights that a release would have without its noise, of a correction or of none."""
    at = np.empty(0, dtype=np.int64) if corrected is None else AT
    rows = fitted.rows_ if corrected is None else fitted.rows_.corrected(AT, corrected)
    problem = fitted._problem(rows, fitted.rows_.take(at), None, None, at)
    event = calibrate(fitted.method_.event(fitted._setting()), 1.0, 1e-5)
    return fitted.method_.center(problem, event).parameters, event


@pytest.mark.parametrize("name", SOLVED)
def test_without_noise_it_is_a_fit_on_the_corrected_data(name):
    fitted = net(name).fit(X, y)
    new = fitted._request_rows(NEW_X, NEW_Y, "X_new", "y_new")
    released, event = before_noise(fitted, new)
    refitted, _ = before_noise(net(name).fit(FIXED_X, FIXED_Y))
    old, _ = before_noise(fitted)
    assert np.linalg.norm(released - refitted) <= event.sensitivity
    assert np.linalg.norm(old - refitted) > 1e-3  # so that there was something to correct
    if name != "sekhari":
        assert np.linalg.norm(released - refitted) < 1e-6


@pytest.mark.parametrize("what", ["features", "labels", "both"])
def test_labels_only_features_only_and_both(what):
    fitted = net("residual").fit(X, y)
    X_new, y_new = (X[AT], y[AT])
    if what != "labels":
        X_new = NEW_X
    if what != "features":
        y_new = NEW_Y
    old_X, old_y = fitted.rows_.X.copy(), fitted.rows_.y.copy()
    assert fitted.amend(X[AT], y[AT], X_new, y_new, epsilon=2.0, delta=1e-6) is fitted
    certificate = fitted.certificate_.verify()
    assert certificate.formal and (certificate.epsilon, certificate.delta) == (2.0, 1e-6)
    assert (certificate.n_deleted, certificate.n_retained) == (4, len(X))
    old_X[AT], old_y[AT] = X_new, y_new
    np.testing.assert_array_equal(fitted.rows_.X, old_X)
    np.testing.assert_array_equal(fitted.rows_.y, old_y)
    reference = net("residual").fit(old_X, old_y)
    gap = to_vector(fitted._trainable()) - to_vector(reference._trainable())
    assert np.abs(gap).max() < 8 * certificate.sigma


@pytest.mark.parametrize("name", CASES)
def test_every_method_that_covers_it_releases_and_can_go_on(name):
    fitted = net(name).fit(X, y, sample_ids=[f"p{i // 2}" for i in range(len(X))])
    ids = fitted.rows_.sample_ids.copy()
    fitted.amend(X[AT], y[AT], NEW_X, NEW_Y)
    certificate = fitted.certificate_
    (reference,) = [a for a in certificate.assumptions if a.name == "correction"]
    assert "training on the corrected data" in reference.statement
    assert reference.status is Status.BY_CONSTRUCTION
    assert any("whoever asked" in text for text in certificate.scope)
    np.testing.assert_array_equal(fitted.rows_.sample_ids, ids)
    fitted.amend(NEW_X[:1], NEW_Y[:1], X[AT[:1]], y[AT[:1]])  # back again, after a release
    fitted.unlearn(indices=[0])
    assert len(fitted.rows_) == len(X) - 1 and fitted.n_releases_ == 3


def test_retraining_is_a_fit_on_the_corrected_data_to_the_last_bit():
    fitted = net("retrain").fit(X, y).amend(indices=AT, X_new=NEW_X, y_new=NEW_Y)
    again = net("retrain").fit(FIXED_X, FIXED_Y)
    np.testing.assert_array_equal(fitted.predict_proba(X), again.predict_proba(X))
    assert fitted.certificate_.epsilon == 0


def test_the_first_step_is_as_cheap_as_a_deletion():
    targets = X @ np.array([1.0, -2.0, 0.5, 3.0])
    reg = CertifiedNeuralRegressor(LinearRegressor, lam=1e-2, C=100.0, method=Residual(tol=1e-9))
    reg.fit(X, targets).amend(X[AT], targets[AT], X[AT], targets[AT] + 1)
    assert reg.certificate_.diagnostics["updated_in_passes"] == 1  # the Hessian is the same
    ridge = net("analytic").fit(X, y).amend(X[AT], y[AT], NEW_X, NEW_Y)
    assert ridge.certificate_.diagnostics["passes"] == 0


@pytest.mark.parametrize("method", [SekhariNewton, DescentToDelete])
def test_a_correction_counts_as_twice_its_rows(method):
    few = method(max_fraction=2 * 4 / len(X), row_norm=2.0)
    net("sekhari").set_params(method=few).fit(X, y).amend(X[AT], y[AT], NEW_X, NEW_Y)
    fewer = method(max_fraction=7.9 / len(X), row_norm=2.0)
    fitted = net("sekhari").set_params(method=fewer).fit(X, y)
    with pytest.raises(DeletionRequestError, match="twice the rows"):
        fitted.amend(X[AT], y[AT], NEW_X, NEW_Y)
    fitted.unlearn(indices=AT)  # while as many rows may leave


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    lam=st.sampled_from([1e-3, 0.05, 1.0]),
    k=st.integers(1, 8),
    descent=st.booleans(),
)
def test_the_bound_covers_corrections_to_the_opposite(seed, lam, k, descent):
    """Rows of full norm that become their opposites, under another label: the largest move."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(40, 3))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    rows[:k], labels = rows[0], rng.permutation(np.arange(40) % 2)
    labels[:k] = 0
    declared = {"max_fraction": 2 * k / 40, "tol": 1e-9, "row_norm": 1.5}
    method = DescentToDelete(iterations=3, **declared) if descent else SekhariNewton(**declared)
    own = {"lam": lam, "C": 1e4, "classes": [0, 1], "method": method}
    fitted = CertifiedNeuralClassifier(LinearHead, **own).fit(rows, labels)
    at, none = np.arange(k), np.empty(0, dtype=np.int64)
    changed_rows, changed_labels = rows.copy(), labels.copy()
    changed_rows[:k] *= -1
    changed_labels[:k] = rng.integers(2, size=k)
    new = replace(fitted.rows_.take(at), X=changed_rows[:k], y=changed_labels[:k], _hashes=[])
    event = calibrate(method.event(fitted._setting()), 1.0, 1e-5)
    corrected = fitted.rows_.corrected(at, new)
    problem = fitted._problem(corrected, fitted.rows_.take(at), None, None, at)
    released = method.center(problem, event).parameters
    again = CertifiedNeuralClassifier(LinearHead, **own).fit(changed_rows, changed_labels)
    problem = again._problem(again.rows_, again.rows_.take(none), None, None)
    retrained = method.center(problem, event).parameters
    assert np.linalg.norm(released - retrained) <= event.sensitivity


@pytest.mark.parametrize("name", ["sekhari", "descent", "removal"])
def test_corrected_rows_outside_the_declared_ball_are_refused(name):
    fitted = net(name).fit(X, y)
    with pytest.raises(NotApplicableError, match="1 of 4 rows have a norm above"):
        fitted.amend(X[AT], y[AT], NEW_X * [[1], [1], [9], [1]], NEW_Y)
    assert fitted.n_releases_ == 0


def test_the_newton_step_of_a_removal_sees_both_versions_of_a_row():
    from scipy.special import expit

    def gradient_sum(W, X, y):
        features = np.column_stack([X, np.ones(len(X))]).astype(float)
        return (expit(features @ W.T) - np.eye(3)[y]).T @ features + len(X) * 0.01 * W

    fitted = net("removal").fit(X, y)
    before = fitted.method_state_
    b = -gradient_sum(before.weights, X, y)
    fitted.amend(X[AT], y[AT], NEW_X, NEW_Y, epsilon=300.0)
    after = fitted.method_state_
    assert not fitted.certificate_.diagnostics["retrained"] and after.n_removed == 4
    left = np.linalg.norm(gradient_sum(after.weights, FIXED_X, FIXED_Y) + b)
    untouched = np.linalg.norm(gradient_sum(before.weights, FIXED_X, FIXED_Y) + b)
    assert left <= after.residual and left < untouched / 10


def test_a_method_without_a_statement_refuses():
    class Silent(OutputPerturbation):
        amend_obstacle = UnlearningMethod.amend_obstacle

    for method, reason in (
        (Silent(), "says nothing of rows that come"),
        (Newton(gradient="deleted", damping=0.5), "leaves out the corrected rows"),
    ):
        fitted = CertifiedNeuralClassifier(method=method, max_epochs=1).fit(X, y)
        with pytest.raises(NotApplicableError, match=reason):
            fitted.amend(X[AT], y[AT], NEW_X, NEW_Y)
    assert "would not learn" in PrivateTraining().amend_obstacle()


def snapshot(fitted):
    state = fitted.rows_.X.tobytes(), fitted.rows_.y.tobytes(), fitted.predict_proba(X).tobytes()
    return (*state, fitted.n_releases_, id(fitted.method_state_), hasattr(fitted, "certificate_"))


@pytest.mark.parametrize(
    ("request_", "error", "match"),
    [
        ((X[AT] + 1, y[AT], NEW_X, NEW_Y), UnknownRowError, "not among"),
        ((X[AT], (y[AT] + 1) % 3, NEW_X, NEW_Y), UnknownRowError, "another label"),
        ((X[AT], y[AT], NEW_X[:2], NEW_Y[:2]), DeletionRequestError, "4 rows to correct and 2"),
        ((X[:0], y[:0], NEW_X[:0], NEW_Y[:0]), DeletionRequestError, r"0 sample\(s\)"),
        ((X[AT], y[AT], None, None), DeletionRequestError, "pass X_new, y_new or both"),
        ((X[AT], y[AT], NEW_X, [7, 7, 7, 7]), DeletionRequestError, "y_new.*7"),
        ((X[AT], y[AT], NEW_X[:, :2], NEW_Y), DeletionRequestError, "X_new"),
        ((X[AT], y[AT], NEW_X * np.nan, NEW_Y), DeletionRequestError, "NaN"),
        ((None, None, NEW_X, NEW_Y), DeletionRequestError, "exactly one way"),
        ((X[y == 0], y[y == 0], X[y == 0], y[y == 0] + 1), DeletionRequestError, "last row of"),
    ],
)
def test_what_cannot_be_served_is_an_error_and_nothing_changes(request_, error, match):
    fitted = net("residual").fit(X, y)
    before, entries = snapshot(fitted), len(list(fitted.ledger_))
    with pytest.raises(error, match=match):
        fitted.amend(*request_)
    assert snapshot(fitted) == before and len(list(fitted.ledger_)) == entries


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_failure_while_it_works_is_in_the_ledger_file_and_changes_nothing(tmp_path, on_disk):
    ledger = tmp_path / "ledger.db" if on_disk else None
    fitted = net("residual").set_params(method=Residual(tol=1e-25), ledger=ledger).fit(X, y)
    before = snapshot(fitted)
    with pytest.raises(ToleranceNotReachedError):
        fitted.amend(X[AT], y[AT], NEW_X, NEW_Y)
    assert snapshot(fitted) == before
    assert [e.state for e in fitted.ledger_] == (["requested", "refused"] if on_disk else [])


def test_without_rows_it_says_what_to_do():
    fitted = net("residual").set_params(store_data=False).fit(X, y)
    with pytest.raises(DeletionRequestError, match="fit again"):
        fitted.amend(X[AT], y[AT], NEW_X, NEW_Y)


def test_nothing_of_the_old_rows_is_left():
    marks = np.float32([1.2345678, 7.654321, 3.1415927, 2.7182818]) / 10
    marked = X.copy()
    marked[7] = marks
    fitted = net("residual").fit(marked, y)
    assert any(marks.tobytes() in part for part in buffers(fitted))
    fitted.amend(marked[[7]], y[[7]], X[[7]], y[[7]])
    for part in buffers(fitted):
        assert marks.tobytes() not in part
        assert marks.astype(float).tobytes() not in part


def test_the_ledger_says_that_it_was_a_correction(tmp_path):
    fitted = net("residual").set_params(ledger=tmp_path / "ledger.db")
    fitted.fit(X, y, sample_ids=[f"p{i}" for i in range(len(X))])
    fitted.amend(sample_ids=["p3", "p17"], X_new=NEW_X[1:3], y_new=NEW_Y[1:3])
    requested, released = list(fitted.ledger_)
    assert requested.detail["amend"] is True and requested.n_rows == 2
    assert released.state == "released" and released.request_ids == requested.request_ids
    np.testing.assert_array_equal(fitted.rows_.X[[3, 17]], NEW_X[1:3])
    fitted.ledger_.verify()


def test_what_is_left_out_stays_as_it_was():
    names = np.array(["setosa", "versicolor", "virginica"])
    table = pd.DataFrame(X, columns=list("abcd"))
    fitted = net("residual").fit(table, names[y], sample_ids=np.arange(len(X)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.amend(sample_ids=AT, y_new=names[NEW_Y])
        fitted.amend(indices=AT, X_new=table.iloc[AT] + np.float32(0.05))
    np.testing.assert_allclose(fitted.rows_.X, FIXED_X, atol=1e-7)
    np.testing.assert_array_equal(fitted.rows_.y, FIXED_Y)
    for targets in (X[:, 0], X[:, :2], X[:, :1]):
        reg = CertifiedNeuralRegressor(LinearRegressor, C=100.0).fit(X, targets)
        reg.amend(indices=AT, X_new=NEW_X).amend(indices=AT, y_new=targets[AT] + 1)
        moved = targets.reshape(len(X), -1).copy()
        moved[AT] += 1
        np.testing.assert_array_equal(reg.rows_.X, FIXED_X)
        np.testing.assert_allclose(reg.rows_.y, moved, atol=1e-6)


def test_new_rows_are_taken_in_the_order_in_which_ids_are_named():
    owners = [f"p{i // 2}" for i in range(len(X))]
    fitted = net("residual").fit(X, y, sample_ids=owners)
    named, rows = ["p40", "p3", "p7"], [80, 81, 6, 7, 14, 15]
    new = X[rows] + np.arange(1, 7, dtype=np.float32)[:, None] / 8
    fitted.amend(sample_ids=named, X_new=new, y_new=y[rows])
    np.testing.assert_array_equal(fitted.rows_.X[rows], new)
    fitted.amend(indices=rows[::-1], X_new=new, y_new=y[rows[::-1]])
    np.testing.assert_array_equal(fitted.rows_.X[rows[::-1]], new)
    numbered = net("residual").fit(X, y, sample_ids=np.arange(len(X)) + 1000)
    numbered.amend(sample_ids=[1090, 1003, 1017, 1060], X_new=NEW_X, y_new=NEW_Y)
    np.testing.assert_array_equal(numbered.rows_.X, FIXED_X)


def test_a_correction_that_was_cut_off_is_not_taken_for_a_deletion(tmp_path):
    fitted = net("residual").set_params(ledger=tmp_path / "ledger.db").fit(X, y)
    fitted._record(fitted.rows_.take(AT), False, "cut-off", amend=True)  # and the process dies
    fitted.unlearn(indices=[0])
    assert fitted.certificate_.n_deleted == 1 and len(fitted.rows_) == len(X) - 1
    assert fitted.ledger_.state("cut-off") == "failed"


def stored_before_a_correction(tmp_path):
    """Return a net that amended four rows, and what is loaded from a file of before."""
    fitted = net("residual").set_params(ledger=tmp_path / "ledger.db").fit(X, y)
    stored = pickle.dumps(fitted)
    fitted.amend(X[AT], y[AT], NEW_X, NEW_Y)
    return fitted, pickle.loads(stored)


def test_a_net_of_before_a_correction_deletes_the_old_rows_and_says_so(tmp_path):
    _, older = stored_before_a_correction(tmp_path)
    with pytest.warns(UnlearningWarning, match="4 of these rows had been corrected.*partial_fit"):
        older.unlearn(indices=[0])
    assert older.certificate_.n_deleted == 5
    np.testing.assert_array_equal(older.rows_.X, np.delete(X, [0, *AT], axis=0))
    older.partial_fit(NEW_X, NEW_Y)  # as it says
    assert len(older.rows_) == len(X) - 1
    states = [e.state for e in older.ledger_]
    assert states.count("released") == 2
    first, second = older.guarantees()[:2]
    assert (first.n_rows, first.n_composed, second.n_rows) == (4, 2, 1)


def test_a_net_of_before_a_correction_can_be_corrected_again(tmp_path):
    _, older = stored_before_a_correction(tmp_path)
    with pytest.warns(UnlearningWarning, match="call amend again with these rows as they are"):
        older.amend(X[AT], y[AT], NEW_X, NEW_Y)
    np.testing.assert_array_equal(older.rows_.X, FIXED_X)
    np.testing.assert_array_equal(older.rows_.y, FIXED_Y)
    assert older.ledger_.pending() == {}
    (first, again) = older.guarantees()
    assert (first.n_composed, again.n_composed) == (2, 1)
    older.unlearn(indices=[0])
    assert older.certificate_.n_deleted == 1


def test_a_part_of_a_missed_correction_is_not_enough(tmp_path):
    _, older = stored_before_a_correction(tmp_path)
    with pytest.warns(UnlearningWarning), pytest.raises(DeletionRequestError, match="wait to be"):
        older.amend(X[AT[:2]], y[AT[:2]], NEW_X[:2], NEW_Y[:2])
    np.testing.assert_array_equal(older.rows_.X, X)


def test_what_was_corrected_and_then_deleted_goes_from_a_net_of_before(tmp_path):
    fitted, older = stored_before_a_correction(tmp_path)
    fitted.unlearn(NEW_X[:1], NEW_Y[:1])
    with pytest.warns(UnlearningWarning, match="4 of these rows had been corrected"):
        older.process_deletions()
    np.testing.assert_array_equal(older.rows_.X, np.delete(X, AT, axis=0))


def test_the_ledger_file_holds_no_feature_and_no_label(tmp_path):
    old, new = np.float32([0.12345679, 0.7654321]), np.float32([0.31415927, 0.27182818])
    X_old, X_new = X[[7]].copy(), X[[7]].copy()
    X_old[0, :2], X_new[0, :2] = old, new
    marked, labels = X.copy(), np.array(["setosa-x", "versicolor-x", "virginica-x"])[y]
    marked[7] = X_old
    fitted = net("residual").set_params(ledger=tmp_path / "ledger.db").fit(marked, labels)
    fitted.amend(X_old, ["setosa-x"], X_new, ["versicolor-x"])
    written = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert b"released" in written
    for value in (*old, *new):
        assert value.tobytes() not in written and repr(float(value)).encode() not in written
        assert str(value).encode() not in written
    assert b"color-x" not in written and b"setosa" not in written


@pytest.mark.parametrize("exact", [False, True])
def test_a_certificate_speaks_of_a_correction(exact):
    fitted = net("retrain" if exact else "residual").fit(X, y).amend(X[AT], y[AT], NEW_X, NEW_Y)
    shown = repr(fitted.certificate_)
    assert "4 of 149 corrected" in shown and "deleted rows" not in shown.split("It rests on")[0]
    assert ("on the corrected data" if exact else "-certified correction") in shown
    fitted.unlearn(indices=[0])
    assert "1 deleted, 148 retained" in repr(fitted.certificate_)


def test_through_a_pipeline_both_versions_of_a_row_are_transformed():
    raw, fixed = X * 3, FIXED_X * 3
    scale = PublicScaler(center=np.zeros(4), scale=np.full(4, 3.0))
    pipe = UnlearningPipeline([("scale", scale), ("net", net("residual"))]).fit(raw, y)
    assert pipe.amend(raw[AT], y[AT], fixed[AT], NEW_Y) is pipe
    np.testing.assert_array_equal(pipe[-1].rows_.X, pipe[0].transform(fixed).astype(np.float32))
    assert pipe.certificate_.formal
    assert any("steps scale compute each row" in text for text in pipe.certificate_.scope)
    with pytest.raises(DeletionRequestError, match="X_new cannot pass through the step 'scale'"):
        pipe.amend(raw[:1], y[:1], raw[:1, :2], y[:1])


def test_a_fitted_step_is_refused_or_named():
    pipe = UnlearningPipeline([("scale", StandardScaler()), ("net", net("residual"))]).fit(X, y)
    with pytest.raises(NotApplicableError, match="scale"):
        pipe.amend(X[AT], y[AT], NEW_X, NEW_Y)
    pipe.amend(X[AT], y[AT], NEW_X, NEW_Y, allow_leaks=True)
    assert not pipe.certificate_.formal
    other = UnlearningPipeline([("net", LogisticRegression())]).fit(X, y)
    assert not hasattr(other, "amend")


def test_a_linearised_network_is_corrected_too():
    linearised = CertifiedNeuralClassifier(
        Linearized, module__module=MLP, lam=1e-2, C=100.0, random_state=0, method=Residual(tol=1e-7)
    )
    fitted = clone(linearised).fit(X, y).amend(X[AT], y[AT], NEW_X, NEW_Y)
    again = clone(linearised).fit(FIXED_X, FIXED_Y)
    np.testing.assert_allclose(fitted.predict_proba(X), again.predict_proba(X), atol=1e-3)
    assert not np.allclose(again.predict_proba(X), linearised.fit(X, y).predict_proba(X), atol=1e-3)
    assert fitted.certificate_.formal


def test_queued_requests_are_served_first():
    fitted = net("residual").fit(X, y)
    fitted.request_deletion(indices=[5])
    with pytest.raises(DeletionRequestError, match=r"process_deletions\(\)"):
        fitted.amend(X[AT], y[AT], NEW_X, NEW_Y)
    fitted.process_deletions().amend(X[AT], y[AT], NEW_X, NEW_Y)
    assert len(fitted.rows_) == len(X) - 1


@pytest.mark.parametrize("method", [Residual(tol=1e-10), Analytic(tol=1e-10)], ids=repr)
def test_a_regressor_is_corrected_too(method):
    targets = X @ np.array([1.0, -2.0, 0.5, 3.0]) + y
    reg = CertifiedNeuralRegressor(LinearRegressor, method=method, lam=1e-2, C=100.0)
    fixed = targets.copy()
    fixed[AT] += 0.5
    reg.fit(X, targets).amend(X[AT], targets[AT], X[AT], fixed[AT])
    again = CertifiedNeuralRegressor(LinearRegressor, method=method, lam=1e-2, C=100.0)
    again.fit(X, fixed)
    np.testing.assert_allclose(reg.predict(X), again.predict(X), atol=1e-4)
    assert reg.certificate_.formal


def test_secret_state_goes_on_from_the_corrected_optimum():
    secret = Residual(state="secret", horizon=3)
    fitted = net("residual").set_params(method=secret).fit(X, y)
    fitted.amend(X[AT], y[AT], NEW_X, NEW_Y).unlearn(indices=[0])
    assert len(fitted.certificate_.earlier_mu) == 1
    reference = net("residual").set_params(method=secret).fit(FIXED_X[1:], FIXED_Y[1:])
    gap = fitted.method_state_.weights - reference.method_state_.weights
    assert np.abs(gap).max() < 0.01


def test_corrected_rows_keep_their_hashes_true():
    rows = net("residual").fit(X, y).rows_
    new = replace(rows.take(AT), X=NEW_X, y=NEW_Y)
    changed = rows.corrected(AT, new)
    np.testing.assert_array_equal(changed.find_content(NEW_X, NEW_Y, np.arange(3)), AT)
    np.testing.assert_array_equal(rows.X, X)
    with pytest.raises(UnknownRowError):
        changed.find_content(X[AT], y[AT], np.arange(3))


def test_below_a_frozen_network_the_features_are_corrected_and_permanent_rows_refused():
    def head():
        return CertifiedNeuralClassifier(
            FeatureHead,
            module__backbone=lambda n_classes: nn.Sequential(
                nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, n_classes)
            ),
            **{"lam": 1e-2, "C": 1e3, "max_epochs": 3, "random_state": 0},
        )

    permanent = np.zeros(len(X), dtype=bool)
    permanent[[0, 1, 70, 71, 120, 121]] = True
    fitted = head().fit(X, y, permanent=permanent)
    with pytest.raises(DeletionRequestError, match="permanent"):
        fitted.amend(X[:1], y[:1], X[:1] + 1, y[:1])
    fitted.amend(X[AT], y[AT], NEW_X, NEW_Y)
    again = head().fit(FIXED_X, FIXED_Y, permanent=permanent)
    np.testing.assert_array_equal(fitted.rows_.features.values, again.rows_.features.values)
    np.testing.assert_array_equal(fitted.rows_.permanent, permanent)
    gap = to_vector(fitted._trainable()) - to_vector(again._trainable())
    assert np.abs(gap).max() < 8 * fitted.certificate_.sigma
