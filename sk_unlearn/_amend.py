"""Correction of training rows: the right to rectification, certified like a deletion."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import uuid4

import numpy as np

from ._interrupt import hold_interrupt
from ._rows import TrainingRows
from ._validation import check_guarantee
from .assumptions import Assumption, Status
from .exceptions import DeletionRequestError, LedgerError, NotApplicableError, SkUnlearnError

_AGAINST = Assumption(
    "correction",
    Status.BY_CONSTRUCTION,
    "the statement is against training on the corrected data: the same rows in the same order, "
    "the rows in question with their new features and labels",
)
_SCOPE = ("whether the new features and labels are right: whoever asked for them says so",)


class AmendMixin:
    """``amend`` for a net with ``unlearn``."""

    def amend(
        self,
        X_old: Any = None,
        y_old: Any = None,
        X_new: Any = None,
        y_new: Any = None,
        epsilon: float | None = 1.0,
        delta: float = 1e-5,
        *,
        indices: Any = None,
        sample_ids: Any = None,
    ) -> AmendMixin:
        """Correct features, labels or both of training rows, and release a certified model.

        The certificate is (T0) with training on the corrected data in the place of training
        without the rows. Rows are corrected one by one: each keeps its position and its id.
        Whatever fails leaves the net as it was.

        Parameters
        ----------
        X_old, y_old : array-like of shape (k, ...), (k,), optional
            The rows as they were trained on, named by content as in ``unlearn``; or name them by
            `indices` or `sample_ids` (all rows of these ids, in the order of training).
        X_new, y_new : array-like of shape (k, ...), (k,)
            What they should have been, in the same order. For labels alone, pass the old features
            again, and the other way round.
        epsilon, delta : float
            The guarantee, as in ``unlearn``.
        indices, sample_ids : array-like, optional
            As in ``unlearn``.

        Returns
        -------
        self

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        DeletionRequestError
            If the rows are malformed, not there (UnknownRowError), none, not as many as the new
            ones, or wait to be deleted; if the last row of a class would leave it; or with
            ``store_data=False``.
        NotApplicableError
            If the method's statement does not cover corrected rows.
        CalibrationError, ToleranceNotReachedError, BudgetExceededError, LedgerError
            As ``unlearn``.

        Notes
        -----
        Warnecke et al. 2021 correct features and labels by influence functions, without a
        certificate. A correction in a ledger has the detail ``"amend"``. It cannot be finished by
        another process, since the ledger does not hold the new rows: it fails, and is to be asked
        again.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sk_unlearn import CertifiedNeuralClassifier
        >>> from sk_unlearn.modules import LinearHead
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = CertifiedNeuralClassifier(LinearHead, lam=1e-2).fit(X, y)
        >>> clf = clf.amend(X[:2], y[:2], X[:2], [1, 1], epsilon=1.0, delta=1e-5)
        >>> clf.certificate_.formal, clf.certificate_.n_retained
        (True, 150)
        """
        self.check_is_fitted()
        check_guarantee(1.0 if epsilon is None else epsilon, delta)
        if self.rows_ is None:
            raise DeletionRequestError(
                "this net keeps no training rows (store_data=False), so that it cannot put others "
                "in their place: fit again, on the corrected data"
            )
        obstacle = self.method_.amend_obstacle()
        if obstacle:
            raise NotApplicableError(f"{self.method_!r} cannot amend: {obstacle}")
        rows, positions = self._find_rows(X_old, y_old, indices, sample_ids)
        new = self._with_features(self._request_rows(X_new, y_new, "X_new", "y_new"))
        if not len(positions) or len(positions) != len(new):
            raise DeletionRequestError(
                f"{len(positions)} rows to correct and {len(new)} corrected ones; rows are "
                "corrected one by one, so give as many, and at least one"
            )
        queue = self._take_in(rows)
        if queue:
            raise DeletionRequestError(
                f"the requests {list(queue)[:5]} wait to be served, and name rows by position; "
                "call process_deletions() first"
            )
        corrected, old = rows.corrected(positions, new), rows.take(positions)
        self._check_remaining(corrected, old)
        asked = self._asked(epsilon, delta, ())
        self._amend(corrected, old, positions, sample_ids is not None, asked)
        return self

    def _amend(
        self,
        corrected: TrainingRows,
        old: TrainingRows,
        positions: np.ndarray,
        by_ids: bool,
        asked: Any,
    ) -> None:
        """Record the correction, release, and record the release, or how it failed."""
        request = uuid4().hex
        try:
            self._record(old, by_ids, request, amend=True)
            released = self._release(corrected, old, *asked, (_AGAINST,), _SCOPE, positions)
            self._commit([request], released)
        except BaseException as error:
            refused = isinstance(error, SkUnlearnError) and not isinstance(error, LedgerError)
            end = self.ledger_.refused if refused else self.ledger_.failed
            with hold_interrupt(), suppress(LedgerError):
                end(request, type(error).__name__)  # its message may quote a label or an id
            raise
