"""Constructor parameters as JSON, and back without running anything that a file says."""

from __future__ import annotations

import os
from math import isfinite
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from torch import nn, optim

from . import curvature, methods, modules

# Classes are stored by name, and only these rooms are searched for a name, for these kinds.
ROOMS: dict[str, tuple[Any, type]] = {
    "sk_unlearn.modules": (modules, nn.Module),
    "sk_unlearn.methods": (methods, methods.UnlearningMethod),
    "sk_unlearn.curvature": (curvature, BaseEstimator),
    "torch.nn": (nn, nn.Module),
    "torch.optim": (optim, optim.Optimizer),
}
_KINDS = "biufU"


def encode(value: Any) -> Any:
    """Return a JSON tree.

    Raises
    ------
    TypeError
        If a value is neither plain data nor a class, method or solver of a known room.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if isfinite(value) else {"float": str(value)}
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, np.ndarray):
        return _encode_array(value)
    if type(value) in (list, tuple):
        return {type(value).__name__: [encode(item) for item in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(item) for key, item in value.items()}}
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, type):
        return {"class": _name_of(value)}
    if isinstance(value, BaseEstimator):
        parameters = value.get_params(deep=False)
        name = _name_of(type(value))
        return {"object": name, "parameters": {k: encode(v) for k, v in parameters.items()}}
    raise TypeError(f"{value!r} is no plain data")


def decode(tree: Any) -> Any:
    """Return what `encode` was given.

    Raises
    ------
    ValueError
        If the tree was not written by `encode`, or names a class outside the rooms.
    """
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    if type(tree) is not dict:
        raise ValueError(f"{tree!r} is no stored parameter")
    if set(tree) == {"object", "parameters"}:
        parameters = {key: decode(item) for key, item in tree["parameters"].items()}
        return _class_named(tree["object"], BaseEstimator)(**parameters)
    if set(tree) == {"array", "dtype"}:
        return _decode_array(tree["array"], tree["dtype"])
    if len(tree) != 1:
        raise ValueError(f"{tree!r} is no stored parameter")
    ((kind, content),) = tree.items()
    if kind == "float" and content in ("inf", "-inf", "nan"):
        return float(content)
    if kind in ("list", "tuple") and type(content) is list:
        items = [decode(item) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "dict" and type(content) is dict:
        return {key: decode(item) for key, item in content.items()}
    if kind == "class":
        return _class_named(content, object)
    raise ValueError(f"{tree!r} is no stored parameter")


def _name_of(kind: type) -> str:
    for room, (module, base) in ROOMS.items():
        if issubclass(kind, base) and vars(module).get(kind.__name__) is kind:
            return f"{room}.{kind.__name__}"
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} is not in {', '.join(ROOMS)}")


def _class_named(text: Any, wanted: type) -> Any:
    room, _, name = text.rpartition(".") if isinstance(text, str) else ("", "", "")
    module, base = ROOMS.get(room, (None, object))
    found = None if module is None else vars(module).get(name)
    if not isinstance(found, type) or not issubclass(found, base) or not issubclass(found, wanted):
        raise ValueError(f"{text!r} is no class of {', '.join(ROOMS)}")
    return found


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    values = array.tolist()
    if array.dtype.kind == "O" and array.ndim == 1 and all(type(v) is str for v in values):
        return {"array": values, "dtype": "object"}
    if array.dtype.kind not in _KINDS or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
        raise TypeError(f"an array of {array.dtype} is no plain data")
    return {"array": values, "dtype": array.dtype.str}


def _decode_array(values: Any, dtype: Any) -> np.ndarray:
    if type(values) is not list or type(dtype) is not str:
        raise ValueError(f"{values!r} of {dtype!r} is no stored array")
    if dtype == "object" and not all(type(value) is str for value in values):
        raise ValueError(f"{values!r} is no stored array of names")
    if dtype != "object" and np.dtype(dtype).kind not in _KINDS:
        raise ValueError(f"{dtype!r} is no stored dtype")
    return np.array(values, dtype=dtype)
