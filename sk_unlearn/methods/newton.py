"""One damped Newton step towards the retrained model (Zhang et al. 2024)."""

from __future__ import annotations

import warnings
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import bounds
from ..constraint import project
from ..curvature import CG, Solution, SolveStatus
from ..events import Event, GaussianRelease, UncertifiedRelease
from ..exceptions import NotApplicableError, ToleranceNotReachedError, UnlearningWarning
from ..objective import Objective
from ._checks import require_state
from ._newton_constants import contradictions, declared
from .base import BALL_BY_CONSTRUCTION, OneShotMethod, Outcome, Problem, Rows, Setting


class Newton(OneShotMethod):
    r"""A step ``(H + damping I)^{-1} grad`` on the retained rows, projected, plus noise (T9).

    What the step gains is not what the certificate counts: for trained networks the proved
    distance to the retrained model (T9) is never below the diameter of the ball (T8), so the
    noise is that of :class:`OutputPerturbation` and destroys the model. The published
    experiments set the noise by hand instead (``noise_std=0.001``); that is allowed here and
    certified as what it is: nothing.

    Parameters
    ----------
    solver : Solver
        :class:`~sk_unlearn.curvature.CG`, :class:`~sk_unlearn.curvature.LiSSA` or
        :class:`~sk_unlearn.curvature.Exact`.
    damping : float
        The paper's lambda of the local convex approximation, added to the Hessian of ``F``
        (which contains ``lam`` already).
    gradient : {"retained", "deleted"}
        ``w - (H + damping I)^{-1} grad F(w; D_r)``, or the influence form
        ``w + n_u/n_r (H + damping I)^{-1} grad F(w; D_u)``, which needs no pass over the
        retained rows and pays ``(n/n_r) ||grad F(w; D)|| / (damping + lambda_min)``.
    bound : {"ball", "newton"}
        Which bound stands behind the certificate; declared, never chosen by looking.
    hessian_lipschitz, lambda_min : float, optional
        For ``bound="newton"``: constants that hold over the whole ball. Nobody proves them
        here, so the certificate is not formal; what this run contradicts is REFUTED.
    gradient_bound : float, optional
        Largest gradient norm of ``F`` at which fit may stop, float64; enforced by fit when
        declared, and needed for ``bound="newton"``.
    residual_tol : float, optional
        For ``bound="newton"``: largest norm of the linear system's residual (T10), absolute.
    noise_std : float, optional
        Noise by hand, for reproduction: epsilon is then infinite.
    state : {"released", "secret"}
        What a later step starts from: the released weights, or (the paper's Algorithm 2) the
        un-noised ones, which are kept. Then every release has the (epsilon, delta) that was asked
        for, against retraining, and together they have what ``composed`` of the certificate says
        (T19). Not with ``bound="newton"``: that is a distance to the retrained model, and two
        worlds that both step, from different un-noised points, can be further apart.

    Raises
    ------
    NotApplicableError
        At fit, when a constant is missing or out of range, or the gradient is above
        `gradient_bound`.
    ToleranceNotReachedError
        At unlearn, when `residual_tol` is missed.

    Notes
    -----
    Differs from the paper: the step is projected back onto the ball (it does not expand);
    the bound is with the analytic Gaussian calibration; ``lambda_min`` and the gradient at
    the retrained model are part of it. Source: Zhang et al. 2024, Thm 3.4 and Prop. 3.5.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.methods import Newton
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = CertifiedNeuralClassifier(method=Newton(noise_std=0.001), random_state=0)
    >>> clf.fit(X, y).unlearn(X[:3], y[:3]).certificate_.epsilon
    inf
    """

    def __init__(
        self,
        solver: Any = None,
        damping: float = 1.0,
        gradient: str = "retained",
        bound: str = "ball",
        hessian_lipschitz: float | None = None,
        lambda_min: float | None = None,
        gradient_bound: float | None = None,
        residual_tol: float | None = None,
        noise_std: float | None = None,
        state: str = "released",
    ) -> None:
        self.solver = solver
        self.damping = damping
        self.gradient = gradient
        self.bound = bound
        self.hessian_lipschitz = hessian_lipschitz
        self.lambda_min = lambda_min
        self.gradient_bound = gradient_bound
        self.residual_tol = residual_tol
        self.noise_std = noise_std
        self.state = state

    def check(self, module: nn.Module, criterion: nn.Module, setting: Setting) -> None:
        """Refuse options and constants that mean nothing."""
        require_state("Newton", self.state)
        for name, allowed in (("gradient", ("retained", "deleted")), ("bound", ("ball", "newton"))):
            if getattr(self, name) not in allowed:
                raise NotApplicableError(
                    f"Newton({name}={getattr(self, name)!r}); choose {allowed}"
                )
        positive = ("damping", "gradient_bound", "residual_tol", "noise_std")
        for name in (*positive, "hessian_lipschitz", "lambda_min"):
            value = getattr(self, name)
            if value is None and name != "damping":
                continue
            good = isinstance(value, int | float | np.number) and isfinite(value)
            if not good or (name in positive and value <= 0):
                raise NotApplicableError(f"Newton({name}={value!r}); give a finite positive number")
        if self.bound == "newton":
            needed = ("hessian_lipschitz", "lambda_min", "gradient_bound", "residual_tol")
            missing = [name for name in needed if getattr(self, name) is None]
            if missing:
                raise NotApplicableError(
                    f"Newton(bound='newton') needs {', '.join(missing)}: constants that hold over "
                    "the whole ball, declared before any row is looked at; or use bound='ball'"
                )
            if self.state == "secret" and self.noise_std is None:
                raise NotApplicableError(
                    "Newton(bound='newton', state='secret'): the bound is the distance of a step "
                    "to the retrained model (T9); from the second release on both worlds step, "
                    "and nothing is proved of their distance (T19); use bound='ball'"
                )
            if self.damping + self.lambda_min <= 0:
                raise NotApplicableError(
                    f"Newton(damping={self.damping}, lambda_min={self.lambda_min}): their sum must "
                    f"be positive; take damping > {-self.lambda_min}"
                )

    def prepare(self, problem: Problem) -> tuple[np.ndarray, Any]:
        """Enforce the declared gradient bound at the end of training."""
        if self.gradient_bound is not None:
            objective = _objective(problem, problem.retained, torch.float64)
            norm = float(torch.linalg.vector_norm(_gradient(objective, problem.parameters)))
            if not norm <= self.gradient_bound:
                raise NotApplicableError(
                    f"training stopped at gradient norm {norm:.4g}, above the declared "
                    f"gradient_bound={self.gradient_bound:g}; train longer (max_epochs, lr), or "
                    "declare a larger bound"
                )
        return problem.parameters, self._kept(problem.parameters)

    def amend_obstacle(self) -> str | None:
        """Refuse the influence form, whose gradient is that of the rows that leave."""
        if self.gradient == "deleted":
            return "gradient='deleted' leaves out the corrected rows; use gradient='retained'"
        return None

    def _kept(self, weights: np.ndarray) -> np.ndarray | None:
        return weights if self.state == "secret" else None

    def event(self, setting: Setting) -> Event:
        """Announce the declared bound, or that the noise is set by hand."""
        if self.noise_std is not None:
            return UncertifiedRelease(
                float(self.noise_std),
                f"noise_std={self.noise_std:g} was set by hand; no bound stands behind it, as in "
                "the "
                "published experiments",
            )
        if self.bound == "ball":
            C = setting.C
            return GaussianRelease(bounds.ball_diameter(C), None, "ball_diameter", (("C", C),))
        constants = {
            "C": setting.C,
            "hessian_lipschitz": float(self.hessian_lipschitz),
            "damping": float(self.damping),
            "lambda_min": float(self.lambda_min),
            "gradient_bound": float(self.gradient_bound),
            "residual": float(self.residual_tol),
        }
        if self.gradient == "deleted":
            constants |= {
                "gradient_norm": float(self.gradient_bound),
                "n_total": 2,
                "n_retained": 1,
            }
        distance = bounds.newton_distance(**constants)
        return GaussianRelease(distance, None, "newton_distance", tuple(constants.items()))

    def center(self, problem: Problem, event: Event) -> Outcome:
        """Step from the projected last weights; without deleted rows there is no step."""
        last = problem.parameters if problem.state is None else problem.state
        start = project(last, problem.reference, problem.setting.C)
        newton = self.bound == "newton" and self.noise_std is None
        assumptions = [BALL_BY_CONSTRUCTION]
        if newton:
            assumptions += declared(self)
        if not len(problem.deleted):
            nothing = {"passes": 0.0}
            return Outcome(start, event, tuple(assumptions), nothing, state=self._kept(start))
        objective = _objective(problem, problem.retained)
        passes = float(self.gradient == "retained")
        if newton and self.gradient == "deleted":
            self._check_influence_form(problem, objective, start)
            passes += 1
        solution = self._solve(problem, objective, start, newton)
        step = solution.value.double().cpu().numpy()
        stepped = project(start - step, problem.reference, problem.setting.C)
        if newton:
            found, products = contradictions(self, objective, start, stepped)
            assumptions += found
            passes += products
        diagnostics = {
            "residual_norm": solution.residual_norm,
            "solver_status": solution.status.name,
            "n_products": solution.n_products,
            "passes": passes + solution.n_products,
            "step_norm": float(np.linalg.norm(step)),
        }
        kept = self._kept(stepped)
        return Outcome(stepped, event, tuple(assumptions), diagnostics, state=kept)

    def _check_influence_form(
        self, problem: Problem, objective: Objective, start: np.ndarray
    ) -> None:
        """Enforce the two constants that the influence form adds to the bound."""
        n_deleted, n_retained = len(problem.deleted), len(problem.retained)
        if n_deleted > n_retained:
            raise NotApplicableError(
                f"{n_deleted} rows to delete and {n_retained} that stay: the influence form is "
                "certified for at most half of the rows; use gradient='retained'"
            )
        deleted = _gradient(_objective(problem, problem.deleted), start)
        total = n_retained * _gradient(objective, start) + n_deleted * deleted
        norm = float(torch.linalg.vector_norm(total)) / (n_retained + n_deleted)
        if not norm <= self.gradient_bound:
            raise ToleranceNotReachedError(
                f"the gradient norm over all rows is {norm:.4g} at these weights (noise of an "
                f"earlier release counts), above gradient_bound={self.gradient_bound:g}; use "
                "gradient='retained'. Nothing was changed."
            )

    def _solve(
        self, problem: Problem, objective: Objective, start: np.ndarray, newton: bool
    ) -> Solution:
        if self.gradient == "retained":
            g = _gradient(objective, start)
        else:
            weight = len(problem.deleted) / len(problem.retained)
            g = -weight * _gradient(_objective(problem, problem.deleted), start)
        solver = CG() if self.solver is None else self.solver
        solution = solver.solve(objective, objective.as_point(_point(start)), g, self.damping)
        if newton and not solution.residual_norm <= self.residual_tol:
            raise ToleranceNotReachedError(
                f"the residual of the linear system is {solution.residual_norm:.4g}, above the "
                f"declared residual_tol={self.residual_tol:g}. {solution.message} Nothing was "
                "changed."
            )
        if solution.status is SolveStatus.NOT_FINITE:
            raise ToleranceNotReachedError(f"{solution.message} Nothing was changed.")
        if not solution.converged:
            warnings.warn(
                f"the Newton system was not solved to tolerance: {solution.message}",
                UnlearningWarning,
                stacklevel=2,
            )
        return solution


def _objective(problem: Problem, rows: Rows, dtype: torch.dtype | None = None) -> Objective:
    return Objective(
        problem.module,
        problem.criterion,
        torch.as_tensor(rows.X),
        torch.as_tensor(rows.y),
        lam=problem.setting.lam,
        reference=_point(problem.reference),
        dtype=dtype,
    )


def _point(vector: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(vector)


def _gradient(objective: Objective, at: np.ndarray) -> torch.Tensor:
    return objective.gradient(objective.as_point(_point(at)))
