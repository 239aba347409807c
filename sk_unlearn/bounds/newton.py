"""How far a damped Newton step lands from the retrained model, and an inexact one farther."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, inf

from .._rounding import count, exact, log_of, power_up, round_up


def _curvature(damping: float, lambda_min: float) -> Fraction:
    curvature = exact("damping", damping, at_least=0) + exact("lambda_min", lambda_min)
    if curvature <= 0:
        raise ValueError(
            f"damping={damping!r} + lambda_min={lambda_min!r} must be positive: take "
            f"damping > {-lambda_min!r}"
        )
    return curvature


def _newton(C: float, hessian_lipschitz: float, damping: float, gradient_bound: float) -> Fraction:
    radius = exact("C", C, at_least=0)
    slope = exact("hessian_lipschitz", hessian_lipschitz, at_least=0)
    stray = exact("gradient_bound", gradient_bound, at_least=0)
    return 2 * radius * (slope * radius + exact("damping", damping, at_least=0)) + stray


def _influence(gradient_norm: float, n_total: int, n_retained: int) -> Fraction:
    total, retained = count("n_total", n_total), count("n_retained", n_retained)
    if retained > total:
        raise ValueError(f"n_retained={n_retained!r} is more than n_total={n_total!r}")
    return Fraction(total, retained) * exact("gradient_norm", gradient_norm, at_least=0)


def newton_error(
    C: float,
    hessian_lipschitz: float,
    damping: float,
    lambda_min: float,
    gradient_bound: float = 0.0,
) -> float:
    """Bound the distance between an exact damped Newton step and the retrained model (T9).

    ``(2 C (M C + damping) + G) / (damping + lambda_min)``. It is at least ``2 C``, and so useless
    beside :func:`ball_diameter`, exactly when ``lambda_min <= M C + G / (2 C)``.

    Parameters
    ----------
    C : float
        Radius of the ball that both models lie in (Euclidean norm, all parameters).
    hessian_lipschitz : float
        M: Lipschitz constant of the Hessian (spectral norm) of the mean objective.
    damping : float
        Added to the Hessian before it is inverted.
    lambda_min : float
        Lower bound on the smallest eigenvalue of the Hessian of the objective, penalty included.
    gradient_bound : float
        G: bound on the norm of the retained rows' mean gradient at the retrained model.

    Returns
    -------
    float
        Euclidean distance, rounded up.

    Raises
    ------
    ValueError
        If a constant is negative or not finite, or ``damping + lambda_min <= 0``.

    Notes
    -----
    Zhang et al. 2024, Thm 3.4 and its nonconvergence extension.

    Examples
    --------
    >>> newton_error(C=1.0, hessian_lipschitz=0.5, damping=1.0, lambda_min=1.0)
    1.5
    """
    curvature = _curvature(damping, lambda_min)
    return round_up(_newton(C, hessian_lipschitz, damping, gradient_bound) / curvature)


def inexact_solve_error(residual: float, damping: float, lambda_min: float) -> float:
    """Bound the error of a step whose linear system was solved up to `residual` (T10).

    Parameters
    ----------
    residual : float
        Euclidean norm of ``(H + damping I) x - g``.
    damping, lambda_min : float
        As in :func:`newton_error`.

    Returns
    -------
    float
        ``residual / (damping + lambda_min)``, rounded up.

    Raises
    ------
    ValueError
        As :func:`newton_error`.

    Examples
    --------
    >>> inexact_solve_error(0.5, damping=1.0, lambda_min=-0.5)
    1.0
    """
    return round_up(exact("residual", residual, at_least=0) / _curvature(damping, lambda_min))


def newton_influence_error(
    gradient_norm: float, n_total: int, n_retained: int, damping: float, lambda_min: float
) -> float:
    """Bound what the influence form of the step loses when training had not converged.

    The Newton step needs the gradient of the retained rows,
    ``n_r grad F(w; D_r) = n grad F(w; D) - n_u grad F(w; D_u)``. The influence form
    ``w + (n_u / n_r) (H + damping I)^{-1} grad F(w; D_u)`` drops the first term, which is zero
    only at an exact optimum of all the rows.

    Parameters
    ----------
    gradient_norm : float
        Norm of the gradient of the mean objective over all rows at the trained model.
    n_total, n_retained : int
        Numbers of rows before and after the deletion.
    damping, lambda_min : float
        As in :func:`newton_error`.

    Returns
    -------
    float
        ``(n / n_r) gradient_norm / (damping + lambda_min)``, rounded up.

    Raises
    ------
    ValueError
        As :func:`newton_error`, or if `n_retained` exceeds `n_total`.

    Examples
    --------
    >>> newton_influence_error(0.25, n_total=200, n_retained=100, damping=1.0, lambda_min=0.0)
    0.5
    """
    lost = _influence(gradient_norm, n_total, n_retained)
    return round_up(lost / _curvature(damping, lambda_min))


def newton_distance(
    C: float,
    hessian_lipschitz: float,
    damping: float,
    lambda_min: float,
    gradient_bound: float = 0.0,
    residual: float = 0.0,
    gradient_norm: float = 0.0,
    n_total: int = 1,
    n_retained: int = 1,
) -> float:
    """Bound the distance between an inexact Newton step and the retrained model.

    The sum of :func:`newton_error`, :func:`inexact_solve_error` and, for the influence form,
    :func:`newton_influence_error`; arguments and errors are theirs.

    Returns
    -------
    float
        Euclidean distance, rounded up once.

    Examples
    --------
    >>> newton_distance(1.0, 0.5, 1.0, 1.0, residual=0.5)
    1.75
    """
    total = _newton(C, hessian_lipschitz, damping, gradient_bound)
    total += exact("residual", residual, at_least=0)
    total += _influence(gradient_norm, n_total, n_retained)
    return round_up(total / _curvature(damping, lambda_min))


def lissa_bias(
    gradient_norm: float, smallest: float, largest: float, scale: float, steps: int
) -> float:
    """Bound the bias of LiSSA's estimate of ``(E[H_i] + damping I)^{-1} g`` (T11).

    With ``B = E[H_i] + damping I`` the mean of ``h_s / S``, where ``h_0 = g`` and
    ``h_i = g + (I - (H_i + damping I) / S) h_{i-1}``, differs from ``B^{-1} g`` by
    ``-B^{-1} (I - B / S)^{s+1} g``. For eigenvalues x of B in [smallest, largest] the factor
    ``|1 - x / S|^{s+1} / x`` falls up to S and rises after, so it is largest at an end.
    This is the bias alone: the variance over batches comes on top, and may be infinite.

    Parameters
    ----------
    gradient_norm : float
        Euclidean norm of g.
    smallest, largest : float
        Bounds on the eigenvalues of B, damping included; ``0 < smallest <= largest``.
    scale : float
        S.
    steps : int
        s, the number of recursions after ``h_0 = g``.

    Returns
    -------
    float
        Bound on the Euclidean norm of the bias, rounded up.

    Raises
    ------
    ValueError
        If a constant is out of range.

    Notes
    -----
    Agarwal et al. 2017; Zhang et al. 2024, Prop. 3.5.

    Examples
    --------
    >>> round(lissa_bias(1.0, smallest=1.0, largest=10.0, scale=10.0, steps=99), 9)
    2.6561e-05
    """
    norm, low, high, s = _lissa(gradient_norm, smallest, largest, scale)
    power = count("steps", steps, at_least=0) + 1
    factors = [(norm / x, power_up(abs(1 - x / s), power)) for x in (low, high)]
    if norm and any(factor == inf for _, factor in factors):
        return inf
    return round_up(max(size * Fraction(factor) for size, factor in factors) if norm else norm)


def lissa_steps(
    gradient_norm: float, smallest: float, largest: float, scale: float, tolerance: float
) -> int:
    """Return the number of steps after which :func:`lissa_bias` is at most `tolerance` (T11).

    Parameters
    ----------
    gradient_norm, smallest, largest, scale : float
        As in :func:`lissa_bias`.
    tolerance : float
        Bound on the bias that is wanted; positive.

    Returns
    -------
    int
        The smallest such number.

    Raises
    ------
    ValueError
        If a constant is out of range, or ``largest >= 2 scale``: the recursion diverges.

    Examples
    --------
    >>> lissa_steps(1.0, smallest=1.0, largest=10.0, scale=10.0, tolerance=2.7e-5)
    99
    """
    norm, low, high, s = _lissa(gradient_norm, smallest, largest, scale)
    wanted = exact("tolerance", tolerance, above=0)
    if high >= 2 * s:
        raise ValueError(
            f"largest={largest!r} is not below 2 * scale={2 * scale!r}: the recursion diverges; "
            f"take scale >= {largest!r}"
        )
    arguments = (gradient_norm, smallest, largest, scale)
    steps = 0
    for x in (low, high):
        ratio, base = wanted * x / norm if norm else Fraction(1), abs(1 - x / s)
        if ratio < 1 and base > 0:
            steps = max(steps, ceil(log_of(ratio) / log_of(base)) - 1)
    while lissa_bias(*arguments, steps) > tolerance:
        steps += 1 + steps // 2**40
    while steps > 0 and lissa_bias(*arguments, steps - 1) <= tolerance:
        steps -= 1
    return steps


def _lissa(
    gradient_norm: float, smallest: float, largest: float, scale: float
) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    low = exact("smallest", smallest, above=0)
    return (
        exact("gradient_norm", gradient_norm, at_least=0),
        low,
        exact("largest", largest, at_least=smallest),
        exact("scale", scale, above=0),
    )
