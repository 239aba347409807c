"""The convex losses of a row as functions of its logits, in float64 (T13)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from scipy.special import expit, log_softmax, softmax

Map = Callable[[np.ndarray], np.ndarray]


class LogitLoss(ABC):
    """A loss of the logits (n, K) of rows with class indices (n,), convex in each row's logits.

    Attributes
    ----------
    separable : bool
        Whether it is a sum over the heads.
    constant : bool
        Whether its Hessian is the same for all rows, logits and heads: the identity.
    """

    separable = False
    constant = False

    @abstractmethod
    def values(self, logits: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the loss of each row, (n,)."""

    @abstractmethod
    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return what a row's gradient in the logits is, but for its label, (n, K)."""

    def residuals(self, logits: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return each row's gradient in the logits, (n, K)."""
        P = self.probabilities(logits)
        P -= (np.arange(P.shape[1])[:, None] == y).T
        return P

    @abstractmethod
    def diagonal(self, logits: np.ndarray) -> np.ndarray:
        """Return the diagonal of each row's Hessian in the logits, (n, K)."""

    @abstractmethod
    def curve(self, logits: np.ndarray) -> Map:
        """Return the map that multiplies each row of an (n, K) array with its Hessian."""


class OneVsRest(LogitLoss):
    """Binary log-loss of each head, summed; the Hessian of a row is diagonal."""

    separable = True

    def values(self, logits: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the loss of each row, (n,)."""
        signed = logits.copy()
        signed[np.arange(len(y)), y] *= -1.0
        return np.logaddexp(0.0, signed).sum(axis=1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the sigmoids."""
        return expit(logits)

    def diagonal(self, logits: np.ndarray) -> np.ndarray:
        """Return ``p (1 - p)``."""
        return expit(logits) * expit(-logits)

    def curve(self, logits: np.ndarray) -> Map:
        """Return the map that multiplies with ``p (1 - p)``."""
        weights = self.diagonal(logits)
        return lambda Z: weights * Z


class Softmax(LogitLoss):
    """Softmax log-loss."""

    def values(self, logits: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the loss of each row, (n,)."""
        return -log_softmax(logits, axis=1)[np.arange(len(y)), y]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the softmax."""
        return softmax(logits, axis=1)

    def diagonal(self, logits: np.ndarray) -> np.ndarray:
        """Return ``p (1 - p)``."""
        P = softmax(logits, axis=1)
        return P * (1.0 - P)

    def curve(self, logits: np.ndarray) -> Map:
        """Return the map that multiplies with ``diag(p) - p p^T``."""
        P = softmax(logits, axis=1)
        return lambda Z: P * (Z - np.sum(P * Z, axis=1, keepdims=True))


class HalfSquares(LogitLoss):
    """Half the squared distance of the outputs to targets (n, K), which stand for the labels."""

    separable = True
    constant = True

    def values(self, logits: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the loss of each row, (n,)."""
        return 0.5 * np.square(logits - y).sum(axis=1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the outputs themselves."""
        return logits

    def residuals(self, logits: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the outputs less the targets, (n, K), one rounding each."""
        return logits - y

    def diagonal(self, logits: np.ndarray) -> np.ndarray:
        """Return ones."""
        return np.ones_like(logits)

    def curve(self, logits: np.ndarray) -> Map:
        """Return the identity."""
        return lambda Z: Z


LOSSES: dict[str, LogitLoss] = {
    "ovr": OneVsRest(),
    "multinomial": Softmax(),
    "squared": HalfSquares(),
}
