"""The pictures of the report, as data URIs of SVG: nothing is fetched, and print stays sharp."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from math import isinf
from typing import Any

from .displays import (
    DeletionTimelineDisplay,
    PrivacyProfileDisplay,
    TradeoffDisplay,
    UnlearningComparisonDisplay,
)


def certificate_figure(certificate: Any, audit: Any) -> str | None:
    """Draw the privacy profile; None where there is no curve to draw."""
    if isinf(certificate.epsilon) or certificate.delta == 0:
        return None
    bounds = {}
    if audit is not None and audit.delta == certificate.delta:
        if audit.epsilon_lower:
            bounds["epsilon_lower"] = audit.epsilon_lower
        if audit.certified_mu is not None and audit.mu_lower:
            bounds["mu_lower"] = audit.mu_lower
    return _svg(
        lambda ax: PrivacyProfileDisplay.from_certificate(certificate, ax=ax, **bounds), (5.2, 3.6)
    )


def audit_figure(audit: Any) -> str | None:
    """Draw the audit's error rates beside what its certificate allows."""
    if isinf(audit.certified_epsilon):
        return None
    scores = audit.scores_present, audit.scores_absent
    return _svg(
        lambda ax: TradeoffDisplay.from_certificate(
            audit.certificate, *scores, confidence=audit.confidence, ax=ax
        ),
        (5.2, 5.4),
    )


def comparison_figure(comparison: Any) -> str:
    """Draw the accuracies of a comparison."""
    height = 1.3 + 0.55 * len(comparison.rows)
    return _svg(
        lambda ax: UnlearningComparisonDisplay.from_table(comparison.rows, ax=ax), (5.6, height)
    )


def ledger_figure(ledger: Any) -> str:
    """Draw the requests and releases of a ledger over time."""
    return _svg(lambda ax: DeletionTimelineDisplay.from_ledger(ledger, ax=ax), (5.6, 3))


def _svg(draw: Callable[[Any], Any], size: tuple[float, float]) -> str:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    draw(figure.subplots())
    buffer = BytesIO()
    with rc_context({"svg.hashsalt": "sk_unlearn"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + b64encode(buffer.getvalue()).decode("ascii")
