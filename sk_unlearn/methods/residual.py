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
from ..assumptions import Assumption, Status
from ..constraint import project
from ..convex import Minimum, minimise
from ..events import Event, GaussianRelease
from ..exceptions import NotApplicableError, ToleranceNotReachedError, UnlearningWarning
from ..frozen_features import features_of, unproved
from ..head_factors import HeadFactors
from ..head_risk import HeadRisk
from ..head_update import SolvedHead, delete
from ..modules import FeatureHead, LinearHead, LinearRegressor
from ._checks import require_count, require_state
from .base import OneShotMethod, Outcome, Problem, Rows, Setting

_MAX_FACTOR_BYTES = 2**30


class Residual(OneShotMethod):
    r"""Certified deletion for strongly convex objectives, without loss of accuracy (T12).

    Retained rows are solved for until the gradient norm is proved to be at most
    :math:`\tau`; the retrained model of the other world is held to the same. Both are then
    within :math:`\tau/\mathrm{lam}` of the one optimum, so at most
    :math:`2\tau/\mathrm{lam}` apart (Euclidean norm over all heads together), whatever was
    deleted and however much. :math:`\tau` is declared before any row is looked at.

    Applies with ``lam > 0`` to :class:`sk_unlearn.modules.LinearHead`,
    :class:`sk_unlearn.modules.LinearRegressor`, and :class:`sk_unlearn.modules.FeatureHead` on a
    frozen network. ``fit`` solves in float64 and takes no gradient steps.

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
        require_state("Residual", self.state)
        if self.state == "secret":
            require_count("Residual", "horizon", self.horizon, at_least=1)
        elif self.horizon is not None:
            raise NotApplicableError(
                f"Residual(horizon={self.horizon!r}): with state='released' nothing composes, and "
                "no horizon is needed; leave it out, or use state='secret'"
            )

    @staticmethod
    def obstacle(module: nn.Module, criterion: nn.Module, setting: Setting) -> str | None:
        """Return why (T12) does not cover this setting, or None when it does."""
        if type(module) not in (LinearHead, LinearRegressor, FeatureHead):
            return (
                f"{type(module).__name__} is not known to be affine in its trainable parameters; "
                "use sk_unlearn.modules.LinearHead (LinearRegressor for numbers, FeatureHead on a "
                "frozen network), or method=Retrain()"
            )
        if setting.lam <= 0:
            return f"lam={setting.lam} leaves the objective without strong convexity; use lam > 0"
        if not all(p.requires_grad for p in module.linear.parameters()):
            return "a weight of the head is frozen; all of them must be trained and penalised"
        head = {id(p) for p in module.linear.parameters()}
        if any(p.requires_grad for p in module.parameters() if id(p) not in head):
            return "a weight below the head is trainable; freeze all of them"
        expected = module.criterion()
        if type(criterion) is not type(expected) or vars_of(criterion) != vars_of(expected):
            return (
                f"criterion {criterion!r} is not the head's own {expected!r}; leave criterion=None"
            )
        return None

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
        """Solve down to the rounding error; keep the solution and the factors of its Hessian."""
        risk = _risk(problem, problem.retained)
        solution = minimise(risk, _start(problem), verbose=problem.verbose)
        if not solution.at_floor:
            warnings.warn(
                f"the solve stopped after {solution.n_iter} Newton steps at a gradient norm of up "
                f"to {solution.bound:.3g}, above the {solution.rounding:.3g} that rounding leaves: "
                "the fit is not quite at its optimum; scale the features, or raise lam",
                ConvergenceWarning,
                stacklevel=2,
            )
        factors = HeadFactors.at(risk, solution.weights, _MAX_FACTOR_BYTES)
        return _inside_ball(solution, problem)[0], SolvedHead(
            solution.weights, factors, solution.n_iter
        )

    def center(self, problem: Problem, event: Event) -> Outcome:
        """Solve for the retained rows to the tolerance that the event stands for."""
        lam = problem.setting.lam
        if not event.constants:
            tol = bounds.residual_tolerance(event.sensitivity, lam)
            while bounds.residual_distance(tol, lam) > event.sensitivity:
                tol = nextafter(tol, 0.0)
            event = replace(event, constants=(("tol", tol), ("lam", lam)))
        tol = dict(event.constants)["tol"]
        solution, n_passes = self._solve(problem, tol)
        if not solution.bound <= tol:
            raise ToleranceNotReachedError(_advice(solution, tol))
        inside, active = _inside_ball(solution, problem)
        factors = None if problem.state is None else problem.state.factors
        solved = SolvedHead(solution.weights, factors, solution.n_iter)
        kept = solved if self.state == "secret" else None
        assumptions = (
            Assumption(
                "strong convexity",
                Status.BY_CONSTRUCTION,
                f"convex loss, model affine in its parameters, every weight penalised with lam = "
                f"{lam:g} (T12)",
            ),
            Assumption(
                "residual",
                Status.PROVED,
                f"true gradient norm over all heads <= {tol:.6g}, rounding error included; checked "
                "before the release, in both worlds (T12)",
                f"at most {solution.bound:.3g} after {solution.n_iter} Newton steps, "
                f"{solution.rounding:.2g} of it rounding",
            ),
            _about_features(problem.module),
        )
        diagnostics = {
            "gradient_norm_bound": solution.bound,
            "rounding": solution.rounding,
            "n_iter": solution.n_iter,
            "updated_in_passes": n_passes,
            "ball_active": active,
        }
        return Outcome(inside, event, assumptions, diagnostics, state=kept)

    def _solve(self, problem: Problem, tol: float) -> tuple[Minimum, int | None]:
        """Update the solved head where there is one; else, or if that misses, minimise."""
        risk = _risk(problem, problem.retained)
        solved, start, n_passes = problem.state, _start(problem), None
        if solved is not None and solved.factors is not None and len(problem.deleted):
            added = _risk(problem, problem.added) if len(problem.corrected) else None
            deleted = _risk(problem, problem.deleted)
            updated, n_passes = delete(solved, risk, deleted, tol, added)
            if updated.bound <= tol:
                return updated, n_passes
            start = updated.weights
        return minimise(risk, start, tol, verbose=problem.verbose), n_passes


def _risk(problem: Problem, rows: Rows) -> HeadRisk:
    setting, module = problem.setting, problem.module
    reference = _to_matrix(problem.reference, setting.n_classes)
    X, error = rows.X, None
    if isinstance(module, FeatureHead):
        features = rows.features or features_of(module, rows.X)
        X, error = features.values, features.error
    kind = module.multi_class
    return HeadRisk(X, rows.y, setting.n_classes, setting.lam, reference, kind, error)


def _about_features(module: nn.Module) -> Assumption:
    """Say why a row's features are the same numbers in both worlds."""
    if not isinstance(module, FeatureHead):
        statement = "a row's features are the stored float32 numbers, the same in both worlds"
        return Assumption("features", Status.BY_CONSTRUCTION, statement)
    reason = unproved(module)
    if reason is None:
        statement = (
            "a row's features are those of the frozen weights in real arithmetic; the error of "
            "evaluating them in float64 is proved and part of the gradient norm (T12)"
        )
        return Assumption("features", Status.PROVED, statement)
    statement = (
        f"the frozen network's features, evaluated in float64, are exact: no error is proved for "
        f"{reason.split(' has ')[0]}"
    )
    return Assumption("features", Status.ASSUMED, statement, reason)


def _start(problem: Problem) -> np.ndarray:
    if problem.state is not None:
        return problem.state.weights
    return _to_matrix(problem.parameters, problem.setting.n_classes)


def vars_of(criterion: nn.Module) -> str:
    """Return what distinguishes two criteria of one type."""
    options = ("reduction", "weight", "ignore_index", "label_smoothing")
    return repr([getattr(criterion, name, None) for name in options])


def _to_matrix(vector: np.ndarray, n_classes: int) -> np.ndarray:
    """Stack the head's weight (K, d) and bias (K,) as (K, d + 1)."""
    split = len(vector) - n_classes
    return np.column_stack([vector[:split].reshape(n_classes, -1), vector[split:]])


def _to_vector(matrix: np.ndarray) -> np.ndarray:
    return np.concatenate([matrix[:, :-1].ravel(), matrix[:, -1]])


def _inside_ball(solution: Minimum, problem: Problem) -> tuple[np.ndarray, bool]:
    weights = _to_vector(solution.weights)
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
