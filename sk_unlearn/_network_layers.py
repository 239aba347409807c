"""Which torch layers have a proved rounding error, and the chain of them that a network is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._layers import Average, Flatten, Kink, Layer, Maximum, Saturating
from ._layers_affine import Affine, Convolution, symmetric_padding
from .exceptions import NotApplicableError
from .modules import MLP, LinearHead


def obstacle(module: nn.Module) -> str | None:
    """Return why the rounding errors of `module` are not covered, naming the layer; or None.

    Covered, in float32 or float64, in evaluation mode: Linear, Conv2d (zero padding, the same
    at both sides), ReLU, LeakyReLU, Tanh, Sigmoid, MaxPool2d and AvgPool2d without padding,
    AdaptiveAvgPool2d(1), Flatten, Dropout, Identity, Sequential, and
    :class:`sk_unlearn.modules.MLP`.

    Examples
    --------
    >>> from torch import nn
    >>> obstacle(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    >>> obstacle(nn.Sequential(nn.Linear(3, 4), nn.GELU()))
    "layer '1' (GELU) has no proved rounding error"
    """
    seen: set[int] = set()
    for name, layer in chain(module):
        own = {id(parameter) for parameter in layer.parameters()}
        if own & seen:
            return f"layer {name.rstrip('.')!r} ({type(layer).__name__}) shares its weights"
        seen |= own
        reason = _layer_obstacle(layer)
        if reason:
            return f"layer {name.rstrip('.')!r} ({type(layer).__name__}) {reason}"
    return None


def build(module: nn.Module) -> list[Layer]:
    """Return the layers of a network, in the order in which they run.

    Raises
    ------
    NotApplicableError
        If :func:`obstacle` names one that is not covered.
    """
    reason = obstacle(module)
    if reason:
        raise NotApplicableError(f"{type(module).__name__}: {reason}")
    pairs = [(_COVERED[type(layer)][1], layer, name) for name, layer in chain(module)]
    return [make(layer, name) for make, layer, name in pairs if make is not _nothing]


def chain(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Return the layers in the order in which they run, with their names."""
    if _hooked(module):
        return [(prefix, module)]
    if type(module) is nn.Sequential:
        parts = [chain(part, f"{prefix}{name}.") for name, part in module._modules.items()]
        return [pair for part in parts for pair in part]
    if type(module) is MLP:
        return [(prefix, nn.Flatten()), *chain(module.layers, f"{prefix}layers.")]
    if type(module) is LinearHead:
        return [(prefix, nn.Flatten()), *chain(module.linear, f"{prefix}linear.")]
    return [(prefix, module)]


def _hooked(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


def _layer_obstacle(layer: nn.Module) -> str | None:
    if _hooked(layer):
        return "has forward hooks or a forward of its own, which may change its output"
    kind = type(layer)
    if kind not in _COVERED:
        return "has no proved rounding error"
    if any(p.dtype not in (torch.float32, torch.float64) for p in layer.parameters()):
        return "has weights that are neither float32 nor float64"
    return _COVERED[kind][0](layer)


def _conv_obstacle(layer: Any) -> str | None:
    if layer.padding_mode != "zeros" or symmetric_padding(layer) is None:
        return f"pads with {layer.padding_mode}, {layer.padding!r}; only symmetric zeros are proved"
    return None


def _pool_obstacle(layer: Any) -> str | None:
    pair = nn.modules.utils._pair
    plain = pair(layer.padding) == (0, 0) and pair(getattr(layer, "dilation", 1)) == (1, 1)
    odd = getattr(layer, "return_indices", False) or getattr(layer, "divisor_override", None)
    if plain and not layer.ceil_mode and not odd:
        return None
    return "is proved only without padding, dilation, ceil_mode, indices and divisor_override"


def _adaptive_obstacle(layer: Any) -> str | None:
    one = nn.modules.utils._pair(layer.output_size) == (1, 1)
    return None if one else f"has output_size={layer.output_size!r}; only 1 is proved"


def _flatten_obstacle(layer: Any) -> str | None:
    plain = (layer.start_dim, layer.end_dim) == (1, -1)
    return None if plain else "is proved only for start_dim=1, end_dim=-1"


def _nothing(layer: Any) -> None:
    return None


_COVERED: dict[type[nn.Module], tuple[Any, Any]] = {
    nn.Linear: (_nothing, Affine),
    nn.Conv2d: (_conv_obstacle, Convolution),
    nn.ReLU: (_nothing, lambda layer, name: Kink()),
    nn.LeakyReLU: (_nothing, lambda layer, name: Kink(layer.negative_slope)),
    nn.Tanh: (_nothing, lambda layer, name: Saturating("tanh")),
    nn.Sigmoid: (_nothing, lambda layer, name: Saturating("sigmoid")),
    nn.AvgPool2d: (_pool_obstacle, lambda layer, name: Average(layer.kernel_size, layer.stride)),
    nn.AdaptiveAvgPool2d: (_adaptive_obstacle, lambda layer, name: Average()),
    nn.MaxPool2d: (_pool_obstacle, lambda layer, name: Maximum(layer.kernel_size, layer.stride)),
    nn.Flatten: (_flatten_obstacle, lambda layer, name: Flatten()),
    nn.Identity: (_nothing, _nothing),
    nn.Dropout: (_nothing, _nothing),
}
