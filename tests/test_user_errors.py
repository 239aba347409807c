"""What users of scikit-learn try on the first day: it works, or the error says what to do."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.feature_selection import RFE
from sklearn.inspection import permutation_importance
from sklearn.model_selection import cross_validate, learning_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from sk_unlearn import (
    CertifiedNeuralClassifier,
    CertifiedNeuralRegressor,
    ShardedClassifier,
    unlearn,
)
from sk_unlearn.exceptions import DeletionRequestError, NotApplicableError
from sk_unlearn.modules import LinearHead, LinearRegressor
from sk_unlearn.preprocessing import PublicOneHotEncoder

X, y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[y]
PEOPLE = pd.DataFrame({"age": X[:, 0], "job": NAMES})
PEOPLE_NUMBERS = pd.DataFrame({"age": X[:, 0], "job": y})


def net(**changes):
    return CertifiedNeuralClassifier(LinearHead, C=100.0, lam=1e-2, **changes)


DATED = PEOPLE_NUMBERS.assign(born=pd.Timestamp(2000, 1, 1))
MIXED = [[1.0, "2.5", datetime(2000, 1, 1, tzinfo=UTC)]] * 75 + [[2.0, "x", None]] * 75


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        (PEOPLE, r"'job' \(such as 'setosa'\), and"),
        (PEOPLE.astype({"job": "category"}), r"'job' \(such as 'setosa'\), and"),
        (DATED, r"'born' \(such as .*2000.*\), and"),
        (PEOPLE.to_numpy(), r"1 \(such as 'setosa'\), and"),
        (PEOPLE.to_numpy().tolist(), r"1 \(such as 'setosa'\), and"),
        (MIXED, r"1 \(such as 'x'\), 2 \(such as datetime.*\), and"),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_columns_without_numbers_are_named_with_the_remedy(table, columns, sharded):
    clf = ShardedClassifier(net(), n_shards=2) if sharded else net()
    with pytest.raises(ValueError, match=columns + ".*PublicOneHotEncoder"):
        clf.fit(table, y)


def test_the_remedy_works_and_later_rows_are_held_to_it_too():
    encoder = PublicOneHotEncoder(categories=[sorted(set(NAMES))])
    columns = make_column_transformer((encoder, ["job"]), remainder="passthrough")
    pipe = make_pipeline(columns, net()).fit(PEOPLE, y)
    assert unlearn(pipe, PEOPLE[:1], y[:1])[-1].certificate_.formal
    numbers = net().fit(PEOPLE_NUMBERS, y)
    with pytest.raises(ValueError, match="'job'.*PublicOneHotEncoder"):
        numbers.predict(PEOPLE)
    with pytest.raises(DeletionRequestError, match="X_u, y_u: X has text.*'job'"):
        numbers.unlearn(PEOPLE[:1], y[:1])


def test_other_faults_keep_scikit_learn_s_words():
    with pytest.raises(ValueError, match="contains NaN"):
        net().fit(PEOPLE_NUMBERS.assign(age=np.nan), y)
    with pytest.raises(ValueError, match=r"could not convert.*'data.csv'"):
        net().fit("data.csv", y)
    many = pd.DataFrame([["x"] * 7] * 150, columns=list("abcdefg"))
    with pytest.raises(ValueError, match=r"'e' \(such as 'x'\), ... \(7 in all\)"):
        net().fit(many, y)
    text_of_numbers = [[str(v) for v in row] for row in X]
    assert net().fit(np.array(text_of_numbers, dtype=object), y).score(X, y) > 0.9


def test_text_for_a_regressor_names_the_classifier():
    with pytest.raises(ValueError, match=r"y contains '?.*setosa.*CertifiedNeuralClassifier"):
        CertifiedNeuralRegressor(LinearRegressor).fit(X, NAMES)


def test_labels_that_are_not_there_are_shown_beside_those_that_are():
    clf = net().fit(X, y)
    with pytest.raises(DeletionRequestError, match=r"\['0'\]; they are \[0, 1, 2\], and others"):
        clf.unlearn(X[:1], ["0"])
    many = net().fit(X, np.arange(150) % 12)
    with pytest.raises(ValueError, match=r"8, 9\] \.\.\., and others"):
        many.partial_fit(X[:1], [77])


def test_one_class_first_asks_for_the_others():
    with pytest.raises(ValueError, match="one class: .0.; declare classes="):
        net().partial_fit(X[:50], y[:50])
    clf = net().partial_fit(X[:50], y[:50], classes=[0, 1, 2]).partial_fit(X[50:], y[50:])
    assert clf.score(X, y) > 0.9


@pytest.mark.parametrize("name", ["u3", b"u3"])
def test_one_id_is_not_a_list_of_ids(name):
    clf = net().fit(X, y, sample_ids=[f"u{i}" for i in range(150)])
    with pytest.raises(DeletionRequestError, match=r"'u3' is one id; give a list: \[b?'u3'\]"):
        clf.unlearn(sample_ids=name)


@pytest.mark.parametrize(
    "ensemble",
    [
        CalibratedClassifierCV(net(), cv=2),
        VotingClassifier([("a", net()), ("b", net())], voting="soft"),
        StackingClassifier([("a", net())], final_estimator=net(), cv=2),
        BaggingClassifier(net(), n_estimators=2),
        RFE(net(), n_features_to_select=2),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_ensemble_works_and_says_why_it_cannot_unlearn(ensemble):
    assert ensemble.fit(X, NAMES).score(X, NAMES) > 0.85
    for fitted in (ensemble, make_pipeline(Normalizer(), ensemble).fit(X, NAMES)):
        with pytest.raises(
            NotApplicableError,
            match=f"{type(ensemble).__name__} has no unlearn.*"
            "carries the deleted ones; take them out",
        ):
            unlearn(fitted, X[:1], NAMES[:1])


def test_tools_of_model_selection_and_inspection_take_a_net():
    _, _, scores = learning_curve(net(), X, y, cv=3, train_sizes=[0.5, 1.0], shuffle=True)
    assert scores.shape == (2, 3) and scores.min() > 0.8
    clf = net().fit(X, y).unlearn(indices=[0])
    important = permutation_importance(clf, X, y, n_repeats=3, random_state=0).importances_mean
    assert important.argmax() in (2, 3)
    result = cross_validate(
        make_pipeline(Normalizer(), net()),
        X,
        NAMES,
        cv=3,
        scoring=["accuracy", "neg_log_loss", "roc_auc_ovr"],
        return_estimator=True,
    )
    assert result["test_roc_auc_ovr"].min() > 0.8
    for pipe, left in zip(result["estimator"], (100, 100, 100), strict=True):
        own = pipe[-1].rows_
        assert pipe[-1].n_rows_ == left
        assert unlearn(pipe, indices=[0])[-1].n_rows_ == left - 1 and len(own) == left


def test_a_clone_after_a_deletion_is_fresh():
    clf = net().fit(X, y).unlearn(indices=[0])
    fresh = clone(clf)
    assert not hasattr(fresh, "certificate_") and not hasattr(fresh, "rows_")
    assert fresh.fit(X, y).n_rows_ == 150 and clf.n_rows_ == 149


def test_sample_ids_are_routed():
    people = [f"u{i // 2}" for i in range(150)]
    with sklearn.config_context(enable_metadata_routing=True):
        asked = net().set_fit_request(sample_ids=True)
        pipe = make_pipeline(Normalizer(), asked).fit(X, y, sample_ids=people)
        params = {"sample_ids": np.array(people)}
        cross_validate(pipe, X, y, cv=2, params=params, error_score="raise")
    assert unlearn(pipe, sample_ids=["u3"])[-1].n_rows_ == 148


def test_rooms_are_there_without_a_second_import():
    code = (
        "import sk_unlearn, sys; assert 'matplotlib' not in sys.modules; "
        "sk_unlearn.preprocessing.PublicScaler; sk_unlearn.datasets.load_adult; "
        "sk_unlearn.features.TorchFeatures; sk_unlearn.audit.audit_unlearning; "
        "assert not hasattr(sk_unlearn, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
