"""A certificate in words, for people: plain text and HTML."""

from __future__ import annotations

from html import escape
from math import isinf
from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .certificate import Certificate


def headline(c: Certificate) -> str:
    """Say in one sentence what is promised."""
    if isinf(c.epsilon):
        return "Nothing is promised: epsilon is infinite."
    if c.epsilon == 0 and c.delta == 0:
        others = "on the corrected data" if c.corrects else "without the deleted rows"
        promise = f"exact: the released model has the law of one retrained {others}"
    else:
        what = "correction" if c.corrects else "deletion"
        promise = f"({c.epsilon:g}, {c.delta:g})-certified {what}"
    return (
        f"Formal certificate, {promise}." if c.formal else f"NOT a formal certificate: {promise}."
    )


def rows(c: Certificate) -> list[tuple[str, str]]:
    """Return the figures as (name, text)."""
    out = [("method", c.method)]
    if c.n_deleted is not None and c.corrects:
        out.append(("rows", f"{c.n_deleted} of {c.n_retained} corrected"))
    elif c.n_deleted is not None:
        out.append(("rows", f"{c.n_deleted} deleted, {c.n_retained} retained"))
    else:
        out.append(("rows", f"{c.n_retained} retained"))
    if c.sigma is not None:
        out.append(("sigma", f"{c.sigma:.6g} per weight, {c.n_parameters} weights"))
    if c.sigma is not None and c.weights_norm is not None:
        out.append(
            (
                "noise / weights",
                f"{c.noise_to_weights:.3g} (expected noise norm over ||w - anchor|| = "
                f"{c.weights_norm:.4g})",
            )
        )
    if c.sensitivity is not None:
        out.append(("sensitivity", f"{c.sensitivity:.6g} (Euclidean, all weights together)"))
    if c.mu:
        out.append(("mu", f"{c.mu:.6g}"))
    if c.composed is not None:
        out.append(
            (
                "all releases",
                f"epsilon = {c.composed[0]:.6g} at delta = {c.composed[1]:g} for the earliest "
                f"deletion since fit, {len(c.earlier_mu) + 1} releases counted (un-noised state "
                "is kept)",
            )
        )
    reason = getattr(c.event, "reason", "")
    if reason:
        out.append(("why not", reason))
    out.append(("created", c.created))
    return out


def as_text(c: Certificate) -> str:
    """Return the text shown by ``repr``."""
    lines = [headline(c)]
    lines += [
        fill(text, 92, initial_indent=f"  {name:<16} ", subsequent_indent=" " * 19)
        for name, text in rows(c)
    ]
    lines.append("  It rests on:")
    lines += [
        fill(
            f"{a.name}: {a.statement}{f' [{a.evidence}]' if a.evidence else ''}",
            92,
            initial_indent=f"    {a.status:<15} ",
            subsequent_indent=" " * 20,
        )
        for a in c.assumptions
    ]
    lines.append("  It does not cover:")
    lines += [
        fill(text, 92, initial_indent="    - ", subsequent_indent="      ") for text in c.scope
    ]
    return "\n".join(visible(line) for part in lines for line in part.split("\n"))


def as_html(c: Certificate) -> str:
    """Return the HTML shown in notebooks."""
    figures = "".join(
        f"<tr><th style='text-align:left'>{escape(n)}</th><td style='text-align:left'>"
        f"{escape(t)}</td></tr>"
        for n, t in rows(c)
    )
    founded = "".join(
        f"<li><b>{escape(a.status)}</b> {escape(a.name)}: {escape(a.statement)}"
        f"{f' <i>[{escape(a.evidence)}]</i>' if a.evidence else ''}</li>"
        for a in c.assumptions
    )
    scope = "".join(f"<li>{escape(text)}</li>" for text in c.scope)
    return visible(
        f"<div><p><b>{escape(headline(c))}</b></p><table>{figures}</table>"
        f"<details><summary>What it rests on</summary><ul>{founded}</ul></details>"
        f"<details><summary>What it does not cover</summary><ul>{scope}</ul></details></div>"
    )


def visible(text: str) -> str:
    """Return text with its control characters spelled out: they could write over the rest."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
