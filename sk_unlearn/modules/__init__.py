"""Small reference networks and the criteria that belong to them. All return logits."""

from .networks import (
    MLP,
    AllCNN,
    LinearHead,
    OneVsRestLoss,
    ResNet18,
    RidgeHead,
    SquaredOneVsRestLoss,
)

__all__ = [
    "MLP",
    "AllCNN",
    "LinearHead",
    "OneVsRestLoss",
    "ResNet18",
    "RidgeHead",
    "SquaredOneVsRestLoss",
]
