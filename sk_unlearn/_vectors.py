"""All trainable parameters as one vector, and the penalty on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Penalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lam: float, n_parameters: int, *tensors: Tensor) -> Tensor:
        ctx.lam, ctx.n_parameters = lam, n_parameters
        ctx.save_for_backward(*tensors)
        difference = _difference(tensors, n_parameters)
        norms = torch.stack(torch._foreach_norm(difference))
        return norms.square_().sum().mul_(0.5 * lam)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        difference = _difference(ctx.saved_tensors, ctx.n_parameters)
        scale = ctx.lam * grad_outputs[0]
        if torch.is_grad_enabled():  # the fused product has no second derivative
            gradients = [part * scale for part in difference]
        else:
            gradients = torch._foreach_mul(difference, scale)
        n_references = len(ctx.saved_tensors) - ctx.n_parameters
        return None, None, *gradients, *[None] * n_references


def _difference(tensors: Sequence[Tensor], n_parameters: int) -> Sequence[Tensor]:
    parameters, reference = tensors[:n_parameters], tensors[n_parameters:]
    return torch._foreach_sub(parameters, reference) if reference else parameters


def penalty(parameters: Sequence[Tensor], reference: Sequence[Tensor] | None, lam: float) -> Tensor:
    """Return ``lam/2 * ||w - w_ref||^2``: the *squared* Euclidean norm over all tensors.

    Differs from a published implementation, which added the norm itself.

    Parameters
    ----------
    parameters : sequence of Tensor
        The point ``w``, tensor by tensor. The result is differentiable in it (twice).
    reference : sequence of Tensor or None
        The centre ``w_ref``, in the same shapes; None is the origin. A constant.
    lam : float
        The L2 coefficient of the objective, per row-mean loss.

    Returns
    -------
    Tensor
        A scalar.

    Examples
    --------
    >>> import torch
    >>> penalty([torch.tensor([3.0, 4.0])], None, lam=2.0).item()
    25.0
    """
    parameters = list(parameters)
    if lam == 0:
        return parameters[0].new_zeros(())
    return _Penalty.apply(lam, len(parameters), *parameters, *(reference or ()))


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors into one vector, in their order.

    Parameters
    ----------
    tensors : sequence of Tensor

    Returns
    -------
    Tensor of shape (p,)

    Examples
    --------
    >>> import torch
    >>> flatten([torch.eye(2), torch.ones(1)]).tolist()
    [1.0, 0.0, 0.0, 1.0, 1.0]
    """
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Cut the last axis of `vector` into views in the shapes of `like`.

    Parameters
    ----------
    vector : Tensor of shape (..., p)
        ``p`` is the total number of entries of `like`.
    like : sequence of Tensor
        Only their shapes are used.

    Returns
    -------
    tuple of Tensor
        Views of `vector`, of shape ``(..., *t.shape)``: writing to them writes to `vector`.

    Raises
    ------
    ValueError
        If the sizes do not add up.

    Examples
    --------
    >>> import torch
    >>> [part.tolist() for part in unflatten(torch.arange(3), [torch.ones(2, 1), torch.ones(1)])]
    [[[0], [1]], [2]]
    """
    sizes = [t.numel() for t in like]
    if vector.shape[-1] != sum(sizes):
        raise ValueError(
            f"The vector has {vector.shape[-1]} entries and the tensors have {sum(sizes)}: "
            "flatten the same parameters, in the same order."
        )
    lead = vector.shape[:-1]
    return tuple(
        part.view((*lead, *t.shape)) for part, t in zip(vector.split(sizes, -1), like, strict=True)
    )
