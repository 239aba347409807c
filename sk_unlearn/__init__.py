"""Certified machine unlearning for neural networks, as scikit-learn estimators."""

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
