"""What makes the Hessian of a linear head's risk cheap to invert, within the memory allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.linalg import LinAlgError
from scipy.linalg.blas import dsymm, dsymv
from scipy.linalg.lapack import dpotrf, dpotri

from .curvature.nystrom import NystromFactors

if TYPE_CHECKING:
    from .head_risk import HeadRisk

SKETCH_RANK = 300
_NEGLIGIBLE = 1e-4
"""Rows that bend the loss less than this share of what the one that bends it most does are left
out of a Hessian that preconditions: of one-vs-rest heads that fit their rows that is most rows."""


@dataclass(frozen=True)
class HeadFactors:
    """Inverses of the Hessian blocks of a head, one for each class or one for all.

    For losses that are a sum over the heads the blocks are the Hessian, and for squares one and
    the same; for the softmax loss they are its diagonal blocks, a preconditioner. A product with
    one triangle of an inverse reads half of what two triangular solves read.

    Parameters
    ----------
    inverses : tuple of ndarray of shape (d + 1, d + 1)
        Their upper triangles; K of them, or one that serves all classes.
    per_class : bool
        Which of the two.
    """

    inverses: tuple[np.ndarray, ...]
    per_class: bool

    @classmethod
    def at(cls, risk: HeadRisk, W: np.ndarray, max_bytes: int) -> HeadFactors | None:
        """Invert the Hessian of `risk` at `W`, for each class or else once for all.

        None where one matrix exceeds `max_bytes`, or the memory that there is.
        """
        n_classes, d = risk.shape
        weights = risk.curvature(W)
        for per_class, size in ((not risk.loss.constant, n_classes), (False, 1)):
            if size * d * d * 8 <= max_bytes:
                each = weights if per_class else weights.mean(axis=1, keepdims=True)
                blocks = (risk.gram(_without_negligible(column)) for column in each.T)
                try:
                    inverses = tuple(inverse(block, risk.lam) for block in blocks)
                except MemoryError:
                    continue
                return cls(inverses, per_class)
        return None

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """Return the blocks' inverse times `gradient` (K, d + 1)."""
        if not self.per_class:
            return dsymm(1.0, self.inverses[0], gradient.T).T
        pairs = zip(self.inverses, gradient, strict=True)
        return np.stack([dsymv(1.0, inverse, row) for inverse, row in pairs])


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


def _without_negligible(weights: np.ndarray) -> np.ndarray:
    return np.where(weights > _NEGLIGIBLE * weights.max(), weights, 0.0)


def inverse(gram: np.ndarray, lam: float) -> np.ndarray:
    """Return the upper triangle of the inverse of ``gram + lam I``; `gram` is overwritten.

    With more columns than rank and a `lam` below the rounding of `gram`, that matrix is not
    positive definite in float64; a ridge of the size of the rounding makes it so.
    """
    d = len(gram)
    gram[np.diag_indices(d)] += lam + 4 * d * np.finfo(float).eps * np.trace(gram)
    factor, failed = dpotrf(gram.T, clean=0, overwrite_a=1)
    if failed:
        raise LinAlgError(f"the {d} x {d} Hessian block is not positive definite in float64")
    return dpotri(factor, overwrite_c=1)[0]
