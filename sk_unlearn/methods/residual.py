"""Solve to a declared gradient norm, then add noise far below the data's effect (T12)."""

from __future__ import annotations

import warnings
from dataclasses import replace
from math import inf, nextafter
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from .. import bounds
from ..constraint import project
from ..convex import Minimum
from ..events import Event, GaussianRelease
from ..exceptions import NotApplicableError, ToleranceNotReachedError, UnlearningWarning
from ..head_update import SolvedHead
from . import _affine
from ._checks import require_horizon
from .base import OneShotMethod, Outcome, Problem, Setting


class Residual(OneShotMethod):
    r"""Certified deletion for strongly convex objectives, without loss of accuracy (T12).

    Retained rows are solved for until the gradient norm is proved to be at most
    :math:`\tau`; the retrained model of the other world is held to the same. Both are then
    within :math:`\tau/\mathrm{lam}` of the one optimum, so at most
    :math:`2\tau/\mathrm{lam}` apart (Euclidean norm over all heads together), whatever was
    deleted and however much. :math:`\tau` is declared before any row is looked at.

    Applies with ``lam > 0`` to :class:`sk_unlearn.modules.LinearHead`,
    :class:`sk_unlearn.modules.LinearRegressor`, :class:`sk_unlearn.modules.FeatureHead` on a
    frozen network, and :class:`sk_unlearn.modules.Linearized`, a whole network to first order.
    ``fit`` solves in float64 and takes no gradient steps. For a head it keeps the inverse of each
    class's Hessian, up to 1 GiB; else one for all classes; else a sketch of rank 300.

    Parameters
    ----------
    noise_std : float or None
        Standard deviation of the noise per weight, absolute. The tolerance follows from it
        and from (epsilon, delta).
    tol : float or None
        Instead of `noise_std`: the gradient norm :math:`\tau` to reach; then the noise
        follows. Exactly one of the two may be given.
    state : {"released", "secret"}
        What survives a release: nothing un-noised (T18), or the un-noised optimum and the factors,
        so that the next deletion is as cheap as the first (T19). Then the (epsilon, delta) asked
        for is that of all releases since fit together, whichever row was deleted when, and the
        tolerance is divided by the root of `horizon`.
    horizon : int or None
        With ``state="secret"``: the most releases after fit, declared beforehand; the next one is
        refused.

    Raises
    ------
    NotApplicableError
        At fit, when the module is not affine in its parameters or ``lam`` is 0.
    ToleranceNotReachedError
        At unlearn, when the tolerance is below the rounding error of the gradient.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.methods import Residual
    >>> from sk_unlearn.modules import LinearHead
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = CertifiedNeuralClassifier(LinearHead, lam=1e-2, method=Residual())
    >>> clf = clf.fit(X, y).unlearn(X[:3], y[:3], epsilon=1.0, delta=1e-5)
    >>> clf.certificate_.formal, clf.certificate_.epsilon
    (True, 1.0)
    """

    trains = False

    def __init__(
        self,
        noise_std: float | None = 0.01,
        tol: float | None = None,
        state: str = "released",
        horizon: int | None = None,
    ) -> None:
        self.noise_std = noise_std
        self.tol = tol
        self.state = state
        self.horizon = horizon

    def check(self, module: nn.Module, criterion: nn.Module, setting: Setting) -> None:
        """Refuse what (T12) does not cover."""
        reason = self.obstacle(module, criterion, setting)
        if reason:
            raise NotApplicableError(f"Residual does not apply: {reason}")
        given = self.noise_std if self.tol is None else self.tol
        name = "noise_std" if self.tol is None else "tol"
        if self.tol is not None and self.noise_std not in (None, 0.01):
            raise NotApplicableError(
                f"Residual(noise_std={self.noise_std}, tol={self.tol}): the one follows from the "
                "other; give one of them"
            )
        if given is None or not 0 < given < inf:
            raise NotApplicableError(f"Residual({name}={given}): give a positive number")
        require_horizon("Residual", self.state, self.horizon)

    @staticmethod
    def obstacle(module: nn.Module, criterion: nn.Module, setting: Setting) -> str | None:
        """Return why (T12) does not cover this setting, or None when it does."""
        return _affine.obstacle(module, criterion, setting)

    def event(self, setting: Setting) -> Event:
        """Announce a Gaussian release whose noise, or else whose sensitivity, is open."""
        if self.tol is not None:
            constants = (("tol", float(self.tol)), ("lam", setting.lam))
            sensitivity = bounds.residual_distance(self.tol, setting.lam)
            return GaussianRelease(sensitivity, None, "residual_distance", constants)
        return GaussianRelease(None, float(self.noise_std), "residual_distance")

    def amend_obstacle(self) -> str | None:
        """Return None: (T12) is about what rows there are, not what they were."""
        return None

    def prepare(self, problem: Problem) -> tuple[np.ndarray, Any]:
        """Solve far beyond what a release needs; keep the solution and the Hessian's factors."""
        tol = self.tol / 10 if self.tol else problem.setting.lam * self.noise_std / 100
        solution, factors, converged = _affine.prepare(problem, tol)
        if not converged:
            warnings.warn(
                f"the solve stopped after {solution.n_iter} Newton steps at a gradient norm of up "
                f"to {solution.bound:.3g}, above the {solution.rounding:.3g} that rounding leaves: "
                "the fit is not quite at its optimum; scale the features, or raise lam",
                ConvergenceWarning,
                stacklevel=2,
            )
        solved = SolvedHead(solution.weights, factors, solution.n_iter, solution.n_passes)
        return _inside_ball(solved.weights, problem)[0], solved

    def center(self, problem: Problem, event: Event) -> Outcome:
        """Solve for the retained rows to the tolerance that the event stands for."""
        lam = problem.setting.lam
        if not event.constants:
            tol = bounds.residual_tolerance(event.sensitivity, lam)
            while bounds.residual_distance(tol, lam) > event.sensitivity:
                tol = nextafter(tol, 0.0)
            event = replace(event, constants=(("tol", tol), ("lam", lam)))
        tol = dict(event.constants)["tol"]
        risk, solution, n_passes = _affine.solve(problem, tol)
        if not solution.bound <= tol:
            raise ToleranceNotReachedError(_advice(solution, tol))
        inside, active = _inside_ball(solution.weights, problem)
        factors = solution.factors
        if factors is None and problem.state is not None:
            factors = problem.state.factors
        solved = SolvedHead(solution.weights, factors, solution.n_iter, solution.n_passes)
        kept = solved if self.state == "secret" else None
        assumptions = _affine.assumptions(problem, risk, solution, tol)
        diagnostics = {
            "gradient_norm_bound": solution.bound,
            "rounding": solution.rounding,
            "n_iter": solution.n_iter,
            "updated_in_passes": n_passes,
            "passes": solution.n_passes,
            "ball_active": active,
        }
        scope = _affine.scope(problem)
        return Outcome(inside, event, assumptions, diagnostics, scope=scope, state=kept)


def _inside_ball(solved: np.ndarray, problem: Problem) -> tuple[np.ndarray, bool]:
    weights = _affine.vector(solved)
    inside = project(weights, problem.reference, problem.setting.C)
    active = not np.array_equal(inside, weights)
    if active:
        distance = float(np.linalg.norm(weights - problem.reference))
        warnings.warn(
            f"the optimum lies {distance:.4g} from the anchor, outside the ball of radius "
            f"C={problem.setting.C:g}: the model is its projection, less accurate than the "
            "optimum; "
            "raise C (it costs Residual nothing)",
            UnlearningWarning,
            stacklevel=2,
        )
    return inside, active


def _advice(solution: Minimum, tol: float) -> str:
    if solution.rounding >= 0.5 * tol:
        return (
            f"the tolerance {tol:.3g} is below what float64 can prove here: the gradient's "
            "rounding "
            f"error alone is {solution.rounding:.3g}; raise noise_std or lam, or scale the "
            "features down (their row norms enter it). Nothing was changed."
        )
    return (
        f"the gradient norm stopped at {solution.bound:.3g}, above the tolerance {tol:.3g}, after "
        f"{solution.n_iter} Newton steps; scale the features or raise lam. Nothing was changed."
    )
