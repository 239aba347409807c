"""Inspectors: they see numbers, predictions and certificates, and can refute an epsilon."""

from __future__ import annotations

from . import membership
from .compare import Comparison, compare
from .displays import (
    DeletionTimelineDisplay,
    PrivacyProfileDisplay,
    TradeoffDisplay,
    UnlearningComparisonDisplay,
    UtilityDisplay,
)
from .lower_bounds import epsilon_lower_bound, mu_lower_bound
from .report import report
from .unlearning import AuditResult, audit_unlearning

__all__ = [
    "AuditResult",
    "Comparison",
    "DeletionTimelineDisplay",
    "PrivacyProfileDisplay",
    "TradeoffDisplay",
    "UnlearningComparisonDisplay",
    "UtilityDisplay",
    "audit_unlearning",
    "compare",
    "epsilon_lower_bound",
    "membership",
    "mu_lower_bound",
    "report",
]
