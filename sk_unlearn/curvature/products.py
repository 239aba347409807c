"""How to multiply with the Hessian of a batch's mean loss: by autograd, or by a split trace."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..exceptions import UnlearningWarning
from .graphs import accumulated, cut, mutates
from .unfolded import Unfolded

BatchLoss = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]


@contextlib.contextmanager
def double_backward() -> Iterator[None]:
    """Enable gradients, with an attention kernel that can be differentiated twice."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


class EagerProduct:
    """Hessian products of a batch's mean loss by a backward pass through a kept graph."""

    def __init__(self, batch_loss: BatchLoss) -> None:
        self.batch_loss = batch_loss

    def at(self, parameters: Sequence[Tensor], X: Tensor, y: Tensor) -> tuple[Any, Any]:
        """Return what products at this point and batch share: the graph of the gradient."""
        leaves = [p.detach().requires_grad_() for p in parameters]
        with double_backward():
            loss = self.batch_loss(leaves, X, y)
            gradients = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        return leaves, gradients

    def product(self, state: tuple[Any, Any], vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return ``H v``, tensor by tensor."""
        leaves, gradients = state
        if not all(g.requires_grad for g in gradients):  # the loss is linear in some parameters
            pairs = zip(gradients, vectors, strict=True)
            curved = [(g, v) for g, v in pairs if g.requires_grad]
            if not curved:
                return [torch.zeros_like(v) for v in vectors]
            gradients, vectors = zip(*curved, strict=True)
        return torch.autograd.grad(
            gradients, leaves, vectors, retain_graph=True, materialize_grads=True
        )

    def products(self, state: tuple[Any, Any], vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the products with many vectors, along an additional first axis."""
        return vmap(lambda *v: tuple(self.product(state, v)))(*vectors)


class SplitProduct:
    """Hessian products cut into what depends on the vector and what does not.

    The reverse-over-reverse product is traced once for a shape of batch and vectors; the part
    of its graph that no vector reaches is run by :meth:`at`, the rest by :meth:`product`.
    Against a kept autograd graph this leaves out work whose result nobody uses (convolutions)
    and most of the dispatch; with `n_batches` it advances many vectors, each on its own batch.

    Parameters
    ----------
    batch_loss : callable
        ``batch_loss(parameters, X, y)``, mean over the batch.
    parameters : sequence of Tensor
    X, y : Tensor
        Examples; with `n_batches` they have that as an additional first axis.
    n_batches : int or None
        Number of batches and vectors to advance at once.

    Raises
    ------
    RuntimeError
        If the module cannot be traced, or the traced product differs from autograd's.
    """

    def __init__(
        self,
        batch_loss: BatchLoss,
        parameters: Sequence[Tensor],
        X: Tensor,
        y: Tensor,
        n_batches: int | None = None,
    ) -> None:
        lead = () if n_batches is None else (n_batches,)
        count = len(parameters)
        generator = torch.Generator().manual_seed(0)
        vectors = [
            torch.rand(*lead, *p.shape, generator=generator, dtype=p.dtype).to(p.device)
            for p in parameters
        ]
        on_cpu = X.device.type == "cpu"
        convolutions = Unfolded() if on_cpu else contextlib.nullcontext()

        def loss(parameters: Sequence[Tensor], X: Tensor, y: Tensor) -> Tensor:
            with convolutions:
                return batch_loss(parameters, X, y)

        def hessian_product(*args: Tensor) -> list[Tensor]:
            loss_gradient = grad(lambda p: loss(p, args[count], args[count + 1]))
            return vjp(loss_gradient, list(args[:count]))[1](list(args[count + 2 :]))[0]

        traced = hessian_product
        if n_batches is not None:
            traced = vmap(hessian_product, in_dims=(None,) * count + (0,) * (count + 2))
        turned = X.flip(len(lead)), y.flip(len(lead))  # verified below on other rows than traced
        with double_backward():
            inputs = *parameters, *turned, *vectors
            module = make_fx(traced)(*inputs)
            if mutates(module.graph):
                module = make_fx(torch.func.functionalize(module, remove="mutations"))(*inputs)
        self._first, self._second = cut(module, count + 2)
        self._in_place = accumulated(self._second)
        self._verify(batch_loss, parameters, X, y, vectors, n_batches)

    def at(self, parameters: Sequence[Tensor], X: Tensor, y: Tensor) -> list[Tensor]:
        """Return what products at this point and batch share."""
        with torch.no_grad():
            return self._first(*parameters, X, y)

    def at_many(
        self, parameters: Sequence[Tensor], X: Tensor, y: Tensor
    ) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over :meth:`at` along an additional first axis of `X` and `y`, in one pass."""
        in_dims = (None,) * len(parameters) + (0, 0)
        with torch.no_grad():
            states = vmap(self._first, in_dims=in_dims)(*parameters, X, y)
        return zip(*(state.unbind(0) for state in states), strict=True)

    def product(self, state: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Return ``H v`` (for each batch its own), tensor by tensor."""
        with torch.no_grad():
            return self._in_place(*state, *vectors)

    def products(self, state: Sequence[Tensor], vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the products with many vectors, along an additional first axis."""
        with torch.no_grad():
            return vmap(lambda *v: self._second(*state, *v))(*vectors)

    def _verify(
        self,
        batch_loss: BatchLoss,
        parameters: Sequence[Tensor],
        X: Tensor,
        y: Tensor,
        vectors: Sequence[Tensor],
        n_batches: int | None,
    ) -> None:
        """Compare a second product with the same state, on the first batch, with autograd's.

        And again nearby: where rounding moves an activation across a kink, right products differ.
        """
        for nearby in (1.0, 1.001):
            point = [nearby * p for p in parameters]
            state = self.at(point, X, y)
            self.product(state, vectors)
            ours, eager = self.product(state, vectors), EagerProduct(batch_loss)
            if n_batches is None:
                theirs = eager.product(eager.at(point, X, y), vectors)
            else:
                ours = [t[0] for t in ours]
                theirs = eager.product(eager.at(point, X[0], y[0]), [v[0] for v in vectors])
            ours, theirs = (torch.cat([t.flatten() for t in side]) for side in (ours, theirs))
            error, size = (ours - theirs).norm(), theirs.norm()
            if not size.isfinite() or error <= torch.finfo(ours.dtype).eps ** 0.5 * size:
                return
        raise RuntimeError(f"traced Hessian product off by {error:.3g} of {size:.3g}")


def try_split(module: nn.Module, *args: Any, **kwargs: Any) -> SplitProduct | None:
    """Return a :class:`SplitProduct`, or None (with a warning) where `module` has none."""
    if any(isinstance(part, nn.RNNBase) for part in module.modules()):
        reason = "recurrent layers unroll into very large graphs"
    else:
        try:
            return SplitProduct(*args, **kwargs)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            reason = str(error).partition("\n")[0]
    warnings.warn(
        f"Hessian products of {type(module).__name__} cannot be traced and will be slow, though "
        f"right: {reason}.",
        UnlearningWarning,
        stacklevel=4,
    )
    return None
