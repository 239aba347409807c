"""The risk of a linearised network, with a bound on its gradient's rounding error.

The same objective as everywhere, ``mean loss + lam/2 ||v - v_ref||^2``, for
:class:`sk_unlearn.modules.Linearized`: convex in the offsets ``v``, since the logits are affine
in them. The solver looks for the optimum in float32, sums over chunks of rows in float64; where
that is near enough, the gradient is computed again in float64, and its rounding error bounded.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cached_property
from math import inf, nextafter

import numpy as np
import torch

from . import bounds
from ._vectors import flatten, unflatten
from .curvature.jacobian import Jacobian
from .curvature.nystrom import NystromFactors
from .logit_losses import LOSSES, Map
from .modules import Linearized
from .network_rounding import head_residuals, linearised_gradient, obstacle
from .principal_rows import N_DIRECTIONS, NarrowFactors, first_dense, narrowed

_KEPT_BYTES = 2**30
_RANK, _NARROW_RANK = 300, 800
_SHARE = 4


class LinearizedRisk:
    """Objective of a linearised network on fixed rows (T12).

    Parameters
    ----------
    X : ndarray of shape (n, ...)
        Rows, float32.
    y : ndarray of shape (n,), or (n, K)
        Class indices; targets for the squared loss.
    model : Linearized
        Its offsets are not used; nothing in it is modified.
    lam : float
        Coefficient of the penalty on all offsets.
    reference : ndarray of shape (p,)
        Centre of the penalty.

    Attributes
    ----------
    doubt : str or None
        Why the bound on the rounding error is measured, not proved; None if it is proved.
    n_passes : float
        How often all rows were gone through the network and back, as a Hessian product does: half
        for what the layers share, for logits, for a gradient; one and a half for a proof. A product
        of the factors counts by the part of the rows' numbers that it reads.
    """

    product_accuracy = 1e-5

    def __init__(
        self, X: np.ndarray, y: np.ndarray, model: Linearized, lam: float, reference: np.ndarray
    ) -> None:
        self.X, self.y, self.lam, self.reference = torch.as_tensor(X), y, lam, reference
        self.model = model
        self.loss = LOSSES[model.multi_class]
        self.shape = reference.shape
        reason = obstacle(model.network)
        self.doubt = None if reason is None else f"{type(model.network).__name__}: {reason}"
        self._sharp = False
        self._logits: tuple[np.ndarray, np.ndarray] | None = None
        self.n_passes = 0.0

    @cached_property
    def _exact(self) -> Jacobian:
        return self._jacobian(torch.float64)

    @cached_property
    def _fast(self) -> Jacobian:
        return self._jacobian(torch.float32)

    def _jacobian(self, dtype: torch.dtype, step: int = 1) -> Jacobian:
        network, rows = deepcopy(self.model.network).to(dtype), self.X[::step]
        self.n_passes += 0.5 * len(rows) / len(self.X)
        return Jacobian(network, self.model.names, rows, _KEPT_BYTES)

    def sharpen(self) -> bool:
        """Compute in float64 from now on; return False if that was so already."""
        sharper, self._sharp, self._logits = not self._sharp, True, None
        return sharper

    def logits(self, v: np.ndarray) -> np.ndarray:
        """Return the logits (n, K) at v as float64 numbers, of float32 accuracy at first."""
        if self._logits is None or self._logits[0] is not v:
            self._logits = v, self._logits_by(self._exact if self._sharp else self._fast, v)
        return self._logits[1]

    def value(self, v: np.ndarray) -> float:
        """Return the objective at v (p,)."""
        loss = self.loss.values(self.logits(v), self.y)
        return float(loss.mean() + 0.5 * self.lam * np.sum((v - self.reference) ** 2))

    def gradient(self, v: np.ndarray) -> np.ndarray:
        """Return the gradient at v, mean over rows, penalty included."""
        return self._gradient(self._exact if self._sharp else self._fast, self.logits(v), v)

    def _logits_by(self, jacobian: Jacobian, v: np.ndarray) -> np.ndarray:
        self.n_passes += 0.5 * bool(v.any())
        return _logits(jacobian, v)

    def _gradient(self, jacobian: Jacobian, logits: np.ndarray, v: np.ndarray) -> np.ndarray:
        self.n_passes += 0.5
        residuals = torch.from_numpy(self.loss.residuals(logits, self.y))
        mean = jacobian.transposed(residuals).numpy() / len(self.y)
        return mean + self.lam * (v - self.reference)

    def gradient_norm_bound(
        self, v: np.ndarray, tol: float | None = None
    ) -> tuple[float, float, np.ndarray]:
        """Return an upper bound on the norm of the true gradient at v.

        Parameters
        ----------
        v : ndarray of shape (p,)
        tol : float, optional
            What the norm is compared with: nothing is bounded where the computed norm is above it.

        Returns
        -------
        bound, rounding : float
            As of :meth:`sk_unlearn.head_risk.HeadRisk.gradient_norm_bound`, if :attr:`doubt` is
            None afterwards; else with the distance between the gradients in float32 and in float64
            in place of a proved `rounding`.
        gradient : ndarray of shape (p,)
            The computed gradient, float64 arithmetic where something is bounded.
        """
        gradient = self.gradient(v)
        norm = float(np.linalg.norm(gradient))
        if tol is not None and not norm <= tol:
            return norm, 0.0, gradient
        if self.doubt is None:
            gradient, rounding = self._proved_gradient(v)
        if self.doubt is not None:
            gradient, rounding = self._measured_gradient(v)
        norm = float(np.linalg.norm(gradient))
        return bounds.computed_norm_bound(norm, v.size, rounding), rounding, gradient

    def _proved_gradient(self, v: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the gradient again, with its proved distance from the true one.

        A unit whose derivative rounding leaves open is a doubt; then nothing is proved.
        """
        self.n_passes += 1.5
        parts = unflatten(torch.from_numpy(v), list(self.model.offsets))
        tangent = dict(zip(self.model.names, parts, strict=True))
        residuals = head_residuals(self.y, self.model.multi_class)
        data = linearised_gradient(self.model.network, self.X, tangent, residuals)
        if data.ambiguous:
            self.doubt = "rounding leaves a unit's derivative open, at a kink or a tie of maxima"
        mean = flatten([data.gradients[name] for name in self.model.names]).numpy()
        pull = self.lam * (v - self.reference)
        # three operations on each number, each within half a unit in its last place
        size = float(np.linalg.norm(mean) + np.linalg.norm(pull))
        penalty = 2.0 * np.finfo(float).eps * size + v.size * np.finfo(float).tiny
        return mean + pull, nextafter(data.error + penalty, inf)

    def _measured_gradient(self, v: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the gradient in float64, and its distance from the one in float32.

        Where nothing jumps, that is about 2**29 times the error of the former. A derivative on
        whose side of a kink both arithmetics err alike is what no measurement shows.
        """
        coarse, fine = (
            self._gradient(j, self._logits_by(j, v), v) for j in (self._fast, self._exact)
        )
        return fine, float(np.linalg.norm(fine - coarse))

    def hessian_product(self, v: np.ndarray) -> Map:
        """Return the map ``u -> H(v) u`` on float64 vectors, computed in float32."""
        product = self._product(self._fast, self.logits(v), 1.0)
        return lambda u: product(torch.from_numpy(u)).numpy() + self.lam * u

    def _product(self, jacobian: Jacobian, logits: np.ndarray, share: float):
        curve, scale = self.loss.curve(logits.astype(np.float32)), 1.0 / len(logits)

        def product(u: torch.Tensor) -> torch.Tensor:
            self.n_passes += share
            curved = torch.from_numpy(curve(jacobian.times(u).numpy()))
            return jacobian.transposed(curved) * scale

        return product

    def preconditioner(self) -> Map:
        """Return the identity: before there are factors, nothing cheap helps."""
        return lambda u: u

    @cached_property
    def _first(self) -> str | None:
        return first_dense(self.model, self.X[0].numel())

    @property
    def factor_cost(self) -> float:
        """Return how many Hessian products the factors cost."""
        if self._first is None:
            return 2.0 * _rank(_RANK, self.shape[0]) / _SHARE
        return _NARROW_RANK * N_DIRECTIONS / self.X[0].numel()

    def factors(self, v: np.ndarray) -> NystromFactors | NarrowFactors:
        """Return a sketch of the Hessian at v, from narrow rows, or else from every fourth row."""
        if self._first is None:
            some = self._jacobian(torch.float32, step=_SHARE)
            logits = self.logits(v)[::_SHARE]
            return self._sketch(some, logits, _RANK, len(logits) / len(self.y))
        network, rows, directions = narrowed(self.model, self._first, self.X)
        narrow = Jacobian(network, self.model.names, rows, _KEPT_BYTES)
        share = rows[0].numel() / self.X[0].numel()
        sketch = self._sketch(narrow, self.logits(v), _NARROW_RANK, share)
        return NarrowFactors(sketch, directions)

    def _sketch(
        self, jacobian: Jacobian, logits: np.ndarray, rank: int, share: float
    ) -> NystromFactors:
        product = self._product(jacobian, logits, share)

        def products(V: torch.Tensor) -> torch.Tensor:
            return torch.stack([product(column) for column in V.T], dim=1)

        size = jacobian.n_parameters
        return NystromFactors.of(products, size, _rank(rank, size), self.lam)


def _rank(most: int, size: int) -> int:
    return max(1, min(most, size, _KEPT_BYTES // (4 * size)))


def _logits(jacobian: Jacobian, v: np.ndarray) -> np.ndarray:
    outputs = jacobian.outputs.double()
    return (outputs + jacobian.times(torch.from_numpy(v)) if v.any() else outputs).numpy()
