"""A deletion that moves the un-noised weights by the whole diameter of the ball, and liars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from sk_unlearn import CertifiedNeuralClassifier
from sk_unlearn.accounting import gaussian_sigma
from sk_unlearn.events import GaussianRelease
from sk_unlearn.methods import Newton, OutputPerturbation
from sk_unlearn.modules import LinearHead
from sk_unlearn.noise import NoiseSource

C = 0.1

# Nine rows in ten say 1, and without them all say 0: in so small a ball the optimum lies at one
# pole with them and at the opposite pole without.
X = np.ones((100, 1), dtype=np.float32)
y = np.repeat([0, 1], [10, 90])
FORGET = np.arange(10, 100)


def net(method, kind=CertifiedNeuralClassifier, **parameters):
    settings = {
        "module": LinearHead,
        "lam": 0.0,
        "C": C,
        "classes": [0, 1],
        "lr": 0.05,
        "max_epochs": 30,
        "random_state": 0,
        "noise_seed": 0,
    }
    return kind(method=method, **(settings | parameters))


class FifthOfTheNoise(OutputPerturbation):
    def release(self, center, noise):
        released = noise.release(center.parameters, center.event.sigma / 5)
        return replace(center, parameters=released)


class ReusedNoise(OutputPerturbation):
    def release(self, center, noise):
        return super().release(center, NoiseSource(seed=7))


class OneWeightBare(OutputPerturbation):
    """Leaves the last weight without noise."""

    def release(self, center, noise):
        released = noise.release(center.parameters, center.event.sigma)
        released[-1] = center.parameters[-1]
        return replace(center, parameters=released)


class HandSetNewton(Newton):
    """The noise of the published experiments, and constants that make it look calibrated."""

    def event(self, setting):
        pretended = 0.001 / gaussian_sigma(1.0, epsilon=1.0, delta=1e-5) / 2
        return GaussianRelease(2 * pretended, None, "ball_diameter", (("C", pretended),))


class LetsBuffersThrough(OutputPerturbation):
    covers_buffers = True


class NormalisedHead(nn.Module):
    def __init__(self, n_features_in, n_classes):
        super().__init__()
        self.norm = nn.BatchNorm1d(n_features_in)
        self.head = nn.Linear(n_features_in, n_classes)

    def forward(self, X):
        return self.head(self.norm(X))


class KeepsTheOptimizer(CertifiedNeuralClassifier):
    def _released(self, *args, **kwargs):
        after = super()._released(*args, **kwargs)
        after["optimizer_"].load_state_dict(self.optimizer_.state_dict())
        return after


def buffers_case():
    """The deleted rows lie elsewhere, and the running mean says so."""
    rows = np.where(np.arange(100) < 10, -5.0, 5.0) + np.linspace(-0.1, 0.1, 100)
    return rows.reshape(-1, 1).astype(np.float32), y, FORGET


def weights_of(estimator):
    return torch.nn.utils.parameters_to_vector(estimator.module_.parameters()).detach().numpy()
