"""Plain values as JSON and back: numbers, texts, arrays, and the names of classes that are known.

Nothing is imported and nothing but known classes is called on the way back: a name is looked up
among the modules that are loaded already, under `_ROOTS`, and must be a class of `_KINDS`.
"""

from __future__ import annotations

import re
import sys
from math import isfinite, prod
from pathlib import PurePath
from typing import Any

import numpy as np
from skorch.callbacks import Callback
from torch import device, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from ._data import BatchIterator
from .curvature.solution import Solver
from .ledger import Head
from .methods import UnlearningMethod

_ROOTS = ("sk_unlearn", "torch.nn", "torch.optim", "torch.utils.data", "skorch")
_PARTS = (UnlearningMethod, Solver)
_KINDS = (
    nn.Module,
    Optimizer,
    LRScheduler,
    Dataset,
    DataLoader,
    BatchIterator,
    Callback,
    *_PARTS,
)
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[US]\d{1,4})|object")
_MAX_BYTES = 2**30


class NotPlainError(TypeError):
    """A value that has no plain form; whoever loads the file must give it."""


def encode(value: Any) -> Any:
    """Return a tree of JSON values.

    Raises
    ------
    NotPlainError
        Naming the type that cannot be written.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and not isinstance(value, np.generic):
        return int(value)
    if isinstance(value, float) and not isinstance(value, np.generic):
        return float(value) if isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, np.ndarray | np.generic):
        return {"$array": _encode_array(np.asarray(value)), "scalar": isinstance(value, np.generic)}
    if isinstance(value, Head):
        return {"$head": list(value)}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, range):
        return {"$range": [value.start, value.stop, value.step]}
    if type(value) is tuple:
        return {"$tuple": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"$dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, type):
        return {"$class": f"{value.__module__}:{value.__qualname__}"}
    if isinstance(value, device | PurePath):
        return str(value)
    if isinstance(value, _PARTS):
        kind = encode(type(value))["$class"]
        return {"$part": kind, "parameters": encode(value.get_params(deep=False))}
    raise NotPlainError(f"a {type(value).__module__}.{type(value).__qualname__}")


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    flat = array.ravel().tolist()
    if array.dtype == object and not all(isinstance(item, str | int | float) for item in flat):
        raise NotPlainError("an array of objects")
    name = "object" if array.dtype == object else array.dtype.str
    if not _DTYPE.fullmatch(name):
        raise NotPlainError(f"an array of {array.dtype}")
    if array.dtype.kind == "S":
        flat = [item.decode("latin-1") for item in flat]
    return {"dtype": name, "shape": list(array.shape), "values": [encode(item) for item in flat]}


def decode(value: Any) -> Any:
    """Return what :func:`encode` was given.

    Raises
    ------
    NotPlainError
        For a class that is not known here.
    ValueError, TypeError, LookupError
        For what :func:`encode` does not write.
    """
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if isinstance(value, list):
        return [decode(item) for item in value]
    tag = next(iter(value))
    if tag not in _DECODERS:
        raise ValueError(f"{tag!r} is no tag")
    return _DECODERS[tag](value)


def _decode_array(record: dict[str, Any]) -> Any:
    name, shape = record["$array"]["dtype"], record["$array"]["shape"]
    values = [decode(item) for item in record["$array"]["values"]]
    if not _DTYPE.fullmatch(name):
        raise ValueError(f"dtype {name!r}")
    dtype = np.dtype(name)
    if len(values) != prod(shape) or len(values) * dtype.itemsize > _MAX_BYTES:
        raise ValueError(f"{len(values)} values of {name} are no array of shape {shape}")
    if dtype.kind == "S":
        values = [item.encode("latin-1") for item in values]
    array = np.array(values, dtype=dtype).reshape(shape)
    return array[()] if record["scalar"] else array


def _decode_class(name: str, kinds: tuple[type, ...] = _KINDS) -> type:
    module, _, path = name.partition(":")
    found: Any = None
    if any(module == root or module.startswith(f"{root}.") for root in _ROOTS):
        found = sys.modules.get(module)
        for part in path.split("."):
            found = getattr(found, part, None)
    known = isinstance(found, type) and issubclass(found, kinds)
    if not known or f"{found.__module__}:{found.__qualname__}" != name:
        raise NotPlainError(f"the class {name}")
    return found


def _decode_part(record: dict[str, Any]) -> Any:
    return _decode_class(record["$part"], _PARTS)(**decode(record["parameters"]))


def _decode_dict(record: dict[str, Any]) -> dict[Any, Any]:
    return {decode(key): decode(item) for key, item in record["$dict"]}


_DECODERS = {
    "$float": lambda record: float(record["$float"]),
    "$array": _decode_array,
    "$head": lambda record: Head(*record["$head"]),
    "$range": lambda record: range(*record["$range"]),
    "$tuple": lambda record: tuple(decode(record["$tuple"])),
    "$dict": _decode_dict,
    "$class": lambda record: _decode_class(record["$class"]),
    "$part": _decode_part,
}
