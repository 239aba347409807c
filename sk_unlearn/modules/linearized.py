"""A network replaced by its first-order Taylor expansion in its weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, jvp
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from ..exceptions import NotApplicableError
from .networks import affine_criterion


class Linearized(nn.Module):
    r"""A network linearised in its weights: :math:`f(x; w_0) + J(x) v` with trainable ``v``.

    ``J`` is the Jacobian of the network ``f`` in its weights at the public weights ``w_0`` (its
    initialisation, or weights trained on public or permanent rows). The trainable offsets
    ``v = w - w_0`` start at zero, so the ball and the penalty ``lam/2 ||w - w_0||^2`` are centred
    at ``w_0`` whatever the `anchor`. The model is affine in ``v``, so with ``lam > 0`` the
    objective is strongly convex and :class:`sk_unlearn.methods.Residual` applies (T12): a deep
    architecture with a formal certificate, where its rounding errors can be proved.

    Parameters
    ----------
    module : nn.Module class or instance
        The network: logits (n, K), rows that do not see each other, no randomness. A class is
        given ``n_features_in``, ``n_classes`` and ``input_shape`` where its signature names them;
        an instance is copied.
    multi_class : {"ovr", "multinomial", "squared"}
        Independent binary log-losses, one for each class, the softmax log-loss, or, for numbers
        in place of classes, half the squared loss.
    layers : int or None
        Only the parameters of the last so many layers that have any (in the order in which the
        module defines them) get offsets; what lies below is frozen at ``w_0``. None: all.
    n_features_in, n_classes : int, optional
        Sizes; the estimator fills them in from the data at fit.
    input_shape : tuple of int, optional
        Shape of a row; the estimator fills it in at fit.
    **options
        For the network, if `module` is a class.

    Attributes
    ----------
    network : nn.Module
        The network at ``w_0``, frozen, in evaluation mode.
    names : tuple of str
        The network's parameters that have offsets.
    offsets : nn.ParameterList
        ``v``, one tensor for each name.

    Raises
    ------
    NotApplicableError
        If a layer is random (Dropout) or keeps statistics of the data (BatchNorm): the message
        names it.
    ValueError
        If `multi_class` or `layers` is out of range.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.modules import MLP, Linearized
    >>> _ = torch.manual_seed(0)
    >>> model = Linearized(MLP, n_features_in=4, n_classes=3, hidden=(8,))
    >>> X = torch.ones(2, 4)
    >>> torch.equal(model(X), model.network(X)), len(model.offsets)
    (True, 4)

    In an estimator:

    >>> from sklearn.datasets import load_iris
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> net = CertifiedNeuralClassifier(Linearized, module__module=MLP, random_state=0, lam=1e-2)
    >>> net.fit(X, y).unlearn(X[:2], y[:2], epsilon=1.0, delta=1e-5).certificate_.formal
    True
    """

    def __init__(
        self,
        module: Any,
        multi_class: str = "ovr",
        layers: int | None = None,
        n_features_in: int | None = None,
        n_classes: int | None = None,
        input_shape: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        affine_criterion(multi_class)
        self.multi_class = multi_class
        if isinstance(module, nn.Module):
            if options:
                raise ValueError(
                    f"{', '.join(options)}: options are for a module class, and "
                    f"{type(module).__name__} is built already"
                )
            self.network = deepcopy(module)
        else:
            sizes = {"n_features_in": n_features_in, "n_classes": n_classes}
            sizes["input_shape"] = input_shape
            accepted = inspect.signature(module).parameters
            sizes = {k: v for k, v in sizes.items() if k in accepted and v is not None}
            self.network = module(**sizes | options)
        _check_layers(self.network)
        self.names = _last_layers(self.network, layers)
        self.network.requires_grad_(False).eval()
        own = dict(self.network.named_parameters())
        self.offsets = nn.ParameterList(torch.zeros_like(own[name]) for name in self.names)

    @property
    def backbone(self) -> nn.Module:
        """The network at ``w_0``: a copy, trainable."""
        return deepcopy(self.network).requires_grad_(True)

    def set_backbone(self, module: nn.Module) -> None:
        """Linearise at the weights of another network of the same shape; offsets are zero again.

        Parameters
        ----------
        module : nn.Module
            Trained on rows that no certificate has to cover. Copied.

        Raises
        ------
        NotApplicableError
            As at construction.
        ValueError
            If its parameters differ from the network's in name or shape.
        """
        before, after = (
            {name: tuple(p.shape) for name, p in net.named_parameters()}
            for net in (self.network, module)
        )
        if before != after:
            raise ValueError(f"the new backbone has the parameters {after}, the old one {before}")
        _check_layers(module)
        self.network = deepcopy(module).requires_grad_(False).eval()
        with torch.no_grad():
            for offset in self.offsets:
                offset.zero_()

    def criterion(self) -> nn.Module:
        """Return the loss that belongs to `multi_class`."""
        return affine_criterion(self.multi_class)

    def train(self, mode: bool = True) -> Linearized:
        """Set the mode; the network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, K)."""
        fixed = dict(self.network.named_parameters())
        base = tuple(fixed[name] for name in self.names)

        def outputs(*weights: torch.Tensor) -> torch.Tensor:
            moved = fixed | dict(zip(self.names, weights, strict=True))
            return functional_call(self.network, moved, (X,))

        value, change = jvp(outputs, base, tuple(self.offsets))
        return value + change


def _check_layers(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, _DropoutNd):
            reason = "is random, and a Taylor expansion is of one function"
        elif isinstance(layer, _BatchNorm) or (
            isinstance(layer, _NormBase) and layer.track_running_stats
        ):
            reason = "mixes rows or keeps statistics of the data; use GroupNorm"
        else:
            continue
        raise NotApplicableError(
            f"layer {name!r} ({type(layer).__name__}) {reason}: Linearized does not cover it"
        )


def _last_layers(module: nn.Module, count: int | None) -> tuple[str, ...]:
    """Return the parameter names of the last `count` layers with parameters of their own."""
    layers = []
    for prefix, layer in module.named_modules():
        own = [name for name, _ in layer.named_parameters(recurse=False)]
        if own:
            layers.append([f"{prefix}.{name}" if prefix else name for name in own])
    if count is not None and not 1 <= count <= len(layers):
        raise ValueError(
            f"layers={count!r}: give a whole number from 1 to {len(layers)}, or None for all"
        )
    chosen = {name for names in layers[-(count or len(layers)) :] for name in names}
    return tuple(name for name, _ in module.named_parameters() if name in chosen)
