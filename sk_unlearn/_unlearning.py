"""Deletion on a fitted net: find the rows, run the method, write the certificate, or nothing."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import is_regressor
from skorch.history import History

from ._deletions import DeletionsMixin
from ._rows import TrainingRows
from ._statement import release_assumptions, release_scope
from ._validation import check_additions, check_guarantee
from .assumptions import Assumption
from .certificate import Certificate
from .events import Event, ExactRelease
from .exceptions import DeletionRequestError, UnlearningWarning
from .methods import Outcome, Retrain
from .noise import NoiseSource


class UnlearningMixin(DeletionsMixin):
    """``unlearn`` for a net that keeps its training rows in ``rows_``."""

    def unlearn(
        self,
        X_u: Any = None,
        y_u: Any = None,
        epsilon: float | None = 1.0,
        delta: float = 1e-5,
        *,
        indices: Any = None,
        sample_ids: Any = None,
        X_r: Any = None,
        y_r: Any = None,
        assumptions: tuple[Assumption, ...] = (),
        scope: tuple[str, ...] = (),
    ) -> UnlearningMixin:
        """Delete training rows and release a certified model.

        Rows are named in exactly one way. Everything happens on a copy: whatever fails,
        or is interrupted, leaves the net as it was. Requests that wait (:meth:`request_deletion`)
        are served by the same release.

        Parameters
        ----------
        X_u : array-like of shape (n_u, ...), optional
            Rows to delete, by content: equal to the training rows as float32.
        y_u : array-like of shape (n_u,), optional
            Their labels.
        epsilon, delta : float
            The guarantee (T0). Methods that are exact give epsilon = delta = 0 instead.
            ``epsilon=None``: what the noise that the method fixes by hand buys.
        indices : array-like of int, optional
            Positions among the training rows that are left. An empty list is the release
            step alone, certified with ``n_deleted = 0``.
        sample_ids : array-like, optional
            Delete every row of these ids (of ``fit(..., sample_ids=...)``).
        X_r, y_r : array-like, optional
            The rows that stay; needed, and only then, with ``store_data=False``, where
            rows are named by content.
        assumptions, scope : tuple, optional
            What else the certificate should carry, from whoever prepared the rows (a
            pipeline); it can only weaken it.

        Returns
        -------
        self

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        DeletionRequestError
            If the request is malformed: the message names the rows or quotes the value.
        UnknownRowError
            If a row was not trained on, or is not there any more.
        CalibrationError, NotApplicableError, ToleranceNotReachedError
            If the method cannot give the guarantee.
        BudgetExceededError
            If a method with secret state and a horizon has none left for this release (T19).
        LedgerError
            If the ledger cannot be read or written.
        """
        self.check_is_fitted()
        check_guarantee(1.0 if epsilon is None else epsilon, delta)
        check_additions(assumptions, scope)
        rows, positions = self._find_rows(X_u, y_u, indices, sample_ids, X_r, y_r)
        self._hint()
        by_ids, by_content = sample_ids is not None, X_u is not None
        self._serve(rows, positions, by_ids, by_content, (epsilon, delta, assumptions, scope))
        return self

    def _release(
        self,
        retained: TrainingRows,
        deleted: TrainingRows,
        event: Event,
        epsilon: float,
        delta: float,
        assumptions: tuple[Assumption, ...] = (),
        scope: tuple[str, ...] = (),
        corrected: Any = (),
    ) -> dict[str, Any]:
        """Return what this net is after a release; it is not changed here."""
        noise = NoiseSource(self.noise_seed, self.n_releases_)
        refit = partial(self._refit, retained)
        problem = self._problem(retained, deleted, refit, noise, corrected)
        outcome = self.method_.unlearn(problem, event)
        if not np.isfinite(outcome.parameters).all():
            raise ValueError(f"{self.method_!r} returned weights that are not finite")
        outcome = replace(
            outcome,
            assumptions=(*outcome.assumptions, *assumptions),
            scope=(*outcome.scope, *scope),
        )
        certificate = self._certify(outcome, problem, epsilon, delta, retained, deleted)
        return self._released(outcome, retained, certificate)

    def refresh(self) -> UnlearningMixin:
        """Prepare for the next deletion, in idle time: a release drops what made it cheap.

        Uses the released weights and the rows that remain, nothing older, so that earlier
        certificates stand (T18). The weights do not change. Without it the next deletion does
        the same work itself. With ``state="secret"`` nothing was dropped, and nothing is done.

        Returns
        -------
        self

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        DeletionRequestError
            With ``store_data=False``: there are no rows to prepare from.
        """
        self.check_is_fitted()
        if self.rows_ is None:
            raise DeletionRequestError("refresh needs the training rows; use store_data=True")
        if self.method_.state == "secret":
            return self
        nothing = self.rows_.take(np.empty(0, dtype=np.int64))
        problem = self._problem(self.rows_, nothing, lambda: (self.module_, 0.0), NoiseSource())
        self.method_state_ = self.method_.prepare(problem)[1]
        return self

    def _find_rows(
        self, X_u: Any, y_u: Any, indices: Any, sample_ids: Any, X_r: Any = None, y_r: Any = None
    ) -> tuple[TrainingRows, np.ndarray]:
        """Return the present training rows, and the positions of those that are named."""
        by_content = X_u is not None or y_u is not None
        given = [by_content, indices is not None, sample_ids is not None]
        if sum(given) != 1:
            raise DeletionRequestError(
                "name the rows in exactly one way: X_u and y_u, or indices, or sample_ids"
            )
        if self.rows_ is None:
            return self._rows_from_caller(X_u, y_u, X_r, y_r)
        if X_r is not None or y_r is not None:
            raise DeletionRequestError(
                "X_r and y_r are for store_data=False; this net keeps its training rows"
            )
        rows = self.rows_
        if by_content:
            wanted = self._request_rows(X_u, y_u, "X_u", "y_u")
            positions = rows.find_content(wanted.X, wanted.y, self._label_names())
        elif indices is not None:
            positions = rows.find_indices(indices)
        else:
            positions = rows.find_ids(sample_ids)
        return rows, positions

    def _rows_from_caller(
        self, X_u: Any, y_u: Any, X_r: Any, y_r: Any
    ) -> tuple[TrainingRows, np.ndarray]:
        if X_u is None or X_r is None:
            raise DeletionRequestError(
                "this net keeps no training rows (store_data=False): pass the rows to delete as "
                "X_u, "
                "y_u and the rows that stay as X_r, y_r"
            )
        deleted = self._request_rows(X_u, y_u, "X_u", "y_u")
        retained = self._request_rows(X_r, y_r, "X_r", "y_r")
        if len(deleted) + len(retained) != self.n_rows_:
            raise DeletionRequestError(
                f"{len(deleted)} rows to delete and {len(retained)} that stay are not the "
                f"{self.n_rows_} rows of the training set"
            )
        X = np.concatenate([deleted.X, retained.X])
        y = np.concatenate([deleted.y, retained.y])
        return TrainingRows(X, y), np.arange(len(deleted))

    def _split(
        self, rows: TrainingRows, positions: np.ndarray
    ) -> tuple[TrainingRows, TrainingRows]:
        """Return the rows that stay and those that go, if that is a request to serve."""
        retained, deleted = rows.without(positions), rows.take(positions)
        self._check_remaining(retained, deleted)
        return retained, deleted

    def _request_rows(self, X: Any, y: Any, X_name: str, y_name: str) -> TrainingRows:
        if X is None or y is None:
            missing = X_name if X is None else y_name
            raise DeletionRequestError(f"{missing} is missing: pass {X_name} and {y_name} together")
        try:
            return self._encode_request(X, y)
        except (ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, DeletionRequestError):
                raise
            raise DeletionRequestError(f"{X_name}, {y_name}: {error}") from error

    def _check_remaining(self, retained: TrainingRows, deleted: TrainingRows) -> None:
        if not len(retained):
            raise DeletionRequestError(
                f"all {len(deleted)} training rows would be deleted; nothing remains to train on. "
                "Discard the model instead"
            )

    def _certify(
        self,
        outcome: Outcome,
        problem: Any,
        epsilon: float,
        delta: float,
        retained: TrainingRows,
        deleted: TrainingRows,
    ) -> Certificate:
        exact = isinstance(outcome.event, ExactRelease)
        duplicates = retained.count_duplicates(deleted)
        assumptions = (*outcome.assumptions, *release_assumptions(self, outcome, duplicates))
        return Certificate.issue(
            outcome.event,
            0.0 if exact else epsilon,
            0.0 if exact else delta,
            assumptions,
            method=" ".join(repr(self.method_).split()),
            n_deleted=len(deleted),
            n_retained=len(retained),
            n_parameters=problem.setting.n_parameters,
            scope=release_scope(self, outcome),
            weights_norm=float(np.linalg.norm(outcome.parameters - problem.reference)),
            diagnostics=outcome.diagnostics | {"duplicates_retained": duplicates},
            state=self.method_.state,
            earlier_mu=self.release_mus_ if self.method_.state == "secret" else (),
        )

    def _released(
        self, outcome: Outcome, retained: TrainingRows, certificate: Certificate
    ) -> dict[str, Any]:
        """Return the attributes after the release; of the old state only what the method keeps."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        module = deepcopy(self.module_ if outcome.module is None else outcome.module)
        vars(twin)["module_"] = module
        for parameter in module.parameters():
            parameter.grad = None
        if outcome.module is None:
            twin._set_weights(outcome.parameters)
        vars(twin).update(
            history_=History(),
            rng_state_=None,
            method_state_=outcome.state,
            rows_=None if self.rows_ is None else retained,
            n_rows_=len(retained),
            n_releases_=self.n_releases_ + 1,
            release_mus_=(*self.release_mus_, certificate.proved_mu),
            certificate_=certificate,
        )
        verbose, vars(twin)["verbose"] = twin.verbose, 0
        twin._initialize_optimizer()
        twin._initialize_callbacks()
        vars(twin)["verbose"] = verbose
        return vars(twin)

    def _hint(self) -> None:
        numbers = is_regressor(self)
        if self.method == "auto" and isinstance(self.method_, Retrain) and not self.n_releases_:
            warnings.warn(
                "method='auto' retrains from scratch, which is exact: no cheaper method is "
                f"proved to keep the accuracy of {type(self.module_).__name__}. For deletion "
                f"without retraining use module={'LinearRegressor' if numbers else 'LinearHead'} "
                "on fixed features (formal); OutputPerturbation() covers any module and destroys "
                "most. Say method=Retrain() to silence this.",
                UnlearningWarning,
                stacklevel=3,
            )
