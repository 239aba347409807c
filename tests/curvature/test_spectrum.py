"""Lanczos against dense eigenvalues, and what it says about itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from curvature.quadratics import dense_hessian, quadratic, with_eigenvalues
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from sk_unlearn.curvature import extreme_eigenvalues
from sk_unlearn.curvature.spectrum import BatchedLanczos
from sk_unlearn.objective import Objective, flatten

EIGENVALUES = st.lists(st.floats(-5.0, 20.0), min_size=1, max_size=12)


@given(EIGENVALUES, st.integers(0, 1000))
@settings(max_examples=40)
def test_the_ends_of_any_spectrum(values, seed):
    X, c = with_eigenvalues(values, seed)
    true = np.linalg.eigvalsh(dense_hessian(X, c))
    ends = extreme_eigenvalues(
        quadratic(X, c).hessian_at(torch.zeros(len(values))), tol=1e-10, random_state=seed
    )
    size = max(1.0, np.abs(true).max())
    assert ends.smallest == pytest.approx(true[0], abs=1e-6 * size)
    assert ends.largest == pytest.approx(true[-1], abs=1e-6 * size)
    assert ends.n_products <= len(values)


@given(EIGENVALUES, st.integers(0, 1000), st.integers(1, 5))
@settings(max_examples=40)
def test_estimates_lie_inside_and_some_eigenvalue_is_within_the_error(values, seed, products):
    X, c = with_eigenvalues(values, seed)
    ends = extreme_eigenvalues(
        quadratic(X, c).hessian_at(torch.zeros(len(values))), max_products=products
    )
    true, slack = np.linalg.eigvalsh(dense_hessian(X, c)), 1e-9 * max(1, np.abs(values).max())
    assert true[0] - slack <= ends.smallest <= ends.largest <= true[-1] + slack
    assert np.abs(true - ends.smallest).min() <= ends.smallest_error + slack
    assert np.abs(true - ends.largest).min() <= ends.largest_error + slack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_against_scipy(dtype):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
    X, y = torch.randn(100, 20, dtype=dtype), torch.randint(4, (100,))
    H = Objective(module, nn.CrossEntropyLoss(), X, y, lam=0.01).hessian_at(
        3 * flatten([p.detach() for p in module.parameters()])
    )
    operator = LinearOperator(
        (H.n_parameters,) * 2, matvec=lambda v: H(torch.from_numpy(v)).numpy().astype(float)
    )
    expected = np.sort(eigsh(operator, k=2, which="BE", return_eigenvectors=False))
    assert expected[0] < -0.01  # there is negative curvature to find
    ends = extreme_eigenvalues(H)
    np.testing.assert_allclose([ends.smallest, ends.largest], expected, rtol=0.02)
    assert 0 < ends.n_products < 100


def test_an_estimate_says_that_it_is_one():
    X, c = with_eigenvalues([1.0, 2.0])
    ends = extreme_eigenvalues(quadratic(X, c).hessian_at(torch.zeros(2)))
    assert ends.is_bound is False
    with pytest.raises(dataclasses.FrozenInstanceError):
        ends.smallest = 0.0


def test_a_seed_gives_one_estimate():
    X, c = with_eigenvalues(np.linspace(-1, 5, 30))
    H = quadratic(X, c).hessian_at(torch.zeros(30))
    first, second = (extreme_eigenvalues(H, max_products=4, random_state=5) for _ in range(2))
    assert first == second != extreme_eigenvalues(H, max_products=4, random_state=6)


@pytest.mark.parametrize("values", [[0.0] * 4, [3.0] * 4, [-2.0] * 3 + [5.0] * 3])
def test_an_exhausted_krylov_space_invents_nothing(values):
    X, c = with_eigenvalues(values)
    H = quadratic(X, c, dtype=torch.float32).hessian_at(torch.zeros(len(values)))
    start = torch.randn(1, len(values))
    lanczos = BatchedLanczos(lambda v: H(v[0])[None], start)
    for _ in range(len(values) + 3):
        lanczos.step()
    ends, errors = lanczos.ends()
    np.testing.assert_allclose(ends[0], [min(values), max(values)], atol=1e-5)
    assert errors.max() < 1e-4


def test_many_operators_at_once_are_many_runs():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(5, 9, 9, generator=generator, dtype=torch.float64)
    matrices = matrices + matrices.mT
    matrices[2] = torch.eye(9)  # exhausted at once, between others that are not
    start = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    together = BatchedLanczos(lambda v: torch.einsum("mij,mj->mi", matrices, v), start)
    for _ in range(9):
        together.step()
    expected = torch.linalg.eigvalsh(matrices)[:, [0, -1]]
    torch.testing.assert_close(together.ends()[0], expected, rtol=1e-8, atol=1e-8)


def test_what_is_not_finite_is_no_estimate():
    X, c = np.full((3, 2), 1e200), np.ones(3)
    objective = quadratic(np.zeros((3, 2)), c)
    objective._set_rows(torch.from_numpy(X), torch.from_numpy(c))
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        extreme_eigenvalues(objective.hessian_at(torch.zeros(2)))
