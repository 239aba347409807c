"""Choosing hyper-parameters by what is left after a certified deletion."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.metrics import check_scoring, get_scorer
from sklearn.utils import check_random_state

from ._pipeline_parts import trial_copy
from ._validation import check_guarantee
from .exceptions import DeletionRequestError
from .pipeline import unlearn


def make_unlearning_scorer(
    scoring: Any = None,
    epsilon: float = 1.0,
    delta: float = 1e-5,
    fraction: float = 0.01,
    n_draws: int = 1,
    random_state: Any = None,
    *,
    allow_leaks: bool = False,
) -> UnlearningScorer:
    """Return a scorer that says how good the model is after a certified deletion.

    Some of the training rows, drawn at random, are deleted from a copy of the fitted estimator,
    and the released model is scored. A search over ``lam`` and ``C`` with it maximises what the
    user will get, noise included, rather than what a fit without deletions gives.

    The estimator that is scored does not change, and nothing is recorded in its ledger. The noise
    comes from the operating system, also where ``noise_seed`` is set: a seed is for one release.
    So scores differ from run to run by the noise; `n_draws` averages it.

    Hyper-parameters chosen so are chosen by looking at the rows: no certificate covers that
    choice, and each says so in its scope. Choose on rows that are public, or that stay.

    Parameters
    ----------
    scoring : str, callable or None
        What the released model is scored by, as in scikit-learn; None is its ``score``.
    epsilon, delta : float
        The guarantee of the deletion (T0).
    fraction : float
        Share of the training rows to delete, in (0, 1); at least one row. Where ``classes=`` was
        not declared, draws leave a row of each class, because the deletion would be refused.
    n_draws : int
        Deletions, each from the model as it was fitted; the score is their mean.
    random_state : int, RandomState or None
        Draws the rows; never the noise.
    allow_leaks : bool
        Score pipelines too that have a step which was fitted on the rows, and whose
        certificates are therefore not formal.

    Returns
    -------
    callable
        ``scorer(estimator, X, y)``, for nets, and pipelines and searches that end in one.

    Raises
    ------
    ValueError
        If a parameter is out of range or `scoring` is no name of a metric.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sk_unlearn import CertifiedNeuralClassifier, make_unlearning_scorer
    >>> from sk_unlearn.modules import LinearHead
    >>> X, y = load_iris(return_X_y=True)
    >>> net = CertifiedNeuralClassifier(LinearHead, C=100.0, random_state=0)
    >>> scorer = make_unlearning_scorer("accuracy", epsilon=1.0, fraction=0.05)
    >>> search = GridSearchCV(net, {"lam": [1e-3, 10.0]}, scoring=scorer).fit(X, y)
    >>> search.best_params_
    {'lam': 0.001}
    """
    check_guarantee(epsilon, delta)
    if isinstance(scoring, str):
        get_scorer(scoring)
    elif scoring is not None and not callable(scoring):
        raise ValueError(
            f"scoring={scoring!r}; give one metric, a name or a callable (for several, give the "
            "search a dict of scorers)"
        )
    if isinstance(fraction, bool) or not isinstance(fraction, Real) or not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction!r}; give a share of the rows between 0 and 1")
    if isinstance(n_draws, bool) or not isinstance(n_draws, Integral) or n_draws < 1:
        raise ValueError(f"n_draws={n_draws!r}; give a whole number >= 1")
    check_random_state(random_state)
    return UnlearningScorer(scoring, epsilon, delta, fraction, n_draws, random_state, allow_leaks)


class UnlearningScorer:
    """What :func:`make_unlearning_scorer` returns."""

    def __init__(
        self,
        scoring: Any,
        epsilon: float,
        delta: float,
        fraction: float,
        n_draws: int,
        random_state: Any,
        allow_leaks: bool,
    ) -> None:
        self.scoring = scoring
        self.epsilon = epsilon
        self.delta = delta
        self.fraction = fraction
        self.n_draws = n_draws
        self.random_state = random_state
        self.allow_leaks = allow_leaks

    def __repr__(self) -> str:
        listed = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"make_unlearning_scorer({listed})"

    def __call__(self, estimator: Any, X: Any, y: Any = None) -> float:
        """Return the mean score on (X, y) of `n_draws` released copies of `estimator`.

        Raises
        ------
        DeletionRequestError
            If the net keeps no rows (``store_data=False``), or too few to delete any.
        NotApplicableError, CalibrationError, ToleranceNotReachedError
            As :func:`sk_unlearn.unlearn`.
        """
        scorer = check_scoring(estimator, scoring=self.scoring)
        generator = check_random_state(self.random_state)
        scores = []
        for _ in range(self.n_draws):
            twin, net = trial_copy(estimator)
            indices = self._draw(net, generator)
            unlearn(
                twin,
                epsilon=self.epsilon,
                delta=self.delta,
                indices=indices,
                allow_leaks=self.allow_leaks,
            )
            scores.append(scorer(twin, X, y))
        return float(np.mean(scores))

    def _draw(self, net: Any, generator: np.random.RandomState) -> np.ndarray:
        if net.rows_ is None:
            raise DeletionRequestError(
                "the unlearning scorer deletes rows that the net keeps; use store_data=True"
            )
        order = generator.permutation(len(net.rows_))
        n_deleted = max(1, round(self.fraction * len(order)))
        _, kept = np.unique(net.rows_.y[order], return_index=True, axis=0)
        if getattr(net, "classes_declared_", True):
            kept = kept[:1]
        order = np.delete(order, kept)
        if len(order) < n_deleted:
            raise DeletionRequestError(
                f"fraction={self.fraction}: {n_deleted} of {len(net.rows_)} training rows cannot "
                "be deleted, because a class would lose its last row; declare classes= or choose "
                "a smaller fraction"
            )
        return order[-n_deleted:]
