"""Arrays in and out of the accounting functions, and safe elementwise equation solving."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize.elementwise import find_root

from ..exceptions import CalibrationError

Array = NDArray[np.float64]

_U = 2.0**-53


def find_start(
    function: Callable[..., Array],
    low: Array,
    high: Array,
    *args: Array,
    tolerance: float = 1e-15,
) -> Array:
    """Return, elementwise, about the largest x in [low, high] with ``function(x, *args) <= 0``.

    The function rises, elementwise, from below zero to above. What comes back is where a safe
    search starts, so a bracket without a sign change is harmless: its lower end comes back.
    """
    if low.size == 0:
        return low
    found = find_root(function, (low, high), args=args, tolerances={"xrtol": tolerance})
    safe_end = np.where(found.f_bracket[0] <= 0, found.bracket[0], found.bracket[1])
    best = np.where(found.f_x <= 0, found.x, safe_end)
    return np.where(found.success, best, low)


def step_out(
    start: Array, scale: Array, direction: float, holds: Callable[[Array], NDArray[np.bool_]]
) -> Array:
    """Move `start` outward, by steps that double, until the accountant agrees."""
    result, step = start, _U
    while not (held := holds(result)).all():
        if step > 1:
            raise CalibrationError(
                f"double precision cannot express the answer near {start[~held].flat[0]!s}; ask "
                "for a less extreme (epsilon, delta)"
            )
        step *= 2
        result = np.where(held, result, start + direction * step * scale)
    return result


def check(name: str, value: ArrayLike, *, most: float = inf, finite: bool = False) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}={value!r} is not a real number or an array of them")
    array = array.astype(np.float64)
    bad = ~((array >= 0) & (array <= most)) | (finite & np.isinf(array))
    if bad.any():
        wanted = "finite and >= 0" if finite else f"in [0, {most:g}]"
        raise ValueError(f"{name}={array[bad].flat[0]!s} must be {wanted}")
    return array


def broadcast(*arrays: Array) -> tuple[Array, ...]:
    return tuple(np.array(array) for array in np.broadcast_arrays(*arrays))


def output(result: Array) -> float | Array:
    return float(result) if result.ndim == 0 else result
