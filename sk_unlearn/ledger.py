"""The archive: an append-only, hash-chained record of deletion requests and their certificates."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from ._ledger_arguments import many_request_ids, note, remembered, row_count, text
from ._ledger_format import (
    FAILED,
    INSERT,
    REFUSED,
    RELEASED,
    REQUESTED,
    Head,
    LedgerEntry,
    entry_hash,
)
from ._ledger_key import digest, distinct_messages, key_id
from ._ledger_reading import ReadableLedger, Release
from ._ledger_store import LOCK
from .certificate import Certificate
from .exceptions import LedgerError

__all__ = ["DeletionLedger", "Head", "LedgerEntry", "Release"]


class DeletionLedger(ReadableLedger):
    """Append-only record of deletion requests, of what became of them, and of each certificate.

    One entry is written per request and per change of state: a request is ``requested``
    and then once, and for good, ``released``, ``refused`` or ``failed``. An entry holds the
    time, how many rows, keyed digests of the sample ids, and the certificate as JSON text;
    never a feature value or a label. Request ids, details and reasons are stored as they
    are given: keep personal data out of them.

    Entries are chained by SHA-256, and the database refuses to change or delete them.
    Whoever can write to the file could still rewrite all of it, hashes included, or cut its
    end off: remember :attr:`head` elsewhere and give it to :meth:`verify`.

    The file is SQLite in WAL mode with full synchronisation. It is opened at the first use
    and made by the first :meth:`request`; several processes may append at once. As long as
    it is open, its last entries may lie in ``path + "-wal"``: copy it with :meth:`export`
    or after :meth:`close`. A pickled ledger is its path; one in memory pickles with its
    content and, unless it was destroyed, its key.

    Parameters
    ----------
    path : str or path-like, default=None
        File of the ledger; in memory if None. The HMAC key lies in ``path + ".key"``.
    timeout : float, default=30.0
        Seconds to wait for another process that is writing.

    Raises
    ------
    LedgerLockedError
        By any method, if another process holds the ledger for longer than `timeout`.
    LedgerCorruptError
        By any method that meets something that was not written by this class.
    LedgerError
        By any method, if the file cannot be read or written.

    Examples
    --------
    >>> from sk_unlearn.ledger import DeletionLedger
    >>> ledger = DeletionLedger()
    >>> ledger.request(3, sample_ids=["alice"], request_id="ticket-1")
    'ticket-1'
    >>> ledger.request(1, sample_ids=["bob"], request_id="ticket-2")
    'ticket-2'
    >>> ledger.refused("ticket-2", "legal hold")
    >>> list(ledger.pending()), ledger.find("bob"), ledger.state("ticket-2")
    (['ticket-1'], ['ticket-2'], 'refused')
    >>> ledger.verify(head=ledger.head).sequence
    3
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, timeout: float = 30.0) -> None:
        if not timeout >= 0:
            raise ValueError(f"timeout={timeout!r} is not a time in seconds; give 0 or more")
        self._start(None if path is None else os.path.abspath(os.fsdecode(path)), timeout)

    def request(
        self,
        n_rows: int,
        sample_ids: Iterable[Any] | None = None,
        request_id: str | None = None,
        detail: str | Mapping[str, Any] | None = None,
    ) -> str:
        """Record a request; it is pending from now on.

        Parameters
        ----------
        n_rows : int
            How many rows are to be deleted, 0 or more.
        sample_ids : iterable of int, str or bytes, default=None
            Whose rows; only their HMAC-SHA256 is stored, once for each distinct id.
        request_id : str, default=None
            A name that the ledger does not have yet; a random one if None.
        detail : str or mapping, default=None
            A note, stored as JSON. Never a feature value or a label.

        Returns
        -------
        str
            The request's id.

        Raises
        ------
        LedgerError
            If `request_id` was used before.
        TypeError, ValueError
            If an argument is malformed; nothing was recorded then.
        """
        count, content = row_count(n_rows), note(detail)
        request_id = uuid4().hex if request_id is None else text("request id", request_id)
        messages = None if sample_ids is None else distinct_messages(sample_ids)
        self._append(REQUESTED, (request_id,), n_rows=count, messages=messages, detail=content)
        return request_id

    def released(
        self,
        request_ids: str | Iterable[str],
        certificate: Certificate | str,
        detail: str | Mapping[str, Any] | None = None,
        after: tuple[int, str] | None = None,
    ) -> Head | None:
        """Record that one release served pending requests.

        Parameters
        ----------
        request_ids : str or iterable of str
            Pending requests, for example :meth:`pending`.
        certificate : Certificate or str
            The operator's copy, or its JSON text.
        detail : str or mapping, default=None
            A note, stored as JSON. Never a feature value or a label.
        after : (int, str), default=None
            Record it only if the ledger still ends with this :attr:`head`.

        Returns
        -------
        Head or None
            This entry's; None if nothing was recorded because another one has followed `after`.

        Raises
        ------
        CertificateError
            If the certificate does not verify; nothing was recorded then.
        LedgerError
            If a request is unknown or not pending; nothing was recorded then.
        """
        ids, added = many_request_ids(request_ids), note(detail)
        content = certificate if isinstance(certificate, str) else certificate.to_json()
        Certificate.from_json(text("certificate", content)).verify()
        end = None if after is None else remembered(after)
        return self._append(RELEASED, ids, certificate=content, detail=added, after=end)

    def refused(self, request_ids: str | Iterable[str], reason: str) -> None:
        """Record that pending requests will not be served, and why.

        Raises
        ------
        LedgerError
            If a request is unknown or not pending; nothing was recorded then.
        """
        content = note(text("reason", reason))
        self._append(REFUSED, many_request_ids(request_ids), detail=content)

    def failed(self, request_ids: str | Iterable[str], reason: str) -> None:
        """Record that pending requests could not be served; to try again, request anew.

        Raises
        ------
        LedgerError
            If a request is unknown or not pending; nothing was recorded then.
        """
        content = note(text("reason", reason))
        self._append(FAILED, many_request_ids(request_ids), detail=content)

    def destroy_key(self) -> None:
        """Destroy the HMAC key: from now on nobody can link an entry to a sample id.

        The next request with sample ids makes a new key. :meth:`verify` needs none. Copies
        of the key that were made elsewhere (backups, pickles of a ledger in memory) remain.
        """
        with LOCK, self._store.explained():
            self._key.destroy()

    def _append(
        self,
        state: str,
        request_ids: tuple[str, ...],
        *,
        n_rows: int | None = None,
        messages: set[bytes] | None = None,
        detail: str | None = None,
        certificate: str | None = None,
        after: Head | None = None,
    ) -> Head | None:
        with LOCK:
            with self._store.writing() as connection:
                self._replay.catch_up(connection)
                if after not in (None, self._replay.head):
                    return None
                objection = self._replay.objection(state, request_ids)
                if objection:
                    raise LedgerError(f"{objection}; nothing was recorded")
                name, digests = None, None
                if messages is not None:
                    key = self._key.read_or_make()
                    name = key_id(key)
                    digests = json.dumps(sorted(digest(key, encoded) for encoded in messages))
                time = _utc_now()
                values = (
                    self._replay.head.sequence + 1,
                    time,
                    int(time < self._replay.time),
                    state,
                    json.dumps(request_ids),
                    self._replay.n_rows(request_ids) if n_rows is None else n_rows,
                    digests,
                    name,
                    detail,
                    certificate,
                    self._replay.head.hash,
                )
                row = (*values, entry_hash(values))
                connection.execute(INSERT, row)
            self._replay.advance(row)
            return self._replay.head


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
