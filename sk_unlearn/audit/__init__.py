"""Inspectors: they see numbers, predictions and certificates, and can refute an epsilon."""

from __future__ import annotations

from . import membership
from .displays import (
    DeletionTimelineDisplay,
    PrivacyProfileDisplay,
    TradeoffDisplay,
    UnlearningComparisonDisplay,
    UtilityDisplay,
)
from .lower_bounds import epsilon_lower_bound, mu_lower_bound

__all__ = [
    "DeletionTimelineDisplay",
    "PrivacyProfileDisplay",
    "TradeoffDisplay",
    "UnlearningComparisonDisplay",
    "UtilityDisplay",
    "epsilon_lower_bound",
    "membership",
    "mu_lower_bound",
]
