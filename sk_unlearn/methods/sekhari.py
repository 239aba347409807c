"""Exact Newton steps on a convex objective, and noise for a bound known beforehand (T14)."""

from __future__ import annotations

import numpy as np
from torch import nn

from .. import bounds
from ..assumptions import Assumption, Status
from ..events import Event, GaussianRelease
from ..exceptions import ToleranceNotReachedError
from ..head_risk import HeadRisk
from ..head_update import SolvedHead
from . import _heads
from .base import OneShotMethod, Outcome, Problem, Setting

_MAX_STEPS = 8


class SekhariNewton(OneShotMethod):
    r"""Newton steps on the retained rows from the trained optimum, plus noise (T14).

    Deleting rows moves the optimum by at most
    ``n_u / (lam n_r) (L + min(L, sqrt(lam loss_at_0)))``, and an exact Newton step from a point at
    distance d of the new optimum lands within ``M d^2 / (2 lam)`` of it. The number of steps is
    the one with the smallest bound, zero included: where ``M d / (2 lam) >= 1`` a step hurts.
    All of it follows from constants declared beforehand, so the noise depends on no data. It is
    formal and loose: :class:`Residual` measures instead, and needs a small part of the noise.

    Applies to :class:`sk_unlearn.modules.LinearHead` anchored at zero, ``lam > 0``, on rows in a
    ball. A later deletion starts from an optimum solved afresh for the rows that are left (T18).

    Parameters
    ----------
    multi_class : {"ovr", "multinomial"}
        The loss of the head, which the constants depend on (T13).
    row_norm : float
        Euclidean norm that no row exceeds, the constant feature 1 of the bias counted. Put
        :class:`sk_unlearn.preprocessing.ClipToBall` before the net; its radius 1 fits here.
    max_fraction : float
        Most deleted rows over retained rows of one release.
    tol : float
        Gradient norm that training reaches, in both worlds, and residual norm of the linear
        system of a step; Euclidean, of the mean objective, rounding error included.

    Raises
    ------
    NotApplicableError
        At fit, when the head or a parameter is not covered, or a row is outside the ball.
    DeletionRequestError
        At unlearn, beyond `max_fraction`.
    ToleranceNotReachedError
        When `tol` is missed.

    Notes
    -----
    Sekhari et al. 2021, Alg. 1; Guo et al. 2020. Differs from the papers: several steps, the
    errors of training and of the linear solves are counted, and the noise is that of the exact
    Gaussian accountant.

    Examples
    --------
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.methods import SekhariNewton
    >>> from sk_unlearn.modules import LinearHead
    >>> X, y = [[0.0], [0.2], [0.8], [1.0]] * 50, [0, 0, 1, 1] * 50
    >>> method = SekhariNewton(max_fraction=0.01)
    >>> clf = CertifiedNeuralClassifier(LinearHead, lam=1.0, method=method).fit(X, y)
    >>> clf = clf.unlearn(indices=[0])
    >>> clf.certificate_.formal, clf.certificate_.sensitivity < 1e-7
    (True, True)
    """

    trains = False

    def __init__(
        self,
        multi_class: str = "ovr",
        row_norm: float = 1.4143,
        max_fraction: float = 0.1,
        tol: float = 1e-8,
    ) -> None:
        self.multi_class = multi_class
        self.row_norm = row_norm
        self.max_fraction = max_fraction
        self.tol = tol

    def check(self, module: nn.Module, criterion: nn.Module, setting: Setting) -> None:
        """Refuse what (T14) does not cover."""
        _heads.check_head(self, module, criterion, setting)

    def event(self, setting: Setting) -> Event:
        """Announce the smallest bound over the number of steps."""
        constants = _heads.shift_constants(self, setting)
        constants["hessian_lipschitz"] = _heads.head_constants(self, setting).hessian_lipschitz
        steps, sensitivity = self._best(constants, setting.lam)
        constants["steps"] = float(steps)
        proved = bounds.newton_steps_distance(**constants)
        return GaussianRelease(
            max(sensitivity, proved), None, "newton_steps_distance", tuple(constants.items())
        )

    def amend_obstacle(self) -> str | None:
        """Return None: k corrected rows of n move the optimum as 2 k / n deleted ones (T14)."""
        return None

    def _best(self, constants: dict[str, float], lam: float) -> tuple[int, float]:
        """Return the number of steps and the bound, each step's own error included."""
        error, slope = constants["training_error"], constants["hessian_lipschitz"]
        left_out = ("training_error", "hessian_lipschitz")
        shift = bounds.optimum_shift(**{k: v for k, v in constants.items() if k not in left_out})
        distance = _heads.add_up(shift, error)
        distances = [distance]
        while len(distances) <= _MAX_STEPS and np.isfinite(distance):
            distance = _heads.add_up(bounds.one_newton_step(distance, slope, lam), error)
            distances.append(distance)
        steps = int(np.argmin(distances))
        return steps, _heads.add_up(distances[steps], error)

    def prepare(self, problem: Problem) -> tuple[np.ndarray, SolvedHead]:
        """Solve to the declared gradient norm; keep the solution."""
        return _heads.solved(self, problem)

    def center(self, problem: Problem, event: Event) -> Outcome:
        """Step from the optimum of all rows; without deleted rows there is no step."""
        _heads.check_fraction(self, problem)
        W, passes = _heads.trained(self, problem)
        steps = int(dict(event.constants)["steps"]) if len(problem.deleted) else 0
        residual = 0.0
        if steps:
            risk = _heads.head_risk(problem, problem.retained)
            for _ in range(steps):
                W, missed = self._step(risk, W)
                residual = max(residual, missed)
            passes += risk.n_passes
        assumptions = (
            Assumption(
                "constants",
                Status.BY_CONSTRUCTION,
                f"{self.multi_class} loss on rows of norm <= {self.row_norm:g}, checked at fit; "
                f"lam = {problem.setting.lam:g} on every weight; n_u / n_r <= "
                f"{self.max_fraction:g} (T13)",
            ),
            Assumption(
                "training error",
                Status.PROVED,
                f"true gradient norm <= {self.tol:g} at the end of training, rounding error "
                "included, in both worlds (T14)",
            ),
            Assumption(
                "exact Newton steps",
                Status.PROVED,
                f"the residual of each linear system is <= {self.tol:g}, rounding error included, "
                "or the release fails (T10)",
                f"{steps} steps, residual at most {residual:.3g}",
            ),
        )
        diagnostics = {"n_steps": steps, "residual_norm": residual, "passes": passes}
        return Outcome(_heads.inside_ball(W, problem), event, assumptions, diagnostics)

    def _step(self, risk: HeadRisk, W: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the next point, and the residual that would explain all its rounding."""
        _, rounding, gradient = risk.gradient_norm_bound(W)
        step, residual = _heads.newton_step(risk, W, gradient, self.tol / 4, self.row_norm)
        moved = W + step
        residual += rounding + _heads.gamma(1) * risk.lam * _heads.upper(moved)
        if not residual <= self.tol:
            raise ToleranceNotReachedError(
                f"the residual of the Newton system is {residual:.3g}, above tol={self.tol:g}; "
                "raise tol or lam. Nothing was changed."
            )
        return moved, residual
