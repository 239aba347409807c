"""The training rows: found by content, position or id; counted with their duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ._row_hashes import match, row_hash, with_label
from .exceptions import DeletionRequestError, UnknownRowError
from .frozen_features import Features


@dataclass(frozen=True)
class TrainingRows:
    """Rows that the model was trained on and that were not deleted since.

    Parameters
    ----------
    X : ndarray of shape (n, ...), float32
    y : ndarray of shape (n,), int64, or (n, k), float32
        Class indices, or targets.
    sample_ids : ndarray of shape (n,) or None
        Whose row it is; ids may repeat.
    permanent : ndarray of bool of shape (n,) or None
        Rows that are never deleted.
    features : Features or None
        What the frozen network below a head makes of each row.
    """

    X: np.ndarray
    y: np.ndarray
    sample_ids: np.ndarray | None = None
    permanent: np.ndarray | None = None
    features: Features | None = None
    _hashes: list[np.ndarray] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.y)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_hashes": []}

    def hashed(self) -> TrainingRows:
        """Return itself with the hashes computed, so that the first deletion need not."""
        self._row_hashes()
        return self

    def take(self, positions: np.ndarray) -> TrainingRows:
        """Return copies of some rows, in the order given."""
        return TrainingRows(
            self.X[positions],
            self.y[positions],
            None if self.sample_ids is None else self.sample_ids[positions],
            None if self.permanent is None else self.permanent[positions],
            None if self.features is None else self.features.take(positions),
            [h[positions] for h in self._hashes],
        )

    def without(self, positions: np.ndarray) -> TrainingRows:
        """Return copies of the rows that are not at `positions`."""
        keep = np.ones(len(self), dtype=bool)
        keep[positions] = False
        return self.take(np.flatnonzero(keep))

    def corrected(self, positions: np.ndarray, new: TrainingRows) -> TrainingRows:
        """Return copies of all rows, those at `positions` with the content of `new`.

        Ids, marks and the order stay.
        """
        rows = self.take(np.arange(len(self)))
        rows.X[positions], rows.y[positions] = new.X, new.y
        if rows.features is not None and new.features is not None:
            rows.features.values[positions] = new.features.values
            rows.features.error[positions] = new.features.error
        return replace(rows, _hashes=[])

    def joined(self, other: TrainingRows) -> TrainingRows:
        """Append the rows of `other` that are not here yet, as multisets.

        Training again on the same rows must not store them twice, or one deletion would
        leave a copy behind.
        """
        if len(self) == len(other) and np.array_equal(self.X, other.X):
            if np.array_equal(self.y, other.y) and _same_ids(self, other):
                return self
        if (self.sample_ids is None) != (other.sample_ids is None):
            raise ValueError("sample_ids were given for some rows only; give them for all")
        here, there, ids = self._keys(), other._keys(), None
        if self.sample_ids is not None:
            owners = np.concatenate([self.sample_ids, other.sample_ids])
            _, codes = np.unique(owners, return_inverse=True)
            here = with_label(here, codes[: len(self)] + 1)
            there = with_label(there, codes[len(self) :] + 1)
        fresh = other.take(np.flatnonzero(match(there, here) < 0))
        if self.sample_ids is not None:
            ids = np.concatenate([self.sample_ids, fresh.sample_ids])
        X, y = np.concatenate([self.X, fresh.X]), np.concatenate([self.y, fresh.y])
        permanent = self.permanent
        if permanent is not None:
            permanent = np.concatenate([permanent, np.zeros(len(fresh), dtype=bool)])
        return TrainingRows(X, y, ids, permanent)

    def find_content(self, X: np.ndarray, y: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """Return the positions of rows given by content; each copy counts once.

        `labels` are the names of the class indices, for messages; None where y holds targets.

        Raises
        ------
        UnknownRowError
            If a row was not trained on, was trained on with another label, or is asked
            for more often than it is here.
        DeletionRequestError
            If it is permanent, and there is no copy of it that is not.
        """
        wanted = row_hash(X)
        order = self._deletable_first()
        where = match(with_label(wanted, y), self._keys()[order])
        where[where >= 0] = order[where[where >= 0]]
        equal = where >= 0
        for here, given in ((self.X, X), (self.y, y)):
            equal &= (here[where] == given).all(axis=tuple(range(1, given.ndim)))
        missing = np.flatnonzero(~equal)
        if len(missing):
            raise UnknownRowError(self._explain_missing(missing, wanted, y, labels))
        self._refuse_permanent(where, np.arange(len(where)), "rows {} of X_u")
        return where

    def _deletable_first(self) -> np.ndarray:
        if self.permanent is None:
            return np.arange(len(self))
        return np.argsort(self.permanent, kind="stable")

    def _refuse_permanent(self, positions: np.ndarray, names: np.ndarray, which: str) -> None:
        permanent = None if self.permanent is None else self.permanent[positions]
        if permanent is not None and permanent.any():
            raise DeletionRequestError(
                f"{which.format(_some(np.unique(names[permanent])))} are permanent: fit was told "
                "that they would never be deleted, and they trained the frozen network; to delete "
                "them fit again without them"
            )

    def _explain_missing(
        self, missing: np.ndarray, wanted: np.ndarray, y: np.ndarray, labels: np.ndarray | None
    ) -> str:
        unknown = missing[~np.isin(wanted[missing], self._row_hashes())]
        if len(unknown):
            return (
                f"rows {_some(unknown)} of X_u are not among the {len(self)} training rows (or "
                "were deleted before); rows must be equal to the training rows to the last bit of "
                "float32"
            )
        keys = with_label(wanted, y)
        mislabelled = missing[~np.isin(keys[missing], self._keys())]
        if len(mislabelled):
            first = int(mislabelled[0])
            here = np.unique(self.y[self._row_hashes() == wanted[first]], axis=0)
            kind = "target" if labels is None else "label"
            names = [here, y[first]] if labels is None else [labels[here], labels[y[first]]]
            known, given = (name.tolist() for name in names)
            return (
                f"rows {_some(mislabelled)} of X_u were trained on with another {kind} (row "
                f"{first}: {', '.join(map(repr, known))}, not {given!r})"
            )
        first = int(missing[0])
        return (
            f"rows {_some(missing)} of X_u are asked for more often than they are among the "
            f"training rows (row {first} is there {int(np.sum(self._keys() == keys[first]))} times)"
        )

    def find_indices(self, indices: Any) -> np.ndarray:
        """Check positions among the present training rows.

        Raises
        ------
        UnknownRowError
            If one is out of range.
        DeletionRequestError
            If one is named twice or permanent, or they are not whole numbers.
        """
        try:
            positions = np.asarray(indices)
        except (ValueError, TypeError, RuntimeError) as error:
            raise DeletionRequestError(f"indices={indices!r}: {error}") from error
        if positions.dtype == bool and positions.shape == (len(self),):
            positions = np.flatnonzero(positions)
        if positions.size == 0:
            return np.empty(0, dtype=np.int64)
        if positions.ndim != 1 or not np.issubdtype(positions.dtype, np.integer):
            raise DeletionRequestError(
                f"indices={indices!r}; give a list of whole numbers, positions among the training "
                "rows that are left"
            )
        outside = positions[(positions < 0) | (positions >= len(self))]
        if len(outside):
            raise UnknownRowError(
                f"indices {_some(outside)} are outside 0 ... {len(self) - 1}, the positions of the "
                "training rows that are left"
            )
        unique, counts = np.unique(positions, return_counts=True)
        if len(unique) < len(positions):
            raise DeletionRequestError(f"indices {_some(unique[counts > 1])} are named twice")
        self._refuse_permanent(positions, positions, "indices {}")
        return positions.astype(np.int64)

    def find_ids(self, sample_ids: Sequence[Any]) -> np.ndarray:
        """Return the positions of all rows of the given ids.

        Raises
        ------
        UnknownRowError
            If an id owns no row.
        DeletionRequestError
            If an id is named twice or owns a permanent row, or fit was given no ids.
        """
        if self.sample_ids is None:
            raise DeletionRequestError(
                "sample_ids cannot be found: fit was called without sample_ids"
            )
        try:
            wanted = as_ids(sample_ids)
        except (ValueError, TypeError, RuntimeError) as error:
            raise DeletionRequestError(str(error)) from error
        unique, counts = np.unique(wanted, return_counts=True)
        if len(unique) < len(wanted):
            raise DeletionRequestError(f"sample_ids {_some(unique[counts > 1])} are named twice")
        missing = np.setdiff1d(unique, self.sample_ids)
        if len(missing):
            raise UnknownRowError(f"sample_ids {_some(missing)} own no training row")
        positions = np.flatnonzero(np.isin(self.sample_ids, unique))
        self._refuse_permanent(positions, self.sample_ids[positions], "rows of sample_ids {}")
        return positions

    def count_duplicates(self, deleted: TrainingRows) -> int:
        """Count the rows here that are equal, in features and label or target, to a deleted row."""
        keys, gone = self._keys(), deleted._keys()
        marked = np.zeros(2**16, dtype=bool)  # by the last bits, which leaves few keys to compare
        marked[gone.astype(np.uint16)] = True
        return int(np.isin(keys[marked[keys.astype(np.uint16)]], gone).sum())

    def _row_hashes(self) -> np.ndarray:
        if not self._hashes:
            self._hashes.append(row_hash(self.X))
        return self._hashes[0]

    def _keys(self) -> np.ndarray:
        return with_label(self._row_hashes(), self.y)


def as_ids(sample_ids: Sequence[Any]) -> np.ndarray:
    """Return ids as a one-dimensional array of numbers or strings that compares and sorts."""
    kinds = {type(i) for i in sample_ids} if isinstance(sample_ids, list | tuple) else set()
    if isinstance(sample_ids, str | bytes):
        raise ValueError(f"sample_ids={sample_ids!r} is one id; give a list: [{sample_ids!r}]")
    ids = np.asarray(sample_ids)
    if ids.dtype == object:
        kinds = {type(i) for i in ids.ravel()}
    if str in kinds and len(kinds) > 1:
        raise ValueError("sample_ids mix text with other types, so that 1 and '1' would be one id")
    if ids.dtype == object:
        ids = np.asarray([str(i) for i in ids.ravel()]).reshape(ids.shape)
    if ids.ndim != 1:
        raise ValueError(f"sample_ids have the shape {ids.shape}; give one id for each row")
    return ids


def _same_ids(one: TrainingRows, other: TrainingRows) -> bool:
    if one.sample_ids is None or other.sample_ids is None:
        return one.sample_ids is other.sample_ids
    return np.array_equal(one.sample_ids, other.sample_ids)


def _some(values: np.ndarray) -> str:
    shown = ", ".join(str(v) for v in values[:5].tolist())
    return shown + (f", ... ({len(values)} in all)" if len(values) > 5 else "")
