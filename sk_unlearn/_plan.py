"""What a deletion will do and cost, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from ._validation import check_guarantee
from .accounting import calibrate, calibrate_share, event_epsilon, event_mu
from .events import Event, GaussianRelease, ModelClippingIterations, NoisyBlocks, NoisyIterations
from .exceptions import BudgetExceededError, CalibrationError

_TARGET = 1.0 - 2.0**-34


@dataclass(frozen=True)
class Plan:
    """What a deletion will do, from public constants and the number of rows alone.

    Parameters
    ----------
    method : str
        The method, with its parameters.
    epsilon, delta : float
        The guarantee.
    mu : float or None
        Gaussian-DP parameter, None where a method has none.
    event : Event
        The release, calibrated.
    sigma : float or None
        Standard deviation of the noise, per weight and step.
    steps : int
        Noisy steps, over all blocks.
    noise_norm : float or None
        Expected Euclidean norm of the noise in the weights after the last noisy step, over all
        weights; what contraction has taken away is left out.
    radius : float or None
        Both worlds start within this distance of one point.
    passes : float or None
        Passes over the training rows, fine-tuning included; None where it is not known before.
    n_parameters : int
        Weights that are released.
    deletions_left : int or None
        How many more rows the budget of a method that has one is good for, at what each cost so
        far; None where there is none, or before the first. The operator's: unlike the rest it
        depends on the deleted rows.
    """

    method: str
    epsilon: float
    delta: float
    mu: float | None
    event: Event
    sigma: float | None
    steps: int
    noise_norm: float | None
    radius: float | None
    passes: float | None
    n_parameters: int
    deletions_left: int | None = None

    @property
    def noise_over_radius(self) -> float | None:
        """Expected noise norm over the start radius: far above 1, nothing of the start is left."""
        return self.noise_norm / self.radius if self.noise_norm and self.radius else None

    def __str__(self) -> str:
        lines = [f"{self.method} at epsilon = {self.epsilon:g}, delta = {self.delta:g}"]
        if self.mu is not None:
            lines.append(f"mu                   {self.mu:.6g}")
        if self.sigma is not None:
            lines.append(
                f"sigma                {self.sigma:.6g} per weight, {self.n_parameters} weights"
            )
        if self.noise_over_radius is not None:
            lines.append(
                f"noise / start radius {self.noise_over_radius:.4g} (norm {self.noise_norm:.4g} "
                f"over {self.radius:.4g})"
            )
        if self.steps:
            lines.append(f"noisy steps          {self.steps}")
        if self.passes is not None:
            lines.append(f"passes over the rows {self.passes:.4g}, fine-tuning included")
        if self.deletions_left is not None:
            lines.append(f"deletions left       about {self.deletions_left} rows")
        return "\n  ".join(lines)

    __repr__ = __str__


class PlanMixin:
    """``plan`` for a net with ``unlearn``."""

    def plan(self, epsilon: float | None = 1.0, delta: float = 1e-5) -> Plan:
        """Return what ``unlearn`` at (epsilon, delta) would do, without running anything.

        Parameters
        ----------
        epsilon, delta : float
            The guarantee. ``epsilon=None``: what the noise that the method fixes buys.

        Returns
        -------
        Plan

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        CalibrationError
            If the method cannot give the guarantee.
        BudgetExceededError
            As ``unlearn``.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sk_unlearn import CertifiedNeuralClassifier
        >>> from sk_unlearn.methods import GradientClipping
        >>> X, y = load_iris(return_X_y=True)
        >>> method = GradientClipping(radius=0.1, clip_norm=0.1, steps=10)
        >>> clf = CertifiedNeuralClassifier(method=method, max_epochs=1).fit(X, y)
        >>> plan = clf.plan(epsilon=1.0, delta=1e-5)
        >>> plan.steps, round(plan.sigma, 4)
        (10, 0.2595)
        """
        self.check_is_fitted()
        setting = self._setting()
        event, epsilon, delta = announced(self.method_, setting, epsilon, delta, self.release_mus_)
        noise, radius, steps = _noise(event)
        passes = getattr(self.method_, "passes", None)
        left = getattr(self.method_, "deletions_left", None)
        return Plan(
            method=" ".join(repr(self.method_).split()),
            epsilon=epsilon,
            delta=delta,
            mu=event_mu(event),
            event=event,
            sigma=getattr(event, "sigma", None),
            steps=steps,
            noise_norm=None if noise is None else noise * sqrt(setting.n_parameters),
            radius=radius,
            passes=None if passes is None else passes(setting, self.n_rows_),
            n_parameters=setting.n_parameters,
            deletions_left=None if left is None else left(self.method_state_, event),
        )


def announced(
    method: Any, setting: Any, epsilon: float | None, delta: float, earlier: tuple[float, ...]
) -> tuple[Event, float, float]:
    """Return the complete event of a method's next release, and the guarantee that is asked of it.

    With ``epsilon=None`` the method must fix its noise by hand; then epsilon is what that buys.

    Parameters
    ----------
    method, setting
        Announce the event.
    epsilon, delta
        As in ``unlearn``.
    earlier : tuple of float
        The mus of the releases since fit; they count where the method has a horizon (T19).

    Raises
    ------
    DeletionRequestError
        If epsilon or delta is no guarantee.
    CalibrationError
        If no noise gives it, or the noise that would say what epsilon is, is open.
    BudgetExceededError
        If the horizon has no room for this release.
    """
    asked, delta = check_guarantee(1.0 if epsilon is None else epsilon, delta)
    event = method.event(setting)
    if epsilon is None:
        try:
            asked = event_epsilon(event, delta * _TARGET)
        except CalibrationError as error:
            raise CalibrationError(
                f"epsilon=None asks what the noise buys, but {type(method).__name__} leaves the "
                "noise to be calibrated: give epsilon, or fix the noise (noise_std) at construction"
            ) from error
    horizon = getattr(method, "horizon", None)
    if horizon is None:
        return calibrate(event, asked, delta), asked, delta
    event = calibrate_share(event, asked, delta, horizon)
    _check_budget(event_mu(event), earlier, horizon)
    return event, asked, delta


def _check_budget(mu: float, earlier: tuple[float, ...], horizon: int) -> None:
    """Refuse a release after which an earlier deletion would not hold as it was asked for.

    ``horizon`` releases whose mu is at most that of the first compose to at most what was asked
    for with the first; and so for each of them.
    """
    if len(earlier) >= horizon:
        raise BudgetExceededError(
            f"{len(earlier)} releases were made since fit, and horizon={horizon} covers no more: "
            "fit again on the rows that are left, with a larger horizon if that is too soon. "
            "Nothing was changed."
        )
    if earlier and mu > min(earlier):
        raise BudgetExceededError(
            f"this release would spend mu = {mu:.6g}, an earlier one since fit was promised that "
            f"none spends more than {min(earlier):.6g}: ask for an epsilon and delta that are not "
            "weaker than the earlier ones, or fit again. Nothing was changed."
        )


def _noise(event: Event) -> tuple[float | None, float | None, int]:
    """Return the noise per weight after the last step, the start radius, and the noisy steps."""
    if isinstance(event, GaussianRelease):
        return event.sigma, event.sensitivity / 2, 1
    if isinstance(event, ModelClippingIterations):
        return event.sigma, event.radius, event.steps
    if isinstance(event, NoisyIterations | NoisyBlocks):
        ages = np.arange(event.steps)[::-1]
        left = (1.0 - event.learning_rate * event.lam) ** ages
        noise = event.sigma * float(np.linalg.norm(left * (event.schedule or 1.0)))
        radii = event.radii if isinstance(event, NoisyBlocks) else (event.radius,)
        return noise, float(np.linalg.norm(radii)), event.steps * len(radii)
    return None, None, 0
