"""Malformed deletions: one of our errors, and the estimator, to the last byte, as it was."""

from __future__ import annotations

import pickle
from collections import Counter
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.datasets import load_iris
from sklearn.preprocessing import Normalizer

from sk_unlearn import (
    CertifiedNeuralClassifier,
    CertifiedNeuralRegressor,
    ShardedClassifier,
    UnlearningPipeline,
)
from sk_unlearn.exceptions import SkUnlearnError
from sk_unlearn.modules import LinearHead, LinearRegressor

X, y = load_iris(return_X_y=True)
LABELS = np.array(["a", "b", "c"])[y]
SCALARS = [
    *(None, True, False, 0, 1, -1, 2**70, -(2**70), 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), 1j, "", "abc", "1.0", "ä\ud800", b"", b"x"),
    *(np.float64("nan"), np.int8(-1), np.bool_(True), np.str_("a"), np.datetime64("2020-01-01")),
    *(Decimal("0.1"), Fraction(1, 3), datetime(2020, 1, 1), object(), int, len, Ellipsis),
]
ARRAYS = [
    *([], (), {}, set(), [[]], [None], [[None]], [[1, 2], [3]], {0: 1}, {"a": 1}, {1, 2}, range(3)),
    *([True], [0.5], [-1], [10**6], [2**70], [0, 0], ["a"], [b"a"], [1, "a"], [[0]], [object()]),
    *([float("nan")], [1j], [[0, 1]], [np.nan, 1], "0", np.array(3), np.array([]), np.array("a")),
    *(np.zeros((2, 0)), np.zeros((0, 4)), np.zeros((2, 3)), np.zeros((2, 4, 4)), np.zeros(4)),
    *(np.full((2, 4), np.nan), np.full((2, 4), np.inf), np.full((2, 4), 1e300), X[:2] + 1e-3),
    *(X[:2] * 1j, X[:2].astype(str), X[:2].astype(object), np.full((2, 4), None), X, X[:149]),
    *(np.ma.masked_array(X[:2], mask=True), np.zeros(2, dtype=[("a", int)]), X[[0, 0, 0]]),
    *(scipy.sparse.csr_matrix(X[:2]), scipy.sparse.eye(4), torch.zeros(2, 4), torch.zeros(2, 3)),
    *(torch.zeros(2, 4, requires_grad=True), pd.DataFrame(X[:2], columns=list("abcd"))),
    *(pd.DataFrame({"a": ["x", None]}), pd.Series([0, None]), pd.Series(dtype=object), iter([1])),
    *(np.ones(150, dtype=bool), np.ones(3, dtype=bool), np.array([0, 1], dtype="datetime64[s]")),
    *(memoryview(b"abc"), bytearray(b"abc"), np.arange(150), [149, 150], np.array([[0], [1]])),
    *(["nobody"], ["owner-0", "owner-0"], ["owner-0", 1], np.array(["owner-0", None]), "owner-0"),
]
NAMES = ("X_u", "y_u", "epsilon", "delta", "indices", "sample_ids")


def _estimators():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0, random_state=0)
    owners = [f"owner-{i // 5}" for i in range(150)]
    named = pickle.loads(pickle.dumps(net))
    pipe = UnlearningPipeline([("norm", Normalizer()), ("net", pickle.loads(pickle.dumps(net)))])
    bare = CertifiedNeuralClassifier(LinearHead, C=100.0, store_data=False, random_state=0)
    sharded = ShardedClassifier(CertifiedNeuralClassifier(max_epochs=1), n_shards=2)
    return {
        "net": net.fit(X, y),
        "owners": named.fit(X, LABELS, sample_ids=owners),
        "without rows": bare.fit(X, y),
        "regressor": CertifiedNeuralRegressor(LinearRegressor, C=100.0).fit(X, X[:, :2]),
        "pipeline": pipe.fit(X, y),
        "sharded": sharded.fit(X, y),
    }


def _call(rng, name):
    """A deletion as it should be, with some arguments replaced, added or taken away."""
    rows = rng.choice(150, size=rng.integers(1, 4), replace=False)
    labels = {"owners": LABELS, "regressor": X[:, :2]}.get(name, y)
    good = [{"X_u": X[rows], "y_u": labels[rows]}, {"indices": rows.tolist()}]
    good += [{"sample_ids": ["owner-3"]}] if name == "owners" else []
    call = dict(good[rng.integers(len(good))])
    names = NAMES if name == "sharded" else (*NAMES, "X_r", "y_r")
    if name not in ("sharded", "pipeline"):
        names = (*names, "assumptions", "scope")
    if name == "without rows" and rng.random() < 0.7:
        call = good[0] | {"X_r": np.delete(X, rows, axis=0), "y_r": np.delete(y, rows)}
    if rng.random() < 0.15 and "X_u" in call:
        near = [{"X_u": X[rows] + 1e-3}, {"y_u": labels[(rows + 75) % 150]}]
        near.append({"X_u": X[[*rows, *rows]], "y_u": labels[[*rows, *rows]]})
        return call | near[rng.integers(3)]
    for _ in range(rng.integers(1, 3)):
        pool = SCALARS if rng.random() < 0.4 else ARRAYS
        call[names[rng.integers(len(names))]] = pool[rng.integers(len(pool))]
    if rng.random() < 0.1:
        call.pop(list(call)[rng.integers(len(call))])
    return call


def _amend_call(rng, name):
    """A correction as it should be, with some arguments replaced, or taken away."""
    rows = rng.choice(150, size=rng.integers(1, 4), replace=False)
    labels = {"owners": LABELS, "regressor": X[:, :2]}.get(name, y)
    old = [{"X_old": X[rows], "y_old": labels[rows]}, {"indices": rows.tolist()}]
    call = old[rng.integers(2)] | {"X_new": X[rows] + 0.1, "y_new": labels[(rows + 75) % 150]}
    names = ("X_old", "y_old", "X_new", "y_new", *NAMES[2:])
    if rng.random() < 0.15:
        near = [{}, {"X_new": X[rows[:-1]], "y_new": labels[rows[:-1]]}]
        near += [{"X_old": X[rows] + 1e-3}, {"y_old": labels[(rows + 75) % 150]}]
        return call | near[rng.integers(2 + 2 * ("X_old" in call))]
    for _ in range(rng.integers(1, 3)):
        pool = SCALARS if rng.random() < 0.4 else ARRAYS
        call[names[rng.integers(len(names))]] = pool[rng.integers(len(pool))]
    if rng.random() < 0.1:
        call.pop(list(call)[rng.integers(len(call))])
    return call


def _fuzz(n_calls, seed, verb="unlearn"):
    rng = np.random.default_rng(seed)
    estimators = {k: e for k, e in _estimators().items() if hasattr(e, verb)}
    images = {name: pickle.dumps(estimator) for name, estimator in estimators.items()}
    outcomes = Counter()
    while outcomes.total() - outcomes["served"] < n_calls:
        name = list(estimators)[rng.integers(len(estimators))]
        call = _call(rng, name) if verb == "unlearn" else _amend_call(rng, name)
        estimator = estimators[name]
        try:
            getattr(estimator, verb)(**call)
        except SkUnlearnError as error:
            outcomes[type(error).__name__] += 1
            assert str(error), call
            assert pickle.dumps(estimator) == images[name], call
        except Exception as error:
            raise AssertionError(f"{name}.{verb}(**{call!r}) raised {error!r}") from error
        else:
            outcomes["served"] += 1
            estimators[name] = pickle.loads(images[name])
            images[name] = pickle.dumps(estimators[name])
    return outcomes


@pytest.mark.filterwarnings("ignore")
def test_a_few_hundred_malformed_calls():
    outcomes = _fuzz(300, seed=0)
    assert outcomes["DeletionRequestError"] > 100
    assert outcomes["UnknownRowError"] > 5


@pytest.mark.filterwarnings("ignore")
def test_a_few_hundred_malformed_corrections():
    outcomes = _fuzz(300, seed=2, verb="amend")
    assert outcomes["DeletionRequestError"] > 100
    assert outcomes["UnknownRowError"] > 5 and outcomes["served"] > 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_thousands_of_malformed_calls():
    outcomes = _fuzz(2500, seed=1)
    assert outcomes.total() - outcomes["served"] >= 2500
    assert 0 < outcomes["served"] < 1500
