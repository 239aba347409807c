"""The Hessian of the risk at a point, as an operator, plain and damped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .products import EagerProduct

if TYPE_CHECKING:
    from ..objective import Objective


class HessianOperator:
    """The Hessian of an :class:`~sk_unlearn.objective.Objective` at a point, ``lam`` included.

    What the products share (the graph of the first backward pass) is kept for as many chunks of
    rows as fit the objective's memory budget, and computed again for the others.

    Parameters
    ----------
    objective : Objective
    w : Tensor of shape (p,)
    once : bool
        One product is all that is wanted: nothing is kept, nothing traced.

    Attributes
    ----------
    n_parameters, n_rows : int
    dtype, device

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.objective import Objective
    >>> X, y = torch.eye(2), torch.zeros(2, 1)
    >>> F = Objective(torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss(), X, y, lam=0.5)
    >>> H = HessianOperator(F, torch.zeros(2))
    >>> H(torch.tensor([1.0, 2.0])).tolist(), H(torch.eye(2)).tolist()
    ([1.5, 3.0], [[1.5, 0.0], [0.0, 1.5]])
    """

    def __init__(self, objective: Objective, w: Tensor, once: bool = False) -> None:
        self._objective, self._once = objective, once
        self._parameters = objective.split(objective.as_point(w).clone())
        self.n_parameters, self.n_rows = objective.n_parameters, objective.n_rows
        self.dtype, self.device = objective.dtype, objective.device
        self._kept: dict[int, tuple[Any, Any, float]] = {}
        self._budget = 0 if once else objective.memory_budget

    @property
    def vectors_at_once(self) -> int:
        """How many vectors to multiply at once within the objective's memory budget."""
        objective = self._objective
        each = objective.chunk_rows * objective.graph_row_bytes + self.n_parameters * 32
        return max(1, objective.memory_budget // (4 * each))

    def __call__(self, v: Tensor) -> Tensor:
        """Return ``H v``, or the products with each row of a matrix.

        Parameters
        ----------
        v : Tensor of shape (p,) or (k, p)

        Returns
        -------
        Tensor of the same shape
        """
        v = v.detach().to(device=self.device, dtype=self.dtype)
        vectors = self._objective.split(v)
        result: Any = 0
        for index in range(self._objective.n_chunks):
            rule, state, weight = self._kept.get(index) or self._shared(index)
            if v.ndim == 1:
                parts = rule.product(state, vectors)
                product = torch.cat([t.reshape(-1) for t in parts])
            else:
                parts = rule.products(state, vectors)
                product = torch.cat([t.flatten(1) for t in parts], 1)
            result = product.mul_(weight).add_(result)
        return result.add_(v, alpha=self._objective.lam)

    def _shared(self, index: int) -> tuple[Any, Any, float]:
        """Compute what products share on one chunk, and keep it while the budget lasts."""
        X, y = self._objective.chunk(index)
        if self._once:
            rule = EagerProduct(self._objective.batch_loss)
        else:
            rule = self._objective.product_rule(self._parameters, X, y)
        shared = rule, rule.at(self._parameters, X, y), len(y) / self.n_rows
        size = len(y) * self._objective.graph_row_bytes
        if size <= self._budget:
            self._budget -= size
            self._kept[index] = shared
        return shared


class DampedOperator:
    """``H + damping * I``.

    Parameters
    ----------
    operator : callable
        ``v -> H v``.
    damping : float

    Examples
    --------
    >>> import torch
    >>> DampedOperator(lambda v: 2 * v, damping=0.5)(torch.ones(2)).tolist()
    [2.5, 2.5]
    """

    def __init__(self, operator: Callable[[Tensor], Tensor], damping: float) -> None:
        self.operator, self.damping = operator, damping

    def __call__(self, v: Tensor) -> Tensor:
        """Return ``(H + damping I) v``."""
        return torch.add(self.operator(v), v, alpha=self.damping)


def dense(operator: HessianOperator) -> Tensor:
    """Return the symmetric matrix of an operator, shape (p, p), by products with the unit vectors.

    Parameters
    ----------
    operator : HessianOperator
    """
    p = operator.n_parameters
    matrix = torch.empty(p, p, dtype=operator.dtype, device=operator.device)
    for block in torch.arange(p, device=operator.device).split(operator.vectors_at_once):
        units = torch.zeros(len(block), p, dtype=operator.dtype, device=operator.device)
        units[torch.arange(len(block)), block] = 1
        matrix[block] = operator(units)
    return (matrix + matrix.T).div_(2)
