"""Hashes of rows, and the pairing of equal ones: the k-th copy with the k-th copy."""

from __future__ import annotations

import secrets

import numpy as np

_CHUNK = 4096
_KEY = secrets.randbits(128)


def row_hash(X: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each row: multiply-shift over its 32-bit words.

    The weights are this process's own, so that nobody can prepare rows that collide with others:
    such rows could not be told apart, and a request to delete one would fail.
    """
    width = int(np.prod(X.shape[1:]))
    words = np.ascontiguousarray(X).reshape(len(X), width) + X.dtype.type(0)
    words = words.view(np.uint32)
    weights = np.random.default_rng(_KEY).integers(
        1, 2**63, size=words.shape[1], dtype=np.uint64
    ) * np.uint64(2) + np.uint64(1)
    out = np.empty(len(X), dtype=np.uint64)
    for start in range(0, len(X), _CHUNK):
        part = words[start : start + _CHUNK].astype(np.uint64)
        part *= np.uint64(0x9E3779B97F4A7C15)
        part ^= part >> np.uint64(29)
        out[start : start + _CHUNK] = part @ weights
    return out


def with_label(hashes: np.ndarray, y: np.ndarray) -> np.ndarray:
    codes = row_hash(y) if y.dtype.kind == "f" else y.astype(np.uint64)
    return hashes * np.uint64(0x9E3779B97F4A7C15) ^ (codes * np.uint64(0xD6E8FEB86659FD93))


def match(wanted: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Pair equal keys, the k-th copy with the k-th copy; -1 where there is none."""
    order = np.argsort(present, kind="stable")
    ranked = present[order]
    place = np.searchsorted(ranked, wanted) + _copy_number(wanted)
    found = np.flatnonzero(place < len(ranked))
    found = found[ranked[place[found]] == wanted[found]]
    out = np.full(len(wanted), -1, dtype=np.int64)
    out[found] = order[place[found]]
    return out


def _copy_number(keys: np.ndarray) -> np.ndarray:
    """Return for each entry how many equal entries stand before it."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    counts = np.diff(np.r_[starts, len(keys)])
    out = np.empty(len(keys), dtype=np.int64)
    out[order] = np.arange(len(keys)) - np.repeat(starts, counts)
    return out
