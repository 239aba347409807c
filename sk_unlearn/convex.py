"""Globally convergent Newton-CG for a strongly convex risk, down to a proved gradient norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from operator import itemgetter

import numpy as np
from scipy.linalg import cho_solve
from tqdm.auto import tqdm

from .head_factors import HeadFactors, cholesky
from .head_risk import HeadRisk

_MAX_DIRECT = 4096
_MAX_BYTES = 2**30
_FLOOR = 2.0
_FACTOR_COST = 0.05
"""Products that cost as much as building the factors, for each column of the features."""


@dataclass(frozen=True)
class Minimum:
    """Where the solver stopped.

    Parameters
    ----------
    weights : ndarray of shape (K, d + 1)
        The last iterate.
    bound : float
        Proved upper bound on the true gradient norm there.
    rounding : float
        The part of `bound` that no iteration can remove.
    n_iter : int
        Newton steps.
    """

    weights: np.ndarray
    bound: float
    rounding: float
    n_iter: int

    @property
    def at_floor(self) -> bool:
        """Whether the computed gradient is lost in its rounding: no step can improve on it."""
        return self.bound <= _FLOOR * self.rounding


def minimise(
    risk: HeadRisk,
    start: np.ndarray,
    tol: float | None = None,
    max_iter: int = 200,
    verbose: int = 0,
) -> Minimum:
    """Minimise a :class:`~sk_unlearn.head_risk.HeadRisk` from `start`.

    Newton directions by preconditioned conjugate gradients, and a backtracking line search,
    so that it converges from everywhere. The preconditioner is at first the Cholesky factor
    of ``beta X'X/n + lam I``; once the products done with it would have paid for the factors
    of the Hessian at the present iterate, those are built and take over.

    Parameters
    ----------
    risk : HeadRisk
        What to minimise.
    start : ndarray of shape (K, d + 1)
        First iterate; not modified.
    tol : float or None
        Stop once the proved gradient norm (rounding included, Euclidean over all heads) is
        at most this. None goes on until the computed gradient is lost in its rounding.
    max_iter : int
        Most Newton steps.
    verbose : int
        Progress bar when above 0.

    Returns
    -------
    Minimum
        The caller compares ``bound`` with what it needs; nothing is raised here.
    """
    bound, rounding, gradient = risk.gradient_norm_bound(start)
    if tol is not None and bound <= tol:
        return Minimum(start, bound, rounding, 0)
    precondition, products = _preconditioner(risk), 0
    value, W = min(((risk.value(W), W) for W in (start, risk.reference)), key=itemgetter(0))
    smallest = inf
    with tqdm(total=max_iter, desc="Newton", disable=not verbose, leave=False) as bar:
        for iteration in range(max_iter + 1):
            bound, rounding, gradient = risk.gradient_norm_bound(W)
            enough = _FLOOR * rounding if tol is None else tol
            if bound <= enough or iteration == max_iter or not gradient.any():
                break
            if products >= risk.shape[1] * _FACTOR_COST:
                factors = HeadFactors.at(risk, W, _MAX_BYTES)
                precondition, products = factors.solve if factors else precondition, 0
            step, spent = _conjugate_gradients(risk.hessian_product(W), gradient, precondition)
            products += spent
            smallest = min(smallest, float(np.linalg.norm(gradient)))
            moved = _line_search(risk, W, value, gradient, step, smallest)
            if moved is None:
                break
            W, value = moved
            bar.update()
    return Minimum(W, bound, rounding, iteration)


def _preconditioner(risk: HeadRisk) -> Callable[[np.ndarray], np.ndarray]:
    n, d = risk.X.shape
    beta = risk.constants.smoothness
    if d > _MAX_DIRECT:
        scale = beta * np.einsum("ij,ij->j", risk.X, risk.X) / n + risk.lam
        return lambda V: V / scale
    gram = risk.X.T @ risk.X
    gram *= beta / n
    factor = cholesky(gram, risk.lam)
    return lambda V: cho_solve(factor, V.T, check_finite=False).T


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray],
    gradient: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
    max_products: int = 2000,
) -> tuple[np.ndarray, int]:
    """Solve ``H step = -gradient`` loosely far from the optimum, tightly near it.

    Returns the step and the number of products.
    """
    norm = float(np.linalg.norm(gradient))
    target = norm * min(0.1, max(norm, 1e-10))
    step = np.zeros_like(gradient)
    residual = -gradient
    preconditioned = precondition(residual)
    direction = preconditioned
    energy = float(np.vdot(residual, preconditioned))
    products = 0
    while products < max_products:
        products += 1
        curved = product(direction)
        length = energy / float(np.vdot(direction, curved))
        step = step + length * direction
        residual = residual - length * curved
        if float(np.linalg.norm(residual)) <= target:
            break
        preconditioned = precondition(residual)
        energy, previous = float(np.vdot(residual, preconditioned)), energy
        direction = preconditioned + (energy / previous) * direction
    return step, products


def _line_search(
    risk: HeadRisk,
    W: np.ndarray,
    value: float,
    gradient: np.ndarray,
    step: np.ndarray,
    smallest: float,
) -> tuple[np.ndarray, float] | None:
    """Backtrack to a sufficient decrease; None when rounding leaves nothing to gain.

    Near the optimum the decrease drowns in the value's own rounding. There the whole step
    counts as progress when the gradient becomes smaller than 0.9 times the `smallest` so
    far, which cannot happen for ever.
    """
    slope = float(np.vdot(gradient, step))
    for power in range(40):
        trial = W + 0.5**power * step
        trial_value = risk.value(trial)
        if trial_value <= value + 1e-4 * 0.5**power * slope < value:
            return trial, trial_value
        if power == 0 and float(np.linalg.norm(risk.gradient(trial))) < 0.9 * smallest:
            return trial, trial_value
    return None
