"""The risk of a linear head in float64, with a proved bound on its gradient's rounding error.

The same objective as everywhere, ``mean loss + lam/2 ||W - W_ref||^2``, for
:class:`sk_unlearn.modules.LinearHead`: there the loss is convex, the model is affine in
its parameters, and value, gradient and Hessian product are matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, nextafter

import numpy as np

from . import bounds
from .head_factors import SKETCH_RANK, HeadFactors, HeadSketch, inverse
from .logit_losses import LOSSES, Map

_BLOCK_BYTES = 3 * 2**17
_GRAM_ROWS = 4096
_MAX_DIRECT = 4096
_MAX_BYTES = 2**30
_FACTOR_COST = 0.05
"""Products that cost as much as building the factors, for each column of the features."""


class HeadRisk:
    """Objective of a linear head on fixed rows (T12), all in float64.

    A pass goes over blocks of rows, each turned to float64 where it is used: a block stays in
    the cache for logits and gradient, and no second copy of the rows is kept. Rounding bounds
    hold for sums in any order.

    Parameters
    ----------
    X : ndarray of shape (n, ...)
        Features, float32 or float64, not copied; flattened, and a constant column is appended
        for the bias.
    y : ndarray of shape (n,), or (n, K)
        Class indices; targets for the squared loss.
    n_classes : int
        Number of heads K.
    lam : float
        Coefficient of the penalty on all weights, the bias too.
    reference : ndarray of shape (K, d + 1)
        Centre of the penalty.
    multi_class : {"ovr", "multinomial", "squared"}
        Which loss.
    feature_error : ndarray of shape (n,) or None
        How far each row of X may be from the true features (Euclidean norm); None: not at all.

    Attributes
    ----------
    n_passes : float
        How often all rows were gone through: for a value, a gradient, a Hessian product, factors;
        what reads some rows only counts for their share.
    """

    product_accuracy = 0.0
    doubt = None

    def __init__(
        self,
        X: np.ndarray,
        y: np.ndarray,
        n_classes: int,
        lam: float,
        reference: np.ndarray,
        multi_class: str,
        feature_error: np.ndarray | None = None,
    ) -> None:
        self._features = X.reshape(len(X), -1)
        self.y = y
        self.lam = lam
        self.reference = reference
        self.multi_class = multi_class
        self.constants = bounds.head_constants(multi_class, n_classes)
        self.loss = LOSSES[multi_class]
        self.shape = (n_classes, self._features.shape[1] + 1)
        self.feature_error = feature_error
        self._row_norms: np.ndarray | None = None
        self.n_passes = 0.0

    @property
    def X(self) -> np.ndarray:
        """A float64 copy of the features with the constant column, (n, d + 1)."""
        self.n_passes += 1
        X = np.ones((len(self.y), self.shape[1]))
        X[:, :-1] = self._features
        return X

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield slices of the rows and their part of :attr:`X`, valid until the next one."""
        self.n_passes += 1
        n, d = self._features.shape
        size = max(64, _BLOCK_BYTES // (8 * (d + 1)))
        buffer = np.ones((min(size, n), d + 1))
        for start in range(0, n, size):
            rows = slice(start, min(start + size, n))
            block = buffer[: rows.stop - start]
            block[:, :-1] = self._features[rows]
            yield rows, block

    def value(self, W: np.ndarray) -> float:
        """Return the objective at W (K, d + 1)."""
        loss = sum(
            float(self.loss.values(_logits(block, W), self.y[rows]).sum())
            for rows, block in self.blocks()
        )
        return loss / len(self.y) + float(0.5 * self.lam * np.sum((W - self.reference) ** 2))

    def gradient(self, W: np.ndarray) -> np.ndarray:
        """Return the gradient at W, mean over rows, penalty included."""
        return self._pass(W)

    def _pass(
        self,
        W: np.ndarray,
        residual_norms: np.ndarray | None = None,
        row_norms: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the gradient; write norms of the rows' residuals, and their own, on the way."""
        total = np.zeros(self.shape)
        for rows, block in self.blocks():
            residuals = self.loss.residuals(_logits(block, W), self.y[rows])
            total += residuals.T @ block
            if residual_norms is not None:
                residual_norms[rows] = _norms(residuals)
            if row_norms is not None:
                row_norms[rows] = _norms(block)
        return total / len(self.y) + self.lam * (W - self.reference)

    def gradient_norm_bound(
        self, W: np.ndarray, tol: float | None = None
    ) -> tuple[float, float, np.ndarray]:
        """Return a proved upper bound on the norm of the true gradient at W, whatever `tol`.

        The true gradient is that of the true features, in real arithmetic.

        Returns
        -------
        bound, rounding : float
            ``||true gradient|| <= bound = ||computed|| / (1 - gamma) + rounding`` (T12); what the
            error of the features can do is part of the rounding.
        gradient : ndarray of shape (K, d + 1)
            The computed gradient.
        """
        residual_norms = np.empty(len(self.y))
        unknown = np.empty(len(self.y)) if self._row_norms is None else None
        gradient = self._pass(W, residual_norms, unknown)
        self._row_norms = row_norms = self._row_norms if unknown is None else unknown
        mean_product = float(residual_norms @ row_norms) / len(self.y)
        rounding = bounds.gradient_rounding_error(
            n_rows=len(self.y),
            n_features=self.shape[1],
            n_heads=self.shape[0],
            row_norm=float(self._row_norms.max()),
            mean_residual_times_row=mean_product,
            smoothness=self.constants.smoothness,
            lam=self.lam,
            weights_norm=float(np.linalg.norm(W)),
            offset_norm=float(np.linalg.norm(W - self.reference)),
        )
        if self.feature_error is not None:
            rounding = nextafter(rounding + self._feature_part(residual_norms, W), inf)
        norm = float(np.linalg.norm(gradient))
        return bounds.computed_norm_bound(norm, W.size, rounding), rounding, gradient

    def _feature_part(self, residual_norms: np.ndarray, W: np.ndarray) -> float:
        n, errors = len(self.y), self.feature_error
        return bounds.feature_gradient_error(
            n_rows=n,
            n_features=self.shape[1],
            n_heads=self.shape[0],
            row_norm=float(self._row_norms.max()),
            smoothness=self.constants.smoothness,
            weights_norm=float(np.linalg.norm(W)),
            max_error=float(errors.max()),
            mean_error=float(errors.sum()) / n,
            mean_residual_times_error=float(residual_norms @ errors) / n,
            mean_row_times_error=float(self._row_norms @ errors) / n,
        )

    def sharpen(self) -> bool:
        """Return False: everything is as exact as it gets."""
        return False

    def curvature(self, W: np.ndarray) -> np.ndarray:
        """Return each row's curvature in each logit, (n, K): the Hessian's own if separable."""
        return np.concatenate([self.loss.diagonal(_logits(block, W)) for _, block in self.blocks()])

    def hessian_product(self, W: np.ndarray) -> Map:
        """Return the map V -> H(W) V on arrays (K, d + 1)."""
        curves = [self.loss.curve(_logits(block, W)) for _, block in self.blocks()]

        def product(V: np.ndarray) -> np.ndarray:
            total = np.zeros(self.shape)
            for curve, (_, block) in zip(curves, self.blocks(), strict=True):
                total += curve(_logits(block, V)).T @ block
            return total / len(self.y) + self.lam * V

        return product

    def gram(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the mean over rows of ``x x'``, each times its weight (n,) where there are any."""
        total = np.zeros((self.shape[1],) * 2)
        chosen = np.arange(len(self.y)) if weights is None else np.flatnonzero(weights)
        self.n_passes += len(chosen) / len(self.y)
        buffer = np.empty((min(_GRAM_ROWS, len(chosen)), self.shape[1]))
        for start in range(0, len(chosen), _GRAM_ROWS):
            rows = chosen[start : start + _GRAM_ROWS]
            block = buffer[: len(rows)]
            block[:, :-1], block[:, -1] = self._features[rows], 1.0
            if weights is not None:
                block *= np.sqrt(weights[rows])[:, None]
            total += block.T @ block
        total /= len(self.y)
        return total

    def preconditioner(self) -> Map:
        """Return the inverse of ``beta X'X/n + lam I``, or of a sketch for many features."""
        beta = self.constants.smoothness
        if self.shape[1] > _MAX_DIRECT:
            return HeadSketch.of(self, np.full(len(self.y), beta)).solve
        return HeadFactors((inverse(beta * self.gram(), self.lam),), per_class=False).solve

    @property
    def factor_cost(self) -> float:
        """Return how many Hessian products the factors cost."""
        K, d = self.shape
        return d * _FACTOR_COST if 8 * d * d <= _MAX_BYTES else SKETCH_RANK / K

    def factors(self, W: np.ndarray) -> HeadFactors | HeadSketch:
        """Return the factors of the Hessian at W; a sketch if one exceeds 1 GiB."""
        factors = HeadFactors.at(self, W, _MAX_BYTES)
        return HeadSketch.of(self, self.curvature(W).mean(axis=1)) if factors is None else factors


def _logits(X: np.ndarray, W: np.ndarray) -> np.ndarray:
    return (W @ X.T).T


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))
