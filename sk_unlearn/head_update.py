"""Delete rows from a solved linear head with the factors of its old Hessian.

The deleted rows' gradient is all that separates the old optimum from the new risk, and their
curvature all that separates the Hessians there, so the first step needs no pass over the rows
that stay; each further pass divides the gradient by about ``n/n_u``. Where the deleted rows hold
much of the curvature it does not; then the Hessian is factored once more on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, log

import numpy as np
from scipy.linalg.blas import dsymm

from .convex import Minimum
from .head_factors import HeadFactors, HeadSketch
from .head_risk import HeadRisk

_DEPTH = 8
_MAX_PASSES = 20
_MAX_ROWS = 100
_MIN_CURVATURE = 1e-3
_AFTER_FACTORS = 4
"""Passes that mixing still takes with factors of the Hessian where it is."""


@dataclass(frozen=True)
class SolvedHead:
    """A head at its optimum, with what makes the next deletion cheap.

    Parameters
    ----------
    weights : ndarray of shape (K, d + 1)
        The optimum, float64, before any projection or noise.
    factors : HeadFactors or HeadSketch
        Of the Hessian there.
    n_iter : int
        Newton steps to get there.
    n_passes : float
        How often the rows were gone through on the way, factors included.
    """

    weights: np.ndarray
    factors: HeadFactors | HeadSketch
    n_iter: int = 0
    n_passes: float = 0.0


def delete(
    solved: SolvedHead,
    retained: HeadRisk,
    deleted: HeadRisk,
    tol: float,
    added: HeadRisk | None = None,
) -> tuple[Minimum, float]:
    """Move to the optimum of `retained`; Anderson mixing of steps with the corrected factors.

    Parameters
    ----------
    solved : SolvedHead
        At the optimum of both sets of rows together, with :class:`HeadFactors`.
    retained, deleted : HeadRisk
        Risks of the two sets of rows, with the same penalty.
    tol : float
        Gradient norm to be proved, rounding included.
    added : HeadRisk, optional
        Of those among the retained rows that the solved head has not seen (corrected ones).

    Returns
    -------
    Minimum
        Where it stopped; its ``bound`` is above `tol` when mixing did not get there, and the
        caller goes on with a globally convergent solver.
    n_passes : float
        Passes over the retained rows.
    """
    n_u, n_r, W = len(deleted.y), len(retained.y), solved.weights
    pull = n_u / n_r * deleted.gradient(W)
    if added is None:
        solve = _without_rows(solved, deleted, n_u + n_r)
    else:  # a row bends the loss much as it did; under another label exactly so
        pull -= len(added.y) / n_r * added.gradient(W)
        solve = solved.factors.solve
    points, steps = [W], [solve(pull)]
    exact = solved.factors.per_class or retained.loss.constant
    groups = len(W) if retained.loss.separable and exact else 1
    before, bounds, best, factors = retained.n_passes, [], None, None
    for n_iter in range(1, _MAX_PASSES + 1):
        W = _mix(points, steps, groups)
        bound, rounding, gradient = retained.gradient_norm_bound(W)
        bounds.append(bound)
        if best is None or bound < best.bound:
            best = Minimum(W, bound, rounding, n_iter)
        if bound <= tol or not np.isfinite(bound) or bound > 1e3 * best.bound:
            break
        if factors is None and _passes_to_come(bounds, tol) > retained.factor_cost + _AFTER_FACTORS:
            factors = retained.factors(W)
            solve, points, steps = factors.solve, [], []
        points.append(W)
        steps.append(-solve(gradient))
        del points[:-_DEPTH], steps[:-_DEPTH]
    n_passes = retained.n_passes - before
    return replace(best, n_iter=n_iter, n_passes=n_passes, factors=factors), n_passes


def _passes_to_come(bounds: list[float], tol: float) -> float:
    """Return how many more passes mixing needs at the rate so far; 0 while that is unknown."""
    if len(bounds) < _DEPTH:
        return 0.0
    rate = log(bounds[0] / bounds[-1]) / (len(bounds) - 1)
    return log(bounds[-1] / tol) / rate if rate > 0 else inf


def _without_rows(solved: SolvedHead, deleted: HeadRisk, n_rows: int):
    """Return the inverse of the factored Hessian less the deleted rows' share (Woodbury).

    For each class only the rows that bend its loss count, at most 100 of them.
    """
    factors, n_classes = solved.factors, len(solved.weights)
    if not (factors.per_class or deleted.loss.constant):
        return factors.solve
    curvature = deleted.curvature(solved.weights)[:, : len(factors.inverses)]
    shrink = (n_rows - len(deleted.y)) / n_rows
    X, corrections = deleted.X, []
    for whole, weights in zip(factors.inverses, curvature.T, strict=True):
        rows = np.argsort(-weights)[:_MAX_ROWS]
        rows = rows[weights[rows] > _MIN_CURVATURE]
        V = X[rows] * np.sqrt(weights[rows] / n_rows)[:, None]
        Z = dsymm(1.0, whole, V.T)
        corrections.append((V, np.linalg.solve(np.eye(len(rows)) - V @ Z, Z.T)))
    if not factors.per_class:
        corrections *= n_classes

    def solve(gradient: np.ndarray) -> np.ndarray:
        plain = factors.solve(gradient)
        fixed = [x + (V @ x) @ inverse for x, (V, inverse) in zip(plain, corrections, strict=True)]
        return shrink * np.stack(fixed)

    return solve


def _mix(points: list[np.ndarray], steps: list[np.ndarray], groups: int) -> np.ndarray:
    """Return the Anderson iterate; heads that share no loss are mixed one by one."""
    if len(points) == 1:
        return points[0] + steps[0]
    moved, change = (
        np.stack([(b - a).reshape(groups, -1) for a, b in pairwise(s)], axis=-1)
        for s in (points, steps)
    )
    last = steps[-1].reshape(groups, -1)
    gram = np.einsum("gip,giq->gpq", change, change)
    scale = np.trace(gram, axis1=1, axis2=2)[:, None, None] + np.finfo(float).tiny
    gram += 1e-14 * scale * np.eye(gram.shape[-1])
    weights = np.linalg.solve(gram, np.einsum("gip,gi->gp", change, last)[..., None])[..., 0]
    mixed = last - np.einsum("gip,gp->gi", moved + change, weights)
    return points[-1] + mixed.reshape(points[-1].shape)
