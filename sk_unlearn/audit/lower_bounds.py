"""Lower confidence bounds on the privacy loss, from many runs of the two worlds.

A deletion is (epsilon, delta)-certified only if *no* test tells a release after the deletion from
a release of a model that never saw the rows with smaller error rates than (T0) allows. A test
whose error rates are smaller, with a stated confidence, refutes the certificate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainccinv, ndtri
from sklearn.utils import check_random_state

__all__ = ["ErrorRates", "epsilon_lower_bound", "held_out_error_rates", "mu_lower_bound"]

FloatArray = NDArray[np.float64]
Seed = int | np.random.RandomState | None
Strength = Callable[[Any, Any], Any]

_RANKS_PER_TAIL = 50


@dataclass(frozen=True)
class ErrorRates:
    """Upper confidence bounds on both error rates of one threshold test.

    The test says "the rows were present" when ``sign * score >= threshold``.

    Parameters
    ----------
    sign : {1, -1}
        1 when large scores speak for presence, -1 when small ones do.
    threshold : float
        In units of ``sign * score``; chosen on runs that the two bounds do not use.
    fpr_upper : float
        Bound on the probability of saying "present" in the absent world.
    fnr_upper : float
        Bound on the probability of saying "absent" in the present world.
    """

    sign: int
    threshold: float
    fpr_upper: float
    fnr_upper: float


def epsilon_lower_bound(
    scores_present: ArrayLike,
    scores_absent: ArrayLike,
    delta: float,
    confidence: float = 0.95,
    *,
    random_state: Seed = 0,
) -> float:
    r"""Lower confidence bound on epsilon at a given delta, from one score per run.

    If the release is (epsilon, delta)-certified (T0) then the error rates of every test satisfy
    :math:`\varepsilon \ge \ln((1 - \delta - \mathrm{FNR}) / \mathrm{FPR})`, and the same with the
    two rates exchanged (Kairouz, Oh & Viswanath 2015, Thm 2.1). Both rates are replaced by upper
    confidence bounds from runs that did not choose the test; see `held_out_error_rates`.

    Parameters
    ----------
    scores_present : array-like of shape (n_runs_present,)
        One score per independent run in which the rows were trained on and then deleted. Ties and
        infinities are allowed. The score may depend on other runs, not on the ones given here.
    scores_absent : array-like of shape (n_runs_absent,)
        One score per independent run without the rows.
    delta : float
        In (0, 1): the delta of the certificate under audit.
    confidence : float, default=0.95
        In (0, 1): with at least this probability over the runs, the true epsilon is not exceeded.
    random_state : int, RandomState or None, default=0
        Halves the runs. Choosing it after seeing the bound voids the confidence.

    Returns
    -------
    float
        At least 0. A smaller certified epsilon is refuted. 0 says that nothing was found, not that
        nothing is there: n runs cannot show an epsilon much above ``log(n)``.

    Raises
    ------
    ValueError
        If a score is NaN, an array is not one-dimensional, ``delta`` or ``confidence`` is outside
        (0, 1), or the runs are too few for any outcome to give a positive bound.

    See Also
    --------
    mu_lower_bound : Stronger where the certificate is one of Gaussian differential privacy.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> absent = rng.normal(size=1000)
    >>> bool(epsilon_lower_bound(rng.normal(loc=3.0, size=1000), absent, delta=1e-5) > 2.0)
    True
    >>> epsilon_lower_bound(absent, absent, delta=1e-5)
    0.0
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta!r} is not in (0, 1); pass the delta of the certificate.")

    def strength(fpr: Any, fnr: Any) -> Any:
        with np.errstate(divide="ignore"):
            return np.maximum(
                np.log(np.maximum(1 - delta - fnr, 0) / fpr),
                np.log(np.maximum(1 - delta - fpr, 0) / fnr),
            )

    rates = held_out_error_rates(
        scores_present, scores_absent, confidence, strength=strength, random_state=random_state
    )
    return max(0.0, float(strength(rates.fpr_upper, rates.fnr_upper)))


def mu_lower_bound(
    scores_present: ArrayLike,
    scores_absent: ArrayLike,
    confidence: float = 0.95,
    *,
    random_state: Seed = 0,
) -> float:
    r"""Lower confidence bound on the mu of Gaussian differential privacy, from one score per run.

    If the release is mu-GDP (T1) then the error rates of every test satisfy
    :math:`\mu \ge \Phi^{-1}(1 - \mathrm{FPR}) - \Phi^{-1}(\mathrm{FNR})` (Dong, Roth & Su 2022,
    Def. 2.6). Both rates are replaced by upper confidence bounds from runs that did not choose the
    test; see `held_out_error_rates`.

    Parameters
    ----------
    scores_present : array-like of shape (n_runs_present,)
        One score per independent run in which the rows were trained on and then deleted. Ties and
        infinities are allowed. The score may depend on other runs, not on the ones given here.
    scores_absent : array-like of shape (n_runs_absent,)
        One score per independent run without the rows.
    confidence : float, default=0.95
        In (0, 1): with at least this probability over the runs, the true mu is not exceeded.
    random_state : int, RandomState or None, default=0
        Halves the runs. Choosing it after seeing the bound voids the confidence.

    Returns
    -------
    float
        At least 0. A smaller certified mu is refuted. ``gaussian_epsilon(mu, delta)`` converts it
        into a bound on epsilon that holds only if the release is mu-GDP for some mu.

    Raises
    ------
    ValueError
        If a score is NaN, an array is not one-dimensional, ``confidence`` is outside (0, 1), or
        the runs are too few for any outcome to give a positive bound.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> present, absent = rng.normal(loc=1.0, size=5000), rng.normal(size=5000)
    >>> 0.8 < mu_lower_bound(present, absent) < 1.0
    True
    """
    rates = held_out_error_rates(
        scores_present, scores_absent, confidence, random_state=random_state
    )
    return max(0.0, float(_gaussian_strength(rates.fpr_upper, rates.fnr_upper)))


def _gaussian_strength(fpr: Any, fnr: Any) -> Any:
    return -ndtri(fpr) - ndtri(fnr)


def held_out_error_rates(
    scores_present: ArrayLike,
    scores_absent: ArrayLike,
    confidence: float = 0.95,
    *,
    strength: Strength = _gaussian_strength,
    random_state: Seed = 0,
) -> ErrorRates:
    """Choose a threshold test on half of the runs and bound its error rates on the other half.

    The test is the one with the largest lower bound on the half that chooses, where the bound
    holds for all candidates at once: the largest point estimate would be a rare event that the
    other half does not confirm. Then the halves change roles, and the stronger of the two results
    is returned. Four Clopper-Pearson bounds, each at level ``(1 - confidence) / 4``, pay for it.

    Parameters
    ----------
    scores_present, scores_absent : array-like of shape (n_runs_present,), (n_runs_absent,)
        One score per independent run of either world.
    confidence : float, default=0.95
        In (0, 1): probability over the runs that both returned bounds hold, at least.
    strength : callable, optional
        Lower bound on the privacy loss as a function of (fpr, fnr), decreasing in both; by
        default that of `mu_lower_bound`.
    random_state : int, RandomState or None, default=0
        Halves the runs.

    Returns
    -------
    ErrorRates
        The test and its two bounds.

    Raises
    ------
    ValueError
        As `mu_lower_bound`.

    Examples
    --------
    >>> rates = held_out_error_rates([5.0] * 100, [1.0] * 100)
    >>> rates.sign, rates.threshold, round(rates.fpr_upper, 3)
    (1, 5.0, 0.084)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} is not in (0, 1); 0.95 is customary.")
    present = _check_scores("scores_present", scores_present)
    absent = _check_scores("scores_absent", scores_absent)
    level = (1 - confidence) / 4
    n_present, n_absent = len(present) // 2, len(absent) // 2
    best_case = strength(_upper_bound(0, n_absent, level), _upper_bound(0, n_present, level))
    if not best_case > 0:
        raise ValueError(
            f"{len(present)} present and {len(absent)} absent runs are too few: no scores give a "
            f"positive bound at confidence={confidence!r}; make more runs."
        )
    rng = check_random_state(random_state)
    present, absent = rng.permutation(present), rng.permutation(absent)
    halves = (
        (present[:n_present], absent[:n_absent]),
        (present[n_present:], absent[n_absent:]),
    )
    results = []
    for chooser, held_out in (halves, halves[::-1]):
        sign, threshold = _choose(*chooser, strength, level)
        fpr, fnr = _upper_rates(sign, threshold, *held_out, level)
        results.append(ErrorRates(sign, threshold, float(fpr), float(fnr)))
    return max(results, key=lambda rates: float(strength(rates.fpr_upper, rates.fnr_upper)))


def _choose(
    present: FloatArray, absent: FloatArray, strength: Strength, level: float
) -> tuple[int, float]:
    """Return sign and threshold of the test with the largest simultaneous lower bound."""
    scores = np.concatenate([_spread(present), _spread(absent)])
    best = (-np.inf, 1, float(scores[0]))
    for sign in (1, -1):
        thresholds = np.unique(sign * scores)
        rates = _upper_rates(sign, thresholds, present, absent, level / (2 * len(thresholds)))
        strengths = strength(*rates)
        i = int(np.argmax(strengths))
        best = max(best, (float(strengths[i]), sign, float(thresholds[i])))
    return best[1:]


def _spread(scores: FloatArray) -> FloatArray:
    """Return the order statistics whose ranks grow geometrically from either end."""
    ranks = np.geomspace(1, len(scores), _RANKS_PER_TAIL).astype(int) - 1
    ordered = np.sort(scores)
    return np.concatenate([ordered[ranks], ordered[::-1][ranks]])


def _upper_rates(
    sign: int, threshold: Any, present: FloatArray, absent: FloatArray, level: float
) -> tuple[Any, Any]:
    """Bound the error rates of ``sign * score >= threshold``, each at the given level."""
    false_negatives = np.searchsorted(np.sort(sign * present), threshold, side="left")
    false_positives = len(absent) - np.searchsorted(np.sort(sign * absent), threshold, side="left")
    return (
        _upper_bound(false_positives, len(absent), level),
        _upper_bound(false_negatives, len(present), level),
    )


def _upper_bound(count: Any, n: int, level: float) -> Any:
    """Clopper & Pearson (1934): the rate at which ``count`` or fewer of n has probability level."""
    misses = np.maximum(n - np.asarray(count), 1e-300)
    return np.where(count == n, 1.0, betainccinv(np.asarray(count) + 1.0, misses, level))


def _check_scores(name: str, scores: ArrayLike) -> FloatArray:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(
            f"{name} has shape {array.shape}; pass one score per run, shape (n_runs,)."
        )
    if np.isnan(array).any():
        raise ValueError(
            f"{name}[{int(np.isnan(array).argmax())}] is nan; a run without a score is an outcome "
            "too: give all such runs one score of their own, such as -inf."
        )
    return array
