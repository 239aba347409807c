"""Which units of a feature map are equal in truth: in value and in every derivative.

Two units of one channel whose receptive fields hold the same numbers have equal true values and
equal true derivatives in every parameter, whatever rounding makes of them, since convolutions
and pooling treat places alike. So a tie between them (the background of an image) needs no
decision: either gives the true derivative. Units of one channel and one row get equal labels
only where this holds; label 0 is for zeros that do not depend on any parameter: the padding, and
units that a ReLU surely blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pixel_labels(X: Tensor) -> Tensor:
    """Return labels of images (n, c, h, w): their bits, which are 0 for 0."""
    return X.to(torch.float64).contiguous().view(torch.int64)


def window_labels(
    labels: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Return labels (n, h', w') of windows through all channels of labels (n, c, h, w)."""
    padded = functional.pad(labels, (padding[1], padding[1], padding[0], padding[0]))
    sizes = zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    high, wide = ((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sizes)
    parts = [
        padded[:, :, i : i + stride[0] * high : stride[0], j : j + stride[1] * wide : stride[1]]
        for i in range(0, kernel[0] * dilation[0], dilation[0])
        for j in range(0, kernel[1] * dilation[1], dilation[1])
    ]
    cut = torch.cat([part[:, :, :high, :wide].flatten(2) for part in parts], dim=1)
    return _number(cut).reshape(len(labels), high, wide)


def _number(tuples: Tensor) -> Tensor:
    """Return numbers (n, places) from 1 for tuples (n, k, places): equal for equal tuples only."""
    flat = tuples.movedim(1, -1).flatten(0, 1)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(2**62, (flat.shape[1],), generator=generator) * 2 + 1
    _, number = torch.unique((flat * factors).sum(dim=1), return_inverse=True)
    everyone = torch.arange(len(flat))
    example = torch.zeros_like(everyone).scatter_(0, number, everyone)
    collides = (flat != flat[example[number]]).any(dim=1)
    number = torch.where(collides, len(flat) + everyone, number) + 1
    return number.reshape(len(tuples), -1)
