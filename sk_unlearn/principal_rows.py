"""Rows in their leading directions: nearly the same Hessian, for a fraction of the work.

Where the first layer of a network is dense, a row enters by its products with the layer's weights
alone. Its coordinates along the first principal directions of all rows give nearly the same
activations and, by a layer with so many inputs, nearly the same Hessian. What that is good for is
a preconditioner: no certificate rests on it.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn

from ._network_layers import chain, obstacle
from .curvature.nystrom import NystromFactors
from .modules import Linearized

N_DIRECTIONS = 128


@dataclass(frozen=True)
class Directions:
    """The leading directions of the rows, and which weights multiply rows.

    Parameters
    ----------
    basis : Tensor of shape (d, r), float32
        Orthonormal columns.
    start, stop : int
        Where in a vector of all weights those of the first layer are, (h, d).
    """

    basis: Tensor
    start: int
    stop: int

    def narrow(self, vector: Tensor) -> Tensor:
        """Return a vector (p,) of all weights as one for the narrow network, (q,)."""
        first = vector[self.start : self.stop].reshape(-1, len(self.basis)) @ self.basis
        return torch.cat([vector[: self.start], first.flatten(), vector[self.stop :]])

    def widen(self, vector: Tensor) -> Tensor:
        """Undo :meth:`narrow`, within the span of the directions."""
        n_inputs, r = self.basis.shape
        stop = self.start + (self.stop - self.start) // n_inputs * r
        first = vector[self.start : stop].reshape(-1, r) @ self.basis.T
        return torch.cat([vector[: self.start], first.flatten(), vector[stop:]])


@dataclass(frozen=True)
class NarrowFactors:
    """A sketch of the Hessian of the narrow network, as a preconditioner of the whole one.

    Parameters
    ----------
    sketch : NystromFactors
        Of size q.
    directions : Directions
    """

    sketch: NystromFactors
    directions: Directions

    def solve(self, gradient: np.ndarray) -> np.ndarray:
        """Return the preconditioner times `gradient` (p,)."""
        g = torch.from_numpy(gradient).float()
        narrow = self.sketch.correction(self.directions.narrow(g))
        return (g + self.directions.widen(narrow)).double().numpy()


def first_dense(model: Linearized, n_features: int) -> str | None:
    """Return the name of the first layer if narrower rows are worth it for it; else None.

    It has to be dense, with trained weights, at least twice as many inputs as directions, and
    see the row as it is.
    """
    if obstacle(model.network) is not None:
        return None
    passive = (nn.Flatten, nn.Identity)
    name, layer = next(pair for pair in chain(model.network) if type(pair[1]) not in passive)
    dense = type(layer) is nn.Linear and f"{name}weight" in model.names
    wide = dense and 2 * N_DIRECTIONS <= layer.in_features == n_features
    return name if wide else None


def narrowed(model: Linearized, name: str, X: Tensor) -> tuple[nn.Module, Tensor, Directions]:
    """Return the network, float32, and the rows (n, r) in their leading directions.

    Parameters
    ----------
    model : Linearized
        Not modified.
    name : str
        Of :func:`first_dense`.
    X : Tensor of shape (n, ...)
        Rows.
    """
    rows = X.flatten(1).float()
    r = min(N_DIRECTIONS, len(rows))
    right = randomized_svd(rows.numpy(), r, n_iter=2, random_state=0)[2]
    basis = torch.from_numpy(np.ascontiguousarray(right.T, dtype=np.float32))
    network = deepcopy(model.network).float()
    layer = network.get_submodule(name.rstrip("."))
    layer.weight = nn.Parameter(layer.weight @ basis, requires_grad=False)
    sizes = [offset.numel() for offset in model.offsets]
    position = model.names.index(f"{name}weight")
    start = sum(sizes[:position])
    return network, rows @ basis, Directions(basis, start, start + sizes[position])
