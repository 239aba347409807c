"""Names of rows that outlive a process: a ledger keeps their keyed digests, not the rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ._ledger_key import message
from ._rows import TrainingRows
from .ledger import DeletionLedger, LedgerEntry


def owners(rows: TrainingRows) -> list[int | str]:
    """Return each distinct sample id of some rows, as the int or str that a ledger digests."""
    return [] if rows.sample_ids is None else [_plain(i) for i in np.unique(rows.sample_ids)]


def row_names(rows: TrainingRows) -> list[bytes]:
    """Return a name for each row: features, label, owner, and the how many-eth such row it is.

    The last rows of a kind may leave and the names of the others stay.
    """
    ids = [b""] * len(rows)
    if rows.sample_ids is not None:
        ids = [message(_plain(i)) for i in rows.sample_ids]
    features = np.ascontiguousarray(rows.X) + rows.X.dtype.type(0)  # -0.0 is 0.0
    seen: Counter[bytes] = Counter()
    names = []
    labels = rows.y + rows.y.dtype.type(0)
    for x, y, owner in zip(features, labels, ids, strict=True):
        content = b"row:" + x.tobytes() + y.tobytes() + owner
        names.append(content + b":%d" % seen[content])
        seen[content] += 1
    return names


def find_rows(
    ledger: DeletionLedger, request: LedgerEntry, rows: TrainingRows, free: np.ndarray
) -> np.ndarray:
    """Return the positions of the rows that a request names, of the `free` ones if it can be.

    Raises
    ------
    LedgerError
        If the ledger's key was destroyed.
    """
    if request.detail["by_ids"] and rows.sample_ids is None:
        return free[:0]
    for positions in (free, np.arange(len(rows))):
        if request.detail["by_ids"]:
            ids, place = np.unique(rows.sample_ids[positions], return_inverse=True)
            mine = np.array(ledger.names(request, map(_plain, ids)), dtype=bool)[place]
        else:
            names = row_names(rows.take(positions))
            mine = np.array(ledger.names(request, names), dtype=bool)
        if mine.any():
            return positions[mine]
    return free[:0]


def _plain(sample_id: Any) -> int | str:
    value = sample_id.item() if isinstance(sample_id, np.generic) else sample_id
    return value if type(value) in (int, str) else str(value)
