"""How a certificate is written to JSON and read from text that nobody has checked."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np

from .assumptions import Assumption, Status
from .events import event_from_dict, number, optional_number


def finite(value: Any) -> Any:
    """Return a tree of JSON values: infinities as strings, numpy scalars as Python's."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the JSON object of these pairs; readers differ on which of two equal names counts."""
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"a name occurs twice among {[name for name, _ in pairs]}")
    return record


def _is(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{value!r} is no {kind.__name__}")
        return value

    return read


def _is_count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value


def _optional_count(value: Any) -> int | None:
    return None if value is None else _is_count(value)


def _read_assumption(record: dict[str, Any]) -> Assumption:
    texts = {name: _is(str)(value) for name, value in record.items()}
    return Assumption(**(texts | {"status": Status(texts["status"])}))


def _read_pair(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    epsilon, delta = _is(list)(value)
    return number(epsilon), number(delta)


READ: dict[str, Callable[[Any], Any]] = {
    "epsilon": number,
    "delta": number,
    "mu": optional_number,
    "sigma": optional_number,
    "sensitivity": optional_number,
    "method": _is(str),
    "event": event_from_dict,
    "n_deleted": _optional_count,
    "n_retained": _is_count,
    "n_parameters": _optional_count,
    "assumptions": lambda items: tuple(_read_assumption(item) for item in _is(list)(items)),
    "scope": lambda items: tuple(_is(str)(item) for item in _is(list)(items)),
    "weights_norm": optional_number,
    "diagnostics": _is(dict),
    "versions": lambda items: {name: _is(str)(text) for name, text in _is(dict)(items).items()},
    "created": _is(str),
    "state": _is(str),
    "composed": _read_pair,
    "earlier_mu": lambda items: tuple(number(item) for item in _is(list)(items)),
}
