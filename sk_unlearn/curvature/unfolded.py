"""Layers of images in operations that are fast to differentiate twice: for traces.

Differentiated twice, a convolution turns into further convolutions that unfold the same inputs
again, and one for each of many batches. Written as ``unfold(x) @ W``, products with a Hessian
keep the unfolded activations, unfold one tangent and fold one cotangent for each layer, and
many batches are one batched matrix product. Images have their channels last. Max-pooling is a
gather, and group normalisation is arithmetic: the formulas of torch's own second derivative make
three times as many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_FEW_COPIES = 6.25  # of an entry: windows of 5 by 5 in steps of 2
_SMALL_BYTES = 2**20
_CONVOLUTIONS = {
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
}


@torch.library.custom_op("sk_unlearn::unfold", mutates_args=())
def unfold(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Return the windows of images (n, h, w, c), shape (n, h', w', kernel_h * kernel_w * c)."""
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    x = functional.pad(x, (0, 0, pw, pw, ph, ph)) if ph or pw else x.contiguous()
    n, h, w, c = x.shape
    size = n, (h - kh) // sh + 1, (w - kw) // sw + 1, kh, kw * c  # a row of a window is a run
    windows = x.as_strided(size, (h * w * c, sh * w * c, sw * c, w * c, 1))
    return windows.clone(memory_format=torch.contiguous_format).flatten(3)


@torch.library.custom_op("sk_unlearn::fold", mutates_args=())
def fold(
    windows: Tensor, size: list[int], kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    """Return the sums of overlapping windows, images of height and width `size`: its adjoint."""
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    h, w = size[0] + 2 * ph, size[1] + 2 * pw
    images = windows.new_zeros(len(windows), h, w, windows.shape[3] // (kh * kw))
    c = images.shape[3]
    windows = windows.unflatten(3, (kh, kw * c))
    across, down = -(-kw // sw), -(-kh // sh)  # of these many windows in a row, one is added
    strides = h * w * c, down * sh * w * c, across * sw * c, w * c, 1
    for i in range(down):
        for j in range(across):
            apart = windows[:, i::down, j::across]
            images.as_strided(apart.shape, strides, (i * sh * w + j * sw) * c).add_(apart)
    return images[:, ph : h - ph, pw : w - pw].contiguous()


def _merged(operation: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    """Return the rule for vmap: the additional axis joins the images."""

    def rule(info: Any, in_dims: Sequence[int | None], x: Tensor, *rest: Any) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        return operation(x.flatten(0, 1), *rest).unflatten(0, x.shape[:2]), 0

    return rule


unfold.register_vmap(_merged(unfold))
fold.register_vmap(_merged(fold))


class _Unfold(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, *geometry: list[int]) -> Tensor:
        return unfold(x, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.geometry = inputs
        ctx.size = list(x.shape[1:3])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return _Fold.apply(cotangent, ctx.size, *ctx.geometry), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return _merged(_Unfold.apply)(info, in_dims, *inputs)


class _Fold(torch.autograd.Function):
    @staticmethod
    def forward(windows: Tensor, size: list[int], *geometry: list[int]) -> Tensor:
        return fold(windows, size, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.geometry = inputs[2:]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return _Unfold.apply(cotangent, *ctx.geometry), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return _merged(_Fold.apply)(info, in_dims, *inputs)


class Unfolded(TorchFunctionMode):
    """Under this mode layers of images are written out where that is faster.

    Convolutions are left to torch where large windows overlap much (by
    measurement); so are those with groups, dilation or padding given as a word.

    Attributes
    ----------
    left : int
        Convolutions of any kind that were left to torch.
    normalised : bool
        Whether groups of channels were normalised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left, self.normalised = 0, False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, or what stands for it."""
        kwargs = kwargs or {}
        if func is torch.conv2d and (unfolded := _convolution(*args, **kwargs)) is not None:
            return unfolded
        if func is functional.max_pool2d and args[0].ndim == 4:
            return _max_pooling(*args, **kwargs)
        if func is functional.group_norm:
            self.normalised = True
            return _group_norm(*args, **kwargs)
        self.left += func in _CONVOLUTIONS
        return func(*args, **kwargs)


def seen_in(forward: Callable[[], Any]) -> Unfolded:
    """Return the mode under which a forward pass was made."""
    with Unfolded() as mode, torch.no_grad():
        forward()
    return mode


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (3 - len(value))


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    kernel, steps = list(weight.shape[2:]), _pair(stride)
    plain = groups == 1 and input.ndim == 4 and not isinstance(padding, str)
    copies = prod(kernel) / prod(steps)
    large = copies > _FEW_COPIES and copies * input.nbytes > _SMALL_BYTES
    if large or not plain or _pair(dilation) != [1, 1]:
        return None
    windows = _Unfold.apply(input.permute(0, 2, 3, 1), kernel, steps, _pair(padding))
    matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)
    rows = windows.flatten(0, 2)
    output = rows @ matrix if bias is None else torch.addmm(bias, rows, matrix)
    return output.unflatten(0, windows.shape[:3]).permute(0, 3, 1, 2)


def _max_pooling(
    input: Tensor, kernel_size: Any, stride: Any = None, *rest: Any, **others: Any
) -> Tensor:
    """Pool by gathering: torch finds the indices many times faster with channels last."""
    others.pop("return_indices")  # false: what returns them is another function
    stride = kernel_size if stride is None else stride
    turned = input.permute(0, 2, 3, 1).contiguous()
    _, indices = torch.ops.aten.max_pool2d_with_indices(
        turned.permute(0, 3, 1, 2), _pair(kernel_size), _pair(stride), *map(_pair, rest), **others
    )
    if input.is_contiguous():
        values = input.flatten(2).gather(2, indices.flatten(2))
        return values.unflatten(2, indices.shape[2:])
    values = turned.flatten(1, 2).gather(1, indices.permute(0, 2, 3, 1).flatten(1, 2))
    return values.unflatten(1, indices.shape[2:]).permute(0, 3, 1, 2)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    groups = input.unflatten(1, (num_groups, -1)).flatten(2)
    centred = groups - groups.mean(2, keepdim=True)  # var_mean is many times slower
    variance = centred.square().mean(2, keepdim=True)
    output = (centred * torch.rsqrt(variance + eps)).reshape(input.shape)
    of_channels = 1, -1, *[1] * (input.ndim - 2)
    if weight is not None:
        output = output * weight.view(of_channels)
    return output if bias is None else output + bias.view(of_channels)
