"""Permanent rows: a frozen network below the head, formal certificates for every other row."""

from __future__ import annotations

import pickle

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier, bounds
from sk_unlearn.convex import minimise
from sk_unlearn.exceptions import (
    DeletionRequestError,
    NotApplicableError,
    ToleranceNotReachedError,
    UnknownRowError,
)
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.methods import Residual, SekhariNewton
from sk_unlearn.modules import MLP, AllCNN, FeatureHead, LinearHead, ResNet18


def cnn(n_classes):
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, n_classes),
    )  # fmt: skip


def digits(n=300):
    X, y = load_digits(return_X_y=True)
    return (X / 16).reshape(-1, 1, 8, 8).astype(np.float32)[:n], y[:n]


X, Y = digits()
MASK = np.arange(len(X)) < 100


def net(backbone=cnn, **parameters):
    return CertifiedNeuralClassifier(
        FeatureHead,
        module__backbone=backbone,
        **{"lam": 1e-3, "C": 1e3, "max_epochs": 3, "lr": 3e-3, "random_state": 0} | parameters,
    )


@pytest.fixture(scope="module")
def fitted():
    return net().fit(X, Y, sample_ids=np.arange(len(X)) // 2, permanent=MASK)


def copy_of(estimator):
    return pickle.loads(pickle.dumps(estimator))


def same_weights(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_the_certificate_is_formal_and_says_whom_it_covers(fitted):
    forgetful = copy_of(fitted).unlearn(X[150:155], Y[150:155], epsilon=1.0, delta=1e-5)
    certificate = forgetful.certificate_
    assert certificate.formal
    assert certificate.n_deleted == 5
    statuses = {a.name: a.status for a in certificate.assumptions}
    assert statuses["features"] == "PROVED"
    assert statuses["backbone"] == "BY_CONSTRUCTION"
    assert any("100 permanent rows" in line for line in certificate.scope)
    assert not any("handed to" in line for line in certificate.scope)
    assert abs(forgetful.score(X, Y) - fitted.score(X, Y)) < 0.05


def test_deletion_is_within_the_tolerance_of_retraining(fitted):
    forgetful = copy_of(fitted)
    gone = np.arange(200, 230)
    forgetful.unlearn(indices=gone, epsilon=1.0, delta=1e-5)
    kept = np.setdiff1d(np.arange(len(X)), gone)
    again = net().fit(X[kept], Y[kept], permanent=MASK[kept])
    assert same_weights(forgetful.module_.features, again.module_.features)
    event = forgetful.certificate_.event
    noise = (_weights(forgetful) - _weights(again)) / event.sigma
    assert abs(noise.std() - 1) < 0.3
    zero, rows = np.zeros((10, 17)), again.rows_
    risk = HeadRisk(rows.features.values, rows.y, 10, 1e-3, zero, "ovr", rows.features.error)
    optimum = minimise(risk, zero).weights
    problem = fitted._problem(fitted.rows_.without(gone), fitted.rows_.take(gone), None, None)
    centre = Residual().center(problem, event).parameters
    ours = np.column_stack([centre[:160].reshape(10, 16), centre[160:]])
    assert np.linalg.norm(ours - optimum) <= dict(event.constants)["tol"] / 1e-3 + 1e-9


def _weights(estimator):
    return np.concatenate(
        [p.detach().double().ravel() for p in estimator.module_.linear.parameters()]
    )


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_frozen_network_does_not_see_other_rows(seed):
    """Neither their values, nor their number, nor their order among the permanent ones."""
    rng = np.random.default_rng(seed)
    reference = net(max_epochs=1).fit(X[:120], Y[:120], permanent=MASK[:120])
    others = rng.choice(np.arange(100, len(X)), rng.integers(1, 60), replace=False)
    rows = np.concatenate([np.arange(100), others])
    noise = np.zeros_like(X[rows])
    noise[100:] = rng.random(noise[100:].shape)
    labels = Y[rows].copy()
    labels[100:] = rng.integers(0, 10, len(others))
    place = np.sort(rng.permutation(len(rows))[:100])
    order = np.empty(len(rows), dtype=int)
    order[place] = np.arange(100)
    order[np.setdiff1d(np.arange(len(rows)), place)] = np.arange(100, len(rows))
    changed = net(max_epochs=1, classes=np.arange(10)).fit(
        (X[rows] + noise)[order], labels[order], permanent=MASK[rows][order]
    )
    assert same_weights(reference.module_.features, changed.module_.features)
    assert same_weights(reference.module_.output, changed.module_.output)


def test_permanent_rows_change_the_frozen_network(fitted):
    fewer = net().fit(X, Y, permanent=np.arange(len(X)) < 90)
    without = net().fit(X, Y)
    assert not same_weights(fitted.module_.features, fewer.module_.features)
    assert not same_weights(fitted.module_.features, without.module_.features)
    assert fitted.score(X, Y) > without.score(X, Y)


def test_without_permanent_rows_the_features_are_random_and_the_certificate_formal():
    plain = net().fit(X, Y).unlearn(indices=[0, 1], epsilon=1.0, delta=1e-5)
    assert plain.certificate_.formal
    assert "backbone" not in {a.name for a in plain.certificate_.assumptions}
    assert not any("permanent" in line for line in plain.certificate_.scope)


def test_deleting_a_permanent_row_is_refused_however_it_is_named(fitted):
    before = pickle.dumps(_weights(fitted))
    for request, match in [
        ({"indices": [3, 150]}, "indices 3 are permanent"),
        ({"sample_ids": [2]}, "sample_ids 2 are permanent"),
        ({"X_u": X[[150, 7]], "y_u": Y[[150, 7]]}, "rows 1 of X_u are permanent"),
    ]:
        with pytest.raises(DeletionRequestError, match=match):
            fitted.unlearn(**request)
    assert pickle.dumps(_weights(fitted)) == before
    assert len(fitted.rows_) == len(X)
    with pytest.raises(UnknownRowError, match="not among"):
        fitted.unlearn(X[[7]] + 1, Y[[7]])


def test_a_copy_that_is_not_permanent_goes_first():
    doubled, labels = np.concatenate([X, X[:1], X[:1]]), np.concatenate([Y, Y[:1], Y[:1]])
    mask = np.concatenate([MASK, [False, False]])
    twins = net().fit(doubled, labels, permanent=mask)
    with pytest.raises(DeletionRequestError, match="rows 2 of X_u are permanent"):
        twins.unlearn(X[[0, 0, 0]], Y[[0, 0, 0]])
    twins.unlearn(X[[0, 0]], Y[[0, 0]], epsilon=1.0, delta=1e-5)
    assert twins.rows_.permanent.sum() == 100
    assert len(twins.rows_) == len(X)


def test_sequences_refresh_pickles_and_further_rows(fitted):
    estimator = copy_of(fitted)
    for start in (110, 120, 130):
        estimator.unlearn(indices=np.arange(start, start + 5), epsilon=1.0, delta=1e-5)
        assert estimator.certificate_.formal
        estimator = copy_of(estimator).refresh()
    assert estimator.rows_.permanent.sum() == 100
    assert len(estimator.rows_.features.values) == len(estimator.rows_) == len(X) - 15
    frozen = copy_of(estimator).module_.features
    estimator.partial_fit(*more(), sample_ids=np.arange(1000, 1040))
    assert same_weights(frozen, estimator.module_.features)
    assert estimator.rows_.permanent.sum() == 100
    assert len(estimator.rows_.features.values) == len(X) - 15 + 40
    estimator.unlearn(sample_ids=[1000], epsilon=1.0, delta=1e-5)
    control = estimator.control(indices=[150], epsilon=1.0, delta=1e-5)
    assert control.certificate_.formal
    with pytest.raises(DeletionRequestError, match="permanent"):
        estimator.unlearn(indices=[0])


def more():
    everything, labels = digits(340)
    return everything[300:], labels[300:]


def test_retraining_trains_the_frozen_network_again_from_the_permanent_rows(fitted):
    exact = net(method="retrain").fit(X, Y, permanent=MASK)
    exact.unlearn(indices=[150, 151])
    assert same_weights(exact.module_.features, fitted.module_.features)
    assert exact.certificate_.epsilon == 0.0
    with pytest.raises(DeletionRequestError, match="permanent"):
        exact.unlearn(indices=[0])


def test_a_pretrained_network_is_named_in_the_scope():
    torch.manual_seed(0)
    pretrained = cnn(10)
    clf = net(pretrained).fit(X, Y).unlearn(indices=[5], epsilon=1.0, delta=1e-5)
    assert clf.certificate_.formal
    assert any(
        "whether the network handed to the module" in line for line in clf.certificate_.scope
    )
    kept = clf.module_.features.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in pretrained[:-1].state_dict().items())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_network_without_a_proved_error_is_not_formal():
    def resnet(n_classes):
        return ResNet18((1, 8, 8), n_classes, width=8)

    clf = net(resnet, max_epochs=1).fit(X[:80], Y[:80], permanent=MASK[:80] & (np.arange(80) < 60))
    clf.unlearn(indices=[70], epsilon=1.0, delta=1e-5)
    assert not clf.certificate_.formal
    weakest = {a.name: a for a in clf.certificate_.assumptions}["features"]
    assert weakest.status == "ASSUMED"
    assert "ResNet18" in weakest.statement


@pytest.mark.parametrize(
    ("parameters", "permanent", "kind", "match"),
    [
        ({}, np.zeros(300, bool), ValueError, "False for all rows"),
        ({}, np.ones(299, bool), ValueError, r"shape \(299,\)"),
        ({}, np.ones(300), ValueError, "dtype float64"),
        ({"store_data": False}, MASK, ValueError, "needs store_data=True"),
        ({"module": LinearHead}, MASK, NotApplicableError, "LinearHead has none"),
        ({"backbone": nn.Flatten()}, MASK, ValueError, "no Linear layer"),
        ({"method": SekhariNewton()}, MASK, NotApplicableError, "the head sees features"),
    ],
)
def test_bad_requests_leave_nothing_behind(parameters, permanent, kind, match):
    parameters = dict(parameters)
    module = parameters.pop("module", None)
    estimator = net(**parameters)
    if module is not None:
        estimator = CertifiedNeuralClassifier(module)
    with pytest.raises(kind, match=match):
        estimator.fit(X, Y, permanent=permanent)
    assert not hasattr(estimator, "rows_")


def test_a_warm_start_cannot_declare_rows_permanent(fitted):
    warm = copy_of(fitted)
    warm.set_params(warm_start=True)
    with pytest.raises(ValueError, match="from scratch"):
        warm.fit(X, Y, permanent=MASK)
    assert warm.fit(X, Y, sample_ids=np.arange(len(X)) // 2).rows_.permanent.sum() == 100


def test_clone_and_grid_search(fitted):
    assert clone(net()).get_params()["module__backbone"] is cnn
    grid = {"lam": [1e-3, 1e-1], "module__multi_class": ["ovr", "multinomial"]}
    search = GridSearchCV(net(max_epochs=1), grid, cv=2, error_score="raise")
    search.fit(X, Y, permanent=np.arange(len(X)) % 3 == 0)
    best = search.best_estimator_
    assert best.rows_.permanent.sum() == 100
    assert best.unlearn(indices=[151], epsilon=1.0, delta=1e-5).certificate_.formal


def test_errors_of_features_above_the_tolerance_are_an_error(fitted):
    big = copy_of(fitted)
    big.rows_.features.error[:] = 1e-3
    with pytest.raises(ToleranceNotReachedError, match="rounding"):
        big.unlearn(indices=[150], epsilon=1.0, delta=1e-5)
    assert len(big.rows_) == len(X)


def test_the_head_and_its_network():
    head = FeatureHead(MLP, n_classes=3, n_features_in=5, multi_class="multinomial")
    assert isinstance(head.criterion(), nn.CrossEntropyLoss)
    head.train()
    assert not head.features.training
    whole = head.backbone
    assert all(p.requires_grad for p in whole.parameters())
    rows = torch.rand(4, 5)
    assert torch.equal(whole(rows), head.output(head.features(rows)))
    with torch.no_grad():
        whole.layers[0].weight += 1.0
    head.set_backbone(whole)
    assert torch.equal(whole(rows), head.output(head.features(rows)))
    assert [n for n, p in head.named_parameters() if p.requires_grad] == [
        "linear.weight", "linear.bias",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no Linear layer"):
        FeatureHead(AllCNN((3, 8, 8), 10, width=8), n_classes=10)


def true_gradient(X, y, W, multi_class):
    total = mp.zeros(W.rows, W.cols)
    for x, label in zip(X, y.tolist(), strict=True):
        z = W * x
        if multi_class == "ovr":
            r = [1 / (1 + mp.exp(-v)) for v in z]
        else:
            r = [mp.exp(v) for v in z]
            r = [v / sum(r) for v in r]
        r[label] -= 1
        total += mp.matrix(r) * x.T
    return total / len(X)


def moved(x, direction, error):
    """Return a row's features moved by almost their whole error, and the constant one."""
    step = mp.mpf(float(error)) * (1 - mp.mpf(2) ** -50)
    pairs = zip(x.tolist(), direction.tolist(), strict=True)
    return mp.matrix([*(mp.mpf(a) + step * mp.mpf(b) for a, b in pairs), 1])


@pytest.mark.parametrize("multi_class", ["ovr", "multinomial"])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4), st.integers(2, 4))
def test_the_gradient_bound_covers_the_true_features(multi_class, seed, n, d, K):
    """Features moved by their whole error, in the worst of a few directions: against 40 digits."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-2, 2)
    error = 10.0 ** rng.uniform(-12, 0, n) * (rng.random(n) < 0.8)
    W = rng.standard_normal((K, d + 1)) * 10.0 ** rng.uniform(-2, 1)
    y = rng.integers(0, K, n)
    risk = HeadRisk(features, y, K, 0.1, np.zeros((K, d + 1)), multi_class, error)
    bound, rounding, gradient = risk.gradient_norm_bound(W)
    with mp.workdps(40):
        for attempt in range(4):
            direction = rng.standard_normal((n, d)) if attempt else W[rng.integers(0, K, n), :-1]
            direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
            rows = [moved(*each) for each in zip(features, direction, error, strict=True)]
            exact_W = mp.matrix(W.tolist())
            truth = true_gradient(rows, y, exact_W, multi_class) + mp.mpf(0.1) * exact_W
            assert mp.mnorm(truth, "f") <= bound
            assert mp.mnorm(truth - mp.matrix(gradient.tolist()), "f") <= rounding


def test_the_bound_on_feature_errors_is_monotone_and_not_loose():
    base = dict(
        n_rows=100, n_features=10, n_heads=3, row_norm=1.0, smoothness=0.25, weights_norm=2.0,
        max_error=1e-10, mean_error=1e-10, mean_residual_times_error=5e-11,
        mean_row_times_error=1e-10,
    )  # fmt: skip
    value = bounds.feature_gradient_error(**base)
    assert 1e-10 <= value <= 1.01e-10
    for name in base:
        more_of_it = bounds.feature_gradient_error(**base | {name: base[name] * 2})
        assert more_of_it >= value
    with pytest.raises(ValueError, match="mean_error=-1"):
        bounds.feature_gradient_error(**base | {"mean_error": -1.0})


def test_a_saved_net_keeps_its_permanent_rows(fitted, tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(DeletionRequestError, match="permanent, and a net without its rows"):
        fitted.save(path)
    fitted.save(path, include_data=True)
    loaded = CertifiedNeuralClassifier.load(path, module__backbone=cnn)
    np.testing.assert_array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    np.testing.assert_array_equal(loaded.rows_.permanent, fitted.rows_.permanent)
    np.testing.assert_array_equal(loaded.rows_.features.values, fitted.rows_.features.values)
    with pytest.raises(DeletionRequestError, match="indices 3 are permanent"):
        loaded.unlearn(indices=[3, 150])
    certificate = loaded.unlearn(indices=[150]).certificate_
    assert certificate.formal
    assert any("100 permanent rows" in line for line in certificate.scope)
