"""Distances of any two points of a ball, and of any two points of small gradient."""

from __future__ import annotations

from .._rounding import exact, round_down, round_up


def ball_diameter(C: float) -> float:
    """Bound the distance of two points of a ball of radius `C`: ``2 C`` (T8).

    Parameters
    ----------
    C : float
        Radius, Euclidean norm.

    Returns
    -------
    float
        The diameter.

    Raises
    ------
    ValueError
        If `C` is negative or not finite.

    Examples
    --------
    >>> ball_diameter(20.0)
    40.0
    """
    return round_up(2 * exact("C", C, at_least=0))


def residual_distance(tol: float, lam: float) -> float:
    """Bound the distance of two points whose gradients are both at most `tol` (T12).

    Parameters
    ----------
    tol : float
        Bound on the norm of the true gradient of the objective, in both worlds.
    lam : float
        Strong convexity; positive.

    Returns
    -------
    float
        ``2 tol / lam`` (Euclidean distance), rounded up.

    Raises
    ------
    ValueError
        If `tol` is negative, `lam` not positive, or one of them not finite.

    Examples
    --------
    >>> residual_distance(0.5, lam=0.25)
    4.0
    """
    return round_up(2 * exact("tol", tol, at_least=0) / exact("lam", lam, above=0))


def residual_tolerance(sensitivity: float, lam: float) -> float:
    """Return the gradient norm that keeps :func:`residual_distance` within `sensitivity`.

    Parameters
    ----------
    sensitivity : float
        Euclidean distance that is wanted.
    lam : float
        Strong convexity; positive.

    Returns
    -------
    float
        ``sensitivity * lam / 2``, rounded down: the distance computed from it is at most
        `sensitivity`.

    Raises
    ------
    ValueError
        As :func:`residual_distance`.

    Examples
    --------
    >>> residual_tolerance(4.0, lam=0.25)
    0.5
    """
    return round_down(
        exact("sensitivity", sensitivity, at_least=0) * exact("lam", lam, above=0) / 2
    )
