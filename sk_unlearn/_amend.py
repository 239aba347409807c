"""Correction of training rows: the right to rectification, certified like a deletion."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np

from ._rows import TrainingRows, as_ids
from ._validation import check_additions, check_guarantee
from .assumptions import CORRECTION, Assumption
from .exceptions import DeletionRequestError, NotApplicableError

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
        assumptions: tuple[Assumption, ...] = (),
        scope: tuple[str, ...] = (),
    ) -> AmendMixin:
        """Correct features, labels or both of training rows, and release a certified model.

        The certificate is (T0) with training on the corrected data in the place of training
        without the rows. Rows are corrected one by one: each keeps its position and its id.
        Whatever fails leaves the net as it was.

        Parameters
        ----------
        X_old, y_old : array-like of shape (k, ...), (k,), optional
            The rows as they were trained on, named by content as in ``unlearn``; or name them by
            `indices` or `sample_ids` (all rows of these ids; the rows of one id in the order of
            training).
        X_new, y_new : array-like of shape (k, ...), (k,), optional
            What they should have been, in the order in which the rows are named. Without `X_new`
            the features stay as they are, without `y_new` the labels.
        epsilon, delta : float
            The guarantee, as in ``unlearn``.
        indices, sample_ids : array-like, optional
            As in ``unlearn``.
        assumptions, scope : tuple, optional
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
        certificate. A correction in a ledger has the detail ``"amend"`` and nothing of the new
        rows. So no other process can finish it: it fails, and is to be asked for again. A net that
        was stored before a correction warns; ``amend`` with the same rows repeats it, any other
        release deletes the rows as they were. Rows that are new and correct nothing are what
        ``partial_fit`` is for.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sk_unlearn import CertifiedNeuralClassifier
        >>> from sk_unlearn.modules import LinearHead
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = CertifiedNeuralClassifier(LinearHead, lam=1e-2).fit(X, y)
        >>> clf = clf.amend(X[:2], y[:2], y_new=[1, 1], epsilon=1.0, delta=1e-5)
        >>> clf.certificate_.formal, clf.certificate_.n_retained
        (True, 150)
        """
        self.check_is_fitted()
        check_guarantee(1.0 if epsilon is None else epsilon, delta)
        check_additions(assumptions, scope)
        if self.rows_ is None:
            raise DeletionRequestError(
                "this net keeps no training rows (store_data=False), so that it cannot put others "
                "in their place: fit again, on the corrected data"
            )
        obstacle = self.method_.amend_obstacle()
        if obstacle:
            raise NotApplicableError(f"{self.method_!r} cannot amend: {obstacle}")
        rows, positions = self._find_rows(X_old, y_old, indices, sample_ids)
        if sample_ids is not None:
            positions = positions[_in_order_of(as_ids(sample_ids), rows.sample_ids[positions])]
        old = rows.take(positions)
        new = self._with_features(self._new_rows(X_new, y_new, old))
        if not len(positions) or len(positions) != len(new):
            raise DeletionRequestError(
                f"{len(positions)} rows to correct and {len(new)} corrected ones; rows are "
                "corrected one by one, so give as many, and at least one"
            )
        queue = self._take_in(rows)
        again = {r: p for r, p in self._corrections(queue).items() if set(p) <= set(positions)}
        if len(again) < len(queue):
            raise DeletionRequestError(
                f"the requests {[r for r in queue if r not in again][:5]} wait to be served, and "
                "name rows by position; call process_deletions() first"
            )
        self._hint()
        corrected = rows.corrected(positions, new)
        self._check_remaining(corrected, old)
        asked = self._asked(epsilon, delta, again)
        more = ((CORRECTION, *assumptions), (*_SCOPE, *scope), positions)
        release = partial(self._release, corrected, old, *asked, *more)
        self._release_recorded(old, sample_ids is not None, again, release, amend=True)
        return self

    def _new_rows(self, X_new: Any, y_new: Any, old: TrainingRows) -> TrainingRows:
        if X_new is None and y_new is None:
            raise DeletionRequestError("nothing is to be corrected: pass X_new, y_new or both")
        with warnings.catch_warnings():
            if X_new is None:
                X_new = old.X
                warnings.filterwarnings("ignore", message="X does not have valid feature names")
            if y_new is None:
                names = self._label_names()
                shape = () if names is not None else self.target_shape_
                y_new = (old.y if names is None else names[old.y]).reshape(len(old), *shape)
            return self._request_rows(X_new, y_new, "X_new", "y_new")


def _in_order_of(wanted: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the order that sorts `ids` as they stand in `wanted`, equal ones as they are."""
    sorter = np.argsort(wanted)
    return np.argsort(sorter[np.searchsorted(wanted, ids, sorter=sorter)], kind="stable")
