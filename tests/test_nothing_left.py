"""After a release nothing of before is reachable from the estimator or in a file of it.

Exceptions that a caller keeps hold frames, and those hold rows: they are the caller's.
"""

from __future__ import annotations

import io
import pickle

import joblib
import numpy as np
import pytest
from reachable import buffers, count, numbers_in, occurrences, telling
from sklearn.compose import ColumnTransformer
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer

from sk_unlearn import (
    CertifiedNeuralClassifier,
    CertifiedNeuralRegressor,
    ShardedClassifier,
    unlearn,
)
from sk_unlearn.exceptions import SkUnlearnError
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
)
from sk_unlearn.modules import (
    MLP,
    FeatureHead,
    LinearHead,
    Linearized,
    LinearRegressor,
    RidgeHead,
)

N, D = 90, 6
GONE = [3, 50, 51]
rng = np.random.default_rng(8)
X = rng.normal(size=(N, D)).astype(np.float32)
X /= np.linalg.norm(X, axis=1, keepdims=True) * 1.5
y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.3)
OWNERS = np.array([f"owner-{i // 2:03d}" for i in range(N)])
HEAD = {"module": LinearHead, "C": 100.0}
METHODS = {
    "residual": HEAD | {"method": Residual()},
    "residual tol": HEAD | {"method": Residual(noise_std=None, tol=1e-6)},
    "multinomial": HEAD | {"method": Residual(), "module__multi_class": "multinomial"},
    "analytic": {"module": RidgeHead, "C": 100.0, "method": Analytic()},
    "sekhari": HEAD | {"method": SekhariNewton(row_norm=1.3, max_fraction=0.2), "lam": 0.1},
    "descent": HEAD | {"method": DescentToDelete(row_norm=1.3, max_fraction=0.2), "lam": 0.1},
    "output": {"method": OutputPerturbation(finetune_epochs=1)},
    "clipping": {"method": GradientClipping(radius=0.1, clip_norm=0.1, steps=5)},
    "blocks": {"method": GradientClipping(blocks="layer"), "anchor": "init"},
    "model clipping": {"method": ModelClipping(radius=0.1, learning_rate=0.1)},
    "newton": {"method": Newton()},
    "retrain": {"method": Retrain(), "random_state": None},  # or dead units go the same way
    "private": {"method": PrivateTraining(4.0, steps=3, max_deletions=5)},
    "removal": HEAD | {"method": CertifiedRemoval(5.0, row_norm=1.3), "lam": 0.1},
    "feature head": {"module": FeatureHead, "module__backbone": MLP, "C": 100.0},
    "linearized": {"module": Linearized, "module__module": MLP, "lam": 0.1, "C": 100.0},
}


def _fitted(name, **parameters):
    # new weights that are drawn anew in each run now and then equal one of the old ones
    fixed = {"max_epochs": 2, "random_state": 0, "noise_seed": 1}
    net = CertifiedNeuralClassifier(**(fixed | METHODS[name]))
    return net.set_params(**parameters).fit(X, y, sample_ids=OWNERS)


def _dumps(estimator):
    yield pickle.dumps(estimator)
    target = io.BytesIO()
    joblib.dump(estimator, target)
    yield target.getvalue()


def _before(net):
    """The numbers that must go: weights, moments, losses, what was prepared; no public constant."""
    frozen = [p for p in net.module_.parameters() if not p.requires_grad]
    frozen += net.module_.buffers()
    public = numbers_in(net.reference_, net.optimizer_.defaults, net._ball()._inner, X, *frozen)
    parts = [net.module_, net.optimizer_, net.history_, net.method_state_]
    return np.setdiff1d(numbers_in(*parts), public)


def _size(net):
    return sum(map(len, buffers({k: v for k, v in vars(net).items() if k != "ledger_"})))


def _assert_clean(estimator, old, rows=GONE):
    held = list(buffers(estimator))
    assert count(telling([X[rows]]), held) == 0
    assert count(old, held) == 0
    for owner in np.unique(OWNERS[rows]):
        left = np.setdiff1d(np.flatnonzero(OWNERS == owner), rows)
        for name in (owner.encode(), np.array(owner).tobytes()):
            assert len(left) or not any(name in memory for memory in held)
    for content in _dumps(estimator):
        assert occurrences(X[rows].ravel(), content) == 0
        assert occurrences(old, content) == 0


def test_the_walk_finds_what_views_storages_closures_and_containers_hide():
    import torch

    row = X[3].copy()

    class Holder:
        pass

    def hide(value):
        holder = Holder()
        holder.__dict__["deep"] = {"list": [(value,)]}
        return holder

    hidden = [
        np.concatenate([X[:5], X[:5]])[7:8],  # a view: its base is not
        torch.as_tensor(np.array(X))[80:],
        torch.as_tensor(X[3].astype(np.float64)),
        np.asfortranarray(X),
        lambda row=row: row,
        (lambda kept: lambda: kept)(row),
        memoryview(row),
        row.tobytes(),
        [float(v) for v in row],
        np.array([row, None], dtype=object),
        torch.nn.Parameter(torch.tensor(row)),
    ]
    for value in hidden:
        assert count(telling([row]), buffers(hide(value))) > 0, value
    assert count(telling([row]), buffers(hide(X[20:21].copy()))) == 0
    grad = torch.nn.Parameter(torch.zeros(D))
    grad.grad = torch.tensor(row)
    assert count(telling([row]), buffers(hide(grad))) > 0
    assert occurrences(row, pickle.dumps(X[:4])) > 0
    assert occurrences(row, pickle.dumps(X[4:])) == 0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_nothing_of_before_is_left(name, tmp_path):
    net = _fitted(name)
    rows, old = telling([X[GONE]]), _before(net)
    if net.rows_.features is not None:
        old = np.concatenate([old, telling([net.rows_.features.values[GONE]])])
    generator = net.rng_state_.numpy().tobytes()
    assert count(rows, buffers(net)) >= len(rows)
    assert any(generator in memory for memory in buffers(net))
    assert len(old) > 5
    net.predict(X[GONE])
    net.unlearn(X[GONE], y[GONE], epsilon=8.0, delta=1e-4)
    if name == "private":  # its release is the weights as they are
        old = np.empty(0)
    _assert_clean(net, old)
    assert not any(generator in memory for memory in buffers(net))
    for include_data in (False, True):
        net.save(tmp_path / "net", include_data=include_data)
        content = (tmp_path / "net").read_bytes()
        assert occurrences(X[GONE].ravel(), content) == 0
        assert occurrences(old, content) == 0
        assert occurrences(X[80], content) > 0 or not include_data


@pytest.mark.parametrize("name", ["residual", "analytic", "clipping", "newton", "retrain"])
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_left_after_refresh_several_releases_and_training_on(name):
    net = _fitted(name)
    net.unlearn(sample_ids=["owner-010"], epsilon=8.0, delta=1e-4)
    net.refresh()
    net.partial_fit(X[:10], y[:10], sample_ids=OWNERS[:10])
    old = _before(net)
    net.unlearn(X[GONE], y[GONE], epsilon=8.0, delta=1e-4)
    _assert_clean(net, old)
    _assert_clean(net, np.empty(0), [20, 21])


@pytest.mark.parametrize("name", ["residual", "blocks"])
def test_nothing_is_left_in_a_net_that_was_loaded(name, tmp_path):
    _fitted(name).save(tmp_path / "net", include_data=True)
    net = CertifiedNeuralClassifier.load(tmp_path / "net")
    assert count(telling([X[GONE]]), buffers(net)) > 0
    net.refresh()
    old = _before(net)
    net.unlearn(X[GONE], y[GONE], epsilon=8.0, delta=1e-4)
    _assert_clean(net, old)


def test_secret_state_holds_no_deleted_row():
    net = _fitted("residual", method=Residual(state="secret", horizon=3))
    net.unlearn(X[GONE], y[GONE])
    _assert_clean(net, np.empty(0))
    assert len(_before(net)) > 50


@pytest.mark.parametrize("name", ["residual", "clipping"])
def test_nothing_is_left_without_stored_data(name):
    net = _fitted(name, store_data=False)
    old = _before(net)
    rest = np.delete(np.arange(N), GONE)
    net.unlearn(X[GONE], y[GONE], 8.0, 1e-4, X_r=X[rest], y_r=y[rest])
    held = list(buffers(net))
    assert count(telling([X]), held) == 0
    assert count(old, held) == 0


def test_nothing_is_left_beside_permanent_rows(tmp_path):
    net = CertifiedNeuralClassifier(**METHODS["feature head"], max_epochs=2, random_state=0)
    net.fit(X, y, sample_ids=OWNERS, permanent=np.arange(N) >= 60)
    old = np.concatenate([_before(net), telling([net.rows_.features.values[GONE]])])
    net.save(tmp_path / "net", include_data=True)
    loaded = CertifiedNeuralClassifier.load(tmp_path / "net")
    for one in (net, loaded):
        one.unlearn(X[GONE], y[GONE])
        _assert_clean(one, old)
        one.save(tmp_path / "net", include_data=True)
        content = (tmp_path / "net").read_bytes()
        assert occurrences(X[GONE].ravel(), content) == 0 < occurrences(X[80], content)
        assert occurrences(old, content) == 0


def test_nothing_is_left_in_a_regressor(tmp_path):
    targets = (X @ rng.normal(size=D)).astype(np.float32)
    net = CertifiedNeuralRegressor(LinearRegressor, C=100.0).fit(X, targets)
    old = _before(net)
    net.unlearn(X[GONE], targets[GONE])
    held = list(buffers(net))
    assert count(telling([X[GONE]]), held) == 0
    assert count(telling([targets[GONE]]), held) == 0
    assert count(old, held) == 0
    net.save(tmp_path / "net", include_data=True)
    for content in (*_dumps(net), (tmp_path / "net").read_bytes()):
        assert occurrences(X[GONE].ravel(), content) == 0 < occurrences(X[80], content)
        assert occurrences(old, content) == 0


@pytest.mark.filterwarnings("ignore")
def test_nothing_is_left_in_pipelines_and_searches():
    net = CertifiedNeuralClassifier(**HEAD)
    union = FeatureUnion([("same", FunctionTransformer()), ("norm", Normalizer())])
    columns = ColumnTransformer([("some", FunctionTransformer(), [0, 1])], remainder="passthrough")
    inner = Pipeline([("union", union), ("net", net)])
    pipe = Pipeline([("columns", columns), ("inner", inner)])
    search = GridSearchCV(pipe, {"inner__net__lam": [1e-3]}, cv=2)
    for estimator in (pipe.fit(X, y), search.fit(X, y)):
        net = getattr(estimator, "best_estimator_", estimator)[-1][-1]
        old = _before(net)
        assert count(telling([X[GONE]]), buffers(estimator)) > 0
        unlearn(estimator, X[GONE], y[GONE])
        _assert_clean(estimator, old)


def test_nothing_is_left_in_shards_of_models_that_store_rows():
    clf = ShardedClassifier(KNeighborsClassifier(2), n_shards=3, random_state=0)
    clf.fit(X, y, sample_ids=OWNERS)
    assert count(telling([X[GONE]]), buffers(clf)) > 0
    clf.unlearn(X[GONE], y[GONE])
    _assert_clean(clf, np.empty(0))


@pytest.mark.parametrize("name", ["residual", "analytic", "clipping", "newton", "retrain"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.filterwarnings("ignore")
def test_a_failed_release_leaves_no_second_copy(name, error, monkeypatch):
    net = _fitted(name)
    net.predict(X)
    rows, size = count(telling([X[GONE]]), buffers(net)), _size(net)
    everything = count(numbers_in(net), buffers(net))
    original = type(net.method_).unlearn

    def stopped(self, problem, event):
        original(self, problem, event)
        raise error("stopped")

    with monkeypatch.context() as context:
        context.setattr(type(net.method_), "unlearn", stopped)
        with pytest.raises(error, match="stopped"):
            net.unlearn(X[GONE], y[GONE], epsilon=8.0, delta=1e-4)
    with pytest.raises(SkUnlearnError):
        net.unlearn(X[GONE], y[GONE], epsilon=-1.0)
    assert count(telling([X[GONE]]), buffers(net)) == rows
    assert count(numbers_in(net), buffers(net)) <= everything
    assert _size(net) <= size + 500
    net.unlearn(X[GONE], y[GONE], epsilon=8.0, delta=1e-4)
    _assert_clean(net, np.empty(0))
