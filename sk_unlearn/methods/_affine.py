"""Models that are affine in their trainable weights, for :class:`Residual` (T12)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

from ..assumptions import Assumption, Status
from ..convex import Factors, Minimum, minimise
from ..frozen_features import features_of, unproved
from ..head_factors import HeadFactors
from ..head_risk import HeadRisk
from ..head_update import are_exact, delete, settle
from ..linearized_risk import LinearizedRisk
from ..modules import FeatureHead, LinearHead, Linearized, LinearRegressor
from .base import Problem, Rows, Setting

_TRAINED = 0.9
"""Weights with less than this share of the anchor's risk are worth factors of their Hessian."""
HEADS: tuple[type[nn.Module], ...] = (LinearHead, LinearRegressor, FeatureHead)


def obstacle(
    module: nn.Module,
    criterion: nn.Module,
    setting: Setting,
    kinds: tuple[type[nn.Module], ...] = (*HEADS, Linearized),
) -> str | None:
    """Return why (T12) does not cover this setting, or None when it does."""
    if type(module) not in kinds:
        return (
            f"{type(module).__name__} is not known to be affine in its trainable parameters; "
            "use sk_unlearn.modules.LinearHead (LinearRegressor for numbers, FeatureHead on a "
            "frozen network, Linearized for a whole one), or method=Retrain()"
        )
    if setting.lam <= 0:
        return f"lam={setting.lam} leaves the objective without strong convexity; use lam > 0"
    affine = module.offsets if type(module) is Linearized else module.linear
    if not all(p.requires_grad for p in affine.parameters()):
        return "a weight of the head is frozen; all of them must be trained and penalised"
    own = {id(p) for p in affine.parameters()}
    if any(p.requires_grad for p in module.parameters() if id(p) not in own):
        return "a weight below the head is trainable; freeze all of them"
    expected = module.criterion()
    if type(criterion) is not type(expected) or vars_of(criterion) != vars_of(expected):
        return f"criterion {criterion!r} is not the head's own {expected!r}; leave criterion=None"
    return None


def vars_of(criterion: nn.Module) -> str:
    """Return what distinguishes two criteria of one type."""
    options = ("reduction", "weight", "ignore_index", "label_smoothing")
    return repr([getattr(criterion, name, None) for name in options])


def prepare(problem: Problem, tol: float) -> tuple[Minimum, Factors | None, bool]:
    """Solve for all rows, and factor the Hessian there; say whether the solver got there.

    A linear head goes down to the rounding error of its gradient, a linearised network to `tol`,
    if that is not below it.
    """
    risk, start = risk_on(problem, problem.retained), first_iterate(problem)
    if isinstance(risk, HeadRisk):
        trained = risk.value(start) < _TRAINED * risk.value(risk.reference)
        solve_from = _settled if trained else minimise
        solution = solve_from(risk, start, verbose=problem.verbose)
        factors = risk.factors(solution.weights)
        return replace(solution, n_passes=risk.n_passes), factors, solution.at_floor
    trained = not np.array_equal(start, risk.reference)
    factors = risk.factors(start) if trained else None
    solution = minimise(risk, start, tol, verbose=problem.verbose, factors=factors)
    factors = solution.factors or risk.factors(solution.weights)
    converged = solution.bound <= tol or solution.at_floor
    return replace(solution, n_passes=risk.n_passes), factors, converged


def solve(problem: Problem, tol: float) -> tuple[HeadRisk | LinearizedRisk, Minimum, int | None]:
    """Update the solved model where there is one; else, or if that misses, minimise.

    Returns the risk over the retained rows, where the solver stopped, and the passes of the
    update, if that was enough; the passes of the solver include those of an update that was not.
    """
    risk = risk_on(problem, problem.retained)
    solved, start = problem.state, first_iterate(problem)
    factors = None if solved is None else solved.factors
    if isinstance(risk, LinearizedRisk):
        return risk, minimise(risk, start, tol, verbose=problem.verbose, factors=factors), None
    if isinstance(factors, HeadFactors) and len(problem.deleted):
        added = risk_on(problem, problem.added) if len(problem.corrected) else None
        updated, n_passes = delete(solved, risk, risk_on(problem, problem.deleted), tol, added)
        if updated.bound <= tol:
            return risk, updated, n_passes
        start, factors = updated.weights, None
    if factors is None:
        solution = _settled(risk, start, tol, verbose=problem.verbose)
    else:
        solution = minimise(risk, start, tol, verbose=problem.verbose, factors=factors)
    return risk, replace(solution, n_passes=risk.n_passes), None


def _settled(
    risk: HeadRisk, start: np.ndarray, tol: float | None = None, verbose: int = 0
) -> Minimum:
    """Solve from a point nearby, with factors of the Hessian there."""
    factors = risk.factors(start)
    if isinstance(factors, HeadFactors) and are_exact(factors, risk):
        found = settle(risk, start, factors, tol)
        if found.reaches(tol):
            return replace(found, factors=found.factors or factors)
        start, factors = found.weights, found.factors or factors
    return minimise(risk, start, tol, verbose=verbose, factors=factors)


def risk_on(problem: Problem, rows: Rows) -> HeadRisk | LinearizedRisk:
    """Return the objective over some rows."""
    if type(problem.module) is Linearized:
        lam = problem.setting.lam
        return LinearizedRisk(rows.X, rows.y, problem.module, lam, problem.reference)
    return head_risk(problem, rows)


def first_iterate(problem: Problem) -> np.ndarray:
    """Return the solved weights where there are any, else the present ones."""
    if problem.state is not None:
        return problem.state.weights
    if type(problem.module) is Linearized:
        return problem.parameters
    return to_matrix(problem.parameters, problem.setting.n_classes)


def head_risk(problem: Problem, rows: Rows) -> HeadRisk:
    """Return the objective of a head over some rows, float64."""
    setting, module = problem.setting, problem.module
    reference = to_matrix(problem.reference, setting.n_classes)
    X, error = rows.X, None
    if isinstance(module, FeatureHead):
        features = rows.features or features_of(module, rows.X)
        X, error = features.values, features.error
    kind = module.multi_class
    return HeadRisk(X, rows.y, setting.n_classes, setting.lam, reference, kind, error)


def to_matrix(vector: np.ndarray, n_classes: int) -> np.ndarray:
    """Stack a head's weight (K, d) and bias (K,) as (K, d + 1)."""
    split = len(vector) - n_classes
    return np.column_stack([vector[:split].reshape(n_classes, -1), vector[split:]])


def to_vector(matrix: np.ndarray) -> np.ndarray:
    """Undo :func:`to_matrix`."""
    return np.concatenate([matrix[:, :-1].ravel(), matrix[:, -1]])


def vector(weights: np.ndarray) -> np.ndarray:
    """Return a solver's weights in the order of the module's parameters."""
    return weights if weights.ndim == 1 else to_vector(weights)


def assumptions(
    problem: Problem, risk: HeadRisk | LinearizedRisk, solution: Minimum, tol: float
) -> tuple[Assumption, ...]:
    """Return what a release near the optimum rests on."""
    proved = risk.doubt is None
    bound = (
        f"true gradient norm over all weights <= {tol:.6g}, rounding error included; checked "
        "before the release, in both worlds (T12)"
    )
    if not proved:
        bound += (
            "; the rounding error is not proved: the distance between the gradients in float32 "
            "and in float64 stands in for it"
        )
    linearised = type(problem.module) is Linearized
    model = "network linearised at fixed weights" if linearised else "model"
    return (
        Assumption(
            "strong convexity",
            Status.BY_CONSTRUCTION,
            f"convex loss, {model} affine in its parameters, every weight penalised with lam = "
            f"{problem.setting.lam:g} (T12)",
        ),
        Assumption(
            "residual",
            Status.PROVED if proved else Status.MEASURED,
            bound,
            f"at most {solution.bound:.3g} after {solution.n_iter} Newton steps, "
            f"{solution.rounding:.2g} of it rounding" + ("" if proved else f"; {risk.doubt}"),
        ),
        _about_features(problem.module),
    )


def _about_features(module: nn.Module) -> Assumption:
    """Say why a row's features are the same numbers in both worlds."""
    if type(module) is Linearized:
        statement = (
            "a row's outputs and Jacobian at the fixed weights, in real arithmetic, are functions "
            "of its stored float32 numbers alone, the same in both worlds"
        )
        return Assumption("features", Status.BY_CONSTRUCTION, statement)
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


def scope(problem: Problem) -> tuple[str, ...]:
    """Return what the statement does not say."""
    if type(problem.module) is not Linearized:
        return ()
    return ("whether the weights at which the network is linearised had seen the deleted rows",)
