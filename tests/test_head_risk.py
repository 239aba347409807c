"""The linear head's objective against autograd and 50 digits; its gradient bound is a bound."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from torch.func import functional_call, grad, hessian

from sk_unlearn import bounds, head_risk
from sk_unlearn.head_risk import HeadRisk
from sk_unlearn.modules import LinearHead

BOTH = pytest.mark.parametrize("multi_class", ["ovr", "multinomial"])
U = 2.0**-53


def problem(seed, n, d, K, scale=1.0, spread=0.0):
    """Rows of norm about `scale`, their norms spread over `spread` decades."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * scale / np.sqrt(d)
    X *= 10.0 ** (-spread * rng.random((n, 1)))
    return X.astype(np.float32), rng.integers(0, K, n), rng


def make_risk(multi_class, seed=0, n=12, d=3, K=3, lam=1e-2, scale=1.0, spread=0.0, anchor=0.0):
    X, y, rng = problem(seed, n, d, K, scale, spread)
    reference = anchor * rng.standard_normal((K, d + 1))
    return HeadRisk(X, y, K, lam, reference, multi_class), rng


class Digits:
    """The same objective with 50 digits, written out from its definition."""

    def __init__(self, risk):
        self.risk = risk
        self.rows = [[mpmath.mpf(float(v)) for v in row] for row in risk.X]
        self.reference = self.matrix(risk.reference)
        self.lam = mpmath.mpf(risk.lam)

    @staticmethod
    def matrix(W):
        return [[mpmath.mpf(float(v)) for v in row] for row in W]

    def logits(self, W):
        return [[mpmath.fdot(w, x) for w in W] for x in self.rows]

    def value(self, W):
        with mpmath.workdps(50):
            W = self.matrix(W)
            total = mpmath.mpf(0)
            for z, label in zip(self.logits(W), self.risk.y, strict=True):
                if self.risk.multi_class == "ovr":
                    for k, t in enumerate(z):
                        total += mpmath.log1p(mpmath.exp(-t if k == label else t))
                else:
                    top = max(z)
                    total += mpmath.log(mpmath.fsum(mpmath.exp(t - top) for t in z))
                    total += top - z[label]
            square = mpmath.fsum(
                (w - r) ** 2
                for a, b in zip(W, self.reference, strict=True)
                for w, r in zip(a, b, strict=True)
            )
            return total / len(self.rows) + self.lam / 2 * square

    def residuals(self, W):
        out = []
        for z, label in zip(self.logits(W), self.risk.y, strict=True):
            if self.risk.multi_class == "ovr":
                p = [1 / (1 + mpmath.exp(-t)) for t in z]
            else:
                top = max(z)
                e = [mpmath.exp(t - top) for t in z]
                total = mpmath.fsum(e)
                p = [t / total for t in e]
            p[label] -= 1
            out.append(p)
        return out

    def gradient(self, W):
        with mpmath.workdps(50):
            W = self.matrix(W)
            R, n = self.residuals(W), len(self.rows)
            columns = list(zip(*self.rows, strict=True))
            return [
                [
                    mpmath.fdot(r, column) / n + self.lam * (W[k][j] - self.reference[k][j])
                    for j, column in enumerate(columns)
                ]
                for k, r in enumerate(zip(*R, strict=True))
            ]

    def distance(self, gradient, computed):
        with mpmath.workdps(50):
            return mpmath.sqrt(
                mpmath.fsum(
                    (g - mpmath.mpf(float(c))) ** 2
                    for a, b in zip(gradient, computed, strict=True)
                    for g, c in zip(a, b, strict=True)
                )
            )

    def norm(self, gradient):
        return self.distance(gradient, np.zeros(self.risk.shape))


def torch_objective(risk, X, y):
    """The estimator's own objective, as a function of W (K, d + 1), in float64."""
    K, width = risk.shape
    head = LinearHead(width - 1, K, risk.multi_class).double()
    criterion = head.criterion()
    rows = torch.as_tensor(X).double()
    labels, reference = torch.as_tensor(y), torch.as_tensor(risk.reference)

    def objective(W):
        weights = {"linear.weight": W[:, :-1], "linear.bias": W[:, -1]}
        loss = criterion(functional_call(head, weights, (rows,)), labels)
        return loss + risk.lam / 2 * (W - reference).square().sum()

    return objective


# ------------------------------------------------------------------ against autograd


@BOTH
@pytest.mark.parametrize("K", [2, 3, 5])
@pytest.mark.parametrize("shape", [(20, 4), (20, 1), (1, 3), (7, 2, 3, 2)])
def test_value_gradient_and_hessian_are_those_of_the_module(multi_class, K, shape):
    rng = np.random.default_rng(K)
    X = rng.standard_normal(shape).astype(np.float32)
    y = rng.integers(0, K, shape[0])
    width = int(np.prod(shape[1:])) + 1
    risk = HeadRisk(X, y, K, 0.1, rng.standard_normal((K, width)), multi_class)
    W, V = rng.standard_normal((2, K, width))
    objective = torch_objective(risk, X, y)
    at = torch.as_tensor(W)
    assert risk.value(W) == pytest.approx(float(objective(at)), rel=1e-14)
    np.testing.assert_allclose(risk.gradient(W), grad(objective)(at), rtol=1e-12, atol=1e-15)
    dense = hessian(objective)(at).reshape(W.size, W.size).numpy()
    np.testing.assert_allclose(
        risk.hessian_product(W)(V).ravel(), dense @ V.ravel(), rtol=1e-11, atol=1e-14
    )


# ------------------------------------------------------------------ against 50 digits

scales = st.floats(-3, 4).map(lambda x: 10.0**x)
kinds = st.sampled_from(["ovr", "multinomial"])


@st.composite
def hard_cases(draw):
    """Row norms 1e-3 ... 1e4, K up to 10, logits from none to saturated, with cancellation."""
    K = draw(st.integers(2, 10))
    d = draw(st.integers(1, 6))
    risk, rng = make_risk(
        draw(kinds),
        seed=draw(st.integers(0, 10**6)),
        n=draw(st.integers(1, 10)),
        d=d,
        K=K,
        lam=10.0 ** draw(st.floats(-9, 4)),
        scale=draw(scales),
        spread=draw(st.sampled_from([0.0, 3.0])),
        anchor=draw(st.sampled_from([0.0, 1.0])),
    )
    logits = 10.0 ** draw(st.floats(-3, 4))
    W = rng.standard_normal((K, d + 1)) * logits / np.linalg.norm(risk.X, axis=1).max()
    if draw(st.booleans()) and len(risk.X) <= d:  # large weights whose logits cancel
        null = np.linalg.svd(risk.X)[2][len(risk.X) :]
        W += 1e3 * logits * rng.standard_normal((K, len(null))) @ null
    return risk, W


@settings(max_examples=60)
@given(hard_cases())
def test_the_bound_is_above_the_true_gradient_norm(case):
    risk, W = case
    bound, rounding, gradient = risk.gradient_norm_bound(W)
    true = Digits(risk)
    exact = true.gradient(W)
    assert true.norm(exact) <= bound
    assert true.distance(exact, gradient) <= rounding
    assert np.array_equal(gradient, risk.gradient(W))


@settings(max_examples=30)
@given(hard_cases())
def test_it_is_above_where_the_gradient_nearly_vanishes(case):
    """At the anchor that makes W the optimum, what is computed is rounding and nothing else."""
    risk, W = case
    before = np.linalg.norm(W - risk.reference)
    risk.reference = W + (risk.gradient(W) - risk.lam * (W - risk.reference)) / risk.lam
    bound, rounding, gradient = risk.gradient_norm_bound(W)
    true = Digits(risk)
    exact = true.gradient(W)
    assert true.norm(exact) <= bound
    assert true.distance(exact, gradient) <= rounding
    resolution = 4 * U * risk.lam * (np.linalg.norm(risk.reference) + before)
    assert np.linalg.norm(gradient) <= 10 * rounding + resolution, "not near the optimum"


def eta(risk, W):
    """The rounding bound of (T12), with its constants written out (c = 10 + K)."""
    (K, width), n = risk.shape, len(risk.y)
    R = float(np.linalg.norm(risk.X, axis=1).max())
    L = np.sqrt(K) if risk.multi_class == "ovr" else np.sqrt(2.0)
    beta = 0.25 if risk.multi_class == "ovr" else 0.5
    weights, offset = np.linalg.norm(W), np.linalg.norm(W - risk.reference)
    evaluation = (10 + K) * np.sqrt(K)
    loss = R * ((n + 2) * L + beta * R * (width + 1) * weights + evaluation)
    return U * (loss + 3 * risk.lam * offset)


@given(hard_cases())
def test_it_is_not_absurdly_loose(case):
    risk, W = case
    bound, rounding, gradient = risk.gradient_norm_bound(W)
    assert rounding <= 4 * eta(risk, W)
    assert bound <= (1 + 1e-12) * np.linalg.norm(gradient) + rounding * (1 + 1e-12)


@BOTH
def test_the_bound_is_asked_with_the_norms_of_this_problem(multi_class, monkeypatch):
    """Each of them, though rarely does one of them alone decide."""
    risk, rng = make_risk(multi_class, n=30, d=4, K=3, scale=10.0, spread=3.0, anchor=1.0)
    W = rng.standard_normal(risk.shape)
    asked = {}

    def spy(**arguments):
        asked.update(arguments)
        return 0.25

    monkeypatch.setattr(bounds, "gradient_rounding_error", spy)
    bound, rounding, gradient = risk.gradient_norm_bound(W)
    rows = [np.linalg.norm(row) for row in risk.X]
    residuals = [np.linalg.norm(r) for r in risk.loss.residuals(risk.X @ W.T, risk.y)]
    expected = {
        "n_rows": 30,
        "n_features": 5,
        "n_heads": 3,
        "row_norm": max(rows),
        "mean_residual_times_row": np.mean(np.multiply(rows, residuals)),
        "smoothness": 0.25 if multi_class == "ovr" else 0.5,
        "lam": risk.lam,
        "weights_norm": np.linalg.norm(W),
        "offset_norm": np.linalg.norm(W - risk.reference),
    }
    assert set(asked) == set(expected)
    assert asked == pytest.approx(expected, rel=1e-13)
    assert rounding == 0.25
    assert bound > np.linalg.norm(gradient) + 0.25


@BOTH
def test_a_float32_gradient_would_not_pass(multi_class):
    """The test of the bound can fail: one float32 operation breaks it by orders of magnitude."""
    risk, rng = make_risk(multi_class, n=50, d=10)
    W = rng.standard_normal(risk.shape)
    _, rounding, gradient = risk.gradient_norm_bound(W)
    X = risk.X.astype(np.float32)
    residuals = risk.loss.residuals(X @ W.astype(np.float32).T, risk.y)
    wrong = residuals.T @ X / len(risk.y) + risk.lam * (W - risk.reference)
    true = Digits(risk)
    exact = true.gradient(W)
    assert true.distance(exact, gradient) <= rounding < true.distance(exact, wrong) / 1e3


@settings(max_examples=40)
@given(hard_cases())
def test_the_value_has_no_cancellation(case):
    risk, W = case
    true = Digits(risk).value(W)
    logits = risk.X @ W.T
    error = U * (20 + 4 * W.shape[1] * (np.abs(risk.X) @ np.abs(W.T)).max())
    if np.abs(logits).max() < 1e3:
        assert abs(risk.value(W) - true) <= error + 1e-14 * abs(true)


# ------------------------------------------------------------------ saturation


@pytest.mark.parametrize("size", [30.0, 700.0, 800.0, 1e5, 1e150])
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["right", "wrong"])
@BOTH
def test_saturated_logits_give_finite_and_right_numbers(multi_class, sign, size):
    X = np.array([[1.0], [-1.0]], dtype=np.float32)
    risk = HeadRisk(X, np.array([0, 1]), 2, 0.0, np.zeros((2, 2)), multi_class)
    W = sign * size * np.array([[1.0, 0.0], [-1.0, 0.0]])
    value, gradient = risk.value(W), risk.gradient(W)
    margin = 2 * size if multi_class == "multinomial" else size
    heads = 1 if multi_class == "multinomial" else 2
    if sign < 0:
        assert value == pytest.approx(heads * margin, rel=1e-12)
        np.testing.assert_allclose(gradient[:, 0], [-1.0, 1.0], rtol=1e-12)
    else:
        tail = float(mpmath.exp(-mpmath.mpf(margin)))
        expected = heads * float(mpmath.log1p(mpmath.exp(-mpmath.mpf(margin))))
        absolute = 0.0 if multi_class == "ovr" else 2 * U
        assert value == pytest.approx(expected, rel=1e-12, abs=absolute)
        np.testing.assert_allclose(gradient[:, 0], [-tail, tail], rtol=1e-10, atol=2 * U)
    product = risk.hessian_product(W)(np.array([[1.0, 0.0], [0.0, 0.0]]))
    assert np.isfinite(product).all()


@BOTH
def test_the_residuals_are_bounded_by_the_loss_gradient(multi_class):
    risk, rng = make_risk(multi_class, n=40, d=5, K=4)
    for size in (0.0, 1.0, 1e3, 1e8):
        W = size * rng.standard_normal(risk.shape)
        norms = np.linalg.norm(risk.loss.residuals(risk.X @ W.T, risk.y), axis=1)
        assert norms.max() <= (2.0 if multi_class == "ovr" else np.sqrt(2.0)) * (1 + 1e-15)


@BOTH
def test_weights_that_overflow_give_no_bound(multi_class):
    risk, _ = make_risk(multi_class, scale=1e4)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="finite"):
        risk.gradient_norm_bound(np.full(risk.shape, 1e308))


# ------------------------------------------------------------------ structure


@settings(max_examples=40)
@given(kinds, st.integers(0, 10**6), st.integers(2, 6), scales)
def test_the_hessian_is_symmetric_and_lies_between_lam_and_beta(multi_class, seed, K, scale):
    risk, rng = make_risk(multi_class, seed=seed, K=K, scale=scale)
    W = rng.standard_normal(risk.shape) / scale
    product = risk.hessian_product(W)
    A, B = rng.standard_normal((2, *risk.shape))
    size = np.linalg.norm(A) * np.linalg.norm(product(B))
    assert np.vdot(A, product(B)) == pytest.approx(np.vdot(B, product(A)), abs=1e-12 * size)
    curvature = np.vdot(A, product(A)) / np.vdot(A, A)
    top = np.linalg.norm(risk.X, 2) ** 2 / len(risk.y)
    beta = 0.25 if multi_class == "ovr" else 0.5
    assert risk.lam * (1 - 1e-12) <= curvature <= (risk.lam + beta * top) * (1 + 1e-12)


@BOTH
def test_the_bias_is_the_last_column_and_is_penalised(multi_class):
    risk, _ = make_risk(multi_class, lam=0.5)
    W = np.zeros(risk.shape)
    W[:, -1] = 3.0  # a common bias leaves softmax as it is
    penalty = 0.5 / 2 * 9 * 3
    at_zero = HeadRisk(risk.X[:, :-1], risk.y, 3, 0.0, risk.reference, multi_class)
    assert risk.value(W) == pytest.approx(at_zero.value(W) + penalty, rel=1e-14)
    assert np.all(risk.X[:, -1] == 1.0)


def test_one_versus_rest_heads_are_independent():
    risk, rng = make_risk("ovr", K=3, lam=0.0)
    W = rng.standard_normal(risk.shape)
    changed = W.copy()
    changed[0] += 1.0
    assert np.array_equal(risk.gradient(changed)[1:], risk.gradient(W)[1:])
    logits = risk.X @ W.T
    onehot = np.eye(3)[risk.y]
    np.testing.assert_array_equal(risk.loss.residuals(logits, risk.y), expit(logits) - onehot)


@BOTH
def test_nothing_that_is_given_is_modified(multi_class):
    X, y, rng = problem(0, 10, 3, 3)
    reference, W = rng.standard_normal((2, 3, 4))
    before = [a.copy() for a in (X, y, reference, W)]
    risk = HeadRisk(X, y, 3, 0.1, reference, multi_class)
    risk.value(W), risk.gradient(W), risk.gradient_norm_bound(W), risk.hessian_product(W)(W)
    for array, copy in zip((X, y, reference, W), before, strict=True):
        assert np.array_equal(array, copy)
    assert not np.shares_memory(risk.X, X)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="multi_class='hinge'"):
        make_risk("hinge")


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_blocks_of_rows_add_up_to_all_of_them(monkeypatch, multi_class, dtype, n):
    monkeypatch.setattr(head_risk, "_BLOCK_BYTES", 0)  # the least block: 64 rows
    monkeypatch.setattr(head_risk, "_GRAM_ROWS", 50)
    X, y, rng = problem(0, n, 5, 3)
    X, reference = X.astype(dtype), rng.standard_normal((3, 6))
    risk = HeadRisk(X, y, 3, 0.1, reference, multi_class)
    W, V, weights = (*rng.standard_normal((2, 3, 6)), rng.random(n) * (rng.random(n) < 0.5))
    D = np.hstack([X.astype(np.float64), np.ones((n, 1))])
    assert sum(len(block) for _, block in risk.blocks()) == n
    assert np.array_equal(np.vstack([block.copy() for _, block in risk.blocks()]), D)
    logits, penalty = D @ W.T, W - reference
    value = risk.loss.values(logits, y).mean() + 0.05 * np.square(penalty).sum()
    residuals = risk.loss.residuals(logits, y)
    product = risk.loss.curve(logits)(D @ V.T).T @ D / n + 0.1 * V
    close = {"rtol": 1e-12, "atol": 1e-14}
    np.testing.assert_allclose(risk.value(W), value, **close)
    np.testing.assert_allclose(risk.gradient(W), residuals.T @ D / n + 0.1 * penalty, **close)
    np.testing.assert_allclose(risk.curvature(W), risk.loss.diagonal(logits), **close)
    np.testing.assert_allclose(risk.hessian_product(W)(V), product, **close)
    np.testing.assert_allclose(risk.gram(weights), (D.T * weights) @ D / n, **close)
    np.testing.assert_allclose(risk.gram(), D.T @ D / n, **close)
