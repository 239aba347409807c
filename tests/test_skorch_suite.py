"""skorch's own tests of its classifier, run with ours in its place.

Where we mean to differ, the test is replaced by one that says how and why.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skorch.tests.conftest import *  # noqa: F403
from skorch.tests.test_classifier import TestNeuralNet as SkorchTests

from sk_unlearn import CertifiedNeuralClassifier


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
