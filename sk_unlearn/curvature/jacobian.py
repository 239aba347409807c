"""The Jacobian of a module in its parameters, at fixed parameters, as a linear map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, functionalize, vjp
from torch.fx.experimental.proxy_tensor import make_fx

from .._vectors import flatten, unflatten
from ..exceptions import NotApplicableError
from .graphs import drop_no_ops, extract
from .products import double_backward

_CHUNK_BYTES = 2**23
_MAX_CHUNK = 1024
_PROBED_ROWS = 4


class Jacobian:
    """``v -> J(x_i) v`` for many rows at once, and its transpose.

    Both maps are traced once for a chunk of rows. What they have in common and what no vector
    reaches (activations, masks) is computed once for each chunk and kept while the memory
    lasts; the rest is a few matrix products or convolutions.

    Parameters
    ----------
    module : nn.Module
        ``module(X)`` returns one row of outputs (K,) per input row; rows do not see each other.
        In float32 or float64, which is what everything is computed in.
    names : sequence of str
        The parameters that vectors are about, in their order; the others are constants.
    X : Tensor of shape (n, ...)
        Rows; brought to the module's dtype chunk by chunk.
    memory_budget : int
        Bytes that may be kept.
    chunk_rows : int or None
        Rows worked on at once; None: by the size of the layers' outputs.

    Attributes
    ----------
    outputs : Tensor of shape (n, K)
        ``module(X)``.
    n_parameters : int
        p, the length of the vectors.

    Raises
    ------
    NotApplicableError
        If the module cannot be traced, or rows see each other.

    Examples
    --------
    >>> import torch
    >>> module = torch.nn.Linear(2, 1, bias=False)
    >>> J = Jacobian(module, ["weight"], torch.eye(2))
    >>> J.times(torch.tensor([1.0, 2.0])).tolist()
    [[1.0], [2.0]]
    >>> J.transposed(torch.ones(2, 1)).tolist()
    [1.0, 1.0]
    """

    def __init__(
        self,
        module: nn.Module,
        names: Sequence[str],
        X: Tensor,
        memory_budget: int = 2**30,
        chunk_rows: int | None = None,
    ) -> None:
        self._fixed = {name: p.detach() for name, p in module.named_parameters()}
        self._like = [self._fixed[name] for name in names]
        self.n_parameters = sum(p.numel() for p in self._like)
        self._dtype = self._like[0].dtype
        self._X = X
        automatic = _chunk_rows(module, X[:1].to(self._dtype))
        self._chunk = min(chunk_rows or automatic, len(X))
        self._starts = range(0, len(X), self._chunk)
        _check_rows_apart(module, X[:_PROBED_ROWS].to(self._dtype))
        self._first, self._backward, self._forward = self._trace(module, list(names))
        self._kept: list[list[Tensor]] = []
        outputs = []
        for start in self._starts:
            output, *shared = self._common(start)
            outputs.append(output)
            memory_budget -= self._size(shared)
            if memory_budget >= 0:
                self._kept.append(shared)
        self.outputs = torch.cat(outputs)[: len(X)]
        self._verify(module, names)

    def times(self, v: Tensor) -> Tensor:
        """Return ``J(x_i) v`` for all rows, (n, K), for v (p,), in the module's dtype."""
        parts = unflatten(v.to(self._dtype), self._like)
        chunks = [self._times(index, parts) for index in range(len(self._starts))]
        return torch.cat(chunks)[: len(self._X)]

    def transposed(self, r: Tensor) -> Tensor:
        """Return the sum over rows of ``J(x_i)^T r_i``, (p,), for r (n, K).

        Chunks are summed in float64, which the result is in.
        """
        total = torch.zeros(self.n_parameters, dtype=torch.float64)
        r = r.to(self._dtype)
        for index, start in enumerate(self._starts):
            total += self._transposed(index, r[start : start + self._chunk])
        return total

    def _times(self, index: int, parts: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            return self._forward(*self._shared(index), *parts)[0]

    def _transposed(self, index: int, r: Tensor) -> Tensor:
        with torch.no_grad():
            return flatten(self._backward(*self._shared(index), _padded(r, self._chunk)))

    def _shared(self, index: int) -> list[Tensor]:
        if index < len(self._kept):
            return self._kept[index]
        return self._common(self._starts[index])[1:]

    def _common(self, start: int) -> list[Tensor]:
        with torch.no_grad():
            return self._first(*self._like, self._rows(start))

    def _rows(self, start: int) -> Tensor:
        return _padded(self._X[start : start + self._chunk], self._chunk).to(self._dtype)

    def _size(self, shared: Sequence[Tensor]) -> int:
        own = {t.data_ptr(): t.nbytes for t in shared}
        for parameter in self._fixed.values():
            own.pop(parameter.data_ptr(), None)
        return sum(own.values())

    def _trace(
        self, module: nn.Module, names: list[str]
    ) -> tuple[fx.GraphModule, fx.GraphModule, fx.GraphModule]:
        count = len(names)

        def both(*args: Any) -> list[Tensor]:
            output, pull = vjp(
                lambda *p: self._outputs(module, names, p, args[count]), *args[:count]
            )
            pulled, push = vjp(pull, args[count + 1])
            return [output, *pulled, push(tuple(args[count + 2 :]))[0]]

        rows = self._rows(0)
        with torch.no_grad():
            output = module(rows)
        vectors = [torch.ones_like(p) for p in self._like]
        try:
            with double_backward():
                graph = make_fx(functionalize(both, remove="mutations"))(
                    *self._like, rows, torch.ones_like(output), *vectors
                )
            return _cut(graph, count)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise NotApplicableError(
                f"{type(module).__name__} has no Jacobian products that torch can trace: {reason}"
            ) from error

    def _outputs(
        self, module: nn.Module, names: Sequence[str], parameters: Sequence[Tensor], rows: Tensor
    ) -> Tensor:
        moved = self._fixed | dict(zip(names, parameters, strict=True))
        return functional_call(module, moved, (rows,))

    def _verify(self, module: nn.Module, names: Sequence[str]) -> None:
        """Compare both maps with autograd's on the last rows, which were not traced."""
        last = len(self._starts) - 1
        stop = len(self._X) - self._starts[last]
        some = slice(max(0, stop - _PROBED_ROWS), stop)
        rows = self._X[self._starts[last] :][some].to(self._dtype)
        generator = torch.Generator().manual_seed(0)
        v = torch.rand(self.n_parameters, generator=generator, dtype=self._dtype)
        r = torch.rand(stop, self.outputs.shape[1], generator=generator, dtype=self._dtype)
        r[: some.start] = 0
        _, pull = vjp(lambda *p: self._outputs(module, names, p, rows), *self._like)
        theirs, push = vjp(pull, r[some])
        parts = unflatten(v, self._like)
        pairs = (
            (self._transposed(last, r), flatten(theirs)),
            (self._times(last, parts)[some], push(parts)[0]),
        )
        for ours, exact in pairs:
            error, size = float((ours - exact).norm()), float(exact.norm())
            if not error <= torch.finfo(self._dtype).eps ** 0.5 * size:
                raise NotApplicableError(
                    f"{type(module).__name__} computes in a way that depends on the values of the "
                    f"rows: its traced Jacobian is off by {error:.3g} of {size:.3g}"
                )


def _padded(rows: Tensor, length: int) -> Tensor:
    """Append zeros: what they give is cut off again, or multiplied by zero."""
    missing = length - len(rows)
    return rows if not missing else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def _chunk_rows(module: nn.Module, row: Tensor) -> int:
    """Return how many rows to work on at once, from what the layers put out for one row."""
    sizes = [row.nbytes]
    hooks = [
        part.register_forward_hook(lambda _, __, out: sizes.append(getattr(out, "nbytes", 0)))
        for part in module.modules()
    ]
    try:
        with torch.no_grad():
            module(row)
    finally:
        for hook in hooks:
            hook.remove()
    return max(1, min(_CHUNK_BYTES // sum(sizes), _MAX_CHUNK))


def _check_rows_apart(module: nn.Module, rows: Tensor) -> None:
    with torch.no_grad():
        together, apart = module(rows), torch.cat([module(row[None]) for row in rows])
    if not torch.allclose(together, apart, rtol=1e-3, atol=1e-5):
        raise NotApplicableError(
            f"{type(module).__name__} gives a row other outputs beside other rows, or each time: "
            "the rows must not see each other, and the module must be deterministic"
        )


def _cut(
    module: fx.GraphModule, count: int
) -> tuple[fx.GraphModule, fx.GraphModule, fx.GraphModule]:
    """Cut the trace into what no vector reaches, what r reaches, and what v reaches."""
    graph = module.graph
    drop_no_ops(graph)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    body = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    results = list(output.args[0])
    pulled, pushed = results[1 : 1 + count], results[1 + count :]
    by_r, by_v = _reached(inputs[count + 1 : count + 2], body), _reached(inputs[count + 2 :], body)
    first = [node for node in body if node not in by_r and node not in by_v]
    backward, forward = _needed(pulled, body, by_r), _needed(pushed, body, by_v)
    used = {source for node in (*backward, *forward) for source in node.all_input_nodes}
    used.update(pulled, pushed)
    shared = [node for node in inputs[: count + 1] + first if node in used]
    return (
        extract(module, inputs[: count + 1], first, [results[0], *shared]),
        extract(module, [*shared, inputs[count + 1]], backward, pulled),
        extract(module, shared + inputs[count + 2 :], forward, pushed),
    )


def _reached(sources: list[fx.Node], body: list[fx.Node]) -> set[fx.Node]:
    found = set(sources)
    for node in body:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _needed(results: list[fx.Node], body: list[fx.Node], within: set[fx.Node]) -> list[fx.Node]:
    wanted = set(results)
    for node in reversed(body):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    return [node for node in body if node in wanted and node in within]
