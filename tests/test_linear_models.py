"""What users of scikit-learn's linear models expect: coef_, n_iter_, class_weight, warnings."""

from __future__ import annotations

import pickle
import warnings
from functools import partial

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import RFE
from sklearn.linear_model import LinearRegression, LogisticRegression

from sk_unlearn import CertifiedNeuralClassifier, CertifiedNeuralRegressor
from sk_unlearn.convex import minimise
from sk_unlearn.methods import Residual, _affine
from sk_unlearn.modules import LinearHead, LinearRegressor, RidgeHead

X, y = load_iris(return_X_y=True)
X = X.astype(np.float32)


@pytest.mark.parametrize("module", [LinearHead, RidgeHead])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_classifier_s_coefficients_are_those_of_its_decision_function(module, n_classes):
    rows = y < n_classes
    clf = CertifiedNeuralClassifier(module, C=100.0).fit(X[rows], y[rows])
    sklearns = LogisticRegression().fit(X[rows], y[rows])
    assert clf.coef_.shape == sklearns.coef_.shape
    assert clf.intercept_.shape == sklearns.intercept_.shape
    scores = (X @ clf.coef_.T + clf.intercept_).squeeze()
    np.testing.assert_allclose(clf.decision_function(X), scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("targets", [y, y[:, None], np.column_stack([y, -y])], ids=[0, 1, 2])
def test_a_regressor_s_coefficients_are_shaped_as_linear_regression_shapes_them(targets):
    reg = CertifiedNeuralRegressor(LinearRegressor).fit(X, targets)
    sklearns = LinearRegression().fit(X, targets)
    assert reg.coef_.shape == sklearns.coef_.shape
    assert np.shape(reg.intercept_) == np.shape(sklearns.intercept_)
    np.testing.assert_allclose(reg.predict(X), X @ reg.coef_.T + reg.intercept_, rtol=1e-4)


def test_coefficients_follow_the_release_and_are_copies():
    clf = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X, y)
    before = clf.coef_
    clf.unlearn(indices=[0])
    assert not np.array_equal(before, clf.coef_)
    clf.coef_[:] = 0.0
    assert clf.coef_.any()


def test_images_count_their_pixels():
    clf = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X.reshape(150, 1, 2, 2), y)
    assert clf.coef_.shape == (3, 4)


def test_other_nets_have_none():
    deep = CertifiedNeuralClassifier(max_epochs=1)
    with pytest.raises(AttributeError, match="has no coef_ and intercept_ before fit"):
        _ = deep.coef_
    with pytest.raises(AttributeError, match="with module MLP"):
        _ = deep.fit(X, y).intercept_
    assert not hasattr(deep, "coef_")
    assert not hasattr(deep, "n_iter_")


def test_features_can_be_selected_by_their_coefficients():
    clf = CertifiedNeuralClassifier(LinearHead, C=100.0)
    selected = RFE(clf, n_features_to_select=2).fit(X, y)
    assert selected.support_.sum() == 2
    assert selected.score(X, y) > 0.9


def test_n_iter_is_there_after_a_solve_and_a_release_drops_it():
    clf = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X, y)
    assert 1 <= clf.n_iter_ <= 30
    clf.unlearn(indices=[0])
    assert not hasattr(clf, "n_iter_")
    assert clf.refresh().n_iter_ >= 1
    closed = CertifiedNeuralClassifier(RidgeHead, C=100.0).fit(X, y)
    with pytest.raises(AttributeError, match="no n_iter_"):
        _ = closed.n_iter_
    secret = CertifiedNeuralRegressor(LinearRegressor, method=Residual(state="secret", horizon=3))
    assert 1 <= secret.fit(X, y).n_iter_ <= 3


def test_a_solve_that_stops_early_warns_and_the_usual_does_not(monkeypatch):
    clf = CertifiedNeuralClassifier(LinearHead, C=1e4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        for lam in (1e-8, 1e-3, 10.0):
            clone(clf).set_params(lam=lam).fit(X, y)
            clone(clf).set_params(lam=lam).fit(1e3 * X, y)
            CertifiedNeuralRegressor(LinearRegressor, method=Residual(), lam=lam, C=1e9).fit(
                X, 1e4 * y
            )
    monkeypatch.setattr(_affine, "minimise", partial(minimise, max_iter=2))
    with pytest.warns(ConvergenceWarning, match="stopped after 2 Newton steps"):
        clf.fit(X, y)


def test_class_weight_may_be_none_and_nothing_else():
    clf = CertifiedNeuralClassifier(LinearHead, class_weight=None, C=100.0)
    assert "class_weight" not in clf.get_params()
    clone(pickle.loads(pickle.dumps(clf))).set_params(class_weight=None, lam=0.1).fit(X, y)
    for weight in ("balanced", {0: 2.0}):
        message = "class_weight=.*counted from the data.*FixedThresholdClassifier"
        with pytest.raises(ValueError, match=message):
            CertifiedNeuralClassifier(class_weight=weight)
        with pytest.raises(ValueError, match=message):
            clf.set_params(class_weight=weight)
        with pytest.raises(ValueError, match="class_weight is not supported: class weights"):
            clf.fit(X, y, class_weight=weight)
    with pytest.raises(TypeError, match="class weights that are counted"):
        CertifiedNeuralRegressor(class_weight="balanced")
