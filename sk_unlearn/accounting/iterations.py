"""Noisy iterations with clipped steps: privacy amplification by iteration (T4), blocks (T6).

The process starts in the ball of radius C0 around w_ref and runs

    x_{t+1} = x_t - gamma (clip(g_t, C1) + lam (x_t - w_ref)) + N(0, sigma_t^2 I),   t < T,

where g_t is any function of x_t, the retained rows and randomness that has the same law in both
worlds. With ``rho = 1 - gamma lam`` in [0, 1], after t steps

    mu_t = D_t / sqrt(V_t),      D_t = rho^t 2 C0 + 2 gamma C1 sum_{k<t} rho^k,
                                 V_t = sum_{k<t} rho^(2(t-1-k)) sigma_k^2.

Why the minimum over t <= T may be reported. From step t on the two worlds apply the same random
map to x_t (the gradients depend on x_t and the retained rows only), so the final pair is
post-processing of the pair at t, for any noise afterwards, none included: T iterations are as good
as the best t <= T. The formula itself comes from shifts a_k >= 0 whose remaining distance
``z_t = rho z_{t-1} + 2 gamma C1 - a_t`` must stay non-negative. The cheapest shifts, a_k
proportional to ``rho^(T-k) sigma_k^2``, break that at t exactly when
``D_t / V_t < rho^(T-t) D_T / V_T``, and then ``mu_t^2 = D_t D_t / V_t < D_T^2 / V_T = mu_T^2``. So
the minimum is attained where the derivation is valid, for every noise schedule.

In a block run (T6) the two worlds' maps differ (the other blocks do), and nothing of this is true:
all T steps must run, and z_t >= 0 is needed at T itself, which non-decreasing noise guarantees:
:func:`noisy_block_mu`.

Rounding: gamma lam is enclosed between neighbouring floats, D_t uses the end that makes it larger
and V_t the one that makes it smaller, and the rest of the closed forms (sums of positive terms,
through expm1 and log1p) is good to ``u (32 + 8 t |log rho|)``, by which mu is moved up.
"""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import lfilter

from .._rounding import count
from ._arrays import Array, broadcast, check, output, step_out
from ._hockey_stick import delta_up
from .gaussian import compose, gaussian_mu

_U = 2.0**-53


def noisy_iterations_mu(
    radius: ArrayLike,
    clip_norm: ArrayLike,
    learning_rate: ArrayLike,
    lam: ArrayLike,
    sigma: ArrayLike,
    steps: int,
) -> float | Array:
    """Return the Gaussian-DP parameter of `steps` noisy clipped steps (T4).

    Parameters
    ----------
    radius : float or array
        C0, of the ball around w_ref that the start is projected onto.
    clip_norm : float or array
        C1, bound on the norm of the clipped gradient of all parameters together.
    learning_rate : float or array
        gamma.
    lam : float or array
        Coefficient of the penalty, which contracts by ``rho = 1 - gamma lam``.
    sigma : float or array of shape (steps,)
        Standard deviation of the noise per weight and step. An array is a schedule sigma_t;
        then every other argument is a scalar. Otherwise the arguments broadcast.
    steps : int
        T, the number of steps that run.

    Returns
    -------
    float or ndarray
        Minimum over t <= T of the formula, rounded up; infinite if no step adds noise.

    Raises
    ------
    ValueError
        If an argument is out of range, ``gamma lam > 1``, or the schedule's length is not `steps`.

    Notes
    -----
    Shifted interpolation (Bok, Su and Altschuler 2024) on the process of Koloskova et al. 2025,
    Thm 4.1. Needs plain steps: no momentum, no adaptive step, the same w_ref and row order in both
    worlds.

    Examples
    --------
    >>> round(noisy_iterations_mu(1.0, 0.0, 0.1, 0.0, sigma=1.0, steps=4), 6)
    1.0
    """
    count("steps", steps)
    if np.ndim(sigma) > 0:
        return float(np.min(_schedule_mus(radius, clip_norm, learning_rate, lam, sigma, steps)))
    arrays = _checked(radius, clip_norm, learning_rate, lam)
    return output(_constant_noise_mu(*arrays, check("sigma", sigma), steps, best=True))


def noisy_iterations_sigma(
    radius: ArrayLike,
    clip_norm: ArrayLike,
    learning_rate: ArrayLike,
    lam: ArrayLike,
    epsilon: ArrayLike,
    delta: ArrayLike,
    steps: int,
) -> float | Array:
    """Return the constant noise that makes `steps` noisy clipped steps (epsilon, delta) (T4).

    Parameters
    ----------
    radius, clip_norm, learning_rate, lam, steps
        As in :func:`noisy_iterations_mu`.
    epsilon, delta : float or array
        The guarantee: finite epsilon >= 0, delta in (0, 1).

    Returns
    -------
    float or ndarray
        Standard deviation per weight and step, rounded up: with it,
        ``gaussian_delta(noisy_iterations_mu(...), epsilon) <= delta`` holds for floats.

    Raises
    ------
    ValueError
        As :func:`noisy_iterations_mu`.

    Examples
    --------
    >>> f"{noisy_iterations_sigma(0.5, 0.0, 0.1, 0.0, epsilon=1.0, delta=1e-5, steps=1):.6f}"
    '3.730632'
    """
    count("steps", steps)
    epsilon, delta = check("epsilon", epsilon, finite=True), check("delta", delta, most=1.0)
    C0, C1, gamma, penalty, epsilon, delta = broadcast(
        *_checked(radius, clip_norm, learning_rate, lam), epsilon, delta
    )
    unit = _constant_noise_mu(C0, C1, gamma, penalty, np.ones(()), steps, best=True)
    start = np.asarray(unit / gaussian_mu(epsilon, delta))

    def holds(noise: Array) -> NDArray[np.bool_]:
        mu = _constant_noise_mu(C0, C1, gamma, penalty, noise, steps, best=True)
        return np.asarray(delta_up(mu, epsilon) <= delta)

    return output(step_out(start, start, 1.0, holds))


def noisy_block_mu(
    radius: float,
    clip_norm: float,
    learning_rate: float,
    lam: float,
    sigma: ArrayLike,
    steps: int,
) -> float:
    """Return the Gaussian-DP parameter of one block of a block-wise run (T6).

    Parameters
    ----------
    radius, clip_norm, learning_rate, lam, sigma, steps
        As in :func:`noisy_iterations_mu`, for the block's own parameters. The other blocks are
        frozen meanwhile. A schedule must not decrease, and all `steps` must run.

    Returns
    -------
    float
        The formula after exactly `steps` steps, rounded up; compose with :func:`blocks_mu`.

    Raises
    ------
    ValueError
        As :func:`noisy_iterations_mu`, or if the schedule decreases somewhere.

    Notes
    -----
    After Dolgova and Stich 2026. With sigma = (100, 0.1) the formula is small, but a second step
    that differs between the worlds can be seen for sure.

    Examples
    --------
    >>> round(noisy_block_mu(1.0, 1.0, 0.5, 0.0, sigma=[1.0, 1.0], steps=2), 6)
    2.828427
    """
    count("steps", steps)
    if np.ndim(sigma) > 0:
        schedule = check("sigma", sigma)
        falls = np.flatnonzero(np.diff(schedule) < 0)
        if falls.size:
            t = int(falls[0])
            raise ValueError(
                f"sigma falls from {schedule[t]!s} to {schedule[t + 1]!s} at step {t + 1}: beside "
                "blocks that still differ, only non-decreasing noise is covered"
            )
        return float(_schedule_mus(radius, clip_norm, learning_rate, lam, schedule, steps)[-1])
    arrays = _checked(radius, clip_norm, learning_rate, lam)
    return float(_constant_noise_mu(*arrays, check("sigma", sigma), steps, best=False))


def blocks_mu(mus: ArrayLike) -> float:
    """Return the Gaussian-DP parameter of a block-wise run: the root of the sum of squares (T6).

    Parameters
    ----------
    mus : array-like
        One per block, each from :func:`noisy_block_mu`. Not from :func:`noisy_iterations_mu`,
        whose minimum over t does not hold beside blocks that still differ.

    Returns
    -------
    float
        Rounded up; the order of the blocks does not matter.

    Raises
    ------
    ValueError
        If there is no block, or a value is NaN or negative.

    Examples
    --------
    >>> blocks_mu([3.0, 4.0])
    5.0
    """
    if np.size(mus) == 0:
        raise ValueError(f"mus={mus!r} is empty: a block-wise run has at least one block")
    return compose(mus)


def _checked(
    radius: ArrayLike, clip_norm: ArrayLike, learning_rate: ArrayLike, lam: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    C0 = check("radius", radius, finite=True)
    C1 = check("clip_norm", clip_norm, finite=True)
    gamma = check("learning_rate", learning_rate, finite=True)
    penalty = check("lam", lam, finite=True)
    product = gamma * penalty
    if (product > 1).any():
        raise ValueError(
            f"rho = 1 - learning_rate * lam = {1 - product[product > 1].flat[0]!s} must be in "
            "[0, 1]: take learning_rate <= 1 / lam"
        )
    return C0, C1, gamma, penalty


def _constant_noise_mu(
    C0: Array, C1: Array, gamma: Array, penalty: Array, sigma: Array, steps: int, *, best: bool
) -> Array:
    C0, C1, gamma, penalty, sigma = broadcast(C0, C1, gamma, penalty, sigma)
    candidates = [np.full(C0.shape, float(steps))]
    if best:
        turn = np.clip(np.floor(_turning_point(C0, C1, gamma, penalty)), 1.0, steps)
        candidates += [turn, np.minimum(turn + 1, steps)]
    high = _product_bounds(gamma, penalty)[1]
    mus = []
    for t in candidates:
        with np.errstate(divide="ignore"):
            summed = -np.expm1(2 * t * np.log1p(-high)) / np.where(high > 0, high * (2 - high), 1)
        variance = np.where(high > 0, summed, t)
        mus.append(_mu(C0, C1, gamma, penalty, t, sigma, variance))
    return np.asarray(np.min(mus, axis=0))


def _turning_point(C0: Array, C1: Array, gamma: Array, penalty: Array) -> Array:
    """Return the real t at which the formula is least for constant noise; infinite if it falls.

    It is, up to a factor, ``(m + x (2 C0 - m)) / sqrt(1 - x^2)`` in ``x = rho^t``, with m the
    distance at t = infinity; its derivative in x vanishes once, at ``x = 1 - C0 lam / C1``.
    """
    with np.errstate(all="ignore"):
        turn = np.log1p(-C0 * penalty / C1) / np.log1p(-gamma * penalty)
        turn = np.where(penalty == 0, C0 / (gamma * C1), turn)
    return np.where(np.isnan(turn), inf, turn)


def _schedule_mus(
    radius: ArrayLike,
    clip_norm: ArrayLike,
    learning_rate: ArrayLike,
    lam: ArrayLike,
    sigma: ArrayLike,
    steps: int,
) -> Array:
    """Return the formula after 1, ..., T steps for a schedule of noise."""
    schedule = check("sigma", sigma, finite=True)
    C0, C1, gamma, penalty = _checked(radius, clip_norm, learning_rate, lam)
    if schedule.shape != (steps,) or any(a.ndim for a in (C0, C1, gamma, penalty)):
        raise ValueError(
            f"sigma of shape {schedule.shape} is no schedule for steps={steps!r}: pass one value "
            "per step, and scalars for everything else"
        )
    largest = schedule.max()
    t = np.arange(1.0, steps + 1)
    keep = np.nextafter(1 - _product_bounds(gamma, penalty)[1], 0.0) ** 2 * (1 - 2 * _U)
    unit = lfilter([1.0], [1.0, -keep], (schedule / (largest or 1.0)) ** 2)
    mus = _mu(C0, C1, gamma, penalty, t, np.asarray(largest), unit * (1 - 8 * _U * t))
    return mus


def _product_bounds(gamma: Array, penalty: Array) -> tuple[Array, Array]:
    product = gamma * penalty
    positive = (gamma > 0) & (penalty > 0)
    return (
        np.where(positive, np.maximum(np.nextafter(product, -inf), 0.0), 0.0),
        np.where(positive, np.minimum(np.nextafter(product, inf), 1.0), 0.0),
    )


def _mu(
    C0: Array, C1: Array, gamma: Array, penalty: Array, t: Array, sigma: Array, variance: Array
) -> Array:
    """Return ``D_t / (sigma sqrt(variance))``, rounded up."""
    low = _product_bounds(gamma, penalty)[0]
    exponent = t * np.log1p(-low)
    pushes = np.where(low > 0, -np.expm1(exponent) / np.where(low > 0, low, 1.0), t)
    push = np.where((gamma > 0) & (C1 > 0), np.nextafter(2 * gamma * C1, inf), 0.0)
    distance = np.nextafter(2 * C0 * np.exp(exponent) + push * pushes, inf)
    slack = _U * (32 + 8 * np.abs(exponent))
    with np.errstate(all="ignore"):
        mu = np.nextafter(distance / (sigma * np.sqrt(variance)) * (1 + slack), inf)
    mu = np.where((sigma == 0) | (variance <= 0), inf, mu)
    return np.where((C0 == 0) & (push == 0), 0.0, mu)
