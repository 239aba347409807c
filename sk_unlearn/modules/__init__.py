"""Small reference networks and the criteria that belong to them. All return logits."""

from .feature_head import FeatureHead
from .networks import (
    MLP,
    AllCNN,
    LinearHead,
    OneVsRestLoss,
    ResNet18,
    RidgeHead,
    SquaredOneVsRestLoss,
)
from .regression import HalfSquaredLoss, LinearRegressor

__all__ = [
    "MLP",
    "AllCNN",
    "FeatureHead",
    "HalfSquaredLoss",
    "LinearHead",
    "LinearRegressor",
    "OneVsRestLoss",
    "ResNet18",
    "RidgeHead",
    "SquaredOneVsRestLoss",
]
