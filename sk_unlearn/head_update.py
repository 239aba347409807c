"""Move a linear head to an optimum nearby with factors of its Hessian: Anderson mixing of steps.

Of a deletion the gradient of the rows that go is all that separates the old optimum from the new
risk, and their curvature all that separates the Hessians there, so the first step needs no pass
over the rows that stay; each further pass divides the gradient by about ``n/n_u``. Where those rows
hold much of the curvature it does not; then the Hessian is factored once more on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, log

import numpy as np
from scipy.linalg.blas import dsymm

from .convex import Minimum, goal
from .head_factors import HeadFactors, HeadSketch
from .head_risk import HeadRisk
from .logit_losses import Map

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
    before = retained.n_passes
    found = _mixed(retained, Minimum(W, inf, 0.0, 0), solve(pull), solve, solved.factors, tol)
    n_passes = retained.n_passes - before
    return replace(found, n_passes=n_passes), n_passes


def settle(
    risk: HeadRisk, start: np.ndarray, factors: HeadFactors, tol: float | None = None
) -> Minimum:
    """Move to the optimum of `risk` from a point nearby.

    Parameters
    ----------
    risk : HeadRisk
    start : ndarray of shape (K, d + 1)
    factors : HeadFactors
        Of the Hessian at `start`, exact ones.
    tol : float or None
        Gradient norm to be proved; None goes on until the gradient is lost in its rounding.

    Returns
    -------
    Minimum
        Where it stopped; as for :func:`delete` that may be too early.
    """
    bound, rounding, gradient = risk.gradient_norm_bound(start)
    first = Minimum(start, bound, rounding, 0)
    if first.reaches(tol):
        return first
    return _mixed(risk, first, -factors.solve(gradient), factors.solve, factors, tol)


def are_exact(factors: HeadFactors, risk: HeadRisk) -> bool:
    """Return whether factors are those of the Hessian, not of blocks that stand for it."""
    return risk.loss.constant or (risk.loss.separable and factors.per_class)


def _mixed(
    risk: HeadRisk,
    best: Minimum,
    step: np.ndarray,
    solve: Map,
    factors: HeadFactors,
    tol: float | None,
) -> Minimum:
    """Iterate from ``best.weights``, the first time by `step`, then with `solve`."""
    points, steps, bounds, fresh = [best.weights], [step], [], None
    groups = len(step) if are_exact(factors, risk) else 1
    for n_iter in range(1, _MAX_PASSES + 1):
        W = _mix(points, steps, groups)
        bound, rounding, gradient = risk.gradient_norm_bound(W)
        bounds.append(bound)
        if bound < best.bound:
            best = Minimum(W, bound, rounding, n_iter)
        if best.reaches(tol) or not bound <= 1e3 * best.bound:
            break
        to_come = _passes_to_come(bounds, goal(rounding, tol))
        if fresh is None and to_come > risk.factor_cost + _AFTER_FACTORS:
            fresh = risk.factors(W)
            solve, points, steps = fresh.solve, [], []
        points.append(W)
        steps.append(-solve(gradient))
        del points[:-_DEPTH], steps[:-_DEPTH]
    return replace(best, n_iter=n_iter, factors=fresh)


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
