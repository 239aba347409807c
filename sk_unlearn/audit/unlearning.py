"""Audit of a deletion: run both worlds many times, and see whether anything tells them apart."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from math import inf
from time import perf_counter
from typing import Any

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from tqdm.auto import tqdm

from ..accounting import gaussian_epsilon
from ..events import ObjectivePerturbation, PoissonSampledTraining
from ._views import VIEWS, make_view, score_runs
from ._worlds import check_forget, set_noise_seed, unrecorded
from .lower_bounds import epsilon_lower_bound, mu_lower_bound

__all__ = ["AuditResult", "audit_unlearning"]

FloatArray = NDArray[np.float64]

_NOISY_TRAINING = (PoissonSampledTraining, ObjectivePerturbation)


@dataclass(frozen=True, eq=False, repr=False)
class AuditResult:
    """What an audit found; it can refute a certificate, and never lower its epsilon.

    Parameters
    ----------
    epsilon_lower : float
        Lower bound on epsilon at `delta`, whatever the mechanism (`epsilon_lower_bound`).
    mu_lower : float
        Lower bound on the mu of Gaussian DP (`mu_lower_bound`); it speaks about a certificate
        only where that has a mu.
    certified_epsilon, certified_mu : float, float or None
        As the certificate of the first audited release states them.
    delta, confidence : float
        Both bounds together hold with probability `confidence`: each is computed at
        ``1 - (1 - confidence) / 2`` (Bonferroni).
    refuted : bool
        Whether a lower bound is above its certified counterpart.
    view : str
        What was looked at.
    method : str
        The method, as the certificate names it.
    n_runs : int
        Releases in each world.
    seconds : float
        Wall time.
    scores_present, scores_absent : ndarray of shape (n_scored,)
        One score per scored run of either world.
    certificate : Certificate
        That of the first audited release, for the displays.
    """

    epsilon_lower: float
    mu_lower: float
    certified_epsilon: float
    certified_mu: float | None
    delta: float
    confidence: float
    refuted: bool
    view: str
    method: str
    n_runs: int
    seconds: float
    scores_present: FloatArray = field(compare=False)
    scores_absent: FloatArray = field(compare=False)
    certificate: Any = None

    @property
    def mu_epsilon_lower(self) -> float | None:
        """`mu_lower` as an epsilon at `delta`, rounded up; None where the certificate has no mu."""
        if self.certified_mu is None:
            return None
        return float(gaussian_epsilon(self.mu_lower, self.delta)) if self.mu_lower else 0.0

    def __repr__(self) -> str:
        """Return the result in words."""
        verdict = "REFUTED" if self.refuted else "not refuted"
        lines = [
            f"{verdict}: certified epsilon {self.certified_epsilon:.4g} at delta {self.delta:g}",
            f"  method  {self.method}",
            f"  epsilon at least {self.epsilon_lower:.4g} (any mechanism)",
        ]
        if self.certified_mu is not None:
            lines.append(
                f"  mu      at least {self.mu_lower:.4g}, certified {self.certified_mu:.4g} "
                f"(Gaussian DP; epsilon at least {self.mu_epsilon_lower:.4g})"
            )
        lines.append(
            f"  {self.n_runs} releases of each world, view {self.view!r}, {self.confidence:.0%} "
            f"confidence for both bounds together, {self.seconds:.1f} s"
        )
        return "\n".join(lines)


def audit_unlearning(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    forget: ArrayLike,
    n_runs: int = 1000,
    epsilon: float = 1.0,
    delta: float = 1e-5,
    view: str = "weights",
    confidence: float = 0.95,
    *,
    random_state: int | np.random.RandomState | None = 0,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> AuditResult:
    """Release many times in both worlds of (T0), and bound from below what tells them apart.

    World "deleted": fit on all rows, then ``unlearn(indices=forget)``. World "never": fit on the
    other rows, then ``unlearn(indices=[])``. Each world is fitted once, for (T0) holds for every
    outcome of the fit; where the noise is drawn in training (``PrivateTraining``,
    ``CertifiedRemoval``) every run fits. Every run releases a copy with noise of its own; with
    ``noise_seed`` set, each run gets another seed. A method with ``center`` and ``release``
    computes its un-noised centre once.

    Parameters
    ----------
    estimator : estimator
        With ``fit``, ``unlearn(indices=..., epsilon=..., delta=...)`` and ``certificate_``; it is
        cloned, not changed. Anything else is learnt from what it releases.
    X : array-like of shape (n, ...)
        Training rows.
    y : array-like of shape (n,)
        Labels.
    forget : array-like of int
        Positions of the rows to delete; at least one row must remain.
    n_runs : int, default=1000
        Releases in each world.
    epsilon, delta : float
        The guarantee to ask for, as in ``unlearn``.
    view : {"weights", "predictions", "state"}
        What the auditor sees: the weights; the confidence in the deleted rows; or the weights,
        the buffers, and the weights after one more epoch of ``partial_fit`` on the other rows.
    confidence : float, default=0.95
        Probability that an honest certificate is not refuted, at least.
    random_state : int, RandomState or None, default=0
        Halves the runs, and seeds the noise of estimators that have a ``noise_seed``.
    n_jobs : int or None
        Processes (joblib); None is one.
    verbose : int
        Progress bar when above 0.

    Returns
    -------
    AuditResult

    Raises
    ------
    ValueError
        If `view` is unknown, `forget` names no rows or all of them, `epsilon` or `delta` is no
        guarantee, or the runs are too few for any outcome to refute anything; for view="state"
        of a method that keeps secret state.
    TypeError
        If the estimator has no weights to look at.

    Notes
    -----
    A lower bound near 0 says that this attack on this data found nothing, not that there is
    nothing. The bounds are worth most on a worst case, in which the deletion moves the un-noised
    release by the full sensitivity.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.audit import audit_unlearning
    >>> from sk_unlearn.modules import LinearHead
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(60, 3))
    >>> y = (X[:, 0] > 0).astype(int)
    >>> clf = CertifiedNeuralClassifier(LinearHead, lam=0.1, noise_seed=0, random_state=0)
    >>> result = audit_unlearning(clf, X, y, forget=[0, 1], n_runs=40)
    >>> result.refuted, result.certified_epsilon
    (False, 1.0)
    """
    start = perf_counter()
    if view not in VIEWS:
        raise ValueError(f"view={view!r}; choose one of {VIEWS}")
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta!r} is not in (0, 1)")
    X, y = np.asarray(X), np.asarray(y)
    positions = check_forget(forget, len(y))
    keep = np.setdiff1d(np.arange(len(y)), positions)
    look = make_view(view, (X[positions], y[positions]), (X[keep], y[keep]))
    rng = check_random_state(random_state)
    halves = int(rng.randint(2**31 - 1))

    def world(rows: NDArray[np.intp], deleted: NDArray[np.intp], name: str) -> Any:
        seeds = rng.randint(2**63 - 1, size=n_runs, dtype=np.int64)
        chunks = np.array_split(seeds, min(effective_n_jobs(n_jobs), n_runs))
        releases = _World(estimator, X[rows], y[rows], deleted, epsilon, delta, look)
        parts = Parallel(n_jobs=n_jobs)(
            delayed(releases.observe)(chunk, name if verbose > 0 else None) for chunk in chunks
        )
        return np.concatenate([p[0] for p in parts]), parts[0][1], parts[0][2]

    present, certificate, with_rows = world(np.arange(len(y)), positions, "deleted")
    absent, _, without = world(keep, np.empty(0, dtype=np.intp), "never")
    difference = None if with_rows is None or without is None else with_rows - without
    scores = score_runs(view, present, absent, difference)
    each = 1 - (1 - confidence) / 2
    epsilon_lower = epsilon_lower_bound(*scores, delta, each, random_state=halves)
    mu_lower = mu_lower_bound(*scores, each, random_state=halves)
    certified, mu = float(certificate.epsilon), certificate.mu
    return AuditResult(
        epsilon_lower=epsilon_lower,
        mu_lower=mu_lower,
        certified_epsilon=certified,
        certified_mu=mu,
        delta=delta,
        confidence=confidence,
        refuted=epsilon_lower > certified or (mu is not None and mu_lower > mu and certified < inf),
        view=view,
        method=certificate.method,
        n_runs=n_runs,
        seconds=perf_counter() - start,
        scores_present=scores[0],
        scores_absent=scores[1],
        certificate=certificate,
    )


@dataclass(frozen=True)
class _World:
    """One of the two worlds: what is fitted, what is deleted, and what is looked at."""

    estimator: Any
    X: Any
    y: Any
    deleted: NDArray[np.intp]
    epsilon: float
    delta: float
    look: Callable[[Any], FloatArray]

    def observe(
        self, seeds: NDArray[np.int64], progress: str | None
    ) -> tuple[FloatArray, Any, FloatArray | None]:
        """Return what one release per seed shows, a certificate, and the un-noised centre."""
        fitted = self._fit()
        center = _keep_center(fitted)
        seen, certificate = [], None
        for seed in tqdm(seeds, progress, leave=False, disable=progress is None):
            if certificate is not None and isinstance(certificate.event, _NOISY_TRAINING):
                fitted = self._fit()
            released = deepcopy(fitted)
            set_noise_seed(released, int(seed))
            released.unlearn(indices=self.deleted.tolist(), epsilon=self.epsilon, delta=self.delta)
            certificate = certificate or released.certificate_
            seen.append(self.look(released))
        return np.array(seen), certificate, center()

    def _fit(self) -> Any:
        return unrecorded(self.estimator).fit(self.X, self.y)


def _keep_center(fitted: Any) -> Callable[[], FloatArray | None]:
    """Let the method of a fitted net compute its centre once; return a way to ask for it."""
    method = getattr(fitted, "method_", None)
    compute = getattr(method, "center", None)
    if not callable(compute) or not hasattr(method, "release"):
        return lambda: None
    kept = _Memory(compute)
    method.center = kept
    return lambda: None if kept.outcome is None else np.asarray(kept.outcome.parameters)


class _Memory:
    """A function whose first answer is every answer; copies of it are the same object."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.outcome: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.outcome is None:
            self.outcome = self.function(*args, **kwargs)
        return self.outcome

    def __deepcopy__(self, memo: Any) -> _Memory:
        return self
