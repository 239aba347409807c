"""What the methods for linear heads share: rows in a declared ball, solving, layouts."""

from __future__ import annotations

import warnings
from fractions import Fraction
from math import inf, log, nextafter, sqrt
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg
from torch import nn

from .. import bounds
from ..constraint import project
from ..convex import Minimum, minimise
from ..events import Event
from ..exceptions import (
    DeletionRequestError,
    NotApplicableError,
    ToleranceNotReachedError,
    UnlearningWarning,
)
from ..head_factors import HeadFactors
from ..head_risk import HeadRisk
from ..head_update import SolvedHead
from ..modules import FeatureHead
from ._affine import HEADS, head_risk, obstacle, to_matrix, to_vector
from ._checks import require_number
from .base import Problem, Rows, Setting

_MAX_FACTOR_BYTES = 2**30
_U = 2.0**-53
_FUNCTION_ERROR = 8.0
SLACK = 1.0 + 1e-6  # above what rounds off in computing norms and bounds of positive terms


def check_head(method: Any, module: nn.Module, criterion: nn.Module, setting: Setting) -> None:
    """Refuse what the statements on a head with rows in a declared ball do not cover."""
    name = type(method).__name__
    reason = obstacle(module, criterion, setting, HEADS)
    if reason:
        raise NotApplicableError(f"{name} does not apply: {reason}")
    if module.multi_class == "squared":
        raise NotApplicableError(
            f"{name} does not apply: the gradient of the squared loss has no bound that is known "
            "beforehand, and the noise would depend on one (T13); use Analytic() or Residual()"
        )
    if isinstance(module, FeatureHead):
        raise NotApplicableError(
            f"{name} does not apply: it declares the norm of the rows, and the head sees features; "
            "use Residual()"
        )
    for parameter in {"row_norm", "max_fraction", "tol"} & set(method.get_params()):
        require_number(name, parameter, getattr(method, parameter))
    if method.multi_class != module.multi_class:
        raise NotApplicableError(
            f"{name}(multi_class={method.multi_class!r}): the head's loss is "
            f"{module.multi_class!r}, and the constants of the two differ; give the same to both"
        )
    if method.row_norm <= 1:
        raise NotApplicableError(
            f"{name}(row_norm={method.row_norm!r}): the constant feature of the bias alone has "
            "norm 1; give a number > 1"
        )


def head_constants(method: Any, setting: Setting) -> bounds.HeadConstants:
    """Return the constants (T13) of a head for rows of the method's declared norm."""
    return bounds.head_constants(method.multi_class, setting.n_classes, float(method.row_norm))


def shift_constants(method: Any, setting: Setting) -> dict[str, float]:
    """Return the arguments that every bound on the move of the optimum has (T14)."""
    constants, lam = head_constants(method, setting), setting.lam
    deleted, retained = _largest_fraction(method).as_integer_ratio()
    return {
        "lipschitz": constants.lipschitz,
        "lam": lam,
        "n_deleted": float(deleted),
        "n_retained": float(retained),
        "training_error": error_of(method.tol, lam),
        "reference_loss": constants.reference_loss,
    }


def error_of(tol: float, lam: float) -> float:
    """Bound the distance to the optimum of a point whose gradient norm is at most `tol`."""
    return bounds.residual_distance(tol / 2, lam)


def solve(method: Any, problem: Problem, rows: Rows) -> Minimum:
    """Minimise over rows in the declared ball until the gradient norm is proved below ``tol``."""
    if problem.reference.any():
        raise NotApplicableError(
            f"{type(method).__name__} takes the loss at the anchor to be that of zero logits, but "
            f"the anchor has norm {np.linalg.norm(problem.reference):.4g}; use anchor='zero'"
        )
    check_row_norms(method, rows)
    risk = head_risk(problem, rows)
    start = to_matrix(problem.parameters, problem.setting.n_classes)
    solution = minimise(risk, start, method.tol, verbose=problem.verbose)
    if not solution.bound <= method.tol:
        raise ToleranceNotReachedError(
            f"training stopped at gradient norm {solution.bound:.3g} (of which "
            f"{solution.rounding:.3g} is rounding), above tol={method.tol:g}; raise tol or lam. "
            "Nothing was changed."
        )
    return solution


def solved(method: Any, problem: Problem) -> tuple[np.ndarray, SolvedHead]:
    """Solve for the rows of a fit; return the weights inside the ball, and what is kept."""
    solution = solve(method, problem, problem.retained)
    kept = SolvedHead(solution.weights, None, solution.n_iter, solution.n_passes)
    return inside_ball(solution.weights, problem), kept


def trained(method: Any, problem: Problem) -> tuple[np.ndarray, float]:
    """Return the weights that were kept, or train now on all rows, the deleted ones included.

    Returns also the passes over the rows that this takes now.
    """
    if problem.state is not None:
        return problem.state.weights, 0.0
    solution = solve(method, problem, problem.before())
    return solution.weights, solution.n_passes


def check_row_norms(method: Any, rows: Rows) -> None:
    """Refuse rows outside the declared ball, the constant feature of the bias counted."""
    flat = rows.X.reshape(len(rows), -1)
    squares = np.einsum("ij,ij->i", flat, flat, dtype=np.float64)
    limit = float(method.row_norm) ** 2
    outside = (squares + 1.0) * (1.0 + 4 * (flat.shape[1] + 8) * _U) > limit
    if outside.any():
        radius = sqrt(limit - 1.0) * (1.0 - 1e-6)
        worst = sqrt(float(squares.max()) + 1.0)
        raise NotApplicableError(
            f"{int(outside.sum())} of {len(rows)} rows have a norm above row_norm="
            f"{method.row_norm:g} (the largest {worst:.6g}, bias counted); put "
            f"sk_unlearn.preprocessing.ClipToBall(radius={radius:.6g}) before the net, or declare "
            "a larger row_norm without looking at the rows"
        )


def check_fraction(method: Any, problem: Problem) -> None:
    """Refuse to delete, or to correct, more than was declared before the noise was chosen.

    Correcting k of n rows moves the optimum by at most ``2 k L / (lam n)``: the two versions of a
    row differ by at most 2 L in the gradient, the penalty not at all. That is covered where the
    share ``2 k / n`` is at most the declared one.
    """
    n_deleted, n_retained = len(problem.deleted), len(problem.retained)
    if len(problem.corrected):
        check_row_norms(method, problem.added)
        n_deleted *= 2
    if Fraction(n_deleted, n_retained) > _largest_fraction(method):
        what = "(twice the rows to correct)" if len(problem.corrected) else "rows to delete"
        raise DeletionRequestError(
            f"{n_deleted} {what} for {n_retained} that stay is more than "
            f"max_fraction={method.max_fraction:g}, for which the noise was chosen; take fewer "
            "at a time, or fit with a larger max_fraction"
        )


def _largest_fraction(method: Any) -> Fraction:
    """Return ``max_fraction``, the quotient of two counts, as it was before it was rounded."""
    return Fraction(nextafter(float(method.max_fraction), inf))


def newton_step(
    risk: HeadRisk, W: np.ndarray, gradient: np.ndarray, atol: float, row_norm: float
) -> tuple[np.ndarray, float]:
    """Solve ``H(W) step = -gradient`` by preconditioned conjugate gradients.

    Returns
    -------
    step : ndarray of shape (K, d + 1)
    residual : float
        Proved bound on ``||H(W) step + gradient||``, rounding of the product included.
    """
    product = risk.hessian_product(W)

    def apply(v: np.ndarray) -> np.ndarray:
        return product(v.reshape(W.shape)).ravel()

    factors = HeadFactors.at(risk, W, _MAX_FACTOR_BYTES)
    operator = LinearOperator((W.size, W.size), matvec=apply, dtype=np.float64)
    inverse = None
    if factors is not None:
        inverse = LinearOperator(
            (W.size, W.size),
            matvec=lambda v: factors.solve(v.reshape(W.shape)).ravel(),
            dtype=np.float64,
        )
    solution, _ = cg(operator, -gradient.ravel(), rtol=0.0, atol=atol, M=inverse)
    step = solution.reshape(W.shape)
    image = apply(solution).reshape(W.shape)
    residual = upper(image + gradient) + hessian_product_rounding(risk, row_norm, W, step)
    return step, residual + gamma(2) * (upper(image) + upper(gradient))


def hessian_product_rounding(
    risk: HeadRisk, row_norm: float, W: np.ndarray, V: np.ndarray
) -> float:
    """Bound the rounding error of ``risk.hessian_product(W)(V)``, Frobenius norm.

    With gamma_k as in :func:`sk_unlearn.bounds.gradient_rounding_error`: the curvature of a row in
    its logits has norm at most beta and moves by at most 3 times as much as the probabilities,
    which are off by ``gamma_d R ||W|| / 2 + rho u``. Applying it to the logits of V loses at most
    ``(beta gamma_d + 2 gamma_{K+3}) R ||V||``, the sum over the rows ``gamma_{n+4} beta R^2 ||V||``
    and the penalty ``gamma_4 lam ||V||``.
    """
    n, (K, d) = len(risk.y), risk.shape
    beta = 0.25 if risk.multi_class == "ovr" else 0.5
    rho = K + (4 + _FUNCTION_ERROR) * log(max(K, 2)) + 2 * _FUNCTION_ERROR + 4
    moved = 3 * (0.5 * gamma(d) * row_norm * float(np.linalg.norm(W)) + rho * _U)
    applied = beta * (gamma(d) + gamma(n + 4)) + 2 * gamma(K + 3) + moved
    norm = float(np.linalg.norm(V))
    return 1.01 * SLACK * (applied * row_norm**2 + gamma(4) * risk.lam) * norm


def gamma(k: int) -> float:
    """Return Higham's gamma_k for float64, rounded up."""
    return SLACK * k * _U


def upper(array: np.ndarray) -> float:
    """Return an upper bound on the Euclidean norm of an array of less than 1e9 numbers."""
    return SLACK * float(np.linalg.norm(array))


def declared_tolerance(event: Event, lam: float) -> float:
    """Return the gradient norm that an event of :func:`bounds.residual_distance` stands for."""
    if event.constants:
        return dict(event.constants)["tol"]
    tol = bounds.residual_tolerance(event.sensitivity, lam)
    while bounds.residual_distance(tol, lam) > event.sensitivity:
        tol = nextafter(tol, 0.0)
    return tol


def add_up(*terms: float) -> float:
    """Return a sum of floats, rounded up."""
    total = Fraction(0)
    for term in terms:
        if term == inf:
            return inf
        total += Fraction(term)
    return nextafter(float(total), inf)


def inside_ball(weights: np.ndarray, problem: Problem) -> np.ndarray:
    """Return weights (K, d + 1) as a vector projected onto the ball, with a warning if it acts."""
    vector = to_vector(weights)
    inside = project(vector, problem.reference, problem.setting.C)
    if not np.array_equal(inside, vector):
        distance = float(np.linalg.norm(vector - problem.reference))
        warnings.warn(
            f"the solution lies {distance:.4g} from the anchor, outside the ball of radius "
            f"C={problem.setting.C:g}: the model is its projection, less accurate; raise C",
            UnlearningWarning,
            stacklevel=2,
        )
    return inside
