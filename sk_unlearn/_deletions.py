"""Deletion as a service: each request in the ledger before the work, each release before the swap.

The order is ``requested`` (on disk), the work on a copy, ``released`` with its certificate (on
disk), the new state of the net (in memory). What a crash between them leaves is taken up by
:mod:`sk_unlearn._recovery`.

A release is recorded only if no other net with the same origin has released since. So several
processes may serve copies of one net through one ledger: a request that one is about to serve
looks to another like one that a crash left, and both may work on it, but only one records the
release; the other gets a LedgerError, has changed nothing, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np

from ._interrupt import hold_interrupt
from ._ledger_format import GENESIS, RELEASED
from ._recovery import Queue, RecoveryMixin, end_of, union
from ._rows import TrainingRows
from ._validation import check_additions, check_guarantee
from .assumptions import Assumption
from .exceptions import DeletionRequestError, LedgerError, SkUnlearnError, UnknownRowError
from .ledger import DeletionLedger


class DeletionsMixin(RecoveryMixin):
    """``request_deletion`` and ``process_deletions``, and what a net does to its ledger."""

    def request_deletion(
        self,
        X_u: Any = None,
        y_u: Any = None,
        *,
        indices: Any = None,
        sample_ids: Any = None,
        request_id: str | None = None,
    ) -> str:
        """Queue rows for the next release, by :meth:`process_deletions` or ``unlearn``.

        With a ledger file the request is on the disk when this returns: whatever happens to
        this process, the next one that releases from this net serves it.

        Parameters
        ----------
        X_u, y_u, indices, sample_ids
            The rows, named in exactly one way, as in ``unlearn``; `indices` are positions
            among the rows that are left now. One id may own many rows.
        request_id : str, optional
            A name that the ledger does not have yet. Keep personal data out of it.

        Returns
        -------
        str
            The request's id.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        DeletionRequestError
            If the rows are malformed, not there (UnknownRowError), none at all, queued already,
            the last of a class, or this net keeps none (``store_data=False``); if the ledger
            says that they were released from a later state of this net (one that was lost, or
            another process has): then they are queued already, to be taken out of this one too.
        LedgerError
            If `request_id` was used before, or the ledger cannot be written.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sk_unlearn import CertifiedNeuralClassifier
        >>> from sk_unlearn.modules import LinearHead
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = CertifiedNeuralClassifier(LinearHead, C=100.0)
        >>> clf = clf.fit(X, y, sample_ids=[f"user{i // 3}" for i in range(150)])
        >>> clf.request_deletion(sample_ids=["user7"], request_id="ticket-1")
        'ticket-1'
        >>> clf.request_deletion(indices=[0, 80], request_id="ticket-2")
        'ticket-2'
        >>> clf.process_deletions(epsilon=1.0, delta=1e-5).certificate_.n_deleted
        5
        >>> clf.ledger_.find("user7"), clf.ledger_.state("ticket-1")
        (['ticket-1'], 'released')
        >>> [(g.request_id, g.n_rows, g.epsilon) for g in clf.guarantees()]
        [('ticket-1', 3, 1.0), ('ticket-2', 2, 1.0)]
        """
        self.check_is_fitted()
        rows = self._own_rows()
        _, positions = self._find_rows(X_u, y_u, indices, sample_ids)
        if not len(positions):
            raise DeletionRequestError("the request names no rows; name at least one")
        queue = self._take_in(rows)
        positions = self._not_queued(rows, positions, queue, X_u is not None)
        self._split(TrainingRows(rows.X[:, :0], rows.y), union(queue, positions))
        with hold_interrupt():
            new = self._record(rows.take(positions), sample_ids is not None, request_id)
            self.queue_ = queue | {new: positions.tolist()}
            self._hear()
        return new

    def process_deletions(
        self,
        epsilon: float | None = 1.0,
        delta: float = 1e-5,
        *,
        assumptions: tuple[Assumption, ...] = (),
        scope: tuple[str, ...] = (),
    ) -> DeletionsMixin:
        """Serve all requests that wait, in one release; without any, do nothing.

        Whatever fails leaves the requests queued and the net as it was. If another process
        releases from a copy of this net meanwhile, through the same ledger, that is a LedgerError:
        call again.

        Parameters
        ----------
        epsilon, delta, assumptions, scope
            As in ``unlearn``.

        Returns
        -------
        self

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before fit.
        DeletionRequestError, CalibrationError, NotApplicableError, ToleranceNotReachedError, \
BudgetExceededError
            As in ``unlearn``.
        LedgerError
            If the ledger cannot be read or written.
        """
        self.check_is_fitted()
        check_guarantee(1.0 if epsilon is None else epsilon, delta)
        check_additions(assumptions, scope)
        rows = self._own_rows()
        queue = self._take_in(rows)
        if queue:
            self._hint()
            split = self._split(rows, union(queue))
            asked = self._asked(epsilon, delta, queue)
            self._commit(queue, self._release(*split, *asked, assumptions, scope))
        return self

    def _serve(
        self,
        rows: TrainingRows,
        positions: np.ndarray,
        by_ids: bool,
        by_content: bool,
        promise: tuple[float | None, float, tuple[Assumption, ...], tuple[str, ...]],
    ) -> None:
        """Record one request and release it, together with all that wait."""
        queue = self._take_in(rows)
        if self.rows_ is not None:
            positions = self._not_queued(rows, positions, queue, by_content)
        elif len(union(queue, positions)) > len(positions):
            raise DeletionRequestError(
                f"the requests {list(queue)[:5]} wait in {self.ledger_!r} since an earlier process "
                "ended: X_u must contain their rows too"
            )
        split = self._split(rows, union(queue, positions))
        epsilon, delta, *more = promise
        asked = self._asked(epsilon, delta, queue)
        release = partial(self._release, *split, *asked, *more)
        self._release_recorded(rows.take(positions), by_ids, queue, release)

    def _release_recorded(
        self,
        rows: TrainingRows,
        by_ids: bool,
        waiting: Iterable[str],
        release: Callable[[], dict[str, Any]],
        amend: bool = False,
    ) -> None:
        """Record a request and serve it, with those that wait; record how it failed, if it does.

        A ledger in memory dies with the process, so nothing is written to it before the end:
        what fails before leaves it as it was. In a file it says so.
        """
        new, request = uuid4().hex, (rows, by_ids)
        detail = {"amend": True} if amend else {}
        on_disk = self.ledger_.path is not None
        try:
            if on_disk:
                self._record(*request, new, **detail)
            state = release()
            with hold_interrupt():
                if not on_disk:
                    self._record(*request, new, **detail)
                self._commit([*waiting, new], state)
        except BaseException as error:
            refused = isinstance(error, SkUnlearnError) and not isinstance(error, LedgerError)
            end = self.ledger_.refused if refused else self.ledger_.failed
            with hold_interrupt(), suppress(LedgerError):
                end(new, type(error).__name__)  # its message may quote a label or an id
            raise

    def _commit(self, request_ids: Iterable[str], new: dict[str, Any]) -> None:
        """Write ``released``, then become what was released, as one step for Ctrl-C."""
        ids, detail = tuple(request_ids), {"model": self.model_id_}
        with hold_interrupt():
            head = None
            while head is None:
                since = self.ledger_.since(self.heard_)
                if any(entry.state == RELEASED and self._ours(entry) for entry in since):
                    raise LedgerError(
                        f"another process has released from this net since, as {self.ledger_!r} "
                        "says; nothing was released here. Call again, to go on from there"
                    )
                end = end_of(since, self.heard_)
                head = self.ledger_.released(ids, new["certificate_"], detail, after=end)
            vars(self).update(new, queue_={}, heard_=head, behind_=())

    def _own_rows(self) -> TrainingRows:
        if self.rows_ is None:
            raise DeletionRequestError(
                "this net keeps no training rows (store_data=False), so that it cannot queue any: "
                "call unlearn(X_u, y_u, X_r=..., y_r=...) with all requests together"
            )
        return self.rows_

    def _not_queued(
        self, rows: TrainingRows, positions: np.ndarray, queue: Queue, by_content: bool
    ) -> np.ndarray:
        """Return `positions`, or further copies of these rows where the first are queued."""
        taken = np.isin(positions, union(queue))
        if not taken.any():
            return positions
        if by_content:
            free = np.setdiff1d(np.arange(len(rows)), union(queue))
            wanted = rows.take(positions)
            with suppress(UnknownRowError):
                found = rows.take(free).find_content(wanted.X, wanted.y, self._label_names())
                return free[found]
        by = [r for r, p in queue.items() if np.isin(p, positions).any()]
        pending = self.ledger_.pending()
        before = [pending[r].detail["repeats"] for r in by if "repeats" in pending[r].detail]
        since = "queued already" + (
            f", because requests {before[:5]} released them from a later state of this net,"
            if before
            else ","
        )
        raise DeletionRequestError(
            f"{int(taken.sum())} of these {len(positions)} rows are {since} by the requests "
            f"{by[:5]}; process_deletions() serves them"
        )

    def _freeze_setting(self) -> None:
        fitted = "model_id_" in vars(self)
        pending = self.ledger_.pending() if fitted else {}
        waiting = [request_id for request_id, entry in pending.items() if self._ours(entry)]
        if waiting:
            raise DeletionRequestError(
                f"requests {waiting[:5]} wait to be served, and fit would forget which rows they "
                "name; call process_deletions() first, or ledger_.refused(request_ids, reason)"
            )
        super()._freeze_setting()
        ledger = DeletionLedger(self.ledger)
        if "ledger_" not in vars(self) or self.ledger_.path != ledger.path:
            self.ledger_ = ledger
        self.model_id_, self.heard_, self.behind_ = uuid4().hex, GENESIS, ()
        self.queue_: Queue = {}

    def _leave_ledger(self) -> None:
        """Go on with an empty ledger in memory and no budget; for copies that are only tried."""
        config = self.fit_config_ | {"budget": None}
        start = {"ledger_": DeletionLedger(), "heard_": GENESIS, "behind_": (), "queue_": {}}
        vars(self).update(start, fit_config_=config)
