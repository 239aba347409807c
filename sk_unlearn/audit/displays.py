"""Pictures in scikit-learn's convention: ``from_…``, ``plot(ax=None)``, ``ax_``, ``figure_``."""

from __future__ import annotations

from ._profile_display import PrivacyProfileDisplay
from ._table_displays import UnlearningComparisonDisplay, UtilityDisplay
from ._timeline_display import DeletionTimelineDisplay
from ._tradeoff_display import TradeoffDisplay

__all__ = [
    "DeletionTimelineDisplay",
    "PrivacyProfileDisplay",
    "TradeoffDisplay",
    "UnlearningComparisonDisplay",
    "UtilityDisplay",
]
