"""The ledger in the report: what was asked, what became of it, and what is promised today."""

from __future__ import annotations

from collections.abc import Iterable
from math import isinf
from typing import Any

from ..exceptions import LedgerError

_MOST_ENTRIES = 100
_MOST_LETTERS = 20
_OUTCOMES = {
    "released": "Served by a release",
    "requested": "Waiting",
    "refused": "Refused",
    "failed": "Failed",
}


def ledger_part(ledger: Any, estimator: Any) -> dict[str, Any] | None:
    """Return what the page shows of a ledger; an objection alone if it does not verify."""
    if ledger is None:
        return None
    from ._report_figures import ledger_figure

    try:
        head = ledger.verify()
    except LedgerError as error:
        return {"objection": str(error), "open": None, "path": ledger.path}
    entries = list(ledger)
    counts = outcomes(entries)
    return {
        "objection": "",
        "open": unserved(counts),
        "head": head,
        "path": ledger.path,
        "n_entries": len(entries),
        "facts": [
            (name, f"{n} ({rows:,} {'row' if rows == 1 else 'rows'})")
            for name, n, rows in ((_OUTCOMES[state], *counts[state]) for state in _OUTCOMES)
        ],
        "entries": [(entry, *_names(entry)) for entry in entries[-_MOST_ENTRIES:]],
        "today": today(estimator) if ledger is getattr(estimator, "ledger_", None) else [],
        "figure": ledger_figure(ledger) if entries else None,
    }


def outcomes(entries: Iterable[Any]) -> dict[str, tuple[int, int]]:
    """Return how many requests, and rows in them, ended in each state."""
    rows: dict[str, int] = {}
    states: dict[str, str] = {}
    for entry in entries:
        for request_id in entry.request_ids:
            if entry.state == "requested":
                rows[request_id] = entry.n_rows
            states[request_id] = entry.state
    found = {name: [r for r, state in states.items() if state == name] for name in _OUTCOMES}
    return {name: (len(ids), sum(rows[r] for r in ids)) for name, ids in found.items()}


def unserved(counts: dict[str, tuple[int, int]]) -> str | None:
    """Say which requests the model was not freed of; None if there are none."""
    verbs = {"requested": ("waits", "wait"), "refused": ("was refused", "were refused")}
    verbs["failed"] = ("failed", "failed")
    parts = [
        f"{counts[state][0]} {verb[counts[state][0] != 1]}"
        for state, verb in verbs.items()
        if counts[state][0]
    ]
    return None if not parts else f"{', '.join(parts[:-1])}{' and ' * (len(parts) > 1)}{parts[-1]}"


def today(estimator: Any) -> list[tuple[str, int, str, str, str]]:
    """Return what is promised now for each deletion (T18, T19), the last ones."""
    if not hasattr(estimator, "guarantees"):
        return []
    return [
        (
            _short(g.request_id),
            g.n_rows,
            "nothing" if isinf(g.epsilon) else f"{g.epsilon:.4g}",
            f"{g.delta:.3g}",
            "enforced or proved" if g.formal else "on conditions",
        )
        for g in estimator.guarantees()[-_MOST_ENTRIES:]
    ]


def _names(entry: Any) -> tuple[str, str, str]:
    """Return the requests of an entry, the digests it names, and why, if it served nobody."""
    digests = entry.sample_digests or ()
    shown = " ".join(f"{digest[:8]}…" for digest in digests[:3])
    more = f" and {len(digests) - 3} more" if len(digests) > 3 else ""
    why = (entry.detail or "") if entry.state in ("refused", "failed") else ""
    return ", ".join(map(_short, entry.request_ids)), shown + more, why


def _short(request_id: str) -> str:
    return request_id if len(request_id) <= _MOST_LETTERS else f"{request_id[:8]}…"
