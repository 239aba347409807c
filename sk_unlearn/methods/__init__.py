"""Unlearning methods: instances, one per file, all with the same door."""

from .analytic import Analytic
from .base import OneShotMethod, Outcome, Problem, Rows, Setting, UnlearningMethod
from .descent import DescentToDelete
from .gradient_clipping import GradientClipping
from .model_clipping import ModelClipping
from .newton import Newton
from .output_perturbation import OutputPerturbation
from .private import PrivateTraining
from .removal import CertifiedRemoval
from .residual import Residual
from .retrain import Retrain
from .sekhari import SekhariNewton

__all__ = [
    "Analytic",
    "CertifiedRemoval",
    "DescentToDelete",
    "GradientClipping",
    "ModelClipping",
    "Newton",
    "OneShotMethod",
    "Outcome",
    "OutputPerturbation",
    "PrivateTraining",
    "Problem",
    "Residual",
    "Retrain",
    "Rows",
    "SekhariNewton",
    "Setting",
    "UnlearningMethod",
]
