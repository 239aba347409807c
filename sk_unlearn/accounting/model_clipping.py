"""Noisy steps that are projected onto a ball: hockey-stick contraction (T5).

The process ``x_{t+1} = Pi_{B(w_ref, C2)}(x_t - gamma (g_t + lam (x_t - w_ref))) + N(0, sigma^2 I)``
multiplies delta, at a fixed epsilon, by the contraction of one step: with ``r = 2 C2 / sigma``,

    delta_0 = 1,    delta_{t+1} = delta_t theta(e_t),    e_t = log(1 + (e^epsilon - 1) / delta_t),

where ``theta(e)`` is the delta of an r-GDP release at e (T1). The first step is that of the
Gaussian mechanism. Neither the gradients nor the learning rate enter.

It is run on log delta, so that nothing underflows, and each step is rounded up. After the first
128 steps, several are taken at once while log delta falls by at most ``J = 1/8``: with the fall
``f = -log theta`` at the start of m such steps and K a lower bound on how fast f grows along them,

    log delta_{t+m} <= log delta_t - m f (1 + K (m - 1) / 2),

because theta falls with delta. From ``d theta / d e = -e^e Q(b)`` with ``Q = 1 - Phi`` and
``b = e/r + r/2``, ``theta <= 1``, ``d e / d log delta = -(1 - e^-e)``, and e between e_t and
``e_t + J``: ``K = e^{e_t} Q((e_t + J)/r + r/2) (1 - e^{-e_t})``. A million steps are then some
hundreds of evaluations, and sigma is within 2e-4 of that of the exact recursion.
"""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._rounding import count
from ._arrays import Array, broadcast, check, find_start, output, step_out
from ._hockey_stick import log_both, mills
from .gaussian import gaussian_mu, sensitivity_mu

_U = 2.0**-53
_EXACT = 128
_JUMP = 2.0**-3
_UNDERFLOW = -746.0


def model_clipping_delta(
    radius: ArrayLike, sigma: ArrayLike, steps: int, epsilon: ArrayLike
) -> float | Array:
    """Return the delta at `epsilon` after noisy steps projected onto a ball (T5).

    Parameters
    ----------
    radius : float or array
        C2, of the ball that every step is projected onto before its noise.
    sigma : float or array
        Standard deviation of the noise, per weight and step.
    steps : int
        T, the number of steps that run.
    epsilon : float or array
        Finite, at least 0.

    Returns
    -------
    float or ndarray
        Rounded up; never 0 unless the radius is (the smallest positive float stands for less), and
        never more after more steps.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Asoodeh et al. 2020; Koloskova et al. 2025, Thm 4.2.

    Examples
    --------
    >>> model_clipping_delta(1.0, 0.5, steps=39, epsilon=1.0) > 1e-5
    True
    >>> model_clipping_delta(1.0, 0.5, steps=40, epsilon=1.0) <= 1e-5
    True
    """
    C2, noise = check("radius", radius, finite=True), check("sigma", sigma)
    C2, noise, epsilon = broadcast(C2, noise, check("epsilon", epsilon, finite=True))
    ratio = np.asarray(sensitivity_mu(2 * C2, noise))
    log_delta = _log_delta(ratio.ravel(), epsilon.ravel(), count("steps", steps))
    delta = np.minimum(np.nextafter(np.exp(log_delta) * (1 + 4 * _U), inf), 1.0)
    return output(np.where(C2 == 0, 0.0, delta.reshape(C2.shape)))


def model_clipping_sigma(
    radius: ArrayLike, epsilon: ArrayLike, delta: ArrayLike, steps: int
) -> float | Array:
    """Return the noise that makes `steps` noisy projected steps (epsilon, delta) (T5).

    Parameters
    ----------
    radius, epsilon, steps
        As in :func:`model_clipping_delta`.
    delta : float or array
        In (0, 1).

    Returns
    -------
    float or ndarray
        Standard deviation per weight and step, rounded up: with it,
        ``model_clipping_delta(...) <= delta`` holds for floats.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> f"{model_clipping_sigma(0.5, 1.0, 1e-5, steps=1):.6f}"
    '3.730632'
    >>> 0.24 < model_clipping_sigma(0.5, 1.0, 1e-5, steps=40) < 0.25
    True
    """
    shape, C2, epsilon, delta = _flat(
        check("radius", radius, finite=True),
        check("epsilon", epsilon, finite=True),
        check("delta", delta, most=1.0),
    )
    one_step = np.asarray(gaussian_mu(epsilon, delta))
    hopeless = 38.5 + np.sqrt(38.5**2 + 2 * epsilon)

    def excess(ratio: Array, epsilon: Array, delta: Array) -> Array:
        log_delta = np.minimum(_log_delta(ratio, epsilon, steps), -1e-300)
        return np.log(-np.log(delta)) - np.log(-log_delta)

    tolerance = 1e-15 if steps <= _EXACT else 1e-6
    low = one_step * (1 - 1e-12)
    ratio = find_start(excess, low, hopeless, epsilon, delta, tolerance=tolerance)
    start = 2 * C2 / ratio

    def holds(noise: Array) -> NDArray[np.bool_]:
        return np.asarray(model_clipping_delta(C2, noise, steps, epsilon) <= delta)

    return output(step_out(start, start, 1.0, holds).reshape(shape))


def _log_delta(ratio: Array, epsilon: Array, steps: int) -> Array:
    """Return an upper bound on log delta after `steps` steps, for vectors."""
    result = np.zeros_like(ratio)
    left = np.where((ratio > 0) & (ratio < inf), float(steps), 0.0)
    log_growth = epsilon + np.log(-np.expm1(-np.where(epsilon > 0, epsilon, 1.0)))
    taken = 0
    while (active := (left > 0) & (result > _UNDERFLOW)).any():
        before, r, first, growth = (v[active] for v in (result, ratio, epsilon, log_growth))
        e = np.logaddexp(0.0, growth - before)
        e *= 1 - _U * (8 + 4 * (np.abs(growth) + np.abs(before)))
        e = np.where(first > 0, np.maximum(e, first), 0.0)
        log_theta = log_both(r, e)[0]
        jump, extra = np.ones_like(before), np.zeros_like(before)
        if taken >= _EXACT:
            slow = np.floor(_JUMP / np.maximum(-log_theta, 1e-300))
            jump = np.clip(slow, 1.0, left[active])
            extra = _slope(r, e) * (jump - 1) / 2
        result[active] = (before + jump * log_theta * (1 + extra)) * (1 - 4 * _U)
        left[active] -= jump
        taken += 1
    return np.where(ratio == 0, -inf, result)


def _slope(ratio: Array, e: Array) -> Array:
    a = (e + _JUMP) / ratio - ratio / 2
    slope = -np.expm1(-e) * np.exp(-_JUMP - 0.5 * a * a) / np.sqrt(2 * np.pi)
    return np.asarray(slope * mills(a + ratio) * (1 - 1e-6))


def _flat(*arrays: Array) -> tuple[tuple[int, ...], Array, Array, Array]:
    first, second, third = broadcast(*arrays)
    return first.shape, first.ravel(), second.ravel(), third.ravel()
