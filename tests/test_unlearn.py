"""Requests: what is refused, in which words, and what the certificate then says."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier, Status
from sk_unlearn._net import to_vector
from sk_unlearn.exceptions import (
    DeletionRequestError,
    NotApplicableError,
    ToleranceNotReachedError,
    UnknownRowError,
    UnlearningWarning,
)
from sk_unlearn.methods import Analytic, OutputPerturbation, Residual, Retrain
from sk_unlearn.modules import LinearHead, RidgeHead

X, y = load_iris(return_X_y=True)
X = X.astype(np.float32)
NAMES = np.array(["setosa", "versicolor", "virginica"])


@pytest.fixture
def net():
    return CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X, NAMES[y])


WRONG = np.array(["virginica"])
FAR = np.full((1, 4), 99.0)


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({}, DeletionRequestError, "exactly one way"),
        ({"indices": [0], "sample_ids": [1]}, DeletionRequestError, "exactly one way"),
        ({"X_u": X[:1], "y_u": NAMES[y[:1]], "indices": [0]}, DeletionRequestError, "exactly one"),
        ({"X_u": X[:1]}, DeletionRequestError, "y_u is missing"),
        ({"y_u": NAMES[y[:1]]}, DeletionRequestError, "X_u is missing"),
        ({"X_u": FAR, "y_u": NAMES[:1]}, UnknownRowError, "rows 0 of X_u are not among the 150"),
        ({"X_u": X[:1], "y_u": WRONG}, UnknownRowError, "row 0: 'setosa', not 'virginica'"),
        ({"X_u": X[:1], "y_u": ["rose"]}, DeletionRequestError, "rose"),
        ({"X_u": X[:1, :3], "y_u": NAMES[:1]}, DeletionRequestError, "3 features"),
        ({"X_u": X[:2], "y_u": NAMES[:1]}, DeletionRequestError, "inconsistent"),
        ({"X_u": X[:1] * np.nan, "y_u": NAMES[:1]}, DeletionRequestError, "NaN"),
        (
            {"X_u": [["a"] * 4], "y_u": NAMES[:1]},
            DeletionRequestError,
            "text or dates in the columns 0",
        ),
        ({"X_u": X[[0, 0]], "y_u": NAMES[[0, 0]]}, UnknownRowError, "more often"),
        ({"indices": [0, 0]}, DeletionRequestError, "indices 0 are named twice"),
        ({"indices": [150]}, UnknownRowError, "indices 150 are outside 0 ... 149"),
        ({"indices": [-1]}, UnknownRowError, "indices -1 are outside"),
        ({"indices": [0.5]}, DeletionRequestError, "whole numbers"),
        ({"indices": "abc"}, DeletionRequestError, "whole numbers"),
        ({"indices": [[1, 2]]}, DeletionRequestError, "whole numbers"),
        ({"sample_ids": [1]}, DeletionRequestError, "without sample_ids"),
        ({"indices": range(150)}, DeletionRequestError, "all 150 training rows"),
        ({"indices": range(50)}, DeletionRequestError, "last row of class 'setosa'"),
        ({"indices": [0], "epsilon": 0}, DeletionRequestError, "epsilon=0"),
        ({"indices": [0], "epsilon": -1.0}, DeletionRequestError, "epsilon=-1.0"),
        ({"indices": [0], "epsilon": np.inf}, DeletionRequestError, "epsilon=inf"),
        ({"indices": [0], "epsilon": "1"}, DeletionRequestError, "epsilon='1'"),
        ({"indices": [0], "delta": 0.0}, DeletionRequestError, "delta=0.0"),
        ({"indices": [0], "delta": 1.0}, DeletionRequestError, "delta=1.0"),
        ({"indices": [0], "delta": 1e-13}, DeletionRequestError, "beyond what the tails"),
        ({"indices": [0], "epsilon": 501.0}, DeletionRequestError, "beyond what the tails"),
        ({"indices": [0], "delta": np.nan}, DeletionRequestError, "delta=nan"),
        ({"indices": [0], "X_r": X, "y_r": y}, DeletionRequestError, "store_data=False"),
    ],
)
def test_a_bad_request_is_named_and_changes_nothing(net, request_, error, message):
    before, weights = dict(vars(net)), to_vector(net._trainable())
    with pytest.raises(error, match=message):
        net.unlearn(**request_)
    assert vars(net) == before
    np.testing.assert_array_equal(to_vector(net._trainable()), weights)
    assert not hasattr(net, "certificate_")


def test_before_fit():
    with pytest.raises(NotFittedError):
        CertifiedNeuralClassifier().unlearn(X[:1], y[:1])


def test_deleting_twice_is_an_error(net):
    net.unlearn(X[:1], NAMES[y[:1]])
    with pytest.raises(UnknownRowError, match="were deleted before"):
        net.unlearn(X[:1], NAMES[y[:1]])


def test_unknown_and_repeated_ids():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0)
    net.fit(X, y, sample_ids=np.repeat(np.arange(50), 3))
    with pytest.raises(UnknownRowError, match="sample_ids 50, 51 own no training row"):
        net.unlearn(sample_ids=[1, 50, 51])
    with pytest.raises(DeletionRequestError, match="sample_ids 4 are named twice"):
        net.unlearn(sample_ids=[4, 4])
    with pytest.raises(ValueError, match="2 sample_ids for 150 rows"):
        net.fit(X, y, sample_ids=[1, 2])
    net.unlearn(sample_ids=[1, 7])
    assert net.certificate_.n_deleted == 6
    assert not np.isin(net.rows_.sample_ids, [1, 7]).any()


@pytest.mark.parametrize("ids", [["a", 1] * 75, np.array(["a", 1] * 75, dtype=object)])
def test_ids_of_mixed_types_are_refused(ids):
    with pytest.raises(ValueError, match="mix text with other types"):
        CertifiedNeuralClassifier(LinearHead).fit(X, y, sample_ids=ids)


def test_duplicates_that_stay_are_counted_for_the_operator_only():
    doubled, labels = np.concatenate([X, X[:3]]), np.concatenate([y, y[:3]])
    net = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(doubled, labels)
    net.unlearn(X[:3], y[:3])
    assert net.certificate_.diagnostics["duplicates_retained"] == 3
    assert "3 retained rows are equal" in net.certificate_.to_json()
    assert "duplicates" not in net.certificate_.to_json("public")
    net.unlearn(X[:3], y[:3])
    assert len(net.rows_) == 147


def test_the_last_row_of_a_declared_class_may_go():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0, classes=[0, 1, 2]).fit(X, y)
    net.unlearn(indices=range(50))
    assert net.certificate_.n_deleted == 50
    assert net.predict_proba(X).shape == (150, 3)


def test_without_stored_data_the_caller_brings_the_rows():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0, store_data=False).fit(X, y)
    assert net.rows_ is None
    with pytest.raises(DeletionRequestError, match="pass the rows to delete"):
        net.unlearn(X[:2], y[:2])
    with pytest.raises(DeletionRequestError, match="2 rows to delete and 147"):
        net.unlearn(X[:2], y[:2], X_r=X[3:], y_r=y[3:])
    net.unlearn(X[:2], y[:2], X_r=X[2:], y_r=y[2:])
    assert any("X_r" in text for text in net.certificate_.scope)
    net.unlearn(X[2:4], y[2:4], X_r=X[4:], y_r=y[4:])
    assert net.n_rows_ == 146


class WithBatchNorm(nn.Module):
    def __init__(self, n_features_in, n_classes):
        super().__init__()
        self.norm = nn.BatchNorm1d(n_features_in)
        self.head = nn.Linear(n_features_in, n_classes)

    def forward(self, X):
        return self.head(self.norm(X))


class FrozenBatchNorm(WithBatchNorm):
    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


class Counter(nn.Module):
    def __init__(self, n_features_in, n_classes):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.head = nn.Linear(n_features_in, n_classes)

    def forward(self, X):
        if self.training:
            self.total += X.sum()
        return self.head(X)


def test_buffers_that_data_feeds_are_refused_with_a_remedy():
    noisy = {"method": OutputPerturbation(), "max_epochs": 2}
    with pytest.raises(NotApplicableError, match=r"layer 'norm' .*GroupNorm"):
        CertifiedNeuralClassifier(WithBatchNorm, **noisy).fit(X, y)
    with pytest.raises(NotApplicableError, match="buffer 'total' changed"):
        CertifiedNeuralClassifier(Counter, **noisy).fit(X, y)
    CertifiedNeuralClassifier(FrozenBatchNorm, **noisy).fit(X, y).unlearn(indices=[0])


def test_retraining_covers_batch_norm():
    net = CertifiedNeuralClassifier(WithBatchNorm, method=Retrain(), random_state=0).fit(X, y)
    net.unlearn(indices=[0, 80])
    keep = np.delete(np.arange(150), [0, 80])
    cold = CertifiedNeuralClassifier(WithBatchNorm, random_state=0).fit(X[keep], y[keep])
    for name, value in cold.module_.state_dict().items():
        assert torch.equal(value, net.module_.state_dict()[name])


def test_auto_says_once_that_it_retrains():
    deep = CertifiedNeuralClassifier(max_epochs=1).fit(X, y)
    with pytest.warns(UnlearningWarning, match="retrains from scratch") as caught:
        deep.unlearn(indices=[0]).unlearn(indices=[0])
    assert len(caught) == 1
    assert isinstance(deep.method_, Retrain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CertifiedNeuralClassifier(max_epochs=1, method=Retrain()).fit(X, y).unlearn(indices=[0])
        head = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X, y).unlearn(indices=[0])
    assert isinstance(head.method_, Residual)
    ridge = CertifiedNeuralClassifier(RidgeHead, C=100.0).fit(X, y)
    assert isinstance(ridge.method_, Analytic)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"module": None}, "MLP is not known to be affine"),
        ({"module": LinearHead, "lam": 0.0}, "lam=0"),
        ({"module": LinearHead, "criterion": nn.CrossEntropyLoss}, "not the head's own"),
        (
            {
                "module": LinearHead,
                "module__multi_class": "multinomial",
                "criterion": nn.CrossEntropyLoss(label_smoothing=0.1),
            },
            "not the head's own",
        ),
        ({"module": LinearHead, "method": Residual(noise_std=-1.0)}, r"noise_std=-1.0"),
        ({"module": LinearHead, "method": Residual(tol=0.0)}, r"tol=0.0"),
        ({"module": LinearHead, "method": Residual(noise_std=0.5, tol=0.1)}, "give one of them"),
    ],
)
def test_residual_refuses_what_its_theorem_does_not_cover(params, message):
    with pytest.raises(NotApplicableError, match=message):
        CertifiedNeuralClassifier(**({"method": Residual()} | params)).fit(X, y)


def test_a_tolerance_below_the_float_floor_is_an_error_not_a_larger_sigma():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0, method=Residual(noise_std=1e-12))
    net.fit(X, y)
    before = to_vector(net._trainable())
    with pytest.raises(ToleranceNotReachedError, match="below what float64 can prove"):
        net.unlearn(indices=[0])
    np.testing.assert_array_equal(to_vector(net._trainable()), before)


def test_the_frozen_setting_is_what_the_certificate_uses():
    net = CertifiedNeuralClassifier(C=3.0, max_epochs=1, method=OutputPerturbation()).fit(X, y)
    net.set_params(C=0.001, lam=5.0).unlearn(indices=[0])
    assert dict(net.certificate_.event.constants) == {"C": 3.0}
    assert net.certificate_.sensitivity == 6.0


def test_a_forged_weight_outside_the_ball_is_projected_before_the_noise():
    net = CertifiedNeuralClassifier(C=1.0, max_epochs=1, method=OutputPerturbation()).fit(X, y)
    with torch.no_grad():
        net._trainable()[0].fill_(1e4)
    net.unlearn(indices=[0], epsilon=500.0, delta=0.5)
    assert net._ball().distance() < 50


def test_released_weights_lie_on_the_public_grid():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X, y).unlearn(indices=[0])
    steps = to_vector(net._trainable()) * 2.0**19
    np.testing.assert_array_equal(steps, np.rint(steps))


def test_statuses_of_a_formal_certificate():
    net = CertifiedNeuralClassifier(LinearHead, C=100.0).fit(X, y).unlearn(indices=[0])
    statuses = {a.name: a.status for a in net.certificate_.assumptions}
    assert statuses["residual"] is Status.PROVED
    assert set(statuses.values()) <= {Status.PROVED, Status.BY_CONSTRUCTION}


def test_residual_keeps_the_accuracy_of_retraining_on_digits():
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels / 16
    X_train, X_test, y_train, y_test = train_test_split(
        pixels, labels, test_size=0.3, stratify=labels, random_state=0
    )
    forget = np.random.default_rng(0).choice(len(X_train), len(X_train) // 100, replace=False)
    keep = np.delete(np.arange(len(X_train)), forget)
    retrained = CertifiedNeuralClassifier(LinearHead, lam=1e-3, C=100.0)
    retrained = retrained.fit(X_train[keep], y_train[keep]).score(X_test, y_test)
    scores = []
    for _ in range(5):
        net = CertifiedNeuralClassifier(LinearHead, lam=1e-3, C=100.0).fit(X_train, y_train)
        net.unlearn(indices=forget, epsilon=1.0, delta=1e-5)
        assert net.certificate_.formal
        scores.append(net.score(X_test, y_test))
    assert abs(np.mean(scores) - retrained) <= 0.002
