"""The features below a head: float64, with their proved error where there is a proof."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from .modules import FeatureHead
from .network_rounding import features_with_error, obstacle

_CHUNK = 64


@dataclass(frozen=True)
class Features:
    """What the frozen network of a head makes of each row.

    Parameters
    ----------
    values : ndarray of shape (n, q), float64
    error : ndarray of shape (n,)
        Bound on each row's Euclidean distance to the features in real arithmetic; zeros where
        :func:`unproved` has something to say.
    """

    values: np.ndarray
    error: np.ndarray

    def take(self, positions: np.ndarray) -> Features:
        """Return copies of some rows."""
        return Features(self.values[positions], self.error[positions])


def unproved(module: FeatureHead) -> str | None:
    """Return why the features' rounding error is not proved, naming the layer; or None."""
    return obstacle(module.features)


def features_of(module: FeatureHead, X: np.ndarray) -> Features:
    """Return the features of rows (n, ...), computed on the CPU in float64.

    Raises
    ------
    ValueError
        If a feature is not finite.
    """
    if unproved(module) is None:
        return Features(*features_with_error(module.features, X))
    network = copy.deepcopy(module.features).to("cpu", torch.float64).eval()
    with torch.no_grad():
        parts = [
            network(torch.tensor(X[start : start + _CHUNK], dtype=torch.float64)).flatten(1)
            for start in range(0, len(X), _CHUNK)
        ]
    values = torch.cat(parts).numpy()
    if not np.isfinite(values).all():
        raise ValueError("a feature is not finite; scale the rows down")
    return Features(values, np.zeros(len(X)))
