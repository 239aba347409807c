"""The door of every solver, and what comes out: a value, its residual, a status with advice."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sklearn.base import BaseEstimator
from torch import Tensor

from ..exceptions import ToleranceNotReachedError

if TYPE_CHECKING:
    from ..objective import Objective

CURE_MARGIN = 1.1


class SolveStatus(enum.Enum):
    """How a solve ended; the value says what to do about it."""

    CONVERGED = "The residual is below the tolerance."
    MAX_ITER = "The iteration cap was reached: raise max_iter, tol or the damping."
    STAGNATED = (
        "The true residual stopped falling before the tolerance: use an objective in "
        "float64, or raise tol."
    )
    NEGATIVE_CURVATURE = (
        "H + damping I is not positive definite, so the step may climb: raise the damping."
    )
    NOT_FINITE = (
        "A product was NaN or infinite: look for overflow in the module at these parameters, "
        "or use an objective in float64."
    )
    TOO_FEW_STEPS = "The bias of the recursion is above the tolerance: raise steps."
    TOO_NOISY = "The batches' noise is above the tolerance: raise repetitions, batch_size or scale."
    SCALE_TOO_SMALL = (
        "A batch's H_i + damping I exceeds the scale, so the recursion may diverge: raise scale."
    )
    INDEFINITE_BATCHES = (
        "Batches with negative curvature let the recursion's second moment grow: raise the "
        "damping, batch_size or scale."
    )


@dataclass(frozen=True)
class Solution:
    """An approximate solution of ``(H + damping I) x = g`` and what is known about it.

    Parameters
    ----------
    value : Tensor of shape (p,)
        ``x``. Use it only if :attr:`converged`.
    residual_norm : float
        ``||(H + damping I) x - g||``, Euclidean, computed afresh from `value` on all rows: the
        ``r`` of (T10).
    status : SolveStatus
    n_products : float
        Hessian-vector products, in passes over all rows: one on ``b`` of ``n`` rows is ``b/n``.
        Those spent on naming a failure are included.
    detail : str
        The figures behind the status.
    curvature : float or None
        A curvature (Rayleigh quotient) of ``H + damping I`` that was met and is not positive.
    sufficient_damping : float or None
        Where negative curvature was met: a damping that should cure it. An estimate.

    Examples
    --------
    >>> import torch
    >>> Solution(torch.zeros(1), 1.0, SolveStatus.MAX_ITER, 5).message
    'The iteration cap was reached: raise max_iter, tol or the damping. Residual norm 1.'
    """

    value: Tensor
    residual_norm: float
    status: SolveStatus
    n_products: float
    detail: str = ""
    curvature: float | None = None
    sufficient_damping: float | None = None

    @property
    def converged(self) -> bool:
        """Whether the tolerance was reached."""
        return self.status is SolveStatus.CONVERGED

    @property
    def message(self) -> str:
        """What happened, with figures, and what to do."""
        parts = [self.status.value, self.detail, f"Residual norm {self.residual_norm:.3g}."]
        return " ".join(part for part in parts if part)

    def raise_for_status(self) -> None:
        """Raise ToleranceNotReachedError, with :attr:`message`, unless the solve converged."""
        if not self.converged:
            raise ToleranceNotReachedError(self.message)


class Solver(BaseEstimator):
    """Base of the solvers: one door, checked arguments.

    A solver stops once ``||(H + damping I) x - g|| <= tol * ||g||``.
    """

    def solve(self, objective: Objective, w: Tensor, g: Tensor, damping: float = 0.0) -> Solution:
        """Solve ``(H(w) + damping I) x = g``, `H` the Hessian of `objective` (lam included).

        Parameters
        ----------
        objective : Objective
            Its rows are the rows of the Hessian.
        w : Tensor of shape (p,)
            Where the Hessian is taken.
        g : Tensor of shape (p,)
        damping : float
            At least 0.

        Returns
        -------
        Solution
            In the dtype of `objective`. A solve that fails returns, with its status; see
            :meth:`Solution.raise_for_status`.

        Raises
        ------
        ValueError
            If an argument has the wrong shape or is not finite.
        """
        if not (math.isfinite(damping) and damping >= 0):
            raise ValueError(f"damping must be a finite number >= 0, got {damping!r}.")
        if not self.tol > 0:
            raise ValueError(f"tol must be > 0, got {self.tol!r}.")
        w, g = objective.as_point(w), objective.as_point(g, "g")
        for name, vector in (("w", w), ("g", g)):
            if not vector.isfinite().all():
                count = int((~vector.isfinite()).sum())
                raise ValueError(f"{name} has {count} NaN or infinite entries.")
        return self._solve(objective, w, g, float(damping))

    def _solve(self, objective: Objective, w: Tensor, g: Tensor, damping: float) -> Solution:
        raise NotImplementedError
