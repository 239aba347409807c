"""Float64 numbers that carry a proved bound on their rounding error.

A value v^ travels with an error e such that the real-number network, evaluated on the same
float weights, has ``|v^ - v| <= e`` there. With ``gamma_k = k u / (1 - k u)``, ``u = 2**-53``, a
sum of k products in any order, fused or not, blocked or not, is within ``gamma_k`` of the sum
of the absolute products (Higham 2002, sec. 3.1); convolutions are written as such sums, never
as Winograd's or a Fourier transform's. An error is itself a sum of non-negative terms, computed
with fewer than 2**30 roundings, so the factor ``SLACK`` covers them. Underflow, flushed to zero
or not, loses less than ``TINY`` and is counted where the operands are small enough for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

UNIT = 2.0**-53
SLACK = 1.0 + 1e-6
TINY = 2.0**-900
FUNCTION_ERROR = 8.0
"""Relative error of the platform's tanh, sigmoid and exp in units of u: assumed, and tested."""
MAX_TERMS = 2**30


@dataclass(frozen=True)
class Bounded:
    """Computed numbers, and how far each may be from the true one.

    Parameters
    ----------
    value, error : Tensor, float64
        Of one shape; the error is non-negative.
    """

    value: Tensor
    error: Tensor

    @classmethod
    def exact(cls, value: Tensor) -> Bounded:
        """Return float64 numbers that are what they say."""
        value = value.to(torch.float64)
        return cls(value, torch.zeros_like(value))

    def map(self, function: Any) -> Bounded:
        """Apply a function that only moves numbers."""
        return Bounded(function(self.value), function(self.error))

    def widened(self, factor: float) -> Tensor:
        """Return the error plus `factor` times the magnitude."""
        return self.error + factor * self.value.abs()

    def plus(self, other: Bounded) -> Bounded:
        """Return the sum, its own rounding included."""
        value = self.value + other.value
        return Bounded(value, SLACK * (self.error + other.error + UNIT * value.abs()))

    def row_norms(self) -> tuple[Tensor, Tensor]:
        """Return upper bounds (n,) on the Euclidean norms of each row's values and errors."""
        return upper_norms(self.value.flatten(1)), upper_norms(self.error.flatten(1))


def upper_norms(x: Tensor, dim: int = 1) -> Tensor:
    """Return upper bounds on Euclidean norms along an axis."""
    return SLACK * x.square().sum(dim).sqrt_() + TINY**0.5


def gamma(n_terms: int) -> float:
    """Return an upper bound on ``gamma_k``.

    Raises
    ------
    ValueError
        If there are more terms than SLACK allows for.
    """
    if n_terms >= MAX_TERMS:
        raise ValueError(f"a sum of {n_terms} terms has no useful rounding bound in float64")
    return SLACK * n_terms * UNIT


def underflow(weights: Tensor, reach: Tensor) -> float:
    """Return what sums of products may lose by underflow; 0.0 where SLACK covers it.

    Parameters
    ----------
    weights : Tensor
        One factor of the products.
    reach : Tensor
        Non-negative, and at least ``UNIT`` times the magnitude of the other factor. Where every
        product with a nonzero `reach` is at least ``TINY``, what underflow can take from the
        value and the error, 2**-1022 for each operation, is far within ``SLACK * TINY``.
    """
    smallest, weight = _smallest(reach), _smallest(weights.abs())
    if min(smallest, 1.0) * min(weight, 1.0) >= TINY:
        return 0.0
    return TINY * (1.0 + float(weights.abs().max()))


def _smallest(magnitudes: Tensor) -> float:
    if not magnitudes.numel():
        return 1.0
    bits = magnitudes.numpy().view(np.uint64)  # in the order of the numbers, none being negative
    least = int((bits - np.uint64(1)).min()) + 1  # zero wraps to the top
    return float(np.uint64(least).view(np.float64)) if least < 2**64 else inf
