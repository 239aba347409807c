"""The estimator is an ordinary scikit-learn classifier."""

from __future__ import annotations

import io
import pickle
from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch import NeuralNetClassifier
from skorch.callbacks import EarlyStopping, EpochScoring
from skorch.dataset import ValidSplit
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.methods import OutputPerturbation, Residual
from sk_unlearn.modules import MLP, LinearHead

X, y = load_iris(return_X_y=True)


@parametrize_with_checks(
    [
        CertifiedNeuralClassifier(random_state=0),
        CertifiedNeuralClassifier(LinearHead, random_state=0),
        CertifiedNeuralClassifier(partial(LinearHead, multi_class="multinomial"), C=1e3),
        CertifiedNeuralClassifier(random_state=0, anchor="init", method=OutputPerturbation()),
    ]
)
def test_check_estimator(estimator, check):
    check(estimator)


def test_it_is_a_skorch_net_and_a_classifier():
    clf = CertifiedNeuralClassifier()
    assert isinstance(clf, NeuralNetClassifier)
    assert is_classifier(clf)


def test_pipeline():
    pipe = make_pipeline(StandardScaler(), CertifiedNeuralClassifier(random_state=0))
    assert pipe.fit(X, y).score(X, y) > 0.9


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search_over_lam_and_C(n_jobs):
    grid = {"lam": [1e-3, 1e-1], "C": [0.5, 50.0]}
    search = GridSearchCV(
        CertifiedNeuralClassifier(LinearHead, random_state=0), grid, cv=2, n_jobs=n_jobs
    )
    with pytest.warns(UserWarning, match="outside the ball") if n_jobs == 1 else _nothing():
        search.fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert np.ptp(scores) > 0.01
    assert search.best_score_ == scores.max()
    assert np.isfinite(scores).all()


class _nothing:
    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False


def test_grid_search_gives_the_same_result_in_parallel():
    grid = {"lam": [1e-3, 1e-1], "module__hidden": [(4,), (8,)]}
    results = [
        GridSearchCV(CertifiedNeuralClassifier(random_state=0), grid, cv=2, n_jobs=n).fit(X, y)
        for n in (1, 2)
    ]
    np.testing.assert_array_equal(*(result.cv_results_["mean_test_score"] for result in results))


def test_grid_search_over_nested_method_parameters():
    clf = CertifiedNeuralClassifier(LinearHead, C=100.0, method=Residual())
    search = GridSearchCV(clf, {"method__noise_std": [0.001, 0.01]}, cv=2).fit(X, y)
    assert search.best_estimator_.method_.noise_std in (0.001, 0.01)
    assert clf.method.noise_std == 0.01


def test_sample_ids_pass_through_grid_search():
    ids = np.repeat(np.arange(75), 2)
    clf = CertifiedNeuralClassifier(LinearHead, C=100.0)
    search = GridSearchCV(clf, {"lam": [1e-3, 1e-2]}, cv=3).fit(X, y, sample_ids=ids)
    best = search.best_estimator_
    np.testing.assert_array_equal(best.rows_.sample_ids, ids)
    best.unlearn(sample_ids=[3])
    assert best.certificate_.n_deleted == 2


def test_halving_search_calibration_and_cross_validation():
    clf = CertifiedNeuralClassifier(LinearHead, C=100.0)
    halving = HalvingGridSearchCV(clf, {"lam": [1e-3, 1e-2, 1e-1]}, cv=2, random_state=0)
    assert halving.fit(X, y).best_score_ > 0.8
    calibrated = CalibratedClassifierCV(clf, cv=2).fit(X, y)
    assert calibrated.score(X, y) > 0.8
    assert cross_val_score(clf, X, y, cv=3).min() > 0.8
    proba = cross_val_predict(clf, X, y, cv=3, method="predict_proba")
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-6)


def test_clone_and_pickle_and_joblib():
    clf = CertifiedNeuralClassifier(
        random_state=3, anchor="init", method=Residual(noise_std=0.1), module__hidden=(5,)
    )
    copy = clone(clf)
    assert copy.get_params()["method__noise_std"] == 0.1
    assert copy.get_params()["module__hidden"] == (5,)
    assert copy.method is not clf.method
    fitted = CertifiedNeuralClassifier(random_state=3, max_epochs=2, anchor="init").fit(X, y)
    buffer = io.BytesIO()
    joblib.dump(fitted, buffer)
    buffer.seek(0)
    for again in (pickle.loads(pickle.dumps(fitted)), joblib.load(buffer)):
        np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
        again.set_params(max_epochs=3, lr=10.0).partial_fit(X, y)
        assert again._ball().distance() <= again.C_


@pytest.mark.parametrize(
    "labels",
    [
        np.array(["setosa", "versi", "virg"])[y],
        np.array([10.0, 2.0, 7.0])[y],
        np.array([5, -3, 100])[y],
        pd.Series(pd.Categorical.from_codes(y, ["c", "a", "b"])).astype(object),
    ],
)
def test_labels_come_back_as_they_went_in(labels):
    clf = CertifiedNeuralClassifier(random_state=0, max_epochs=60).fit(X, labels)
    predicted = clf.predict(X)
    assert set(predicted) <= set(labels)
    assert np.mean(predicted == np.asarray(labels)) > 0.9
    np.testing.assert_array_equal(clf.classes_, np.unique(labels))


def test_two_classes_give_two_logits_and_one_decision():
    two = y < 2
    clf = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X[two], y[two])
    assert clf.predict_proba(X[two]).shape == (two.sum(), 2)
    decision = clf.decision_function(X[two])
    np.testing.assert_array_equal(decision > 0, clf.predict(X[two]) == 1)


def test_ovr_probabilities_are_normalised_sigmoids():
    clf = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X, y)
    sigmoids = 1 / (1 + np.exp(-clf.decision_function(X).astype(float)))
    expected = sigmoids / sigmoids.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(X), expected, rtol=1e-4, atol=1e-7)


class SmallCNN(nn.Module):
    def __init__(self, n_classes, input_shape):
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 4, 3)
        self.head = nn.Linear(4, n_classes)

    def forward(self, X):
        return self.head(self.conv(X).relu().mean((2, 3)))


def test_images():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 2, 8, 8))
    labels = rng.integers(0, 2, 40)
    images[labels == 1, 0] += 2
    for module in (SmallCNN, None, LinearHead):
        clf = CertifiedNeuralClassifier(module, random_state=0, lr=0.05).fit(images, labels)
        assert clf.score(images, labels) > 0.8
        with pytest.raises(ValueError, match=r"rows of the shape \(2, 9, 9\)"):
            clf.predict(np.zeros((1, 2, 9, 9)))


def test_a_module_instance_is_copied():
    module = MLP(4, 3, hidden=(5,))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    CertifiedNeuralClassifier(module, max_epochs=1).fit(X, y)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_module_of_the_wrong_width_is_named():
    with pytest.raises(ValueError, match=r"returned the shape \(2, 7\)"):
        CertifiedNeuralClassifier(MLP(4, 7)).fit(X, y)


def test_torch_datasets_are_refused():
    data = torch.utils.data.TensorDataset(torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(TypeError, match="torch Datasets are not supported"):
        CertifiedNeuralClassifier().fit(data, None)


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ({"lamb": 1}, "did you mean 'lam'"),
        ({"max_epoch": 1}, "did you mean 'max_epochs'"),
        ({"sample_weight": [1.0]}, "unweighted mean"),
    ],
)
def test_misspelt_keywords_fail_early(keyword, message):
    with pytest.raises(TypeError, match=message):
        CertifiedNeuralClassifier(**keyword)


@pytest.mark.parametrize(
    "params",
    [
        {"lam": -1.0},
        {"lam": "big"},
        {"lam": np.nan},
        {"C": 0},
        {"C": np.inf},
        {"C": True},
        {"anchor": "mean"},
        {"max_epochs": -1},
        {"max_epochs": 1.5},
        {"batch_size": 0},
        {"lr": 0.0},
        {"noise_seed": -1},
        {"noise_seed": "x"},
        {"method": "magic"},
        {"method": Residual},
        {"criterion": nn.CrossEntropyLoss(reduction="sum")},
        {"criterion": nn.CrossEntropyLoss(weight=torch.ones(3))},
    ],
)
def test_bad_hyperparameters_are_quoted_and_change_nothing(params):
    clf = CertifiedNeuralClassifier(max_epochs=1, random_state=0).fit(X, y)
    before = clf.predict_proba(X)
    clf.set_params(**params)
    (name,) = params
    with pytest.raises(ValueError, match=name):
        clf.fit(X, y)
    clf.set_params(batch_size=128)
    np.testing.assert_array_equal(clf.predict_proba(X), before)


@pytest.mark.parametrize("name", ["sample_weight", "class_weight"])
def test_weights_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=f"{name} is not supported.*unweighted mean"):
        CertifiedNeuralClassifier().fit(X, y, **{name: np.ones(len(y))})
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        CertifiedNeuralClassifier().fit(X, y, foo=1)


def test_a_failed_fit_leaves_a_fitted_net_as_it_was():
    clf = CertifiedNeuralClassifier(max_epochs=2, random_state=0).fit(X, y)
    before, weights = set(vars(clf)), clf.predict_proba(X)
    bad = X.copy()
    bad[3, 1] = np.nan
    for args in ((bad, y), (X[:, :2], y[:5]), (X, np.zeros(len(y)))):
        with pytest.raises(ValueError):
            clf.fit(*args)
    with pytest.raises(ValueError, match="labels not seen before"):
        clf.partial_fit(X, y + 1)
    assert set(vars(clf)) == before
    np.testing.assert_array_equal(clf.predict_proba(X), weights)


def test_declared_classes_may_be_absent_from_the_data():
    clf = CertifiedNeuralClassifier(classes=[0, 1, 2, 3], random_state=0).fit(X, y)
    assert clf.predict_proba(X).shape == (150, 4)
    np.testing.assert_array_equal(clf.classes_, [0, 1, 2, 3])


def test_random_state_seeds_training_and_leaves_the_global_stream_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fits = [CertifiedNeuralClassifier(random_state=1, max_epochs=2).fit(X, y) for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(fits[0].predict_proba(X), fits[1].predict_proba(X))
    other = CertifiedNeuralClassifier(random_state=2, max_epochs=2).fit(X, y)
    assert not np.array_equal(other.predict_proba(X), fits[0].predict_proba(X))


def test_partial_fit_continues_and_counts_rows_once():
    _, distinct = np.unique(X, axis=0, return_index=True)
    rows, labels = X[distinct], y[distinct]
    clf = CertifiedNeuralClassifier(random_state=0, max_epochs=2)
    clf.partial_fit(rows[::2], labels[::2], classes=[0, 1, 2])
    first = clf.predict_proba(X)
    clf.partial_fit(rows[1::2], labels[1::2]).partial_fit(rows[::2], labels[::2])
    assert not np.array_equal(first, clf.predict_proba(X))
    assert len(clf.rows_) == len(rows)


def test_warm_start_continues():
    cold = CertifiedNeuralClassifier(random_state=0, max_epochs=2).fit(X, y)
    warm = clone(cold).set_params(warm_start=True)
    losses = [warm.fit(X, y).history_[-1, "train_loss"] for _ in range(5)]
    assert losses[-1] < losses[0]
    assert len(warm.rows_) == len(X)


def test_skorch_callbacks_and_validation_split_work():
    clf = CertifiedNeuralClassifier(
        random_state=0,
        max_epochs=200,
        train_split=ValidSplit(3, stratified=True),
        callbacks=[EpochScoring("accuracy", name="valid_acc"), EarlyStopping(patience=3)],
    ).fit(X, y)
    assert 3 < len(clf.history_) < 200
    assert 0 <= clf.history_[-1, "valid_acc"] <= 1


def test_data_loader_and_data_frames_work():
    frame = pd.DataFrame(X, columns=list("abcd"))
    clf = CertifiedNeuralClassifier(
        random_state=0, iterator_train=torch.utils.data.DataLoader, max_epochs=3
    ).fit(frame, y)
    assert list(clf.feature_names_in_) == list("abcd")
    with pytest.warns(UserWarning, match="valid feature names"):
        clf.predict(X)


def test_set_params_on_a_fitted_net_waits_for_the_next_fit():
    clf = CertifiedNeuralClassifier(random_state=0, max_epochs=2, C=5.0).fit(X, y)
    before = clf.predict_proba(X)
    clf.set_params(C=0.1, lam=7.0, module__hidden=(3,), callbacks=None)
    np.testing.assert_array_equal(clf.predict_proba(X), before)
    assert (clf.C_, clf.lam_) == (5.0, 1e-3)
    clf.fit(X, y)
    assert clf.module_.layers[0].out_features == 3
    assert clf._ball().distance() <= 0.1
