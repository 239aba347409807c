"""A net and its ledger, brought together: what waits there, and what this net missed.

A process that dies

- before ``released`` leaves a request that is pending: whatever net is loaded next, the next
  request or release finds its rows again and queues them;
- after ``released`` leaves a net on disk that is older than its ledger: the next request or
  release queues the rows once more, under a request that names the one it repeats.

The new rows of a correction are in no ledger: one that was cut off fails, and one that the net
missed is repeated as a deletion of the rows as they were, unless it is asked for again first.

Rows are found again by keyed digests (:mod:`sk_unlearn._row_names`). ``heard_`` is the head of
the ledger up to which a net has taken in what happened, and ``behind_`` names the requests that
were released from elsewhere and whose rows it still has: they are queued, but another process may
serve that queue, for its own copy.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ._budget import BudgetMixin
from ._interrupt import hold_interrupt
from ._ledger_format import RELEASED, REQUESTED
from ._row_names import find_rows, owners, row_names
from ._rows import TrainingRows
from .certificate import Certificate
from .exceptions import DeletionRequestError, UnlearningWarning
from .ledger import Head, LedgerEntry

Queue = dict[str, list[int]]


class RecoveryMixin(BudgetMixin):
    """What a net reads from its ledger before it serves, and the requests that it writes."""

    def _record(
        self,
        rows: TrainingRows,
        by_ids: bool,
        request_id: str | None = None,
        **more: Any,
    ) -> str:
        """Record a request; in a file, with what finds its rows again."""
        names: list[Any] = list(owners(rows))
        if not by_ids and self.ledger_.path is not None:
            names += row_names(rows)
        detail = {"model": self.model_id_, "by_ids": by_ids} | more
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
        again = {r: pending[r].detail["repeats"] for r in added if "repeats" in pending[r].detail}
        served = self._served(self._own_entries()) if again else set()
        for request_id in added:
            found = []
            if again.get(request_id) not in served:  # else it is another copy's of this net
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
        waiting, since = self._recover(rows), self.ledger_.since(self.heard_)
        queue, missed = waiting, [e for e in since if e.state == RELEASED and self._ours(e)]
        told = set(self.behind_)
        if missed or self.behind_:
            mus = [Certificate.from_json(str(e.certificate)).proved_mu for e in missed]
            with hold_interrupt():
                queue, self.behind_ = self._repeat(rows, waiting, missed)
                self.n_releases_ += len(missed)
                self.release_mus_ = (*self.release_mus_, *mus)
                self.heard_ = end_of(since, self.heard_)
        if queue.keys() > waiting.keys() or not told.issuperset(self.behind_):
            names = [request_id for e in missed for request_id in e.request_ids] or self.behind_
            _warn(
                f"requests {names[:5]} ({len(names)} in all) were released after this net was "
                f"stored, as {self.ledger_!r} says: the ledger is of after, this net of before. "
                "Its next release takes their rows out once more, and guarantees() composes both"
                + self._about_corrections(queue)
            )
        return queue

    def _hear(self) -> None:
        """Move on past entries that ask nothing of this net, so that nobody reads them again."""
        since = self.ledger_.since(self.heard_)
        if not any(e.state == RELEASED and self._ours(e) for e in since):
            self.heard_ = end_of(since, self.heard_)

    def _corrections(self, queue: Queue) -> Queue:
        """Return what in a queue repeats a correction, whose new rows are not known here."""
        if not queue:
            return {}
        entries = {e.request_ids[0]: e for e in self._own_entries() if e.state == REQUESTED}
        first = {r: entries[entries[r].detail.get("repeats", r)] for r in queue}
        return {r: p for r, p in queue.items() if first[r].detail.get("amend")}

    def _about_corrections(self, queue: Queue) -> str:
        lost = union(self._corrections(queue))
        if not len(lost):
            return ""
        return (
            f". {len(lost)} of these rows had been corrected, and what they became is in no "
            "ledger: call amend again with these rows as they are here, before anything else, or "
            "the release takes them out, and partial_fit can add the corrected ones"
        )

    def _repeat(
        self, rows: TrainingRows, queue: Queue, missed: list[LedgerEntry]
    ) -> tuple[Queue, tuple[str, ...]]:
        """Queue once more what was released from this net elsewhere; say which requests that are.

        Where a request that waits names some of these rows too, because it came at the same
        moment, the repetition says so: both releases tell something about them.
        """
        entries = self._own_entries()
        requests = {e.request_ids[0]: e for e in entries if e.state == REQUESTED}
        first = {r: entry.detail.get("repeats", r) for r, entry in requests.items()}
        queued, behind = {first[r] for r in queue if first[r] != r}, []
        released = [first[r] for entry in missed for r in entry.request_ids]
        served = self._served(entries)
        for request_id in dict.fromkeys((*self.behind_, *released)):
            if request_id in served:
                continue
            if request_id not in queued:
                found = self._find(requests[request_id], rows, queue)
                if not len(found):
                    continue
                too = [r for r, positions in queue.items() if np.isin(positions, found).any()]
                also = {"shares": too} if too else {}
                new = self._record(rows.take(found), False, repeats=request_id, **also)
                queue = queue | {new: found.tolist()}
            behind.append(request_id)
        if self.rows_ is not None:
            self.queue_ = queue
        return queue, tuple(behind)

    def _served(self, entries: list[LedgerEntry]) -> set[str]:
        """Return the requests whose rows this net has let go of, as first asked for."""
        first = {e.request_ids[0]: e.detail.get("repeats") for e in entries if e.state == REQUESTED}
        known = [e for e in entries if e.state == RELEASED and e.sequence <= self.heard_.sequence]
        return {first[r] or r for entry in known for r in entry.request_ids} - {*self.behind_}

    def _find(self, request: LedgerEntry, rows: TrainingRows, queue: Queue) -> np.ndarray:
        free = np.setdiff1d(np.arange(len(rows)), union(queue))
        found = find_rows(self.ledger_, request, rows, free)
        if not len(found) and self.rows_ is None:
            raise DeletionRequestError(
                f"the rows of request {request.request_ids[0]!r} in {self.ledger_!r} must go too, "
                "and cannot be found without the ids that fit was given: serve it with a net that "
                "keeps its rows, or, if it waits, end it with ledger_.refused(request_id, reason)"
            )
        return found


def union(queue: Queue, positions: Any = ()) -> np.ndarray:
    """Return all positions in a queue, and these, sorted and once each."""
    parts = [np.asarray(p, dtype=np.int64) for p in (*queue.values(), positions)]
    return np.unique(np.concatenate(parts))


def end_of(entries: list[LedgerEntry], before: Head) -> Head:
    return Head(entries[-1].sequence, entries[-1].hash) if entries else before


def _warn(message: str) -> None:
    warnings.warn(message, UnlearningWarning, stacklevel=5)
