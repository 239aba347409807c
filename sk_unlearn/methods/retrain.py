"""Train again without the deleted rows."""

from __future__ import annotations

import numpy as np
from torch.nn.utils import parameters_to_vector

from ..assumptions import Assumption, Status
from ..events import Event, ExactRelease
from .base import Outcome, Problem, Setting, UnlearningMethod


class Retrain(UnlearningMethod):
    """A cold fit on the retained rows: exact, epsilon = delta = 0, any module.

    What every other method is measured against, and the safe default for networks whose
    deletion cannot be certified cheaply.

    Examples
    --------
    >>> from sk_unlearn.methods import Retrain
    >>> Retrain()
    Retrain()
    """

    covers_buffers = True

    def event(self, setting: Setting) -> Event:
        """Announce an exact release."""
        return ExactRelease("trained from scratch on the retained rows")

    def amend_obstacle(self) -> str | None:
        """Return None: it trains on what rows there are."""
        return None

    def unlearn(self, problem: Problem, event: Event) -> Outcome:
        """Train from scratch."""
        module, passes = problem.refit()
        trained = [p.detach() for p in module.parameters() if p.requires_grad]
        vector = parameters_to_vector(trained).cpu().numpy().astype(np.float64)
        assumption = Assumption(
            "retraining",
            Status.BY_CONSTRUCTION,
            "the same training as fit, from a fresh initialisation, on the retained rows alone",
        )
        return Outcome(vector, event, (assumption,), {"passes": passes}, module)
