"""Certified removal of Guo et al.: noise in the objective, Newton steps, a budget (T15)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, sqrt

import numpy as np
from scipy.linalg import LinAlgError, cholesky
from torch import nn

from .. import bounds
from ..assumptions import Assumption, Status
from ..convex import minimise
from ..events import Event, ObjectivePerturbation
from ..exceptions import BudgetExceededError, NotApplicableError, ToleranceNotReachedError
from ..head_risk import HeadRisk
from ..noise import NoiseSource
from . import _heads
from ._checks import require_number
from .base import Outcome, Problem, Rows, Setting, UnlearningMethod


@dataclass(frozen=True)
class RemovalState:
    """What goes from one removal to the next.

    Parameters
    ----------
    weights : ndarray of shape (K, d + 1)
        As trained with the random term or as released, before the projection, in float64.
    residual : float
        Bound on the norm of the gradient there, in sum units, and on that of the training of the
        world without the deleted rows. It depends on the deleted rows.
    n_removed : int
        Rows removed since training.
    n_passes : float
        How often the rows were gone through to get here from the state before.
    """

    weights: np.ndarray
    residual: float
    n_removed: int = 0
    n_passes: float = 0.0


class CertifiedRemoval(UnlearningMethod):
    r"""Newton removal from a model trained with a random objective (Guo et al. 2020; T15).

    ``fit`` minimises ``F(w) + b'w / n`` for a random ``b ~ N(0, s^2 I)``, which is then
    forgotten. A removal is one Newton step for the deleted rows' gradient on the rows that stay;
    the step does not use b. What gradient it leaves is bounded, in sum units, from norms that are
    computed; the bounds add up over removals. While the sum is at most the budget ``s mu``, with
    the mu of (epsilon, delta), Guo et al. take the laws of the released and of the retrained
    weights to be close. Beyond it the head is trained again, with a new b and a new budget.

    **Not formal.** The step from small residuals to close laws is assumed, and it is false in
    general: (T15) has a counterexample. :class:`Residual` has a proof, and costs less noise.

    Applies to :class:`sk_unlearn.modules.LinearHead` with ``lam > 0`` on rows in a ball. b is
    always drawn from the operating system, whatever ``noise_seed`` says. After a release the
    estimator keeps the sum of the residual bounds, which depends on the deleted rows: it is the
    operator's, and so are pickles. ``refresh`` trains again, in idle time. A net that ``load`` read
    from a file of ``save`` has neither that sum nor the weights it belongs to: its next removal
    trains again.

    Parameters
    ----------
    noise_std : float
        s, standard deviation of the entries of b, in sum units: it moves weights by about
        ``s / (n lam)``. Declared, whatever the rows are.
    on_spent : {"retrain", "raise"}
        What a removal beyond the budget does: train on the rows that stay, or raise.
    multi_class : {"ovr", "multinomial"}
        The loss of the head, which the constants depend on (T13).
    row_norm : float
        Euclidean norm that no row exceeds, the constant feature 1 of the bias counted. Put
        :class:`sk_unlearn.preprocessing.ClipToBall` before the net; its radius 1 fits here.
    tol : float
        Gradient norm that training reaches, in both worlds; Euclidean, of the mean objective,
        rounding error included.

    Raises
    ------
    NotApplicableError
        At fit, when the head or a parameter is not covered, or a row is outside the ball.
    BudgetExceededError
        At unlearn, with ``on_spent="raise"``, beyond the budget.
    ToleranceNotReachedError
        When training misses `tol`, or the training error alone exceeds the budget.

    Notes
    -----
    Differs from the paper: the exact Gaussian accountant in place of ``epsilon / c`` and
    ``delta = 1.5 exp(-c^2 / 2)``; several classes; the penalty's share of the deleted rows'
    gradient, the training error of both worlds, the linear solve and rounding are counted; and
    the spectral norm of the rows is bounded from above.

    Examples
    --------
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.methods import CertifiedRemoval
    >>> from sk_unlearn.modules import LinearHead
    >>> X, y = [[0.0], [0.2], [0.8], [1.0]] * 50, [0, 0, 1, 1] * 50
    >>> clf = CertifiedNeuralClassifier(LinearHead, lam=0.1, method=CertifiedRemoval())
    >>> clf = clf.fit(X, y).unlearn(indices=[0])
    >>> clf.certificate_.formal, clf.certificate_.diagnostics["retrained"]
    (False, False)
    >>> clf.plan().deletions_left > 5
    True
    """

    trains = False

    def __init__(
        self,
        noise_std: float = 1.0,
        on_spent: str = "retrain",
        multi_class: str = "ovr",
        row_norm: float = 1.4143,
        tol: float = 1e-8,
    ) -> None:
        self.noise_std = noise_std
        self.on_spent = on_spent
        self.multi_class = multi_class
        self.row_norm = row_norm
        self.tol = tol

    def check(self, module: nn.Module, criterion: nn.Module, setting: Setting) -> None:
        """Refuse what (T15) does not cover."""
        _heads.check_head(self, module, criterion, setting)
        require_number("CertifiedRemoval", "noise_std", self.noise_std)
        if self.on_spent not in ("retrain", "raise"):
            raise NotApplicableError(
                f"CertifiedRemoval(on_spent={self.on_spent!r}): choose 'retrain' or 'raise'"
            )

    def event(self, setting: Setting) -> Event:
        """Announce a removal whose budget is open."""
        return ObjectivePerturbation(float(self.noise_std), None)

    def amend_obstacle(self) -> str | None:
        """Return None: the step and its residual count the corrected rows too."""
        return None

    def deletions_left(self, state: RemovalState | None, event: Event) -> int | None:
        """Return how many more rows the budget is good for, at what each cost so far."""
        if state is None or not state.n_removed or not state.residual:
            return None
        left = max(event.residual - state.residual, 0.0)
        return floor(left * state.n_removed / state.residual)

    def prepare(self, problem: Problem) -> tuple[np.ndarray, RemovalState]:
        """Train with a new random term."""
        state = self._train(problem, problem.noise)
        return _heads.inside_ball(state.weights, problem), state

    def unlearn(self, problem: Problem, event: Event) -> Outcome:
        """Remove within the budget; beyond it train again, or raise."""
        budget, state, step = event.residual, problem.state, 0.0
        if state is not None:
            removed = self._remove(problem, state)
            step = removed.residual - state.residual
        fits = state is not None and removed.residual <= budget
        if state is not None and not fits and self.on_spent == "raise":
            raise BudgetExceededError(
                f"these {len(problem.deleted)} rows would bring the residuals since training to "
                f"{removed.residual:.4g}, above the budget {budget:.4g} (noise_std="
                f"{self.noise_std:g}); call refresh() to train with new noise and a new budget, "
                "or fit with a larger noise_std. Nothing was changed."
            )
        if not fits:
            spent = 0.0 if state is None else removed.n_passes
            removed = self._train(problem, NoiseSource())
            removed = replace(removed, n_passes=removed.n_passes + spent)
            if not removed.residual <= budget:
                raise ToleranceNotReachedError(
                    f"the training error of both worlds alone is up to {removed.residual:.4g} in "
                    f"sum units, above the budget {budget:.4g}; lower tol={self.tol:g}, or raise "
                    "noise_std. Nothing was changed."
                )
        diagnostics = {
            "residual_budget": budget,
            "residual_spent": removed.residual,
            "residual_of_this_release": step,
            "retrained": not fits,
            "deletions_left": self.deletions_left(removed, event),
            "passes": removed.n_passes,
        }
        inside, kept = _heads.inside_ball(removed.weights, problem), replace(removed, n_passes=0.0)
        return Outcome(
            inside, event, self._assumptions(budget), diagnostics, scope=_SCOPE, state=kept
        )

    def _train(self, problem: Problem, noise: NoiseSource) -> RemovalState:
        """Minimise with a new b, which is the penalty's centre moved by ``-b / (n lam)``."""
        _heads.check_row_norms(self, problem.retained)
        setting, n = problem.setting, len(problem.retained)
        b = noise.gaussian(setting.n_parameters, float(self.noise_std))
        moved = problem.reference - b / (n * setting.lam)
        risk = _risk(problem, problem.retained, moved)
        start = _heads.to_matrix(problem.parameters, setting.n_classes)
        solution = minimise(risk, start, self.tol, verbose=problem.verbose)
        if not solution.bound <= self.tol:
            raise ToleranceNotReachedError(
                f"training stopped at gradient norm {solution.bound:.3g} (of which "
                f"{solution.rounding:.3g} is rounding), above tol={self.tol:g}; raise tol or lam. "
                "Nothing was changed."
            )
        allowed = _heads.SLACK * 2 * n * float(self.tol)
        return RemovalState(solution.weights, allowed, n_passes=solution.n_passes)

    def _remove(self, problem: Problem, state: RemovalState) -> RemovalState:
        """Take one Newton step on the rows that stay, and bound what gradient it leaves."""
        if not len(problem.deleted):
            return replace(state, n_passes=0.0)
        retained = _risk(problem, problem.retained, problem.reference)
        deleted = _risk(problem, problem.deleted, problem.reference)
        n_u, n_r, W = len(problem.deleted), len(problem.retained), state.weights
        _, rounding, gradient = deleted.gradient_norm_bound(W)
        lost = rounding + _heads.gamma(3) * _heads.upper(gradient)
        if len(problem.corrected):
            _heads.check_row_norms(self, problem.added)
            added = _risk(problem, problem.added, problem.reference)
            _, rounding, new = added.gradient_norm_bound(W)
            gradient = gradient - new
            lost += rounding + _heads.gamma(3) * (_heads.upper(new) + _heads.upper(gradient))
        pull = -n_u / n_r * gradient
        step, missed = _heads.newton_step(retained, W, pull, self.tol / 4, self.row_norm)
        constants = _heads.head_constants(self, problem.setting)
        moved = W + step
        missed += n_u / n_r * lost
        missed += _heads.gamma(1) * (constants.smoothness + retained.lam) * _heads.upper(moved)
        logits = retained.X @ step.T
        image = _heads.upper(logits) + _heads.gamma(W.shape[1]) * sqrt(n_r) * (
            self.row_norm * _heads.upper(step)
        )
        taylor = bounds.certified_removal_residual(
            bounds.head_constants(self.multi_class, problem.setting.n_classes).hessian_lipschitz,
            spectral_norm_bound(retained.X),
            _heads.upper(step),
            image,
            float(self.row_norm),
        )
        spent = _heads.add_up(state.residual, _heads.SLACK * n_r * missed, taylor)
        return RemovalState(moved, spent, state.n_removed + n_u, retained.n_passes)

    def _assumptions(self, budget: float) -> tuple[Assumption, ...]:
        return (
            Assumption(
                "objective noise",
                Status.BY_CONSTRUCTION,
                f"the head was trained with a random linear term of standard deviation "
                f"{self.noise_std:g} in sum units, drawn from the operating system's entropy and "
                "dropped after training; the removal steps do not use it",
            ),
            Assumption(
                "residuals",
                Status.PROVED,
                f"the gradient left by all removals since training, and by the training of both "
                f"worlds, has a norm of at most {budget:.6g} in sum units, rounding error "
                "included (T15)",
            ),
            Assumption(
                "laws",
                Status.ASSUMED,
                "that small residuals make the laws of the released and the retrained weights "
                "close, as Guo et al. (2020, Thm 3) conclude: false in general, since the residual "
                "depends on the noise (its Jacobian is left out) and so does the check of the "
                "budget; for these rows nothing is proved (T15)",
            ),
        )


_SCOPE = (
    "the sum of the removals' residual bounds, which the estimator and its pickles hold: it "
    "depends on the deleted rows",
)


def _risk(problem: Problem, rows: Rows, reference: np.ndarray) -> HeadRisk:
    setting = problem.setting
    centre = _heads.to_matrix(reference, setting.n_classes)
    kind = problem.module.multi_class
    return HeadRisk(rows.X, rows.y, setting.n_classes, setting.lam, centre, kind)


def spectral_norm_bound(X: np.ndarray) -> float:
    """Return an upper bound on the spectral norm of X (n, d), close to it.

    ``t I - X'X`` is positive definite when its Cholesky factorisation runs to completion, up to
    ``gamma_{d+1}`` times its trace (Higham 2002, Thm 10.3 and (10.7)); the product itself is off
    by at most ``gamma_n`` times the squared Frobenius norm. t is tried just above the largest
    eigenvalue as computed.
    """
    n, d = X.shape
    gram = X.T @ X
    total = _heads.SLACK * float(np.trace(gram))
    top = float(np.linalg.eigvalsh(gram)[-1])
    t = top + _heads.gamma(10 * d) * total
    try:
        cholesky(t * np.eye(d) - gram, check_finite=False)
    except LinAlgError:
        return _heads.SLACK * sqrt(total)  # the Frobenius norm
    slack = _heads.gamma(d + 4) * (d * t + total) + _heads.gamma(n) * total
    return _heads.SLACK * sqrt(t + slack)
