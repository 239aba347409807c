"""Deletion as a service: each request in the ledger before the work, each release before the swap.

The order is ``requested`` (on disk), the work on a copy, ``released`` with its certificate (on
disk), the new state of the net (in memory). A process that dies

- before ``released`` leaves a request that is pending: whatever net is loaded next, the next
  request or release finds its rows again and queues them;
- after ``released`` leaves a net on disk that is older than its ledger: the next release takes
  the rows out once more, under a request that names the one it repeats.

The new rows of a correction are in no ledger: one that was cut off fails, and one that the net
missed is repeated as a deletion of the rows as they were, unless it is asked for again first.

Rows are found again by keyed digests (:mod:`sk_unlearn._row_names`). ``heard_`` is the head of
the ledger up to which a net has taken in what happened; a release is recorded only if no other
net with the same origin has released since.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np

from ._budget import BudgetMixin
from ._interrupt import hold_interrupt
from ._ledger_format import GENESIS, RELEASED, REQUESTED
from ._row_names import find_rows, owners, row_names
from ._rows import TrainingRows
from ._validation import check_additions, check_guarantee
from .assumptions import Assumption
from .certificate import Certificate
from .exceptions import (
    DeletionRequestError,
    LedgerError,
    SkUnlearnError,
    UnknownRowError,
    UnlearningWarning,
)
from .ledger import DeletionLedger, Head, LedgerEntry

Queue = dict[str, list[int]]


class DeletionsMixin(BudgetMixin):
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
            the last of a class, or this net keeps none (``store_data=False``).
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
        queue = self._recover(rows)
        positions = self._not_queued(rows, positions, queue, X_u is not None)
        self._split(rows, _union(queue, positions))
        with hold_interrupt():
            new = self._record(rows.take(positions), sample_ids is not None, request_id)
            self.queue_ = queue | {new: positions.tolist()}
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

        Whatever fails leaves the requests queued and the net as it was.

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
            split = self._split(rows, _union(queue))
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
        elif len(_union(queue, positions)) > len(positions):
            raise DeletionRequestError(
                f"the requests {list(queue)[:5]} wait in {self.ledger_!r} since an earlier process "
                "ended: X_u must contain their rows too"
            )
        split = self._split(rows, _union(queue, positions))
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
        what fails leaves it as it was. In a file it says so.
        """
        new, request = uuid4().hex, (rows, by_ids)
        on_disk = self.ledger_.path is not None
        try:
            if on_disk:
                self._record(*request, new, amend=amend)
            state = release()
            with hold_interrupt():
                if not on_disk:
                    self._record(*request, new, amend=amend)
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
                end = _end(since, self.heard_)
                head = self.ledger_.released(ids, new["certificate_"], detail, after=end)
            vars(self).update(new, queue_={}, heard_=head)

    def _record(
        self,
        rows: TrainingRows,
        by_ids: bool,
        request_id: str | None = None,
        repeats: str | None = None,
        amend: bool = False,
    ) -> str:
        """Record a request; in a file, with what finds its rows again."""
        names: list[Any] = list(owners(rows))
        if not by_ids and self.ledger_.path is not None:
            names += row_names(rows)
        detail: dict[str, Any] = {"model": self.model_id_, "by_ids": by_ids}
        if repeats is not None:
            detail["repeats"] = repeats
        if amend:
            detail["amend"] = True
        try:
            return self.ledger_.request(len(rows), names or None, request_id, detail)
        except (TypeError, ValueError) as error:
            raise DeletionRequestError(str(error)) from error

    def _recover(self, rows: TrainingRows) -> Queue:
        """Return the queue as the ledger has it: with what others, or an earlier process, added."""
        pending = {r: e for r, e in self.ledger_.pending().items() if self._ours(e)}
        for request_id in [r for r, e in pending.items() if e.detail.get("amend")]:
            del pending[request_id]
            self.ledger_.failed(request_id, "the process ended before the correction: amend again")
        queue = {r: p for r, p in self.queue_.items() if r in pending}
        added = [r for r in pending if r not in queue]
        for request_id in added:
            found = self._find(pending[request_id], rows, queue)
            if len(found):
                queue[request_id] = found.tolist()
            else:
                self.ledger_.failed(request_id, "none of its rows is among the training rows")
        if self.rows_ is not None:
            self.queue_ = queue
        if added:
            _warn(
                f"requests {added[:5]} ({len(added)} in all) are in {self.ledger_!r}, but were not "
                "served: this net is of before, and they are served by its next release"
            )
        return queue

    def _take_in(self, rows: TrainingRows) -> Queue:
        """Return what the next release must serve: what waits, and what this net missed."""
        queue, since = self._recover(rows), self.ledger_.since(self.heard_)
        missed = [e for e in since if e.state == RELEASED and self._ours(e)]
        if missed:
            mus = [Certificate.from_json(str(e.certificate)).proved_mu for e in missed]
            names = [request_id for e in missed for request_id in e.request_ids]
            with hold_interrupt():
                queue = self._repeat(rows, queue, missed)
                self.n_releases_ += len(missed)
                self.release_mus_ = (*self.release_mus_, *mus)
                self.heard_ = _end(since, self.heard_)
            _warn(
                f"requests {names[:5]} ({len(names)} in all) were released after this net was "
                f"stored, as {self.ledger_!r} says: the ledger is of after, this net of before. "
                "Its next release takes their rows out once more, and guarantees() composes both"
                + self._about_corrections(queue)
            )
        return queue

    def _corrections(self, queue: Queue) -> Queue:
        """Return what in a queue repeats a correction, whose new rows are not known here."""
        entries = {e.request_ids[0]: e for e in self._own_entries() if e.state == REQUESTED}
        first = {r: entries[entries[r].detail.get("repeats", r)] for r in queue}
        return {r: p for r, p in queue.items() if first[r].detail.get("amend")}

    def _about_corrections(self, queue: Queue) -> str:
        lost = _union(self._corrections(queue))
        if not len(lost):
            return ""
        return (
            f". {len(lost)} of these rows had been corrected, and what they became is in no "
            "ledger: call amend again with these rows as they are here, before anything else, or "
            "the release takes them out, and partial_fit can add the corrected ones"
        )

    def _repeat(self, rows: TrainingRows, queue: Queue, missed: list[LedgerEntry]) -> Queue:
        """Queue once more what was released from this net after it was stored."""
        entries = self._own_entries()
        requests = {e.request_ids[0]: e for e in entries if e.state == REQUESTED}
        first = {r: entry.detail.get("repeats", r) for r, entry in requests.items()}
        known = [e for e in entries if e.state == RELEASED and e.sequence <= self.heard_.sequence]
        done = {first[r] for entry in known for r in entry.request_ids}
        done |= {first[r] for r in queue if first[r] != r}
        for request_id in dict.fromkeys(first[r] for entry in missed for r in entry.request_ids):
            if request_id not in done:
                found = self._find(requests[request_id], rows, queue)
                if len(found):
                    new = self._record(rows.take(found), False, repeats=request_id)
                    queue = queue | {new: found.tolist()}
        if self.rows_ is not None:
            self.queue_ = queue
        return queue

    def _find(self, request: LedgerEntry, rows: TrainingRows, queue: Queue) -> np.ndarray:
        free = np.setdiff1d(np.arange(len(rows)), _union(queue))
        found = find_rows(self.ledger_, request, rows, free)
        if not len(found) and self.rows_ is None:
            raise DeletionRequestError(
                f"the rows of request {request.request_ids[0]!r} in {self.ledger_!r} must go too, "
                "and cannot be found without the ids that fit was given: serve it with a net that "
                "keeps its rows, or, if it waits, end it with ledger_.refused(request_id, reason)"
            )
        return found

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
        taken = np.isin(positions, _union(queue))
        if not taken.any():
            return positions
        if by_content:
            free = np.setdiff1d(np.arange(len(rows)), _union(queue))
            wanted = rows.take(positions)
            with suppress(UnknownRowError):
                found = rows.take(free).find_content(wanted.X, wanted.y, self._label_names())
                return free[found]
        by = [r for r, p in queue.items() if np.isin(p, positions).any()]
        raise DeletionRequestError(
            f"{int(taken.sum())} of these {len(positions)} rows are queued already, by the "
            f"requests {by[:5]}; process_deletions() serves them"
        )

    def _freeze_setting(self) -> None:
        queued = vars(self).get("queue_")
        waiting = [r for r in queued if r in self.ledger_.pending()] if queued else []
        if waiting:
            raise DeletionRequestError(
                f"requests {waiting[:5]} wait to be served, and fit would forget which rows they "
                "name; call process_deletions() first, or ledger_.refused(request_ids, reason)"
            )
        super()._freeze_setting()
        ledger = DeletionLedger(self.ledger)
        if "ledger_" not in vars(self) or self.ledger_.path != ledger.path:
            self.ledger_ = ledger
        self.model_id_, self.heard_ = uuid4().hex, GENESIS
        self.queue_: Queue = {}

    def _leave_ledger(self) -> None:
        """Go on with an empty ledger in memory and no budget; for copies that are only tried."""
        config = self.fit_config_ | {"budget": None}
        vars(self).update(ledger_=DeletionLedger(), heard_=GENESIS, queue_={}, fit_config_=config)


def _union(queue: Queue, positions: Any = ()) -> np.ndarray:
    """Return all positions in a queue, and these, sorted and once each."""
    parts = [np.asarray(p, dtype=np.int64) for p in (*queue.values(), positions)]
    return np.unique(np.concatenate(parts))


def _end(entries: list[LedgerEntry], before: Head) -> Head:
    return Head(entries[-1].sequence, entries[-1].hash) if entries else before


def _warn(message: str) -> None:
    warnings.warn(message, UnlearningWarning, stacklevel=5)
