"""LiSSA against the closed forms of its bias and of its noise, and its conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curvature.quadratics import dense_hessian, quadratic
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sk_unlearn.curvature import LiSSA, SolveStatus
from sk_unlearn.exceptions import UnlearningWarning
from sk_unlearn.objective import Objective, flatten


def rows(n=12, p=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, p)), rng.uniform(0.2, 2.0, n)


@given(st.integers(1, 60), st.floats(1.0, 4.0), st.floats(0.05, 2.0), st.floats(0.0, 0.5))
@settings(max_examples=15)
def test_the_bias_is_the_closed_form(steps, factor, damping, lam):
    """On all rows there is no noise, and what is left is -B^{-1} (I - B/S)^{s+1} g (T11)."""
    X, c = rows()
    B = dense_hessian(X, c, lam) + damping * np.eye(3)
    scale, g = factor * np.linalg.norm(B, 2), np.array([1.0, -2.0, 0.5])
    found = LiSSA(steps=steps, batch_size=12, scale=scale, tol=10.0).solve(
        quadratic(X, c, lam), torch.zeros(3), torch.from_numpy(g), damping
    )
    error = found.value.numpy() - np.linalg.solve(B, g)
    power = np.linalg.matrix_power(np.eye(3) - B / scale, steps + 1)
    np.testing.assert_allclose(error, -np.linalg.solve(B, power @ g), rtol=1e-6, atol=1e-12)
    assert found.residual_norm == pytest.approx(np.linalg.norm(power @ g), rel=1e-6, abs=1e-12)


def expected_square_error(X, c, damping, g, scale, steps, repetitions):
    """Return E||x - B^{-1} g||^2 for batches of one row, by the recursion of the two moments."""
    p = X.shape[1]
    A = [
        np.eye(p) - (ci * np.outer(x, x) + damping * np.eye(p)) / scale
        for x, ci in zip(X, c, strict=True)
    ]
    mean, second = g.copy(), np.outer(g, g)
    for _ in range(steps):
        cross = np.outer(g, np.mean(A, 0) @ mean)
        second = np.outer(g, g) + cross + cross.T + np.mean([a @ second @ a.T for a in A], 0)
        mean = g + np.mean(A, 0) @ mean
    bias = mean / scale - np.linalg.solve(np.mean(A, 0) * -scale + scale * np.eye(p), g)
    return bias @ bias + np.trace(second - np.outer(mean, mean)) / scale**2 / repetitions


@pytest.mark.slow
def test_the_error_falls_as_the_square_root_of_the_repetitions():
    """The mean square error over 400 runs against its exact value; 3.3 standard errors."""
    X, c = rows()
    g, damping, scale, steps = np.array([1.0, -2.0, 0.5]), 0.5, 25.0, 150
    truth = np.linalg.solve(dense_hessian(X, c) + damping * np.eye(3), g)
    objective, w = quadratic(X, c), torch.zeros(3)
    for repetitions in (1, 4, 16, 64):
        exact = expected_square_error(X, c, damping, g, scale, steps, repetitions)
        errors = []
        for seed in range(400):
            solver = LiSSA(
                repetitions, steps, batch_size=1, scale=scale, tol=10.0, random_state=seed
            )
            found = solver.solve(objective, w, torch.from_numpy(g), damping)
            errors.append(np.sum((found.value.numpy() - truth) ** 2))
        standard_error = np.std(errors) / np.sqrt(len(errors))
        assert abs(np.mean(errors) - exact) < 3.3 * standard_error
        assert standard_error < 0.1 * exact  # so that the factor of 4 cannot be missed


def test_more_repetitions_err_less():
    X, c = rows()
    g, objective = torch.tensor([1.0, -2.0, 0.5]), quadratic(*rows())
    truth = np.linalg.solve(dense_hessian(X, c) + 0.5 * np.eye(3), g.numpy())
    errors = {}
    for repetitions in (1, 100):
        solver = LiSSA(repetitions, 150, batch_size=1, scale=25.0, tol=10.0)
        found = [
            clone.solve(objective, torch.zeros(3), g, 0.5).value.numpy()
            for clone in (LiSSA(**solver.get_params() | {"random_state": s}) for s in range(20))
        ]
        errors[repetitions] = np.sqrt(np.mean(np.sum((found - truth) ** 2, axis=1)))
    assert 5 < errors[1] / errors[100] < 20


# Two batches with Hessians 10 and -9: the mean is 0.5, and damping 0.1 makes it 0.6.
OPPOSED = np.ones((2, 1)), np.array([10.0, -9.0])


def opposed(scale, **options):
    options = {"repetitions": 20, "steps": 2000, "random_state": 0} | options
    return LiSSA(batch_size=1, scale=scale, **options).solve(
        quadratic(*OPPOSED), torch.zeros(1), torch.ones(1), 0.1
    )


@pytest.mark.parametrize("scale", [20.0, None])
def test_indefinite_batches_are_found_where_only_the_mean_converges(scale):
    S = scale or 1.5 * 10.1
    factors = np.array([1 - 10.1 / S, 1 + 8.9 / S])
    assert abs(factors.mean()) < 1 < np.mean(factors**2)  # the case is what it is said to be
    solution = opposed(scale)
    assert solution.status is SolveStatus.INDEFINITE_BATCHES
    assert "smallest curvature of a batch is -8.9" in solution.message
    assert "raise the damping" in solution.message and not solution.converged


def test_a_larger_scale_cures_indefinite_batches():
    factors = np.array([1 - 10.1 / 2000, 1 + 8.9 / 2000])
    assert np.mean(factors**2) < 1
    solution = opposed(2000.0, steps=20_000, repetitions=50)
    assert solution.converged
    assert solution.value.item() == pytest.approx(1 / 0.6, rel=0.1)


def test_a_scale_below_a_batch_is_named():
    solution = opposed(4.0)
    assert solution.status is SolveStatus.SCALE_TOO_SMALL
    assert "has norm 10.1" in solution.message and solution.value.isfinite().all()


def test_divergence_ends_the_run_early():
    X, c = rows()
    g = torch.tensor([1.0, -2.0, 0.5])
    solver = LiSSA(steps=10**6, batch_size=4, scale=0.05, random_state=0)
    solution = solver.solve(quadratic(X, c), torch.zeros(3), g, 0.5)
    assert solution.status is SolveStatus.SCALE_TOO_SMALL
    assert solution.n_products < 10_000


def test_too_few_steps_and_too_much_noise_are_told_apart():
    X, c = rows()
    g, objective = torch.tensor([1.0, -2.0, 0.5]), quadratic(X, c)
    few = LiSSA(steps=5, batch_size=4, random_state=0)
    solution = few.solve(objective, torch.zeros(3), g, 0.5)
    assert solution.status is SolveStatus.TOO_FEW_STEPS
    needed = int(solution.detail.split("About ")[1].split()[0])
    more = LiSSA(repetitions=100, steps=needed, batch_size=4, random_state=0)
    assert more.solve(objective, torch.zeros(3), g, 0.5).converged
    noisy = LiSSA(repetitions=2, steps=1000, batch_size=1, tol=1e-4, random_state=0)
    solution = noisy.solve(objective, torch.zeros(3), g, 0.5)
    assert solution.status is SolveStatus.TOO_NOISY


def test_the_estimated_scale_exceeds_the_batches_and_the_full_hessian():
    X, c = rows(n=200, seed=1)
    solution = LiSSA(batch_size=2, tol=10.0, random_state=0).solve(
        quadratic(X, c), torch.zeros(3), torch.ones(3), 0.5
    )
    scale = float(solution.detail.removeprefix("scale=").removesuffix("."))
    batches = np.random.default_rng(0).integers(200, size=(500, 2))
    norms = [np.linalg.norm(dense_hessian(X[b], c[b]), 2) + 0.5 for b in batches]
    assert scale > np.quantile(norms, 0.95)
    assert scale > 3 * np.linalg.norm(dense_hessian(X, c), 2)


def test_the_seed_decides_and_blocks_do_not(monkeypatch):
    X, c = rows()
    objective, g = quadratic(X, c), torch.tensor([1.0, -2.0, 0.5])

    def run(seed):
        return LiSSA(steps=100, batch_size=2, scale=50.0, tol=10.0, random_state=seed).solve(
            objective, torch.zeros(3), g, 0.5
        )

    first = run(3)
    assert torch.equal(first.value, run(3).value)
    assert not torch.equal(first.value, run(4).value)
    monkeypatch.setattr("sk_unlearn.curvature.batches._BLOCK_STEPS", 1)
    torch.testing.assert_close(first.value, run(3).value, rtol=1e-12, atol=0)


def test_products_are_counted_in_passes_over_all_rows():
    X, c = rows()
    solver = LiSSA(repetitions=3, steps=40, batch_size=2, scale=50.0, tol=10.0)
    solution = solver.solve(quadratic(X, c), torch.zeros(3), torch.ones(3), 0.5)
    assert solution.n_products == pytest.approx(3 * 40 * 2 / 12 + 1)


class Head(nn.Linear):
    """A layer that Python steers by the data, unless it is told not to: then it can be traced."""

    traceable = True

    def forward(self, X):
        if not self.traceable and float(X.sum()) < -1e9:
            X = X + 1
        return torch.tanh(super().forward(X))


def one_after_the_other(module, X, y, g, lam, damping, scale, batches):
    """Return LiSSA's estimate by the plain loop, on batches of shape (steps, repetitions, size)."""
    parameters, estimates = list(module.parameters()), []
    for i in range(batches.shape[1]):
        h = g.clone()
        for rows in batches[:, i]:
            loss = nn.functional.cross_entropy(module(X[rows]), y[rows])
            gradient = flatten(torch.autograd.grad(loss, parameters, create_graph=True))
            product = flatten(torch.autograd.grad(gradient @ h, parameters))
            h = g + h - (product + (lam + damping) * h) / scale
        estimates.append(h / scale)
    return torch.stack(estimates).mean(0)


def test_all_chains_at_once_are_the_plain_loop_with_and_without_a_trace():
    torch.manual_seed(0)
    module, X = Head(4, 3).double(), torch.randn(40, 4, dtype=torch.float64)
    y, g = torch.randint(3, (40,)), torch.linspace(-1, 1, 15, dtype=torch.float64)
    w = flatten([p.detach() for p in module.parameters()])
    batches = np.random.RandomState(0).randint(40, size=(120, 4, 5))
    expected = one_after_the_other(module, X, y, g, 0.1, 0.5, 5.0, batches)
    solver = LiSSA(repetitions=4, steps=120, batch_size=5, scale=5.0, tol=0.2, random_state=0)
    objective = Objective(module, nn.CrossEntropyLoss(), X, y, lam=0.1)
    solution = solver.solve(objective, w, g, 0.5)
    assert solution.converged
    torch.testing.assert_close(solution.value, expected, rtol=1e-10, atol=1e-12)
    module.traceable = False
    objective = Objective(module, nn.CrossEntropyLoss(), X, y, lam=0.1)
    with pytest.warns(UnlearningWarning, match="cannot be traced"):
        solution = solver.solve(objective, w, g, 0.5)
    torch.testing.assert_close(solution.value, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.filterwarnings("error:Hessian products")
def test_chains_advance_one_by_one_where_convolutions_are_large(normalised, monkeypatch):
    monkeypatch.setattr("sk_unlearn.curvature.unfolded._SMALL_BYTES", 0)
    torch.manual_seed(0)
    norm = nn.GroupNorm(1, 2) if normalised else nn.Identity()
    layers = nn.Conv2d(1, 2, 3), norm, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)
    module, X = nn.Sequential(*layers).double(), torch.randn(23, 1, 4, 4, dtype=torch.float64)
    y, w = torch.randint(3, (23,)), flatten([p.detach() for p in module.parameters()])
    g = torch.linspace(-1, 1, len(w), dtype=w.dtype)
    batches = np.random.RandomState(0).randint(23, size=(3, 30, 5)).swapaxes(0, 1)
    expected = one_after_the_other(module, X, y, g, 0.1, 0.5, 500.0, batches)
    objective = Objective(module, nn.CrossEntropyLoss(), X, y, lam=0.1)
    solver = LiSSA(repetitions=3, steps=30, batch_size=5, scale=500.0, tol=99.0, random_state=0)
    solution = solver.solve(objective, w, g, 0.5)
    torch.testing.assert_close(solution.value, expected, rtol=1e-10, atol=1e-12)
    residual = objective.hessian_at(w)(expected) + 0.5 * expected - g
    assert solution.residual_norm == pytest.approx(float(residual.norm()), rel=1e-9)
    assert solution.n_products == pytest.approx(3 * 30 * 5 / 23 + 1)


@pytest.mark.parametrize(
    "bad",
    [{"repetitions": 0}, {"steps": 2.5}, {"batch_size": -1}, {"scale": 0.0}, {"scale": np.inf}],
)
def test_bad_parameters_are_quoted(bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"{name} must be .* got {value!r}"):
        LiSSA(**bad).solve(quadratic(*rows()), torch.zeros(3), torch.ones(3), 0.5)
