"""Risks with a known Hessian: ``F(w) = mean_i c_i (x_i'w)^2 / 2 + lam/2 ||w||^2``."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sk_unlearn.objective import Objective


def quadratic(X, c, lam=0.0, dtype=torch.float64, **options) -> Objective:
    """Return the risk whose row ``i`` has the Hessian ``c_i x_i x_i'``; ``c_i`` of any sign."""
    X, c = (torch.as_tensor(np.asarray(a, dtype=float)) for a in (X, c))
    module = nn.Linear(X.shape[1], 1, bias=False, dtype=dtype)
    return Objective(
        module, lambda z, c: (c * z[:, 0] ** 2).mean() / 2, X, c, lam=lam, dtype=dtype, **options
    )


def dense_hessian(X, c, lam=0.0) -> np.ndarray:
    """Return its Hessian."""
    X, c = np.asarray(X, dtype=float), np.asarray(c, dtype=float)
    return (X.T * c) @ X / len(X) + lam * np.eye(X.shape[1])


def with_eigenvalues(values, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and weights of a risk whose Hessian has exactly these eigenvalues."""
    values = np.asarray(values, dtype=float)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))
    return np.sqrt(len(values)) * basis, values
