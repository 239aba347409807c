"""The only place where noise is drawn."""

from __future__ import annotations

import os
from math import frexp, inf

import numpy as np
from scipy.special import ndtri

_CHUNK = 1 << 20
_GRID_BITS = 12
_WORDS = 14


class NoiseSource:
    """Gaussian noise in float64, from the entropy of the operating system.

    torch's generators hold 32 bits of seed and its float32 normals never leave 5.77
    standard deviations; noise that can be replayed or recognised is no noise. Here each
    draw is the inverse normal distribution function of a tail probability with 53 random bits
    of its own size: 64 bits, one of them for the sign, and 64 more where they begin with ten
    zeros. So the law is normal, up to the rounding of that function, as far as 36 standard
    deviations; noise that ended at 9 would break a promise with epsilon = 40.

    Parameters
    ----------
    seed : int or None
        With a seed the draws are a reproducible stream, and whoever knows it can subtract
        the noise: the certificate then carries the assumption that it stays secret and is
        used once.
    stream : int
        Number of the release that draws, so that two releases under one seed differ.

    Examples
    --------
    >>> from sk_unlearn.noise import NoiseSource
    >>> NoiseSource().gaussian(3, std=0.5).shape
    (3,)
    """

    def __init__(self, seed: int | None = None, stream: int = 0) -> None:
        self.secret = seed is None
        if seed is None:
            self._bytes = os.urandom
        else:
            entropy = np.random.SeedSequence(int(seed), spawn_key=(int(stream),))
            self._bytes = np.random.Generator(np.random.Philox(entropy)).bytes

    def gaussian(self, size: int, std: float) -> np.ndarray:
        """Draw `size` independent normals of standard deviation `std`, float64."""
        out = np.empty(size)
        for start in range(0, size, _CHUNK):
            part = out[start : start + _CHUNK]
            words = self._words(len(part))
            tail = self._with_fraction(words >> np.uint64(1)) * 2.0**-64
            part[:] = np.where(words & np.uint64(1), -1.0, 1.0) * ndtri(tail)
        return out * std

    def _words(self, count: int) -> np.ndarray:
        return np.frombuffer(self._bytes(8 * count), dtype=np.uint64)

    def _with_fraction(self, whole: np.ndarray, more: int = _WORDS) -> np.ndarray:
        """Return whole numbers plus uniform fractions, to 53 bits of the sum."""
        out = whole.astype(np.float64) + 0.5
        short = np.flatnonzero(whole < 2**53)
        if len(short) and more:
            fraction = self._with_fraction(self._words(len(short)), more - 1) * 2.0**-64
            out[short] = whole[short] + fraction
        return out

    def release(self, values: np.ndarray, std: float) -> np.ndarray:
        """Return `values` plus noise, rounded to the public grid of :func:`grid_step`.

        Parameters
        ----------
        values : ndarray, float64
            What would be released without noise.
        std : float
            Standard deviation per entry.
        """
        step = grid_step(std)
        return np.rint((values + self.gaussian(len(values), std)) / step) * step


def grid_step(std: float) -> float:
    """Return the power of two on whose multiples released weights lie.

    It depends on `std` alone and is between 2^-13 and 2^-12 of it: invisible, and far above
    the low bits of a float64 sum, which would otherwise tell the summands apart.

    Raises
    ------
    ValueError
        If `std` is not positive and finite, or so small that the step underflows.

    Examples
    --------
    >>> from sk_unlearn.noise import grid_step
    >>> grid_step(0.01) == 2.0**-19
    True
    """
    if not 1e-300 <= std < inf:
        raise ValueError(f"std={std!r}; give a finite number of at least 1e-300")
    return 2.0 ** (frexp(std)[1] - 1 - _GRID_BITS)
