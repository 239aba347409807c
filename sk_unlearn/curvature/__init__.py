"""Curvature of the risk: Hessian products, linear solvers and the ends of the spectrum."""

from __future__ import annotations

from .hvp import DampedOperator, HessianOperator
from .lissa import LiSSA
from .solvers import CG, Exact, Solution, Solver, SolveStatus, conjugate_gradient, dense
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
