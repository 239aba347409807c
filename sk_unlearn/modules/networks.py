"""Small reference networks and the criteria that belong to them. All return logits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional


class OneVsRestLoss(nn.Module):
    """Sum over the heads of the binary log-loss, mean over rows.

    Each head sees the norm of its gradient in the logit bounded by 1 and its curvature by
    1/4 (T13).

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.modules import OneVsRestLoss
    >>> loss = OneVsRestLoss()(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    >>> round(float(loss), 4)  # 3 ln 2
    2.0794
    """

    def forward(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of logits (n, K) and class indices (n,)."""
        own = logits.gather(1, y[:, None]).sum()
        return (functional.softplus(logits).sum() - own) / len(y)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the sigmoids of the heads, normalised to sum to one for each row."""
        return torch.softmax(functional.logsigmoid(logits), dim=-1)


class SquaredOneVsRestLoss(nn.Module):
    """Half the squared distance of the heads to their targets, +1 for a row's class, else -1.

    Sum over the heads, mean over rows.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.modules import SquaredOneVsRestLoss
    >>> float(SquaredOneVsRestLoss()(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])))
    1.5
    """

    def forward(self, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of logits (n, K) and class indices (n,)."""
        targets = 2.0 * functional.one_hot(y, logits.shape[1]) - 1.0
        return 0.5 * (logits - targets).square().sum() / len(y)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the softmax of twice the logits: in the order of the heads, not calibrated."""
        return torch.softmax(2.0 * logits, dim=-1)


class HalfSquaredLoss(nn.Module):
    """Half the squared distance to the targets, sum over the outputs, mean over rows.

    Raises
    ------
    ValueError
        If outputs and targets differ in shape: torch would compare every output with every
        target.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.modules import HalfSquaredLoss
    >>> float(HalfSquaredLoss()(torch.zeros(4, 2), torch.ones(4, 2)))
    1.0
    """

    def forward(self, outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of outputs (n, k) and targets (n, k)."""
        if outputs.shape != y.shape:
            raise ValueError(
                f"outputs of the shape {tuple(outputs.shape)} for targets of the shape "
                f"{tuple(y.shape)}; they must be equal"
            )
        return 0.5 * (outputs - y).square().sum() / len(y)


def affine_criterion(multi_class: str) -> nn.Module:
    """Return the convex loss of this name, for models that are affine in their weights."""
    criteria = {
        "ovr": OneVsRestLoss,
        "multinomial": nn.CrossEntropyLoss,
        "squared": HalfSquaredLoss,
    }
    if multi_class not in criteria:
        raise ValueError(
            f"multi_class={multi_class!r}; choose 'ovr' or 'multinomial', or for numbers 'squared'"
        )
    return criteria[multi_class]()


class LinearHead(nn.Module):
    """One affine map from the features to a logit for each class.

    The model is affine in its trainable parameters, so with ``lam > 0`` the objective is
    strongly convex and :class:`sk_unlearn.methods.Residual` applies (T12). It brings its
    own criterion, and starts at zero.

    Parameters
    ----------
    n_features_in, n_classes : int
        Sizes; the estimator fills them in from the data at fit.
    multi_class : {"ovr", "multinomial", "squared"}
        Independent binary log-losses, one for each class, the softmax log-loss, or, for numbers
        in place of classes, half the squared loss.

    Raises
    ------
    ValueError
        If `multi_class` is something else.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.modules import LinearHead
    >>> LinearHead(4, 3)(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(self, n_features_in: int, n_classes: int, multi_class: str = "ovr") -> None:
        super().__init__()
        affine_criterion(multi_class)
        self.multi_class = multi_class
        self.linear = nn.Linear(n_features_in, n_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def criterion(self) -> nn.Module:
        """Return the loss that belongs to `multi_class`."""
        return affine_criterion(self.multi_class)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K); images are flattened."""
        return self.linear(X.flatten(1))


class RidgeHead(LinearHead):
    """A linear head for least squares on +1 and -1, one against the rest.

    Its optimum has a closed form, so :class:`sk_unlearn.methods.Analytic` applies (T17).

    Parameters
    ----------
    n_features_in, n_classes : int
        Sizes; the estimator fills them in from the data at fit.

    Examples
    --------
    >>> from sk_unlearn.modules import RidgeHead
    >>> RidgeHead(4, 3).criterion()
    SquaredOneVsRestLoss()
    """

    def __init__(self, n_features_in: int, n_classes: int) -> None:
        super().__init__(n_features_in, n_classes)
        self.multi_class = "ridge"

    def criterion(self) -> nn.Module:
        """Return the squared loss."""
        return SquaredOneVsRestLoss()


class MLP(nn.Module):
    """Fully connected network with ReLU; images are flattened.

    Parameters
    ----------
    n_features_in, n_classes : int
        Sizes; the estimator fills them in from the data at fit.
    hidden : sequence of int
        Widths of the hidden layers.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.modules import MLP
    >>> MLP(64, 10, hidden=(32, 32))(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(self, n_features_in: int, n_classes: int, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        sizes = [n_features_in, *hidden]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(sizes):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], n_classes))

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K)."""
        return self.layers(X.flatten(1))


class AllCNN(nn.Module):
    """All-convolutional network (Springenberg et al. 2015, "All-CNN-C"), for images.

    GroupNorm stands where the published unlearning experiments have BatchNorm: running
    statistics are computed from the data, and noise on the weights does not cover them.

    Parameters
    ----------
    input_shape : tuple of int
        Shape (c, h, w) of an image; the estimator fills it in at fit.
    n_classes : int
        Classes.
    width : int
        Channels of the first block (a multiple of 8); the second has twice as many.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.modules import AllCNN
    >>> AllCNN((3, 32, 32), 10, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, input_shape: Sequence[int], n_classes: int, width: int = 96) -> None:
        super().__init__()
        _check_images(self, input_shape)
        wide = 2 * width
        self.layers = nn.Sequential(
            *_convolution(input_shape[0], width),
            *_convolution(width, width),
            *_convolution(width, width, stride=2),
            *_convolution(width, wide),
            *_convolution(wide, wide),
            *_convolution(wide, wide, stride=2),
            *_convolution(wide, wide),
            *_convolution(wide, wide, kernel=1),
            nn.Conv2d(wide, n_classes, 1),
        )

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K)."""
        return self.layers(X).mean(dim=(2, 3))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) for small images: a 3x3 stem, GroupNorm for BatchNorm.

    Parameters
    ----------
    input_shape : tuple of int
        Shape (c, h, w) of an image; the estimator fills it in at fit.
    n_classes : int
        Classes.
    width : int
        Channels of the first stage (a multiple of 8); each later stage doubles them.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.modules import ResNet18
    >>> ResNet18((3, 32, 32), 10, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, input_shape: Sequence[int], n_classes: int, width: int = 64) -> None:
        super().__init__()
        _check_images(self, input_shape)
        blocks: list[nn.Module] = []
        channels = width
        for stage in range(4):
            wide = width * 2**stage
            blocks += [_ResidualBlock(channels, wide, 1 if stage == 0 else 2)]
            blocks += [_ResidualBlock(wide, wide, 1)]
            channels = wide
        self.stem = nn.Sequential(*_convolution(input_shape[0], width))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, n_classes)

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K)."""
        return self.head(self.blocks(self.stem(X)).mean(dim=(2, 3)))


class _ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_convolution(channels_in, channels, stride=stride))
        self.second = nn.Sequential(*_convolution(channels, channels)[:2])
        same = stride == 1 and channels_in == channels
        self.shortcut: nn.Module = nn.Identity()
        if not same:
            self.shortcut = nn.Sequential(*_convolution(channels_in, channels, 1, stride)[:2])

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.second(self.first(X)) + self.shortcut(X))


def _convolution(
    channels_in: int, channels: int, kernel: int = 3, stride: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.GroupNorm(8, channels),
        nn.ReLU(),
    ]


def _check_images(module: nn.Module, input_shape: Sequence[int]) -> None:
    if len(input_shape) != 3:
        raise ValueError(
            f"{type(module).__name__} takes images of shape (c, h, w), not rows of the shape "
            f"{tuple(input_shape)}"
        )
