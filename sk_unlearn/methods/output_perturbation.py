"""Noise that covers the whole ball (T8)."""

from __future__ import annotations

from .. import bounds
from ..constraint import project
from ..events import Event, GaussianRelease
from .base import BALL_BY_CONSTRUCTION, OneShotMethod, Outcome, Problem, Setting


class OutputPerturbation(OneShotMethod):
    """Project onto the ball and add noise for its whole diameter (T8), any module.

    Formal for every network and honest about the price: at (1, 1e-5) the noise is 7.5 C
    per weight, so the released model is noise unless C is tiny. The reference mechanism
    that others must beat. It uses neither the retained nor the deleted rows.

    Examples
    --------
    >>> from sk_unlearn.methods import OutputPerturbation
    >>> OutputPerturbation()
    OutputPerturbation()
    """

    def event(self, setting: Setting) -> Event:
        """Announce a Gaussian release of sensitivity 2 C."""
        C = setting.C
        return GaussianRelease(bounds.ball_diameter(C), None, "ball_diameter", (("C", C),))

    def center(self, problem: Problem, event: Event) -> Outcome:
        """Return the projected weights."""
        inside = project(problem.parameters, problem.reference, problem.setting.C)
        return Outcome(inside, event, (BALL_BY_CONSTRUCTION,))
