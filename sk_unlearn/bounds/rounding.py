"""How far a gradient computed in float64 may be from the true one."""

from __future__ import annotations

from fractions import Fraction
from math import inf, log, nextafter

from .._rounding import UNIT_ROUNDOFF, count, exact, round_up, sqrt_up

_TINY = Fraction(1, 2**500)  # far above what squares and products lose by underflow


def gradient_rounding_error(
    *,
    n_rows: int,
    n_features: int,
    n_heads: int,
    row_norm: float,
    smoothness: float,
    lam: float,
    weights_norm: float,
    offset_norm: float,
    mean_residual_times_row: float | None = None,
    lipschitz: float | None = None,
    function_error: float = 8.0,
) -> float:
    """Bound the rounding error of a linear head's gradient computed in float64 (T12).

    The gradient is ``G = R^T X / n + lam (W - W_ref)`` with the n rows x_i of X, logits
    ``Z = X W^T``, and residuals ``r_i = grad loss(z_i)``: ``sigmoid(z) - y``, ``softmax(z) - y``,
    or ``z - y`` for half the squared error.

    Parameters
    ----------
    n_rows, n_features, n_heads : int
        n, d (with the constant feature of a bias) and K.
    row_norm : float
        R, the largest Euclidean norm of a row.
    smoothness : float
        beta, of the loss in the logits: 1/4 (binary log-loss), 1/2 (softmax), 1 (half the squared
        error); that of :func:`head_constants` for rows of norm 1.
    lam : float
        Coefficient of the penalty.
    weights_norm, offset_norm : float
        Euclidean norms of W and of ``W - W_ref``, all heads together.
    mean_residual_times_row : float, optional
        A, the mean over rows of ``||r_i|| ||x_i||`` with the residuals as computed.
    lipschitz : float, optional
        L, a bound on ``||r_i||``, in place of a measured A; needs no pass over the data.
    function_error : float
        c: relative error of the platform's exp and sigmoid, in units of ``u = 2**-53``.

    Returns
    -------
    float
        Bound on the Frobenius norm of (computed - true), rounded up.

    Raises
    ------
    ValueError
        If a number is out of range, or neither or both of `mean_residual_times_row` and
        `lipschitz` are given.

    Notes
    -----
    With ``gamma_k = k u / (1 - k u)`` a sum of k products in any order, fused or not, is within
    ``gamma_k`` times the sum of the absolute products (Higham 2002, sec. 3.1).

    1. Logits: ``||z^_i - z_i|| <= gamma_d ||x_i|| ||W||``, by Cauchy-Schwarz for each head, then
       over heads. The residual map moves them by at most beta times that.
    2. Evaluating the residual map adds at most ``rho u``. A sigmoid is within ``c u`` and its
       difference with the label within u: ``(c + 1) sqrt(K) u`` over K heads. A softmax is computed
       from ``t_k = max z - z_k``, rounded by ``t_k u``; with the K-term sum, two function
       errors and the division the relative error of p_k is at most
       ``(t_k + sum_j p_j t_j + K + 2 c + 3) u``, and ``sum_j p_j t_j <= log K`` (it is the entropy
       plus the log of the largest p). Through log-softmax, ``|log p_k|`` and ``(1 + c) log K`` are
       added. In all ``rho = max((c + 1) sqrt K, K + (4 + c) log K + 2 c + 4)``, times 1.01 for the
       products of errors.
    3. ``R^^T X`` adds ``gamma_n`` times the mean of ``||r^_i|| ||x_i||`` (the Frobenius norm of
       ``|r||x|^T``); the label's subtraction, one division or two and the final sum make
       it ``gamma_{n+4}``.
    4. The penalty: three operations, ``gamma_4 lam ||W - W_ref||``.

    So ``eta = gamma_{n+4} A + R (beta gamma_d R ||W|| + rho u) + gamma_4 lam ||W - W_ref||``, where
    A is measured or at most ``R (L + beta gamma_d R ||W|| + rho u)``. Measured norms may be the
    floats that a program computes: each is enlarged by what its own rounding can hide. Underflow is
    covered; overflow is not (the gradient must be finite), nor is a single float32 operation.

    Examples
    --------
    >>> eta = gradient_rounding_error(
    ...     n_rows=20_000, n_features=730, n_heads=10, row_norm=1.0, smoothness=0.25, lam=1e-5,
    ...     weights_norm=50.0, offset_norm=50.0, mean_residual_times_row=0.1)
    >>> 1e-13 < eta < 1e-11
    True
    """
    n, d, heads = (
        count("n_rows", n_rows),
        count("n_features", n_features),
        count("n_heads", n_heads),
    )
    norms_length = n + d * heads + d + heads + 8
    R = _measured("row_norm", row_norm, norms_length)
    W = _measured("weights_norm", weights_norm, norms_length)
    offset = _measured("offset_norm", offset_norm, norms_length)
    beta = exact("smoothness", smoothness, at_least=0)
    penalty = exact("lam", lam, at_least=0)

    logits = beta * _gamma(d) * R * W
    evaluation = _evaluation_error(heads, exact("function_error", function_error, at_least=0))
    if (mean_residual_times_row is None) == (lipschitz is None):
        raise ValueError(
            f"mean_residual_times_row={mean_residual_times_row!r} and lipschitz={lipschitz!r}: "
            "give exactly one of them"
        )
    if mean_residual_times_row is not None:
        A = _measured("mean_residual_times_row", mean_residual_times_row, norms_length)
    else:
        assert lipschitz is not None
        A = R * (exact("lipschitz", lipschitz, at_least=0) + logits + evaluation)
    underflow = (n + d + 8) * d * heads * (1 + (1 + beta) * R + penalty) * _TINY
    return round_up(
        _gamma(n + 4) * A + R * (logits + evaluation) + _gamma(4) * penalty * offset + underflow
    )


def computed_norm_bound(norm: float, n_parameters: int, rounding_error: float = 0.0) -> float:
    """Bound the norm of the true gradient by the computed norm of the computed one (T12).

    Parameters
    ----------
    norm : float
        Euclidean norm, computed in float64 in any order of summation.
    n_parameters : int
        p, the number of entries.
    rounding_error : float
        Distance of the computed gradient from the true one: :func:`gradient_rounding_error`.

    Returns
    -------
    float
        ``norm / (1 - gamma_{p+2}) + rounding_error``, rounded up.

    Raises
    ------
    ValueError
        If a number is negative or not finite.

    Examples
    --------
    >>> computed_norm_bound(1.0, n_parameters=1000) - 1.0 < 1.2e-13
    True
    """
    length = count("n_parameters", n_parameters) + 2
    error = exact("rounding_error", rounding_error, at_least=0)
    return round_up(_measured("norm", norm, length) + error)


def _gamma(k: int) -> Fraction:
    if k * UNIT_ROUNDOFF >= Fraction(1, 2):
        raise ValueError(f"a sum of {k} terms has no useful rounding bound in float64")
    return k * UNIT_ROUNDOFF / (1 - k * UNIT_ROUNDOFF)


def _measured(name: str, value: float, length: int) -> Fraction:
    """Return an upper bound on a norm of `length` terms of which `value` is the computed one."""
    return (exact(name, value, at_least=0) + length * _TINY) / (1 - _gamma(length))


def _evaluation_error(heads: int, c: Fraction) -> Fraction:
    log_heads = Fraction(nextafter(log(heads), inf)) if heads > 1 else Fraction(0)
    sigmoid = (c + 1) * sqrt_up(Fraction(heads))
    softmax = heads + (4 + c) * log_heads + 2 * c + 4
    return max(sigmoid, softmax) * Fraction(101, 100) * UNIT_ROUNDOFF
