"""What a deletion ledger holds: its schema, its hash chain, and which entry may follow which."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .exceptions import LedgerCorruptError

APPLICATION_ID = int.from_bytes(b"SkUL", "big")
FORMAT_VERSION = 1
REQUESTED, RELEASED, REFUSED, FAILED = "requested", "released", "refused", "failed"

COLUMNS = (
    "sequence",
    "time",
    "clock_went_back",
    "state",
    "request_ids",
    "n_rows",
    "sample_digests",
    "key_id",
    "detail",
    "certificate",
    "previous_hash",
    "hash",
)
_INTEGERS = frozenset({"sequence", "clock_went_back", "n_rows"})
_MAY_BE_NULL = frozenset({"sample_digests", "key_id", "detail", "certificate"})


class Head(NamedTuple):
    """Where a ledger ends; remembered elsewhere, it makes truncation and rewriting visible."""

    sequence: int
    hash: str


GENESIS = Head(0, hashlib.sha256(b"sk_unlearn deletion ledger 1").hexdigest())

SCHEMA = (
    """CREATE TABLE entries (
  sequence INTEGER PRIMARY KEY,
  time TEXT NOT NULL,
  clock_went_back INTEGER NOT NULL CHECK (clock_went_back IN (0, 1)),
  state TEXT NOT NULL CHECK (state IN ('requested', 'released', 'refused', 'failed')),
  request_ids TEXT NOT NULL,
  n_rows INTEGER NOT NULL CHECK (n_rows >= 0),
  sample_digests TEXT,
  key_id TEXT,
  detail TEXT,
  certificate TEXT CHECK ((certificate IS NULL) = (state <> 'released')),
  previous_hash TEXT NOT NULL,
  hash TEXT NOT NULL
)""",
    """CREATE TRIGGER entries_never_change BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: no entry may be changed'); END""",
    """CREATE TRIGGER entries_never_go BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: no entry may be deleted'); END""",
    f"""CREATE TRIGGER entries_follow_the_last BEFORE INSERT ON entries
WHEN NEW.sequence IS NOT (SELECT COALESCE(MAX(sequence), 0) + 1 FROM entries)
  OR NEW.previous_hash IS NOT COALESCE(
    (SELECT hash FROM entries ORDER BY sequence DESC LIMIT 1), '{GENESIS.hash}')
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: an entry follows the last one'); END""",
)
SELECT = f"SELECT {', '.join(COLUMNS)} FROM entries"
INSERT = f"INSERT INTO entries ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


def entry_hash(values: Sequence[Any]) -> str:
    """SHA-256 of the stored values, all but the hash itself, as one compact ASCII JSON array."""
    text = json.dumps(list(values), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class LedgerEntry:
    """One entry of a :class:`~sk_unlearn.ledger.DeletionLedger`.

    Parameters
    ----------
    sequence : int
        Position in the ledger, from 1; the order of events, whatever the clock said.
    time : str
        UTC time, ISO 8601, as the clock gave it.
    clock_went_back : bool
        Whether `time` is earlier than that of the entry before.
    state : {"requested", "released", "refused", "failed"}
        What happened to `request_ids`.
    request_ids : tuple of str
        The requests that this entry is about.
    n_rows : int
        How many rows were asked for, all of `request_ids` together.
    sample_digests : tuple of str or None
        HMAC-SHA256 of each sample id, sorted; of requests only.
    key_id : str or None
        Which key made `sample_digests`.
    detail : str, dict or None
        What the caller noted, or the reason of a refusal or failure.
    certificate : str or None
        The certificate of a release, as JSON text.
    previous_hash, hash : str
        The chain: SHA-256 in hexadecimal.
    """

    sequence: int
    time: str
    clock_went_back: bool
    state: str
    request_ids: tuple[str, ...]
    n_rows: int
    sample_digests: tuple[str, ...] | None
    key_id: str | None
    detail: Any
    certificate: str | None
    previous_hash: str
    hash: str

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> LedgerEntry:
        """Read the stored values; raises LedgerCorruptError if they are of the wrong kind."""
        record = dict(zip(COLUMNS, row, strict=True))
        for name, value in record.items():
            kind = int if name in _INTEGERS else str
            if type(value) is not kind and not (value is None and name in _MAY_BE_NULL):
                raise LedgerCorruptError(
                    f"entry {record['sequence']!r} of the ledger: {name} holds {value!r}"
                )
        for name in ("request_ids", "sample_digests", "detail"):
            try:
                value = None if record[name] is None else json.loads(record[name])
                record[name] = value if name == "detail" or value is None else _strings(value)
            except ValueError as error:
                raise LedgerCorruptError(
                    f"entry {record['sequence']} of the ledger: {name} cannot be read: {error}"
                ) from error
        record["clock_went_back"] = bool(record["clock_went_back"])
        return cls(**record)


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{value!r} is not a list of strings")
    return tuple(value)


@dataclass
class Replay:
    """The state of every request after the entries seen so far."""

    head: Head = GENESIS
    time: str = ""
    states: dict[str, str] = field(default_factory=dict)
    pending: dict[str, LedgerEntry] = field(default_factory=dict)

    def objection(self, state: str, request_ids: Iterable[str]) -> str | None:
        """Why `request_ids` may not go to `state` now; None if they may."""
        ids = tuple(request_ids)
        if not ids or len(set(ids)) < len(ids):
            return f"request ids {list(ids)} are none at all or stand there twice"
        for request_id in ids:
            current = self.states.get(request_id)
            if state == REQUESTED and current is not None:
                return f"request {request_id!r} is in the ledger already ({current})"
            if state != REQUESTED and current is None:
                return f"request {request_id!r} is not in the ledger; call request() first"
            if state != REQUESTED and current != REQUESTED:
                return f"request {request_id!r} cannot become {state}: it is {current} already"
        return None

    def n_rows(self, request_ids: Iterable[str]) -> int:
        """Count the rows that pending requests ask for."""
        return sum(self.pending[request_id].n_rows for request_id in request_ids)

    def advance(self, row: Sequence[Any]) -> LedgerEntry:
        """Take the next entry in; raises LedgerCorruptError if it cannot be the next one."""
        entry = LedgerEntry.from_row(row)
        where = f"entry {entry.sequence} of the ledger"
        if entry_hash(row[:-1]) != entry.hash:
            raise LedgerCorruptError(f"{where} was changed: its hash is not that of its values")
        if entry.sequence != self.head.sequence + 1:
            raise LedgerCorruptError(
                f"entry {self.head.sequence + 1} of the ledger is missing: {entry.sequence} is next"
            )
        if entry.previous_hash != self.head.hash:
            raise LedgerCorruptError(f"{where} does not follow the entry before it")
        objection = self.objection(entry.state, entry.request_ids)
        if objection:
            raise LedgerCorruptError(f"{where}: {objection}")
        if entry.state == REQUESTED:
            self.pending |= dict.fromkeys(entry.request_ids, entry)
        elif entry.n_rows != self.n_rows(entry.request_ids):
            raise LedgerCorruptError(
                f"{where}: n_rows = {entry.n_rows} is not that of its requests"
            )
        else:
            for request_id in entry.request_ids:
                del self.pending[request_id]
        self.states |= dict.fromkeys(entry.request_ids, entry.state)
        self.head = Head(entry.sequence, entry.hash)
        self.time = entry.time
        return entry

    def catch_up(self, connection: sqlite3.Connection) -> None:
        """Take in what was appended since; raises LedgerCorruptError if the known end changed."""
        sequence = self.head.sequence
        if sequence:
            known = connection.execute("SELECT hash FROM entries WHERE sequence = ?", (sequence,))
            if known.fetchone() != (self.head.hash,):
                raise LedgerCorruptError(
                    f"entry {sequence} of the ledger was removed or changed since it was read"
                )
        newer = f"{SELECT} WHERE sequence > ? ORDER BY sequence"
        for row in connection.execute(newer, (sequence,)):
            self.advance(row)
