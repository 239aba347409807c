"""The whole check of a deletion ledger: every value, the chain, each certificate."""

from __future__ import annotations

import sqlite3

from ._ledger_format import SELECT, Head, Replay
from .certificate import Certificate
from .exceptions import LedgerCorruptError, SkUnlearnError


def verify_entries(connection: sqlite3.Connection, known: Head) -> Head:
    """Return the end of the ledger; raises LedgerCorruptError naming the first bad entry."""
    replay = Replay()
    try:
        for row in connection.execute(f"{SELECT} ORDER BY sequence"):
            entry = replay.advance(row)
            where = f"entry {entry.sequence} of the ledger"
            if entry.certificate is not None:
                _verify_certificate(where, entry.certificate)
            if entry.sequence == known.sequence and entry.hash != known.hash:
                raise LedgerCorruptError(f"{where} is not the one that was remembered")
        report = connection.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.OperationalError:  # the file could not be got at: no verdict
        raise
    except sqlite3.DatabaseError as error:
        raise LedgerCorruptError(
            f"entry {replay.head.sequence + 1} of the ledger cannot be read: {error}"
        ) from error
    if report != "ok":
        raise LedgerCorruptError(f"the file of the ledger is damaged: {' '.join(report.split())}")
    if replay.head.sequence < known.sequence:
        raise LedgerCorruptError(
            f"entry {replay.head.sequence + 1} of the ledger is missing: "
            f"it had {known.sequence} when its head was remembered"
        )
    return replay.head


def _verify_certificate(where: str, text: str) -> None:
    try:
        Certificate.from_json(text).verify()
    except (SkUnlearnError, ValueError) as error:
        raise LedgerCorruptError(f"{where}: its certificate does not verify: {error}") from error
