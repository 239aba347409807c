"""Tables with columns that hold no numbers: which they are, and what to do about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, time, timedelta
from typing import Any

import numpy as np

_NO_NUMBER = (str, bytes, date, time, timedelta, np.datetime64, np.timedelta64)


@contextmanager
def numbers_wanted(X: Any) -> Iterator[None]:
    """Name the columns of X with text or dates, where a check of X fails for them.

    Raises
    ------
    ValueError
        In the place of scikit-learn's "could not convert string to float".
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        found = _columns_without_numbers(X)
        if not found:
            raise
        named = ", ".join(f"{name!r} (such as {value!r})" for name, value in found[:5])
        more = f", ... ({len(found)} in all)" if len(found) > 5 else ""
        raise ValueError(
            f"X has text or dates in the columns {named}{more}, and the net takes numbers. Put "
            "sklearn.compose.ColumnTransformer with sk_unlearn.preprocessing.PublicOneHotEncoder("
            "categories=...) for these columns before it; categories that are collected from the "
            "rows, as by OneHotEncoder, carry the deleted ones"
        ) from error


def _columns_without_numbers(X: Any) -> list[tuple[Any, Any]]:
    """Return the names, or positions, of columns of a two-dimensional X, each with a value."""
    try:
        cells = np.asarray(X, dtype=object)
    except (ValueError, TypeError):
        return []
    if cells.ndim != 2:
        return []
    names = getattr(X, "columns", range(cells.shape[1]))
    first = ((name, _not_a_number(column)) for name, column in zip(names, cells.T, strict=True))
    return [(name, value) for name, value in first if value is not None]


def _not_a_number(column: np.ndarray) -> Any:
    """Return the first cell of a column that is text or a date and reads as no number, or None."""
    for value in column:
        if isinstance(value, _NO_NUMBER):
            try:
                float(value)
            except (ValueError, TypeError):
                return value
    return None
