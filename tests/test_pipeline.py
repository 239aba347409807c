"""Deletion through pipelines: what is classified as leaking, and what the certificate says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.feature_extraction import FeatureHasher
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, OneHotEncoder, StandardScaler

from sk_unlearn import (
    CertifiedNeuralClassifier,
    ShardedClassifier,
    Status,
    UnlearningPipeline,
    unlearn,
)
from sk_unlearn.exceptions import DeletionRequestError, NotApplicableError, UnknownRowError
from sk_unlearn.modules import LinearHead
from sk_unlearn.pipeline import fitted_steps, frozen_steps
from sk_unlearn.preprocessing import PublicOneHotEncoder, PublicScaler

X, y = load_iris(return_X_y=True)


def _net():
    return CertifiedNeuralClassifier(LinearHead, C=100.0)


CLEAN = [
    Normalizer(),
    "passthrough",
    None,
    FunctionTransformer(np.log1p),
    FrozenEstimator(StandardScaler().fit(X)),
    FeatureUnion([("a", Normalizer()), ("b", "passthrough"), ("c", "drop")]),
    ColumnTransformer([("a", Normalizer(), [0, 1])], remainder="passthrough"),
    Pipeline([("a", Normalizer()), ("b", FeatureUnion([("c", FunctionTransformer())]))]),
]
LEAKY = [
    (StandardScaler(), ["s"]),
    (make_pipeline(Normalizer(), PCA(2)), ["s.pca"]),
    (FeatureUnion([("a", Normalizer()), ("b", PCA(2))]), ["s.b"]),
    (
        ColumnTransformer(
            [("a", StandardScaler(), [0]), ("b", Normalizer(), [1, 2])], remainder=StandardScaler()
        ),
        ["s.a", "s.remainder"],
    ),
]


@pytest.mark.parametrize("step", CLEAN, ids=str)
def test_clean_steps_give_a_formal_certificate(step):
    assert fitted_steps(step, "s") == []
    pipe = Pipeline([("s", step), ("net", _net())]).fit(X, y)
    assert unlearn(pipe, X[:3], y[:3]) is pipe
    certificate = pipe[-1].certificate_
    assert certificate.formal
    assert certificate.n_deleted == 3
    named = [text for text in certificate.scope if "frozen by declaration" in text]
    assert len(named) == len(frozen_steps(step, "s"))


@pytest.mark.parametrize(("step", "names"), LEAKY)
@pytest.mark.parametrize("fitted", [False, True])
def test_fitted_steps_are_refused_and_named(step, names, fitted):
    pipe = Pipeline([("s", step), ("net", _net())]).fit(X, y)
    assert fitted_steps(pipe[0] if fitted else step, "s") == names
    before = dict(vars(pipe[-1]))
    with pytest.raises(NotApplicableError, match=r"PublicScaler\(center") as error:
        unlearn(pipe, X[:3], y[:3])
    assert all(name in str(error.value) for name in names)
    assert vars(pipe[-1]) == before


@pytest.mark.parametrize(("step", "names"), LEAKY)
def test_leaks_may_be_allowed_but_then_it_is_not_formal(step, names):
    pipe = UnlearningPipeline([("s", step), ("net", _net())]).fit(X, y)
    pipe.unlearn(X[:3], y[:3], allow_leaks=True)
    certificate = pipe.certificate_
    assert not certificate.formal
    (leak,) = [a for a in certificate.assumptions if a.name == "preprocessing"]
    assert leak.status is Status.ASSUMED
    assert all(name in leak.statement for name in names)


def test_through_a_grid_search_and_nested_pipelines():
    inner = make_pipeline(FunctionTransformer(), _net())
    pipe = Pipeline([("norm", Normalizer()), ("skip", "passthrough"), ("inner", inner)])
    search = GridSearchCV(pipe, {"inner__certifiedneuralclassifier__lam": [1e-3, 1e-2]}, cv=2)
    search.fit(X, y)
    unlearn(search, X[:4], y[:4], epsilon=0.5)
    net = search.best_estimator_[-1][-1]
    assert net.certificate_.epsilon == 0.5
    assert net.certificate_.formal
    assert len(net.rows_) == len(X) - 4
    assert search.predict(X).shape == y.shape


def test_data_frames_by_column():
    frame = pd.DataFrame(X, columns=list("abcd"))
    columns = ColumnTransformer([("n", Normalizer(), ["a", "b"])], remainder="passthrough")
    pipe = UnlearningPipeline([("columns", columns), ("net", _net())]).fit(frame, y)
    pipe.unlearn(frame.iloc[[3, 99]], y[[3, 99]])
    assert pipe.certificate_.n_deleted == 2
    with pytest.raises(UnknownRowError):
        pipe.unlearn(frame.iloc[[3]], y[[3]])


def test_ids_and_indices_reach_the_net():
    pipe = make_pipeline(Normalizer(), _net())
    pipe.fit(X, y, certifiedneuralclassifier__sample_ids=np.arange(150) // 2)
    unlearn(pipe, sample_ids=[0, 70])
    unlearn(pipe, indices=[0])
    assert len(pipe[-1].rows_) == 145
    with pytest.raises(DeletionRequestError, match="exactly one way"):
        unlearn(pipe)


def test_the_net_alone_and_estimators_that_cannot():
    net = _net().fit(X, y)
    assert unlearn(net, indices=[0]) is net
    with pytest.raises(NotApplicableError, match="LogisticRegression has no unlearn"):
        unlearn(make_pipeline(Normalizer(), LogisticRegression()).fit(X, y), X[:1], y[:1])
    assert not hasattr(UnlearningPipeline([("m", LogisticRegression())]), "unlearn")


def test_a_sharded_classifier_at_the_end():
    sharded = ShardedClassifier(LogisticRegression(max_iter=500), random_state=0)
    pipe = make_pipeline(Normalizer(), sharded).fit(X, y)
    certificate = unlearn(pipe, X[:2], y[:2])[-1].certificate_
    assert certificate.formal and certificate.n_deleted == 2
    assert any("normalizer" in text for text in certificate.scope)
    leaky = make_pipeline(StandardScaler(), sharded).fit(X, y)
    unlearn(leaky, X[:2], y[:2], allow_leaks=True)
    assert not leaky[-1].certificate_.formal


PEOPLE = pd.DataFrame(
    {
        "age": X[:, 0] * 10,
        "hours": X[:, 1],
        "job": np.where(X[:, 2] > 3, "clerk", "farmer"),
        "sex": np.where(X[:, 3] > 1, "f", "m"),
    }
)
SPECIES = pd.Series(np.array(["setosa", "versicolor", "virginica"])[y], name="species")


def _people(**parameters):
    scale = PublicScaler(center=[50, 3], scale=[10, 1])
    encode = PublicOneHotEncoder(categories=[["clerk", "farmer"], ["f", "m"]])
    columns = ColumnTransformer([("n", scale, ["age", "hours"]), ("c", encode, ["job", "sex"])])
    net = CertifiedNeuralClassifier(LinearHead, C=100.0, **parameters)
    return Pipeline([("columns", columns), ("net", net)])


def test_frames_text_labels_and_owners_through_a_search():
    search = GridSearchCV(_people(), {"net__lam": [1e-3, 1e-2]}, cv=2)
    owners = pd.Series([f"user-{i // 3}" for i in range(150)])
    search.fit(PEOPLE, SPECIES, net__sample_ids=owners)
    shuffled = PEOPLE[["sex", "hours", "age", "job"]]
    unlearn(search, shuffled.iloc[[149]], SPECIES.iloc[[149]])
    unlearn(search, sample_ids=pd.Series(["user-0"]))
    net = search.best_estimator_[-1]
    assert net.certificate_.formal and net.certificate_.n_deleted == 3
    assert len(net.rows_) == 146
    assert set(search.predict(PEOPLE)) <= set(SPECIES)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (PEOPLE.iloc[:2].drop(columns="job"), r"X_u .* step 'columns': .*job"),
        (PEOPLE.iloc[:2].assign(job="nurse"), r"step 'columns': .*nurse"),
        (PEOPLE.iloc[:2].assign(age=np.nan), r"step 'columns': .*NaN"),
        (PEOPLE.iloc[:0], r"step 'columns': .*0 sample"),
        (PEOPLE.iloc[0], "step 'columns'"),
        ("not rows", "step 'columns'"),
    ],
)
def test_rows_that_no_step_can_transform_are_a_bad_request(rows, message):
    pipe = _people().fit(PEOPLE, SPECIES)
    before = dict(vars(pipe[-1]))
    with pytest.raises(DeletionRequestError, match=message):
        unlearn(pipe, rows, SPECIES.iloc[:2])
    assert vars(pipe[-1]) == before


def test_rows_that_stay_pass_through_the_steps_too():
    pipe = _people(store_data=False).fit(PEOPLE, SPECIES)
    with pytest.raises(DeletionRequestError, match="X_r, y_r"):
        unlearn(pipe, PEOPLE[:2], SPECIES[:2])
    unlearn(pipe, PEOPLE[:2], SPECIES[:2], X_r=PEOPLE[2:], y_r=SPECIES[2:])
    assert pipe[-1].certificate_.n_retained == 148


def test_a_cache_on_disk_is_named_in_the_scope(tmp_path):
    cached = Pipeline([("norm", Normalizer()), ("net", _net())], memory=str(tmp_path))
    outer = GridSearchCV(Pipeline([("inner", cached)]), {}, cv=2).fit(X, y)
    unlearn(outer, X[:2], y[:2])
    scope = outer.best_estimator_[-1][-1].certificate_.scope
    assert any("cache on disk" in text for text in scope)
    plain = make_pipeline(Normalizer(), _net()).fit(X, y)
    unlearn(plain, X[:2], y[:2])
    assert not any("cache on disk" in text for text in plain[-1].certificate_.scope)


@pytest.mark.parametrize(
    "encoder", [OneHotEncoder(categories=[["clerk", "farmer"], ["f", "m"]]), FeatureHasher(8)]
)
def test_sparse_features_are_refused_at_fit(encoder):
    rows = PEOPLE[["job", "sex"]]
    rows = rows if isinstance(encoder, OneHotEncoder) else rows.to_dict("records")
    with pytest.raises(TypeError, match="Sparse data was passed for X, but dense data is required"):
        Pipeline([("encode", encoder), ("net", _net())]).fit(rows, SPECIES)


@pytest.mark.parametrize("refit", [True, False])
def test_a_search_without_a_net_in_it_is_refused(refit):
    search = GridSearchCV(_people(), {"net__lam": [1e-2]}, cv=2, refit=refit)
    if not refit:
        search.fit(PEOPLE, SPECIES)
    with pytest.raises(NotApplicableError, match="refit=True, and fitted"):
        unlearn(search, PEOPLE[:2], SPECIES[:2])
