"""Rows of which the auditor knows whether they were trained on, and when two of them are one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows whose membership is known to the auditor.

    Parameters
    ----------
    X : array-like of shape (n_rows, ...)
        As the model's ``predict_proba`` takes it.
    y : array-like of shape (n_rows,)
        Their labels, among the model's ``classes_``.
    member : array-like of shape (n_rows,), bool
        True for rows that were trained on (also if deleted since), False for others.

    Raises
    ------
    ValueError
        If lengths differ, `member` is not boolean, or it does not have two rows of each kind.
    """

    X: Any
    y: Any
    member: Any

    def __post_init__(self) -> None:
        lengths = [np.shape(part)[:1] for part in (self.X, self.y, self.member)]
        if len(set(lengths)) > 1:
            raise ValueError(f"X, y, member have lengths {lengths}; give one of each per row.")
        member = np.asarray(self.member)
        if member.dtype != bool or member.ndim != 1:
            raise ValueError(
                f"member has dtype {member.dtype} and shape {member.shape}; give one bool per row."
            )
        counts = int(member.sum()), int((~member).sum())
        if min(counts) < 2:
            raise ValueError(
                f"there are {counts[0]} members and {counts[1]} others; give at least 2 of each."
            )


def check_disjoint(attack: Rows, evaluation: Rows) -> None:
    """Refuse rows that are in both, and rows that are a member here and no member there.

    Raises
    ------
    ValueError
        Saying how many, and the first.
    """
    keys = _row_keys(attack, evaluation)
    member = np.concatenate([np.asarray(attack.member), np.asarray(evaluation.member)])
    attacked = np.arange(len(keys)) < len(attack.member)
    shared = np.isin(keys[~attacked], keys[attacked])
    if shared.any():
        raise ValueError(
            f"{shared.sum()} evaluation rows are among the attack rows too (the first is row "
            f"{shared.argmax()}); an attack must be judged by rows that it did not learn from."
        )
    both = np.isin(keys[member], keys[~member])
    if both.any():
        raise ValueError(
            f"{both.sum()} members have an equal row that is given as no member; leave such rows "
            "out, since the model was trained on them."
        )


def _row_keys(*parts: Rows) -> NDArray[np.int64]:
    """Return equal numbers for rows with equal labels and, in the coarser dtype, equal features."""
    tables = [np.asarray(rows.X).reshape(len(rows.member), -1) for rows in parts]
    if all(np.issubdtype(table.dtype, np.number) for table in tables):
        floats = [table.dtype for table in tables if np.issubdtype(table.dtype, np.floating)]
        coarsest = min(floats, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float64))
        with np.errstate(over="ignore"):
            content = np.concatenate([table.astype(coarsest) for table in tables])
    else:
        text = np.concatenate([table.astype(str) for table in tables])
        content = np.unique(text, return_inverse=True)[1].reshape(text.shape)
    _, labels = np.unique(
        np.concatenate([np.asarray(rows.y) for rows in parts]), return_inverse=True
    )
    keys = np.ascontiguousarray(np.column_stack([content, labels]), dtype=np.float64) + 0.0
    as_bytes = keys.view(np.dtype((np.void, keys.itemsize * keys.shape[1])))
    return np.asarray(np.unique(as_bytes.ravel(), return_inverse=True)[1])
