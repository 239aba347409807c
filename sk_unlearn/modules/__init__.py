"""Small reference networks and the criteria that belong to them. All return logits."""

from .feature_head import FeatureHead
from .linearized import Linearized
from .networks import (
    MLP,
    AllCNN,
    HalfSquaredLoss,
    LinearHead,
    OneVsRestLoss,
    ResNet18,
    RidgeHead,
    SquaredOneVsRestLoss,
)
from .regression import LinearRegressor

__all__ = [
    "MLP",
    "AllCNN",
    "FeatureHead",
    "HalfSquaredLoss",
    "LinearHead",
    "LinearRegressor",
    "Linearized",
    "OneVsRestLoss",
    "ResNet18",
    "RidgeHead",
    "SquaredOneVsRestLoss",
]
