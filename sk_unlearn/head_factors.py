"""Cholesky factors of the Hessian of a linear head's risk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cho_factor, cho_solve

if TYPE_CHECKING:
    from .head_risk import HeadRisk


@dataclass(frozen=True)
class HeadFactors:
    """Cholesky factors of the Hessian blocks of a head, one for each class or one for all.

    For losses that are a sum over the heads the blocks are the Hessian, and for squares one and
    the same; for the softmax loss they are its diagonal blocks, a preconditioner.

    Parameters
    ----------
    factors : tuple
        As of :func:`scipy.linalg.cho_factor`; K of them, or one that serves all classes.
    per_class : bool
        Which of the two.
    """

    factors: tuple
    per_class: bool

    @classmethod
    def at(cls, risk: HeadRisk, W: np.ndarray, max_bytes: int) -> HeadFactors | None:
        """Factor the Hessian of `risk` at `W`; None when one factor exceeds `max_bytes`."""
        n_classes, d = risk.shape
        if d * d * 8 > max_bytes:
            return None
        weights = risk.curvature(W)
        per_class = n_classes * d * d * 8 <= max_bytes and not risk.loss.constant
        if not per_class:
            weights = weights.mean(axis=1, keepdims=True)
        blocks = (risk.gram(column) for column in weights.T)
        return cls(tuple(cholesky(block, risk.lam) for block in blocks), per_class)

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """Return the blocks' inverse times `gradient` (K, d + 1)."""
        if not self.per_class:
            return cho_solve(self.factors[0], gradient.T, check_finite=False).T
        pairs = zip(self.factors, gradient, strict=True)
        return np.stack([cho_solve(f, g, check_finite=False) for f, g in pairs])


def cholesky(gram: np.ndarray, lam: float) -> tuple:
    """Return the Cholesky factor of ``gram + lam I``; `gram` is overwritten.

    With more columns than rank and a `lam` below the rounding of `gram`, that matrix is not
    positive definite in float64; a ridge of the size of the rounding makes it so.
    """
    d = len(gram)
    gram[np.diag_indices(d)] += lam + 4 * d * np.finfo(float).eps * np.trace(gram)
    return cho_factor(gram, overwrite_a=True, check_finite=False)
