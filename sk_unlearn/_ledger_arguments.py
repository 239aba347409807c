"""What a caller may write into a deletion ledger: checked before anything is touched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from operator import index
from typing import Any

from ._ledger_format import GENESIS, Head


def row_count(n_rows: Any) -> int:
    """Return `n_rows` as an int of at least 0."""
    if isinstance(n_rows, bool) or not hasattr(n_rows, "__index__"):
        raise TypeError(f"n_rows={n_rows!r} is not a number of rows; give an int")
    if not 0 <= index(n_rows) < 2**63:
        raise ValueError(f"n_rows={n_rows!r} is not a number of rows; give 0 or more")
    return index(n_rows)


def text(name: str, value: Any) -> str:
    """Return `value`, a string that is not empty and can be stored as UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give a str")
    if not value:
        raise ValueError(f"{name}={value!r} is empty; give some text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}={value!r} cannot be stored as UTF-8: {error.reason}") from error
    return str(value)


def many_request_ids(request_ids: Any) -> tuple[str, ...]:
    """Return one or more different request ids."""
    if not isinstance(request_ids, str | Iterable):
        raise TypeError(f"request_ids={request_ids!r} is neither a str nor an iterable of str")
    ids = (request_ids,) if isinstance(request_ids, str) else tuple(request_ids)
    ids = tuple(text("request id", request_id) for request_id in ids)
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"request_ids={list(ids)} is empty or names a request twice")
    return ids


def note(detail: str | Mapping[str, Any] | None) -> str | None:
    """Return `detail` as JSON text."""
    if detail is None:
        return None
    if not isinstance(detail, str | Mapping):
        raise TypeError(f"detail is a {type(detail).__name__}; give a str or a mapping")
    content = detail if isinstance(detail, str) else dict(detail)
    try:
        return json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"detail cannot be stored as JSON: {error}") from error


def remembered(head: Any) -> Head:
    """Return a remembered head as one; the empty ledger's for None."""
    if head is None:
        return GENESIS
    try:
        sequence, digest = head
    except (TypeError, ValueError) as error:
        raise TypeError(f"head={head!r} is not a pair (sequence, hash)") from error
    if isinstance(sequence, bool) or not isinstance(sequence, int) or not isinstance(digest, str):
        raise TypeError(f"head={head!r} is not a pair (sequence: int, hash: str)")
    if sequence < 0 or (sequence == 0 and digest != GENESIS.hash):
        raise ValueError(f"head={head!r} is no head of any ledger")
    return Head(sequence, digest)
