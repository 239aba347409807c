"""What can be reached from an object, and which numbers lie in that memory."""

from __future__ import annotations

import gc
from types import FunctionType, MethodType, ModuleType

import numpy as np
import torch

STOP = (type, ModuleType)


def reachable(*roots):
    """Yield everything that is reachable: referents, bases of views, storages, closures."""
    seen, todo = {}, list(roots)
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, STOP):
            continue
        seen[id(value)] = value  # keeps it alive, so that no id is used twice
        yield value
        todo += _parts(value)


def _parts(value):
    if isinstance(value, FunctionType):  # its globals are the whole library
        return [value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__]
    if isinstance(value, MethodType):
        return [value.__self__]
    parts = list(gc.get_referents(value))
    if isinstance(value, np.ndarray):
        parts += [value.base] + (value.ravel().tolist() if value.dtype == object else [])
    elif isinstance(value, memoryview):
        parts.append(value.obj)
    elif isinstance(value, torch.Tensor):
        parts += [value.grad if value.is_leaf else None, value._base, value.grad_fn]
        parts.append(_memory(value))
    return [part for part in parts if part is not None]


def _memory(tensor):
    """All of a tensor's storage, also what the tensor itself is no view of."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().copy()


def buffers(*roots):
    """Yield the memory of every array, tensor, bytes object and number that is reachable."""
    numbers = []
    for value in reachable(*roots):
        if isinstance(value, np.ndarray):
            if value.dtype != object:
                yield np.ascontiguousarray(value).tobytes()
        elif isinstance(value, bytes | bytearray):
            yield bytes(value)
        elif isinstance(value, str):
            yield value.encode("utf-8", "surrogatepass")
        elif isinstance(value, float):
            numbers.append(value)
    yield np.array(numbers).tobytes()


def count(needles, haystacks):
    """Count the aligned occurrences of numbers, as float32 and as float64."""
    needles = np.unique(np.asarray(needles, dtype=np.float64).ravel())
    singles = np.unique(needles.astype(np.float32))
    total = 0
    for memory in haystacks:
        for wanted, dtype in ((singles, np.float32), (needles, np.float64)):
            for offset in (0, 4) if dtype is np.float64 else (0,):
                length = (len(memory) - offset) // dtype().itemsize
                if length > 0:
                    found = np.frombuffer(memory, dtype, length, offset)
                    total += int(np.isin(found, wanted).sum())
    return total


def occurrences(needles, content):
    """Count occurrences of numbers in a file, at any offset: as float64, and float32 in pairs."""
    needles = np.asarray(needles, dtype=np.float64)
    pairs = [needles[i : i + 2].astype(np.float32).tobytes() for i in range(len(needles) - 1)]
    return sum(content.count(n.tobytes()) for n in needles) + sum(map(content.count, pairs))


def telling(values, most=400):
    """Return numbers that nothing else is likely to equal: many digits, not tiny."""
    values = np.concatenate([np.ravel(v).astype(np.float64) for v in values] or [np.empty(0)])
    values = values[np.isfinite(values) & (np.abs(values) > 1e-12)]
    values = values[(values.astype(np.float32).view(np.uint32) & 0xFFF) != 0]
    return values[:: max(1, len(values) // most)][:most]


def numbers_in(*roots):
    """Return the telling numbers of every array and tensor that is reachable."""
    found = []
    for value in reachable(*roots):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            found.append(value.detach().cpu().double().numpy())
        elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
            found.append(value)
        elif isinstance(value, float):
            found.append(np.array([value]))
    return telling(found, most=5000)
