"""Training on Poisson samples with Gaussian noise: Rényi accounting, numbers only."""

from __future__ import annotations

from functools import lru_cache
from math import exp, expm1, inf, isfinite, log, log1p, nextafter

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp, xlog1py, xlogy

from .._rounding import count, exact
from ._inverse import smallest

_ORDERS = np.unique(np.rint(2.0 ** np.arange(1, 14, 1 / 16)).astype(np.int64))
_RELATIVE_ERROR = 2.0**-46


def sampled_gaussian_delta(
    noise_multiplier: float, sample_rate: float, steps: int, epsilon: float, group: int = 1
) -> float:
    """Return the delta at `epsilon` of training by noisy sums over Poisson samples.

    Two data sets are neighbours when one is the other without a row (or `group` rows).

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise added to a sum over the norm that a row's gradient is
        clipped to; positive.
    sample_rate : float
        Probability of a row to take part in a step, in (0, 1].
    steps : int
        Number of steps.
    epsilon : float
        Positive; may be infinite.
    group : int
        Number of rows that the statement is about.

    Returns
    -------
    float
        Rounded up, at most 1.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range.

    Notes
    -----
    Rényi divergence of integer order: Mironov, Talwar and Zhang 2019, Sec. 3.3. Conversion:
    Canonne, Kamath and Steinke 2020, Prop. 12. Group: (T3), from the statement for one row at
    ``epsilon / group``, in logarithms.

    Examples
    --------
    >>> f"{sampled_gaussian_delta(1.0, 0.01, 1000, epsilon=2.0):.2e}"
    '2.13e-05'
    """
    _check(noise_multiplier, sample_rate, steps, group)
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon!r} must be > 0")
    if epsilon == inf:
        return 0.0
    share = epsilon / group
    orders, divergence = _divergences(float(noise_multiplier), float(sample_rate))
    logs = (orders - 1) * (steps * divergence - share) + xlog1py(orders, -1 / orders)
    log_row = float(np.min(logs - np.log(orders - 1)))
    growth = _log_expm1(group * share) - _log_expm1(share)
    slack = _RELATIVE_ERROR * (16 + abs(log_row) + 2 * abs(growth) + epsilon)
    return min(1.0, exp(min(log_row + growth + slack, 1.0)) + 5e-324)


def sampled_gaussian_epsilon(
    noise_multiplier: float, sample_rate: float, steps: int, delta: float, group: int = 1
) -> float:
    """Return the smallest epsilon whose :func:`sampled_gaussian_delta` is at most `delta`.

    Parameters
    ----------
    noise_multiplier, sample_rate, steps, group
        As there.
    delta : float
        In (0, 1).

    Returns
    -------
    float
        Rounded up: the float inequality holds for what is returned. Infinite where the
        statement gives nothing below epsilon = 1e6.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range.

    Examples
    --------
    >>> round(sampled_gaussian_epsilon(1.0, 0.01, 1000, delta=1e-5), 3)
    2.108
    """
    exact("delta", delta, above=0, at_most=nextafter(1.0, 0.0))

    return smallest(
        lambda epsilon: sampled_gaussian_delta(
            noise_multiplier, sample_rate, steps, epsilon, group
        ),
        delta,
    )


def sampled_gaussian_noise(
    sample_rate: float, steps: int, epsilon: float, delta: float, group: int = 1
) -> float:
    """Return the least noise multiplier that gives (epsilon, delta).

    Parameters
    ----------
    sample_rate, steps, epsilon, delta, group
        As in :func:`sampled_gaussian_delta`; `epsilon` finite, `delta` in (0, 1).

    Returns
    -------
    float
        Rounded up: the float inequality holds for what is returned. Infinite where even 1e6
        does not suffice.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range.

    Examples
    --------
    >>> round(sampled_gaussian_noise(0.01, 1000, epsilon=1.0, delta=1e-5), 3)
    1.513
    """
    exact("epsilon", epsilon, above=0)
    exact("delta", delta, above=0, at_most=nextafter(1.0, 0.0))

    return smallest(
        lambda noise: sampled_gaussian_delta(noise, sample_rate, steps, epsilon, group), delta
    )


def _log_expm1(x: float) -> float:
    return log(expm1(x)) if x < 1 else x + log1p(-exp(-x))


@lru_cache(maxsize=64)
def _divergences(noise: float, rate: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return orders and the Rényi divergence of one step at each, rounded up."""
    return _ORDERS, np.array([_divergence(int(order), noise, rate) for order in _ORDERS])


def _divergence(order: int, noise: float, rate: float) -> float:
    k = np.arange(order + 1)
    logs = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    logs += xlogy(k, rate) + xlog1py(order - k, -rate)
    with np.errstate(over="ignore"):
        logs = logs + k * (k - 1.0) / 2 / noise / noise
    moment = float(logsumexp(logs))
    if not isfinite(moment):
        return inf
    size = 1.0 + abs(moment) + float(gammaln(order + 1))
    return (max(moment, 0.0) + _RELATIVE_ERROR * size) / (order - 1)


def _check(noise_multiplier: float, sample_rate: float, steps: int, group: int) -> None:
    exact("noise_multiplier", noise_multiplier, above=0)
    exact("sample_rate", sample_rate, above=0, at_most=1)
    count("steps", steps)
    count("group", group)
