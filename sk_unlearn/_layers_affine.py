"""Dense layers and convolutions with proved rounding errors: value, tangent, cotangent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._bounded import SLACK, Bounded, gamma, underflow, upper_norms
from ._layers import Layer
from ._places import window_labels


class Affine(Layer):
    """``y = W x + b`` for a dense layer; the convolution differs in how rows are read.

    Parameters
    ----------
    module : nn.Linear or nn.Conv2d
    name : str
        Prefix of its parameters' names.
    """

    terms_axis = -1

    def __init__(self, module: Any, name: str) -> None:
        self.weight_name, self.bias_name = f"{name}weight", f"{name}bias"
        self.parameter_names = tuple(name + own for own, _ in module.named_parameters())
        self.weight = self.shaped(module.weight.detach().to("cpu", torch.float64))
        bias = torch.zeros(len(module.weight)) if module.bias is None else module.bias
        self.bias = bias.detach().to("cpu", torch.float64)
        self.magnitude = self.weight.abs()
        self.n_terms = self.weight.shape[-1]

    def shaped(self, weight: Tensor) -> Tensor:
        """Return a parameter of the module as the matrix that multiplies lifted rows."""
        return weight

    def places(self, labels: Tensor) -> Tensor | None:
        return None

    def lift(self, x: Tensor) -> Tensor:
        """Return the rows that the matrix multiplies."""
        return x

    def product(self, lifted: Tensor, matrix: Tensor) -> Tensor:
        """Return the matrix times each lifted row."""
        return lifted @ matrix.T

    def in_blocks(self, lifted: Tensor) -> tuple[Tensor, int]:
        """Return the weight times each lifted row, added up in blocks, and the terms that count.

        Any order within a block of m products, then the blocks one after the other: a product
        passes through at most m + (number of blocks) roundings.
        """
        axis = self.terms_axis
        size = max(16, round(self.n_terms**0.5))
        starts = range(0, self.n_terms, size)
        total = None
        for start in starts:
            length = min(size, self.n_terms - start)
            part = self.product(
                lifted.narrow(axis, start, length), self.weight.narrow(-1, start, length)
            )
            total = part if total is None else total.add_(part)
        return total, size + len(starts)

    def transposed(self, c: Tensor, matrix: Tensor) -> Tensor:
        """Return the transposed map, back to the shape of the input."""
        return c @ matrix

    def transposed_terms(self) -> int:
        """Return how many products one entry of :meth:`transposed` adds up."""
        return self.weight.shape[0]

    def outer(self, c: Tensor, lifted: Tensor) -> Tensor:
        """Return the sum over rows and places of ``c x^T``, in the parameter's shape."""
        return c.flatten(0, -2).T @ lifted.flatten(0, -2)

    def lifted_norms(self, lifted: Tensor) -> Tensor:
        """Return upper bounds on the norms of the lifted rows, one for each place."""
        return upper_norms(lifted, -1)

    def output_norms(self, c: Tensor) -> Tensor:
        """Return upper bounds on the norms of the outputs, matching :meth:`lifted_norms`."""
        return upper_norms(c, -1)

    def with_bias(self, y: Tensor, bias: Tensor) -> Tensor:
        """Add one number for each output channel, in place."""
        return y.add_(bias)

    def bias_sum(self, c: Tensor) -> Tensor:
        """Return the sum over rows and places, one for each output channel."""
        return c.flatten(0, -2).sum(0)

    def forward(self, x: Bounded) -> Bounded:
        """``|y^ - y| <= |W| (e + gamma |x^|) + gamma |b|``; exactly b where every product is 0."""
        self.shape, self.x = x.value.shape, x
        lifted = self.lift(x.value)
        value, n_terms = self.in_blocks(lifted)
        value, g = self.with_bias(value, self.bias), gamma(n_terms + 1)
        widened = x.widened(g)
        reach = self.lift(widened) if x.error.any() else g * lifted.abs()
        error = self.product(reach, SLACK * self.magnitude)
        always = widened.min() > 0 and self.magnitude.min() > 0
        zero = None if always else error == 0
        error = self.with_bias(error, SLACK * g * self.bias.abs())
        if zero is not None:
            error.masked_fill_(zero, 0.0)
        lost = underflow(self.weight, widened)
        return Bounded(value, error.add_(lost) if lost else error)

    def tangent(self, dx: Bounded | None, directions: dict[str, Tensor]) -> Bounded | None:
        """``dy = W dx + dW x + db``; weights and directions are exact."""
        g = gamma(2 * self.n_terms + 3)
        value = error = None
        if dx is not None:
            widened = dx.widened(g)
            value = self.product(self.lift(dx.value), self.weight)
            error = self.product(self.lift(widened), self.magnitude)
            error += underflow(self.weight, widened)
        if self.weight_name in directions:
            dW = self.shaped(directions[self.weight_name])
            widened = self.x.widened(g)
            value = _add(value, self.product(self.lift(self.x.value), dW))
            error = _add(error, self.product(self.lift(widened), dW.abs()))
            error += underflow(dW, widened)
        if self.bias_name in directions:
            db = directions[self.bias_name]
            if value is None or error is None:
                like = self.product(self.lift(self.x.value), self.weight)
                value, error = torch.zeros_like(like), torch.zeros_like(like)
            value, error = self.with_bias(value, db), self.with_bias(error, g * db.abs())
        return None if value is None or error is None else Bounded(value, SLACK * error)

    def backward(self, c: Bounded) -> Bounded:
        """``dx = W^T c``."""
        g = gamma(self.transposed_terms() + 1)
        widened = c.widened(g)
        error = SLACK * self.transposed(widened, self.magnitude)
        lost = underflow(self.weight, widened)
        return Bounded(self.transposed(c.value, self.weight), error + lost)

    def parameter_gradient(
        self, c: Bounded, names: set[str], more_terms: int
    ) -> tuple[dict[str, Tensor], float]:
        """Return the sums over rows of the gradients in this layer's parameters.

        Parameters
        ----------
        c : Bounded
            Cotangents of the output.
        names : set of str
            Parameters wanted.
        more_terms : int
            Roundings that the caller will add to the sum.

        Returns
        -------
        gradients : dict of Tensor
            Of the parameters' shapes.
        error : float
            Bound on the sum of their Euclidean distances to the true sums:
            ``sum ||c|| (||e_x|| + gamma ||x||) + ||e_c|| (||x|| + ||e_x||)`` for the weight.
        """
        gradients, error = {}, 0.0
        size, spread = self.output_norms(c.value), self.output_norms(c.error)
        g = gamma(size.numel() + more_terms)
        if self.weight_name in names:
            lifted = self.lift(self.x.value)
            gradients[self.weight_name] = self.outer(c.value, lifted)
            norms, errors = self.lifted_norms(lifted), self.lifted_norms(self.lift(self.x.error))
            pairs = size * (errors + g * norms) + spread * (norms + errors)
            error += float(pairs.sum())
        if self.bias_name in names:
            gradients[self.bias_name] = self.bias_sum(c.value)
            error += float((spread + g * size).sum())
        return gradients, SLACK * error


def _add(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term


class Convolution(Affine):
    """A convolution as a product of the kernel with every patch (zero padding)."""

    terms_axis = -2

    def __init__(self, module: nn.Conv2d, name: str) -> None:
        self.groups = module.groups
        self.kernel_shape = module.weight.shape
        padding = symmetric_padding(module)
        assert padding is not None
        self.window: dict[str, Any] = {
            "kernel_size": module.kernel_size,
            "stride": module.stride,
            "padding": padding,
            "dilation": module.dilation,
        }
        super().__init__(module, name)

    def shaped(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, len(weight) // self.groups, -1)

    def places(self, labels: Tensor) -> Tensor:
        by_group = labels.reshape(-1, labels.shape[1] // self.groups, *labels.shape[2:])
        found = window_labels(by_group, *(self.window[k] for k in _WINDOW))
        found = found.unflatten(0, (len(labels), self.groups))
        return found.repeat_interleave(self.kernel_shape[0] // self.groups, dim=1)

    def lift(self, x: Tensor) -> Tensor:
        patches = functional.unfold(x, **self.window)
        return patches.reshape(len(x), self.groups, -1, patches.shape[-1])

    def product(self, lifted: Tensor, matrix: Tensor) -> Tensor:
        sizes = zip(self.shape[2:], *(self.window[k] for k in _WINDOW), strict=True)
        places = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
        return (matrix @ lifted).reshape(len(lifted), -1, *places)

    def transposed(self, c: Tensor, matrix: Tensor) -> Tensor:
        patches = matrix.mT @ self._by_group(c)
        return functional.fold(patches.flatten(1, 2), self.shape[2:], **self.window)

    def transposed_terms(self) -> int:
        return self.weight.shape[1] * self.kernel_shape[2] * self.kernel_shape[3]

    def outer(self, c: Tensor, lifted: Tensor) -> Tensor:
        return (self._by_group(c) @ lifted.mT).sum(0).reshape(self.kernel_shape)

    def lifted_norms(self, lifted: Tensor) -> Tensor:
        return upper_norms(lifted, -2)

    def output_norms(self, c: Tensor) -> Tensor:
        return upper_norms(self._by_group(c), -2)

    def with_bias(self, y: Tensor, bias: Tensor) -> Tensor:
        return y.add_(bias[:, None, None])

    def bias_sum(self, c: Tensor) -> Tensor:
        return c.sum(dim=(0, 2, 3))

    def _by_group(self, c: Tensor) -> Tensor:
        return c.reshape(len(c), self.groups, -1, c.shape[2] * c.shape[3])


_WINDOW = ("kernel_size", "stride", "padding", "dilation")


def symmetric_padding(module: nn.Conv2d) -> tuple[int, int] | None:
    """Return the zeros added at each side, or None when the two sides differ."""
    if module.padding == "valid":
        return (0, 0)
    if module.padding != "same":
        return tuple(module.padding)
    total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return None if total[0] % 2 or total[1] % 2 else (total[0] // 2, total[1] // 2)
