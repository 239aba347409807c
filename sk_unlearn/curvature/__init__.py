"""Curvature of the risk: Hessian products, linear solvers and the ends of the spectrum."""

from __future__ import annotations

from .hvp import DampedOperator, HessianOperator, dense
from .lissa import LiSSA
from .solution import Solution, Solver, SolveStatus
from .solvers import CG, Exact, conjugate_gradient
from .spectrum import SpectrumEstimate, extreme_eigenvalues

__all__ = [
    "CG",
    "DampedOperator",
    "Exact",
    "HessianOperator",
    "LiSSA",
    "Solution",
    "SolveStatus",
    "Solver",
    "SpectrumEstimate",
    "conjugate_gradient",
    "dense",
    "extreme_eigenvalues",
]
