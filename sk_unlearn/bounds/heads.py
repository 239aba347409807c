"""Constants of the losses of a linear head (T13)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import inf, log, nextafter

from .._rounding import count, exact, round_up, sqrt_up


@dataclass(frozen=True)
class HeadConstants:
    """Upper bounds on the per-row loss of a linear head, for rows of norm at most `row_norm`.

    Attributes
    ----------
    lipschitz : float
        Norm of the gradient of the loss in the weights of all heads together; with
        ``row_norm = 1``, also of its gradient in the logits.
    smoothness : float
        Spectral norm of the Hessian of the loss; with ``row_norm = 1``, also in the logits.
    hessian_lipschitz : float
        Lipschitz constant of that Hessian (spectral norm over Euclidean norm).
    reference_loss : float
        The loss where all logits are zero.
    row_norm : float
        Bound on the Euclidean norm of a row, the constant feature of the bias included.
    """

    lipschitz: float
    smoothness: float
    hessian_lipschitz: float
    reference_loss: float
    row_norm: float = 1.0


def head_constants(multi_class: str, n_classes: int, row_norm: float = 1.0) -> HeadConstants:
    """Return the constants of a linear head, each rounded up (T13).

    Parameters
    ----------
    multi_class : {"ovr", "multinomial", "squared"}
        ``"ovr"``: the sum over the heads of binary log-losses. ``"multinomial"``: softmax.
        ``"squared"``: half the squared distance to targets, of which nothing is known: the
        gradient and the loss at zero have no bound, so those two constants are infinite.
    n_classes : int
        K, the number of heads (two classes: two heads).
    row_norm : float
        R, a declared bound on the norm of a row. The constants grow as R, R^2 and R^3.

    Returns
    -------
    HeadConstants
        Of the loss of one row, and so of its mean over rows; the penalty is not included.

    Raises
    ------
    ValueError
        If `multi_class` is unknown, or a number is out of range.

    Notes
    -----
    The derivatives of ``log(1 + e^{-z})`` are bounded by 1, 1/4 and ``1 / (6 sqrt 3)``. Stacked
    heads share no weights: their gradients add in square, and the Hessian is block diagonal.

    For softmax with probabilities p the gradient in the logits is ``p - e_y``, of norm at most
    ``sqrt 2``. Along a unit vector v the second and third derivatives of the log-partition
    function are the variance and the third central moment of the numbers v_k under p, whose range
    is at most ``sqrt 2``. A variable on an interval of length r has variance at most r^2/4 and
    third central moment at most ``r^3 / (6 sqrt 3)``. (Scale to mean m on [0, 1], ``c = 1 - m``.
    On [-m, c] the cubic lies below its chord from end to end if ``c >= 2 m``, so the moment is at
    most ``c m (c - m) <= 1 / (6 sqrt 3)``; otherwise it lies below the line through (c, c^3) that
    touches it at -c/2, so the moment is at most ``c^3 / 4 <= 2 / 27``.) The operator norm of a
    symmetric trilinear form is attained on the diagonal (Banach), so this bounds the Hessian's
    Lipschitz constant.

    Examples
    --------
    >>> head_constants("ovr", 10).smoothness
    0.25
    >>> round(head_constants("multinomial", 10).hessian_lipschitz, 5)
    0.27217
    """
    heads = count("n_classes", n_classes, at_least=2 if multi_class == "multinomial" else 1)
    norm = exact("row_norm", row_norm, above=0)
    if multi_class == "squared":
        return HeadConstants(inf, round_up(norm**2), 0.0, inf, round_up(norm))
    if multi_class == "ovr":
        lipschitz, smoothness, third = sqrt_up(Fraction(heads)), Fraction(1, 4), Fraction(1, 108)
        reference = heads * Fraction(nextafter(log(2.0), inf))
    elif multi_class == "multinomial":
        lipschitz, smoothness, third = sqrt_up(Fraction(2)), Fraction(1, 2), Fraction(2, 27)
        reference = Fraction(nextafter(log(heads), inf))
    else:
        raise ValueError(f"multi_class={multi_class!r}; choose 'ovr', 'multinomial' or 'squared'")
    return HeadConstants(
        lipschitz=round_up(lipschitz * norm),
        smoothness=round_up(smoothness * norm**2),
        hessian_lipschitz=round_up(sqrt_up(third) * norm**3),
        reference_loss=round_up(reference),
        row_norm=round_up(norm),
    )
