"""A linear model for numbers in place of classes, and its criterion."""

from __future__ import annotations

import torch
from torch import nn

from .networks import LinearHead


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


class LinearRegressor(LinearHead):
    """One affine map from the features to the targets, by penalised least squares.

    The squared loss has a constant Hessian, so the optimum has a closed form:
    :class:`sk_unlearn.methods.Analytic` (T17) and :class:`sk_unlearn.methods.Residual` (T12)
    apply with ``lam > 0``. It is scikit-learn's ``Ridge(alpha=lam * n)`` with the bias penalised
    like the other weights.

    Parameters
    ----------
    n_features_in, n_outputs : int
        Sizes; the estimator fills them in from the data at fit.

    Examples
    --------
    >>> import torch
    >>> from sk_unlearn.modules import LinearRegressor
    >>> LinearRegressor(4, 1)(torch.zeros(2, 4)).shape
    torch.Size([2, 1])
    """

    def __init__(self, n_features_in: int, n_outputs: int) -> None:
        super().__init__(n_features_in, n_outputs)
        self.multi_class = "squared"

    def criterion(self) -> nn.Module:
        """Return half the squared loss."""
        return HalfSquaredLoss()
