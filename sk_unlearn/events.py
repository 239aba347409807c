"""What was done, as plain numbers: all that an accountant needs, and nothing else.

An event is a frozen record. A number that is still to be chosen is ``None``:
:func:`sk_unlearn.accounting.calibrate` solves for it. The meaning of a published
event never changes; a new mechanism gets a new event.
"""

from __future__ import annotations

from collections.abc import Mapping
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


EVENT_TYPES = (ExactRelease, GaussianRelease, UncertifiedRelease)


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
    expected = {field.name for field in fields(kind)}
    if set(values) != expected:
        raise UnknownEventError(f"{name} has the fields {sorted(values)}, not {sorted(expected)}")
    if "constants" in values:
        values["constants"] = tuple((str(k), v) for k, v in values["constants"])
    return kind(**values)
