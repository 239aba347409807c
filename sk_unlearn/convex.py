"""Globally convergent Newton-CG for a strongly convex risk, down to a proved gradient norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from operator import itemgetter
from typing import Protocol

import numpy as np
from tqdm.auto import tqdm

Map = Callable[[np.ndarray], np.ndarray]

_FLOOR = 2.0
_SHARE = 0.03
"""Of the gradient that the first direction leaves; later ones follow how far the last step came
(Eisenstat and Walker 1996, choice 2)."""


class Factors(Protocol):
    """What makes the Hessian at a point cheap to invert, exactly or nearly."""

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """Return about the inverse of the Hessian times an array of the weights' shape."""


class Risk(Protocol):
    """A strongly convex function of weights of some shape, with a bound on its gradient's error.

    Attributes
    ----------
    shape : tuple of int
        Of the weights.
    reference : ndarray
        Centre of the penalty.
    product_accuracy : float
        Relative accuracy of Hessian products; the directions are not solved for beyond it.
    factor_cost : float
        Products that cost as much as building the factors.
    n_passes : float
        How often all rows were gone through so far, for whatever it was.
    """

    shape: tuple[int, ...]
    reference: np.ndarray
    product_accuracy: float
    n_passes: float

    @property
    def factor_cost(self) -> float:
        """Products that cost as much as building the factors."""

    def value(self, W: np.ndarray) -> float:
        """Return the objective."""

    def gradient(self, W: np.ndarray) -> np.ndarray:
        """Return the gradient."""

    def gradient_norm_bound(
        self, W: np.ndarray, tol: float | None = None
    ) -> tuple[float, float, np.ndarray]:
        """Return a bound on the norm of the true gradient, its rounding part, and the gradient.

        Where the computed norm is above `tol`, it may stand for the bound.
        """

    def sharpen(self) -> bool:
        """Compute values and gradients more exactly from now on; return False if that is vain."""

    def hessian_product(self, W: np.ndarray) -> Map:
        """Return the map that multiplies with the Hessian at W."""

    def preconditioner(self) -> Map:
        """Return what stands for the inverse of the Hessian before there are factors."""

    def factors(self, W: np.ndarray) -> Factors | None:
        """Return the factors at W; None if they do not fit into memory."""


@dataclass(frozen=True)
class Minimum:
    """Where the solver stopped.

    Parameters
    ----------
    weights : ndarray
        The last iterate.
    bound : float
        Proved upper bound on the true gradient norm there.
    rounding : float
        The part of `bound` that no iteration can remove.
    n_iter : int
        Newton steps.
    n_passes : float
        How often the solver went through all rows: for values, gradients, Hessian products and
        factors.
    factors : Factors or None
        The last ones used.
    """

    weights: np.ndarray
    bound: float
    rounding: float
    n_iter: int
    n_passes: float = 0.0
    factors: Factors | None = None

    @property
    def at_floor(self) -> bool:
        """Whether the computed gradient is lost in its rounding: no step can improve on it."""
        return self.reaches(None)

    def reaches(self, tol: float | None) -> bool:
        """Whether the gradient norm is proved to be at most `tol`; None: lost in its rounding."""
        return self.bound <= goal(self.rounding, tol)


def goal(rounding: float, tol: float | None) -> float:
    """Return the bound to reach: `tol`, or for None one that its rounding part dominates."""
    return _FLOOR * rounding if tol is None else tol


def minimise(
    risk: Risk,
    start: np.ndarray,
    tol: float | None = None,
    max_iter: int = 200,
    verbose: int = 0,
    factors: Factors | None = None,
) -> Minimum:
    """Minimise a strongly convex risk from `start`.

    Newton directions by preconditioned conjugate gradients, and a backtracking line search,
    so that it converges from everywhere. The preconditioner is at first `factors`, or the risk's
    own; once the products done with it would have paid for the factors of the Hessian at the
    present iterate, those are built and take over.

    Parameters
    ----------
    risk : Risk
        What to minimise: a :class:`~sk_unlearn.head_risk.HeadRisk` or a
        :class:`~sk_unlearn.linearized_risk.LinearizedRisk`.
    start : ndarray
        First iterate; not modified.
    tol : float or None
        Stop once the proved gradient norm (rounding included, Euclidean over all heads) is
        at most this. None goes on until the computed gradient is lost in its rounding.
    max_iter : int
        Most Newton steps.
    verbose : int
        Progress bar when above 0.
    factors : Factors or None
        Of the Hessian at some nearby point.

    Returns
    -------
    Minimum
        The caller compares ``bound`` with what it needs; nothing is raised here.
    """
    before = risk.n_passes
    bound, rounding, gradient = risk.gradient_norm_bound(start, tol)
    if tol is not None and bound <= tol:
        return Minimum(start, bound, rounding, 0, risk.n_passes - before, factors)
    precondition = risk.preconditioner() if factors is None else factors.solve
    products = 0
    value, W = min(((risk.value(W), W) for W in (start, risk.reference)), key=itemgetter(0))
    smallest, previous = inf, 0.0
    with tqdm(total=max_iter, desc="Newton", disable=not verbose, leave=False) as bar:
        for iteration in range(max_iter + 1):
            if iteration or W is not start:
                bound, rounding, gradient = risk.gradient_norm_bound(W, tol)
            if bound <= goal(rounding, tol) or iteration == max_iter or not gradient.any():
                break
            if products >= risk.factor_cost and (fresh := risk.factors(W)) is not None:
                factors, precondition = fresh, fresh.solve
                products = 0
            norm = float(np.linalg.norm(gradient))
            if tol is not None and rounding and risk.sharpen():  # a proof ran, and was missed
                value, smallest = risk.value(W), inf
            share = min(_SHARE, 0.9 * (norm / (previous or norm)) ** 2)
            target, previous = norm * max(share, risk.product_accuracy, 1e-10), norm
            if tol is not None and norm > tol:
                target = max(target, 0.3 * tol)
            step, spent = _conjugate_gradients(
                risk.hessian_product(W), gradient, precondition, target
            )
            products += spent
            smallest = min(smallest, norm)
            moved = _line_search(risk, W, value, gradient, step, smallest)
            if moved is None:
                if not risk.sharpen():
                    break
                value, smallest = risk.value(W), inf
                continue
            W, value = moved
            bar.update()
    return Minimum(W, bound, rounding, iteration, risk.n_passes - before, factors)


def _conjugate_gradients(
    product: Map,
    gradient: np.ndarray,
    precondition: Map,
    target: float,
    max_products: int = 2000,
) -> tuple[np.ndarray, int]:
    """Solve ``H step = -gradient`` until the residual's norm is `target`.

    Returns the step with the smallest residual and the number of products: where rounding keeps
    the target out of reach, later steps are worse than earlier ones.
    """
    step = best = np.zeros_like(gradient)
    residual, smallest = -gradient, inf
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
        norm = float(np.linalg.norm(residual))
        if norm < smallest:
            best, smallest = step, norm
        if norm <= target:
            break
        preconditioned = precondition(residual)
        energy, previous = float(np.vdot(residual, preconditioned)), energy
        direction = preconditioned + (energy / previous) * direction
    return best, products


def _line_search(
    risk: Risk,
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
