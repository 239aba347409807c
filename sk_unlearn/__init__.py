"""Certified machine unlearning for neural networks, as scikit-learn estimators."""

from importlib import import_module
from types import ModuleType

from .certificate import Assumption, Certificate, Status
from .estimator import CertifiedNeuralClassifier
from .model_selection import make_unlearning_scorer
from .pipeline import UnlearningPipeline, unlearn
from .regressor import CertifiedNeuralRegressor
from .sharded import ShardedClassifier

__version__ = "0.1.0"

__all__ = [
    "Assumption",
    "Certificate",
    "CertifiedNeuralClassifier",
    "CertifiedNeuralRegressor",
    "ShardedClassifier",
    "Status",
    "UnlearningPipeline",
    "make_unlearning_scorer",
    "unlearn",
]


def __getattr__(name: str) -> ModuleType:
    """Import a room that nothing else has imported, as scikit-learn does with its own."""
    if name in ("audit", "datasets", "features", "preprocessing"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
