"""Traced graphs: cut in two, thinned out, with matrix products that add in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def mutates(graph: fx.Graph) -> bool:
    """Return whether a node of the graph changes a tensor in place."""
    schemas = [getattr(node.target, "_schema", None) for node in graph.nodes]
    return any(schema is not None and schema.is_mutable for schema in schemas)


def cut(module: fx.GraphModule, n_shared: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a graph after its first `n_shared` inputs: what only they reach, and the rest."""
    graph = module.graph
    drop_no_ops(graph)
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
    return (
        extract(module, inputs[:n_shared], first, shared),
        extract(module, shared + inputs[n_shared:], [n for n in body if n in second], results),
    )


def extract(
    module: fx.GraphModule, inputs: list[fx.Node], body: list[fx.Node], results: list[fx.Node]
) -> fx.GraphModule:
    """Return the graph of those nodes of `module`, from `inputs` to `results`."""
    graph, copies = fx.Graph(), {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
    for node in body:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].target = _REPLACED.get(node.target, node.target)
    graph.output([copies[node] for node in results])
    return fx.GraphModule(module, graph)


def accumulated(module: fx.GraphModule) -> fx.GraphModule:
    """Return the graph with matrix products that add to what they were added to.

    In place, for which torch has no rule under vmap.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        if node.target is not torch.add or node.kwargs:
            continue
        for total, other in (node.args, node.args[::-1]):
            product = other.args[0] if other.target is torch.reshape else other
            if product.target not in _PRODUCTS or len(product.users) + len(other.users) > 2:
                continue
            if not _kind(total) == _kind(other) == _kind(node):
                continue
            fresh = total.target in _FRESH and len(total.users) == 1
            node.target = _add_product if fresh else _with_product
            node.args = (total, *product.args)
            break
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)


def _with_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return _add_product(total.clone(memory_format=torch.contiguous_format), a, b)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    flat = total.view(*a.shape[:-1], b.shape[-1])
    _ = flat.addmm_(a, b) if a.ndim == 2 else flat.baddbmm_(a, b)
    return total


def drop_no_ops(graph: fx.Graph) -> None:
    """Remove the views and sums that change nothing, and the gradients that nobody reads.

    The former are half of what a trace under vmap holds.
    """
    for node in graph.nodes:
        if node.op == "call_function" and (source := _same_as(node)) is not None:
            node.replace_all_uses_with(source)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if node.target is aten.convolution_backward.default:
            used = {user.args[1] for user in node.users}
            mask = [wanted and i in used for i, wanted in enumerate(node.args[-1])]
            node.args = (*node.args[:-1], mask)


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


def _kind(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    return value.shape, value.dtype


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
