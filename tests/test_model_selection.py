"""The scorer for model selection: the accuracy after a deletion, and nothing of it remains."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from sk_unlearn import (
    CertifiedNeuralClassifier,
    ShardedClassifier,
    make_unlearning_scorer,
    unlearn,
)
from sk_unlearn.exceptions import DeletionRequestError, NotApplicableError
from sk_unlearn.methods import OutputPerturbation, Residual
from sk_unlearn.modules import LinearHead

X, y = load_iris(return_X_y=True)


def _net(**parameters):
    return CertifiedNeuralClassifier(LinearHead, C=100.0, random_state=0, **parameters)


_CAUGHT = []


def _catch(estimator, X, y):
    _CAUGHT.append(estimator)
    return 0.0


def _released_by(scorer, estimator):
    _CAUGHT.clear()
    scorer(estimator, X, y)
    return _CAUGHT[-1]


def _positions(rows):
    return np.array([np.flatnonzero((X.astype(np.float32) == row).all(axis=1))[0] for row in rows])


def test_the_score_is_that_of_the_released_model():
    """Against the deletion done by hand, with noise too small to matter."""
    net = _net(method=Residual(noise_std=1e-6), lam=1e-2).fit(X, y)
    catching = make_unlearning_scorer(_catch, fraction=0.1, random_state=3)
    released = _released_by(catching, net)
    assert len(released.rows_) == 135
    assert released.certificate_.n_deleted == 15
    by_hand = clone(net).fit(released.rows_.X, y[_positions(released.rows_.X)])
    np.testing.assert_allclose(
        released.module_.linear.weight.detach(), by_hand.module_.linear.weight.detach(), atol=1e-4
    )
    scorer = make_unlearning_scorer(fraction=0.1, random_state=3)
    assert scorer(net, X, y) == accuracy_score(y, released.predict(X))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: make_pipeline(Normalizer(), net),
        lambda net: Pipeline([("a", "passthrough"), ("b", make_pipeline(Normalizer(), net))]),
        lambda net: GridSearchCV(make_pipeline(Normalizer(), net), {}, cv=2),
    ],
)
def test_the_scored_estimator_does_not_change(wrap):
    estimator = wrap(_net(noise_seed=7)).fit(X, y)
    before = pickle.dumps(estimator)
    score = make_unlearning_scorer(fraction=0.05, n_draws=2)(estimator, X, y)
    assert 0.5 < score <= 1
    assert pickle.dumps(estimator) == before
    unlearn(estimator, X[:2], y[:2])


def test_noise_is_fresh_although_a_seed_is_set_and_rows_are_those_of_random_state():
    net = _net(noise_seed=7).fit(X, y)
    scorer = make_unlearning_scorer(_catch, fraction=0.05, random_state=1)
    one, other = _released_by(scorer, net), _released_by(scorer, net)
    np.testing.assert_array_equal(one.rows_.X, other.rows_.X)
    assert not np.array_equal(
        one.module_.linear.weight.detach(), other.module_.linear.weight.detach()
    )
    (noise,) = [a for a in one.certificate_.assumptions if a.name == "noise"]
    assert noise.status.formal


def test_several_draws_are_averaged_and_differ():
    net = _net(method=OutputPerturbation(), max_epochs=1).fit(X, y)
    scores = []

    def score(estimator, X, y):
        scores.append(estimator.score(X, y))
        return scores[-1]

    mean = make_unlearning_scorer(score, n_draws=8)(net, X, y)
    assert len(scores) == 8
    assert len(set(scores)) > 1
    assert mean == pytest.approx(np.mean(scores))


def test_a_search_sees_what_the_noise_destroys():
    """Both fits are good; noise of 0.3 per weight leaves only the one with the larger weights."""
    pipe = Pipeline([("id", "passthrough"), ("net", _net(method=Residual(noise_std=0.3)))])
    search = GridSearchCV(
        pipe,
        {"net__lam": [1e-4, 1e-2]},
        scoring={"after": make_unlearning_scorer(n_draws=20), "before": "accuracy"},
        refit="after",
        cv=3,
    ).fit(X, y)
    (good, bad), (light, heavy) = (
        search.cv_results_[f"mean_test_{k}"] for k in ("after", "before")
    )
    assert min(light, heavy) > 0.93
    assert good > 0.85 > bad
    assert search.best_params_ == {"net__lam": 1e-4}


@pytest.mark.slow
def test_cross_val_score_in_parallel():
    scorer = make_unlearning_scorer("balanced_accuracy", fraction=0.05, random_state=0)
    parallel = cross_val_score(_net(), X, y, scoring=scorer, cv=2, n_jobs=2, error_score="raise")
    assert parallel.shape == (2,)
    assert (parallel > 0.8).all()


def test_pickle_clone_and_repr():
    scorer = make_unlearning_scorer("accuracy", epsilon=2.0)
    assert vars(pickle.loads(pickle.dumps(scorer))) == vars(scorer)
    assert eval(repr(scorer)).epsilon == 2.0
    search = clone(GridSearchCV(_net(), {"lam": [1e-2]}, scoring=scorer))
    assert search.scoring.scoring == "accuracy"


def test_draws_never_take_the_last_row_of_a_class():
    rows = np.r_[0:50, 50:51]
    net = _net().fit(X[rows], y[rows])
    scorer = make_unlearning_scorer(_catch, fraction=0.9)
    for _ in range(5):
        assert set(_released_by(scorer, net).rows_.y) == {0, 1}
    declared = _net(classes=[0, 1]).fit(X[rows], y[rows])
    scorer = make_unlearning_scorer(_catch, fraction=0.98)
    assert len(_released_by(scorer, declared).rows_) == 1
    with pytest.raises(DeletionRequestError, match=r"fraction=0\.98: 50 of 51 training rows"):
        scorer(net, X, y)


def test_sharded_classifiers_are_scored_too():
    sharded = ShardedClassifier(LogisticRegression(max_iter=500), random_state=0).fit(X, y)
    score = make_unlearning_scorer(fraction=0.02)(sharded, X, y)
    assert score > 0.8
    assert len(sharded.rows_) == 150


def test_what_cannot_be_scored_is_refused():
    leaky = make_pipeline(StandardScaler(), _net()).fit(X, y)
    with pytest.raises(NotApplicableError, match="standardscaler"):
        make_unlearning_scorer()(leaky, X, y)
    assert make_unlearning_scorer(allow_leaks=True)(leaky, X, y) > 0.8
    with pytest.raises(NotApplicableError, match="LogisticRegression has no unlearn"):
        make_unlearning_scorer()(LogisticRegression().fit(X, y), X, y)
    with pytest.raises(DeletionRequestError, match="store_data=True"):
        make_unlearning_scorer()(_net(store_data=False).fit(X, y), X, y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"scoring": "acuracy"}, "acuracy"),
        ({"scoring": ["accuracy"]}, "one metric"),
        ({"epsilon": 0}, "epsilon=0"),
        ({"delta": 2.0}, "delta=2.0"),
        ({"fraction": 1.0}, "fraction=1.0"),
        ({"fraction": True}, "fraction=True"),
        ({"n_draws": 0}, "n_draws=0"),
        ({"random_state": "a"}, "'a'"),
    ],
)
def test_bad_parameters_are_quoted_at_once(parameters, message):
    with pytest.raises(ValueError, match=message):
        make_unlearning_scorer(**parameters)
