"""Ridge heads in closed form: deletion costs the deleted rows and a factorisation (T17)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import ClassVar

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from torch import nn

from .. import bounds
from ..assumptions import Assumption, Status
from ..events import Event, GaussianRelease
from ..exceptions import NotApplicableError, ToleranceNotReachedError
from ..modules import LinearRegressor, RidgeHead
from . import _heads
from ._checks import require_number
from .base import OneShotMethod, Outcome, Problem, Rows, Setting

_BLOCK = 4096
_REFINEMENTS = 3
_MAX_BYTES = 2**32


@dataclass(frozen=True)
class RidgeSums:
    """The sums over rows that a ridge head is a function of, and how far off they may be.

    Parameters
    ----------
    gram : ndarray of shape (d, d)
        Sum of the products ``x x'`` of the rows, the constant feature counted in d.
    cross : ndarray of shape (K, d)
        Sum of the products ``t x'`` of targets and rows.
    gram_error, cross_error : float
        Proved bounds on the Frobenius norms of (stored - true).
    n_rows : int
        Rows in the sums.
    """

    gram: np.ndarray
    cross: np.ndarray
    gram_error: float
    cross_error: float
    n_rows: int

    n_passes: ClassVar[float] = 1.0

    @classmethod
    def of(cls, rows: Rows, n_classes: int) -> RidgeSums:
        """Sum over rows, float64, in blocks; targets +1 and -1 for class indices.

        Products of float32 numbers are exact in float64. A sum of b numbers in each of m blocks,
        and then over the blocks, is within ``gamma_{b+m}`` of the sum of the absolute values
        (Higham 2002, sec. 3.1), whose Frobenius norm is at most ``sum ||x||^2`` for the Gram
        matrix and ``sqrt(sum ||t||^2 sum ||x||^2)`` for the cross products.
        """
        flat = rows.X.reshape(len(rows), -1)
        d = flat.shape[1] + 1
        gram, cross, targets = np.zeros((d, d)), np.zeros((n_classes, d)), 0.0
        starts = range(0, len(rows), _BLOCK)
        for start in starts:
            part = flat[start : start + _BLOCK]
            X = np.ones((len(part), d))
            X[:, :-1] = part
            T = _targets(rows.y[start : start + _BLOCK], n_classes)
            gram += X.T @ X
            cross += T.T @ X
            targets += float(np.vdot(T, T))
        relative = _heads.gamma(min(len(rows), _BLOCK) + len(starts))
        squares = _heads.SLACK * float(np.trace(gram))
        lengths = _heads.SLACK * sqrt(targets * squares)
        return cls(gram, cross, relative * squares, relative * lengths, len(rows))

    def without(self, other: RidgeSums) -> RidgeSums:
        """Subtract the sums over rows that are counted here."""
        return self._with(other, -1)

    def plus(self, other: RidgeSums) -> RidgeSums:
        """Add the sums over further rows."""
        return self._with(other, 1)

    def _with(self, other: RidgeSums, sign: int) -> RidgeSums:
        gram, cross = self.gram + sign * other.gram, self.cross + sign * other.cross
        rounded = _heads.gamma(2)
        return RidgeSums(
            gram,
            cross,
            _heads.add_up(self.gram_error, other.gram_error, rounded * _heads.upper(gram)),
            _heads.add_up(self.cross_error, other.cross_error, rounded * _heads.upper(cross)),
            self.n_rows + sign * other.n_rows,
        )

    def solve(self, lam: float, reference: np.ndarray) -> tuple[np.ndarray, float]:
        """Minimise the ridge objective; the true sums enter the proved gradient norm.

        Returns
        -------
        weights : ndarray of shape (K, d)
            The solution by a fresh Cholesky factor and iterative refinement.
        bound : float
            Upper bound on the norm of the gradient of the true objective, mean over rows:
            ``||g|| + rounding of g + (gram_error ||W|| + cross_error) / n``. Infinite where the
            stored system has lost its positive definiteness to rounding.
        """
        system = self.gram / self.n_rows
        system[np.diag_indices(len(system))] += lam
        weights = reference.copy()
        try:
            factor = cho_factor(system, overwrite_a=True, check_finite=False)
        except LinAlgError:
            return weights, inf
        best = weights, inf
        for _ in range(_REFINEMENTS + 1):
            bound, gradient = self._gradient_norm_bound(weights, lam, reference)
            if bound < best[1]:
                best = weights, bound
            weights = weights - cho_solve(factor, gradient.T, check_finite=False).T
        return best

    def _gradient_norm_bound(
        self, W: np.ndarray, lam: float, reference: np.ndarray
    ) -> tuple[float, np.ndarray]:
        n, upper = self.n_rows, _heads.upper
        gradient = (W @ self.gram - self.cross) / n + lam * (W - reference)
        products = upper(W) * upper(self.gram) + upper(self.cross)
        rounding = _heads.gamma(len(self.gram) + 6) * products / n
        rounding += _heads.gamma(4) * lam * upper(W - reference) + _heads.gamma(1) * upper(gradient)
        stored = (self.gram_error * upper(W) + self.cross_error) / n
        return _heads.SLACK * (upper(gradient) + rounding + stored), gradient


def _targets(y: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the targets (n, K): as they are, or +1 for a row's class and -1 for the others."""
    if y.dtype.kind == "f":
        return y.astype(np.float64)
    targets = np.full((len(y), n_classes), -1.0)
    targets[np.arange(len(y)), y] = 1.0
    return targets


class Analytic(OneShotMethod):
    r"""Ridge in closed form, deletion without a pass over the rows that stay (T17).

    ``fit`` sums the products of the rows; a deletion subtracts those of the deleted rows,
    ``O(n_u d^2)``, and factors the system again, ``O(d^3)``, whatever n is. (The penalty is of
    the mean objective, so its weight against the sums changes with the number of rows, and an
    update of the old factor would solve another problem.) The result is that of retraining up to
    rounding; the proved rounding of sums, subtraction and solve is held below the declared
    gradient norm :math:`\tau`, in both worlds, which are then at most ``2 tau / lam`` apart
    (T12), and noise far below the data's effect covers that.

    The sums contain no weights, but their low bits remember the deleted rows; so a release drops
    them, and :meth:`CertifiedNeuralClassifier.refresh` (or the next deletion) sums over the rows
    that are left. Where rounding outgrows :math:`\tau`, as after deleting nearly all rows, that
    is done at once.

    Applies with ``lam > 0`` to :class:`sk_unlearn.modules.LinearRegressor`, and for classes to
    :class:`sk_unlearn.modules.RidgeHead`.

    Parameters
    ----------
    noise_std : float or None
        Standard deviation of the noise per weight, absolute. The tolerance follows from it
        and from (epsilon, delta).
    tol : float or None
        Instead of `noise_std`: the gradient norm :math:`\tau` (Euclidean, all heads together, of
        the mean objective); then the noise follows. Exactly one of the two may be given.

    Raises
    ------
    NotApplicableError
        At fit, for another module, ``lam = 0``, or a system above 4 GiB.
    ToleranceNotReachedError
        At unlearn, when the tolerance is below what float64 can prove.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.methods import Analytic
    >>> from sk_unlearn.modules import RidgeHead
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = CertifiedNeuralClassifier(RidgeHead, lam=1e-2, method=Analytic())
    >>> clf = clf.fit(X, y).unlearn(X[:3], y[:3], epsilon=1.0, delta=1e-5)
    >>> clf.certificate_.formal, clf.certificate_.diagnostics["passes"]
    (True, 0)
    """

    trains = False

    def __init__(self, noise_std: float | None = 0.01, tol: float | None = None) -> None:
        self.noise_std = noise_std
        self.tol = tol

    def check(self, module: nn.Module, criterion: nn.Module, setting: Setting) -> None:
        """Refuse what (T17) does not cover."""
        if type(module) not in (RidgeHead, LinearRegressor):
            raise NotApplicableError(
                f"Analytic does not apply to {type(module).__name__}: the closed form is that of "
                "least squares; use sk_unlearn.modules.RidgeHead, or LinearRegressor for numbers"
            )
        if type(criterion) is not type(module.criterion()):
            raise NotApplicableError(
                f"Analytic does not apply: criterion {criterion!r} is not the head's own; leave "
                "criterion=None"
            )
        if setting.lam <= 0:
            raise NotApplicableError(
                f"Analytic does not apply: lam={setting.lam} leaves the objective without strong "
                "convexity; use lam > 0"
            )
        if not all(p.requires_grad for p in module.parameters()):
            raise NotApplicableError(
                "Analytic does not apply: a weight of the head is frozen; all of them must be "
                "trained and penalised"
            )
        d = setting.n_parameters // setting.n_classes
        if 8 * d * d > _MAX_BYTES:
            raise NotApplicableError(
                f"the Gram matrix of {d} features takes {8 * d * d / 2**30:.1f} GiB, above "
                f"{_MAX_BYTES / 2**30:g}; use fewer features, or LinearHead (LinearRegressor) with "
                "Residual"
            )
        if self.tol is not None and self.noise_std not in (None, 0.01):
            raise NotApplicableError(
                f"Analytic(noise_std={self.noise_std}, tol={self.tol}): the one follows from the "
                "other; give one of them"
            )
        name = "noise_std" if self.tol is None else "tol"
        require_number("Analytic", name, getattr(self, name))

    def event(self, setting: Setting) -> Event:
        """Announce a Gaussian release whose noise, or else whose sensitivity, is open."""
        if self.tol is not None:
            constants = (("tol", float(self.tol)), ("lam", setting.lam))
            sensitivity = bounds.residual_distance(self.tol, setting.lam)
            return GaussianRelease(sensitivity, None, "residual_distance", constants)
        return GaussianRelease(None, float(self.noise_std), "residual_distance")

    def amend_obstacle(self) -> str | None:
        """Return None: (T17) is about what rows there are, not what they were."""
        return None

    def prepare(self, problem: Problem) -> tuple[np.ndarray, RidgeSums]:
        """Sum over the rows and solve; keep the sums."""
        sums = RidgeSums.of(problem.retained, problem.setting.n_classes)
        weights, bound = self._solve(sums, problem)
        if bound == inf:
            raise ToleranceNotReachedError(
                f"the ridge system is not positive definite in float64 at lam="
                f"{problem.setting.lam:g}; raise lam, or scale the features down"
            )
        return _heads.inside_ball(weights, problem), sums

    def center(self, problem: Problem, event: Event) -> Outcome:
        """Subtract the deleted rows and solve; sum afresh where there are no sums."""
        lam = problem.setting.lam
        tol = _heads.declared_tolerance(event, lam)
        event = replace(event, constants=(("tol", tol), ("lam", lam)))
        bound, passes = inf, 0
        if problem.state is not None:
            sums = problem.state
            if len(problem.deleted):
                sums = sums.without(RidgeSums.of(problem.deleted, problem.setting.n_classes))
            if len(problem.corrected):
                sums = sums.plus(RidgeSums.of(problem.added, problem.setting.n_classes))
            weights, bound = self._solve(sums, problem)
        if not bound <= tol:
            passes = 1
            sums = RidgeSums.of(problem.retained, problem.setting.n_classes)
            weights, bound = self._solve(sums, problem)
        if not bound <= tol:
            raise ToleranceNotReachedError(
                f"the gradient norm is proved to be at most {bound:.3g}, above the tolerance "
                f"{tol:.3g}: float64 can prove no more here; raise noise_std or lam, or scale the "
                "features down. Nothing was changed."
            )
        assumptions = (
            Assumption(
                "strong convexity",
                Status.BY_CONSTRUCTION,
                f"least squares, model affine in its parameters, every weight penalised with lam "
                f"= {lam:g} (T12)",
            ),
            Assumption(
                "residual",
                Status.PROVED,
                f"true gradient norm over all heads <= {tol:.6g}, the rounding of the sums over "
                "rows, of their difference and of the solve included; checked before the release, "
                "in both worlds (T17)",
                f"at most {bound:.3g}, with {passes} passes over the retained rows",
            ),
            Assumption(
                "features",
                Status.BY_CONSTRUCTION,
                "a row's features are the stored float32 numbers, the same in both worlds",
            ),
        )
        diagnostics = {"gradient_norm_bound": bound, "passes": passes}
        return Outcome(_heads.inside_ball(weights, problem), event, assumptions, diagnostics)

    @staticmethod
    def _solve(sums: RidgeSums, problem: Problem) -> tuple[np.ndarray, float]:
        reference = _heads.to_matrix(problem.reference, problem.setting.n_classes)
        return sums.solve(problem.setting.lam, reference)
