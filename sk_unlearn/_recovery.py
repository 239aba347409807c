"""Which rows a request in a file ledger meant, found again by keyed digests after a crash."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from ._ledger_key import digest, message
from ._rows import TrainingRows

BY_ROWS, BY_IDS = "rows", "sample_ids"


def plain_id(sample_id: Any) -> int | str:
    """Return a sample id as the int or str that a ledger digests."""
    value = sample_id.item() if isinstance(sample_id, np.generic) else sample_id
    return value if type(value) in (int, str) else str(value)


def owners(rows: TrainingRows) -> list[int | str]:
    """Return each distinct sample id of some rows."""
    if rows.sample_ids is None:
        return []
    return [plain_id(sample_id) for sample_id in np.unique(rows.sample_ids)]


def row_names(rows: TrainingRows) -> list[bytes]:
    """Return a name for each row: features, label, owner, and the how many-eth such row it is.

    It is made to be digested with a ledger's key, like the sample id of one row, and stays the
    same when other rows leave.
    """
    ids = [b""] * len(rows)
    if rows.sample_ids is not None:
        ids = [message(plain_id(sample_id)) for sample_id in rows.sample_ids]
    features = (rows.X + np.float32(0.0)).reshape(len(rows), -1)
    seen: Counter[bytes] = Counter()
    names = []
    for x, label, owner in zip(features, rows.y.tolist(), ids, strict=True):
        content = b"row:" + x.tobytes() + b":%d:" % label + owner
        names.append(content + b":%d" % seen[content])
        seen[content] += 1
    return names


def find_rows(
    rows: TrainingRows, free: np.ndarray, wanted: Iterable[str], named_by: str, key: bytes
) -> np.ndarray:
    """Return the positions, among the `free` ones, of the rows whose digests are `wanted`."""
    digests = set(wanted)
    if named_by == BY_IDS and rows.sample_ids is not None:
        unique, inverse = np.unique(rows.sample_ids[free], return_inverse=True)
        mine = [digest(key, message(plain_id(sample_id))) in digests for sample_id in unique]
        return free[np.array(mine, dtype=bool)[inverse]]
    names = row_names(rows.take(free))
    mine = [digest(key, message(name)) in digests for name in names]
    return free[np.array(mine, dtype=bool)]
