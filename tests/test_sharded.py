"""Sharded training: deletion gives, to the last bit, the fit on the retained rows."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import estimator_checks_generator

from sk_unlearn import Certificate, CertifiedNeuralClassifier
from sk_unlearn._sharded_rows import hashed_buckets
from sk_unlearn.exceptions import DeletionRequestError, UnknownRowError
from sk_unlearn.sharded import ShardedClassifier

rng = np.random.default_rng(0)
X = rng.normal(size=(120, 3))
y = np.array(["no", "yes", "maybe"])[(X[:, 0] > 0).astype(int) + (X[:, 1] > 0.8)]
SLICED = SGDClassifier(loss="log_loss", random_state=0)


def net(**params):
    return CertifiedNeuralClassifier(max_epochs=3, module__hidden=(4,), **params)


CASES = {
    "linear": (LogisticRegression(), 1),
    "tree": (DecisionTreeClassifier(random_state=3), 1),
    "net": (net(random_state=0), 1),
    "pipeline": (make_pipeline(Normalizer(), LogisticRegression()), 1),
    "sliced": (SLICED, 3),
    "sliced-net": (net(), 3),
}


def sharded(name="linear", n_shards=4, **params):
    estimator, n_slices = CASES[name]
    defaults = {"n_shards": n_shards, "n_slices": n_slices, "random_state": 7}
    return ShardedClassifier(clone(estimator), **(defaults | params))


@pytest.mark.parametrize("name", CASES)
def test_deletion_gives_the_fit_on_the_retained_rows(name):
    gone = [4, 31, 90]
    clf = sharded(name).fit(X, y)
    assert clf.unlearn(X[gone], y[gone], epsilon=1.0, delta=1e-5) is clf
    cold = sharded(name).fit(np.delete(X, gone, axis=0), np.delete(y, gone))
    np.testing.assert_array_equal(clf.predict_proba(X), cold.predict_proba(X))
    assert clf.certificate_.diagnostics["shards_retrained"] in (1, 2, 3)
    again = [0, 5]
    clf.unlearn(indices=again)
    kept = np.delete(np.delete(np.arange(120), gone), again)
    cold = sharded(name).fit(X[kept], y[kept])
    np.testing.assert_array_equal(clf.predict_proba(X), cold.predict_proba(X))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), n_shards=st.integers(1, 9), n_slices=st.integers(1, 4))
def test_any_deletion_gives_the_fit_on_the_retained_rows(data, n_shards, n_slices):
    n = data.draw(st.integers(12, 40))
    gone = data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n - 10))
    salt = data.draw(st.integers(0, 2**31))
    clf = ShardedClassifier(SLICED, n_shards, n_slices, classes=np.unique(y), random_state=salt)
    after = clone(clf).fit(X[:n], y[:n]).unlearn(indices=gone)
    cold = clone(clf).fit(np.delete(X[:n], gone, axis=0), np.delete(y[:n], gone))
    np.testing.assert_array_equal(after.predict_proba(X), cold.predict_proba(X))
    np.testing.assert_array_equal(after.buckets_, cold.buckets_)


def test_only_what_saw_the_rows_is_trained_again(monkeypatch):
    clf = sharded("sliced").fit(X, y)
    before = [list(shard) for shard in clf.checkpoints_]
    target = clf.buckets_[10]
    shard, part = divmod(int(target), 3)
    fitted = []
    original = SGDClassifier.partial_fit
    monkeypatch.setattr(
        SGDClassifier,
        "partial_fit",
        lambda self, X, y, **k: (fitted.append(len(X)), original(self, X, y, **k))[1],
    )
    clf.unlearn(indices=[10])
    for s, (old, new) in enumerate(zip(before, clf.checkpoints_, strict=True)):
        for k, (one, other) in enumerate(zip(old, new, strict=True)):
            assert (one is other) == (s != shard or k < part)
    assert len(fitted) == 3 - part
    assert clf.certificate_.diagnostics["shards_retrained"] == 1


def test_an_empty_request_trains_nothing():
    clf = sharded().fit(X, y)
    before = [list(shard) for shard in clf.checkpoints_]
    clf.unlearn(indices=[])
    assert clf.certificate_.n_deleted == 0
    assert all(
        one is other
        for old, new in zip(before, clf.checkpoints_, strict=True)
        for one, other in zip(old, new, strict=True)
    )


def test_no_deleted_row_and_no_model_that_saw_it_is_left():
    marked = X.copy()
    marked[17] = [123.456, 789.125, -55.5]
    clf = sharded("sliced-net").fit(marked, y)
    held = pickle.dumps(clf)
    needles = [marked[17].tobytes(), marked[17].astype(np.float32).tobytes()]
    assert any(needle in held for needle in needles)
    clf.unlearn(indices=[17])
    after = pickle.dumps(clf)
    assert not any(needle in after for needle in needles)


def test_probabilities_are_the_mean_of_the_shards():
    clf = sharded().fit(X, y)
    parts = [shard[-1].predict_proba(X) for shard in clf.checkpoints_]
    np.testing.assert_allclose(clf.predict_proba(X), np.mean(parts, axis=0))
    for shard, model in enumerate(clf.checkpoints_):
        own = LogisticRegression().fit(X[clf.buckets_ == shard], y[clf.buckets_ == shard])
        np.testing.assert_array_equal(model[-1].predict_proba(X), own.predict_proba(X))
    assert clf.score(X, y) > 0.8


def test_shards_without_rows_or_with_one_class():
    labels = np.array(["a"] * 9 + ["b"])
    clf = ShardedClassifier(LogisticRegression(), n_shards=40, random_state=0).fit(X[:10], labels)
    kinds = [type(shard[-1]) for shard in clf.checkpoints_]
    assert kinds.count(type(None)) >= 30
    assert DummyClassifier in kinds
    proba = clf.predict_proba(X[:10])
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    n_models = 40 - kinds.count(type(None))
    assert proba[0, 1] == pytest.approx(1 / n_models)


# --- the assignment


def test_a_row_goes_where_it_goes_whatever_the_others_are():
    whole = hashed_buckets(X, 12, 99)
    np.testing.assert_array_equal(hashed_buckets(X[5:40], 12, 99), whole[5:40])
    order = rng.permutation(120)
    np.testing.assert_array_equal(hashed_buckets(X[order], 12, 99), whole[order])
    signed = X.copy()
    signed[:, 0] = 0.0
    negative = signed.copy()
    negative[:, 0] = -0.0
    np.testing.assert_array_equal(hashed_buckets(signed, 12, 99), hashed_buckets(negative, 12, 99))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_buckets_are_uniform_and_pairwise_independent_over_the_salt(dtype):
    rows = np.array([[1.0, 2.0], [1.0, 2.0 + 2**-20]], dtype=dtype)
    drawn = np.array([hashed_buckets(rows, 4, salt) for salt in range(8000)])
    table = np.histogram2d(*drawn.T, bins=4)[0]
    assert np.abs(table - 500).max() < 5 * np.sqrt(500)
    many = np.bincount(hashed_buckets(rng.normal(size=(40000, 3)).astype(dtype), 5, 1))
    assert np.abs(many - 8000).max() < 5 * np.sqrt(8000)


def test_salts_are_fresh_without_a_seed_and_repeat_with_one():
    one, two = (ShardedClassifier(GaussianNB()).fit(X, y) for _ in range(2))
    assert not np.array_equal(one.buckets_, two.buckets_)
    np.testing.assert_array_equal(sharded().fit(X, y).buckets_, sharded().fit(X, y).buckets_)


def test_the_seed_reaches_the_estimators():
    clf = ShardedClassifier(DecisionTreeClassifier(), random_state=1).fit(X, y)
    seeds = {shard[-1].random_state for shard in clf.checkpoints_}
    assert len(seeds) == 5
    clf = ShardedClassifier(DecisionTreeClassifier(random_state=4)).fit(X, y)
    assert {shard[-1].random_state for shard in clf.checkpoints_} == {4}


# --- requests


def test_rows_are_named_by_content_index_or_id():
    ids = np.repeat(np.arange(60), 2)
    found = []
    for request in (
        {"X_u": X[[8, 9]], "y_u": y[[8, 9]]},
        {"indices": [8, 9]},
        {"sample_ids": [4]},
    ):
        clf = sharded().fit(X, y, sample_ids=ids).unlearn(**request)
        found.append(clf.rows_.X)
        assert len(clf.rows_) == 118
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_rows_that_differ_beyond_float32_are_told_apart():
    near = X.copy()
    near[1], y_near = near[0], y.copy()
    near[1, 0] += 1e-12
    y_near[1] = y_near[0]
    assert near[1, 0] != near[0, 0]
    clf = sharded().fit(near, y_near).unlearn(near[[1]], y_near[[1]])
    np.testing.assert_array_equal(clf.rows_.X, np.delete(near, 1, axis=0))


@pytest.mark.parametrize(
    "request_, error, message",
    [
        ({}, DeletionRequestError, "exactly one way"),
        ({"X_u": X[:1], "y_u": y[:1], "indices": [0]}, DeletionRequestError, "exactly one way"),
        ({"X_u": X[:1]}, DeletionRequestError, "X_u and y_u together"),
        ({"X_u": X[:1] + 1, "y_u": y[:1]}, UnknownRowError, "not among the 120"),
        ({"X_u": X[:1], "y_u": ["perhaps"]}, UnknownRowError, "perhaps"),
        ({"X_u": X[:1, :2], "y_u": y[:1]}, DeletionRequestError, "features"),
        ({"X_u": [[np.nan] * 3], "y_u": y[:1]}, DeletionRequestError, "NaN"),
        ({"indices": [120]}, UnknownRowError, "120"),
        ({"indices": [3, 3]}, DeletionRequestError, "named twice"),
        ({"indices": range(120)}, DeletionRequestError, "all 120 training rows"),
        ({"indices": np.flatnonzero(y == "maybe")}, DeletionRequestError, "last row of class"),
        ({"sample_ids": [1]}, DeletionRequestError, "without sample_ids"),
    ],
)
def test_requests_that_cannot_be_served_change_nothing(request_, error, message):
    clf = sharded().fit(X, y)
    before = pickle.dumps(clf)
    with pytest.raises(error, match=message):
        clf.unlearn(**request_)
    assert pickle.dumps(clf) == before


def test_the_last_row_of_a_declared_class_may_go():
    gone = np.flatnonzero(y == "maybe")
    clf = sharded(classes=["maybe", "no", "yes", "never"]).fit(X, y).unlearn(indices=gone)
    assert list(clf.classes_) == ["maybe", "never", "no", "yes"]
    assert clf.predict_proba(X).shape == (120, 4)
    assert not clf.predict_proba(X)[:, :2].any()
    with pytest.raises(ValueError, match="does not declare"):
        sharded(classes=["no", "yes"]).fit(X, y)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failure_while_training_changes_nothing(monkeypatch, error):
    clf = sharded().fit(X, y)
    before = pickle.dumps(clf)
    calls, original = [], LogisticRegression.fit

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return original(self, *args)

    monkeypatch.setattr(LogisticRegression, "fit", failing)
    with pytest.raises(error):
        clf.unlearn(indices=range(30))
    assert pickle.dumps(clf) == before
    calls.clear()
    with pytest.raises(error):
        clf.fit(X[:50], y[:50])
    assert pickle.dumps(clf) == before


def test_parameters_set_after_fit_wait_for_the_next_fit():
    clf = sharded("sliced").fit(X, y)
    clf.set_params(n_slices=1, n_shards=2, estimator=GaussianNB(), random_state=None)
    clf.unlearn(indices=[3])
    cold = sharded("sliced").fit(np.delete(X, 3, axis=0), np.delete(y, 3))
    np.testing.assert_array_equal(clf.predict_proba(X), cold.predict_proba(X))


def test_it_needs_a_fit_and_usable_parameters():
    with pytest.raises(NotFittedError):
        sharded().unlearn(indices=[0])
    with pytest.raises(NotFittedError):
        sharded().predict(X)
    for params, error, message in (
        ({"n_shards": 0}, ValueError, "n_shards=0"),
        ({"n_slices": 1.5}, ValueError, "n_slices=1.5"),
        ({"n_slices": 2}, TypeError, "no partial_fit.*n_slices=1"),
        ({"estimator": LinearSVC()}, TypeError, "no predict_proba"),
    ):
        with pytest.raises(error, match=message):
            sharded().set_params(**params).fit(X, y)
    with pytest.raises(ValueError, match="3 sample_ids for 120 rows"):
        sharded().fit(X, y, sample_ids=[1, 2, 3])


# --- certificate and scikit-learn


def test_the_certificate_is_exact_formal_and_names_its_limit():
    certificate = sharded().fit(X, y).unlearn(indices=[0, 1]).certificate_
    assert (certificate.epsilon, certificate.delta, certificate.mu) == (0, 0, 0)
    assert certificate.formal
    assert certificate.verify() is certificate
    assert (certificate.n_deleted, certificate.n_retained) == (2, 118)
    assert any("Gupta et al. 2021" in text for text in certificate.scope)
    assert "exact" in repr(certificate)
    for audience in ("operator", "public"):
        read = Certificate.from_json(certificate.to_json(audience)).verify()
        assert read.n_parameters is None
    assert "shards_retrained" not in certificate.to_json("public")


def test_a_new_fit_forgets_the_certificate():
    clf = sharded().fit(X, y).unlearn(indices=[0])
    clf.fit(X, y)
    assert not hasattr(clf, "certificate_")


def test_it_is_a_scikit_learn_classifier():
    search = GridSearchCV(sharded(), {"n_shards": [1, 3], "estimator__C": [0.1, 1.0]}, cv=3)
    assert search.fit(X, y).best_score_ > 0.7
    assert pickle.loads(pickle.dumps(sharded().fit(X, y))).predict(X[:2]).shape == (2,)


def _checks():
    for estimator, n_slices in ((LogisticRegression(), 1), (SGDClassifier(loss="log_loss"), 2)):
        yield from estimator_checks_generator(ShardedClassifier(estimator, 2, n_slices))


@pytest.mark.parametrize("estimator, check", list(_checks()))
def test_check_estimator(estimator, check):
    check(estimator)
