"""What makes the Hessian of a linear head's risk cheap to invert, within the memory allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve

from .curvature.nystrom import NystromFactors

if TYPE_CHECKING:
    from .head_risk import HeadRisk

SKETCH_RANK = 300


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
        """Factor the Hessian of `risk` at `W`, for each class or else once for all.

        None where one factor exceeds `max_bytes`, or the memory that there is.
        """
        n_classes, d = risk.shape
        weights = risk.curvature(W)
        for per_class, size in ((not risk.loss.constant, n_classes), (False, 1)):
            if size * d * d * 8 <= max_bytes:
                each = weights if per_class else weights.mean(axis=1, keepdims=True)
                blocks = (risk.gram(column) for column in each.T)
                try:
                    factors = tuple(cholesky(block, risk.lam) for block in blocks)
                except MemoryError:
                    continue
                return cls(factors, per_class)
        return None

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """Return the blocks' inverse times `gradient` (K, d + 1)."""
        if not self.per_class:
            return cho_solve(self.factors[0], gradient.T, check_finite=False).T
        pairs = zip(self.factors, gradient, strict=True)
        return np.stack([cho_solve(f, g, check_finite=False) for f, g in pairs])


@dataclass(frozen=True)
class HeadSketch:
    """Low-rank stand-in for the Hessian blocks of a head, one for all classes.

    Parameters
    ----------
    sketch : NystromFactors
        Of ``sum of w x x' / n``, in float32.
    """

    sketch: NystromFactors

    @classmethod
    def of(cls, risk: HeadRisk, weights: np.ndarray) -> HeadSketch:
        """Sketch the rows of `risk`, each with its weight (n,)."""
        n, d = len(risk.y), risk.shape[1]

        def product(V: torch.Tensor) -> torch.Tensor:
            columns, total = V.double().numpy(), np.zeros(V.shape)
            for rows, block in risk.blocks():
                total += block.T @ (weights[rows, None] * (block @ columns))
            return torch.from_numpy(total / n)

        return cls(NystromFactors.of(product, d, min(SKETCH_RANK, n, d), risk.lam))

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """Return about the blocks' inverse times `gradient` (K, d + 1), up to a factor."""
        return np.stack([self.sketch.solve(row) for row in gradient])


def cholesky(gram: np.ndarray, lam: float) -> tuple:
    """Return the Cholesky factor of ``gram + lam I``; `gram` is overwritten.

    With more columns than rank and a `lam` below the rounding of `gram`, that matrix is not
    positive definite in float64; a ridge of the size of the rounding makes it so.
    """
    d = len(gram)
    gram[np.diag_indices(d)] += lam + 4 * d * np.finfo(float).eps * np.trace(gram)
    return cho_factor(gram, overwrite_a=True, check_finite=False)
