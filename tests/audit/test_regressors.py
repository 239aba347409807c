"""Audits and regressors: releases can be audited, probabilities of classes are not there."""

from __future__ import annotations

import numpy as np
import pytest

from sk_unlearn import CertifiedNeuralRegressor
from sk_unlearn.audit import audit_unlearning, compare
from sk_unlearn.audit.membership import Rows, loss_attack
from sk_unlearn.methods import Residual
from sk_unlearn.modules import LinearRegressor

rng = np.random.default_rng(0)
X = rng.standard_normal((60, 3))
y = X[:, 0] + 0.1 * rng.standard_normal(60)


def net(**params):
    return CertifiedNeuralRegressor(LinearRegressor, lam=0.1, noise_seed=0, **params)


def test_the_weights_of_both_worlds_are_not_told_apart():
    result = audit_unlearning(net(), X, y, forget=[0, 1], n_runs=60)
    assert not result.refuted
    assert result.certified_epsilon == 1.0


def test_noise_that_is_too_small_is_refuted(monkeypatch):
    from sk_unlearn.noise import NoiseSource

    release = NoiseSource.release
    monkeypatch.setattr(NoiseSource, "release", lambda self, w, std: release(self, w, std / 1e10))
    method = Residual(noise_std=0.1)
    result = audit_unlearning(net(method=method), X, y, forget=range(30), n_runs=60)
    assert result.refuted


def test_what_looks_at_probabilities_says_so():
    reg = net()
    with pytest.raises(TypeError, match="is a regressor.*view='weights'"):
        compare(reg, X[:40], y[:40], [0], X[40:], y[40:])
    with pytest.raises(TypeError, match="is a regressor"):
        audit_unlearning(reg, X, y, forget=[0], n_runs=4, view="predictions")
    fitted = reg.fit(X[:30], y[:30])
    half = [Rows(X[i::2], y[i::2], np.arange(60)[i::2] < 30) for i in (0, 1)]
    with pytest.raises(TypeError, match="is a regressor"):
        loss_attack(fitted, *half)
