"""What uncertain features do to the gradient of a linear head."""

from __future__ import annotations

from .._rounding import UNIT_ROUNDOFF, count, exact, round_up
from .rounding import _evaluation_error, _gamma, _measured


def feature_gradient_error(
    *,
    n_rows: int,
    n_features: int,
    n_heads: int,
    row_norm: float,
    smoothness: float,
    weights_norm: float,
    max_error: float,
    mean_error: float,
    mean_residual_times_error: float,
    mean_row_times_error: float,
    function_error: float = 8.0,
) -> float:
    """Bound how far a head's gradient moves when each row's features move a little (T12).

    Parameters
    ----------
    n_rows, n_features, n_heads : int
        n, d (with the constant feature of a bias) and K.
    row_norm : float
        R, the largest Euclidean norm of a row of the features at hand.
    smoothness : float
        beta, of the loss in the logits, as in :func:`gradient_rounding_error`.
    weights_norm : float
        Euclidean norm of all heads together.
    max_error, mean_error : float
        Largest and mean distance ``e_i`` of a row's features from the true ones (Euclidean).
    mean_residual_times_error, mean_row_times_error : float
        Means over rows of ``||r_i|| e_i``, with residuals as computed at the features at hand,
        and of ``||x_i|| e_i``.
    function_error : float
        As in :func:`gradient_rounding_error`.

    Returns
    -------
    float
        Bound on the Euclidean distance of the two gradients in real arithmetic, means over rows,
        rounded up.

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    For one row with true features ``x' = x + d`` and residual map r,
    ``r(W x') x'^T - r(W x) x^T = r(W x) d^T + (r(W x') - r(W x)) x'^T``, so the distance is at most
    ``||r|| e + beta ||W|| e (||x|| + e)``. The mean over rows adds up; ``e^2 <= max_error e``. The
    residual ``r(W x)`` is within ``beta gamma_d R ||W|| + rho u`` of the computed one
    (:func:`gradient_rounding_error`), but for the relative error u of subtracting a label. The
    measured means are enlarged by their own rounding.

    Examples
    --------
    >>> feature_gradient_error(
    ...     n_rows=10, n_features=5, n_heads=2, row_norm=1.0, smoothness=0.25, weights_norm=4.0,
    ...     max_error=0.0, mean_error=0.0, mean_residual_times_error=0.0, mean_row_times_error=0.0)
    0.0
    """
    n, d = count("n_rows", n_rows), count("n_features", n_features)
    heads = count("n_heads", n_heads)
    if not max_error:
        return 0.0
    length = n + d * heads + d + heads + 8
    R = _measured("row_norm", row_norm, length)
    W = _measured("weights_norm", weights_norm, length)
    largest = exact("max_error", max_error, at_least=0)
    mean = _measured("mean_error", mean_error, length)
    residual = _measured("mean_residual_times_error", mean_residual_times_error, length)
    residual *= 1 + UNIT_ROUNDOFF
    row = _measured("mean_row_times_error", mean_row_times_error, length)
    beta = exact("smoothness", smoothness, at_least=0)
    evaluation = _evaluation_error(heads, exact("function_error", function_error, at_least=0))
    residual += mean * (beta * _gamma(d) * R * W + evaluation)
    return round_up(residual + beta * W * (row + largest * mean))
