"""The same few gradient steps in both worlds bring their models together (T16)."""

from __future__ import annotations

import numpy as np
from torch import nn

from .. import bounds
from ..assumptions import Assumption, Status
from ..events import Event, GaussianRelease
from ..exceptions import ToleranceNotReachedError
from ..head_update import SolvedHead
from . import _heads
from ._checks import require_count, require_horizon
from .base import OneShotMethod, Outcome, Problem, Setting

_ROUNDING_SHARE = 2.0**-10
_COVERED = {
    "released": Assumption(
        "what is covered",
        Status.BY_CONSTRUCTION,
        "the full internal state: no un-noised iterate is kept, and the next deletion starts from "
        "the released weights and the rows that remain (T16, T18)",
    ),
    "secret": Assumption(
        "what is covered",
        Status.BY_CONSTRUCTION,
        "the released models alone: the next deletion goes on from an un-noised iterate, which "
        "stays secret (T16, T19)",
    ),
}


class DescentToDelete(OneShotMethod):
    r"""Full-gradient steps on the retained rows, in both worlds, plus noise (T16).

    Each step of size ``2 / (beta + lam)`` brings a model closer to the optimum by the factor
    ``q = (beta - lam) / (beta + lam)``. After I steps in either world the two are at most
    ``q^I (2 e_0 + n_u / (lam n_r) (L + min(L, sqrt(lam loss_at_0))))`` apart, with e_0 the
    declared training error; rounding is added. All constants are declared, so the noise depends
    on no data. As ``1 - q`` is about ``2 lam / beta``, the number of steps that makes the noise
    small is about that of training: :class:`Residual` is cheaper.

    The paper has two guarantees, and `state` says which one is meant. With "released" it is that
    of the whole internal state: what the estimator keeps is the noised model and the rows that
    are left, and a later deletion first trains that model to the training error again, which
    makes up for the noise (T18). With "secret" it is that of the released models alone: the
    un-noised iterate is kept and later deletions go on from it, without training in between;
    whoever sees it sees the deleted rows, so that the certificate is not formal (T19). Either
    world is then within ``e_{j+1} = q^I (e_j + shift)`` of the optimum after its j-th release,
    the two at most twice that apart, and `horizon` releases compose.

    Applies to :class:`sk_unlearn.modules.LinearHead` anchored at zero, ``lam > 0``, on rows in a
    ball.

    Parameters
    ----------
    iterations : int
        I, steps at each release.
    multi_class : {"ovr", "multinomial"}
        The loss of the head, which the constants depend on (T13).
    row_norm : float
        Euclidean norm that no row exceeds, the constant feature 1 of the bias counted. Put
        :class:`sk_unlearn.preprocessing.ClipToBall` before the net; its radius 1 fits here.
    max_fraction : float
        Most deleted rows over retained rows of one release.
    tol : float
        Gradient norm that training reaches, in both worlds; Euclidean, of the mean objective,
        rounding error included. ``e_0 = tol / lam``. The rounding of the steps is allowed
        1/1024 of it.
    state : {"released", "secret"}
        What survives a release: the noised model, or also the un-noised iterate.
    horizon : int or None
        With ``state="secret"``: the most releases after fit, declared beforehand; (epsilon,
        delta) is that of all of them together, whichever row was deleted when.

    Raises
    ------
    NotApplicableError
        At fit, when the head or a parameter is not covered, or a row is outside the ball.
    DeletionRequestError
        At unlearn, beyond `max_fraction`.
    ToleranceNotReachedError
        When `tol` is missed, or rounding exceeds its share.

    Notes
    -----
    Neel, Roth and Sharifi-Malvajerdi 2021. Differs from the paper: the noise is that of the exact
    Gaussian accountant. With ``state="released"`` the model is solved to e_0 again, where the
    paper pays for the noise of the carried iterate in delta and in steps. With
    ``state="secret"`` the guarantee counts all releases after a deletion, where the paper's is of
    one of them.

    Examples
    --------
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.methods import DescentToDelete
    >>> from sk_unlearn.modules import LinearHead
    >>> X, y = [[0.0], [0.2], [0.8], [1.0]] * 50, [0, 0, 1, 1] * 50
    >>> method = DescentToDelete(iterations=10, max_fraction=0.01)
    >>> clf = CertifiedNeuralClassifier(LinearHead, lam=1.0, method=method).fit(X, y)
    >>> clf = clf.unlearn(indices=[0])
    >>> clf.certificate_.formal, clf.certificate_.sensitivity < 1e-7
    (True, True)
    """

    trains = False

    def __init__(
        self,
        iterations: int = 100,
        multi_class: str = "ovr",
        row_norm: float = 1.4143,
        max_fraction: float = 0.1,
        tol: float = 1e-8,
        state: str = "released",
        horizon: int | None = None,
    ) -> None:
        self.iterations = iterations
        self.multi_class = multi_class
        self.row_norm = row_norm
        self.max_fraction = max_fraction
        self.tol = tol
        self.state = state
        self.horizon = horizon

    def check(self, module: nn.Module, criterion: nn.Module, setting: Setting) -> None:
        """Refuse what (T16) does not cover."""
        require_count("DescentToDelete", "iterations", self.iterations, at_least=0)
        require_horizon("DescentToDelete", self.state, self.horizon)
        _heads.check_head(self, module, criterion, setting)

    def amend_obstacle(self) -> str | None:
        """Return None: k corrected rows of n move the optimum as 2 k / n deleted ones (T14)."""
        return None

    def passes(self, setting: Setting, n_rows: int) -> float:
        """Return the passes over the retained rows that a release makes."""
        return float(self.iterations)

    def event(self, setting: Setting) -> Event:
        """Announce the distance that is left after the steps."""
        constants = _heads.shift_constants(self, setting)
        constants["loss_smoothness"] = _heads.head_constants(self, setting).smoothness
        constants["iterations"] = float(self.iterations)
        rounding = _heads.error_of(self.tol * _ROUNDING_SHARE, setting.lam)
        if self.state == "secret":
            constants |= {"releases": float(self.horizon), "step_error": rounding}
            name = "descent_sequence_distance"
            distance = bounds.descent_sequence_distance(**constants)
        else:
            name = "descent_distance"
            distance = _heads.add_up(bounds.descent_distance(**constants), rounding, rounding)
        return GaussianRelease(distance, None, name, tuple(constants.items()))

    def prepare(self, problem: Problem) -> tuple[np.ndarray, SolvedHead]:
        """Solve to the declared gradient norm; keep the solution."""
        return _heads.solved(self, problem)

    def center(self, problem: Problem, event: Event) -> Outcome:
        """Take the steps, also when no row is deleted."""
        _heads.check_fraction(self, problem)
        W, passes = _heads.trained(self, problem)
        risk = _heads.head_risk(problem, problem.retained)
        smoothness = dict(event.constants)["loss_smoothness"]
        size = 2.0 / (smoothness + 2.0 * risk.lam)
        allowed, rounding = self.tol * _ROUNDING_SHARE, 0.0
        for _ in range(self.iterations):
            _, lost, gradient = risk.gradient_norm_bound(W)
            W = W - size * gradient
            # A step's error, over its size: errors add up to the largest over size * lam.
            lost += _heads.gamma(8) * (_heads.upper(gradient) + _heads.upper(W) / size)
            rounding = max(rounding, lost)
        if not rounding <= allowed:
            raise ToleranceNotReachedError(
                f"the rounding error of a gradient step is {rounding:.3g}, above its share "
                f"{allowed:.3g} of tol={self.tol:g}; raise tol or lam. Nothing was changed."
            )
        assumptions = (
            Assumption(
                "constants",
                Status.BY_CONSTRUCTION,
                f"{self.multi_class} loss on rows of norm <= {self.row_norm:g}, checked at fit; "
                f"lam = {risk.lam:g} on every weight; n_u / n_r <= {self.max_fraction:g} (T13)",
            ),
            Assumption(
                "training error",
                Status.PROVED,
                f"true gradient norm <= {self.tol:g} at the end of training, rounding error "
                "included, in both worlds (T16)",
            ),
            Assumption(
                "steps",
                Status.PROVED,
                f"{self.iterations} full-gradient steps of size 2 / (beta + lam) in both worlds, "
                f"each within {allowed:.3g} of the exact gradient (T16)",
                f"within {rounding:.3g}",
            ),
            _COVERED[self.state],
        )
        passes += risk.n_passes
        diagnostics = {"step_rounding": rounding, "step_size": size, "passes": passes}
        kept = SolvedHead(W, None) if self.state == "secret" else None
        return Outcome(_heads.inside_ball(W, problem), event, assumptions, diagnostics, state=kept)
