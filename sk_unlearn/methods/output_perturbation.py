"""Noise that covers the whole ball (T8)."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from .. import bounds
from ..constraint import project
from ..events import Event, GaussianRelease
from ._checks import require_count
from ._noisy import fine_tuned
from .base import BALL_BY_CONSTRUCTION, OneShotMethod, Outcome, Problem, Setting


class OutputPerturbation(OneShotMethod):
    """Project onto the ball and add noise for its whole diameter (T8), any module.

    Formal for every network and honest about the price: at (1, 1e-5) the noise is 7.5 C
    per weight, so the released model is noise unless C is tiny. The reference mechanism
    that others must beat. Up to the noise it uses neither the retained nor the deleted rows.

    Parameters
    ----------
    finetune_epochs : int
        Epochs of the estimator's ordinary training on the retained rows after the noise, which
        cost nothing (T7).

    Raises
    ------
    NotApplicableError
        At fit, when `finetune_epochs` is no whole number of at least 0.

    Examples
    --------
    >>> from sk_unlearn.methods import OutputPerturbation
    >>> OutputPerturbation()
    OutputPerturbation()
    """

    def __init__(self, finetune_epochs: int = 0) -> None:
        self.finetune_epochs = finetune_epochs

    def check(self, module: nn.Module, criterion: nn.Module, setting: Setting) -> None:
        """Refuse a number of epochs that is none."""
        require_count("OutputPerturbation", "finetune_epochs", self.finetune_epochs, at_least=0)

    def event(self, setting: Setting) -> Event:
        """Announce a Gaussian release of sensitivity 2 C."""
        C = setting.C
        return GaussianRelease(bounds.ball_diameter(C), None, "ball_diameter", (("C", C),))

    def amend_obstacle(self) -> str | None:
        """Return None: (T8) is about the ball, whatever the rows."""
        return None

    def passes(self, setting: Setting, n_rows: int) -> float:
        """Return the passes over the retained rows that a release makes."""
        return float(self.finetune_epochs)

    def center(self, problem: Problem, event: Event) -> Outcome:
        """Return the projected weights."""
        inside = project(problem.parameters, problem.reference, problem.setting.C)
        passes = float(self.finetune_epochs)
        return Outcome(inside, event, (BALL_BY_CONSTRUCTION,), {"passes": passes})

    def unlearn(self, problem: Problem, event: Event) -> Outcome:
        """Add the noise, then fine-tune."""
        outcome = super().unlearn(problem, event)
        released, founded = fine_tuned(problem, outcome.parameters, self.finetune_epochs)
        return replace(outcome, parameters=released, assumptions=(*outcome.assumptions, *founded))
