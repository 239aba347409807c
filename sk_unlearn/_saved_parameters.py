"""The parameters of a saved net: as values, or described for whoever loads it to give again."""

from __future__ import annotations

from typing import Any

from ._plain_values import NotPlainError, decode, encode
from .exceptions import SavedNetError

_MAY_MOVE = ("device", "ledger", "verbose")


def described_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Encode parameters; of those that have no plain form only say what they are."""
    out = {}
    for name, value in parameters.items():
        try:
            out[name] = encode(value)
        except NotPlainError as error:
            out[name] = {"$missing": str(error)}
    return out


def merged(encoded: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Decode parameters; what the file only describes, and what may move, is the caller's."""
    values, absent = {}, []
    for name, value in encoded.items():
        if name in given:
            values[name] = given[name]
            continue
        try:
            values[name] = _plain(value)
        except NotPlainError as error:
            absent.append(f"{name}= ({error})")
    if absent:
        raise SavedNetError(
            f"the file only describes {', '.join(absent)}: give them to load, as in "
            f"load(path, {absent[0].partition('=')[0]}=...)"
        )
    return values


def check_given(given: dict[str, Any], *parts: dict[str, Any]) -> None:
    """Raise SavedNetError for a parameter whose value is in the file, unless it may move."""
    for name in given:
        described = [_is_described(part[name]) for part in parts if name in part]
        if not any(described) and not (described and name in _MAY_MOVE):
            raise SavedNetError(
                f"{name}={given[name]!r}: the file holds its value, or there is no such parameter; "
                "use set_params after load"
            )


def _is_described(value: Any) -> bool:
    try:
        _plain(value)
    except NotPlainError:
        return True
    return False


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and "$missing" in value:
        raise NotPlainError(value["$missing"])
    return decode(value)
