"""The reading half of a deletion ledger: what it holds, whether it is sound, and how it leaves."""

from __future__ import annotations

import json
import os
import sqlite3
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ._ledger_arguments import remembered
from ._ledger_format import COLUMNS, INSERT, SELECT, Head, LedgerEntry, Replay
from ._ledger_key import DigestKey, digest, key_id, message, write_atomically
from ._ledger_store import Store
from ._ledger_verify import verify_entries
from .exceptions import LedgerCorruptError, LedgerError, UnlearningWarning

if TYPE_CHECKING:
    import pandas as pd


class Release(NamedTuple):
    """One release: its place in the ledger, its time, whom it served and what it promised."""

    sequence: int
    time: str
    request_ids: tuple[str, ...]
    certificate_json: str


class ReadableLedger:
    """What can be asked of a ledger without adding to it."""

    def _start(self, path: str | None, timeout: float) -> None:
        self._store = Store(path, timeout)
        self._key = DigestKey(None if path is None else f"{path}.key")
        self._replay = Replay()

    @property
    def path(self) -> str | None:
        """Absolute path of the file; None in memory."""
        return self._store.path

    @property
    def head(self) -> Head:
        """Sequence number and hash of the last entry, to be remembered elsewhere."""
        return self._caught_up().head

    def pending(self) -> dict[str, LedgerEntry]:
        """Return the entries of the requests that are still to be served, by request id."""
        return dict(self._caught_up().pending)

    def state(self, request_id: str) -> str:
        """Return ``"requested"``, ``"released"``, ``"refused"`` or ``"failed"``.

        Raises
        ------
        LedgerError
            If there is no such request.
        """
        states = self._caught_up().states
        if request_id not in states:
            raise LedgerError(f"request {request_id!r} is not in the ledger")
        return states[request_id]

    def releases(self) -> Iterator[Release]:
        """Yield (sequence, time, request ids, certificate as JSON text) of each release."""
        for entry in self:
            if entry.certificate is not None:
                yield Release(entry.sequence, entry.time, entry.request_ids, entry.certificate)

    def since(self, head: tuple[int, str]) -> list[LedgerEntry]:
        """Return the entries that follow a remembered :attr:`head`.

        Raises
        ------
        LedgerCorruptError
            If the ledger does not hold it: it was cut off or rewritten, or is another one.
        """
        known = remembered(head)
        with self._store.reading() as connection:
            newer = f"{SELECT} WHERE sequence >= ? ORDER BY sequence"
            rows = connection.execute(newer, (known.sequence,))
            entries = [LedgerEntry.from_row(row) for row in rows]
        if not known.sequence:
            return entries
        if [(entry.sequence, entry.hash) for entry in entries[:1]] != [known]:
            raise LedgerCorruptError(
                f"entry {known.sequence} of {self!r} is not the one that was remembered: the "
                "ledger was cut off or rewritten, or it is another one"
            )
        return entries[1:]

    def names(self, entry: LedgerEntry, sample_ids: Iterable[Any]) -> list[bool]:
        """Say of each sample id whether a request in this ledger names it.

        Raises
        ------
        LedgerError
            If the key that digested the ids of `entry` was destroyed: nobody can tell then.
        """
        with self._store.explained():
            key = self._key.read()
        if not entry.sample_digests:
            return [False for _ in sample_ids]
        if key is None or key_id(key) != entry.key_id:
            raise LedgerError(
                f"the key that digested the ids of request {entry.request_ids[0]!r} in {self!r} "
                "was destroyed: nobody can tell whom it names"
            )
        digests = frozenset(entry.sample_digests)
        return [digest(key, message(sample_id)) in digests for sample_id in sample_ids]

    def find(self, sample_id: Any) -> list[str]:
        """Return the ids of the requests about a sample id, in their order.

        Raises
        ------
        LedgerError
            If the key was destroyed: nobody can tell then.

        Warns
        -----
        UnlearningWarning
            If some entries were digested with a key that was destroyed since.
        """
        with self._store.explained():
            key = self._key.read()
        entries = [entry for entry in self if entry.sample_digests is not None]
        if key is None and entries:
            raise LedgerError(f"the key of {self!r} is gone: its digests are linkable to nobody")
        if key is None:
            return []
        wanted = digest(key, message(sample_id))
        n_lost = sum(entry.key_id != key_id(key) for entry in entries)
        if n_lost:
            warnings.warn(
                f"{n_lost} of {len(entries)} requests cannot be searched: their key was destroyed",
                UnlearningWarning,
                stacklevel=2,
            )
        return [e.request_ids[0] for e in entries if wanted in (e.sample_digests or ())]

    def verify(self, head: tuple[int, str] | None = None) -> Head:
        """Check every stored value, the order of entries, the schema and each certificate.

        Parameters
        ----------
        head : (int, str), default=None
            A :attr:`head` remembered from before. Without it, entries cut off at the end,
            or a ledger rewritten as a whole, cannot be seen.

        Returns
        -------
        Head
            The verified end of the ledger.

        Raises
        ------
        LedgerCorruptError
            Naming the first bad entry, or what was changed in the schema.
        LedgerError
            If there is no file at `path`.
        """
        known = remembered(head)
        with self._store.reading() as connection:
            if not self._store.exists():
                raise LedgerError(f"there is no ledger at {self.path!r}: nothing to verify")
            end = verify_entries(connection, known)
            self._replay.catch_up(connection)
        return end

    def to_frame(self) -> pd.DataFrame:
        """Return the entries as a pandas DataFrame, one row each, times as UTC timestamps."""
        import pandas as pd

        frame = pd.DataFrame.from_records([asdict(entry) for entry in self], columns=COLUMNS)
        frame["time"] = pd.to_datetime(frame["time"], utc=True, format="ISO8601")
        return frame

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the stored values as JSON lines (mode 0600), atomically.

        An entry's ``hash`` is the SHA-256 of the JSON array of its other values, in their
        order, without spaces and in ASCII; so anyone can follow the chain.

        Raises
        ------
        ValueError
            If `path` is one of the ledger's own files.
        LedgerError
            If the file cannot be written; an older one is untouched then.
        """
        target = os.path.abspath(os.fsdecode(path))
        own = [f"{self.path}{suffix}" for suffix in ("", "-wal", "-shm", "-journal", ".key")]
        if self.path is not None and os.path.realpath(target) in map(os.path.realpath, own):
            raise ValueError(f"path={target!r} belongs to the ledger itself; choose another file")
        with self._store.reading() as connection:
            lines = [json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in _rows(connection)]
            write_atomically(target, "".join(f"{line}\n" for line in lines).encode("ascii"))

    def close(self) -> None:
        """Close the file; the next use opens it again. A ledger in memory keeps its content."""
        self._store.close()

    def _caught_up(self) -> Replay:
        with self._store.reading() as connection:
            self._replay.catch_up(connection)
            return self._replay

    def __iter__(self) -> Iterator[LedgerEntry]:
        with self._store.reading() as connection:
            entries = [LedgerEntry.from_row(row) for row in _rows(connection)]
        return iter(entries)

    def __len__(self) -> int:
        return self.head.sequence

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "DeletionLedger()" if self.path is None else f"DeletionLedger({self.path!r})"

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = {"path": self.path, "timeout": self._store.timeout}
        if self.path is None:
            with self._store.reading() as connection:
                state |= {"rows": list(_rows(connection)), "key": self._key.in_memory}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._start(state["path"], state["timeout"])
        if self.path is None:
            self._key.in_memory = state["key"]
            with self._store.writing() as connection:
                connection.executemany(INSERT, state["rows"])


def _rows(connection: sqlite3.Connection) -> sqlite3.Cursor:
    return connection.execute(f"{SELECT} ORDER BY sequence")
