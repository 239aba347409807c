"""A net and its ledger: what is written when, and which of the two is ahead after a crash.

A release is recorded in this order: ``requested`` (on disk), the work on a copy, ``released``
with its certificate (on disk), the new state of the net (in memory). So a process that dies

- before ``released``: the request is pending, and the net that was stored is of before; the
  next start queues the request again.
- after ``released``: the ledger is of after, and a net that was stored earlier is of before;
  its last release is not the ledger's. The next start queues the rows once more, under a new
  request that names the one it repeats, and :meth:`guarantees` composes both releases.

Rows are found again by keyed digests (:mod:`sk_unlearn._recovery`). With a ledger in memory,
net and ledger are one object, and what raises leaves both as they were.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import numpy as np

from ._guarantees import FIT, RELEASE, SECRET, Chronicle, belongs
from ._interrupt import hold_interrupt
from ._recovery import BY_IDS, BY_ROWS, find_rows, owners, row_names
from ._rows import TrainingRows
from .exceptions import DeletionRequestError, LedgerError, SkUnlearnError, UnlearningWarning
from .ledger import DeletionLedger

_TRANSIENT = ("secret_weights_", "_seen")


class RecordMixin:
    """What a net with ``unlearn`` does to its ledger."""

    def _freeze_setting(self) -> None:
        waiting = list(vars(self).get("queue_", ()))
        if waiting:
            raise DeletionRequestError(
                f"requests {waiting[:5]} still wait to be served, and fit would forget which rows "
                "they named; call process_deletions first, or refuse them with "
                "ledger_.refused(request_ids, reason)"
            )
        super()._freeze_setting()
        opened = vars(self).get("_ledger")
        if opened is not None and opened.path != _absolute(self.ledger):
            del self.__dict__["_ledger"]
        for name in _TRANSIENT:
            self.__dict__.pop(name, None)
        self.queue_: dict[str, np.ndarray] = {}
        self.model_id_ = self.release_id_ = uuid4().hex

    @property
    def ledger_(self) -> DeletionLedger:
        """Ledger of this net's deletions; a file is made by the first deletion."""
        if "model_id_" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no ledger_ before fit")
        opened = vars(self).get("_ledger")
        if opened is None:
            opened = vars(self)["_ledger"] = DeletionLedger(self.ledger)
        return opened

    def _ledger_file(self) -> DeletionLedger | None:
        in_memory = self.ledger is None if "_ledger" not in vars(self) else not self._ledger.path
        return None if in_memory else self.ledger_

    def _detach(self) -> None:
        """Leave ledger, queue and budget behind; for copies that are only looked at."""
        self.__dict__.pop("_ledger", None)
        self.__dict__.pop("_seen", None)
        vars(self).update(ledger=None, queue_={})
        vars(self).update(fit_config_=self.fit_config_ | {"ledger": None, "budget": None})

    def _chronicle(self) -> Chronicle:
        known = "_ledger" in vars(self) or self.ledger is not None
        return Chronicle(self.ledger_ if known else DeletionLedger(), self.model_id_)

    def _starts_from(self) -> str:
        if self.release_id_ == self.model_id_:
            return FIT
        return SECRET if "secret_weights_" in vars(self) else RELEASE

    def _request(
        self, ledger: DeletionLedger, rows: TrainingRows, named_by: str, **more: Any
    ) -> str:
        """Record a request for rows; in a file, with what finds them again."""
        names: list[Any] = list(owners(rows))
        if ledger.path is not None and named_by == BY_ROWS:
            names += row_names(rows)
        request_id = more.pop("request_id", None)
        detail = {"model": self.model_id_, "named_by": named_by} | more
        return ledger.request(len(rows), names or None, request_id, detail)

    def _commit(
        self, ledger: DeletionLedger, ids: Iterable[str], new: dict[str, Any], gone: Any
    ) -> None:
        """Write ``released``, then become what was released; Ctrl-C waits until both are done."""
        ids = tuple(ids)
        queue = {r: p for r, p in self.queue_.items() if r not in ids}
        if gone is not None:
            queue = {r: p - np.searchsorted(np.sort(gone), p) for r, p in queue.items()}
        with hold_interrupt():
            ledger.released(ids, new["certificate_"])
            vars(self).update(new, queue_=queue, _ledger=ledger)
            self._note_head(ledger, 1)

    def _serve(
        self,
        retained: TrainingRows,
        deleted: TrainingRows,
        positions: np.ndarray | None,
        named_by: str,
        release: Callable[[], dict[str, Any]],
    ) -> None:
        """Record one request, run its release, and record what became of it."""
        ledger = self._ledger_file()
        also = self._also_served(retained, deleted, positions)
        if ledger is None:
            new = release()
            memory = vars(self).get("_ledger") or DeletionLedger()
            with hold_interrupt():
                self._commit(memory, [self._request(memory, deleted, named_by)], new, positions)
            return
        with hold_interrupt():
            request_id = self._request(ledger, deleted, named_by)
            self._note_head(ledger, 1)
        try:
            self._commit(ledger, [request_id, *also], release(), positions)
        except BaseException as error:
            with hold_interrupt(), suppress(LedgerError):
                end = ledger.refused if isinstance(error, SkUnlearnError) else ledger.failed
                end(request_id, _reason(error))
                self._note_head(ledger, 1)
            raise

    def _also_served(
        self, retained: TrainingRows, deleted: TrainingRows, positions: np.ndarray | None
    ) -> list[str]:
        """Check a direct ``unlearn`` against the queue; without stored rows it empties it."""
        if positions is None:
            return self._served_by_caller(retained, deleted)
        self._catch_up(self.rows_)
        taken = [r for r, p in self.queue_.items() if np.isin(p, positions).any()]
        if taken:
            raise DeletionRequestError(
                f"some of these rows are queued already, by the requests {taken[:5]}; call "
                "process_deletions"
            )
        late = [r for r in self.queue_ if r in vars(self).get("_late", ())]
        if late:
            raise DeletionRequestError(
                f"requests {late[:5]} repeat releases that this net lost in a crash; call "
                "process_deletions first"
            )
        return []

    def _served_by_caller(self, retained: TrainingRows, deleted: TrainingRows) -> list[str]:
        rows = [np.concatenate(parts) for parts in ((deleted.X, retained.X), (deleted.y, retained.y))]
        self.__dict__.pop("_seen", None)
        try:
            self._catch_up(TrainingRows(*rows))
            waiting = dict(self.queue_)
        finally:
            self.queue_ = {}
        left_out = [r for r, p in waiting.items() if (p >= len(deleted)).any()]
        if left_out:
            raise DeletionRequestError(
                f"requests {left_out[:5]} wait in the ledger since an earlier process ended; X_u "
                "must contain their rows too"
            )
        return list(waiting)

    def _catch_up(self, rows: TrainingRows) -> None:
        """Let the queue follow a ledger file that others, or an earlier process, wrote to."""
        ledger = self._ledger_file()
        if ledger is None or ledger.head == vars(self).get("_seen"):
            return
        head = ledger.head
        told = Chronicle(ledger, self.model_id_)
        if self.release_id_ not in (self.model_id_, *(node.release for node in told.nodes)):
            raise LedgerError(
                f"{ledger!r} does not hold the last release of this net: the net is newer than its "
                "ledger, or the ledger is another one"
            )
        waiting = [r for r, state in told.states.items() if state == "requested"]
        queue = {r: p for r, p in self.queue_.items() if r in waiting}
        again = [r for r in waiting if r not in queue]
        for request_id in again:
            queue[request_id] = self._find(ledger, told, request_id, rows, queue)
        lost = told.lost(self.release_id_)
        with hold_interrupt():
            for request_id in lost:
                found = self._find(ledger, told, request_id, rows, queue)
                if len(found):
                    repeat = rows.take(found)
                    new = self._request(ledger, repeat, BY_ROWS, repeats=request_id)
                    queue[new] = found
            for request_id in [r for r in again if not len(queue[r])]:
                ledger.failed(request_id, "its rows are not among the training rows of this net")
                del queue[request_id]
            self._adopt(ledger, queue, head)
        self._tell(again, lost)

    def _adopt(self, ledger: DeletionLedger, queue: dict[str, np.ndarray], head: Any) -> None:
        pending = ledger.pending()
        late = tuple(
            r for r, e in pending.items() if belongs(e, self.model_id_) and "repeats" in e.detail
        )
        appended = ledger.head.sequence - head.sequence
        vars(self).update(queue_=queue, _late=late, _seen=head)
        self._note_head(ledger, appended)

    def _find(
        self,
        ledger: DeletionLedger,
        told: Chronicle,
        request_id: str,
        rows: TrainingRows,
        queue: dict[str, np.ndarray],
    ) -> np.ndarray:
        entry = told.requests[request_id]
        with ledger._store.explained():
            key = ledger._key.read()
        if key is None and entry.n_rows:
            raise LedgerError(
                f"request {request_id!r} waits in {ledger!r}, but its key was destroyed, so its "
                "rows cannot be found; record it as failed, and request them anew"
            )
        free = np.ones(len(rows), dtype=bool)
        for positions in queue.values():
            free[positions] = False
        digests = entry.sample_digests or ()
        named_by = entry.detail.get("named_by", BY_IDS)
        return find_rows(rows, np.flatnonzero(free), digests, named_by, key or b"")

    def _tell(self, again: list[str], lost: list[str]) -> None:
        if again:
            warnings.warn(
                f"requests {again[:5]} ({len(again)} in all) were recorded, but not served, when "
                "an earlier process ended: this net is of before, and they are queued again",
                UnlearningWarning,
                stacklevel=5,
            )
        if lost:
            warnings.warn(
                f"requests {lost[:5]} ({len(lost)} in all) were released, but this net was stored "
                "before: the ledger is of after, the net of before. Their rows are queued once "
                "more, and guarantees() composes both releases",
                UnlearningWarning,
                stacklevel=5,
            )

    def _note_head(self, ledger: DeletionLedger, appended: int) -> None:
        """Remember where the ledger ends, if nobody else has written to it since."""
        seen, head = vars(self).get("_seen"), ledger.head
        if seen is not None and ledger.path and head.sequence == seen.sequence + appended:
            vars(self)["_seen"] = head


def _absolute(path: Any) -> str | None:
    return None if path is None else os.path.abspath(os.fsdecode(path))


def _reason(error: BaseException) -> str:
    """Name an error without its message, which may quote a label or an id."""
    meaning = (type(error).__doc__ or "").partition("\n")[0]
    return f"{type(error).__name__}: {meaning}" if isinstance(error, SkUnlearnError) else (
        type(error).__name__
    )
