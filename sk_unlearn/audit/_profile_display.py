"""Everything that one certificate proves, and what an audit ruled out of it."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..accounting import gaussian_delta
from ._drawing import BLUE, VERMILION, axes, finite_guarantee

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]

_LEAST_DELTA = 1e-12


class PrivacyProfileDisplay:
    """Delta against epsilon: every pair that one certificate proves.

    Make it with `from_certificate`.

    Parameters
    ----------
    epsilon, delta : ndarray of shape (n_points,)
        The certified curve.
    certified : tuple of float
        (epsilon, delta) as the certificate states them.
    epsilon_lower : float or None
        Below it, epsilon is refuted at the certificate's delta.
    lower_delta : ndarray of shape (n_points,) or None
        Below it, delta is refuted at each `epsilon`, for a release that is Gaussian DP.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    line_ : matplotlib Line2D
        The certified curve.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> certificate = SimpleNamespace(mu=0.268, epsilon=1.0, delta=1e-5)
    >>> display = PrivacyProfileDisplay.from_certificate(certificate, epsilon_lower=0.4)
    >>> display.ax_.get_xlabel()
    'ε'
    """

    def __init__(
        self,
        epsilon: FloatArray,
        delta: FloatArray,
        *,
        certified: tuple[float, float],
        epsilon_lower: float | None = None,
        lower_delta: FloatArray | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.certified = certified
        self.epsilon_lower = epsilon_lower
        self.lower_delta = lower_delta

    @classmethod
    def from_certificate(
        cls,
        certificate: Any,
        *,
        epsilon_lower: float | None = None,
        mu_lower: float | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Draw the profile of a certificate, with the lower bounds of an audit if there are any.

        Parameters
        ----------
        certificate : object
            With ``mu`` (None where a method has none), ``epsilon`` and ``delta``. With a `mu` the
            curve is that of (T1); otherwise it is what (epsilon, delta) alone imply.
        epsilon_lower : float, default=None
            From `epsilon_lower_bound`, at the certificate's delta.
        mu_lower : float, default=None
            From `mu_lower_bound`.
        ax : matplotlib Axes, default=None
            Where to draw; new axes by default.

        Returns
        -------
        PrivacyProfileDisplay

        Raises
        ------
        ValueError
            If the certificate's epsilon is infinite: it proves nothing.
        """
        certified = finite_guarantee(certificate)
        most = 2 * max(certified[0], epsilon_lower or 0.0, 0.5)
        epsilon = np.union1d(np.linspace(0, most, 401), certified[0])
        return cls(
            epsilon,
            _profile(certificate, epsilon),
            certified=certified,
            epsilon_lower=epsilon_lower,
            lower_delta=None if mu_lower is None else np.asarray(gaussian_delta(mu_lower, epsilon)),
        ).plot(ax)

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
        PrivacyProfileDisplay
        """
        ax = axes(ax)
        epsilon, delta = self.certified
        bottom = max(_LEAST_DELTA, min(delta, self.delta[-1]) / 10)
        look: dict[str, Any] = {"color": BLUE, "linewidth": 2, "label": "certified: δ at most"}
        (self.line_,) = ax.plot(self.epsilon, self.delta, **(look | kwargs))
        stated = f"ε = {epsilon:.4g}, δ = {delta:.4g}"
        height = max(delta, bottom)
        ax.plot(epsilon, height, "o", color=BLUE, label=stated, clip_on=False, zorder=3)
        if self.lower_delta is not None:
            lower = np.maximum(self.lower_delta, bottom)
            found = "audit, if Gaussian DP: δ at least"
            ax.plot(self.epsilon, self.lower_delta, "--", color=VERMILION, label=found)
            hatch: dict[str, Any] = {"facecolor": "none", "edgecolor": VERMILION, "hatch": "///"}
            ax.fill_between(self.epsilon, lower, bottom, alpha=0.35, linewidth=0, **hatch)
        if self.epsilon_lower is not None:
            bar: dict[str, Any] = {"color": VERMILION, "linewidth": 2.5, "linestyle": ":"}
            cap = {"marker": "|", "markersize": 12, "markeredgewidth": 2, "markevery": [1]}
            found = f"audit: ε at least {self.epsilon_lower:.3g} at this δ"
            ax.plot([0, self.epsilon_lower], [height, height], label=found, **(bar | cap))
        ax.set(xlabel="ε", ylabel="δ", yscale="log", xlim=(0, self.epsilon[-1]), ylim=(bottom, 1))
        ax.grid(alpha=0.3)
        ax.legend(loc="upper right")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _profile(certificate: Any, epsilon: FloatArray) -> FloatArray:
    """Delta at each epsilon: of mu-GDP (T1), else what randomized response shows to be tight."""
    if certificate.mu is not None:
        return np.asarray(gaussian_delta(certificate.mu, epsilon))
    e, delta = finite_guarantee(certificate)
    implied = delta + (1 - delta) * (1 - np.exp(np.minimum(epsilon - e, 0))) / (1 + exp(-e))
    return np.asarray(np.where(epsilon < e, implied, delta))
