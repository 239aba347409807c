"""The hockey-stick divergence of two Gaussians, as upper bounds that are tight to 1e-13 or so.

How delta is computed. With ``a = epsilon/mu - mu/2``, ``b = epsilon/mu + mu/2``, phi the normal
density and ``R(t) = (1 - Phi(t)) / phi(t)`` Mills' ratio, ``phi(a) = e^epsilon phi(b)``, so that
(T1) reads

    delta     = phi(a) (R(a) - R(b)),            1 - delta = phi(a) (R(-a) + R(b)).

The second is a sum, and is used when delta > 1/2. The first is a difference, which cancels when
``mu = b - a`` is small; then it is the integral of ``S = -R' = 1 - t R(t) > 0`` over [a, b], by
10-point Gauss-Legendre (truncation below 1e-18 for mu <= 1). Where S itself cancels (t > 4), its
continued fraction is used: ``S = R K`` with ``K = 1/(t + 2/(t + 3/(t + ...)))``.

Why it is safe. With rounding unit u, a and b are known to within ``3 u b``, so log phi(a) to within
``4 u |a| b``; log R, log S and the logs of their sums and integrals have slopes of at most
``1 + |a|`` there, and lose at most 100 u to cancellation. The stated bound on log delta and
log(1 - delta),

    u (128 + 8 (1 + |a|) b + 2 |log|),

covers that, and every result is moved by it. (It takes for granted that exp, log and erfcx are good
to a few units; the tests measure the whole against 60 digits.)
"""

from __future__ import annotations

from math import inf

import numpy as np
from scipy.special import erfcx

from ._arrays import Array

_U = 2.0**-53
_FARTHEST = 1e150  # where only the exponent of delta is left, and its square is finite
_LOG_SQRT_2PI = 0.5 * np.log(2 * np.pi)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1.0), 0.5 * _WEIGHTS


def log_both(mu: Array, epsilon: Array) -> tuple[Array, Array]:
    """Bound log(delta) from above and log(1 - delta) from below, for 0 < mu < inf."""
    with np.errstate(all="ignore"):
        ratio = epsilon / mu
        a = np.minimum(ratio - mu / 2, _FARTHEST)
        b = np.where(a == _FARTHEST, a + mu, ratio + mu / 2)
        density = -0.5 * a * a - _LOG_SQRT_2PI
        slack = 8 * _U * (1 + np.abs(a)) * b
        log_delta = density + _log_mills_difference(np.maximum(a, -1.0), b, mu)
        log_delta += slack + _U * (128 + 2 * np.abs(log_delta))
        log_rest = density + np.log(mills(np.abs(a)) + mills(b))
        log_rest -= slack + _U * (128 + 2 * np.abs(log_rest))
        small = (a >= -1.0) & (log_delta <= -np.log(2.0))
        return (
            np.where(small, log_delta, np.log1p(-np.exp(log_rest)) * (1 - 8 * _U)),
            np.where(small, np.log1p(-np.exp(log_delta)) * (1 + 8 * _U), log_rest),
        )


def mills(t: Array) -> Array:
    return np.asarray(np.sqrt(np.pi / 2) * erfcx(t / np.sqrt(2.0)))


def _log_mills_difference(a: Array, b: Array, mu: Array) -> Array:
    result = np.array(np.log(mills(a) - mills(b)))
    near = mu <= 1
    if near.any():
        t = a[near][:, None] + mu[near][:, None] * _NODES
        result[near] = np.log(mu[near]) + np.log((_mills_slope(t) * _WEIGHTS).sum(axis=-1))
    return result


def _mills_slope(t: Array) -> Array:
    ratio = mills(t)
    result = 1 - t * ratio
    far = t > 4
    if far.any():
        tail = x = t[far]
        for k in range(48, 1, -1):
            tail = x + k / tail
        result[far] = ratio[far] / tail
    return result


def delta_up(mu: Array, epsilon: Array) -> Array:
    """Return an upper bound on delta, for arrays of one shape."""
    result = np.where(mu == 0, 0.0, 1.0)
    result[(mu < inf) & (epsilon == inf)] = 0.0
    regular = (mu > 0) & (mu < inf) & (epsilon < inf)
    log_delta, log_rest = log_both(mu[regular], epsilon[regular])
    low = np.nextafter(np.exp(log_delta) * (1 + 4 * _U), inf)
    high = np.nextafter(1 - np.exp(log_rest) * (1 - 4 * _U), inf)
    result[regular] = np.where(log_delta < log_rest, low, np.minimum(high, 1.0))
    return result


def log_odds(mu: Array, epsilon: Array) -> Array:
    log_delta, log_rest = log_both(mu, epsilon)
    return log_delta - log_rest
