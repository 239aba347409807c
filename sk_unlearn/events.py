"""What was done, as plain numbers: all that an accountant needs, and nothing else.

An event is a frozen record. A number that is still to be chosen is ``None``:
:func:`sk_unlearn.accounting.calibrate` solves for it. The meaning of a published
event never changes; a new mechanism gets a new event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .exceptions import UnknownEventError

Constants = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Event:
    """Base class of the records of what a release did."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready values, with its type under ``"event"``."""
        return {"event": type(self).__name__} | asdict(self)


@dataclass(frozen=True)
class ExactRelease(Event):
    """The release has the very law of retraining: epsilon = delta = 0.

    Parameters
    ----------
    how : str
        Why the two laws are the same, in words.
    """

    how: str


@dataclass(frozen=True)
class GaussianRelease(Event):
    """``v + N(0, sigma^2 I)`` where the two worlds' ``v`` are at most `sensitivity` apart (T1).

    Parameters
    ----------
    sensitivity : float or None
        Euclidean distance, over all released parameters together.
    sigma : float or None
        Standard deviation of the noise, per weight; the same number in both worlds.
    bound : str
        Name of the function of :mod:`sk_unlearn.bounds` that proves `sensitivity`.
    constants : tuple of (str, float)
        Arguments of that function. Empty until they are known.
    """

    sensitivity: float | None
    sigma: float | None
    bound: str
    constants: Constants = ()


@dataclass(frozen=True)
class UncertifiedRelease(Event):
    """Noise was added whose effect nobody has proved: epsilon is infinite.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise, per weight.
    reason : str
        Why no guarantee follows.
    """

    sigma: float
    reason: str


@dataclass(frozen=True)
class NoisyIterations(Event):
    """Noisy gradient steps from a projected start, the whole gradient clipped (T4).

    Each step is ``x - learning_rate * (clip(g) + lam * (x - anchor)) + N(0, sigma_t^2 I)``.

    Parameters
    ----------
    radius : float
        The start is projected onto ``||x - anchor|| <= radius``.
    clip_norm : float
        Euclidean norm that the gradient of all weights together is clipped to.
    learning_rate, lam : float
        ``0 <= 1 - learning_rate * lam <= 1``.
    steps : int
        Number of noisy steps, all of which ran.
    sigma : float or None
        Standard deviation of the noise of a step, per weight.
    schedule : tuple of float
        ``sigma_t / sigma`` for each step; empty when all are 1.
    """

    radius: float
    clip_norm: float
    learning_rate: float
    lam: float
    steps: int
    sigma: float | None
    schedule: tuple[float, ...] = ()


@dataclass(frozen=True)
class NoisyBlocks(Event):
    """:class:`NoisyIterations` on one block of weights after the other, the rest frozen (T6).

    Parameters
    ----------
    radii : tuple of float
        Radius of the start of each block, around its part of the anchor.
    clip_norm : float
        Euclidean norm that the gradient of the block is clipped to.
    learning_rate, lam, sigma, schedule
        As in :class:`NoisyIterations`, the same for each block; `schedule` does not decrease.
    steps : int
        Number of noisy steps of each block.
    """

    radii: tuple[float, ...]
    clip_norm: float
    learning_rate: float
    lam: float
    steps: int
    sigma: float | None
    schedule: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelClippingIterations(Event):
    """Steps that are projected onto a ball before their noise is added (T5).

    Parameters
    ----------
    radius : float
        Radius of the ball around the anchor.
    steps : int
        Number of noisy steps, all of which ran.
    sigma : float or None
        Standard deviation of the noise of a step, per weight.
    """

    radius: float
    steps: int
    sigma: float | None


@dataclass(frozen=True)
class PoissonSampledTraining(Event):
    """Training by noisy sums of clipped per-row gradients over Poisson samples (T3).

    Parameters
    ----------
    noise_multiplier : float or None
        Standard deviation of the noise of a sum over the norm that a row is clipped to.
    sample_rate : float
        Probability that a row takes part in a step; it does not depend on the data.
    steps : int
        Number of steps.
    max_deletions : int
        Size of the group of rows that is covered.
    """

    noise_multiplier: float | None
    sample_rate: float
    steps: int
    max_deletions: int


@dataclass(frozen=True)
class ObjectivePerturbation(Event):
    """Removal from a model whose objective was trained with a random linear term (T15).

    Unlike the other events it is no mechanism with a proved guarantee: that a small residual makes
    the two worlds' laws close is an assumption, which a certificate of it must carry.

    Parameters
    ----------
    noise_std : float
        Standard deviation of each entry of the random linear term, in sum units.
    residual : float or None
        Bound on the norm of the gradient, in sum units, that all removals since training and the
        trainings of both worlds have left, together.
    """

    noise_std: float
    residual: float | None


EVENT_TYPES = (
    ExactRelease,
    GaussianRelease,
    UncertifiedRelease,
    NoisyIterations,
    NoisyBlocks,
    ModelClippingIterations,
    PoissonSampledTraining,
    ObjectivePerturbation,
)


def event_from_dict(record: Mapping[str, Any]) -> Event:
    """Rebuild an event from :meth:`Event.to_dict` (or from its JSON).

    Raises
    ------
    UnknownEventError
        If the record names a type that this version does not know, or its fields differ.
    """
    values = dict(record)
    name = values.pop("event", None)
    for kind in EVENT_TYPES:
        if kind.__name__ == name:
            break
    else:
        known = ", ".join(kind.__name__ for kind in EVENT_TYPES)
        raise UnknownEventError(f"unknown event {name!r}; this version knows {known}")
    expected = {f.name for f in fields(kind)}
    if set(values) != expected:
        raise UnknownEventError(f"{name} has the fields {sorted(values)}, not {sorted(expected)}")
    try:
        return kind(**{name: _READ[name](value) for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise UnknownEventError(f"{name} cannot be read: {error}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def number(value: Any) -> float:
    """Return a number read from JSON, where infinity is the string ``"inf"``."""
    if isinstance(value, str) and value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise TypeError(f"{value!r} is no number")
    try:
        return float(value)
    except OverflowError as error:
        raise TypeError(f"{value!r} is too large") from error


def optional_number(value: Any) -> float | None:
    """Return None or :func:`number`."""
    return None if value is None else number(value)


def _count(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(number(value) for value in values)


_READ: dict[str, Callable[[Any], Any]] = {
    "how": _text,
    "reason": _text,
    "bound": _text,
    "sigma": optional_number,
    "sensitivity": optional_number,
    "radius": number,
    "radii": _numbers,
    "clip_norm": number,
    "learning_rate": number,
    "lam": number,
    "steps": _count,
    "schedule": _numbers,
    "noise_multiplier": optional_number,
    "noise_std": number,
    "residual": optional_number,
    "sample_rate": number,
    "max_deletions": _count,
    "constants": lambda pairs: tuple((_text(name), number(value)) for name, value in pairs),
}
