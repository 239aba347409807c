"""Steps that are projected onto a ball before their noise (T5)."""

from __future__ import annotations

import numpy as np
from torch import nn

from ..assumptions import Assumption, Status
from ..constraint import project
from ..events import Event, ModelClippingIterations
from ._checks import require_count, require_number
from ._noisy import (
    BATCHES,
    BatchGradient,
    Centre,
    fine_tuned,
    require_steps,
    run,
)
from .base import Outcome, Problem, Setting, UnlearningMethod


class ModelClipping(UnlearningMethod):
    r"""Certified noisy fine-tuning with clipped weights (T5), any module and loss.

    `steps` times: a gradient step on a batch of the retained rows, projection onto the ball of
    radius `radius` around the anchor, noise. Every step forgets a part of the start, however
    far away it was, and neither the gradient nor the learning rate enters the guarantee. Then
    `finetune_epochs` of the estimator's ordinary training on the retained rows (T7). By default
    the noise at (1, 1e-5) is 0.016 per weight, the size of a usual initialisation.

    Parameters
    ----------
    radius : float
        Radius of the ball around the anchor.
    learning_rate : float
        Of the noisy steps.
    steps : int
        Number of noisy steps. All of them run, or nothing is released.
    batch_size : int
        Rows in a batch of the noisy steps; at most all.
    finetune_epochs : int
        Epochs of ordinary training after the noisy steps.
    noise_std : float or None
        Standard deviation of the noise per weight and step, by hand. Then epsilon follows:
        ask for at least what it buys, or for ``epsilon=None``.

    Raises
    ------
    NotApplicableError
        At fit, when a parameter is out of range.

    Notes
    -----
    Koloskova et al. 2025, Thm 4.2, with the exact contraction of each step (Asoodeh et al. 2020).
    The guarantee is no Gaussian-DP one: the certificate's ``mu`` is None.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.methods import ModelClipping
    >>> X, y = load_iris(return_X_y=True)
    >>> method = ModelClipping(radius=0.1, steps=20, finetune_epochs=2)
    >>> clf = CertifiedNeuralClassifier(method=method, max_epochs=5, random_state=0).fit(X, y)
    >>> clf.unlearn(X[:3], y[:3], epsilon=1.0, delta=1e-5).certificate_.formal
    True
    """

    def __init__(
        self,
        radius: float = 0.02,
        learning_rate: float = 0.01,
        steps: int = 10,
        batch_size: int = 128,
        finetune_epochs: int = 10,
        noise_std: float | None = None,
    ) -> None:
        self.radius = radius
        self.learning_rate = learning_rate
        self.steps = steps
        self.batch_size = batch_size
        self.finetune_epochs = finetune_epochs
        self.noise_std = noise_std

    def check(self, module: nn.Module, criterion: nn.Module, setting: Setting) -> None:
        """Refuse parameters that are out of range."""
        owner = type(self).__name__
        for name in ("radius", "learning_rate"):
            require_number(owner, name, getattr(self, name))
        for name in ("steps", "batch_size"):
            require_count(owner, name, getattr(self, name), at_least=1)
        require_count(owner, "finetune_epochs", self.finetune_epochs, at_least=0)
        if self.noise_std is not None:
            require_number(owner, "noise_std", self.noise_std)

    def event(self, setting: Setting) -> Event:
        """Announce the noisy steps; the noise is open unless `noise_std` fixes it."""
        sigma = None if self.noise_std is None else float(self.noise_std)
        return ModelClippingIterations(float(self.radius), int(self.steps), sigma)

    def amend_obstacle(self) -> str | None:
        """Return None: (T5) is about any two starts."""
        return None

    def passes(self, setting: Setting, n_rows: int) -> float:
        """Return the passes over the retained rows that a release makes, fine-tuning included."""
        return self.steps * min(self.batch_size, n_rows) / n_rows + self.finetune_epochs

    def unlearn(self, problem: Problem, event: Event) -> Outcome:
        """Run exactly the announced steps, then fine-tune."""
        everything = np.ones(len(problem.parameters), dtype=bool)
        gradient = BatchGradient(problem, problem.parameters, everything)
        x, trace = run(
            problem,
            gradient,
            problem.parameters,
            self._step(problem, event),
            np.full(event.steps, event.sigma),
            self.batch_size,
            (problem.seed,),
        )
        require_steps(trace.steps, event.steps)
        released, fine_tuning = fine_tuned(problem, x, self.finetune_epochs)
        steps = Assumption(
            "steps",
            Status.BY_CONSTRUCTION,
            f"exactly {event.steps} steps, each projected onto ||w - anchor|| <= {event.radius:g} "
            "and then given fresh noise, in both worlds (T5)",
        )
        diagnostics = {
            "largest_gradient": trace.largest_gradient,
            "gradients_not_finite": trace.not_finite,
        }
        passes = trace.rows / len(problem.retained) + self.finetune_epochs
        seen = {"noisy_steps": [diagnostics], "passes": passes}
        return Outcome(released, event, (steps, BATCHES, *fine_tuning), seen)

    def _step(self, problem: Problem, event: ModelClippingIterations) -> Centre:
        anchor, keep = problem.reference, 1.0 - self.learning_rate * problem.setting.lam

        def centre(x: np.ndarray, g: np.ndarray) -> np.ndarray:
            moved = x - anchor
            moved *= keep
            g *= self.learning_rate
            moved -= g
            moved += anchor
            inside = project(moved, anchor, event.radius)
            assert np.linalg.norm(inside - anchor) <= event.radius
            return inside

        return centre
