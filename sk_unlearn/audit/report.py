"""One self-contained HTML page about a deletion, for people who answer for it."""

from __future__ import annotations

import os
from base64 import b64encode
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from . import _report_words as words
from ._report_ledger import ledger_part

__all__ = ["report"]


def report(
    estimator: Any,
    path: str | os.PathLike[str],
    *,
    comparison: Any = None,
    audit: Any = None,
    ledger: Any = None,
) -> Path:
    """Write a page that says what was deleted, what is promised, and how to check it.

    The page is the operator's copy: it tells how many rows were deleted. Sample ids appear as
    digests only. It needs no network, and it prints.

    Parameters
    ----------
    estimator : estimator or Certificate
        With a ``certificate_`` that verifies, or that certificate itself.
    path : path-like
        File to write; an older one is replaced.
    comparison : Comparison, optional
        From `compare`.
    audit : AuditResult, optional
        From `audit_unlearning`.
    ledger : DeletionLedger, optional
        By default the estimator's ``ledger_``, if it has one.

    Returns
    -------
    pathlib.Path
        Absolute path of the page.

    Raises
    ------
    ImportError
        If jinja2 or matplotlib is not installed.
    TypeError
        If nothing was deleted yet: there is no certificate.
    CertificateError
        If the certificate does not verify; nothing is written then.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from sklearn.datasets import load_iris
    >>> from sk_unlearn import CertifiedNeuralClassifier
    >>> from sk_unlearn.audit import report
    >>> from sk_unlearn.modules import LinearHead
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = CertifiedNeuralClassifier(LinearHead, lam=1e-2).fit(X, y).unlearn(X[:2], y[:2])
    >>> with TemporaryDirectory() as folder:
    ...     "Certified" in report(clf, f"{folder}/report.html").read_text(encoding="utf-8")
    True
    """
    certificate = getattr(estimator, "certificate_", estimator)
    if not hasattr(certificate, "to_json"):
        raise TypeError(
            f"{type(estimator).__name__} has no certificate_: call unlearn first, or pass a "
            "Certificate"
        )
    certificate.verify()
    template = _template()
    ledger = getattr(estimator, "ledger_", None) if ledger is None else ledger
    page = template.render(
        certificate=_certificate_part(certificate, audit),
        ledger=ledger_part(ledger, estimator),
        audit=_audit_part(audit),
        comparison=_comparison_part(comparison),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=certificate.versions,
    )
    target = Path(path).absolute()
    target.write_text(page, encoding="utf-8")
    return target


def _template() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(
            "the report is written with jinja2, which is not installed; "
            "run `pip install 'sk-unlearn[report]'`"
        ) from error
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _certificate_part(certificate: Any, audit: Any) -> dict[str, Any]:
    from ._report_figures import certificate_figure

    text = certificate.to_json()
    founded = [
        (a.name, *words.STATUS[str(a.status)], a.statement, a.evidence)
        for a in certificate.assumptions
    ]
    return {
        "verdict": words.verdict(certificate),
        "noun": words.noun(certificate),
        "rows": words.rows(certificate),
        "reference": words.reference(certificate),
        "promise": words.promise(certificate),
        "facts": words.facts(certificate),
        "assumptions": founded,
        "statuses": sorted({(row[1], row[2], row[3]) for row in founded}),
        "scope": certificate.scope,
        "reason": getattr(certificate.event, "reason", ""),
        "figure": certificate_figure(certificate, audit),
        "json": text,
        "sha256": sha256(text.encode()).hexdigest(),
        "download": "data:application/json;base64," + b64encode(text.encode()).decode("ascii"),
        "symbols": {
            "mu": bool(certificate.mu) or bool(audit is not None and audit.certified_mu),
            "sigma": certificate.sigma is not None,
            "sensitivity": certificate.sensitivity is not None,
        },
    }


def _audit_part(audit: Any) -> dict[str, Any] | None:
    if audit is None:
        return None
    from ._report_figures import audit_figure

    return {
        "verdict": words.audit_words(audit),
        "facts": words.audit_facts(audit),
        "figure": audit_figure(audit),
    }


def _comparison_part(comparison: Any) -> dict[str, Any] | None:
    if comparison is None:
        return None
    from ._report_figures import comparison_figure

    return {"rows": comparison.rows, "figure": comparison_figure(comparison)}
