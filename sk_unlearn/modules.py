"""Small reference networks and the criteria that belong to them. All return logits."""

from __future__ import annotations

from collections.abc import Sequence

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


class LinearHead(nn.Module):
    """One affine map from the features to a logit for each class.

    The model is affine in its trainable parameters, so with ``lam > 0`` the objective is
    strongly convex and :class:`sk_unlearn.methods.Residual` applies (T12). It brings its
    own criterion, and starts at zero.

    Parameters
    ----------
    n_features_in, n_classes : int
        Sizes; the estimator fills them in from the data at fit.
    multi_class : {"ovr", "multinomial"}
        Independent binary log-losses, one for each class, or the softmax log-loss.

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
        if multi_class not in ("ovr", "multinomial"):
            raise ValueError(f"multi_class={multi_class!r}; choose 'ovr' or 'multinomial'")
        self.multi_class = multi_class
        self.linear = nn.Linear(n_features_in, n_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def criterion(self) -> nn.Module:
        """Return the loss that belongs to `multi_class`."""
        return OneVsRestLoss() if self.multi_class == "ovr" else nn.CrossEntropyLoss()

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K); images are flattened."""
        return self.linear(X.flatten(1))


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
        for width_in, width_out in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], n_classes))

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K)."""
        return self.layers(X.flatten(1))
