"""A linear head on the frozen features of a network."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence

import torch
from torch import nn

from .networks import LinearHead, affine_criterion


class FeatureHead(nn.Module):
    """A linear head on the penultimate features of a network that is frozen.

    The last :class:`torch.nn.Linear` of the network gives way to a head that starts at zero;
    only the head is trainable. The model is affine in it, so with ``lam > 0``
    :class:`sk_unlearn.methods.Residual` applies (T12). The network keeps its public
    initialisation (random features), or its pretrained weights, or is trained on rows that will
    never be deleted: ``fit(X, y, permanent=mask)``.

    Parameters
    ----------
    backbone : torch module class or instance
        Returns logits; the last Linear is its output layer. A class is given ``n_features_in``,
        ``n_classes`` and ``input_shape`` where its signature names them; an instance is copied.
    n_classes : int
        Heads; the estimator fills it in at fit.
    n_features_in : int or None
        Numbers in a row; the estimator fills it in at fit.
    input_shape : tuple of int or None
        Shape of a row; the estimator fills it in at fit.
    multi_class : {"ovr", "multinomial", "squared"}
        As in :class:`LinearHead`.

    Raises
    ------
    ValueError
        If the network has no Linear layer, or `multi_class` is something else.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.modules import MLP, FeatureHead
    >>> head = FeatureHead(MLP, n_classes=3, n_features_in=4)
    >>> head(torch.zeros(2, 4)).shape, sum(p.numel() for p in head.parameters() if p.requires_grad)
    (torch.Size([2, 3]), 195)
    """

    def __init__(
        self,
        backbone: nn.Module | Callable[..., nn.Module],
        n_classes: int,
        n_features_in: int | None = None,
        input_shape: Sequence[int] | None = None,
        multi_class: str = "ovr",
    ) -> None:
        super().__init__()
        if isinstance(backbone, nn.Module):
            network = copy.deepcopy(backbone)
        else:
            sizes = {
                "n_features_in": n_features_in,
                "n_classes": n_classes,
                "input_shape": input_shape,
            }
            accepted = inspect.signature(backbone).parameters
            network = backbone(**{k: v for k, v in sizes.items() if k in accepted})
        self.multi_class = multi_class
        self.set_backbone(network)
        self.linear = LinearHead(self.output.in_features, n_classes, multi_class).linear

    @property
    def backbone(self) -> nn.Module:
        """The whole network with its own output layer: a copy, trainable."""
        network = copy.deepcopy(self.features)
        output = copy.deepcopy(self.output)
        network = _replaced(network, self._place, output)
        return network.requires_grad_(True)

    def set_backbone(self, network: nn.Module) -> None:
        """Freeze a copy of `network`, an architecture like the present one, below the head.

        Raises
        ------
        ValueError
            If the network has no Linear layer.
        """
        network = copy.deepcopy(network).requires_grad_(False)
        found = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
        if not found:
            raise ValueError(
                f"{type(network).__name__} has no Linear layer that a head could replace; end the "
                "backbone with torch.nn.Linear"
            )
        self._place = found[-1]
        self.output = network.get_submodule(self._place)
        self.features = _replaced(network, self._place, nn.Identity())
        self.train(self.training)

    def criterion(self) -> nn.Module:
        """Return the loss that belongs to `multi_class`."""
        return affine_criterion(self.multi_class)

    def train(self, mode: bool = True) -> FeatureHead:
        """Switch the head; the frozen network stays in evaluation mode."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K)."""
        with torch.no_grad():
            features = self.features(X).flatten(1)
        return self.linear(features)


def _replaced(network: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """Return `network` with one submodule exchanged; the empty name is all of it."""
    if not name:
        return part
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, part)
    return network
