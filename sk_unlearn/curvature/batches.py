"""Random batches of rows, and products with the Hessian of each, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor

from .._vectors import flatten
from .products import EagerProduct, SplitProduct
from .unfolded import seen_in

if TYPE_CHECKING:
    from ..objective import Objective

_CACHE_BYTES = 2**25
_BLOCK_BYTES = 2**23
_BLOCK_STEPS = 64
_MIN_BLOCK_STEPS = 16


class Batches:
    """Hessians of random batches at one point, `width` of them multiplied at once."""

    def __init__(
        self,
        objective: Objective,
        w: Tensor,
        repetitions: int,
        batch_size: int,
        random_state: int | np.random.RandomState | None,
    ) -> None:
        self.objective, self.lam = objective, objective.lam
        self.parameters = objective.split(w.clone())
        self.every_row = batch_size >= objective.n_rows
        self.batch_size = min(batch_size, objective.n_rows)
        repetitions = 1 if self.every_row else repetitions
        left, normalised = self._layers()
        self.width = 1 if left else self._width(repetitions)
        self.n_groups = repetitions // self.width
        self.n_row_products = 0
        self._rng = check_random_state(random_state)
        self._rule = None if left and normalised else self._traced()

    def _layers(self) -> tuple[bool, bool]:
        """Return whether a CPU would convolve each batch with its own vector, and normalise.

        Chains are then faster one by one; and with both, by autograd.
        """
        if self.objective.device.type != "cpu":
            return False, False
        X, y = self.rows(torch.arange(self.batch_size))
        mode = seen_in(lambda: self.objective.batch_loss(self.parameters, X, y))
        return mode.left > 0, mode.normalised

    def _width(self, repetitions: int) -> int:
        """Return the largest part of the chains that fits the memory, or the cache of a CPU."""
        limit = self.objective.memory_budget
        if self.objective.device.type == "cpu":
            limit = min(limit, _CACHE_BYTES)
        fits = limit // (self.batch_size * self.objective.graph_row_bytes)
        return max(
            n for n in range(1, repetitions + 1) if repetitions % n == 0 and n <= max(1, fits)
        )

    def _traced(self) -> SplitProduct | None:
        many = self.width > 1
        X, y = self.rows(torch.arange(self.width * self.batch_size) % self.objective.n_rows)
        if many:
            X, y = (t.unflatten(0, (self.width, -1)) for t in (X, y))
        return self.objective.split_product(self.parameters, X, y, self.width if many else None)

    def draw(self, n_steps: int) -> Tensor:
        """Return row indices, shape (n_steps, width, batch_size)."""
        n, size = self.objective.n_rows, (n_steps, self.width, self.batch_size)
        if self.every_row:
            return torch.arange(n).expand(size)
        return torch.from_numpy(self._rng.randint(n, size=size))

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows at `indices`, the shape of `indices` first."""
        tables = self.objective.X, self.objective.y
        flat = indices.reshape(-1)
        return tuple(
            self.objective.cast(t.index_select(0, flat.to(t.device))).view(
                *indices.shape, *t.shape[1:]
            )
            for t in tables
        )

    def states(self, n_steps: int) -> Iterator[Any]:
        """Draw `n_steps` times, and iterate over what products with those batches share."""
        block = 1
        while n_steps > 0:
            block = min(block, n_steps)
            X, y = self.rows(self.draw(block))
            if block > 1:
                one = self.width == 1
                X, y = (X[:, 0], y[:, 0]) if one else (X, y)
                yield from self._rule.at_many(self.parameters, X, y)
            else:
                state = self._at(X[0], y[0])
                yield state
                block = self._block_steps(state)
            n_steps -= len(y)

    def _block_steps(self, state: Any) -> int:
        """Return how many steps to prepare at once: many to save dispatch, one to save memory."""
        if self._rule is None:
            return 1
        block = min(_BLOCK_STEPS, _BLOCK_BYTES // sum(t.nbytes for t in state))
        return block if block >= _MIN_BLOCK_STEPS else 1

    def _at(self, X: Tensor, y: Tensor) -> Any:
        if self._rule is not None:
            X, y = (X[0], y[0]) if self.width == 1 else (X, y)
            return self._rule.at(self.parameters, X, y)
        eager = EagerProduct(self.objective.batch_loss)
        return [eager.at(self.parameters, *pair) for pair in zip(X, y, strict=True)]

    def product(self, state: Any, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Multiply each batch's Hessian (without lam) with its own vector, tensor by tensor."""
        self.n_row_products += self.width * self.batch_size
        if self._rule is not None:
            if self.width == 1:
                return [t[None] for t in self._rule.product(state, [v[0] for v in vectors])]
            return self._rule.product(state, vectors)
        eager = EagerProduct(self.objective.batch_loss)
        each = [eager.product(s, [v[i] for v in vectors]) for i, s in enumerate(state)]
        return [torch.stack(parts) for parts in zip(*each, strict=True)]

    def on_all_rows(self, v: Tensor) -> Tensor:
        """Multiply with the Hessian of all rows (with lam), in blocks of the traced size."""
        n, size = self.objective.n_rows, (-1, self.width, self.batch_size)
        n_traced = n - n % (self.width * self.batch_size) if self._rule is not None else 0
        total, vectors = torch.zeros_like(v), self.objective.split(v.expand(self.width, -1))
        for indices in torch.arange(n_traced).view(size):
            parts = self.product(self._at(*self.rows(indices)), vectors)
            total += torch.cat([t.flatten(1) for t in parts], 1).sum(0)
        total = total.mul_(self.batch_size / n).add_(v, alpha=self.lam * n_traced / n)
        if n_traced < n:
            rest = torch.arange(n_traced, n)
            operator = self.objective.hessian_at(flatten(self.parameters), rest, once=True)
            total.add_(operator(v), alpha=len(rest) / n)
            self.n_row_products += len(rest)
        return total
