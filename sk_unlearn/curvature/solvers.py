"""Linear solvers for ``(H + damping I) x = g``: conjugate gradients and a dense factorisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .hvp import DampedOperator, dense
from .solution import CURE_MARGIN, Solution, Solver, SolveStatus
from .spectrum import extreme_eigenvalues

if TYPE_CHECKING:
    from ..objective import Objective


class CG(Solver):
    """Conjugate gradients.

    Negative curvature ends the solve; a few more products then estimate the damping that would
    cure it. A residual small enough by the recursion is computed afresh before it is believed.

    Parameters
    ----------
    tol : float
        Stop at this residual, relative to ``||g||`` (Euclidean).
    max_iter : int
        Cap on the iterations, one product each.
    preconditioner : callable or None
        ``r -> M^{-1} r`` for a symmetric positive definite ``M``.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.objective import Objective
    >>> X, y = torch.diag(torch.tensor([1.0, 2.0])), torch.zeros(2, 1)
    >>> F = Objective(torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss(), X, y, lam=0.0)
    >>> solution = CG().solve(F, torch.zeros(2), torch.ones(2), damping=1.0)
    >>> solution.status.name, solution.n_products
    ('CONVERGED', 3)
    >>> [round(x, 4) for x in solution.value.tolist()]  # 1/(1 + 1), 1/(4 + 1)
    [0.5, 0.2]
    """

    def __init__(
        self,
        tol: float = 1e-3,
        max_iter: int = 100,
        preconditioner: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.tol = tol
        self.max_iter = max_iter
        self.preconditioner = preconditioner

    def _solve(self, objective: Objective, w: Tensor, g: Tensor, damping: float) -> Solution:
        hessian = objective.hessian_at(w)
        solution = conjugate_gradient(
            DampedOperator(hessian, damping),
            g,
            tol=self.tol,
            max_iter=self.max_iter,
            preconditioner=self.preconditioner,
        )
        if solution.status is not SolveStatus.NEGATIVE_CURVATURE:
            return solution
        ends = extreme_eigenvalues(hessian)
        lowest = min(ends.smallest - ends.smallest_error, solution.curvature - damping)
        cure = CURE_MARGIN * max(-lowest, torch.finfo(g.dtype).eps * ends.largest)
        return replace(
            solution,
            n_products=solution.n_products + ends.n_products,
            detail=f"{solution.detail} A damping of {cure:.3g} should do (estimate, Lanczos).",
            sufficient_damping=cure,
        )


class Exact(Solver):
    """Dense Hessian and Cholesky factorisation, in float64.

    Where ``H + damping I`` is not positive definite the linear system is solved all the same,
    the status says so, and `sufficient_damping` comes from the eigenvalues.

    Parameters
    ----------
    tol : float
        Residual, relative to ``||g||``, from which a solve counts as failed.
    max_parameters : int
        Refuse larger problems: memory is ``16 p^2`` bytes, time ``p`` products and ``O(p^3)``.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.objective import Objective
    >>> X, y = torch.diag(torch.tensor([1.0, 2.0])), torch.zeros(2, 1)
    >>> F = Objective(torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss(), X, y, lam=0.0)
    >>> Exact().solve(F, torch.zeros(2), torch.ones(2), damping=1.0).value.tolist()
    [0.5, 0.20000000298023224]
    """

    def __init__(self, tol: float = 1e-3, max_parameters: int = 10_000) -> None:
        self.tol = tol
        self.max_parameters = max_parameters

    def _solve(self, objective: Objective, w: Tensor, g: Tensor, damping: float) -> Solution:
        p = objective.n_parameters
        if p > self.max_parameters:
            raise ValueError(
                f"The module has {p:,} parameters and a dense Hessian is kept to "
                f"{self.max_parameters:,}: use CG, or raise max_parameters."
            )
        hessian = DampedOperator(objective.to(torch.float64).hessian_at(w), damping)
        matrix = dense(hessian.operator)
        if not matrix.isfinite().all():
            return Solution(torch.zeros_like(g), float(g.norm()), SolveStatus.NOT_FINITE, p)
        matrix.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        status, detail, smallest, cure = SolveStatus.CONVERGED, "", None, None
        if failed:
            del factor
            x, smallest = _pseudo_solve(matrix, g.double())
            cure = CURE_MARGIN * (damping - smallest)
            status = SolveStatus.NEGATIVE_CURVATURE
            detail = f"The smallest eigenvalue is {smallest:.3g}; a damping of {cure:.3g} would do."
        else:
            x = torch.cholesky_solve(g.double()[:, None], factor)[:, 0]
        x = x.to(g.dtype)
        norm = float((hessian(x) - g.double()).norm())
        if not (failed or norm <= self.tol * float(g.norm())):
            status = SolveStatus.STAGNATED
        return Solution(x, norm, status, p + 1, detail, smallest, cure)


def _pseudo_solve(matrix: Tensor, g: Tensor) -> tuple[Tensor, float]:
    """Solve with a singular or indefinite matrix; return its smallest eigenvalue too."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values.abs() > len(g) * torch.finfo(values.dtype).eps * values.abs().max()
    inverse = torch.where(kept, 1 / values, 0)
    return vectors @ (inverse * (vectors.T @ g)), float(values[0])


def conjugate_gradient(
    operator: Callable[[Tensor], Tensor],
    g: Tensor,
    *,
    tol: float,
    max_iter: int,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
) -> Solution:
    """Solve ``A x = g`` from ``x = 0`` for a symmetric positive definite operator.

    Parameters
    ----------
    operator : callable
        ``v -> A v``.
    g : Tensor of shape (p,)
    tol : float
        Stop once ``||A x - g|| <= tol * ||g||``, computed afresh.
    max_iter : int
    preconditioner : callable or None
        ``r -> M^{-1} r``, symmetric positive definite.

    Returns
    -------
    Solution
        `value` is the last iterate before anything failed.

    Raises
    ------
    ValueError
        If the preconditioner is not positive definite.

    Examples
    --------
    >>> import torch
    >>> solution = conjugate_gradient(lambda v: 2 * v, torch.ones(1), tol=1e-6, max_iter=5)
    >>> solution.value.item(), solution.residual_norm
    (0.5, 0.0)
    """
    precondition = preconditioner or Tensor.clone
    x, residual, direction = torch.zeros_like(g), g, None
    true_norm = float(g.norm())
    target, rz, n_products, known = tol * true_norm, 0.0, 0, True
    status, negative = SolveStatus.MAX_ITER, None
    for _ in range(max_iter):
        if known and true_norm <= target:
            break
        z, previous_rz = precondition(residual), rz
        rz = _dot(residual, z)
        if rz <= 0:
            raise ValueError(f"The preconditioner is not positive definite: r'M^-1 r = {rz:.3g}.")
        direction = z if known else torch.add(z, direction, alpha=rz / previous_rz)
        image = operator(direction)
        n_products += 1
        curvature = _dot(direction, image)
        if not math.isfinite(curvature):
            status = SolveStatus.NOT_FINITE
            break
        if curvature <= 0:
            status = SolveStatus.NEGATIVE_CURVATURE
            negative = curvature / _dot(direction, direction)
            break
        x = torch.add(x, direction, alpha=rz / curvature)
        residual = torch.sub(residual, image, alpha=rz / curvature)
        known = float(residual.norm()) <= target
        if known:  # by the recursion: believe only what is computed from x
            residual, previous_norm = g - operator(x), true_norm
            true_norm, n_products = float(residual.norm()), n_products + 1
            if not true_norm <= max(target, previous_norm / 2):
                status = SolveStatus.STAGNATED
                break
    if not known:
        true_norm, n_products = float((operator(x) - g).norm()), n_products + 1
    if status is SolveStatus.MAX_ITER and true_norm <= target:
        status = SolveStatus.CONVERGED
    detail = "" if negative is None else f"A direction of curvature {negative:.3g} was met."
    return Solution(x, true_norm, status, n_products, detail, negative)


def _dot(a: Tensor, b: Tensor) -> float:
    return float(a.dot(b))
