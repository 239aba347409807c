"""Checks of a method's own parameters, which quote the bad value."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np

from ..exceptions import NotApplicableError


def require_number(owner: str, name: str, value: Any, *, zero: bool = False) -> None:
    """Refuse what is not a finite positive number (or zero, where `zero` allows it)."""
    if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(value):
        raise NotApplicableError(f"{owner}({name}={value!r}): give a finite number")
    if value < 0 or (value == 0 and not zero):
        raise NotApplicableError(
            f"{owner}({name}={value!r}): give a number {'>=' if zero else '>'} 0"
        )


def require_count(owner: str, name: str, value: Any, *, at_least: int) -> None:
    """Refuse what is not a whole number of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        raise NotApplicableError(f"{owner}({name}={value!r}): give a whole number >= {at_least}")


def require_state(owner: str, state: Any) -> None:
    """Refuse a `state` that is neither "released" nor "secret"."""
    if state not in ("released", "secret"):
        raise NotApplicableError(f"{owner}(state={state!r}): choose 'released' or 'secret'")


def require_horizon(owner: str, state: Any, horizon: Any) -> None:
    """Refuse a secret state without a horizon, and a horizon without one."""
    require_state(owner, state)
    if state == "secret":
        require_count(owner, "horizon", horizon, at_least=1)
    elif horizon is not None:
        raise NotApplicableError(
            f"{owner}(horizon={horizon!r}): with state='released' nothing composes, and no "
            "horizon is needed; leave it out, or use state='secret'"
        )
