"""The solver reaches a proved gradient norm from everywhere, and the point it says it reaches."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from sk_unlearn.convex import minimise
from sk_unlearn.head_risk import HeadRisk

BOTH = pytest.mark.parametrize("multi_class", ["ovr", "multinomial"])
SIZES = pytest.mark.parametrize(
    ("K", "d", "n"), [(2, 1, 30), (3, 10, 100), (5, 50, 300)], ids=["2x1", "3x10", "5x50"]
)


def rows(kind, n, d, K, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((n, d)), rng.integers(0, K, n)
    y[:K] = np.arange(K)
    match kind:
        case "separable":
            X[:, : min(d, K)] += 9 * np.eye(K)[y][:, : min(d, K)]
        case "ill-conditioned":
            X *= np.logspace(-6, 0, d)
        case "duplicated columns":
            X = np.repeat(X[:, : -(-d // 2)], 2, axis=1)[:, :d]
        case "constant":
            X[:] = 1.0
        case "far from the origin":
            X += 100.0
        case "sparse":
            X *= rng.random(X.shape) < 0.05
    return (X * scale).astype(np.float32), y


def make_risk(multi_class, kind="gaussian", n=60, d=4, K=3, lam=1e-3, seed=0, scale=1.0):
    X, y = rows(kind, n, d, K, seed, scale)
    return HeadRisk(X, y, K, lam, np.zeros((K, d + 1)), multi_class)


def far(risk, norm, seed=1):
    W = np.random.default_rng(seed).standard_normal(risk.shape)
    return W * norm / np.linalg.norm(W)


def zero(risk):
    return np.zeros(risk.shape)


class Recorder:
    """Pass everything on to a risk, and keep the iterates."""

    def __init__(self, risk):
        self.risk, self.seen = risk, []

    def __getattr__(self, name):
        return getattr(self.risk, name)

    def gradient_norm_bound(self, W, tol=None):
        self.seen.append(W.copy())
        return self.risk.gradient_norm_bound(W, tol)


# ------------------------------------------------------------------ it gets there


@BOTH
@SIZES
@pytest.mark.parametrize("start", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("lam", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize(
    "kind",
    [
        "gaussian",
        "separable",
        "ill-conditioned",
        "duplicated columns",
        "constant",
        "far from the origin",
        "sparse",
    ],
)
def test_it_reaches_the_rounding_error_from_everywhere(kind, lam, start, K, d, n, multi_class):
    risk = make_risk(multi_class, kind, n, d, K, lam)
    found = minimise(risk, far(risk, start))
    assert found.bound <= 2 * found.rounding
    assert found.n_iter <= 40


@BOTH
@pytest.mark.parametrize("scale", [1e-3, 1e2, 1e4])
@pytest.mark.parametrize("lam", [1e-9, 1e-3])
@pytest.mark.parametrize("kind", ["gaussian", "separable", "duplicated columns", "constant"])
def test_it_does_so_at_any_scale_of_the_features(kind, lam, scale, multi_class):
    risk = make_risk(multi_class, kind, 100, 10, 3, lam, scale=scale)
    found = minimise(risk, far(risk, 1e3))
    assert found.bound <= 2 * found.rounding
    assert found.n_iter <= 60


@settings(max_examples=40)
@given(
    st.sampled_from(["ovr", "multinomial"]),
    st.sampled_from(["gaussian", "separable", "sparse", "far from the origin"]),
    st.integers(2, 5),
    st.integers(1, 20),
    st.floats(-6, 0).map(lambda x: 10.0**x),
    st.floats(1.5, 1e6),
    st.floats(-2, 3).map(lambda x: 10.0**x),
    st.integers(0, 10**6),
)
def test_a_declared_tolerance_above_the_rounding_is_reached(
    multi_class, kind, K, d, lam, factor, start, seed
):
    risk = make_risk(multi_class, kind, 40, d, K, lam, seed)
    tol = factor * minimise(risk, zero(risk)).rounding
    found = minimise(risk, far(risk, start, seed), tol)
    assert found.bound <= tol
    assert found.bound == risk.gradient_norm_bound(found.weights)[0]


@BOTH
def test_more_columns_than_a_cholesky_factor_is_made_for(multi_class):
    risk = make_risk(multi_class, "gaussian", n=20, d=5000, K=2, lam=1e-2)
    found = minimise(risk, far(risk, 10.0))
    assert found.bound <= 2 * found.rounding


@BOTH
def test_it_starts_where_it_is_told_when_that_is_good(multi_class):
    risk = make_risk(multi_class)
    done = minimise(risk, zero(risk))
    again = minimise(risk, done.weights, 3 * done.rounding)
    assert again.n_iter == 0 and np.array_equal(again.weights, done.weights)
    near = done.weights + far(risk, 1e-6)
    assert minimise(risk, near).n_iter <= 3


@BOTH
def test_a_loose_tolerance_costs_less(multi_class):
    risk = make_risk(multi_class, d=20)
    steps = [minimise(risk, zero(risk), tol).n_iter for tol in (1e-1, 1e-4, 1e-9)]
    assert steps == sorted(steps) and steps[0] < steps[-1]
    assert minimise(risk, zero(risk), 1e9).n_iter == 0


class Coarse(Recorder):
    """Until it is sharpened, another risk stands in wherever nothing has to be proved."""

    def __init__(self, risk, other, can_sharpen=True):
        super().__init__(risk)
        self.other, self.can_sharpen, self.sharpened, self.missed = other, can_sharpen, 0, 0

    @property
    def now(self):
        return self.risk if self.sharpened else self.other

    def value(self, W):
        return self.now.value(W)

    def gradient(self, W):
        return self.now.gradient(W)

    def gradient_norm_bound(self, W, tol=None):
        gradient = self.gradient(W)
        norm = float(np.linalg.norm(gradient))
        return (norm, 0.0, gradient) if norm > tol else super().gradient_norm_bound(W, tol)

    def sharpen(self):
        self.missed = self.missed or len(self.seen)
        self.sharpened += self.can_sharpen
        return self.can_sharpen and self.sharpened == 1


@BOTH
@pytest.mark.parametrize("slip", [1e-3, 1e-7])
def test_a_coarse_search_is_sharpened_where_the_proof_fails(multi_class, slip):
    exact = make_risk(multi_class)
    shifted = exact.X[:, :-1] * (1 + slip)
    other = HeadRisk(shifted, exact.y, 3, exact.lam, exact.reference, multi_class)
    coarse = Coarse(exact, other)
    found = minimise(coarse, zero(exact), 1e-10)
    assert coarse.missed == 1  # one proof is enough to know
    assert found.bound == exact.gradient_norm_bound(found.weights)[0] <= 1e-10
    stuck = minimise(Coarse(exact, other, can_sharpen=False), zero(exact), 1e-10)
    assert stuck.bound > 1e-10
    good_enough = Coarse(exact, make_risk(multi_class))
    assert minimise(good_enough, zero(exact), 1e-10).bound <= 1e-10
    assert not good_enough.sharpened


# ------------------------------------------------------------------ and says where it is


@BOTH
@pytest.mark.parametrize("limit", [0, 1, 2])
def test_the_limit_of_steps_is_kept_and_admitted(multi_class, limit):
    risk = make_risk(multi_class)
    found = minimise(risk, zero(risk), 1e-12, max_iter=limit)
    assert found.n_iter == limit
    assert found.bound == risk.gradient_norm_bound(found.weights)[0] > 1e-12


@BOTH
def test_a_tolerance_below_the_rounding_error_is_not_claimed(multi_class):
    risk = make_risk(multi_class)
    found = minimise(risk, zero(risk), 1e-30)
    assert found.bound >= found.rounding > 1e-30
    assert found.n_iter < 50, "it goes on although nothing is left to gain"


def test_a_gradient_that_is_exactly_zero_ends_the_search():
    X = np.zeros((2, 3), dtype=np.float32)
    risk = HeadRisk(X, np.array([0, 1]), 2, 0.1, np.zeros((2, 4)), "ovr")
    assert not risk.gradient(zero(risk)).any()
    found = minimise(risk, zero(risk), 1e-30)
    assert found.n_iter == 0
    assert found.rounding <= found.bound <= found.rounding * (1 + 1e-12)


@BOTH
@pytest.mark.parametrize("kind", ["gaussian", "separable", "far from the origin"])
@pytest.mark.parametrize("start", [0.0, 1e3])
def test_the_objective_never_rises_beyond_its_rounding(multi_class, kind, start):
    risk = Recorder(make_risk(multi_class, kind, d=10, lam=1e-4))
    minimise(risk, far(risk, start))
    values = np.array([risk.value(W) for W in risk.seen])
    assert len(values) > 3
    assert np.all(np.diff(values) <= 1e-13 * (1 + np.abs(values[:-1])))


@BOTH
def test_the_start_is_not_modified(multi_class):
    risk = make_risk(multi_class)
    start = far(risk, 10.0)
    before = start.copy()
    minimise(risk, start)
    assert np.array_equal(start, before)


@BOTH
def test_a_progress_bar_only_when_asked_for(multi_class, capsys):
    risk = make_risk(multi_class)
    minimise(risk, zero(risk))
    assert capsys.readouterr() == ("", "")
    minimise(risk, zero(risk), verbose=1)
    assert "Newton" in capsys.readouterr().err


# ------------------------------------------------------------------ it is the optimum


@BOTH
def test_it_is_the_optimum_that_lbfgs_finds(multi_class):
    risk = make_risk(multi_class, d=8, lam=1e-2)
    found = minimise(risk, zero(risk))
    other = scipy.optimize.minimize(
        lambda w: risk.value(w.reshape(risk.shape)),
        np.zeros(found.weights.size),
        jac=lambda w: risk.gradient(w.reshape(risk.shape)).ravel(),
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 10_000},
    )
    np.testing.assert_allclose(other.x.reshape(risk.shape), found.weights, atol=1e-6)
    assert risk.value(found.weights) <= other.fun * (1 + 1e-15)


@BOTH
@pytest.mark.parametrize("kind", ["gaussian", "separable"])
def test_it_is_the_optimum_that_scikit_learn_finds(multi_class, kind):
    n, lam = 80, 1e-2
    risk = make_risk(multi_class, kind, n=n, d=5, K=3, lam=lam)
    found = minimise(risk, zero(risk))
    # scikit-learn minimises C * (sum of losses) + ||w||^2 / 2; the bias is our last column
    model = LogisticRegression(
        C=1 / (lam * n), fit_intercept=False, tol=1e-12, max_iter=10_000, solver="newton-cg"
    )
    if multi_class == "ovr":
        model = OneVsRestClassifier(model).fit(risk.X, risk.y)
        coefficients = np.vstack([head.coef_ for head in model.estimators_])
    else:
        coefficients = model.fit(risk.X, risk.y).coef_
    np.testing.assert_allclose(coefficients, found.weights, atol=1e-6)


def optimum(risk):
    """Newton with 60 digits, from the solver's point; p is tiny."""
    K, width = risk.shape
    with mpmath.workdps(60):
        X = mpmath.matrix(risk.X.tolist())
        W = mpmath.matrix(minimise(risk, zero(risk)).weights.tolist())
        n, p = len(risk.y), K * width
        for _ in range(6):
            Z = X * W.T
            g, H = mpmath.matrix(p, 1), mpmath.eye(p) * risk.lam
            for k in range(K):
                for j in range(width):
                    g[k * width + j] = risk.lam * W[k, j]
            for i in range(n):
                if risk.multi_class == "ovr":
                    s = [1 / (1 + mpmath.exp(-Z[i, k])) for k in range(K)]
                    curve = [
                        [s[k] * (1 - s[k]) if k == m else 0 for m in range(K)] for k in range(K)
                    ]
                else:
                    e = [mpmath.exp(Z[i, k]) for k in range(K)]
                    s = [v / mpmath.fsum(e) for v in e]
                    curve = [[s[k] * ((k == m) - s[m]) for m in range(K)] for k in range(K)]
                for k in range(K):
                    r = s[k] - (risk.y[i] == k)
                    for j in range(width):
                        g[k * width + j] += r * X[i, j] / n
                        for m in range(K):
                            for q in range(width):
                                H[k * width + j, m * width + q] += (
                                    curve[k][m] * X[i, j] * X[i, q] / n
                                )
            step = mpmath.lu_solve(H, g)
            for k in range(K):
                for j in range(width):
                    W[k, j] -= step[k * width + j]
        assert mpmath.norm(g) < mpmath.mpf(10) ** -50
        return W


@BOTH
@pytest.mark.parametrize("lam", [1e-4, 1e-1])
def test_the_distance_to_the_optimum_is_at_most_bound_over_lam(multi_class, lam):
    """(T12), with the optimum to 50 digits."""
    risk = make_risk(multi_class, n=8, d=1, K=3, lam=lam)
    true = optimum(risk)
    for tol in (1e-2, 1e-5, 1e-8, None):
        found = minimise(risk, far(risk, 5.0), tol)
        with mpmath.workdps(60):
            offset = mpmath.matrix(found.weights.tolist()) - true
            distance = mpmath.sqrt(mpmath.fsum(entry**2 for entry in offset))
        assert distance <= found.bound / lam
    assert distance <= 1e-10
