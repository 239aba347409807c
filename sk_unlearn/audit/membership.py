"""Membership inference, row by row: was it trained on, or unlearned, or never seen.

Two attacks look at one model, through its loss or its confidence on each row; the likelihood
ratio looks at many runs of both worlds. What an attack learns, it learns on rows or runs other
than those that it is judged by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.metrics import roc_curve
from sklearn.utils import check_random_state

from ._confidence import LEAST, class_indices, logit_confidence, probabilities
from ._roc import MembershipResult
from ._rows import Rows, check_disjoint
from ._shadow_runs import shadow_runs

__all__ = [
    "MembershipResult",
    "Rows",
    "confidence_attack",
    "likelihood_ratio",
    "likelihood_ratio_attack",
    "logit_confidence",
    "loss_attack",
    "shadow_runs",
]

FloatArray = NDArray[np.float64]

_OWN_VARIANCE_FROM = 32


def loss_attack(
    model: Any, attack_rows: Rows, evaluation_rows: Rows, confidence: float = 0.95
) -> MembershipResult:
    """Call a row a member where the model's loss on it is small (Yeom et al. 2018).

    The threshold is the one with the largest TPR - FPR on `attack_rows`; everything reported is
    from `evaluation_rows`.

    Parameters
    ----------
    model : object
        With ``predict_proba`` and ``classes_``.
    attack_rows : Rows
        What the attacker knows already: say, retained rows and rows of a public test set.
    evaluation_rows : Rows
        Other rows: say, deleted rows (members) and rows that were never seen.
    confidence : float, default=0.95
        Of the interval of the AUC; in (0, 1).

    Returns
    -------
    MembershipResult
        One score per evaluation row: the log-probability of its label.

    Raises
    ------
    ValueError
        If a row is in both, or is a member and not a member, or the model's probabilities are
        none, or a label is unknown to the model.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> rng = np.random.default_rng(0)
    >>> X, y, member = rng.normal(size=(400, 5)), rng.integers(20, size=400), np.arange(400) < 200
    >>> model = KNeighborsClassifier(1).fit(X[member], y[member])
    >>> known, others = (Rows(X[i::2], y[i::2], member[i::2]) for i in (0, 1))
    >>> result = loss_attack(model, known, others)
    >>> result.auc > 0.95, result.advantage > 0.9
    (True, True)
    """

    def scores(rows: Rows) -> FloatArray:
        columns, classes = probabilities(model, rows.X)
        own = columns[np.arange(len(columns)), class_indices(classes, rows.y)]
        return np.log(np.maximum(own, LEAST))

    return _threshold_attack(scores, attack_rows, evaluation_rows, confidence)


def confidence_attack(
    model: Any, attack_rows: Rows, evaluation_rows: Rows, confidence: float = 0.95
) -> MembershipResult:
    """Call a row a member where the model's largest probability is large (Salem et al. 2019).

    The attack needs no labels; they serve to tell rows apart. Otherwise as `loss_attack`.

    Parameters
    ----------
    model : object
        With ``predict_proba`` and ``classes_``.
    attack_rows, evaluation_rows : Rows
        Rows that choose the threshold, and other rows that the attack is judged by.
    confidence : float, default=0.95
        Of the interval of the AUC; in (0, 1).

    Returns
    -------
    MembershipResult
        One score per evaluation row: the largest probability.

    Raises
    ------
    ValueError
        As `loss_attack`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.dummy import DummyClassifier
    >>> X, y, member = np.arange(80).reshape(40, 2), np.arange(40) % 2, np.arange(40) % 3 == 0
    >>> rows = [Rows(X[part], y[part], member[part]) for part in (slice(0, 20), slice(20, 40))]
    >>> confidence_attack(DummyClassifier().fit(X, y), *rows).auc
    0.5
    """

    def scores(rows: Rows) -> FloatArray:
        return np.asarray(probabilities(model, rows.X)[0].max(axis=1))

    return _threshold_attack(scores, attack_rows, evaluation_rows, confidence)


def likelihood_ratio(
    attack_present: ArrayLike, attack_absent: ArrayLike, runs: ArrayLike
) -> FloatArray:
    """Log-likelihood ratio of each row's confidence: present (and deleted) against absent.

    In either world a row's logit-scaled confidence is taken to be normal over runs, with a mean
    of its own, and with a variance of its own from 32 runs on; before that one for all rows
    (Carlini et al. 2022, section VI; with deletion as one world: Hayes et al. 2024).

    Parameters
    ----------
    attack_present, attack_absent : array-like of shape (n_attack_runs, n_rows)
        `logit_confidence` of the target rows in runs of either world, at least 2 runs of each.
    runs : array-like of shape (n_runs, n_rows)
        Other runs, to be scored.

    Returns
    -------
    ndarray of shape (n_runs, n_rows)
        Positive where presence is the likelier world. Summed over rows it is one score per run.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or there are too few runs.

    Examples
    --------
    >>> likelihood_ratio([[0.0], [2.0]], [[-2.0], [0.0]], [[0.5], [-3.0]])
    array([[ 0.5],
           [-3. ]])
    """
    present = _check_runs("attack_present", attack_present, 2)
    absent = _check_runs("attack_absent", attack_absent, 2)
    scored = _check_runs("runs", runs, 1)
    _check_same_rows(attack_present=present, attack_absent=absent, runs=scored)
    return _log_density(scored, present) - _log_density(scored, absent)


def likelihood_ratio_attack(
    present: ArrayLike,
    absent: ArrayLike,
    confidence: float = 0.95,
    *,
    random_state: int | np.random.RandomState | None = 0,
) -> MembershipResult:
    """LiRA, or U-LiRA where the rows were deleted: `likelihood_ratio` on held-out runs.

    A random half of the runs of each world gives every row its two normal laws; the ratio of
    each row in each other run is one score.

    Parameters
    ----------
    present : array-like of shape (n_runs_present, n_rows)
        `logit_confidence` of the target rows in runs that were trained on them and, for
        unlearning, deleted them afterwards; at least 4 runs. `shadow_runs` makes both arrays.
    absent : array-like of shape (n_runs_absent, n_rows)
        The same rows in runs that never saw them. At least 4 runs.
    confidence : float, default=0.95
        Of the interval of the AUC; in (0, 1). Runs are independent, rows of a run are not: the
        interval says how much other runs on the *same* rows would differ.
    random_state : int, RandomState or None, default=0
        Halves the runs.

    Returns
    -------
    MembershipResult
        One score per row and evaluation run, runs of `present` first, each run's rows together.
        ``threshold`` is 0: either world is as likely.

    Raises
    ------
    ValueError
        If shapes do not fit, a value is not finite, or there are too few runs.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> absent, present = rng.normal(size=(200, 20)), rng.normal(loc=1.0, size=(200, 20))
    >>> result = likelihood_ratio_attack(present, absent)
    >>> round(result.auc, 2), round(result.tpr_at_fpr(0.01), 2)
    (0.76, 0.08)
    """
    runs = {
        "present": _check_runs("present", present, 4),
        "absent": _check_runs("absent", absent, 4),
    }
    _check_same_rows(**runs)
    rng = check_random_state(random_state)
    mixed = [rng.permutation(world) for world in runs.values()]
    a, b = (world[: len(world) // 2] for world in mixed)
    present, absent = (likelihood_ratio(a, b, world[len(world) // 2 :]) for world in mixed)
    return MembershipResult.from_scores(present, absent, 0.0, confidence)


def _log_density(runs: FloatArray, sample: FloatArray) -> FloatArray:
    variance = sample.var(axis=0, ddof=1)
    if len(sample) < _OWN_VARIANCE_FROM:
        variance = variance.mean()
    mean = sample.mean(axis=0)
    floor = 1e-12 * (1 + np.abs(mean))
    return np.asarray(norm.logpdf(runs, mean, np.maximum(np.sqrt(variance), floor)))


def _threshold_attack(
    scores: Callable[[Rows], FloatArray], attack: Rows, evaluation: Rows, confidence: float
) -> MembershipResult:
    check_disjoint(attack, evaluation)
    fpr, tpr, thresholds = roc_curve(attack.member, scores(attack), drop_intermediate=False)
    values, member = scores(evaluation), np.asarray(evaluation.member)
    chosen = float(thresholds[np.argmax(tpr - fpr)])
    return MembershipResult.from_scores(
        values[member, None], values[~member, None], chosen, confidence
    )


def _check_runs(name: str, values: ArrayLike, least: int) -> FloatArray:
    runs = np.asarray(values, dtype=np.float64)
    if runs.ndim != 2 or runs.shape[0] < least or runs.shape[1] < 1:
        raise ValueError(
            f"{name} has shape {runs.shape}; give (n_runs, n_rows) with at least {least} runs."
        )
    if not np.isfinite(runs).all():
        raise ValueError(
            f"{name} holds {runs[~np.isfinite(runs)][0]}; logit_confidence gives finite values."
        )
    return runs


def _check_same_rows(**worlds: FloatArray) -> None:
    counts = {name: runs.shape[1] for name, runs in worlds.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the worlds have different numbers of target rows: {counts}.")
