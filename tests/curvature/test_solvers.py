"""One table, solver by property, against dense solves; and how each way to fail is named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from curvature.quadratics import dense_hessian, quadratic, with_eigenvalues
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve
from sklearn.base import clone
from torch import nn

from sk_unlearn.curvature import CG, Exact, LiSSA, Solution, SolveStatus, conjugate_gradient
from sk_unlearn.exceptions import ToleranceNotReachedError
from sk_unlearn.objective import Objective, flatten

# Each in the settings in which it should be exact: LiSSA on all rows is a Neumann series.
SOLVERS = {
    "CG": CG(tol=1e-6, max_iter=200),
    "preconditioned CG": CG(tol=1e-6, preconditioner=lambda r: r / 3),
    "Exact": Exact(tol=1e-6),
    "LiSSA": LiSSA(steps=400, batch_size=10**6, tol=1e-6, random_state=0),
}
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(params=SOLVERS, ids=list(SOLVERS))
def solver(request):
    return clone(SOLVERS[request.param])


def network(dtype=torch.float64):
    """Return a non-convex risk with a positive definite damped Hessian, and a point."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).to(dtype)
    X, y = torch.randn(30, 4), torch.randint(3, (30,))
    objective = Objective(module, nn.CrossEntropyLoss(), X.to(dtype), y, lam=0.05, dtype=dtype)
    return objective, flatten([p.detach() for p in module.parameters()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("damping", [0.5, 3.0])
def test_the_value_is_that_of_a_dense_solve(solver, dtype, damping):
    objective, w = network(dtype)
    double = objective.to(torch.float64).hessian_at(w)
    matrix = double(torch.eye(len(w), dtype=torch.float64)).numpy() + damping * np.eye(len(w))
    g = torch.randn(len(w), dtype=dtype)
    expected = solve(matrix, g.double().numpy(), assume_a="sym")
    before = [t.clone() for t in (w, g, objective.X, objective.y)]
    solution = solver.solve(objective, w, g, damping)
    solution.raise_for_status()
    assert solution.status is SolveStatus.CONVERGED and solution.converged
    assert solution.value.dtype == dtype and not solution.value.requires_grad
    np.testing.assert_allclose(solution.value, expected, rtol=2e-5, atol=1e-5)
    # The residual is that of the value that is returned.
    true_norm = np.linalg.norm(matrix @ solution.value.double().numpy() - g.double().numpy())
    assert solution.residual_norm == pytest.approx(true_norm, rel=0.3, abs=1e-6)
    assert solution.n_products >= 2 and solution.sufficient_damping is None
    for tensor, kept in zip((w, g, objective.X, objective.y), before, strict=True):
        assert torch.equal(tensor, kept)


@given(
    st.lists(st.floats(0.0, 20.0), min_size=1, max_size=8),
    st.floats(0.05, 5.0),
    st.integers(0, 1000),
)
@settings(max_examples=25)
@pytest.mark.parametrize("name", ["CG", "Exact"])
def test_any_positive_definite_system(name, values, damping, seed):
    X, c = with_eigenvalues(values, seed)
    g = np.random.default_rng(seed).standard_normal(len(values))
    expected = np.linalg.solve(dense_hessian(X, c) + damping * np.eye(len(values)), g)
    objective = quadratic(X, c)
    found = SOLVERS[name].solve(objective, torch.zeros(len(values)), torch.from_numpy(g), damping)
    assert found.converged, found.message
    np.testing.assert_allclose(
        found.value, expected, atol=1e-5 * np.linalg.norm(g) / damping, rtol=0
    )


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_solutions_scale_with_the_right_side(solver, scale):
    objective, w = network()
    g = torch.ones_like(w)
    one, other = (solver.solve(objective, w, s * g, 1.0) for s in (1.0, scale))
    assert other.converged
    torch.testing.assert_close(other.value, scale * one.value, rtol=1e-6, atol=1e-9 * scale)


def test_nothing_to_solve(solver):
    objective, w = network()
    solution = solver.solve(objective, w, torch.zeros_like(w), 1.0)
    assert solution.converged and (solution.value == 0).all() and solution.residual_norm == 0


def test_bad_arguments_are_quoted(solver):
    objective, w = network()
    g = torch.ones_like(w)
    for damping in (-0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"damping .* got {damping}"):
            solver.solve(objective, w, g, damping)
    bad = g.clone()
    bad[[1, 4]] = torch.tensor([math.nan, math.inf], dtype=bad.dtype)
    with pytest.raises(ValueError, match="g has 2 NaN or infinite"):
        solver.solve(objective, w, bad, 1.0)
    with pytest.raises(ValueError, match="w has 2 NaN or infinite"):
        solver.solve(objective, bad, g, 1.0)
    with pytest.raises(ValueError, match=r"g has shape \(2,\)"):
        solver.solve(objective, w, g[:2], 1.0)
    with pytest.raises(ValueError, match=r"tol must be > 0, got 0"):
        clone(solver).set_params(tol=0).solve(objective, w, g, 1.0)


def test_a_product_that_is_not_finite_is_named(solver):
    X, c = np.full((3, 2), 1e200), np.ones(3)  # x'x overflows, the loss at w = 0 does not
    objective = quadratic(np.zeros((3, 2)), c)
    objective._set_rows(torch.from_numpy(X), torch.from_numpy(c))
    solution = solver.solve(objective, torch.zeros(2), torch.ones(2), 1.0)
    assert solution.status is SolveStatus.NOT_FINITE
    with pytest.raises(ToleranceNotReachedError, match="float64"):
        solution.raise_for_status()


@given(st.lists(st.floats(-3.0, 10.0), min_size=2, max_size=7), st.integers(0, 1000))
@settings(max_examples=10)
@pytest.mark.parametrize("name", SOLVERS)
def test_negative_curvature_is_named_with_a_damping_that_cures_it(name, values, seed):
    values[0] = -max(0.2, abs(values[0]))
    X, c = with_eigenvalues(values, seed)
    objective, w = quadratic(X, c), torch.zeros(len(values))
    g = torch.from_numpy(np.random.default_rng(seed).standard_normal(len(values)))
    failed = SOLVERS[name].solve(objective, w, g, 0.1)
    assert failed.status is SolveStatus.NEGATIVE_CURVATURE, failed.message
    assert "raise the damping" in failed.message
    assert f"damping of {failed.sufficient_damping:.3g}" in failed.message
    assert failed.value.isfinite().all()
    if failed.curvature is not None:
        assert min(values) - 1e-9 <= failed.curvature - 0.1 <= 0
    assert failed.sufficient_damping > -min(values)
    if name != "LiSSA":  # which would need very many steps
        assert SOLVERS[name].solve(objective, w, g, failed.sufficient_damping).converged


def test_the_residual_does_not_believe_the_recursion():
    """In float32 the recursion of an ill-conditioned system claims what is not there."""
    X, c = with_eigenvalues(np.logspace(-7, 2, 60), seed=3)
    objective = quadratic(X, c, dtype=torch.float32)
    g = torch.ones(60)
    solution = CG(tol=1e-9, max_iter=3000).solve(objective, torch.zeros(60), g, 0.0)
    matrix = dense_hessian(X, c)
    true_norm = np.linalg.norm(matrix @ solution.value.double().numpy() - np.ones(60))
    assert solution.residual_norm == pytest.approx(true_norm, rel=0.5)
    assert not solution.converged and true_norm > 1e-9 * math.sqrt(60)
    assert solution.status in (SolveStatus.STAGNATED, SolveStatus.MAX_ITER)


def test_a_recursion_that_drifts_is_restarted_or_reported():
    """An operator that lies by turns: what counts is the residual computed from x."""
    lies = iter([0.0, 0.0, 0.5] + [0.0] * 50)
    solution = conjugate_gradient(
        lambda v: torch.tensor([1.0, 4.0]) * v + next(lies), torch.ones(2), tol=1e-5, max_iter=20
    )
    truth = torch.tensor([1.0, 4.0]) * solution.value - 1
    assert solution.converged == (float(truth.norm()) <= 1e-5 * math.sqrt(2))


def test_conjugate_gradients_need_a_product_per_distinct_eigenvalue():
    X, c = with_eigenvalues([1.0] * 5 + [4.0] * 5 + [9.0] * 5)
    g = torch.from_numpy(np.random.default_rng(0).standard_normal(15))
    solution = CG(tol=1e-10).solve(quadratic(X, c), torch.zeros(15), g, 0.5)
    assert solution.converged and solution.n_products == 3 + 1  # and one for the residual


def test_a_perfect_preconditioner_needs_one_iteration():
    X, c = with_eigenvalues(np.logspace(-2, 3, 12))
    inverse = torch.from_numpy(np.linalg.inv(dense_hessian(X, c) + 0.1 * np.eye(12)))
    g = torch.ones(12, dtype=torch.float64)
    preconditioned = CG(tol=1e-8, preconditioner=lambda r: inverse @ r)
    assert preconditioned.solve(quadratic(X, c), torch.zeros(12), g, 0.1).n_products == 2
    assert CG(tol=1e-8).solve(quadratic(X, c), torch.zeros(12), g, 0.1).n_products > 8
    with pytest.raises(ValueError, match=r"not positive definite: r'M\^-1 r = -12"):
        CG(preconditioner=torch.neg).solve(quadratic(X, c), torch.zeros(12), g, 0.1)


def test_the_cap_on_the_iterations_is_named():
    X, c = with_eigenvalues(np.logspace(-3, 3, 20))
    g = torch.ones(20, dtype=torch.float64)
    solution = CG(tol=1e-9, max_iter=4).solve(quadratic(X, c), torch.zeros(20), g)
    assert solution.status is SolveStatus.MAX_ITER and solution.n_products == 5
    residual = dense_hessian(X, c) @ solution.value.numpy() - 1
    assert solution.residual_norm == pytest.approx(np.linalg.norm(residual))
    with pytest.raises(ToleranceNotReachedError, match="raise max_iter"):
        solution.raise_for_status()


def test_a_dense_hessian_of_too_many_parameters_is_refused():
    objective, w = network()
    with pytest.raises(ValueError, match="27 parameters .* kept to 26: use CG"):
        Exact(max_parameters=26).solve(objective, w, w, 1.0)


def test_exact_solves_a_singular_system_in_the_least_squares_sense():
    X, c = with_eigenvalues([0.0, 2.0, 5.0])
    matrix = dense_hessian(X, c)
    g = matrix @ np.array([1.0, -1.0, 2.0])
    solution = Exact().solve(quadratic(X, c), torch.zeros(3), torch.from_numpy(g))
    np.testing.assert_allclose(solution.value, np.linalg.pinv(matrix) @ g, atol=1e-6)


@pytest.mark.parametrize("solver", [CG(tol=1e-13), Exact()], ids=["CG", "Exact"])
@pytest.mark.parametrize("n_deleted", [1, 20])
def test_on_a_quadratic_loss_one_newton_step_from_the_full_optimum_is_retraining(solver, n_deleted):
    rng = np.random.default_rng(0)
    X, y, lam = rng.standard_normal((50, 6)), rng.standard_normal((50, 1)), 0.3

    def ridge(X, y):  # the minimiser of mean squares plus lam/2 ||w||^2
        return np.linalg.solve(2 * X.T @ X / len(X) + lam * np.eye(6), 2 * X.T @ y / len(X))[:, 0]

    full = Objective(
        nn.Linear(6, 1, bias=False),
        nn.MSELoss(),
        torch.from_numpy(X),
        torch.from_numpy(y),
        lam=lam,
        dtype=torch.float64,
    )
    start = torch.from_numpy(ridge(X, y))
    assert full.gradient(start).norm() < 1e-13
    retained = full.on(torch.arange(n_deleted, 50))
    step = solver.solve(retained, start, retained.gradient(start)).value
    retrained = ridge(X[n_deleted:], y[n_deleted:])
    assert np.linalg.norm(start.numpy() - retrained) > 1e-3
    np.testing.assert_allclose((start - step).numpy(), retrained, atol=1e-12)


def test_solvers_are_estimators(solver):
    assert type(solver)(**solver.get_params()).get_params() == solver.get_params()
    assert clone(solver).set_params(tol=0.5).tol == 0.5


def test_every_failed_status_says_what_to_do():
    for status in SolveStatus:
        solution = Solution(torch.zeros(1), 0.25, status, 1, "Detail.")
        assert "Detail. Residual norm 0.25." in solution.message
        if status is SolveStatus.CONVERGED:
            solution.raise_for_status()
            continue
        assert any(word in status.value for word in ("raise", "use", "look for"))
        with pytest.raises(ToleranceNotReachedError, match="Residual norm 0.25"):
            solution.raise_for_status()
