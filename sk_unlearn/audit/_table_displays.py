"""Pictures of benchmark tables: accuracy against epsilon, and methods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ._drawing import GREY, axes, by_group, columns, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]


class UtilityDisplay:
    """Accuracy against epsilon, one line per method.

    Make it with `from_table`.

    Parameters
    ----------
    curves : dict of str to ndarray of shape (4, n_epsilons)
        Epsilon, mean, least and largest accuracy over draws, for each method.
    references : dict of str to float
        Mean accuracy of what has no epsilon (retraining, doing nothing, a no-model control).
    ylabel : str
        Name of the score.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> table = {
    ...     "method": ["residual", "residual", "retrain"],
    ...     "epsilon": [0.5, 1.0, None],
    ...     "accuracy": [0.98, 0.99, 0.99],
    ... }
    >>> UtilityDisplay.from_table(table).references
    {'retrain': 0.99}
    """

    def __init__(
        self,
        curves: Mapping[str, FloatArray],
        references: Mapping[str, float],
        ylabel: str = "accuracy",
    ) -> None:
        self.curves = curves
        self.references = references
        self.ylabel = ylabel

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        method: str = "method",
        epsilon: str = "epsilon",
        accuracy: str = "accuracy",
        ax: Axes | None = None,
    ) -> Self:
        """Draw a table with one row per method, epsilon and draw.

        Parameters
        ----------
        table : DataFrame, dict of columns, or list of dicts
            A row without an epsilon (None or NaN) belongs to a reference.
        method, epsilon, accuracy : str
            Names of the columns.
        ax : matplotlib Axes, default=None
            Where to draw; new axes by default.

        Returns
        -------
        UtilityDisplay

        Raises
        ------
        ValueError
            If a column is missing, or an epsilon is negative or infinite.
        """
        methods, epsilons, scores = columns(table, (method, epsilon, accuracy))
        epsilons, scores = epsilons.astype(float), scores.astype(float)
        wrong = (epsilons < 0) | np.isinf(epsilons)
        if wrong.any():
            raise ValueError(
                f"{epsilon}={epsilons[wrong][0]} has no place on the axis; leave such rows out, or "
                "give them no epsilon to draw them as a reference."
            )
        curves, references = {}, {}
        for name, rows in by_group(methods).items():
            proved = rows[~np.isnan(epsilons[rows])]
            if len(proved):
                points = np.unique(epsilons[proved])
                draws = [scores[proved][epsilons[proved] == point] for point in points]
                summary = [[f(draw) for draw in draws] for f in (np.mean, np.min, np.max)]
                curves[name] = np.array([points, *summary])
            if len(proved) < len(rows):
                references[name] = float(scores[np.setdiff1d(rows, proved)].mean())
        return cls(curves, references, accuracy.replace("_", " ")).plot(ax)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw it: means, with bars from the least to the largest draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes by default.

        Returns
        -------
        UtilityDisplay
        """
        ax = axes(ax)
        for i, (name, (epsilon, mean, least, most)) in enumerate(self.curves.items()):
            bars = [mean - least, most - mean]
            ax.errorbar(epsilon, mean, bars, label=name, capsize=3, **style(i))
        for i, (name, mean) in enumerate(self.references.items(), start=len(self.curves)):
            ax.axhline(mean, label=name, **(style(i) | {"marker": None, "linewidth": 1.2}))
        if self.curves and min(curve[0].min() for curve in self.curves.values()) > 0:
            ax.set_xscale("log")
            shown = np.unique(np.concatenate([curve[0] for curve in self.curves.values()]))
            if len(shown) <= 8:
                ax.set_xticks(shown, [f"{value:g}" for value in shown])
                ax.minorticks_off()
        ax.set(xlabel="ε", ylabel=self.ylabel)
        ax.grid(alpha=0.3)
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self


class UnlearningComparisonDisplay:
    """The same measure on several sets of rows, one line of marks per method.

    Make it with `from_table`. A deletion that works looks like retraining on every set.

    Parameters
    ----------
    methods : list of str
        From top to bottom.
    columns : list of str
        What was measured; one kind of mark each.
    values : ndarray of shape (n_methods, n_columns, 3)
        Mean, least and largest over draws.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> table = {
    ...     "method": ["retrain", "residual"],
    ...     "accuracy_retained": [0.99, 0.99],
    ...     "accuracy_deleted": [0.95, 0.95],
    ...     "accuracy_test": [0.96, 0.95],
    ... }
    >>> display = UnlearningComparisonDisplay.from_table(table)
    >>> display.ax_.get_xlabel(), display.methods
    ('accuracy', ['retrain', 'residual'])
    """

    def __init__(self, methods: list[str], columns: list[str], values: FloatArray) -> None:
        self.methods = methods
        self.columns = columns
        self.values = values

    @classmethod
    def from_table(
        cls,
        table: Any,
        names: Sequence[str] = ("accuracy_retained", "accuracy_deleted", "accuracy_test"),
        *,
        method: str = "method",
        ax: Axes | None = None,
    ) -> Self:
        """Draw a table with one row per method and draw.

        Parameters
        ----------
        table : DataFrame, dict of columns, or list of dicts
            With a column for the method and those of `names`.
        names : sequence of str
            Columns in the same unit, such as the accuracy on several sets of rows.
        method : str, default="method"
            Column with the name of the method.
        ax : matplotlib Axes, default=None
            Where to draw; new axes by default.

        Returns
        -------
        UnlearningComparisonDisplay

        Raises
        ------
        ValueError
            If a column is missing.
        """
        groups, *measured = columns(table, (method, *names))
        scores = np.array(measured, dtype=float)
        by_method = by_group(groups)
        values = np.array(
            [
                [[f(score[rows]) for f in (np.mean, np.min, np.max)] for score in scores]
                for rows in by_method.values()
            ]
        )
        return cls(list(by_method), list(names), values).plot(ax)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw it: means, with bars from the least to the largest draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes by default.

        Returns
        -------
        UnlearningComparisonDisplay
        """
        ax = axes(ax)
        units = {name.rpartition("_")[0] for name in self.columns}
        shared = units.pop() if len(units) == 1 else ""
        heights = np.arange(len(self.methods), dtype=float)
        offsets = np.linspace(-0.2, 0.2, len(self.columns)) if len(self.columns) > 1 else [0.0]
        for i, (name, offset) in enumerate(zip(self.columns, offsets, strict=True)):
            mean, least, most = self.values[:, i].T
            ax.errorbar(
                mean,
                heights + offset,
                xerr=[mean - least, most - mean],
                label=name.removeprefix(f"{shared}_").replace("_", " "),
                capsize=3,
                markersize=7,
                **(style(i) | {"linestyle": "none"}),
            )
        for edge in heights[1:] - 0.5:
            ax.axhline(edge, color=GREY, linewidth=0.5, alpha=0.5)
        ax.set_yticks(heights, self.methods)
        ax.set(xlabel=shared.replace("_", " "), ylim=(len(heights) - 0.5, -0.5))
        ax.locator_params(axis="x", nbins=5)
        ax.grid(axis="x", alpha=0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(self.columns))
        self.ax_, self.figure_ = ax, ax.figure
        return self
