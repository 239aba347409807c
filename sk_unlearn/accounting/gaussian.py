"""The Gaussian mechanism: mu, (epsilon, delta) and sigma, rounded to the safe side.

Every function is a scalar-or-array function: scalars give a Python float, arrays broadcast.

What is solved for is stepped outward until the accountant agrees: the float inequality
``gaussian_delta(...) <= delta`` holds for everything that is returned.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import erfinv, ndtri

from .._rounding import count, exact, round_up, sqrt_up
from ._arrays import Array, broadcast, check, find_start, output, step_out
from ._hockey_stick import delta_up, log_odds

_U = 2.0**-53
_LARGEST_MU = 1e150


def gaussian_delta(mu: ArrayLike, epsilon: ArrayLike) -> float | Array:
    """Return the delta of a mu-GDP release at `epsilon` (T1).

    Parameters
    ----------
    mu : float or array
        Sensitivity over noise standard deviation; in [0, inf].
    epsilon : float or array
        In [0, inf].

    Returns
    -------
    float or ndarray
        ``Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2)``, rounded up: 0 only for
        ``mu = 0`` (or an infinite epsilon), 1 for an infinite mu.

    Raises
    ------
    ValueError
        If an argument is NaN or negative.

    Notes
    -----
    Balle and Wang 2018, Thm 8; Dong, Roth and Su 2022, Cor. 2.13.

    Examples
    --------
    >>> f"{gaussian_delta(1.0, 1.0):.6f}"
    '0.126937'
    """
    mu, epsilon = broadcast(check("mu", mu), check("epsilon", epsilon))
    return output(delta_up(mu, epsilon))


def gaussian_epsilon(mu: ArrayLike, delta: ArrayLike) -> float | Array:
    """Return the smallest epsilon of a mu-GDP release at `delta` (T1).

    Parameters
    ----------
    mu : float or array
        In [0, inf].
    delta : float or array
        In [0, 1].

    Returns
    -------
    float or ndarray
        Rounded up: ``gaussian_delta(mu, result) <= delta`` holds for floats. Infinite for an
        infinite mu, and for ``delta = 0 < mu``.

    Raises
    ------
    ValueError
        If an argument is NaN or out of range.

    Examples
    --------
    >>> f"{gaussian_epsilon(1.0, 1e-5):.5f}"
    '4.37718'
    """
    mu, delta = broadcast(check("mu", mu), check("delta", delta, most=1.0))
    result = np.full(mu.shape, inf)
    result[delta_up(mu, np.zeros_like(mu)) <= delta] = 0.0
    solve = (result == inf) & (mu < _LARGEST_MU) & (delta > 0)
    m, d = mu[solve], delta[solve]
    top = m * (m / 2 - ndtri(d)) * (1 + 1e-12)
    share = -find_start(
        lambda x, m, top, t: log_odds(m, -x * top) - t,
        -np.ones_like(m),
        np.zeros_like(m),
        m,
        top,
        _logit(d),
    )
    start = share * top
    result[solve] = step_out(start, m * (1 + m) + start, 1.0, lambda x: delta_up(m, x) <= d)
    return output(result)


def gaussian_mu(epsilon: ArrayLike, delta: ArrayLike) -> float | Array:
    """Return the largest mu whose release satisfies (epsilon, delta) (T1).

    Parameters
    ----------
    epsilon : float or array
        Finite, at least 0.
    delta : float or array
        In (0, 1).

    Returns
    -------
    float or ndarray
        Rounded down: ``gaussian_delta(result, epsilon) <= delta`` holds for floats.

    Raises
    ------
    ValueError
        If an argument is NaN or out of range.

    Examples
    --------
    >>> f"{gaussian_mu(1.0, 1e-5):.6f}"
    '0.268051'
    """
    epsilon, delta = _check_target(epsilon, delta)
    z = -ndtri(delta)
    zero_overlap = np.sqrt(2.0) * np.sqrt(epsilon)
    reach = np.hypot(z, zero_overlap) + np.abs(z)
    low = np.where(z > 0, zero_overlap * (zero_overlap / np.maximum(reach, 1e-300)), reach)
    low = np.maximum(low, np.sqrt(2 * np.pi) * delta) * (1 - 1e-9)
    half = np.sqrt(2.0) * erfinv(delta)
    high = (half + np.hypot(half, zero_overlap)) * (1 + 1e-9)
    start = np.exp(
        find_start(
            lambda x, e, t: log_odds(np.exp(x), e) - t,
            np.log(low),
            np.log(np.maximum(high, low)),
            epsilon,
            _logit(delta),
        )
    )
    return output(step_out(start, start, -1.0, lambda x: delta_up(x, epsilon) <= delta))


def gaussian_sigma(
    sensitivity: ArrayLike,
    epsilon: ArrayLike,
    delta: ArrayLike,
    calibration: str = "analytic",
) -> float | Array:
    """Return the noise standard deviation that makes a release (epsilon, delta).

    Parameters
    ----------
    sensitivity : float or array
        Euclidean distance of the two worlds' outputs; finite, at least 0.
    epsilon : float or array
        Finite, at least 0.
    delta : float or array
        In (0, 1).
    calibration : {"analytic", "classical"}
        ``"analytic"``: the least noise there is (T1). ``"classical"``, for reproduction:
        ``sensitivity / epsilon * sqrt(2 ln(1.25 / delta))``, proved for epsilon < 1 only (T2).

    Returns
    -------
    float or ndarray
        Per coordinate, in the unit of `sensitivity`; rounded up, so that
        ``gaussian_delta(sensitivity_mu(sensitivity, result), epsilon) <= delta`` holds for floats.

    Raises
    ------
    ValueError
        If an argument is out of range, or for ``"classical"`` with epsilon >= 1.

    Examples
    --------
    >>> f"{gaussian_sigma(1.0, 1.0, 1e-5):.6f}"
    '3.730632'
    """
    distance = check("sensitivity", sensitivity, finite=True)
    epsilon, delta = _check_target(epsilon, delta)
    distance, epsilon, delta = broadcast(distance, epsilon, delta)
    if calibration == "classical":
        bad = ~((epsilon > 0) & (epsilon < 1))
        if bad.any():
            raise ValueError(
                f"calibration='classical' at epsilon={epsilon[bad][0]!s}: that formula is proved "
                "for 0 < epsilon < 1 only, and false for a large epsilon (from 8.42 on at "
                "delta = 1e-5); use calibration='analytic'"
            )
        start = distance / epsilon * np.sqrt(2 * (np.log(1.25) - np.log(delta))) * (1 + 16 * _U)
    elif calibration == "analytic":
        with np.errstate(all="ignore"):
            start = distance / np.asarray(gaussian_mu(epsilon, delta))
    else:
        raise ValueError(f"calibration={calibration!r}; choose 'analytic' or 'classical'")
    start = np.where(distance > 0, np.maximum(start, 5e-324), 0.0)
    return output(
        step_out(
            start,
            np.maximum(start, 1e-300),
            1.0,
            lambda x: delta_up(_ratio_up(distance, x), epsilon) <= delta,
        )
    )


def sensitivity_mu(sensitivity: ArrayLike, sigma: ArrayLike) -> float | Array:
    """Return the mu of Gaussian noise: ``sensitivity / sigma``, rounded up (T1).

    Parameters
    ----------
    sensitivity, sigma : float or array
        In [0, inf]. Nothing to hide (sensitivity 0) gives 0, no noise infinity.

    Returns
    -------
    float or ndarray
        Gaussian-DP parameter.

    Raises
    ------
    ValueError
        If an argument is NaN or negative.

    Examples
    --------
    >>> round(sensitivity_mu(1.0, 4.0), 12)
    0.25
    """
    distance, noise = broadcast(check("sensitivity", sensitivity), check("sigma", sigma))
    return output(_ratio_up(distance, noise))


def compose(mus: ArrayLike) -> float:
    """Return the mu of adaptively composed releases: the root of the sum of squares (T3).

    Parameters
    ----------
    mus : array-like
        Gaussian-DP parameters, in [0, inf]; empty gives 0.

    Returns
    -------
    float
        Rounded up once; exact sums, so that the order does not matter.

    Raises
    ------
    ValueError
        If one is NaN or negative.

    Examples
    --------
    >>> compose([3.0, 4.0])
    5.0
    """
    values = check("mus", mus).ravel()
    if np.isinf(values).any():
        return inf
    return round_up(sqrt_up(sum((Fraction(m) ** 2 for m in values.tolist()), Fraction(0))))


def group_delta(epsilon: float, delta: float, k: int) -> tuple[float, float]:
    """Return the guarantee for a group of `k` rows, given that for one row (T3).

    For guarantees with additive per-row sensitivity, such as differentially private training.

    Parameters
    ----------
    epsilon, delta : float
        The guarantee for one row; ``epsilon >= 0`` and ``0 <= delta <= 1``.
    k : int
        Number of rows.

    Returns
    -------
    epsilon, delta : float
        ``k epsilon`` and ``delta (e^(k epsilon) - 1) / (e^epsilon - 1)``, at most 1, each rounded
        up. They belong together: the delta is proved at this epsilon.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> group_delta(0.0, 1e-6, 4)
    (0.0, 4e-06)
    """
    one, size = exact("epsilon", epsilon, at_least=0), count("k", k)
    share = exact("delta", delta, at_least=0, at_most=1)
    whole = round_up(size * one)
    if size == 1 or share == 0 or one == 0:
        return whole, min(1.0, round_up(size * share))
    grown = np.expm1(-whole) / np.expm1(-float(one))
    log_delta = np.log(delta) + (size - 1) * float(one) + np.log(grown)
    slack = _U * (32 + 4 * abs(np.log(delta)) + 4 * whole)
    return whole, float(min(1.0, np.nextafter(np.exp(min(log_delta + slack, 1.0)), inf)))


def _check_target(epsilon: ArrayLike, delta: ArrayLike) -> tuple[Array, Array]:
    level = check("delta", delta, most=1.0)
    bad = (level == 0) | (level == 1)
    if bad.any():
        raise ValueError(
            f"delta={level[bad].flat[0]!s} must be in (0, 1): Gaussian noise buys no delta = 0"
        )
    epsilon, level = broadcast(check("epsilon", epsilon, finite=True), level)
    return epsilon, level


def _ratio_up(sensitivity: Array, sigma: Array) -> Array:
    with np.errstate(all="ignore"):
        ratio = np.nextafter(sensitivity / sigma, inf)
    ratio = np.where((sensitivity == inf) | (sigma == 0), inf, ratio)
    return np.where(sensitivity == 0, 0.0, ratio)


def _logit(delta: Array) -> Array:
    return np.log(delta) - np.log1p(-delta)
