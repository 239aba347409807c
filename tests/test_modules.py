"""The reference networks and their criteria."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.modules import MLP, AllCNN, LinearHead, OneVsRestLoss, ResNet18


def test_ovr_loss_is_the_sum_of_binary_log_losses():
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(7, 3)) * 3, rng.integers(0, 3, 7)
    signs = np.where(np.arange(3) == y[:, None], 1, -1)
    expected = -np.log(expit(signs * logits)).sum(axis=1).mean()
    loss = OneVsRestLoss()(torch.as_tensor(logits), torch.as_tensor(y))
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_ovr_probabilities_survive_extreme_logits():
    logits = torch.tensor([[-500.0, -400.0], [800.0, 900.0]])
    proba = OneVsRestLoss().probabilities(logits)
    assert torch.isfinite(proba).all()
    assert torch.allclose(proba.sum(1), torch.ones(2))
    assert proba[0].argmax() == 1


def test_the_head_starts_at_zero_and_checks_its_option():
    head = LinearHead(3, 4)
    assert all(torch.count_nonzero(p) == 0 for p in head.parameters())
    assert isinstance(head.criterion(), OneVsRestLoss)
    assert isinstance(LinearHead(3, 4, "multinomial").criterion(), nn.CrossEntropyLoss)
    with pytest.raises(ValueError, match="multi_class='crammer'"):
        LinearHead(3, 4, "crammer")


def test_published_sizes():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(MLP(784, 10, hidden=(32, 32))) == 784 * 32 + 32 + 32 * 32 + 32 + 32 * 10 + 10
    assert count(AllCNN((3, 32, 32), 10)) == pytest.approx(1.37e6, rel=0.01)
    assert count(ResNet18((3, 32, 32), 10)) == pytest.approx(11.17e6, rel=0.01)


@pytest.mark.parametrize("module", [AllCNN, ResNet18])
def test_image_networks_train_and_hold_no_buffers(module):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 32)
    X = rng.normal(size=(32, 1, 8, 8))
    X[..., :4] += 3 * y[:, None, None, None]
    net = CertifiedNeuralClassifier(
        module,
        module__width=8,
        max_epochs=15,
        C=100.0,
        random_state=0,
        method="output_perturbation",
    ).fit(X, y)
    assert net.score(X, y) > 0.8
    assert not list(net.module_.buffers())
    net.unlearn(indices=[0])


@pytest.mark.parametrize("module", [AllCNN, ResNet18])
def test_image_networks_refuse_tables(module):
    with pytest.raises(ValueError, match=r"images of shape \(c, h, w\), not .*\(5,\)"):
        CertifiedNeuralClassifier(module).fit(np.zeros((4, 5)), [0, 1, 0, 1])
