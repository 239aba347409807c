"""From the record of what ran to (epsilon, delta), and back to the noise that is needed.

An event that no rule here covers raises; it never passes for free.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import lru_cache, singledispatch
from math import inf

from .._rounding import count, round_down, round_up, sqrt_up
from ..bounds import certified_removal_budget
from ..events import (
    Event,
    ExactRelease,
    GaussianRelease,
    ObjectivePerturbation,
    UncertifiedRelease,
)
from ..exceptions import CalibrationError, UnknownEventError
from .gaussian import (
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    gaussian_sigma,
    sensitivity_mu,
)

_TARGET = 1.0 - 2.0**-34


def _unknown(event: object) -> UnknownEventError:
    return UnknownEventError(f"no accounting rule for {event!r}; it may not be certified")


@singledispatch
def event_mu(event: Event) -> float | None:
    """Gaussian-DP parameter of an event, rounded up; None when it has none (T1).

    Raises
    ------
    UnknownEventError
        If no rule covers the event.
    """
    raise _unknown(event)


@singledispatch
def event_delta(event: Event, epsilon: float) -> float:
    """Smallest proved delta of an event at `epsilon`, rounded up (T1)."""
    raise _unknown(event)


@singledispatch
def event_epsilon(event: Event, delta: float) -> float:
    """Smallest proved epsilon of an event at `delta`, rounded up (T1)."""
    raise _unknown(event)


@singledispatch
def calibrate(event: Event, epsilon: float, delta: float) -> Event:
    """Fill in the one number of `event` that is None, so that it satisfies (epsilon, delta).

    Parameters
    ----------
    event : Event
        What a method says it would be: with its noise unknown, or with its noise fixed
        and its sensitivity unknown.
    epsilon, delta : float
        The guarantee asked for.

    Returns
    -------
    Event
        The same event, complete; rounded to the safe side. What is solved for aims 6e-11
        below `delta` (relative), so that :meth:`sk_unlearn.Certificate.verify` agrees on
        platforms whose exp and log round otherwise.

    Raises
    ------
    CalibrationError
        If everything is fixed already and buys less than what was asked for.
    UnknownEventError
        If no rule covers the event.

    Examples
    --------
    >>> from sk_unlearn.accounting import calibrate
    >>> from sk_unlearn.events import GaussianRelease
    >>> event = GaussianRelease(40.0, None, "ball_diameter", (("C", 20.0),))
    >>> round(calibrate(event, 1.0, 1e-5).sigma, 4)
    149.2253
    """
    raise _unknown(event)


@event_mu.register
def _(event: ExactRelease) -> float | None:
    return 0.0


@event_delta.register
def _(event: ExactRelease, epsilon: float) -> float:
    return 0.0


@event_epsilon.register
def _(event: ExactRelease, delta: float) -> float:
    return 0.0


@calibrate.register
def _(event: ExactRelease, epsilon: float, delta: float) -> Event:
    return event


@event_mu.register
def _(event: UncertifiedRelease) -> float | None:
    return None


@event_delta.register
def _(event: UncertifiedRelease, epsilon: float) -> float:
    return 0.0 if epsilon == inf else 1.0


@event_epsilon.register
def _(event: UncertifiedRelease, delta: float) -> float:
    return inf


@calibrate.register
def _(event: UncertifiedRelease, epsilon: float, delta: float) -> Event:
    return event


@lru_cache(maxsize=128)
def _largest_mu(epsilon: float, delta: float) -> float:
    """Solve once for a guarantee that every release of a service asks for."""
    return float(gaussian_mu(epsilon, delta))


@lru_cache(maxsize=128, typed=True)
def _mu_of(shift: float, noise: float) -> float:
    """Compute once what every release of a service spends."""
    return float(sensitivity_mu(shift, noise))


@lru_cache(maxsize=128, typed=True)
def _delta_of(mu: float, epsilon: float) -> float:
    """Compute once what every certificate of a service is verified by."""
    return float(gaussian_delta(mu, epsilon))


def _mu(event: GaussianRelease | ObjectivePerturbation) -> float:
    """Return the mu of a Gaussian shift.

    That of an objective perturbation, by its residual, rests on an assumption (T15), which a
    certificate must carry: :class:`sk_unlearn.methods.CertifiedRemoval` says so.
    """
    if isinstance(event, GaussianRelease):
        shift, noise = event.sensitivity, event.sigma
    else:
        shift, noise = event.residual, event.noise_std
    if shift is None or noise is None:
        raise CalibrationError(f"{event!r} is incomplete: calibrate it first")
    return _mu_of(shift, noise)


@event_mu.register
def _(event: GaussianRelease | ObjectivePerturbation) -> float | None:
    return _mu(event)


@event_delta.register
def _(event: GaussianRelease | ObjectivePerturbation, epsilon: float) -> float:
    return _delta_of(_mu(event), epsilon)


@event_epsilon.register
def _(event: GaussianRelease | ObjectivePerturbation, delta: float) -> float:
    return float(gaussian_epsilon(_mu(event), delta))


@calibrate.register
def _(event: GaussianRelease, epsilon: float, delta: float) -> Event:
    target = delta * _TARGET if delta < 1 else delta
    if event.sigma is None and event.sensitivity is not None:
        sigma = gaussian_sigma(event.sensitivity, epsilon, target)
        event = replace(event, sigma=float(sigma))
    elif event.sensitivity is None and event.sigma is not None:
        sensitivity = _largest_mu(epsilon, target) * event.sigma
        event = replace(event, sensitivity=sensitivity)
    require(event, epsilon, delta)
    return event


@calibrate.register
def _(event: ObjectivePerturbation, epsilon: float, delta: float) -> Event:
    if event.residual is None:
        mu = float(gaussian_mu(epsilon, delta * _TARGET if delta < 1 else delta))
        event = replace(event, residual=certified_removal_budget(event.noise_std, mu))
    require(event, epsilon, delta)
    return event


def require(event: Event, epsilon: float, delta: float) -> None:
    """Raise `CalibrationError` unless the complete `event` satisfies (epsilon, delta)."""
    if event_delta(event, epsilon) > delta:
        bought = event_epsilon(event, delta)
        raise CalibrationError(
            f"the noise is fixed by hand and buys epsilon = {bought:.6g} at delta = {delta:g}, not "
            f"the {epsilon:g} asked for; ask for epsilon >= {bought:.6g}, or let the noise be "
            "calibrated"
        )


def calibrate_share(event: Event, epsilon: float, delta: float, releases: int) -> Event:
    """Complete `event` so that `releases` of its kind together satisfy (epsilon, delta) (T19).

    Parameters
    ----------
    event : GaussianRelease
        With its noise or its sensitivity unknown.
    epsilon, delta : float
        The guarantee of all releases together.
    releases : int
        How many there will be at most; at least 1.

    Returns
    -------
    GaussianRelease
        Complete; its mu is at most that of (epsilon, delta) over the root of `releases`, rounded
        to the safe side as in :func:`calibrate`.

    Raises
    ------
    CalibrationError
        If everything is fixed already and buys less than what was asked for.
    UnknownEventError
        If the event is no Gaussian release.
    ValueError
        If `releases` is no whole number of at least 1.

    Examples
    --------
    >>> from sk_unlearn.accounting import calibrate_share
    >>> from sk_unlearn.events import GaussianRelease
    >>> event = GaussianRelease(40.0, None, "ball_diameter", (("C", 20.0),))
    >>> round(calibrate_share(event, 1.0, 1e-5, releases=4).sigma, 3)
    298.451
    """
    if not isinstance(event, GaussianRelease):
        raise UnknownEventError(f"releases of {event!r} are not known to compose")
    root = sqrt_up(Fraction(count("releases", releases)))
    mu = Fraction(_largest_mu(epsilon, delta * _TARGET)) / root
    if event.sigma is None and event.sensitivity is not None:
        event = replace(event, sigma=round_up(Fraction(event.sensitivity) / mu))
    elif event.sensitivity is None and event.sigma is not None:
        event = replace(event, sensitivity=round_down(mu * Fraction(event.sigma)))
    composed = round_up(Fraction(_mu(event)) * root)
    if gaussian_delta(composed, epsilon) > delta:
        bought = gaussian_epsilon(composed, delta)
        raise CalibrationError(
            f"{releases} releases with the noise that is fixed by hand buy epsilon = {bought:.6g} "
            f"at delta = {delta:g}, not the {epsilon:g} asked for; ask for epsilon >= "
            f"{bought:.6g}, or let the noise be calibrated"
        )
    return event
