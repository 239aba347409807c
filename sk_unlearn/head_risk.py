"""The risk of a linear head in float64, with a proved bound on its gradient's rounding error.

The same objective as everywhere, ``mean loss + lam/2 ||W - W_ref||^2``, for
:class:`sk_unlearn.modules.LinearHead`: there the loss is convex, the model is affine in
its parameters, and value, gradient and Hessian product are matrix products.
"""

from __future__ import annotations

from math import inf, nextafter

import numpy as np
from scipy.linalg import cho_solve

from . import bounds
from .head_factors import HeadFactors, cholesky
from .logit_losses import LOSSES, Map

_MAX_DIRECT = 4096
_MAX_BYTES = 2**30
_FACTOR_COST = 0.05
"""Products that cost as much as building the factors, for each column of the features."""


class HeadRisk:
    """Objective of a linear head on fixed rows (T12), all in float64.

    Parameters
    ----------
    X : ndarray of shape (n, ...)
        Features; flattened, and a constant column is appended for the bias.
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
        flat = X.reshape(len(X), -1)
        self.X = np.empty((flat.shape[0], flat.shape[1] + 1))
        self.X[:, :-1] = flat
        self.X[:, -1] = 1.0
        self.y = y
        self.lam = lam
        self.reference = reference
        self.multi_class = multi_class
        self.constants = bounds.head_constants(multi_class, n_classes)
        self.loss = LOSSES[multi_class]
        self.shape = (n_classes, self.X.shape[1])
        self.feature_error = feature_error
        self._row_norms = np.sqrt(np.einsum("ij,ij->i", self.X, self.X))

    def value(self, W: np.ndarray) -> float:
        """Return the objective at W (K, d + 1)."""
        loss = self.loss.values(self.X @ W.T, self.y)
        return float(loss.mean() + 0.5 * self.lam * np.sum((W - self.reference) ** 2))

    def residuals(self, W: np.ndarray) -> np.ndarray:
        """Return the loss gradients in the logits (n, K)."""
        return self.loss.residuals(self.X @ W.T, self.y)

    def gradient(self, W: np.ndarray) -> np.ndarray:
        """Return the gradient at W, mean over rows, penalty included."""
        return self._gradient(W, self.residuals(W))

    def _gradient(self, W: np.ndarray, residuals: np.ndarray) -> np.ndarray:
        return residuals.T @ self.X / len(self.y) + self.lam * (W - self.reference)

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
        residuals = self.residuals(W)
        gradient = self._gradient(W, residuals)
        mean_product = float(np.linalg.norm(residuals, axis=1) @ self._row_norms) / len(self.y)
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
            rounding = nextafter(rounding + self._feature_part(residuals, W), inf)
        norm = float(np.linalg.norm(gradient))
        return bounds.computed_norm_bound(norm, W.size, rounding), rounding, gradient

    def _feature_part(self, residuals: np.ndarray, W: np.ndarray) -> float:
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
            mean_residual_times_error=float(np.linalg.norm(residuals, axis=1) @ errors) / n,
            mean_row_times_error=float(self._row_norms @ errors) / n,
        )

    def sharpen(self) -> bool:
        """Return False: everything is as exact as it gets."""
        return False

    def curvature(self, W: np.ndarray) -> np.ndarray:
        """Return each row's curvature in each logit, (n, K): the Hessian's own if separable."""
        return self.loss.diagonal(self.X @ W.T)

    def hessian_product(self, W: np.ndarray) -> Map:
        """Return the map V -> H(W) V on arrays (K, d + 1)."""
        curve = self.loss.curve(self.X @ W.T)
        return lambda V: curve(self.X @ V.T).T @ self.X / len(self.y) + self.lam * V

    def preconditioner(self) -> Map:
        """Return the inverse of ``beta X'X/n + lam I``, or of its diagonal for many features."""
        beta = self.constants.smoothness
        if self.shape[1] > _MAX_DIRECT:
            scale = beta * np.einsum("ij,ij->j", self.X, self.X) / len(self.X) + self.lam
            return lambda V: V / scale
        gram = self.X.T @ self.X
        gram *= beta / len(self.X)
        factor = cholesky(gram, self.lam)
        return lambda V: cho_solve(factor, V.T, check_finite=False).T

    @property
    def factor_cost(self) -> float:
        """Return how many Hessian products the factors cost."""
        return self.shape[1] * _FACTOR_COST

    def factors(self, W: np.ndarray) -> HeadFactors | None:
        """Return the factors of the Hessian at W; None if they exceed 1 GiB."""
        return HeadFactors.at(self, W, _MAX_BYTES)
