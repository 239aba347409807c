"""The deletions of a ledger over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ._drawing import axes, by_group, columns, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class DeletionTimelineDisplay:
    """Rows asked for and rows served, added up over time.

    Make it with `from_ledger`. The distance between ``requested`` and ``released`` is, along the
    time, how long people waited and, across it, how many rows were waiting.

    Parameters
    ----------
    steps : dict of str to (ndarray, ndarray)
        Times, and rows so far, of each state.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> entries = [(1, 3, "requested"), (2, 2, "requested"), (5, 5, "released")]
    >>> DeletionTimelineDisplay.from_ledger(entries).steps["requested"]
    (array([1, 2]), array([3, 5]))
    """

    def __init__(self, steps: Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]]) -> None:
        self.steps = steps

    @classmethod
    def from_ledger(cls, ledger: Any, *, ax: Axes | None = None) -> Self:
        """Draw the entries of a ledger.

        Parameters
        ----------
        ledger : object, DataFrame, or list of (time, n_rows, state)
            Anything with ``to_frame()``, such as ``clf.ledger_``, its frame, or the three columns
            that are needed of it. Times are numbers or timestamps; entries are put in their order.
        ax : matplotlib Axes, default=None
            Where to draw; new axes by default.

        Returns
        -------
        DeletionTimelineDisplay

        Raises
        ------
        ValueError
            If a column is missing.
        """
        names = ("time", "n_rows", "state")
        frame = ledger.to_frame() if hasattr(ledger, "to_frame") else ledger
        if isinstance(frame, Sequence):
            frame = [dict(zip(names, entry, strict=True)) for entry in frame]
        times, counts, states = columns(frame, names) if len(frame) else [np.empty(0)] * 3
        steps = {}
        for state, rows in by_group(states).items():
            rows = rows[np.argsort(times[rows], kind="stable")]
            steps[state] = times[rows], np.cumsum(counts[rows])
        return cls(steps).plot(ax)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw it.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes by default.

        Returns
        -------
        DeletionTimelineDisplay
        """
        ax = axes(ax)
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        last = max((times[-1] for times, _ in self.steps.values()), default=0)
        for i, (state, (times, total)) in enumerate(self.steps.items()):
            ax.plot(
                np.append(times, last),
                np.append(total, total[-1]),
                drawstyle="steps-post",
                label=f"{state}: {total[-1]} rows",
                markevery=list(range(len(times))),
                **style(i),
            )
        dates = ax.xaxis.get_major_locator()
        if isinstance(dates, AutoDateLocator):
            ax.xaxis.set_major_formatter(ConciseDateFormatter(dates))
        ax.set(xlabel="time", ylabel="rows so far")
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        if self.steps:
            ax.legend(loc="upper left")
        self.ax_, self.figure_ = ax, ax.figure
        return self
