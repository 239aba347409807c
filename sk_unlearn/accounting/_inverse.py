"""Invert a falling delta in one positive number, to the safe side."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, log

from scipy.optimize import brentq

_LOW, _HIGH = 1e-6, 1e6


def smallest(delta_at: Callable[[float], float], delta: float) -> float:
    """Return the smallest x in [1e-6, 1e6] with ``delta_at(x) <= delta``, rounded up, or infinity.

    Parameters
    ----------
    delta_at : callable
        Does not rise with its argument.
    delta : float
        Positive.
    """

    def excess(log_x: float) -> float:
        return log(max(delta_at(exp(log_x)), 5e-324)) - log(delta)

    low, high = log(_LOW), log(_HIGH)
    if delta_at(_HIGH) > delta:
        return inf
    if delta_at(_LOW) <= delta:
        return _LOW
    x, step = float(brentq(excess, low, high, xtol=1e-13)), 1e-13
    while delta_at(exp(x)) > delta:
        x, step = x + step, 2 * step
    return exp(x)
