"""The regressor: scikit-learn's contract, and deletion that equals ridge on the retained rows."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.base import clone, is_regressor
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import BaggingRegressor, StackingRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch import NeuralNetRegressor
from skorch.callbacks import EarlyStopping, EpochScoring
from skorch.dataset import ValidSplit
from torch import nn

import sk_unlearn
from sk_unlearn import CertifiedNeuralClassifier, CertifiedNeuralRegressor
from sk_unlearn._row_names import row_names
from sk_unlearn.accounting import calibrate
from sk_unlearn.exceptions import (
    DeletionRequestError,
    NotApplicableError,
    ToleranceNotReachedError,
    UnknownRowError,
)
from sk_unlearn.methods import (
    Analytic,
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
from sk_unlearn.methods._heads import to_matrix
from sk_unlearn.modules import (
    MLP,
    FeatureHead,
    HalfSquaredLoss,
    LinearHead,
    LinearRegressor,
    RidgeHead,
)

rng = np.random.default_rng(0)
X = rng.standard_normal((300, 5)).astype(np.float32)
Y = (X @ rng.standard_normal((5, 2)) + 0.3 * rng.standard_normal((300, 2)) + [1.0, -2.0]).astype(
    np.float32
)
y = Y[:, 0]
TARGETS = {"one": y, "column": Y[:, :1], "two": Y}
LAM = 1e-2


def linear(method="auto", **params):
    params = {"lam": LAM, "C": 100.0, "method": method} | params
    return CertifiedNeuralRegressor(LinearRegressor, **params)


def deep(**params):
    params = {"random_state": 0, "max_epochs": 3, "method": Retrain()} | params
    return CertifiedNeuralRegressor(**params)


@parametrize_with_checks(
    [
        CertifiedNeuralRegressor(random_state=0),
        CertifiedNeuralRegressor(LinearRegressor, C=1e4),
        CertifiedNeuralRegressor(LinearRegressor, C=1e4, method=Residual()),
    ]
)
def test_check_estimator(estimator, check):
    check(estimator)


def test_it_is_a_skorch_net_and_a_regressor():
    reg = CertifiedNeuralRegressor()
    assert isinstance(reg, NeuralNetRegressor)
    assert is_regressor(reg)
    assert reg.__sklearn_tags__().target_tags.multi_output


# ------------------------------------------------------------------ against scikit-learn's ridge


def ridge(X, targets, lam=LAM):
    rows = np.column_stack([X.astype(float), np.ones(len(X))])
    model = Ridge(alpha=lam * len(X), fit_intercept=False, solver="cholesky")
    return model.fit(rows, targets.reshape(len(X), -1).astype(float)).coef_.reshape(
        -1, rows.shape[1]
    )


def before_noise(reg, **request):
    """Return the weights that a deletion would release, without their noise."""
    named = {"X_u": None, "y_u": None, "indices": None, "sample_ids": None} | request
    retained, deleted = reg._split(*reg._find_rows(**named))
    event = calibrate(reg.method_.event(reg._setting()), 1.0, 1e-5)
    outcome = reg.method_.center(reg._problem(retained, deleted, None, None), event)
    return to_matrix(outcome.parameters, reg.n_outputs_)


METHODS = pytest.mark.parametrize(
    "method", [Analytic(tol=1e-10), Residual(tol=1e-10)], ids=["analytic", "residual"]
)


@METHODS
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("forget", [[], [0], range(100), range(290)], ids=len)
def test_deleting_is_scikit_learns_ridge_on_the_retained_rows(method, kind, forget):
    targets = TARGETS[kind]
    reg = linear(method).fit(X, targets)
    kept = np.delete(np.arange(300), list(forget))
    expected = ridge(X[kept], targets[kept])
    np.testing.assert_allclose(before_noise(reg, indices=list(forget)), expected, atol=1e-8)


@METHODS
def test_a_deleted_copy_of_a_duplicate_leaves_the_other(method):
    rows, targets = np.concatenate([X, X[:50]]), np.concatenate([y, y[:50]])
    reg = linear(method).fit(rows, targets)
    expected = ridge(np.delete(rows, range(50), 0), np.delete(targets, range(50)))
    np.testing.assert_allclose(before_noise(reg, X_u=X[:50], y_u=y[:50]), expected, atol=1e-8)
    reg.unlearn(X[:50], y[:50])
    assert reg.certificate_.diagnostics["duplicates_retained"] == 50


@METHODS
def test_sample_ids_name_the_same_rows(method):
    owners = np.arange(300) // 3
    reg = linear(method).fit(X, Y, sample_ids=owners)
    gone = np.isin(owners, [4, 7])
    expected = ridge(X[~gone], Y[~gone])
    np.testing.assert_allclose(before_noise(reg, sample_ids=[4, 7]), expected, atol=1e-8)


@METHODS
def test_large_targets_raise_the_floor_of_what_can_be_proved(method):
    large = (1e5 * y).astype(np.float32)
    reg = linear(method, C=1e9).fit(X, large)
    before = pickle.dumps(reg)
    with pytest.raises(ToleranceNotReachedError, match="raise noise_std"):
        reg.unlearn(indices=[0])
    assert pickle.dumps(reg) == before
    reg = linear(clone(method).set_params(tol=1e-5), C=1e9).fit(X, large)
    expected = ridge(X[1:], large[1:])
    np.testing.assert_allclose(before_noise(reg, indices=[0]), expected, rtol=1e-8)


def test_the_released_model_predicts_as_before_up_to_the_noise():
    reg = linear().fit(X, Y)
    assert isinstance(reg.method_, Analytic)
    before = reg.predict(X)
    reg.unlearn(X[:10], Y[:10], epsilon=1.0, delta=1e-5)
    certificate = reg.certificate_
    certificate.verify()
    assert certificate.formal
    assert certificate.diagnostics["passes"] == 0
    assert np.sqrt(np.mean((reg.predict(X) - before) ** 2)) < 0.1
    assert reg.score(X, Y) > 0.95


def test_a_head_on_a_network_that_permanent_rows_trained():
    head = partial(FeatureHead, MLP, multi_class="squared")
    reg = CertifiedNeuralRegressor(
        head, lam=LAM, C=100.0, random_state=0, method=Residual(tol=1e-9)
    )
    reg.fit(X, Y, permanent=np.arange(300) < 150)
    assert reg.score(X, Y) > 0.9
    expected = ridge(reg.rows_.features.values[:-100], Y[:-100])
    released = before_noise(reg, indices=range(200, 300))
    np.testing.assert_allclose(released, expected, atol=1e-6)
    certificate = reg.unlearn(indices=[200, 299]).certificate_
    assert certificate.formal
    with pytest.raises(DeletionRequestError, match="permanent"):
        reg.unlearn(X[:1], Y[:1])


# ------------------------------------------------------------------ shapes


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("make", [linear, deep])
def test_predictions_have_the_shape_of_the_targets(make, kind):
    reg = make().fit(X, TARGETS[kind])
    assert reg.predict(X).shape == TARGETS[kind].shape
    assert reg.n_outputs_ == reg.rows_.y.shape[1] == (2 if kind == "two" else 1)
    reg.partial_fit(X[:9], TARGETS[kind][:9]).unlearn(X[:4], TARGETS[kind][:4])
    assert reg.predict(X).shape == TARGETS[kind].shape
    assert len(reg.rows_) == 296


def test_the_default_module_has_one_output_for_each_target_and_learns():
    reg = CertifiedNeuralRegressor(random_state=0, max_epochs=60).fit(X, Y)
    assert isinstance(reg.module_, MLP)
    assert reg.score(X, Y) > 0.8
    assert isinstance(reg.criterion_, nn.MSELoss)


def test_images():
    images = X[:, :4].reshape(300, 1, 2, 2)
    assert linear().fit(images, y).predict(images).shape == (300,)
    with pytest.raises(ValueError, match=r"rows of the shape \(1, 3, 2\)"):
        linear().fit(images, y).predict(np.zeros((1, 1, 3, 2)))


# ------------------------------------------------------------------ every method


@pytest.mark.parametrize(
    "method",
    [
        OutputPerturbation(),
        Newton(),
        Newton(gradient="deleted", damping=5.0),
        GradientClipping(steps=3, finetune_epochs=1),
        ModelClipping(steps=3, finetune_epochs=1),
        Retrain(),
    ],
)
@pytest.mark.parametrize("module", [None, LinearRegressor])
def test_methods_that_assume_nothing_of_the_loss_apply(method, module):
    reg = CertifiedNeuralRegressor(module, method=method, max_epochs=2, C=5.0, random_state=0)
    reg.fit(X, Y).unlearn(X[:3], Y[:3])
    assert reg.certificate_.formal
    assert np.isfinite(reg.predict(X)).all()


def test_retraining_is_a_cold_fit():
    reg, cold = deep().fit(X, y).unlearn(X[:5], y[:5]), deep().fit(X[5:], y[5:])
    np.testing.assert_array_equal(reg.predict(X), cold.predict(X))


def test_private_training_clips_the_rows_of_any_loss():
    pytest.importorskip("opacus")
    method = PrivateTraining(steps=3, noise_multiplier=4.0)
    reg = CertifiedNeuralRegressor(method=method, random_state=0).fit(X, y)
    assert reg.unlearn(X[:1], y[:1]).certificate_.formal


@pytest.mark.parametrize("method", [SekhariNewton(), DescentToDelete()])
def test_methods_that_need_a_bounded_gradient_refuse_with_the_reason(method):
    reg = linear(method)
    with pytest.raises(NotApplicableError, match="gradient of the squared loss has no bound"):
        reg.fit(X, y)
    assert not hasattr(reg, "module_")


@pytest.mark.parametrize("method", [Analytic(), Residual()])
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lam": 0.0}, "use lam > 0"),
        ({"criterion": nn.MSELoss}, "leave criterion=None"),
        ({"module": MLP}, "does not apply"),
    ],
)
def test_what_the_closed_form_and_the_residual_do_not_cover(method, params, message):
    with pytest.raises(NotApplicableError, match=message):
        linear(method).set_params(**params).fit(X, y)


def test_auto_retrains_a_deep_net_and_says_what_would_be_cheaper():
    reg = deep(method="auto").fit(X, y)
    with pytest.warns(UserWarning, match="module=LinearRegressor"):
        reg.unlearn(X[:2], y[:2])
    assert (reg.certificate_.epsilon, reg.certificate_.delta) == (0, 0)


# ------------------------------------------------------------------ with the rest of scikit-learn


def test_search_validation_and_ensembles():
    search = GridSearchCV(linear(), {"lam": [1e-3, 10.0], "method": [Analytic(), Residual()]}, cv=2)
    search.fit(X, y)
    assert search.best_params_["lam"] == 1e-3
    sk_unlearn.unlearn(search, X[:2], y[:2])
    assert search.best_estimator_.certificate_.n_deleted == 2
    assert cross_val_score(linear(), X, Y, cv=3).min() > 0.9
    assert BaggingRegressor(linear(), n_estimators=2, random_state=0).fit(X, y).score(X, y) > 0.9
    assert StackingRegressor([("net", linear())], Ridge(), cv=2).fit(X, y).score(X, y) > 0.9


def test_a_target_transformer():
    public = TransformedTargetRegressor(
        linear(), transformer=FunctionTransformer(lambda t: t / 10, lambda t: t * 10)
    )
    np.testing.assert_allclose(
        public.fit(X, y).predict(X), linear().fit(X, y / 10).predict(X) * 10, rtol=1e-5
    )


def test_a_pipeline():
    pipe = make_pipeline(FunctionTransformer(), linear()).fit(X, Y)
    sk_unlearn.unlearn(pipe, X[:3], Y[:3])
    assert pipe[-1].certificate_.formal
    leaking = make_pipeline(StandardScaler(), linear()).fit(X, Y)
    with pytest.raises(NotApplicableError, match="standardscaler"):
        sk_unlearn.unlearn(leaking, X[:3], Y[:3])


def test_control_plan_and_refresh():
    reg = linear(OutputPerturbation(), C=5.0, max_epochs=3).fit(X, Y)
    plan = reg.plan(epsilon=1.0)
    assert plan.n_parameters == 12
    assert plan.sigma == pytest.approx(5.0 * 2 * 3.730632, rel=1e-5)
    control = reg.control(X[:3], Y[:3])
    assert control.certificate_.n_deleted == 3
    assert not hasattr(reg, "certificate_")
    solved = linear().fit(X, Y).unlearn(X[:3], Y[:3])
    assert solved.method_state_ is None
    assert solved.refresh().unlearn(X[3:5], Y[3:5]).certificate_.diagnostics["passes"] == 0


@pytest.mark.parametrize("method", ["auto", Residual(), Retrain()])
def test_a_saved_net_is_the_net(tmp_path, method):
    reg = linear(method, random_state=0, max_epochs=2).fit(X, y)
    reg.save(tmp_path / "net.safetensors", include_data=True)
    again = CertifiedNeuralRegressor.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(again.predict(X), reg.predict(X))
    assert again.unlearn(X[:2], y[:2]).certificate_.formal
    assert again.predict(X).shape == y.shape


def test_requests_wait_and_are_served_together():
    reg = linear().fit(X, Y, sample_ids=np.arange(300))
    reg.request_deletion(X[:2], Y[:2])
    reg.request_deletion(sample_ids=[5])
    reg.process_deletions(epsilon=1.0)
    assert (reg.certificate_.n_deleted, len(reg.rows_)) == (3, 297)


def test_a_name_of_a_row_does_not_know_minus_zero():
    rows = [linear().fit(X, np.full(300, zero)).rows_ for zero in (0.0, -0.0)]
    assert row_names(rows[0]) == row_names(rows[1])


@pytest.mark.parametrize("targets", [y, Y])
def test_models_are_chosen_by_what_a_deletion_leaves(targets):
    scorer = sk_unlearn.make_unlearning_scorer(epsilon=1.0, fraction=0.1)
    assert cross_val_score(linear(), X, targets, cv=2, scoring=scorer).min() > 0.8


def test_clone_and_pickle():
    reg = linear(Residual(noise_std=0.05)).fit(X, Y)
    again = pickle.loads(pickle.dumps(reg))
    np.testing.assert_array_equal(again.predict(X), reg.predict(X))
    assert again.unlearn(X[:2], Y[:2]).certificate_.formal
    assert clone(reg).get_params()["method__noise_std"] == 0.05
    assert "classes" not in reg.get_params()


def test_skorch_callbacks_see_the_regressor_they_know():
    reg = deep(
        max_epochs=50,
        train_split=ValidSplit(3),
        callbacks=[EpochScoring("r2", name="valid_r2"), EarlyStopping(patience=3)],
    ).fit(X, Y)
    assert reg.history_[-1, "valid_r2"] > 0
    reg.fit(X, y)
    assert reg.history_[-1, "valid_r2"] > 0


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.where(np.arange(300) == 3, np.nan, y), "NaN"),
        (np.where(np.arange(300) == 3, 1e39, 0.0), r"y contains .*1e\+39.* not finite as float32"),
        (np.zeros((300, 2, 2)), r"y has the shape \(300, 2, 2\)|dim 3"),
        (np.zeros((300, 0)), "0"),
        (csr_array(Y), "dense array"),
        (y[:7], "inconsistent numbers of samples"),
        (np.array(["a"] * 300), "a"),
    ],
)
def test_targets_that_are_none_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        linear().fit(X, targets)


def test_requests_that_are_wrong_are_named_and_change_nothing():
    reg = linear().fit(X, Y)
    before = pickle.dumps(reg)
    with pytest.raises(UnknownRowError, match="another target"):
        reg.unlearn(X[:2], Y[1:3])
    with pytest.raises(DeletionRequestError, match=r"shape \(\); this net was fitted on \(2,\)"):
        reg.unlearn(X[:2], y[:2])
    with pytest.raises(DeletionRequestError, match="all 300"):
        reg.unlearn(X, Y)
    assert pickle.dumps(reg) == before


@pytest.mark.parametrize("module", [LinearHead, RidgeHead])
def test_heads_for_classes_are_refused_and_the_other_way_round(module):
    with pytest.raises(ValueError, match=f"{module.__name__} with .* is for classes; .* Linear"):
        CertifiedNeuralRegressor(module).fit(X, Y)
    with pytest.raises(ValueError, match="is for numbers.*needs LinearHead, RidgeHead"):
        CertifiedNeuralClassifier(partial_regressor).fit(X, np.arange(300) % 2)


def partial_regressor(n_features_in, n_classes):
    return LinearRegressor(n_features_in, n_classes)


def test_a_module_of_the_wrong_width_is_named():
    with pytest.raises(ValueError, match=r"returned the shape \(2, 3\) for 2 rows and 2 targets"):
        CertifiedNeuralRegressor(MLP(5, 3)).fit(X, Y)
    flat = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"returned the shape \(2,\).*must return .*\(2, 1\)"):
        CertifiedNeuralRegressor(flat).fit(X, y)


def test_the_criterion_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"\(4, 1\) for targets of the shape \(4,\)"):
        HalfSquaredLoss()(torch.zeros(4, 1), torch.zeros(4))


def test_a_regressor_has_no_probabilities():
    reg = linear().fit(X, y)
    assert not hasattr(reg, "predict_proba")
    assert not hasattr(reg, "classes_")
