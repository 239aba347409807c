"""The rule of Guo et al. for objective perturbation, which rests on an assumption (T15).

The number is that of a Gaussian shift by the residual. A certificate that uses it must carry the
assumption that the laws follow the residuals: `sk_unlearn.methods.CertifiedRemoval` says so.
"""

from __future__ import annotations

from dataclasses import replace

from ..bounds import certified_removal_budget
from ..events import Event, ObjectivePerturbation
from ..exceptions import CalibrationError
from .composition import (
    _TARGET,
    calibrate,
    event_delta,
    event_epsilon,
    event_mu,
    require,
)
from .gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu, sensitivity_mu


@event_mu.register
def _(event: ObjectivePerturbation) -> float | None:
    return _mu(event)


@event_delta.register
def _(event: ObjectivePerturbation, epsilon: float) -> float:
    return float(gaussian_delta(_mu(event), epsilon))


@event_epsilon.register
def _(event: ObjectivePerturbation, delta: float) -> float:
    return float(gaussian_epsilon(_mu(event), delta))


@calibrate.register
def _(event: ObjectivePerturbation, epsilon: float, delta: float) -> Event:
    if event.residual is None:
        mu = float(gaussian_mu(epsilon, delta * _TARGET if delta < 1 else delta))
        event = replace(event, residual=certified_removal_budget(event.noise_std, mu))
    require(event, epsilon, delta)
    return event


def _mu(event: ObjectivePerturbation) -> float:
    if event.residual is None:
        raise CalibrationError(f"{event!r} is incomplete: calibrate it first")
    return float(sensitivity_mu(event.residual, event.noise_std))
