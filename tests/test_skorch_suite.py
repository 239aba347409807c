"""skorch's own tests of its classifier and regressor, run with ours in their place.

Where we mean to differ, the test is replaced by one that says how and why.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.ensemble import BaggingRegressor
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from skorch.dataset import ValidSplit
from skorch.exceptions import NotInitializedError
from skorch.tests.conftest import *  # noqa: F403
from skorch.tests.test_classifier import TestNeuralNet as SkorchTests
from skorch.tests.test_regressor import TestNeuralNetRegressor as SkorchRegressorTests

from sk_unlearn import CertifiedNeuralClassifier, CertifiedNeuralRegressor


class TestOurNet(SkorchTests):
    @pytest.fixture(scope="module")
    def net_cls(self):
        return CertifiedNeuralClassifier

    def _ten_classes(self, net_cls, module_cls, X, y):
        """A module with two outputs for ten classes is refused; skorch fits it."""
        with pytest.raises(ValueError, match=r"for 2 rows and 10 classes"):
            net_cls(module_cls, max_epochs=0).fit(X, y)
        net = net_cls(module_cls, module__output_units=10, max_epochs=0).fit(X, y)
        assert (net.classes_ == np.arange(10)).all()

    def test_non_binary_classes_set_by_default(self, net_cls, module_cls, data):
        self._ten_classes(net_cls, module_cls, data[0], np.arange(len(data[0])) % 10)

    def test_classes_data_torch_tensor(self, net_cls, module_cls, data):
        labels = torch.as_tensor(np.arange(len(data[0])) % 10)
        self._ten_classes(net_cls, module_cls, torch.as_tensor(data[0]), labels)

    def test_classes_with_gaps(self, net_cls, module_cls, data):
        y = np.arange(len(data[0])) % 10
        y[(y == 0) | (y == 5)] = 4
        net = net_cls(module_cls, module__output_units=8, max_epochs=0).fit(data[0], y)
        assert (net.classes_ == [1, 2, 3, 4, 6, 7, 8, 9]).all()

    def test_pass_classes_explicitly_overrides(self, net_cls, module_cls, data):
        """Declared classes are the labels, so labels outside them are an error."""
        with pytest.raises(ValueError, match="labels not seen before"):
            net_cls(module_cls, max_epochs=0, classes=["foo", "bar"]).fit(*data)
        names = np.array(["foo", "bar"])[data[1]]
        net = net_cls(module_cls, max_epochs=0, classes=["foo", "bar"]).fit(data[0], names)
        assert (net.classes_ == ["bar", "foo"]).all()

    def _dataset_refused(self, net_cls, module_cls, dataset, y):
        """Rows must be stored and found again, so a Dataset is refused."""
        with pytest.raises(TypeError, match="torch Datasets are not supported"):
            net_cls(module_cls, max_epochs=0).fit(dataset, y)

    def test_classes_are_set_with_tensordataset_explicit_y(self, net_cls, module_cls, data):
        y = torch.as_tensor(data[1])
        dataset = torch.utils.data.TensorDataset(torch.as_tensor(data[0]), y)
        self._dataset_refused(net_cls, module_cls, dataset, y)

    def test_classes_are_set_with_tensordataset_implicit_y(self, net_cls, module_cls, data):
        dataset = torch.utils.data.TensorDataset(*map(torch.as_tensor, data))
        self._dataset_refused(net_cls, module_cls, dataset, None)

    def test_error_when_classes_could_not_be_inferred(self, net_cls, module_cls, data):
        dataset = torch.utils.data.TensorDataset(torch.as_tensor(data[0]))
        self._dataset_refused(net_cls, module_cls, dataset, None)

    @pytest.mark.parametrize("classes", [[], np.array([])])
    def test_pass_empty_classes_raises(self, net_cls, module_cls, data, classes):
        """An empty list declares no class, so fit refuses it; skorch hides ``classes_``."""
        with pytest.raises(ValueError, match="at least 2 classes"):
            net_cls(module_cls, max_epochs=0, classes=classes).fit(*data)


class TestOurRegressor(SkorchRegressorTests):
    @pytest.fixture(scope="module")
    def net_cls(self):
        """Ours, with skorch's default of a validation split."""
        return partial(CertifiedNeuralRegressor, train_split=ValidSplit(5), C=1e3)

    @pytest.mark.parametrize("method", ["predict", "forward", "forward_iter"])
    def test_not_init_raises(self, net_cls, module_cls, data, method):
        """The message has our name in it."""
        with pytest.raises(NotInitializedError, match="This CertifiedNeuralRegressor instance"):
            list(getattr(net_cls(module_cls), method)(data[0]))

    def test_not_fitted_raises(self, net_cls, module_cls):
        with pytest.raises(NotFittedError, match="This CertifiedNeuralRegressor instance"):
            check_is_fitted(net_cls(module_cls))

    def test_predict_predict_proba(self, net_fit, data):
        """A regressor of scikit-learn's has no predict_proba; skorch's returns predictions."""
        assert not hasattr(net_fit, "predict_proba")
        assert net_fit.score(*data) > 0.2

    def test_dimension_mismatch_warning(self, net_cls, module_cls, data, recwarn):
        """Outputs (n, 1) are right for targets (n,), and nothing is broadcast."""
        X, y = data
        net = net_cls(module_cls, random_state=0).fit(X[:100], y[:100].ravel())
        column = net_cls(module_cls, random_state=0).fit(X[:100], y[:100])
        np.testing.assert_allclose(net.predict(X), column.predict(X)[:, 0], rtol=1e-6)
        assert not any("broadcast" in str(w.message) for w in recwarn.list)

    def test_fitting_with_1d_target_and_pred(
        self, net_cls, module_cls, data, module_pred_1d_cls, recwarn
    ):
        """Outputs (n,) are refused: the methods compare them with targets as they are."""
        X, y = data
        for targets in (y, y.ravel()):
            with pytest.raises(ValueError, match=r"returned the shape \(2,\)"):
                net_cls(module_pred_1d_cls).fit(X, targets)

    def test_bagging_regressor(self, net_cls, module_cls, data, module_pred_1d_cls, recwarn):
        X, y = data
        bagging = BaggingRegressor(net_cls(module_cls), n_estimators=2, random_state=0)
        bagging.fit(X[:100], y[:100].ravel())
        assert not any("broadcast" in str(w.message) for w in recwarn.list)
