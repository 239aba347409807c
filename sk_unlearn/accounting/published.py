"""What the noise of the published noisy fine-tuning settings really buys.

The certified unlearning settings of Koloskova et al. 2025 are named by a Renyi target rho: their
noise makes ``mu^2 / 2 = rho`` for the mu of (T4).

*What is reported.* The code behind the paper treats rho as a bound on the Renyi divergence of every
order alpha, and then chooses the order that converts best to (epsilon, delta),

    epsilon = rho + min over alpha of [ log((alpha - 1) / alpha)
                                        - (log delta + log alpha) / (alpha - 1) ],

which the largest order wins; orders up to 1,000 give the published figures to all their digits.

*What is bought.* The divergence of order alpha of two Gaussians at distance mu is
``alpha mu^2 / 2``: it grows with alpha, and rho bounds order 1 only. The process is mu-GDP with
``mu = sqrt(2 rho)``, no better at T = 1, and (T1) turns mu into epsilon. The branch of the code for
lam = 0 adds noise that is smaller by another factor sqrt(2), so that ``mu = 2 sqrt(rho)``.

At delta = 1e-5:

====== ========== ========= ==============
target reported   bought    bought, lam = 0
====== ========== ========= ==============
0.1    0.1036     1.760     2.594
1      1.0036     6.573     9.997
10     10.004     28.37     46.21
100    100.004    159.4     284.4
====== ========== ========= ==============
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Array, check, output
from .gaussian import gaussian_epsilon

_ORDERS = np.arange(2.0, 1001.0)


def reported_epsilon(renyi_target: ArrayLike, delta: ArrayLike) -> float | Array:
    """Return the epsilon that the code behind the paper reports. It is not a guarantee.

    Parameters
    ----------
    renyi_target : float or array
        rho; finite, at least 0.
    delta : float or array
        In (0, 1].

    Returns
    -------
    float or ndarray
        Rounded to nearest: a figure to reproduce, nothing to rely on.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> f"{reported_epsilon(1.0, 1e-5):.4f}"
    '1.0036'
    """
    level = check("delta", delta, most=1.0)
    if (level == 0).any():
        raise ValueError(f"delta={delta!r} must be positive")
    surcharges = np.log1p(-1 / _ORDERS) - (np.log(level)[..., None] + np.log(_ORDERS)) / (
        _ORDERS - 1
    )
    surcharge = np.maximum(np.min(surcharges, axis=-1), 0.0)
    return output(np.asarray(check("renyi_target", renyi_target, finite=True) + surcharge))


def bought_epsilon(
    renyi_target: ArrayLike, delta: ArrayLike, *, lam_is_zero: bool = False
) -> float | Array:
    """Return the epsilon that the noise of a published setting buys (T1), (T4).

    Parameters
    ----------
    renyi_target : float or array
        rho; finite, at least 0.
    delta : float or array
        In [0, 1].
    lam_is_zero : bool
        Whether the setting runs without a penalty, where the code takes another branch.

    Returns
    -------
    float or ndarray
        Rounded up.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> f"{bought_epsilon(1.0, 1e-5):.3f}"
    '6.573'
    """
    target = check("renyi_target", renyi_target, finite=True)
    mu = np.sqrt((4.0 if lam_is_zero else 2.0) * target)
    return gaussian_epsilon(np.where(target > 0, np.nextafter(mu, np.inf), 0.0), delta)
