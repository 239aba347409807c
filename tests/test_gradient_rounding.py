"""The rounding error of a head's gradient, against exact and 40-digit gradients."""

from __future__ import annotations

from fractions import Fraction
from itertools import chain

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, softmax

from sk_unlearn import bounds

few = settings(max_examples=150, deadline=None)
LOSSES = ("ovr", "multinomial", "squares")
SMOOTHNESS = {"ovr": 0.25, "multinomial": 0.5, "squares": 1.0}


def true_residual(loss, logits, target):
    if loss == "squares":
        return [z - t for z, t in zip(logits, target, strict=True)]
    if loss == "ovr":
        return [1 / (1 + mp.exp(-z)) - t for z, t in zip(logits, target, strict=True)]
    weights = [mp.exp(z) for z in logits]
    return [w / sum(weights) - t for w, t in zip(weights, target, strict=True)]


def true_gradient(loss, X, Y, W, reference, lam):
    """Return the gradient of the float inputs in exact or 40-digit arithmetic."""
    number = Fraction if loss == "squares" else mp.mpf
    rows, weights = ([[number(v) for v in row] for row in M.tolist()] for M in (X, W))
    total = [[number(0)] * X.shape[1] for _ in weights]
    for x, target in zip(rows, Y.tolist(), strict=True):
        logits = [sum(a * b for a, b in zip(w, x, strict=True)) for w in weights]
        residual = true_residual(loss, logits, [number(t) for t in target])
        for k, r in enumerate(residual):
            total[k] = [t + r * v for t, v in zip(total[k], x, strict=True)]
    return [
        [t / len(rows) + number(lam) * (w - number(c)) for t, w, c in zip(*parts, strict=True)]
        for (*parts,) in zip(total, weights, reference.tolist(), strict=True)
    ]


def residuals(loss, logits, Y, variant):
    if loss == "squares":
        return logits - Y
    if loss == "ovr":
        return expit(logits) - Y if variant else torch.sigmoid(torch.from_numpy(logits)).numpy() - Y
    if variant:
        return softmax(logits, axis=1) - Y
    return np.exp(log_softmax(logits, axis=1)) - Y


def computed_gradients(loss, X, Y, W, reference, lam):
    """Yield the gradient, and its residuals, in several orders of evaluation."""
    n = len(X)
    for variant in (0, 1):
        r = residuals(loss, X @ W.T, Y, variant)
        yield r.T @ X / n + lam * (W - reference), r
        yield (r / n).T @ X + lam * (W - reference), r
    backwards = np.array([[sum((x * w)[::-1]) for w in W] for x in X])
    r = residuals(loss, backwards, Y, 1)
    total = np.zeros_like(W)
    for row, x in zip(r[::-1], X[::-1], strict=True):
        total += np.outer(row, x)
    yield total / n + lam * (W - reference), r


def bound_of(loss, X, Y, W, reference, lam, r=None):
    norms = np.linalg.norm(X, axis=1)
    measured = (
        {"lipschitz": bounds.head_constants(loss, len(W)).lipschitz}
        if r is None
        else {"mean_residual_times_row": float(np.linalg.norm(r, axis=1) @ norms) / len(X)}
    )
    return bounds.gradient_rounding_error(
        n_rows=len(X),
        n_features=X.shape[1],
        n_heads=len(W),
        row_norm=float(norms.max()),
        smoothness=SMOOTHNESS[loss],
        lam=lam,
        weights_norm=float(np.linalg.norm(W)),
        offset_norm=float(np.linalg.norm(W - reference)),
        **measured,
    )


def problem(loss, rng, n, d, K):
    X = rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-3, 3)
    X *= 10.0 ** rng.uniform(-4, 0, (n, 1))
    W = rng.standard_normal((K, d)) * 10.0 ** rng.uniform(-4, 2)
    reference = W * rng.choice([0.0, 1 - 1e-9]) + rng.choice([0.0, 1e-3])
    if loss == "squares":
        Y = X @ W.T + rng.standard_normal((n, K)) * 10.0 ** rng.uniform(-9, 6)
    else:
        Y = np.eye(K)[rng.integers(K, size=n)]
        if rng.random() < 0.3:  # saturated: residuals that cancel
            X *= 30 / max(np.abs(X @ W.T).max(), 1e-300)
    return X, Y, W, reference, float(10.0 ** rng.uniform(-8, 1))


def distance(gradient, truth):
    with mp.workdps(40):

        def exact(v):
            return mp.mpf(v.numerator) / v.denominator if isinstance(v, Fraction) else v

        pairs = zip(gradient.ravel().tolist(), chain.from_iterable(truth), strict=True)
        return mp.sqrt(sum((mp.mpf(a) - exact(b)) ** 2 for a, b in pairs))


@pytest.mark.parametrize("loss", LOSSES)
@few
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 8), st.integers(2, 6))
def test_the_true_error_is_never_above_the_bound(loss, seed, n, d, K):
    data = problem(loss, np.random.default_rng(seed), n, d, K)
    with mp.workdps(40):
        truth = true_gradient(loss, *data)
    for gradient, r in computed_gradients(loss, *data):
        error = distance(gradient, truth)
        assert error <= bound_of(loss, *data, r)
        if loss != "squares":
            assert error <= bound_of(loss, *data)
        norm = float(np.linalg.norm(gradient))
        true_norm = distance(np.zeros_like(gradient), truth)
        assert true_norm <= bounds.computed_norm_bound(
            norm, gradient.size, bound_of(loss, *data, r)
        )


@pytest.mark.parametrize("loss", LOSSES)
def test_a_larger_problem(loss):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((1500, 12))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    W = rng.standard_normal((3, 12)) * 5
    Y = X @ W.T + 0.1 if loss == "squares" else np.eye(3)[rng.integers(3, size=1500)]
    data = X, Y, W, np.zeros_like(W), 1e-4
    with mp.workdps(40):
        truth = true_gradient(loss, *data)
    for gradient, r in computed_gradients(loss, *data):
        bound = bound_of(loss, *data, r)
        assert distance(gradient, truth) <= bound <= 1e-12
        assert distance(gradient.astype(np.float32), truth) > bound


@pytest.mark.parametrize("function", [expit, lambda z: torch.sigmoid(torch.from_numpy(z)).numpy()])
def test_sigmoids_are_within_the_assumed_error(function):
    z = np.concatenate([np.linspace(-40, 40, 4001), np.linspace(-700, -40, 200)])
    with mp.workdps(40):
        for a, b in zip(z.tolist(), function(z).tolist(), strict=True):
            truth = 1 / (1 + mp.exp(-mp.mpf(a)))
            assert abs(mp.mpf(b) / truth - 1) <= 8 * mp.mpf(2) ** -53


def test_exponentials_are_within_the_assumed_error():
    z = np.concatenate([np.linspace(-700, 0, 3000), -np.geomspace(1e-9, 700, 3000)])
    with mp.workdps(40):
        for values in (np.exp(z), torch.exp(torch.from_numpy(z)).numpy()):
            for a, b in zip(z.tolist(), values.tolist(), strict=True):
                assert abs(mp.mpf(b) / mp.exp(mp.mpf(a)) - 1) <= 8 * mp.mpf(2) ** -53


BASE = dict(
    n_rows=20_000,
    n_features=731,
    n_heads=10,
    row_norm=1.0,
    smoothness=0.25,
    lam=1e-5,
    weights_norm=50.0,
    offset_norm=50.0,
)


def test_size_at_realistic_settings():
    assert 1e-13 < bounds.gradient_rounding_error(**BASE, lipschitz=10**0.5) < 1e-11


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(BASE)), st.floats(1, 100))
def test_monotone(name, factor):
    grown = BASE | {
        name: int(BASE[name] * factor) if name.startswith("n_") else BASE[name] * factor
    }
    for extra in ({"lipschitz": 2.0}, {"mean_residual_times_row": 0.1}):
        base = bounds.gradient_rounding_error(**BASE, **extra)
        assert bounds.gradient_rounding_error(**grown, **extra) >= base


def test_bad_input_is_quoted():
    with pytest.raises(ValueError, match="exactly one"):
        bounds.gradient_rounding_error(**BASE)
    with pytest.raises(ValueError, match="exactly one"):
        bounds.gradient_rounding_error(**BASE, lipschitz=1.0, mean_residual_times_row=1.0)
    with pytest.raises(ValueError, match="row_norm=-1.0"):
        bounds.gradient_rounding_error(**BASE | {"row_norm": -1.0}, lipschitz=1.0)
    with pytest.raises(ValueError, match="no useful rounding bound"):
        bounds.gradient_rounding_error(**BASE | {"n_rows": 2**52}, lipschitz=1.0)
    with pytest.raises(ValueError, match="n_rows=0"):
        bounds.gradient_rounding_error(**BASE | {"n_rows": 0}, lipschitz=1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 2000), st.floats(-150, 150))
def test_norms_are_covered(seed, p, power):
    v = np.random.default_rng(seed).standard_normal(p) * 10.0**power
    truth = sum(Fraction(x) ** 2 for x in v.tolist())
    for norm in (float(np.linalg.norm(v)), float(np.sqrt(sum(v[::-1] ** 2)))):
        bound = bounds.computed_norm_bound(norm, p)
        assert Fraction(bound) ** 2 >= truth
        assert bound <= norm * (1 + 1e-12) + 1e-140
