"""The ledger of a saved net: its entries where it is in memory, else its file and head."""

from __future__ import annotations

import os
from typing import Any

from .exceptions import SavedNetError
from .ledger import DeletionLedger


def ledger_record(ledger: DeletionLedger) -> dict[str, Any]:
    """Return JSON values: never the key, which is to stay where it can be destroyed."""
    state = ledger.__getstate__()
    state.pop("key", None)
    return state if ledger.path is None else state | {"head": list(ledger.head)}


def restored_ledger(record: dict[str, Any], given: dict[str, Any]) -> DeletionLedger:
    """Return the ledger, every entry verified.

    Raises
    ------
    LedgerError
        If its file is missing; LedgerCorruptError, if it does not hold what it did, or more.
    SavedNetError
        If a file is given for a ledger that was in memory, or the other way round.
    """
    path = given.get("ledger", record["path"])
    if (path is None) != (record["path"] is None):
        raise SavedNetError(
            f"ledger={path!r}: the entries of this net are in "
            + ("the saved file" if path is not None else f"{record['path']!r}; give where it is")
        )
    if path is not None:
        ledger = DeletionLedger(os.fspath(path), record["timeout"])
        if record["head"][0]:
            ledger.verify(tuple(record["head"]))
        return ledger
    ledger = DeletionLedger(None, record["timeout"])
    ledger.__setstate__({**record, "key": None})
    ledger.verify()
    return ledger
