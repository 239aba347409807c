"""Unlearning methods: instances, one per file, all with the same door."""

from .base import OneShotMethod, Outcome, Problem, Rows, Setting, UnlearningMethod
from .output_perturbation import OutputPerturbation
from .residual import Residual
from .retrain import Retrain

__all__ = [
    "OneShotMethod",
    "Outcome",
    "OutputPerturbation",
    "Problem",
    "Residual",
    "Retrain",
    "Rows",
    "Setting",
    "UnlearningMethod",
]
