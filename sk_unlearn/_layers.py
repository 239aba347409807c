"""Layers without parameters, with proved rounding errors: value, tangent, cotangent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._bounded import FUNCTION_ERROR, SLACK, TINY, UNIT, Bounded, gamma, underflow
from ._places import window_labels


class Layer:
    """One layer: forward, tangent and backward passes on bounded numbers."""

    parameter_names: tuple[str, ...] = ()

    def ambiguous(self, labels: Tensor | None) -> int:
        """Count the units of the last forward pass whose derivative the error leaves open.

        The sign at a kink, the place of a maximum: with any, tangent and backward passes are
        not proved; the forward pass always is.

        Parameters
        ----------
        labels : Tensor of shape (n, c, h, w) or None
            Of the input's units, as of :mod:`sk_unlearn._places`.
        """
        return 0

    def places(self, labels: Tensor) -> Tensor | None:
        """Return the labels of the output's units; None where it has no places."""
        return labels

    def forward(self, x: Bounded) -> Bounded:
        """Return the output, and keep what the derivative needs."""
        raise NotImplementedError

    def tangent(self, dx: Bounded | None, directions: dict[str, Tensor]) -> Bounded | None:
        """Return the derivative of the output along input and parameters; None is zero."""
        return None if dx is None else self.apply_derivative(dx)

    def backward(self, c: Bounded) -> Bounded:
        """Return the cotangent of the input."""
        return self.apply_derivative(c)

    def apply_derivative(self, d: Bounded) -> Bounded:
        """Multiply with a diagonal derivative, the same for tangent and backward passes."""
        raise NotImplementedError


class Kink(Layer):
    """ReLU, or LeakyReLU with a slope below zero: 1-Lipschitz, exact where the sign is sure.

    Parameters
    ----------
    slope : float
        Derivative at 0 and below.
    """

    def __init__(self, slope: float = 0.0) -> None:
        self.slope = slope

    def forward(self, x: Bounded) -> Bounded:
        """Errors pass where the sign is sure, times the larger slope where it is not.

        Masks are float64 zeros and ones: torch's arithmetic with booleans is far slower.
        """
        self.factor = x.value.clone().gt_(0)
        if self.slope:
            self.factor += self.slope * (1.0 - self.factor)
        self.open: Tensor | None = None
        factor = self.factor.abs()
        if not x.value.abs().sub_(x.error).min() > 0:
            self.open = x.value.abs().le_(x.error).mul_(x.error.sign())
            factor = torch.maximum(factor, self.open * max(1.0, abs(self.slope)))
        return self._scaled(x, self.factor, factor)

    def places(self, labels: Tensor) -> Tensor:
        blocked = self.factor == 0
        if self.open is not None:
            blocked &= self.open == 0
        return labels.masked_fill(blocked, 0)

    def ambiguous(self, labels: Tensor | None) -> int:
        return 0 if self.open is None else int(self.open.count_nonzero())

    def apply_derivative(self, d: Bounded) -> Bounded:
        return self._scaled(d, self.factor, self.factor.abs())

    def _scaled(self, x: Bounded, factor: Tensor, error_factor: Tensor) -> Bounded:
        value, error = factor * x.value, error_factor * x.error
        if self.slope in (0.0, 1.0):
            return Bounded(value, error)
        slope = torch.tensor(self.slope, dtype=torch.float64)
        lost = underflow(slope, x.widened(UNIT))
        return Bounded(value, SLACK * (error + UNIT * value.abs()) + lost)


class Saturating(Layer):
    """Tanh or sigmoid; the platform's function is within 8 u of the true one.

    Parameters
    ----------
    kind : {"tanh", "sigmoid"}
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def forward(self, x: Bounded) -> Bounded:
        """Lipschitz 1 (tanh) or 1/4 (sigmoid); derivative ``1 - y^2`` or ``y (1 - y)``."""
        tanh = self.kind == "tanh"
        y = torch.tanh(x.value) if tanh else torch.sigmoid(x.value)
        error = x.error if tanh else 0.25 * x.error
        error = SLACK * (error + SLACK * FUNCTION_ERROR * UNIT * y.abs()) + TINY
        slope = 1.0 - y * y if tanh else y * (1.0 - y)
        spread = error * (2.0 * y.abs() + error) if tanh else error * (1.0 + error)
        self.slope = Bounded(slope, SLACK * (spread + 3 * UNIT))
        return Bounded(y, error)

    def places(self, labels: Tensor) -> Tensor:
        """Zeros become halves in a sigmoid: a label of their own, which no unit has."""
        return labels if self.kind == "tanh" else labels.masked_fill(labels == 0, -1)

    def apply_derivative(self, d: Bounded) -> Bounded:
        slope = self.slope
        value = slope.value * d.value
        error = slope.value.abs() * d.widened(UNIT) + slope.error * (d.value.abs() + d.error)
        return Bounded(value, SLACK * error + TINY)


class Average(Layer):
    """Average pooling without padding; a kernel of None averages over the whole image.

    Underflow takes less than TINY, and nothing from windows of exact zeros.
    """

    def __init__(self, kernel: Any = None, stride: Any = None) -> None:
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Bounded) -> Bounded:
        self.input_shape = x.value.shape
        return self._linear(x, self._pool)

    def tangent(self, dx: Bounded | None, directions: dict[str, Tensor]) -> Bounded | None:
        return None if dx is None else self._linear(dx, self._pool)

    def backward(self, c: Bounded) -> Bounded:
        return self._linear(c, self._spread)

    def places(self, labels: Tensor) -> Tensor:
        stride = self._kernel() if self.stride is None else nn.modules.utils._pair(self.stride)
        alone = labels.reshape(-1, 1, *labels.shape[2:])
        return window_labels(alone, self._kernel(), stride).unflatten(0, labels.shape[:2])

    def _linear(self, x: Bounded, function: Any) -> Bounded:
        kernel = self._kernel()
        size = kernel[0] * kernel[1]
        errors, reach = function(x.error), function(x.value.abs())
        error = SLACK / size * (errors + gamma(size + 2) * reach)
        error.add_((errors + reach).sign(), alpha=2 * TINY)
        return Bounded(function(x.value).div_(size), error)

    def _kernel(self) -> tuple[int, int]:
        if self.kernel is None:
            return (self.input_shape[2], self.input_shape[3])
        return nn.modules.utils._pair(self.kernel)

    def _pool(self, x: Tensor) -> Tensor:
        first, *others = self._cells(x)
        total = first.clone()
        for cell in others:
            total += cell
        return total

    def _spread(self, c: Tensor) -> Tensor:
        spread = c.new_zeros(self.input_shape)
        for cell in self._cells(spread):
            cell += c
        return spread

    def _cells(self, x: Tensor) -> list[Tensor]:
        """Return views of an image: the first unit of every window, the second, and so on."""
        kernel = self._kernel()
        stride = kernel if self.stride is None else nn.modules.utils._pair(self.stride)
        sizes = zip(x.shape[2:], kernel, stride, strict=True)
        high, wide = (s * ((n - k) // s) + 1 for n, k, s in sizes)
        return [
            x[:, :, i : i + high : stride[0], j : j + wide : stride[1]]
            for i in range(kernel[0])
            for j in range(kernel[1])
        ]


class Maximum(Layer):
    """Max pooling without padding: 1-Lipschitz in the largest absolute value of a window.

    Among numbers that are exactly equal the first of the window counts, as in torch.
    """

    def __init__(self, kernel: Any, stride: Any) -> None:
        self.kernel = nn.modules.utils._pair(kernel)
        self.stride = nn.modules.utils._pair(stride)

    def forward(self, x: Bounded) -> Bounded:
        value, place = functional.max_pool2d(x.value, self.kernel, self.stride, return_indices=True)
        self.x, self.value, self.place = x, value, place
        self.input_shape = x.value.shape
        return Bounded(value, functional.max_pool2d(x.error, self.kernel, self.stride))

    def places(self, labels: Tensor) -> Tensor:
        return self._at(labels)

    def ambiguous(self, labels: Tensor | None) -> int:
        own = self._at(self.x.error)[..., None, None]
        margin = self.value[..., None, None] - self._windows(self.x.value)
        reach = (1.0 + 2.0**-50) * (own + self._windows(self.x.error))
        positions = torch.arange(self.input_shape[2] * self.input_shape[3])
        positions = self._windows(positions.reshape(1, 1, *self.input_shape[2:]))
        rival = positions != self.place[..., None, None]
        rival = rival & (reach > 0) & (margin <= reach)
        if labels is not None and rival.any():
            rival &= self._windows(labels) != self._at(labels)[..., None, None]
        return int(rival.any(-1).any(-1).sum())

    def tangent(self, dx: Bounded | None, directions: dict[str, Tensor]) -> Bounded | None:
        return None if dx is None else dx.map(self._at)

    def backward(self, c: Bounded) -> Bounded:
        """Windows may overlap: up to a window's size of cotangents meet in a place."""
        g = gamma(self.kernel[0] * self.kernel[1])
        return Bounded(self._scatter(c.value), SLACK * self._scatter(c.widened(g)))

    def _windows(self, x: Tensor) -> Tensor:
        (kh, kw), (sh, sw) = self.kernel, self.stride
        return x.unfold(2, kh, sh).unfold(3, kw, sw)

    def _at(self, x: Tensor) -> Tensor:
        return x.flatten(2).gather(2, self.place.flatten(2)).reshape(self.place.shape)

    def _scatter(self, c: Tensor) -> Tensor:
        flat = torch.zeros(self.input_shape, dtype=c.dtype).flatten(2)
        flat.scatter_add_(2, self.place.flatten(2), c.flatten(2))
        return flat.reshape(self.input_shape)


class Flatten(Layer):
    """All axes but the first become one."""

    def forward(self, x: Bounded) -> Bounded:
        self.input_shape = x.value.shape
        return x.map(lambda v: v.flatten(1))

    def places(self, labels: Tensor) -> None:
        return None

    def tangent(self, dx: Bounded | None, directions: dict[str, Tensor]) -> Bounded | None:
        return None if dx is None else dx.map(lambda v: v.flatten(1))

    def backward(self, c: Bounded) -> Bounded:
        return c.map(lambda v: v.reshape(self.input_shape))
