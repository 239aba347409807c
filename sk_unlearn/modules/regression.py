"""A linear model for numbers in place of classes."""

from __future__ import annotations

from .networks import LinearHead


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
        super().__init__(n_features_in, n_outputs, "squared")
