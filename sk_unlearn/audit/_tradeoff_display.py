"""What a certificate leaves to an attack, and what an attack reaches."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from ._drawing import BLUE, GREY, VERMILION, axes, finite_guarantee
from .lower_bounds import ErrorRates, held_out_error_rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]

_MOST_POINTS = 1000


class TradeoffDisplay:
    """False negatives against false positives: no attack gets below the certified curve.

    Make it with `from_certificate`.

    Parameters
    ----------
    fpr, certified_fnr : ndarray of shape (n_points,)
        The certified curve: the least false negative rate at each false positive rate.
    attack_fpr, attack_fnr : ndarray of shape (n_thresholds,) or None
        Error rates of the attack as counted, on all runs.
    rates : ErrorRates or None
        One test with upper confidence bounds on both its rates: below the curve, it refutes.
    confidence : float
        That of `rates`.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    line_ : matplotlib Line2D
        The certified curve.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> certificate = SimpleNamespace(mu=None, epsilon=1.0, delta=1e-5)
    >>> display = TradeoffDisplay.from_certificate(certificate)
    >>> round(float(display.certified_fnr.min()), 6), round(float(display.certified_fnr.max()), 5)
    (0.0, 0.99999)
    """

    def __init__(
        self,
        fpr: FloatArray,
        certified_fnr: FloatArray,
        *,
        attack_fpr: FloatArray | None = None,
        attack_fnr: FloatArray | None = None,
        rates: ErrorRates | None = None,
        confidence: float = 0.95,
    ) -> None:
        self.fpr = fpr
        self.certified_fnr = certified_fnr
        self.attack_fpr = attack_fpr
        self.attack_fnr = attack_fnr
        self.rates = rates
        self.confidence = confidence

    @classmethod
    def from_certificate(
        cls,
        certificate: Any,
        scores_present: ArrayLike | None = None,
        scores_absent: ArrayLike | None = None,
        *,
        confidence: float = 0.95,
        random_state: int | np.random.RandomState | None = 0,
        ax: Axes | None = None,
    ) -> Self:
        """Draw what a certificate allows and, with the scores of runs, what an attack reaches.

        Parameters
        ----------
        certificate : object
            With ``mu`` (None where a method has none), ``epsilon`` and ``delta``.
        scores_present, scores_absent : array-like of shape (n_runs,), default=None
            One score per run of either world, as for `mu_lower_bound`; both or none.
        confidence : float, default=0.95
            Of the bounds on the attack's error rates.
        random_state : int, RandomState or None, default=0
            Halves the runs.
        ax : matplotlib Axes, default=None
            Where to draw; new axes by default.

        Returns
        -------
        TradeoffDisplay

        Raises
        ------
        ValueError
            If the certificate's epsilon is infinite, or as `mu_lower_bound`.
        """
        finite_guarantee(certificate)
        tail = np.geomspace(1e-6, 0.01, 100)
        fpr = np.unique(
            np.concatenate([[0.0], tail, np.linspace(0.01, 0.99, 197), 1 - tail, [1.0]])
        )
        display = cls(fpr, _tradeoff(certificate, fpr), confidence=confidence)
        if scores_present is not None or scores_absent is not None:
            present, absent = np.asarray(scores_present, float), np.asarray(scores_absent, float)
            display.rates = held_out_error_rates(
                present, absent, confidence, random_state=random_state
            )
            display.attack_fpr, display.attack_fnr = _counted_rates(
                display.rates.sign * present, display.rates.sign * absent
            )
        return display.plot(ax)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw it; `kwargs` go to the line of the certified curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes by default.
        **kwargs : dict
            Of `matplotlib.axes.Axes.plot`.

        Returns
        -------
        TradeoffDisplay
        """
        ax = axes(ax)
        ax.plot([0, 1], [1, 0], ":", color=GREY, label="guessing")
        look: dict[str, Any] = {
            "color": BLUE,
            "linewidth": 2,
            "label": "certified: no attack below",
        }
        (self.line_,) = ax.plot(self.fpr, self.certified_fnr, **(look | kwargs))
        if self.attack_fpr is not None and self.attack_fnr is not None:
            ax.plot(
                self.attack_fpr, self.attack_fnr, "--", color=VERMILION, label="attack, as counted"
            )
        if self.rates is not None:
            x, y = self.rates.fpr_upper, self.rates.fnr_upper
            label = f"attack, at most ({self.confidence:.0%} confidence)"
            ax.plot(x, y, "D", color=VERMILION, markeredgecolor="black", label=label, zorder=3)
            ax.plot([x, x, 0], [0, y, y], "-", color=VERMILION, linewidth=0.8, alpha=0.6)
        ax.set(
            xlabel="false positive rate: absent rows called present",
            ylabel="false negative rate: present rows missed",
            xlim=(0, 1),
            ylim=(0, 1),
            aspect="equal",
        )
        ax.grid(alpha=0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _tradeoff(certificate: Any, fpr: FloatArray) -> FloatArray:
    """Least FNR at each FPR (Dong, Roth & Su 2022, eq. 6 and Prop. 2.5)."""
    if certificate.mu is not None:
        return np.asarray(ndtr(-ndtri(fpr) - certificate.mu))
    epsilon, delta = finite_guarantee(certificate)
    first, second = 1 - delta - exp(epsilon) * fpr, exp(-epsilon) * (1 - delta - fpr)
    return np.maximum(np.maximum(first, second), 0.0)


def _counted_rates(present: FloatArray, absent: FloatArray) -> tuple[FloatArray, FloatArray]:
    thresholds = np.unique(np.concatenate([present, absent]))
    few = np.linspace(0, len(thresholds) - 1, min(len(thresholds), _MOST_POINTS)).astype(int)
    fpr = 1 - np.searchsorted(np.sort(absent), thresholds[few]) / len(absent)
    fnr = np.searchsorted(np.sort(present), thresholds[few]) / len(present)
    return np.append(fpr, 0.0), np.append(fnr, 1.0)
