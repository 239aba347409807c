"""How far apart the two worlds are when rows leave a strongly convex objective.

Throughout, the objective is ``F(w; S) = mean over S of loss + lam/2 ||w - w_ref||^2`` with a convex
loss, so that it is lam-strongly convex, and norms are Euclidean over all parameters together.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf

from .._rounding import count, exact, power_up, round_up, sqrt_up

_MOST_RELEASES = 100_000


def optimum_shift(
    lipschitz: float,
    lam: float,
    n_deleted: int,
    n_retained: int,
    reference_loss: float | None = None,
) -> float:
    """Bound how far the optimum moves when rows are deleted (T14).

    At the optimum over all rows the retained rows' gradient is ``-(n_u / n_r) grad F(w*; D_u)``.
    Its norm is at most ``(n_u / n_r) (L + lam ||w* - w_ref||)``, and ``lam ||w* - w_ref|| <= L``.
    With a non-negative loss that is at most `reference_loss` at w_ref for every row, also
    ``lam ||w* - w_ref||^2 <= reference_loss``.

    Parameters
    ----------
    lipschitz : float
        L, bound on the gradient of the loss of a row.
    lam : float
        Strong convexity; positive.
    n_deleted, n_retained : int
        Numbers of rows.
    reference_loss : float, optional
        See :attr:`HeadConstants.reference_loss`; only if the logits at w_ref are zero.

    Returns
    -------
    float
        ``n_u / (lam n_r) (L + min(L, sqrt(lam reference_loss)))``, rounded up.

    Raises
    ------
    ValueError
        If a constant is out of range.

    Notes
    -----
    Sekhari et al. 2021; Guo et al. 2020. Says nothing of an inexact optimum: add its distance.

    Examples
    --------
    >>> optimum_shift(lipschitz=1.0, lam=0.5, n_deleted=1, n_retained=100)
    0.04
    """
    return round_up(_shift(lipschitz, lam, n_deleted, n_retained, reference_loss))


def one_newton_step(distance: float, hessian_lipschitz: float, lam: float) -> float:
    """Bound the distance to the optimum after one exact Newton step (T14).

    Parameters
    ----------
    distance : float
        Distance to the optimum before.
    hessian_lipschitz : float
        M, see :attr:`HeadConstants.hessian_lipschitz`.
    lam : float
        Strong convexity; positive.

    Returns
    -------
    float
        ``M distance^2 / (2 lam)``, rounded up. More than `distance` if that was above
        ``2 lam / M``: then the step hurts.

    Raises
    ------
    ValueError
        If a constant is out of range.

    Examples
    --------
    >>> one_newton_step(0.5, hessian_lipschitz=0.25, lam=0.125)
    0.25
    """
    before = exact("distance", distance, at_least=0)
    slope = exact("hessian_lipschitz", hessian_lipschitz, at_least=0)
    return round_up(slope * before**2 / (2 * exact("lam", lam, above=0)))


def newton_steps_distance(
    lipschitz: float,
    hessian_lipschitz: float,
    lam: float,
    n_deleted: int,
    n_retained: int,
    steps: int = 1,
    training_error: float = 0.0,
    reference_loss: float | None = None,
) -> float:
    """Bound the distance between Newton steps from the trained model and the retrained one (T14).

    Parameters
    ----------
    lipschitz, lam, n_deleted, n_retained, reference_loss
        As in :func:`optimum_shift`.
    hessian_lipschitz : float
        As in :func:`one_newton_step`.
    steps : int
        Number of exact Newton steps on the retained rows; 0 is allowed.
    training_error : float
        Bound, in both worlds, on the distance of the trained model to its optimum (its gradient
        norm over lam). The retrained model takes no step.

    Returns
    -------
    float
        Euclidean distance, rounded up.

    Raises
    ------
    ValueError
        If a constant is out of range.

    Examples
    --------
    >>> newton_steps_distance(1.0, 0.1, 0.5, n_deleted=1, n_retained=100, steps=0)
    0.04
    >>> round(newton_steps_distance(1.0, 0.1, 0.5, n_deleted=1, n_retained=100), 9)
    0.00016
    """
    error = exact("training_error", training_error, at_least=0)
    distance = round_up(_shift(lipschitz, lam, n_deleted, n_retained, reference_loss) + error)
    before = None
    for _ in range(count("steps", steps, at_least=0)):
        if distance in (before, inf):
            break
        before, distance = distance, one_newton_step(distance, hessian_lipschitz, lam)
    return inf if distance == inf else round_up(Fraction(distance) + error)


def descent_distance(
    lipschitz: float,
    loss_smoothness: float,
    lam: float,
    n_deleted: int,
    n_retained: int,
    iterations: int,
    training_error: float = 0.0,
    reference_loss: float | None = None,
) -> float:
    """Bound the distance of the two worlds after descent on the retained rows (T16).

    Full-gradient steps of size ``2 / (beta + lam)`` in both worlds, with
    ``beta = loss_smoothness + lam``: each contracts the distance to the optimum by
    ``(beta - lam) / (beta + lam)``.

    Parameters
    ----------
    lipschitz, lam, n_deleted, n_retained, reference_loss
        As in :func:`optimum_shift`.
    loss_smoothness : float
        Bound on the Hessian of the loss, **without** the penalty.
    iterations : int
        Number of steps.
    training_error : float
        Bound, in both worlds, on the distance of the trained model to its optimum.

    Returns
    -------
    float
        ``q^iterations (2 training_error + shift)``, rounded up. It is the distance of one release;
        a noised iterate that is carried on has a random training error.

    Raises
    ------
    ValueError
        If a constant is out of range.

    Notes
    -----
    Neel, Roth and Sharifi-Malvajerdi 2021.

    Examples
    --------
    >>> round(descent_distance(1.0, 1.0, 0.5, n_deleted=1, n_retained=100, iterations=2), 9)
    0.01
    """
    shift = _shift(lipschitz, lam, n_deleted, n_retained, reference_loss)
    start = 2 * exact("training_error", training_error, at_least=0) + shift
    return round_up(_contraction(loss_smoothness, lam, iterations) * start)


def descent_sequence_distance(
    lipschitz: float,
    loss_smoothness: float,
    lam: float,
    n_deleted: int,
    n_retained: int,
    iterations: int,
    releases: int,
    training_error: float = 0.0,
    reference_loss: float | None = None,
    step_error: float = 0.0,
) -> float:
    """Bound the distance of the two worlds where an un-noised iterate is carried on (T16).

    Before the first release either world is within ``e_1 = training_error`` of the optimum of
    its rows. A release moves the optimum by at most the shift of (T14) and takes the steps, so
    that either world is then within ``e_{j+1} = q^iterations (e_j + shift) + step_error`` of the
    optimum of the rows that are left, which are the same in both.

    Parameters
    ----------
    lipschitz, loss_smoothness, lam, n_deleted, n_retained, iterations, reference_loss
        As in :func:`descent_distance`; the counts are those of one release.
    releases : int
        How many there are at most; no more than 100,000.
    training_error : float
        Bound, in both worlds, on the distance of the trained model to its optimum.
    step_error : float
        Bound on what inexact steps add to the distance at one release.

    Returns
    -------
    float
        ``2 max e_{j+1}`` over the releases, rounded up: it holds at each of them.

    Raises
    ------
    ValueError
        If a constant is out of range.

    Notes
    -----
    Neel, Roth and Sharifi-Malvajerdi 2021, the guarantee for the output alone.

    Examples
    --------
    >>> one = {"n_deleted": 1, "n_retained": 100, "iterations": 2, "releases": 1}
    >>> round(descent_sequence_distance(1.0, 1.0, 0.5, **one), 9)
    0.02
    >>> round(descent_sequence_distance(1.0, 1.0, 0.5, **(one | {"releases": 50})), 9)
    0.026666667
    """
    shift = _shift(lipschitz, lam, n_deleted, n_retained, reference_loss)
    contraction = _contraction(loss_smoothness, lam, iterations)
    added = exact("step_error", step_error, at_least=0)
    error, largest = exact("training_error", training_error, at_least=0), Fraction(0)
    if count("releases", releases) > _MOST_RELEASES:
        raise ValueError(f"releases={releases!r}: declare at most {_MOST_RELEASES}")
    for _ in range(count("releases", releases)):
        after = round_up(contraction * (error + shift) + added)
        if after == inf:
            return inf
        error = Fraction(after)
        largest = max(largest, error)
    return round_up(2 * largest)


def _contraction(loss_smoothness: float, lam: float, iterations: int) -> Fraction:
    """Return q^iterations for steps of size ``2 / (beta + lam)``, rounded up."""
    smoothness = exact("loss_smoothness", loss_smoothness, at_least=0)
    rate = smoothness / (smoothness + 2 * exact("lam", lam, above=0))
    return Fraction(power_up(rate, count("iterations", iterations, at_least=0)))


def _shift(
    lipschitz: float, lam: float, n_deleted: int, n_retained: int, reference_loss: float | None
) -> Fraction:
    slope, convexity = exact("lipschitz", lipschitz, at_least=0), exact("lam", lam, above=0)
    pull = slope
    if reference_loss is not None:
        pull = min(pull, sqrt_up(convexity * exact("reference_loss", reference_loss, at_least=0)))
    share = Fraction(count("n_deleted", n_deleted, at_least=0), count("n_retained", n_retained))
    return share / convexity * (slope + pull)
