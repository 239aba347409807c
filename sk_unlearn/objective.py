"""The risk: mean loss over rows plus ``lam/2`` times a squared distance, written once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from ._probes import check_mean_over_rows, graph_bytes_per_row
from ._vectors import flatten, penalty, unflatten
from .curvature.hvp import HessianOperator
from .curvature.products import EagerProduct, SplitProduct, try_split

__all__ = ["Objective", "flatten", "penalty", "unflatten"]

_CHUNKS_PER_BUDGET = 32


class Objective:
    r"""The risk ``F(w; S)`` of a module on a set of rows, as a function of a flat ``w``.

    .. math:: F(w; S) = \frac1n \sum_{i \in S} \ell(f_w(x_i), y_i)
              + \frac{lam}{2} \lVert w - w_{ref} \rVert^2

    A mean over rows, not a sum, and the squared norm. ``w`` holds all trainable parameters of
    `module` in their order, see :func:`flatten`; the others are constants. The module is copied,
    put in evaluation mode, and never modified.

    Rows are worked on in chunks, so that the memory beyond `X`, `y` and a few vectors of length
    ``p`` stays within `memory_budget`.

    Parameters
    ----------
    module : torch.nn.Module
        ``module(X)`` returns one output row per input row and treats the rows independently.
    loss : callable
        ``loss(output, y)``, a scalar: the *mean* over rows (not a weighted one).
    X, y : Tensor
        Rows along the first axis. They may be on another device than the module.
    lam : float
        L2 coefficient, at least 0.
    reference : Tensor of shape (p,), sequence of Tensor, or None
        ``w_ref``; None is the origin.
    dtype : torch.dtype or None
        Compute in this type (``torch.float64`` on request) instead of the module's.
    chunk_rows : int or None
        Rows worked on at once. None: as many as keep the graph of a double backward pass within
        1/32 of `memory_budget`, measured on two rows.
    memory_budget : int
        Bytes that the kept graphs of one :class:`~sk_unlearn.curvature.HessianOperator` may take.

    Attributes
    ----------
    n_rows, n_parameters : int
    dtype, device
        Of the parameters, the results, and the accumulation.
    like : tuple of Tensor
        The module's own trainable parameters: the shapes, and an example.

    Raises
    ------
    NotApplicableError
        If the loss is not a mean over rows, or the module couples rows or is not deterministic
        (found on the first rows).
    ValueError, TypeError
        If an argument makes no sense.

    Examples
    --------
    >>> import torch
    >>> module = torch.nn.Linear(2, 1, bias=False)
    >>> X, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0], [2.0]])
    >>> F = Objective(module, torch.nn.MSELoss(), X, y, lam=0.5)
    >>> w = torch.tensor([1.0, 0.0])
    >>> F.value(w).item(), F.gradient(w).tolist()
    (2.25, [0.5, -4.0])
    >>> F.hessian_at(w)(torch.tensor([1.0, 1.0])).tolist()
    [1.5, 4.5]
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        X: Tensor,
        y: Tensor,
        *,
        lam: float,
        reference: Tensor | Sequence[Tensor] | None = None,
        dtype: torch.dtype | None = None,
        chunk_rows: int | None = None,
        memory_budget: int = 2**30,
    ) -> None:
        if not (math.isfinite(lam) and lam >= 0):
            raise ValueError(f"lam must be a finite number >= 0, got {lam!r}.")
        for name, count in (("chunk_rows", chunk_rows), ("memory_budget", memory_budget)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count!r}.")
        self.module = copy.deepcopy(module).eval().to(dtype=dtype)
        self.loss = loss
        named = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        if not named:
            raise ValueError("The module has no trainable parameter (requires_grad=True).")
        if len({(p.dtype, p.device) for p in named.values()}) > 1:
            raise ValueError("The trainable parameters must share one dtype and one device.")
        self._names = tuple(named)
        self.like = tuple(p.detach() for p in named.values())
        self.dtype, self.device = self.like[0].dtype, self.like[0].device
        self.n_parameters = sum(p.numel() for p in self.like)
        self.lam = float(lam)
        self.reference = self._as_vector(reference)
        self.memory_budget = memory_budget
        self._chunk_rows = chunk_rows
        self._graph_row_bytes: int | None = None
        self._split_products: dict[Any, SplitProduct | None] = {}
        self._set_rows(X, y)
        check_mean_over_rows(self)

    def _set_rows(self, X: Tensor, y: Tensor) -> None:
        if not (isinstance(X, Tensor) and isinstance(y, Tensor)):
            raise TypeError(f"X and y must be torch tensors, got {type(X)} and {type(y)}.")
        if len(X) == 0 or len(X) != len(y):
            raise ValueError(f"X has {len(X)} rows and y has {len(y)}: they must match, and not 0.")
        self.X, self.y, self.n_rows = X, y, len(X)

    def _as_vector(self, reference: Tensor | Sequence[Tensor] | None) -> Tensor | None:
        if reference is None:
            return None
        vector = reference if isinstance(reference, Tensor) else flatten(reference)
        return self.as_point(vector.detach(), "reference")

    def as_point(self, w: Tensor, name: str = "w") -> Tensor:
        """Return `w` in this objective's dtype and device, or raise ValueError quoting its shape.

        Parameters
        ----------
        w : Tensor of shape (p,)
        name : str
            How the error calls it.
        """
        if w.shape != (self.n_parameters,):
            raise ValueError(
                f"{name} has shape {tuple(w.shape)}, expected ({self.n_parameters},): one entry "
                "per trainable parameter, see flatten."
            )
        return w.detach().to(device=self.device, dtype=self.dtype)

    def on(self, rows: Tensor) -> Objective:
        """Return the same objective on other rows: ``F(.; S')`` for the rows `rows` of ``S``.

        Parameters
        ----------
        rows : Tensor of int64 indices, or of bool of shape (n_rows,)

        Raises
        ------
        ValueError, IndexError
            If no row is left, or one does not exist.
        """
        rows = torch.as_tensor(rows, device=self.X.device)
        if rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(1)
        if rows.numel() and not (0 <= int(rows.min()) and int(rows.max()) < self.n_rows):
            raise IndexError(
                f"Row indices run from {int(rows.min())} to {int(rows.max())}, but there are "
                f"rows 0 to {self.n_rows - 1} only."
            )
        subset = copy.copy(self)
        subset._set_rows(self.X[rows], self.y[rows.to(self.y.device)])
        return subset

    def to(self, dtype: torch.dtype) -> Objective:
        """Return the same objective computed in `dtype`."""
        if dtype == self.dtype:
            return self
        return Objective(
            self.module,
            self.loss,
            self.X,
            self.y,
            lam=self.lam,
            reference=self.reference,
            dtype=dtype,
            chunk_rows=self._chunk_rows,
            memory_budget=self.memory_budget,
        )

    def value(self, w: Tensor) -> Tensor:
        """Return ``F(w)``, a scalar tensor.

        Parameters
        ----------
        w : Tensor of shape (p,)
        """
        parameters = self.split(self.as_point(w))
        with torch.no_grad():
            total = sum(
                (len(y) / self.n_rows) * self.batch_loss(parameters, X, y)
                for X, y in map(self.chunk, range(self.n_chunks))
            )
        return torch.as_tensor(total) + self._penalty_value(w)

    def gradient(self, w: Tensor) -> Tensor:
        """Return the gradient of ``F`` at `w`, shape (p,)."""
        return self.value_and_gradient(w)[1]

    def value_and_gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``F(w)`` and its gradient, for the price of the gradient.

        Parameters
        ----------
        w : Tensor of shape (p,)

        Returns
        -------
        value : Tensor, scalar
        gradient : Tensor of shape (p,)
        """
        w = self.as_point(w)
        leaves = [part.requires_grad_() for part in self.split(w)]
        value, gradient = w.new_zeros(()), torch.zeros_like(w)
        for X, y in map(self.chunk, range(self.n_chunks)):
            weight = len(y) / self.n_rows
            with torch.enable_grad():
                loss = self.batch_loss(leaves, X, y)
                parts = torch.autograd.grad(loss, leaves, materialize_grads=True)
            value += weight * loss.detach()
            gradient.add_(flatten(parts), alpha=weight)
        if self.lam:
            gradient.add_(self._from_reference(w), alpha=self.lam)
        return value + self._penalty_value(w), gradient

    def hessian_at(
        self, w: Tensor, rows: Tensor | None = None, once: bool = False
    ) -> HessianOperator:
        """Return the Hessian of ``F`` at `w` (`lam` included) as an operator ``v -> H v``.

        Parameters
        ----------
        w : Tensor of shape (p,)
        rows : Tensor or None
            Only these rows, see :meth:`on`.
        once : bool
            One product is all that is wanted: nothing is kept for the next.
        """
        return HessianOperator(self if rows is None else self.on(rows), w, once)

    def split(self, w: Tensor) -> tuple[Tensor, ...]:
        """Return views of the last axis of `w` in the shapes of the trainable parameters."""
        return unflatten(w, self.like)

    def batch_loss(self, parameters: Sequence[Tensor], X: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of one batch, without the penalty, as torch sees it.

        Parameters
        ----------
        parameters : sequence of Tensor
            The trainable parameters, as :meth:`split` gives them.
        X, y : Tensor
        """
        named = dict(zip(self._names, parameters, strict=True))
        return self.loss(functional_call(self.module, named, (X,)), y)

    def product_rule(
        self, parameters: Sequence[Tensor], X: Tensor, y: Tensor
    ) -> EagerProduct | SplitProduct:
        """Return what multiplies with the Hessian of :meth:`batch_loss`, for one size of batch.

        Autograd's kept graph costs about 1.2 gradients for a product, and 1.5 to 4 where there
        are convolutions: those are traced instead.
        """
        convolves = any(isinstance(part, _ConvNd) for part in self.module.modules())
        split = self.split_product(parameters, X, y) if convolves else None
        return split or EagerProduct(self.batch_loss)

    def split_product(
        self, parameters: Sequence[Tensor], X: Tensor, y: Tensor, n_batches: int | None = None
    ) -> SplitProduct | None:
        """Return the traced product for this shape, or None (with a warning) if there is none.

        Traced once for this objective and its :meth:`on`.
        """
        key = n_batches, X.shape
        if key not in self._split_products:
            self._split_products[key] = try_split(
                self.module, self.batch_loss, parameters, X, y, n_batches
            )
        return self._split_products[key]

    def chunk(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the rows of one of the :attr:`n_chunks` chunks, in this dtype and device."""
        size = -(-self.n_rows // self.n_chunks)
        rows = slice(index * size, (index + 1) * size)
        return self.cast(self.X[rows]), self.cast(self.y[rows])

    @property
    def n_chunks(self) -> int:
        """Number of chunks, of equal size but for the last."""
        return -(-self.n_rows // self.chunk_rows)

    def cast(self, t: Tensor) -> Tensor:
        """Bring data to this objective's device, and floating point data to its dtype."""
        return t.to(self.device, self.dtype if t.is_floating_point() else None)

    @property
    def chunk_rows(self) -> int:
        """Rows worked on at once."""
        if self._chunk_rows is None:
            size = self.memory_budget // _CHUNKS_PER_BUDGET // self.graph_row_bytes
            return max(1, min(size, self.n_rows))
        return self._chunk_rows

    @property
    def graph_row_bytes(self) -> int:
        """Bytes per row that the graph of a double backward pass keeps, about; measured once."""
        if self._graph_row_bytes is None:
            self._graph_row_bytes = graph_bytes_per_row(self)
        return self._graph_row_bytes

    def _from_reference(self, w: Tensor) -> Tensor:
        return w if self.reference is None else w - self.reference

    def _penalty_value(self, w: Tensor) -> Tensor:
        difference = self._from_reference(self.as_point(w))
        return 0.5 * self.lam * difference.dot(difference)
