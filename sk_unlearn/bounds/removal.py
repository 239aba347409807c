"""Gradient residuals of Newton removal, and the budget that objective perturbation covers."""

from __future__ import annotations

from fractions import Fraction

from .._rounding import exact, round_down, round_up


def certified_removal_residual(
    hessian_lipschitz: float,
    data_norm: float,
    step_norm: float,
    image_norm: float,
    row_norm: float = 1.0,
) -> float:
    """Bound the gradient that one Newton removal leaves behind, in sum units (T15).

    After the exact step v the gradient of the *sum* over the retained rows is
    ``integral over t in [0, 1] of (H(w + t v) - H(w)) v = X^T D X v`` with a diagonal D whose
    entries are at most ``M' |x_i^T v| / 2 <= M' row_norm ||v|| / 2``.

    Parameters
    ----------
    hessian_lipschitz : float
        M', Lipschitz constant of the second derivative of the scalar loss
        (``head_constants("ovr", 1)``).
    data_norm : float
        Upper bound on the spectral norm of the retained rows X. A few power iterations give a
        lower bound; the Frobenius norm is an upper one.
    step_norm : float
        Norm of v.
    image_norm : float
        Norm of ``X v`` (Frobenius norm for several heads).
    row_norm : float
        Bound on the norm of a row.

    Returns
    -------
    float
        ``M' data_norm row_norm step_norm image_norm / 2``, rounded up.

    Raises
    ------
    ValueError
        If a number is negative or not finite.

    Notes
    -----
    Guo et al. 2020, Thm 2 and Cor. 1. Differs from the paper: the factor 1/2 of the integral, and
    rows of any norm. It bounds a residual; that a small residual makes the laws close is another
    statement.

    Examples
    --------
    >>> certified_removal_residual(0.25, data_norm=2.0, step_norm=0.5, image_norm=0.5)
    0.0625
    """
    factors = (
        exact("hessian_lipschitz", hessian_lipschitz, at_least=0),
        exact("data_norm", data_norm, at_least=0),
        exact("step_norm", step_norm, at_least=0),
        exact("image_norm", image_norm, at_least=0),
        exact("row_norm", row_norm, at_least=0),
    )
    product = Fraction(1, 2)
    for factor in factors:
        product *= factor
    return round_up(product)


def certified_removal_budget(noise_std: float, mu: float) -> float:
    """Return the gradient residual that objective perturbation covers: ``noise_std * mu`` (T15).

    Parameters
    ----------
    noise_std : float
        Standard deviation of the random linear term of the objective, in sum units.
    mu : float
        Gaussian-DP parameter of the guarantee.

    Returns
    -------
    float
        Budget for the accumulated residuals, in sum units, rounded down.

    Raises
    ------
    ValueError
        If a number is negative or not finite.

    Notes
    -----
    Differs from Guo et al. 2020: ``mu`` is that of the exact Gaussian accountant (T1) in place of
    ``epsilon / c`` with ``delta = 1.5 exp(-c^2 / 2)``, which is wrong for a large epsilon.

    Examples
    --------
    >>> certified_removal_budget(10.0, mu=0.5)
    5.0
    """
    return round_down(exact("noise_std", noise_std, at_least=0) * exact("mu", mu, at_least=0))
