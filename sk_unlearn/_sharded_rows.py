"""Where the rows of a sharded classifier go, and which ones a request means."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._rows import TrainingRows
from .exceptions import DeletionRequestError, UnknownRowError

_CHUNK = 4096


def hashed_buckets(X: np.ndarray, n_buckets: int, salt: int) -> np.ndarray:
    """Return for each row a bucket in ``0 ... n_buckets - 1``, a function of its features alone.

    Vector multiply-shift over the 32-bit words of a row (Dietzfelbinger 1996): uniform, and
    independent for any two different rows, over the salt. Equal rows share a bucket.
    """
    words = (X.reshape(len(X), -1) + X.dtype.type(0)).view(np.uint32)
    generator = np.random.default_rng(salt)
    factors = generator.integers(2**64, size=words.shape[1] + 1, dtype=np.uint64)
    out = np.empty(len(X), dtype=np.int64)
    for start in range(0, len(X), _CHUNK):
        part = words[start : start + _CHUNK].astype(np.uint64)
        high = (part @ factors[1:] + factors[0]) >> np.uint64(32)
        out[start : start + _CHUNK] = (high * np.uint64(n_buckets)) >> np.uint64(32)
    return out


def find_rows(net: Any, X_u: Any, y_u: Any, indices: Any, sample_ids: Any) -> np.ndarray:
    """Return the positions of the rows that a request names, in exactly one way."""
    by_content = X_u is not None or y_u is not None
    if sum([by_content, indices is not None, sample_ids is not None]) != 1:
        raise DeletionRequestError(
            "name the rows in exactly one way: X_u and y_u, or indices, or sample_ids"
        )
    if indices is not None:
        return net.rows_.find_indices(indices)
    if sample_ids is not None:
        return net.rows_.find_ids(sample_ids)
    if X_u is None or y_u is None:
        raise DeletionRequestError("pass X_u and y_u together")
    try:
        X, y = net._validated(X_u, y_u, reset=False)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DeletionRequestError(f"X_u, y_u: {error}") from error
    unseen = np.setdiff1d(y, net.classes_)
    if len(unseen):
        raise UnknownRowError(f"y_u contains labels not seen before: {unseen[:5].tolist()}")
    X = X.astype(net.rows_.X.dtype, copy=False)
    return net.rows_.find_content(X, np.searchsorted(net.classes_, y), net.classes_)


def refuse_unservable(net: Any, retained: TrainingRows, deleted: TrainingRows) -> None:
    """Raise when nothing would remain, or the last row of an undeclared class would go."""
    if not len(retained):
        raise DeletionRequestError(
            f"all {len(deleted)} training rows would be deleted; discard the model instead"
        )
    gone = np.setdiff1d(deleted.y, retained.y)
    if len(gone) and not net.classes_declared_:
        labels = ", ".join(repr(label) for label in net.classes_[gone].tolist())
        raise DeletionRequestError(
            f"the last row of class {labels} would be deleted, and a retrained model would have "
            "fewer classes; declare classes= at construction to allow it"
        )
