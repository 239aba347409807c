"""The door that all unlearning methods share: a problem in, an outcome out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from torch import nn

from ..assumptions import Assumption, Status
from ..events import Event
from ..frozen_features import Features
from ..noise import NoiseSource


@dataclass(frozen=True)
class Setting:
    """What is public and fixed before any row is looked at.

    A method announces its event from this alone, so the noise cannot depend on the data.

    Parameters
    ----------
    lam, C : float
        Coefficient of the L2 penalty; radius of the ball around the anchor.
    n_parameters, n_classes : int
        Trainable weights; outputs of the module: classes, or a regressor's targets.
    parameter_names : tuple of str
        Names of the trainable tensors, in their order.
    """

    lam: float
    C: float
    n_parameters: int
    n_classes: int
    parameter_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Training rows: ``X`` float32 (n, ...), ``y`` class indices (n,) or targets (n, k) float32.

    `features` is what a frozen network below a head makes of them, where that was kept.
    """

    X: np.ndarray
    y: np.ndarray
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, positions: np.ndarray) -> Rows:
        """Return copies of some rows."""
        features = None if self.features is None else self.features.take(positions)
        return Rows(self.X[positions], self.y[positions], features)


@dataclass(frozen=True)
class Problem:
    """All that a method may see of one release; nothing in it may be modified.

    Parameters
    ----------
    setting : Setting
        Public constants.
    module, criterion : nn.Module
        The architecture and its loss (mean over rows).
    parameters, reference : ndarray of shape (p,), float64
        The present weights; the anchor.
    retained, deleted : Rows
        Rows that stay; rows that go.
    noise : NoiseSource
        Where noise comes from.
    refit : callable
        Trains from scratch on `retained`; returns the trained module, and the epochs.
    finetune : callable
        ``finetune(weights, epochs)``: ordinary training on `retained` from released weights,
        with nothing else kept; returns the new weights (p,).
    seed : int
        Public seed for batches: the same law in both worlds, new for each release.
    state : object
        What the method's ``prepare`` kept; None after a release.
    verbose : int
        Progress bars when above 0.
    corrected : ndarray of shape (n_u,) or (0,)
        For a correction: positions in `retained` of what the rows `deleted` became, in their
        order. Empty for a deletion.
    """

    setting: Setting
    module: nn.Module
    criterion: nn.Module
    parameters: np.ndarray
    reference: np.ndarray
    retained: Rows
    deleted: Rows
    noise: NoiseSource
    refit: Callable[[], tuple[nn.Module, float]]
    finetune: Callable[[np.ndarray, int], np.ndarray]
    seed: int
    state: Any = None
    verbose: int = 0
    corrected: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def added(self) -> Rows:
        """The rows that are there now and were not before: corrected ones."""
        return self.retained.take(self.corrected)

    def before(self) -> Rows:
        """Return all rows as they were, the deleted ones included."""
        kept, gone = self.retained, self.deleted
        if not len(self.corrected):
            return Rows(np.concatenate([kept.X, gone.X]), np.concatenate([kept.y, gone.y]))
        X, y = kept.X.copy(), kept.y.copy()
        X[self.corrected], y[self.corrected] = gone.X, gone.y
        return Rows(X, y)


@dataclass(frozen=True)
class Outcome:
    """What a method hands back.

    Parameters
    ----------
    parameters : ndarray of shape (p,), float64
        The released weights, noise included.
    event : Event
        The record of what ran.
    assumptions : tuple of Assumption
        What the method's theorem needed, and how well each part is founded.
    diagnostics : dict
        Measurements of this run, for the operator; ``passes``: how often the retained rows were
        gone through.
    module : nn.Module or None
        The whole released module, from methods whose release covers buffers too.
    scope : tuple of str
        What this method's statement does not say, beyond what no statement says.
    state : object
        What the next release may read instead of what ``prepare`` kept; no deleted row, and
        with ``state="released"`` nothing that was computed from un-noised weights.
    """

    parameters: np.ndarray
    event: Event
    assumptions: tuple[Assumption, ...]
    diagnostics: dict[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None
    scope: tuple[str, ...] = ()
    state: Any = None


class UnlearningMethod(BaseEstimator, ABC):
    """An unlearning method: a plain scikit-learn object with parameters and no state.

    Order of calls: :meth:`check` at the start of fit; then either ordinary training
    (``trains = True``) or none; :meth:`prepare` at the end of fit; at a deletion
    :meth:`event`, from public constants alone; the caller calibrates that event for the
    guarantee that was asked for; :meth:`unlearn` with the calibrated event.

    Attributes
    ----------
    trains : bool
        Whether fit trains by gradient steps; False for methods that solve.
    covers_buffers : bool
        Whether the statement holds for buffers computed from data (BatchNorm).
    state : str
        "released": nothing un-noised survives a release, and later ones do not weaken it (T18).
        "secret", where a method has it as a parameter: un-noised state is kept, and releases
        compose (T19).
    """

    trains = True
    state = "released"
    covers_buffers = False

    def check(self, module: nn.Module, criterion: nn.Module, setting: Setting) -> None:
        """Raise `NotApplicableError` when the theorem does not cover this setting."""

    def prepare(self, problem: Problem) -> tuple[np.ndarray, Any]:
        """Return the trained weights and whatever makes the first deletion cheap."""
        return problem.parameters, None

    def amend_obstacle(self) -> str | None:
        """Return why corrected rows are not covered, or None for methods that cover them."""
        return "its statement is about rows that leave, and says nothing of rows that come"

    @abstractmethod
    def event(self, setting: Setting) -> Event:
        """Say which event a release would be; what is to be calibrated is None."""

    @abstractmethod
    def unlearn(self, problem: Problem, event: Event) -> Outcome:
        """Run the release that `event` announced, with its numbers filled in."""


class OneShotMethod(UnlearningMethod):
    """A method that computes one point and adds noise to it once."""

    @abstractmethod
    def center(self, problem: Problem, event: Event) -> Outcome:
        """Return the outcome without its noise."""

    def unlearn(self, problem: Problem, event: Event) -> Outcome:
        """Compute the centre and release it with noise."""
        outcome = self.center(problem, event)
        return self.release(outcome, problem.noise)

    def release(self, center: Outcome, noise: NoiseSource) -> Outcome:
        """Add fresh noise to a centre; cheap, so that audits can repeat it."""
        released = noise.release(center.parameters, center.event.sigma)
        return replace(center, parameters=released)


BALL_BY_CONSTRUCTION = Assumption(
    "ball",
    Status.BY_CONSTRUCTION,
    "the weights are projected onto ||w - anchor|| <= C before the noise, in both worlds (T8)",
)
