"""The many models of a likelihood-ratio attack: trained with each target, or without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from tqdm.auto import tqdm

from ._confidence import logit_confidence
from ._worlds import check_forget, set_noise_seed, unrecorded

FloatArray = NDArray[np.float64]

_SHARE = 0.5


def shadow_runs(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    targets: ArrayLike,
    n_runs: int = 64,
    epsilon: float = 1.0,
    delta: float = 1e-5,
    *,
    delete: bool = True,
    random_state: int | np.random.RandomState | None = 0,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> tuple[FloatArray, FloatArray]:
    """Train many models with and without each target row, for `likelihood_ratio_attack`.

    Models come in pairs. Of each pair the one is trained on a random half of the targets, the
    other on the other half, and each on a random half of the other rows of its own. So every
    target is in exactly `n_runs` models and missing from as many, independently of the other
    targets. Then each model deletes the targets it was trained on (U-LiRA, Hayes et al. 2024), or
    keeps them (LiRA, Carlini et al. 2022).

    Parameters
    ----------
    estimator : classifier
        With ``predict_proba`` and, for deletion, ``unlearn(indices=..., epsilon=..., delta=...)``;
        it is cloned, not changed. Declare its classes if half of the rows may lack one.
    X : array-like of shape (n, ...)
        Rows.
    y : array-like of shape (n,)
        Their labels.
    targets : array-like of int
        Positions of the rows that are attacked; other rows must remain.
    n_runs : int, default=64
        Models with each target, and without it.
    epsilon, delta : float
        The guarantee to ask for, as in ``unlearn``.
    delete : bool, default=True
        Whether each model deletes the targets it was trained on.
    random_state : int, RandomState or None, default=0
        Chooses the rows, and seeds the noise of estimators that have a ``noise_seed``.
    n_jobs : int or None
        Processes (joblib); None is one.
    verbose : int
        Progress bar when above 0.

    Returns
    -------
    present, absent : ndarray of shape (n_runs, n_targets)
        `logit_confidence` of each target, in the order of their positions, in the models that
        were trained on it, and in those that were not.

    Raises
    ------
    ValueError
        If `targets` names no rows or all of them, or `n_runs` is below 4.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from sk_unlearn.audit.membership import likelihood_ratio_attack, shadow_runs
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(60, 2)), np.arange(60) % 2
    >>> memorises = KNeighborsClassifier(3, weights="distance")
    >>> runs = shadow_runs(memorises, X, y, range(10), n_runs=8, delete=False)
    >>> likelihood_ratio_attack(*runs).auc > 0.9
    True
    """
    X, y = np.asarray(X), np.asarray(y)
    positions = check_forget(targets, len(y), "targets")
    if n_runs < 4:
        raise ValueError(f"n_runs={n_runs!r}; a likelihood-ratio attack needs at least 4")
    others = np.setdiff1d(np.arange(len(y)), positions)
    rng = check_random_state(random_state)
    with_first = rng.uniform(size=(n_runs, len(positions))) < 0.5
    seeds = rng.randint(2**31 - 1, size=(n_runs, 2))
    plan = _Plan(estimator, X, y, positions, others, epsilon, delta, delete)
    jobs = [
        (mask, int(seed))
        for first, pair in zip(with_first, seeds, strict=True)
        for mask, seed in zip((first, ~first), pair, strict=True)
    ]
    size = max(1, len(jobs) // (4 * effective_n_jobs(n_jobs)))
    chunks = [jobs[i : i + size] for i in range(0, len(jobs), size)]
    done = Parallel(n_jobs=n_jobs)(
        delayed(plan.run)(chunk)
        for chunk in tqdm(chunks, "shadow models", leave=False, disable=verbose <= 0)
    )
    first, second = np.concatenate(done).reshape(n_runs, 2, -1).swapaxes(0, 1)
    return np.where(with_first, first, second), np.where(with_first, second, first)


@dataclass(frozen=True)
class _Plan:
    """What is the same for all models."""

    estimator: Any
    X: NDArray[Any]
    y: NDArray[Any]
    targets: NDArray[np.intp]
    others: NDArray[np.intp]
    epsilon: float
    delta: float
    delete: bool

    def run(self, jobs: list[tuple[NDArray[np.bool_], int]]) -> FloatArray:
        """Return the confidences (n_jobs, n_targets) of one model for each job."""
        return np.array([self._one(mask, seed) for mask, seed in jobs])

    def _one(self, with_targets: NDArray[np.bool_], seed: int) -> FloatArray:
        rng = np.random.RandomState(seed)
        n_others = max(1, round(_SHARE * len(self.others)))
        kept = rng.choice(self.others, n_others, replace=False)
        rows = np.concatenate([self.targets[with_targets], kept])
        order = rng.permutation(len(rows))
        model = unrecorded(self.estimator).fit(self.X[rows[order]], self.y[rows[order]])
        if self.delete:
            set_noise_seed(model, seed)
            gone = np.flatnonzero(order < with_targets.sum()).tolist()
            model.unlearn(indices=gone, epsilon=self.epsilon, delta=self.delta)
        return logit_confidence(model, self.X[self.targets], self.y[self.targets])
