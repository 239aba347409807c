"""What every unlearning method must do, whatever it computes."""

from __future__ import annotations

import pickle
import signal
import warnings

import numpy as np
import pytest
from scipy.stats import chi2
from sklearn.base import clone
from sklearn.datasets import load_iris

from sk_unlearn import Certificate, CertifiedNeuralClassifier, CertifiedNeuralRegressor
from sk_unlearn._net import to_vector
from sk_unlearn.methods import (
    Analytic,
    CertifiedRemoval,
    DescentToDelete,
    GradientClipping,
    ModelClipping,
    Newton,
    OutputPerturbation,
    Residual,
    Retrain,
    SekhariNewton,
)
from sk_unlearn.modules import LinearHead, LinearRegressor, RidgeHead
from sk_unlearn.noise import NoiseSource

X, y = load_iris(return_X_y=True)
_, _distinct = np.unique(X, axis=0, return_index=True)
X, y = X[np.sort(_distinct)].astype(np.float32), y[np.sort(_distinct)]


def _net(method, module=None, **params):
    return CertifiedNeuralClassifier(
        module, method=method, max_epochs=3, C=30.0, random_state=0, **params
    )


def _regressor(method, module=None):
    return CertifiedNeuralRegressor(module, method=method, max_epochs=3, C=30.0, random_state=0)


CASES = {
    "residual-ovr": lambda: _net(Residual(), LinearHead),
    "residual-multinomial": lambda: _net(Residual(), LinearHead, module__multi_class="multinomial"),
    "residual-tol": lambda: _net(Residual(tol=1e-7), LinearHead),
    "residual-at-init": lambda: _net(Residual(), LinearHead, anchor="init"),
    "output": lambda: _net(OutputPerturbation()),
    "output-at-init": lambda: _net(OutputPerturbation(), anchor="init"),
    "newton": lambda: _net(Newton()),
    "newton-deleted": lambda: _net(Newton(gradient="deleted", damping=0.5)),
    "analytic": lambda: _net(Analytic(), RidgeHead),
    "analytic-at-init": lambda: _net(Analytic(tol=1e-7), RidgeHead, anchor="init"),
    "sekhari": lambda: _net(SekhariNewton(row_norm=30.0), LinearHead),
    "removal": lambda: _net(CertifiedRemoval(5.0, row_norm=30.0), LinearHead),
    "descent": lambda: _net(DescentToDelete(row_norm=30.0, tol=1e-7), LinearHead),
    "gradient-clipping": lambda: _net(GradientClipping(steps=3, finetune_epochs=0)),
    "model-clipping": lambda: _net(ModelClipping(steps=3, finetune_epochs=1)),
    "retrain": lambda: _net(Retrain()),
    "auto-head": lambda: _net("auto", LinearHead),
    "auto-deep": lambda: _net("auto"),
    "regressor-analytic": lambda: _regressor(Analytic(), LinearRegressor),
    "regressor-residual": lambda: _regressor(Residual(), LinearRegressor),
    "regressor-clipping": lambda: _regressor(GradientClipping(steps=3, finetune_epochs=1)),
}
NOISY = [name for name in CASES if name not in ("retrain", "auto-deep", "removal")]
ONE_SHOT = [name for name in NOISY if not name.endswith("-clipping")]


@pytest.fixture(autouse=True)
def _hints_are_not_the_subject():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="method='auto' retrains")
        yield


@pytest.fixture(params=CASES)
def net(request):
    return CASES[request.param]().fit(X, y)


def _weights(net):
    return to_vector(net._trainable())


def _snapshot(net):
    return pickle.dumps(net)


def test_it_returns_self_with_a_certificate_that_verifies(net):
    assert net.unlearn(X[:4], y[:4], epsilon=0.5, delta=1e-6) is net
    certificate = net.certificate_
    certificate.verify()
    assert certificate.formal is not isinstance(net.method_, CertifiedRemoval)
    exact = isinstance(net.method_, Retrain)
    assert (certificate.epsilon, certificate.delta) == ((0, 0) if exact else (0.5, 1e-6))
    assert certificate.n_deleted == 4
    assert certificate.n_retained == len(X) - 4
    assert certificate.n_parameters == len(_weights(net))
    for audience in ("operator", "public"):
        Certificate.from_json(certificate.to_json(audience)).verify()


def test_the_deleted_rows_leave_and_the_others_keep_their_order(net):
    net.unlearn(X[[3, 50]], y[[3, 50]])
    np.testing.assert_array_equal(net.rows_.X, np.delete(X, [3, 50], axis=0))
    np.testing.assert_array_equal(net.rows_.y.ravel(), np.delete(y, [3, 50]))


def test_content_indices_and_ids_name_the_same_rows():
    kept = []
    for request in (
        {"X_u": X[:2], "y_u": y[:2]},
        {"indices": [0, 1]},
        {"sample_ids": ["p0", "p1"]},
    ):
        net = CASES["residual-ovr"]().fit(X, y, sample_ids=[f"p{i}" for i in range(len(X))])
        kept.append(net.unlearn(**request).rows_)
    for other in kept[1:]:
        np.testing.assert_array_equal(kept[0].X, other.X)
        np.testing.assert_array_equal(kept[0].sample_ids, other.sample_ids)


@pytest.mark.parametrize("name", ONE_SHOT)
def test_an_empty_request_changes_nothing_but_noise(name):
    net = CASES[name]().fit(X, y)
    before = _weights(net)
    net.unlearn(indices=[])
    certificate = net.certificate_
    assert certificate.n_deleted == 0
    assert len(net.rows_) == len(X)
    noise = (_weights(net) - before) / certificate.sigma
    assert 1e-7 < chi2.cdf(np.vdot(noise, noise), len(noise)) < 1 - 1e-7


def test_an_empty_request_to_retrain_gives_the_fit_again():
    net = CASES["retrain"]().fit(X, y)
    before = _weights(net)
    np.testing.assert_array_equal(_weights(net.unlearn(indices=[])), before)


def test_retraining_is_a_cold_fit_on_the_retained_rows():
    net = CASES["retrain"]().fit(X, y).unlearn(indices=[5, 60])
    cold = CASES["retrain"]().fit(np.delete(X, [5, 60], axis=0), np.delete(y, [5, 60]))
    np.testing.assert_array_equal(_weights(net), _weights(cold))


@pytest.mark.parametrize("name", NOISY)
def test_two_releases_draw_different_noise(name):
    net = CASES[name]().fit(X, y)
    copies = [pickle.loads(pickle.dumps(net)).unlearn(indices=[]) for _ in range(2)]
    first, second = (_weights(copy) for copy in copies)
    assert np.mean(first == second) < 0.05


@pytest.mark.parametrize("name", NOISY)
def test_seeded_noise_is_reproducible_not_repeated_and_not_formal(name):
    one, two = (CASES[name]().set_params(noise_seed=7).fit(X, y) for _ in range(2))
    np.testing.assert_array_equal(*(_weights(net.unlearn(indices=[])) for net in (one, two)))
    assert not one.certificate_.formal
    first = NoiseSource(7, 0).gaussian(5, 1.0)
    assert not np.any(first == NoiseSource(7, 1).gaussian(5, 1.0))


def test_inputs_are_not_modified(net):
    rows, labels = X[:5].copy(), y[:5].copy()
    rows.flags.writeable = labels.flags.writeable = False
    net.unlearn(rows, labels)
    np.testing.assert_array_equal(rows, X[:5])


def test_the_event_does_not_depend_on_the_data(net):
    event = net.method_.event(net._setting())
    other = clone(net).fit(X[::2] * 2, y[::2])
    assert other.method_.event(other._setting()) == event


def test_methods_are_plain_sklearn_objects(net):
    again = clone(net.method_)
    assert again.get_params() == net.method_.get_params()
    assert vars(again) == vars(net.method_)


class _Boom(RuntimeError):
    pass


def _fail_with(error):
    def stop(*args, **kwargs):
        if error is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        raise error

    return stop


STEPS = [
    "_unlearning.check_guarantee",
    "_deletions.DeletionsMixin._take_in",
    "_unlearning.UnlearningMixin._split",
    "_budget.announced",
    "_unlearning.NoiseSource",
    "_unlearning.UnlearningMixin._certify",
    "_unlearning.Certificate.issue",
    "_unlearning.deepcopy",
    "_unlearning.History",
    "ledger.DeletionLedger.request",
]


@pytest.mark.parametrize("error", [_Boom, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["residual-ovr", "output", "retrain"])
def test_an_error_at_any_step_leaves_the_net_as_it_was(monkeypatch, name, step, error):
    net = CASES[name]().fit(X, y)
    before, attributes = _snapshot(net), set(vars(net))
    with monkeypatch.context() as patch:
        patch.setattr(f"sk_unlearn.{step}", _fail_with(error))
        with pytest.raises(error):
            net.unlearn(X[:3], y[:3])
    assert set(vars(net)) == attributes
    assert _snapshot(net) == before
    net.unlearn(X[:3], y[:3])


@pytest.mark.parametrize("error", [_Boom, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("name", ["residual-ovr", "output", "retrain"])
def test_an_error_at_the_commit_leaves_the_net_as_it_was_and_the_ledger_says_so(
    monkeypatch, name, error
):
    net = CASES[name]().fit(X, y)
    before = _snapshot(net)
    with monkeypatch.context() as patch:
        patch.setattr("sk_unlearn.ledger.DeletionLedger.released", _fail_with(error))
        with pytest.raises(error):
            net.unlearn(X[:3], y[:3])
    assert [entry.state for entry in net.ledger_] == ["requested", "failed"]
    net.ledger_ = pickle.loads(before).ledger_
    assert _snapshot(net) == before


@pytest.mark.parametrize("error", [_Boom, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("residual-ovr", "sk_unlearn.methods._affine.delete"),
        ("residual-ovr", "sk_unlearn.head_update._mix"),
        ("residual-ovr", "sk_unlearn.noise.NoiseSource.gaussian"),
        ("residual-ovr", "sk_unlearn.methods.residual.project"),
        ("output", "sk_unlearn.methods.output_perturbation.project"),
        ("output", "sk_unlearn.noise.NoiseSource.release"),
        ("retrain", "sk_unlearn.estimator.CertifiedNeuralClassifier.fit_loop"),
        ("retrain", "sk_unlearn.estimator.CertifiedNeuralClassifier.get_loss"),
    ],
)
def test_an_error_inside_the_method_leaves_the_net_as_it_was(monkeypatch, name, target, error):
    net = CASES[name]().fit(X, y)
    before = _snapshot(net)
    with monkeypatch.context() as patch:
        patch.setattr(target, _fail_with(error))
        with pytest.raises(error):
            net.unlearn(X[:40], y[:40])
    assert _snapshot(net) == before


@pytest.mark.parametrize("name", ["residual-ovr", "output"])
def test_a_method_that_returns_nan_releases_nothing(monkeypatch, name):
    net = CASES[name]().fit(X, y)
    before = _snapshot(net)
    monkeypatch.setattr(NoiseSource, "gaussian", lambda self, size, std: np.full(size, np.nan))
    with pytest.raises(ValueError, match="not finite"):
        net.unlearn(X[:3], y[:3])
    assert _snapshot(net) == before


def test_nothing_of_the_deleted_rows_or_the_old_weights_stays_in_the_pickle(net):
    marked = X.copy()
    marked[7] = np.float32([1.2345678, 7.654321, 3.1415927, 2.7182818])
    net.fit(marked, y)
    old = net._trainable()[0].detach().numpy().tobytes()
    solution = net.method_state_
    assert marked[7].tobytes() in pickle.dumps(net)
    net.unlearn(marked[[7]], y[[7]])
    after = pickle.dumps(net)
    assert marked[7].tobytes() not in after
    assert old not in after
    kept = getattr(solution, "__dict__", {"": solution}).values()
    for array in (value for value in kept if isinstance(value, np.ndarray)):
        assert array.tobytes() not in after
    assert len(net.history_) == 0
    assert not net.optimizer_.state
    assert net.rng_state_ is None
    if not isinstance(net.method_, CertifiedRemoval):  # whose sum of residuals goes on
        assert net.method_state_ is None
    assert all(p.grad is None for p in net.module_.parameters())


def test_it_can_be_trained_and_asked_again_afterwards(net):
    for row in (0, 1, 2):
        net.unlearn(X[[row]], y[[row]])
    assert net.n_releases_ == 3
    assert len(net.rows_) == len(X) - 3
    net.partial_fit(net.rows_.X, net.rows_.y.ravel())
    assert net._ball().distance() <= net.C_
    assert np.isfinite(net.predict(X)).all()
