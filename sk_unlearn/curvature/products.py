"""How to multiply with the Hessian of a batch's mean loss: by autograd, or by a split trace."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import grad, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..exceptions import UnlearningWarning
from .unfolded import Unfolded

aten = torch.ops.aten

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
            if any(_mutates(node) for node in module.graph.nodes):
                module = make_fx(torch.func.functionalize(module, remove="mutations"))(*inputs)
        self._first, self._second = _cut(module, count + 2)
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
            return self._second(*state, *vectors)

    def _verify(
        self,
        batch_loss: BatchLoss,
        parameters: Sequence[Tensor],
        X: Tensor,
        y: Tensor,
        vectors: Sequence[Tensor],
        n_batches: int | None,
    ) -> None:
        """Compare a second product with the same state, on the first batch, with autograd's."""
        state = self.at(parameters, X, y)
        self.product(state, vectors)
        ours = self.product(state, vectors)
        if n_batches is not None:
            X, y, vectors, ours = X[0], y[0], [v[0] for v in vectors], [t[0] for t in ours]
        eager = EagerProduct(batch_loss)
        theirs = eager.product(eager.at(parameters, X, y), vectors)
        ours, theirs = (torch.cat([t.flatten() for t in side]) for side in (ours, theirs))
        error, size = (ours - theirs).norm(), theirs.norm()
        if size.isfinite() and not error <= torch.finfo(ours.dtype).eps ** 0.5 * size:
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


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _cut(module: fx.GraphModule, n_shared: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a graph after its first `n_shared` inputs: what only they reach, and the rest."""
    graph = module.graph
    _drop_no_ops(graph)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    body = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    reached = dict.fromkeys(inputs[n_shared:])
    for node in body:
        if any(source in reached for source in node.all_input_nodes):
            reached[node] = None
    first = [node for node in body if node not in reached]
    results = list(output.args[0])
    second = {node for node in body if node in reached} | {output}
    shared = [n for n in inputs[:n_shared] + first if any(user in second for user in n.users)]
    of_vectors = _extract(
        module, shared + inputs[n_shared:], [n for n in body if n in second], results
    )
    _accumulate(of_vectors.graph)
    of_vectors.recompile()
    return _extract(module, inputs[:n_shared], first, shared), of_vectors


def _extract(
    module: fx.GraphModule, inputs: list[fx.Node], body: list[fx.Node], results: list[fx.Node]
) -> fx.GraphModule:
    graph, copies = fx.Graph(), {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
    for node in body:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].target = _REPLACED.get(node.target, node.target)
    graph.output([copies[node] for node in results])
    return fx.GraphModule(module, graph)


def _accumulate(graph: fx.Graph) -> None:
    """Let matrix products add to what their results are added to."""
    for node in graph.nodes:
        if node.target is not torch.add or node.kwargs:
            continue
        for total, other in (node.args, node.args[::-1]):
            product = other.args[0] if other.target is torch.reshape else other
            if product.target not in _PRODUCTS or len(product.users) + len(other.users) > 2:
                continue
            if total.meta["val"].shape != node.meta["val"].shape:
                continue
            fresh = total.target in _FRESH and len(total.users) == 1
            node.target = _add_product if fresh else _with_product
            node.args = (total, *product.args)
            break
    graph.eliminate_dead_code()


def _with_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _add_product(total.clone(memory_format=torch.contiguous_format), a, b)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    flat = total.view(*a.shape[:-1], b.shape[-1])
    _ = flat.addmm_(a, b) if a.ndim == 2 else flat.baddbmm_(a, b)
    return total


def _drop_no_ops(graph: fx.Graph) -> None:
    """Remove the views and sums that change nothing: half of what a trace under vmap holds."""
    for node in graph.nodes:
        if node.op == "call_function" and (source := _same_as(node)) is not None:
            node.replace_all_uses_with(source)
    graph.eliminate_dead_code()


def _same_as(node: fx.Node) -> fx.Node | None:
    source = node.args[0] if node.args else None
    unchanged = _layout(node) is not None and _layout(node) == _layout(source)
    if node.target in _MAYBE_IDENTITY and unchanged:
        return source
    if node.target is aten.permute.default and node.args[1] == sorted(node.args[1]):
        return source
    if node.target is aten.mul.Scalar and node.args[1] == 1 and unchanged:
        return source
    if node.target in (aten.transpose.int, aten.t.default):
        if source.target is node.target and source.args[1:] == node.args[1:]:
            return source.args[0]
    if node.target is aten.add.Tensor and not node.kwargs:
        for zero, other in (node.args, node.args[::-1]):
            if getattr(zero, "target", None) in _ZEROS and _layout(node) == _layout(other):
                return other
    return None


def _layout(node: Any) -> tuple[Any, ...] | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        return None
    return value.shape, value.stride(), value.dtype, value.device


_MAYBE_IDENTITY = {
    aten.alias.default,
    aten.detach.default,
    aten.expand.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten._to_copy.default,
}
_REPLACED = {
    aten.view.default: torch.reshape,  # of any strides
    aten._unsafe_view.default: torch.reshape,
    aten.fill.Scalar: torch.full_like,  # has a rule for vmap
    aten.add.Tensor: torch.add,  # torch's own bindings dispatch faster
    aten.bmm.default: torch.bmm,
    aten.mm.default: torch.mm,
    aten.mul.Tensor: torch.mul,
    aten.transpose.int: torch.transpose,
}
_PRODUCTS = {torch.mm, torch.bmm}
_FRESH = {*_PRODUCTS, _add_product, _with_product}
_ZEROS = {aten.zeros_like.default, aten.zeros.default, aten.new_zeros.default}
