"""Every iterate stays in the ball, whatever trains."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from skorch.callbacks import Callback
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn._net import to_vector
from sk_unlearn.objective import penalty

X, y = load_iris(return_X_y=True)


class Watch(Callback):
    """Records the distance from the anchor after each step."""

    def initialize(self):
        self.distances_ = []
        return self

    def on_batch_end(self, net, training=False, **kwargs):
        reference = net._reference_vector()
        self.distances_.append(float(np.linalg.norm(to_vector(net._trainable()) - reference)))


class Interrupt(Callback):
    """Presses Ctrl-C while the weights are far outside the ball."""

    def on_grad_computed(self, net, **kwargs):
        with torch.no_grad():
            net._trainable()[0].add_(100.0)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("anchor", ["zero", "init"])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW])
def test_every_iterate_is_inside_the_ball(anchor, optimizer):
    watch = Watch()
    clf = CertifiedNeuralClassifier(
        C=0.8, anchor=anchor, optimizer=optimizer, lr=0.5, callbacks=[watch], random_state=0
    ).fit(X, y)
    assert len(watch.distances_) == clf.max_epochs * 2
    assert max(watch.distances_) <= 0.8
    assert max(watch.distances_) > 0.79


def test_the_constraint_survives_without_callbacks_and_an_interrupt():
    quiet = CertifiedNeuralClassifier(C=0.5, lr=0.5, callbacks="disable", max_epochs=3).fit(X, y)
    assert quiet._ball().distance() <= 0.5
    with pytest.warns(UserWarning, match="interrupted"):
        stopped = CertifiedNeuralClassifier(C=0.5, callbacks=[Interrupt()]).fit(X, y)
    assert stopped._ball().distance() <= 0.5


def test_the_penalty_is_half_lam_times_the_squared_norm():
    clf = CertifiedNeuralClassifier(lam=0.7, max_epochs=1, random_state=0).fit(X, y)
    inputs, targets = torch.as_tensor(clf.rows_.X), torch.as_tensor(clf.rows_.y)
    logits = clf.module_(inputs)
    plain = clf.get_loss(logits, targets).detach()
    trained = clf.get_loss(logits, targets, training=True).detach()
    expected = 0.35 * np.sum(to_vector(clf._trainable()) ** 2)
    assert float(trained - plain) == pytest.approx(expected, rel=1e-5)
    assert float(plain) == pytest.approx(float(nn.functional.cross_entropy(logits, targets)))


def test_the_penalty_is_centred_at_the_anchor():
    weights = [torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([[1.0]])]
    centre = [torch.tensor([0.0, 4.0]), torch.tensor([[1.0]])]
    assert float(penalty(weights, centre, 2.0)) == pytest.approx(9.0)
    assert float(penalty(weights, None, 2.0)) == pytest.approx(26.0)


def test_a_diverging_fit_is_an_error():
    class Explode(Callback):
        def on_train_end(self, net, **kwargs):
            with torch.no_grad():
                net._trainable()[0].fill_(float("nan"))

    with pytest.raises(ValueError, match="training diverged"):
        CertifiedNeuralClassifier(max_epochs=1, callbacks=[Explode()]).fit(X, y)
