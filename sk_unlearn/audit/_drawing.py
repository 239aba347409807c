"""What the displays share: axes, styles that survive grey print, and columns of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart with any colour vision, and each with its own line and marker.
BLUE, VERMILION, GREEN, ORANGE, PURPLE, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#555555",
)
_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, GREY)
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def style(index: int) -> dict[str, Any]:
    """Return colour, line and marker of the series with this number; 168 differ in some way."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _LINES[index % len(_LINES)],
        "marker": _MARKERS[index % len(_MARKERS)],
    }


def axes(ax: Axes | None) -> Axes:
    """Return the axes to draw on, new ones if none are given.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "displays are drawn with matplotlib, which is not installed; "
            "run `pip install 'sk-unlearn[plots]'`"
        ) from error
    return pyplot.subplots(layout="constrained")[1] if ax is None else ax


def columns(table: Any, names: Iterable[str]) -> list[NDArray[Any]]:
    """Return columns of a DataFrame, of a dict of columns, or of a list of dicts.

    Raises
    ------
    ValueError
        If a column is missing, naming those that are there.
    """
    rows = isinstance(table, Sequence)
    known = list(table[0]) if rows and len(table) else [] if rows else list(table)
    found = []
    for name in names:
        if name not in known:
            raise ValueError(f"the table has no column {name!r}; it has {known}.")
        found.append(np.asarray([row[name] for row in table] if rows else table[name]))
    return found


def by_group(groups: NDArray[Any]) -> Mapping[str, NDArray[np.intp]]:
    """Return the positions of each group, groups in the order in which they appear."""
    names, first, codes = np.unique(groups.astype(str), return_index=True, return_inverse=True)
    return {str(names[i]): np.flatnonzero(codes == i) for i in np.argsort(first)}


def finite_guarantee(certificate: Any) -> tuple[float, float]:
    """Return (epsilon, delta) of a certificate.

    Raises
    ------
    ValueError
        If epsilon is infinite: nothing is proved.
    """
    epsilon, delta = float(certificate.epsilon), float(certificate.delta)
    if not epsilon < inf:
        raise ValueError(f"the certificate has epsilon={epsilon}: it proves nothing to draw.")
    return epsilon, delta
