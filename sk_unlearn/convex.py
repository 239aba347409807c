"""Globally convergent Newton-CG for a strongly convex risk, down to a proved gradient norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from operator import itemgetter

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from tqdm.auto import tqdm

from .head_risk import HeadRisk

_MAX_DIRECT = 4096


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


def minimise(
    risk: HeadRisk,
    start: np.ndarray,
    tol: float | None = None,
    max_iter: int = 200,
    verbose: int = 0,
) -> Minimum:
    """Minimise a :class:`~sk_unlearn.head_risk.HeadRisk` from `start`.

    Newton directions by conjugate gradients, preconditioned with the Cholesky factor of
    ``beta X'X/n + lam I`` (which contains no weights), and a backtracking line search, so
    that it converges from everywhere.

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
    precondition = _preconditioner(risk)
    value, W = min(((risk.value(W), W) for W in (start, risk.reference)), key=itemgetter(0))
    smallest = inf
    with tqdm(total=max_iter, desc="Newton", disable=not verbose, leave=False) as bar:
        for iteration in range(max_iter + 1):
            bound, rounding, gradient = risk.gradient_norm_bound(W)
            enough = 2.0 * rounding if tol is None else tol
            if bound <= enough or iteration == max_iter or not gradient.any():
                break
            step = _conjugate_gradients(risk.hessian_product(W), gradient, precondition)
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
    gram[np.diag_indices(d)] += risk.lam + 4 * d * np.finfo(float).eps * np.trace(gram)
    factor = cho_factor(gram, overwrite_a=True, check_finite=False)
    return lambda V: cho_solve(factor, V.T, check_finite=False).T


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray],
    gradient: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
    max_products: int = 2000,
) -> np.ndarray:
    """Solve ``H step = -gradient`` loosely far from the optimum, tightly near it."""
    norm = float(np.linalg.norm(gradient))
    target = norm * min(0.1, max(norm, 1e-10))
    step = np.zeros_like(gradient)
    residual = -gradient
    preconditioned = precondition(residual)
    direction = preconditioned
    energy = float(np.vdot(residual, preconditioned))
    for _ in range(max_products):
        curved = product(direction)
        length = energy / float(np.vdot(direction, curved))
        step = step + length * direction
        residual = residual - length * curved
        if float(np.linalg.norm(residual)) <= target:
            break
        preconditioned = precondition(residual)
        energy, previous = float(np.vdot(residual, preconditioned)), energy
        direction = preconditioned + (energy / previous) * direction
    return step


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
